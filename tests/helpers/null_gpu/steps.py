"""One training step of a model at full size, as rank 0 of any number of ranks.

In: what to train, and on how many ranks that do not exist. Out: what a step of it costs; see
`jobs.Counted`. Nothing is computed, so that a ViT-B/32 takes seconds.
"""

import logging
import os
import warnings
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from benchmarks.gpu.train_step import MODELS, SIZE, InMemory
from null_gpu.device import imagine_ranks, prepare
from null_gpu.jobs import Counted, Probe

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.callbacks.compile import Compile
from counterpoint.train.callbacks.stop import StopOnSignal
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.phases import Phase, Phases
from counterpoint.train.strategies.choose import choose_strategy

WARM, LAST = 12, 22  # DDP takes the time of its first ten steps, and waits for it


@dataclass(frozen=True)
class Setting:
    """What is trained; `batch` is a rank's."""

    model: str = "ViT-B/32"
    batch: int = 512
    world_size: int = 64
    strategy: str = "ddp"
    precision: str = "bf16-mixed"
    chunks: int = 1
    text_parts: int = 4
    compile: str | None = None


def step(rank: int, world_size: int, messages: str, setting: Setting) -> Counted:
    """Returns what a step costs."""
    prepare()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")
    if setting.world_size > 1:
        imagine_ranks(setting.world_size)
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        os.environ["WORLD_SIZE"] = str(setting.world_size)
    torch.manual_seed(0)
    sizes = MODELS[setting.model]
    text = ClipTextTower(sizes.width, 12, sizes.num_heads)
    parts = {"chunks": setting.chunks, "text_parts": setting.text_parts}
    model = TwoTower(TimmTower(sizes.image, SIZE), text, sizes.embed_dim, **parts)
    total = setting.batch * setting.world_size
    phase = Phase(total * 1000, total, 1e-4, schedule="constant")
    objective = Objective({"infonce": InfoNCE()})
    module = ContrastiveModule(model, objective, Phases({"train": phase}), AdamW(), seed=0)
    objective.batch_rows = {"": setting.batch}
    probe, data = Probe(WARM, LAST), InMemory(setting.batch)
    options: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        num_nodes=setting.world_size,
        strategy=choose_strategy(setting.strategy, setting.world_size),
        precision=setting.precision,
        max_steps=LAST + 1,
        callbacks=[probe, StopOnSignal(), *([Compile(setting.compile)] if setting.compile else [])],
        use_distributed_sampler=False,
        log_every_n_steps=1000,
        **options,
    )
    trainer.fit(module, datamodule=data)
    assert probe.counted is not None
    return probe.counted
