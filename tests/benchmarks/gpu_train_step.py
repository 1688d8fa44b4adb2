"""Pairs a second and MFU of the training step on one GPU: ViT-B/32, B/16, L/14 at 224 px.

Run: `cd tests && ../.venv/bin/python -m benchmarks.gpu_train_step`. NOT RUN YET on a GPU. The whole
step under Lightning's Trainer (bf16, compiled, fused AdamW), on noise and captions of realistic
length that come from the host's memory; loading is not part of it. The peak is a matrix product's
(or `--peak-tflops`). Printed as Markdown.
"""

import argparse
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from benchmarks.train_step import make_batches

from counterpoint.data.dataset import join
from counterpoint.launch.run.env import prepare
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.reducers.patches import RandomPatches
from counterpoint.models.reducers.tokens import Truncate
from counterpoint.models.text import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.callbacks.compile import Compile
from counterpoint.train.callbacks.metrics import Metrics
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.phases import Phase, Phases

SIZE, WARM, MEASURED = 224, 10, 20


@dataclass(frozen=True)
class Sizes:
    """A model: timm's image tower, the text tower, the embedding, pairs a step, wanted pairs/s."""

    image: str
    width: int
    num_heads: int
    embed_dim: int
    batch: int
    wanted: int


MODELS = {
    "ViT-B/32": Sizes("vit_base_patch32_clip_224", 512, 8, 512, 2048, 7000),
    "ViT-B/16": Sizes("vit_base_patch16_clip_224", 512, 8, 512, 1024, 2600),
    "ViT-L/14": Sizes("vit_large_patch14_clip_224", 768, 12, 768, 384, 600),
}
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "FLIP 50%": {"image_reducer": RandomPatches(0.5)},
    "FLIP 75%": {"image_reducer": RandomPatches(0.75)},
    "FLIP 50%, 16 tokens": {"image_reducer": RandomPatches(0.5), "text_reducer": Truncate(16)},
}


class Turns:
    """Batches one after the other; Lightning would take a list for several loaders."""

    def __init__(self, batches: list[Any]):
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class InMemory(pl.LightningDataModule):
    """The same few batches again and again, in the host's pinned memory."""

    def __init__(self, size: int):
        super().__init__()
        batches = make_batches(2, size, SIZE)
        self.batches = [[{k: v.pin_memory() for k, v in batch.items()}] for batch in batches]

    def train_dataloader(self) -> "Turns":
        """What the Trainer iterates over."""
        return Turns(self.batches * ((WARM + MEASURED) // len(self.batches)))

    def on_after_batch_transfer(self, batch: list[Any], dataloader_idx: int) -> Any:
        """As the loader of a run does."""
        return join(batch)


class Window(Metrics):
    """Takes the speed of the last steps, between two waits for the device."""

    found: dict[str, float]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Waits and starts after the warm-up; waits and ends after the last step."""
        self._meter.listening = False
        step = trainer.global_step
        if step not in (WARM, WARM + MEASURED):
            return
        torch.cuda.synchronize()
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        model, _ = self._meter.take()
        if step == WARM:
            self._before = now
            return
        seconds = self._before.elapsed_time(now) / 1e3
        pairs = MEASURED * pl_module.phases.at(0)[1].batch_size
        self.found = {
            "pairs_per_s": pairs / seconds,
            "gflop": model / pairs / 1e9,
            "mfu": model / seconds / self._peak,
        }


def measure(sizes: Sizes, batch: int, masks: dict[str, Any], options: Any) -> dict[str, float]:
    """Trains for some steps; returns speed, FLOPs and memory."""
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    text = ClipTextTower(sizes.width, 12, sizes.num_heads)
    model = TwoTower(TimmTower(sizes.image, SIZE), text, sizes.embed_dim, chunks=options.chunks)
    phase = Phase(batch * (WARM + MEASURED), batch, 1e-4, schedule="constant", **masks)
    objective = Objective({"infonce": InfoNCE()})
    module = ContrastiveModule(model, objective, Phases({"train": phase}), AdamW(), seed=0)
    window = Window(options.peak_tflops)
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=WARM + MEASURED,
        callbacks=[window, *([Compile(options.compile)] if options.compile else [])],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=InMemory(batch))
    return window.found | {"gib": torch.cuda.max_memory_allocated() / 2**30}


def main() -> None:
    """Measures all models and masks, and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--compile", default="inductor", help="empty: eager")
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the batch sizes")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--only", default="", help="models whose names contain this")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here")
    prepare()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {options}\n")
    print("| Model | Left out | Batch | Pairs/s | Wanted | GFLOP a pair | MFU | GiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, sizes in MODELS.items():
        for mask, reducers in MASKS.items() if options.only in name else ():
            batch = int(sizes.batch * options.scale)
            found = measure(sizes, batch, reducers, options)
            print(
                f"| {name} | {mask} | {batch} | {found['pairs_per_s']:.0f} | "
                f"{sizes.wanted if mask == 'none' else ''} | {found['gflop']:.1f} | "
                f"{found['mfu']:.1%} | {found['gib']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
