"""How fast one GPU is fed from JPEGs: the loader alone, and a ViT-B/32 that trains from it.

In: shards of 512 px pictures that are made on the spot, workers on all cores but three. Out: a row
of the loader alone, images a second by the clock and by a core's processor time; one of the run,
with the share of the time in which it waited for data. A first look at which side starves.
"""

import io
import json
import os
import resource
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from benchmarks.gpu.report import Report
from PIL import Image, ImageFilter

from counterpoint.data.module import PairsDataModule
from counterpoint.data.order.steps import Steps
from counterpoint.data.shards.index import index_shards
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.callbacks.metrics import Metrics
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.phases import Phase

SIZE, CONTEXT, KEPT = 224, 77, 3  # cores for the training process, the pinning thread, NCCL
# Shards, pictures in each, their side, pairs a step, steps of the loader alone, of the run.
SIZES = {"full": (16, 256, 512, 1024, 30, 60), "tiny": (2, 16, 64, 8, 2, 3)}
WORDS = ("photo", "of", "a", "red", "dog", "on", "the", "green", "hill", "at", "noon", "small")


def measure(report: Report) -> None:
    """Measures the loader alone, then a run."""
    num_shards, per_shard, side, batch, alone, steps = SIZES[report.scale]
    with tempfile.TemporaryDirectory() as folder:
        shards = [Path(folder) / f"{number:05d}.tar" for number in range(num_shards)]
        workers = max(1, len(os.sched_getaffinity(0)) - KEPT)
        with ProcessPoolExecutor(min(workers, num_shards)) as pool:
            list(pool.map(write_shard, shards, [per_shard] * num_shards, [side] * num_shards))
        manifest = Path(folder) / "train.parquet"
        index_shards([str(path) for path in shards], str(manifest))
        named: dict[str, Any] = {"side": side, "workers": workers, "batch": batch}
        report.measure(
            lambda: loader_alone(manifest, workers, batch, alone), what="loader", **named
        )
        if report.device.type == "cuda":
            report.measure(lambda: fed(manifest, workers, batch, steps), what="ViT-B/32", **named)


def write_shard(path: Path, count: int, side: int) -> None:
    """Writes pictures with the bit rate of photographs (about 90 KiB at 512 px), and captions."""
    rng = np.random.default_rng(int(path.stem))
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            key = f"{path.stem}{number:05d}"
            words = " ".join(rng.choice(WORDS, 1 + int(rng.integers(16))).tolist())
            members = {
                "jpg": picture(rng, side),
                "txt": words.encode(),
                "json": json.dumps({"key": key, "caption": words}).encode(),
            }
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def picture(rng: np.random.Generator, side: int) -> bytes:
    """Returns a JPEG of smooth shapes, some detail and sensor noise; the longer side varies."""
    size = (int(side * rng.uniform(1.0, 1.5)), side)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (side // 8, side // 6, 3), dtype=np.uint8))
    mixed = Image.blend(coarse.resize(size, Image.Resampling.BICUBIC), fine.resize(size), 0.3)
    pixels = np.asarray(mixed.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32)
    noisy = pixels + rng.normal(0, 4.0, pixels.shape[:2])[..., None]
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def data_of(manifest: Path, workers: int) -> PairsDataModule:
    """Returns the data module of a run."""
    return PairsDataModule(str(manifest), num_workers=workers)


def loader_alone(manifest: Path, workers: int, batch: int, steps: int) -> dict[str, float]:
    """Returns images a second: by the clock, and by a core, of the workers' processor time."""
    data = data_of(manifest, workers)
    data.connect(Steps([(steps + 2, batch)]), seed=0, image_size=SIZE, context_length=CONTEXT)
    batches = iter(data.train_dataloader())
    for _ in islice(batches, 2):
        pass
    start, before = time.perf_counter(), child_seconds()
    done = sum(1 for _ in batches)
    elapsed = time.perf_counter() - start
    del batches  # which ends the workers, whose time is only known then
    used = child_seconds() - before
    images = done * batch
    return {
        "images_per_s": images / elapsed,
        "images_per_s_a_core": (done + 2) * batch / used if used else 0.0,
    }


def child_seconds() -> float:
    """Returns the processor time of children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fed(manifest: Path, workers: int, batch: int, steps: int) -> dict[str, float]:
    """Trains a ViT-B/32 from the loader; returns speed, and the share of waiting for data."""
    text = ClipTextTower(512, 12, 8)
    model = TwoTower(TimmTower("vit_base_patch32_clip_224", SIZE), text, 512)
    phase = Phase(batch * steps, batch, 1e-4, schedule="constant")
    module = ContrastiveModule(model, Objective({"infonce": InfoNCE()}), {"train": phase}, seed=0)
    metrics = Metrics(1.0)
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=steps, callbacks=[metrics],
        log_every_n_steps=steps // 3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data_of(manifest, workers))
    # Of the last steps: the first wait for workers that start.
    row = metrics.latest
    return {name: row[name] for name in ("pairs_per_s", "data_wait")} | {
        "gib": torch.cuda.max_memory_allocated() / 2**30
    }
