"""Steps of 131,072 pairs on one GPU: SigLIP, ViT-B/32 at 224 px, encoded in chunks.

In: pictures of noise on the host, of which each is there several times. Out: a row: seconds a step,
pairs a second, MFU, memory. The loss is that of the whole batch: no accumulation can give it.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from benchmarks.gpu.report import Report
from benchmarks.gpu.train_step import MODELS, SIZE, Turns, Window, peak_tflops
from benchmarks.train_step import make_batches

from counterpoint.data.dataset import join
from counterpoint.losses.objective import Objective
from counterpoint.losses.siglip import SigLIP
from counterpoint.models.image import TimmTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.phases import Phase

# Pairs a step, different ones of them, chunks, steps before the measured one.
SIZES = {"full": (131_072, 4096, 64, 1), "tiny": (64, 16, 4, 1)}


class Repeated(pl.LightningDataModule):
    """The same batch in every step: different pairs, each repeated."""

    def __init__(self, size: int, different: int, num_steps: int):
        super().__init__()
        (made,) = make_batches(1, different, SIZE)
        times = size // different
        batch = {name: x.repeat(times, *[1] * (x.ndim - 1)) for name, x in made.items()}
        batch["key"] = torch.arange(size)
        self.batches = [[batch]] * num_steps

    def train_dataloader(self) -> Turns:
        """What the Trainer iterates over."""
        return Turns(self.batches)

    def on_after_batch_transfer(self, batch: list[Any], dataloader_idx: int) -> Any:
        """As the loader of a run does."""
        return join(batch)


def measure(report: Report) -> None:
    """Measures one step after the first."""
    batch, different, chunks, warm = SIZES[report.scale]
    report.measure(
        lambda: step(batch, different, chunks, warm), model="ViT-B/32", batch=batch, chunks=chunks
    )


def step(batch: int, different: int, chunks: int, warm: int) -> dict[str, float]:
    """Trains some steps; returns the last one's speed and the most memory."""
    torch.cuda.reset_peak_memory_stats()
    sizes = MODELS["ViT-B/32"]
    text = ClipTextTower(sizes.width, 12, sizes.num_heads)
    image = TimmTower(sizes.image, SIZE)
    model = TwoTower(image, text, sizes.embed_dim, 10.0, logit_bias_init=-10.0, chunks=chunks)
    objective = Objective({"siglip": SigLIP()})
    phase = Phase(batch * (warm + 1), batch, 1e-4, schedule="constant")
    module = ContrastiveModule(model, objective, {"train": phase}, seed=0)
    window = Window(warm, 1, peak_tflops())
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=warm + 1,
        callbacks=[window], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Repeated(batch, different, warm + 1))
    return window.found | {"gib": torch.cuda.max_memory_allocated() / 2**30}
