"""From records of regions to boxes: the box of an emoji that is named is found in new pictures.

A picture has one emoji, in one of nine cells. With several of them, decoders of this size only
learn within thousands of steps which of those that are there is meant.
"""

import pytest
import torch
from collages import GRID, write_collages
from torch.nn.utils import clip_grad_norm_

from counterpoint.data.images.transforms import EvalTransform
from counterpoint.data.module import PairsDataModule
from counterpoint.data.order.steps import Steps
from counterpoint.data.recipe import Text
from counterpoint.data.shards.index import index_shards
from counterpoint.data.text.few_merges import FewMerges
from counterpoint.data.text.regions import RegionBox, RegionPhrase
from counterpoint.losses.captioning.decoder import CaptionDecoder
from counterpoint.losses.captioning.locca import LocCa, Task
from counterpoint.models.image import TimmTower

BATCH, STEPS, WIDTH, RATE = 64, 360, 64, 2e-3
VIT = {"patch_size": 24, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "class_token": False}
VIT |= {"global_pool": "map", "weight_init": "jax"}
TASKS = {
    "aref": Task(read=("text.phrase",), write=("text.box",)),
    "gcap": Task(read=("text.box",), write=("text.phrase",)),
}


def batches(folder, name, numbers, steps):
    shard = write_collages(folder / name, numbers)
    index_shards([str(shard)], folder / f"{name}.parquet")
    texts = {"phrase": Text(RegionPhrase(), context_length=8)}
    texts["box"] = Text(RegionBox(steps=GRID), context_length=6)
    data = PairsDataModule(
        str(folder / f"{name}.parquet"),
        tokenizer=FewMerges(200),
        train_transform=EvalTransform(resize="squash"),
        texts=texts,
    )
    data.connect(Steps([(steps, BATCH)]), seed=0, image_size=72, context_length=8)
    data.check()
    return data.train_dataset()


@pytest.mark.soak
def test_the_box_of_a_named_emoji_is_found_in_pictures_that_were_not_trained_on(tmp_path):
    torch.manual_seed(0)
    vocabulary = FewMerges(200).vocab_size
    tower = TimmTower(
        "vit_tiny_patch16_224", image_size=72, mean=[1.0] * 3, std=[0.5] * 3, model_args=VIT
    )
    term = LocCa(CaptionDecoder(WIDTH, vocabulary, 14, WIDTH, 1, 2), TASKS, skip=1)
    parameters = [*tower.parameters(), *term.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, (0.9, 0.98), weight_decay=0.02)
    falling = STEPS * 0.4

    def states(batch):
        return tower.trunk.forward_features((batch["image"].float() / 255 - 1) / 0.5)

    seen = batches(tmp_path, "seen", range(2000), STEPS)
    for step in range(STEPS):
        rate = RATE * min(1.0, (step + 1) / 20, (STEPS - step) / falling)
        optimizer.param_groups[0]["lr"] = rate
        batch = seen[step]
        losses = term({"image.tokens": states(batch)}, batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    with torch.no_grad():
        batch = batches(tmp_path, "unseen", range(2000, 2100), 1)[0]
        found = written_boxes(term, states(batch), batch)
    wanted = batch["text.box"][:, 1:5]
    # By chance one of nine.
    right = (found == wanted).all(1).float().mean()
    print({name: round(float(loss), 3) for name, loss in losses.items()}, float(right))
    assert right > 0.6


def written_boxes(term, states, batch):
    """The four numbers that the decoder writes for phrases, the likeliest token each time."""
    rows, places = torch.arange(BATCH), batch["text.phrase_length"].clone()
    ids = torch.cat([batch["text.phrase"], torch.zeros(BATCH, 6, dtype=torch.int64)], 1)
    ids[rows, places] = batch["text.box"][:, 0]
    in_order, written = torch.zeros(BATCH, dtype=torch.bool), []
    for _ in range(4):
        places += 1
        made = term.decoder(states, ids, in_order, term.prompts["aref"])[rows, places]
        ids[rows, places] = (made @ term.decoder.outputs.T).argmax(1)
        written.append(ids[rows, places])
    return torch.stack(written, 1)
