"""A-CLIP in the training step: what is kept, the loss and its gradients, against a dense one.

The reference reads whole attention maps, walks from patch to patch with a pencil, removes tokens by
hand and writes the shipped objective as matrices.
"""

import cmath
import copy
import importlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_run import CONTEXT, Recorded, train
from torch.nn import functional as F

from counterpoint.data.images.decode import Pixels
from counterpoint.data.images.enclosing_crop import EnclosingCrop
from counterpoint.data.images.transforms import TrainTransform
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.reducers.attentive import AttentivePatches
from counterpoint.models.reducers.base import ImageView
from counterpoint.models.reducers.mask_token import MaskTokens
from counterpoint.models.reducers.patches import RandomPatches
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.ema import Ema, EmaConfig
from counterpoint.train.features import check_needs, check_scores, score_patches
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.phases import Phase, Phases, prepare_reducers

OBJECTIVE = Path(__file__).resolve().parents[2] / "configs" / "objective" / "aclip.yaml"
B, STEPS, SIDE, PATCH = 8, 3, 16, 4
STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


class Watched(AttentivePatches):
    """Remembers what it kept, by step, view and key."""

    def __init__(self):
        super().__init__(drop=0.5, cell=1)
        self.kept = {}

    def keep(self, grid, keys, view, reduction):
        patches = super().keep(grid, keys, view, reduction)
        if len(keys) > 1:  # else it is tried on an image before the run
            rows = zip(keys.tolist(), patches.kept.tolist(), strict=True)
            self.kept |= {(reduction.step, view, key): row for key, row in rows}
        return patches


def built(value):
    """What a configuration describes, without the parser, which takes a second."""
    if isinstance(value, dict) and "class_path" in value:
        where, _, name = value["class_path"].rpartition(".")
        return getattr(importlib.import_module(where), name)(**built(value.get("init_args", {})))
    if isinstance(value, dict):
        return {key: built(inner) for key, inner in value.items()}
    return [built(inner) for inner in value] if isinstance(value, list) else value


def module(reducer, dtype=torch.float64, chunks=1, decay=0.7):
    """A small run with a moving average that is not the student any more."""
    torch.manual_seed(3)
    sizes = {"patch_size": PATCH, "embed_dim": 128, "depth": 2, "num_heads": 2}
    image = TimmTower("vit_tiny_patch16_224", SIDE, model_args=sizes)
    text = ClipTextTower(16, 1, 2, CONTEXT, vocab_size=50)
    model = TwoTower(image, text, 24, logit_scale_init=7.0, chunks=chunks)
    phase = Phase(STEPS * B, B, 1e-3, schedule="constant", image_reducer=reducer)
    phases = Phases({"train": phase})
    prepare_reducers(phases, model)
    objective = Objective(**built(yaml.safe_load(OBJECTIVE.read_text())))
    made = Recorded(model, objective, phases, AdamW(), seed=0)
    made.losses, made.norms, made.pieces = [], [], []
    made.ema = Ema(model, EmaConfig(decay, 1.0))
    for parameter in made.ema.model.image.parameters():
        parameter += torch.randn_like(parameter) * parameter.std().nan_to_num() * 0.5
    return made.to(dtype)


def batches(num_steps=STEPS, whole_side=SIDE):
    """Views of random images, as the loader makes them."""
    online = TrainTransform((0.3, 0.7), (0.7, 1.4), flip=0.5, rotate=15)
    around = EnclosingCrop(("image", "image.other"))
    found = []
    for step in range(num_steps):
        g, rng = torch.Generator().manual_seed(step), np.random.default_rng(step)
        batch = {
            "text": torch.randint(1, 50, (B, CONTEXT), generator=g),
            "text_length": torch.randint(2, CONTEXT + 1, (B,), generator=g),
            "key": torch.randint(0, 1 << 62, (B,), generator=g),
        }
        rows = {name: [] for name in ("image", "image.other", "image.whole")}
        drawn = {name: [] for name in rows}
        for _ in range(B):
            coarse = torch.randint(0, 256, (1, 3, 6, 7), dtype=torch.uint8, generator=g)
            pixels = Pixels(F.interpolate(coarse, (30, 35), mode="bicubic")[0])
            boxes = [online.draw(30, 35, rng) for _ in range(2)]
            boxes.append(around.draw(30, 35, rng, boxes))
            for name, params in zip(rows, boxes, strict=True):
                side = whole_side if name == "image.whole" else SIDE
                rows[name].append(online.apply(pixels, side, params))
                drawn[name].append(torch.from_numpy(params))
        batch |= {name: torch.stack(values) for name, values in rows.items()}
        batch |= {f"{name}.augmentation": torch.stack(v) for name, v in drawn.items()}
        found.append(batch)
    return found


def looked_at(tower, image):
    """Mean over layers and heads of the class token's row of whole attention maps [n, r, c]."""
    tower, maps = copy.deepcopy(tower), []
    for block in tower.trunk.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, __: maps.append(inputs[0]))
    tower(image)
    side = image.shape[-1] // PATCH
    return torch.stack(maps).mean(dim=(0, 2))[:, 0, 1:].view(-1, side, side)


def best(scores, whole, part, num_kept):
    """Patches of a view with the highest scores, each looked up where its centre lies."""
    side, found = SIDE // PATCH, []
    for patch in range(side * side):
        y, x = ((2 * i + 1) / side - 1 for i in divmod(patch, side))
        z = complex(x - 2 * part[6], y - 2 * part[7]) * cmath.exp(1j * math.radians(part[5]))
        across = part[1] + ((-z.real if part[4] else z.real) + 1) / 2 * part[3]
        down = part[0] + (z.imag + 1) / 2 * part[2]
        count = len(scores)
        place = [
            min(max((down - whole[0]) / whole[2] * count - 0.5, 0), count - 1),
            min(max((across - whole[1]) / whole[3] * count - 0.5, 0), count - 1),
        ]
        value = 0.0
        for r, c in itertools.product(range(count), repeat=2):
            near = max(0, 1 - abs(r - place[0])) * max(0, 1 - abs(c - place[1]))
            value += near * scores[r, c].item()
        found.append((value, patch))
    return sorted(patch for _, patch in sorted(found, reverse=True)[:num_kept])


def wanted(made, batch):
    """Kept patches of both views, from the average as it is."""
    scores = looked_at(made.ema.model.image, batch["image.whole"])
    places = {name: batch[f"{name}.augmentation"] for name in ("image", "image.other")}
    whole = batch["image.whole.augmentation"]
    return {
        view: torch.tensor(
            [
                best(s, w.tolist(), p.tolist(), 8)
                for s, w, p in zip(scores, whole, part, strict=True)
            ]
        )
        for view, part in places.items()
    }


def dense(made, batch, kept):
    """The loss with dropped tokens removed by hand and the objective in matrices."""
    model, terms = made.model, made.objective.terms
    trunk, pooled = model.image.trunk, {}
    for view, rows in kept.items():
        x = trunk._pos_embed(trunk.patch_embed(model.image.stem(batch[view])))
        x = torch.stack([torch.cat([t[:1], t[1:][row]]) for t, row in zip(x, rows, strict=True)])
        pooled[view] = trunk.forward_head(trunk.norm(trunk.blocks(x)))
    text = F.normalize(model.project_text(batch["text"], batch["text_length"]), dim=1)
    labels, loss = torch.arange(B), 0.0
    for features in pooled.values():
        image = F.normalize(model.image_projection(features), dim=1)
        logits = model.logit_scale.exp() * image @ text.T
        loss = loss + 0.25 * F.cross_entropy(logits, labels)
        loss = loss + 0.25 * F.cross_entropy(logits.T, labels)
    z = torch.cat([F.normalize(terms["simclr"].head(x), dim=1) for x in pooled.values()])
    logits = (z @ z.T / 0.1).masked_fill(torch.eye(2 * B, dtype=torch.bool), -torch.inf)
    loss = loss + F.cross_entropy(logits, (torch.arange(2 * B) + B) % (2 * B))
    with torch.no_grad():
        target = terms["byol"].target(made.ema.model.image(batch["image.whole"]))
    for features in pooled.values():
        guess = terms["byol"].predictor(terms["byol"].projector(features))
        loss = loss + 2 * (2 - 2 * F.cosine_similarity(guess, target)).mean() / 2
    return loss


@pytest.mark.parametrize("whole_side", [SIDE, SIDE // 2])
def test_what_is_kept_the_loss_and_every_gradient_are_those_of_a_dense_reference(whole_side):
    reducer = Watched()
    made, reference = module(reducer), module(Watched())
    made.phases = Phases({"train": Phase(B, B, 1e-3, schedule="constant", image_reducer=reducer)})
    (batch,) = batches(1, whole_side)
    train(made, 1, "auto", data=[batch])
    kept = wanted(reference, batch)
    for view, rows in kept.items():
        found = [reducer.kept[0, view, key] for key in batch["key"].tolist()]
        assert found == rows.tolist()
    assert not torch.equal(*kept.values())
    loss = dense(reference, batch, kept)
    loss.backward()
    assert made.losses[0] == pytest.approx(loss.item(), rel=1e-10)
    want = {n: p.grad for n, p in reference.named_parameters() if p.requires_grad}
    got = made.pieces[0]
    scale = max(value.abs().max().item() for value in want.values())
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-10 * scale, msg=name)
    assert all(p.grad is None for p in made.ema.parameters())


def record(rank, world_size, name, dtype, chunks):
    """Losses, norms and what was kept."""
    made = module(Watched(), dtype, chunks)
    train(made, world_size, name, data=batches())
    return made.losses, made.norms, made.phases.named["train"].image_reducer.kept


@pytest.fixture(scope="module")
def one():
    return {dtype: record(0, 1, "auto", dtype, 1) for dtype in (torch.float64, torch.float32)}


@pytest.mark.parametrize(
    ("world_size", "name", "chunks"),
    [
        (1, "auto", 3),
        (2, "ddp", 2),
        *(pytest.param(2, name, 1, marks=pytest.mark.soak) for name in STRATEGIES),
        pytest.param(4, "ddp", 1, marks=pytest.mark.soak),
    ],
)
def test_masks_losses_and_norms_are_the_same_for_any_split(gloo, one, world_size, name, chunks):
    # Adam's first steps are signs of gradients: they carry float32's rounding into the next norm.
    dtype, exactness = (torch.float32, 1e-3) if "zero" in name else (torch.float64, 1e-9)
    results = gloo(world_size, record, name, dtype, chunks)
    losses, norms, kept = one[dtype]
    found = [torch.tensor(result[0], dtype=torch.float64) for result in results]
    assert torch.stack(found).mean(0).tolist() == pytest.approx(losses, rel=exactness)
    assert all(result[1] == pytest.approx(norms, rel=exactness) for result in results)
    assert {k: v for result in results for k, v in result[2].items()} == kept
    assert len(kept) == STEPS * B * 2


def test_the_average_sees_the_crop_once_and_only_when_somebody_asks():
    made, (batch,) = module(Watched()), batches(1)
    calls = []
    made.ema.model.image.register_forward_hook(lambda *_: calls.append(1))
    whole, needs = batch, made.objective.needs

    def scored(reducer):
        phases = Phases({"a": Phase(8, 8, 1.0, image_reducer=reducer)})
        reduction = phases.reduction(0, 0)
        return score_patches(reduction, made.model.image, made.frozen_towers, batch, needs)

    reduction, features = scored(Watched())
    assert len(calls) == 1 and set(reduction.scores) == {"image", "image.other"}
    want = made.ema(batch, {"image.whole.pooled"})["image.whole.pooled"]
    assert torch.equal(features["ema.image.whole.pooled"], want)
    reduction, features = scored(RandomPatches())
    assert (reduction.scores, features) == ({}, {}) and len(calls) == 2
    # Its turn has a stream of texts.
    batch, needs = {"nli/text": batch["text"]}, {"nli/text"}
    assert scored(Watched())[1] == {} and len(calls) == 2
    batch, needs = whole, made.objective.needs
    hidden = MaskTokens(AttentivePatches(cell=2))
    reduction, _ = scored(hidden)
    patches = hidden.keep((4, 4), batch["key"], "image.other", reduction)
    assert patches.kept.shape == (B, 16) and (patches.hidden.sum(1) == 8).all()


def test_what_scores_need_is_asked_for_before_the_run():
    made = module(Watched())
    needs, phases = made.objective.needs, made.phases
    sides = {"image": 16, "image.other": 16, "image.whole": 8}
    views = {name: ImageView(side, TrainTransform.columns) for name, side in sides.items()}
    assert phases.needs == {"ema.image.whole.attention"}
    check_needs(phases.needs, ["ema"], views, ())
    check_scores(phases, needs, views, made.model.image)
    reader = "phases.train.image_reducer"
    with pytest.raises(ValueError, match=r"phases.train.image_reducer needs .* ema: \{decay"):
        check_needs(phases.needs, ["teacher.x"], views, (), reader)
    for missing in ("image.whole", "image.other"):
        rest = {name: view for name, view in views.items() if name != missing}
        unplaced = views | {missing: ImageView(16)}
        for known in (rest, unplaced):
            with pytest.raises(ValueError, match=f"image_reducer: .* where '{missing}' lies"):
                check_scores(phases, needs, known, made.model.image)
    odd = views | {"image.whole": ImageView(10, TrainTransform.columns)}
    with pytest.raises(ValueError, match="10 x 10 pixels do not divide"):
        check_scores(phases, needs, odd, made.model.image)
