"""Pairs a second and MFU of the training step on one GPU against open_clip's in the same process.

In: ViT-B/32, B/16 or L/14 at 224 px in bf16-mixed, noise and captions of realistic length from the
host's pinned memory; loading is not part of it. Ours runs under Lightning's Trainer, with and
without masking, eager and compiled; theirs is `open_clip_train`'s own epoch over the same batch,
eager and compiled. Out: a row each. MFU is of the FLOPs that each needs without recomputation
(ours leaves out padding, and patches where it masks) and the same peak: the vendor's where the
device is known by name, else a matrix product's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from benchmarks.gpu.open_clip_step import run_open_clip
from benchmarks.gpu.report import Report
from benchmarks.train_step import make_batches

from counterpoint.data.dataset import join
from counterpoint.launch.config.packaged import packaged_files
from counterpoint.launch.planning.devices import load_device
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.reducers.patches import RandomPatches
from counterpoint.models.reducers.tokens import Truncate
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.callbacks.compile import Compile
from counterpoint.train.callbacks.flops import measure_peak
from counterpoint.train.callbacks.metrics import Metrics
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.phases import Phase

SIZE = 224


@dataclass(frozen=True)
class Sizes:
    """A model: timm's and open_clip's names, the text tower, the embedding, pairs a step."""

    image: str
    open_clip: str
    width: int
    num_heads: int
    embed_dim: int
    batch: int


MODELS = {
    "ViT-B/32": Sizes("vit_base_patch32_clip_224", "ViT-B-32", 512, 8, 512, 2048),
    "ViT-B/16": Sizes("vit_base_patch16_clip_224", "ViT-B-16", 512, 8, 512, 1024),
    "ViT-L/14": Sizes("vit_large_patch14_clip_224", "ViT-L-14", 768, 12, 768, 384),
}
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "FLIP 50%": {"image_reducer": RandomPatches(0.5)},
    "FLIP 50%, 16 tokens": {"image_reducer": RandomPatches(0.5), "text_reducer": Truncate(16)},
}
# What is measured, the most telling first: framework, mask, backend of torch.compile.
ORDER = [
    ("ours", "none", None),
    ("open_clip", "none", None),
    ("ours", "none", "inductor"),
    ("open_clip", "none", "inductor"),
    ("ours", "FLIP 50%", None),
    ("ours", "FLIP 50%", "inductor"),
    ("ours", "FLIP 50%, 16 tokens", "inductor"),
]
WARM, MEASURED = {"full": 6, "tiny": 2}, {"full": 12, "tiny": 2}
TINY = 8  # pairs


class Turns:
    """Batches one after the other; Lightning would take a list for several loaders."""

    def __init__(self, batches: list[Any]):
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class InMemory(pl.LightningDataModule):
    """The same few batches again and again, in the host's memory, pinned if there is a GPU."""

    def __init__(self, size: int, num_steps: int = 30):
        super().__init__()
        batches = make_batches(2, size, SIZE)
        if torch.cuda.is_available():
            batches = [{k: v.pin_memory() for k, v in batch.items()} for batch in batches]
        self.batches = [[batches[step % 2]] for step in range(num_steps)]

    def train_dataloader(self) -> "Turns":
        """What the Trainer iterates over."""
        return Turns(self.batches)

    def on_after_batch_transfer(self, batch: list[Any], dataloader_idx: int) -> Any:
        """As the loader of a run does."""
        return join(batch)


class Window(Metrics):
    """Takes the speed of the last steps, between two waits for the device.

    Args:
        warm: steps before.
        measured: steps.
        peak_tflops: of the device.
    """

    found: dict[str, float]

    def __init__(self, warm: int, measured: int, peak_tflops: float):
        super().__init__(peak_tflops)
        self._first, self._end, self._steps = warm, warm + measured, measured

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Waits and starts after the warm-up; waits and ends after the last step."""
        self._meter.listening = False
        step = trainer.global_step
        if step not in (self._first, self._end):
            return
        torch.cuda.synchronize()
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        model, _ = self._meter.take()
        if step == self._first:
            self._before = now
            return
        seconds = self._before.elapsed_time(now) / 1e3
        pairs = self._steps * pl_module.phases.at(0)[1].batch_size
        self.found = {
            "ms": 1e3 * seconds / self._steps,
            "pairs_per_s": pairs / seconds if seconds else 0.0,
            "gflop": model / pairs / 1e9,
            "mfu": model / seconds / self._peak if seconds else 0.0,
        }


def measure(report: Report, name: str) -> None:
    """Measures both frameworks with one model."""
    sizes = MODELS[name]
    peak = peak_tflops()
    report.piece["peak_tflops"] = peak
    batch = sizes.batch if report.scale == "full" else TINY
    steps = WARM[report.scale], MEASURED[report.scale]
    for who, mask, backend in ORDER[:3] if report.scale == "tiny" else ORDER:
        backend = "aot_eager" if report.scale == "tiny" and backend else backend
        named = {"model": name, "framework": who, "mask": mask, "compile": backend, "batch": batch}
        run = partial(run_ours, MASKS[mask]) if who == "ours" else run_open_clip
        report.measure(
            lambda r=run, b=backend: with_memory(r, sizes, batch, steps, b, peak), **named
        )


def with_memory(run: Any, *arguments: Any) -> dict[str, float]:
    """Returns what a run measures, and the most memory that torch allocated in it."""
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    found = run(*arguments)
    return found | {"gib": torch.cuda.max_memory_allocated() / 2**30}


def peak_tflops() -> float:
    """Returns the vendor's peak for dense bf16 products, else what a product reaches."""
    known = (load_device(name) for name in packaged_files("device"))
    for device in known:
        if torch.cuda.get_device_name() in device.names:
            return device.tflops["bf16"]
    return measure_peak(torch.device("cuda"), "bf16-mixed", 1.0) / 1e12


def run_ours(
    masks: dict[str, Any],
    sizes: Sizes,
    batch: int,
    steps: tuple[int, int],
    backend: str | None,
    peak: float,
) -> dict[str, float]:
    """Trains for some steps under the Trainer; returns speed and FLOPs."""
    text = ClipTextTower(sizes.width, 12, sizes.num_heads)
    model = TwoTower(TimmTower(sizes.image, SIZE), text, sizes.embed_dim)
    phase = Phase(batch * sum(steps), batch, 1e-4, schedule="constant", **masks)
    objective = Objective({"infonce": InfoNCE()})
    module = ContrastiveModule(model, objective, {"train": phase}, AdamW(), seed=0)
    window = Window(*steps, peak)
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=sum(steps),
        callbacks=[window, *([Compile(backend)] if backend else [])],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=InMemory(batch, sum(steps)))
    return window.found
