"""Pairs a second of the training step against open_clip's, with equal towers, weights and batches.

Run: `cd tests && OMP_NUM_THREADS=1 ../.venv/bin/python -m benchmarks.train_step`. open_clip runs
its own `train_one_epoch`, Counterpoint its own module under Lightning's Trainer, both over batches
in memory. They take turns, round by round, so that a noisy machine disturbs all alike; a round's
figure is its median step, and ratios are medians of the rounds' ratios. Each is given twice: by
the clock, and by processor time, which other jobs disturb much less. Printed as Markdown.

The towers are a ViT-Ti/16 at 112 px and a text tower of 6 layers of width 192 (17.7 M parameters);
captions have 12.4 tokens on average, 24 at the 95th percentile. Each kernel of attention is the
one that the framework chooses on a CPU.
"""

import argparse
import itertools
import logging
import statistics
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import open_clip
import torch
from open_clip_train.train import train_one_epoch
from timm.models.vision_transformer import _convert_openai_clip
from torch import Tensor

from counterpoint.launch.run.env import quieten
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.reducers.base import ImageReducer, TextReducer
from counterpoint.models.reducers.patches import RandomPatches, Resize
from counterpoint.models.reducers.tokens import Truncate
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.phases import Phase

SIZE, WIDTH, CONTEXT, VOCABULARY = 112, 192, 77, 49408
Run = Callable[[], tuple[float, float]]  # trains; seconds of a step
RATE, BETAS, EPS, DECAY = 1e-4, (0.9, 0.98), 1e-6, 0.2
TEXT = {  # open_clip's names of a layer's parts
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True)
class Variant:
    """How Counterpoint trains: what it leaves out, and its precision."""

    image: ImageReducer | None = None
    text: TextReducer | None = None
    precision: str = "32-true"


SHORT = 16
VARIANTS = {
    "trimmed captions (identical mathematics)": Variant(),
    "FLIP 50%": Variant(RandomPatches(0.5)),
    "FLIP 75%": Variant(RandomPatches(0.75)),
    f"CLIPA lengths (64 px, {SHORT} tokens)": Variant(Resize(64), Truncate(SHORT)),
    "bf16": Variant(precision="bf16-mixed"),
    "FLIP 50%, bf16": Variant(RandomPatches(0.5), None, "bf16-mixed"),
    f"FLIP 50%, {SHORT} tokens, bf16": Variant(RandomPatches(0.5), Truncate(SHORT), "bf16-mixed"),
}


def make_batches(count: int, size: int, side: int = SIZE) -> list[dict[str, Tensor]]:
    """Noise as pictures; captions with a start, an end (the highest id) and zeros as padding."""
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        lengths = torch.empty(size).log_normal_(2.407, 0.47, generator=g)
        length = lengths.round().long().clamp(3, CONTEXT)
        text = torch.randint(1, VOCABULARY - 2, (size, CONTEXT), generator=g)
        text[:, 0] = VOCABULARY - 2
        text[torch.arange(size), length - 1] = VOCABULARY - 1
        text[torch.arange(CONTEXT) >= length[:, None]] = 0
        image = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=g)
        key = torch.randint(0, 1 << 62, (size,), generator=g)
        found.append({"image": image, "text": text, "text_length": length, "key": key})
    return found


def theirs() -> open_clip.CLIP:
    """open_clip's model."""
    torch.manual_seed(0)
    vision = {"layers": 12, "width": WIDTH, "head_width": 64, "patch_size": 16, "image_size": SIZE}
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH}
    return open_clip.CLIP(
        WIDTH, vision_cfg=vision, text_cfg=text | {"heads": 3, "layers": 6}, output_dict=True
    )


def ours(other: open_clip.CLIP) -> TwoTower:
    """Counterpoint's model with the same weights."""
    sizes = {"embed_dim": WIDTH, "depth": 12, "num_heads": 3, "patch_size": 16}
    image = TimmTower("vit_base_patch16_clip_224", SIZE, model_args=sizes)
    text = ClipTextTower(WIDTH, 6, 3, CONTEXT, VOCABULARY)
    model = TwoTower(image, text, WIDTH)
    weights = {k: v.detach().clone() for k, v in other.state_dict().items()}
    vit = _convert_openai_clip(weights, image.trunk)
    model.image_projection.weight.data = vit.pop("head.weight").contiguous()
    del vit["head.bias"]
    image.trunk.load_state_dict(vit)
    model.text_projection.weight.data = weights["text_projection"].T.contiguous()
    model.logit_scale.data = weights["logit_scale"].view(1)
    trunk: Any = text.trunk
    renamed = {
        "embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
        "final_layer_norm.weight": weights["ln_final.weight"],
        "final_layer_norm.bias": weights["ln_final.bias"],
    }
    for number in range(6):
        old, new = f"transformer.resblocks.{number}.", f"encoder.layers.{number}."
        for kind in ("weight", "bias"):
            packed = weights[f"{old}attn.in_proj_{kind}"].chunk(3)
            for name, value in zip("qkv", packed, strict=True):
                renamed[f"{new}self_attn.{name}_proj.{kind}"] = value
            for name, own in TEXT.items():
                renamed[f"{new}{own}.{kind}"] = weights[f"{old}{name}.{kind}"]
    own = {name.removeprefix("text_model."): name for name in trunk.state_dict()}
    trunk.load_state_dict({own[name]: value for name, value in renamed.items()})
    count, wanted = (sum(p.numel() for p in m.parameters()) for m in (model, other))
    assert count == wanted, f"{count} parameters here, {wanted} there"
    return model


class Stamped:
    """Batches in memory; notes when each was asked for, by the clock and by processor time."""

    def __init__(self, batches: list[Any]):
        self.batches: list[Any] = batches
        self.times: list[tuple[float, float]] = []
        self.num_batches, self.num_samples = len(batches), len(batches) * len(batches[0])
        self.dataloader = self

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.times = []
        for batch in self.batches:
            self.times.append((time.perf_counter(), time.process_time()))
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """What open_clip calls."""

    def step(self) -> tuple[float, float]:
        """Median seconds of a step, both ways; the first warms caches up."""
        clock, processor = (
            statistics.median(end - start for start, end in itertools.pairwise(times[1:]))
            for times in zip(*self.times, strict=True)
        )
        return clock, processor


def run_theirs(batches: list[dict[str, Tensor]], precision: str) -> Run:
    """open_clip's own epoch over normalised float pictures, as its loader gives them."""
    model, loss = theirs(), open_clip.ClipLoss()
    tower = TimmTower("vit_base_patch16_clip_224", SIZE)
    data = Stamped([(tower.stem(batch["image"]), batch["text"]) for batch in batches])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, eps=EPS)
    args = Namespace(
        device="cpu", precision=precision, distill=False, accum_freq=1, skip_scheduler=True,
        grad_clip_norm=None, horovod=False, rank=0, local_rank=0, world_size=1, log_local=False,
        batch_size=len(batches[0]["image"]), log_every_n_steps=1000, wandb=False,
        tensorboard=False, save_logs=False,
    )  # fmt: skip

    def run() -> tuple[float, float]:
        torch.backends.cuda.enable_flash_sdp(True)
        train_one_epoch(model, {"train": data}, loss, 0, optimizer, None, None, None, args)
        return data.step()

    return run


def run_ours(batches: list[dict[str, Tensor]], variant: Variant) -> Run:
    """Counterpoint's module under the Trainer."""
    model, data = ours(theirs()), Stamped(batches)
    size = len(batches[0]["image"])
    phase = Phase(
        size * len(batches),
        size,
        RATE,
        schedule="constant",
        image_reducer=variant.image,
        text_reducer=variant.text,
    )
    optim, objective = AdamW(BETAS, EPS, DECAY), Objective({"infonce": InfoNCE()})

    def run() -> tuple[float, float]:
        torch.backends.cuda.enable_flash_sdp(False)  # as `counterpoint fit` without a GPU
        module = ContrastiveModule(model, objective, {"train": phase}, optim, seed=0)
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, precision=variant.precision, max_steps=len(batches),
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, data)
        return data.step()

    return run


@torch.no_grad()
def check(batch: dict[str, Tensor]) -> float:
    """Largest difference between the features of both models."""
    other = theirs().eval()
    model = ours(other).eval()
    got = model(batch)
    want = other(model.image.stem(batch["image"]), batch["text"])
    return max(
        (got[name] - want[f"{name}_features"]).abs().max().item() for name in ("image", "text")
    )


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", default="", help="variants whose names contain this")
    options = parser.parse_args()
    if options.steps < 3:
        raise SystemExit("--steps must be at least 3: the first is not counted")
    logging.disable(logging.INFO)
    quieten()
    warnings.filterwarnings("ignore")
    batches = make_batches(options.steps, options.batch)
    difference = check(batches[0])
    assert difference < 1e-5, f"the models differ by {difference}"
    runs = {
        "open_clip, fp32": run_theirs(batches, "fp32"),
        "open_clip, amp_bf16": run_theirs(batches, "amp_bf16"),
    }
    runs |= {n: run_ours(batches, v) for n, v in VARIANTS.items() if options.only in n}
    rounds = [{name: run() for name, run in runs.items()} for _ in range(options.rounds)]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), batch {options.batch}, "
        f"{options.rounds} rounds of {options.steps} steps; features differ by {difference:.0e}\n"
    )
    print("| Step | ms | Pairs/s | x open_clip fp32 (clock / processor) |")
    print("| --- | ---: | ---: | ---: |")
    for name in runs:
        seconds = statistics.median(each[name][0] for each in rounds)
        clock, processor = (
            statistics.median(each["open_clip, fp32"][way] / each[name][way] for each in rounds)
            for way in (0, 1)
        )
        print(
            f"| {name} | {seconds * 1e3:.0f} | {options.batch / seconds:.1f} | "
            f"{clock:.2f} / {processor:.2f} |"
        )


if __name__ == "__main__":
    main()
