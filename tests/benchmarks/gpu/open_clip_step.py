"""open_clip's own training step on one GPU: `open_clip_train.train.train_one_epoch`, in amp_bf16.

In: a model by open_clip's name, pairs a step. Out: speed, and FLOPs by torch's counter. Its loader
gives normalised float pictures; here they lie in pinned memory. TF32 and cuDNN's search are on, as
its `main` turns them on, and off again afterwards; the optimizer is the one that it makes.
"""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import open_clip
import torch
from benchmarks.train_step import make_batches
from open_clip_train.train import train_one_epoch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SIZE, DECAY = 224, 0.2
COUNTED = 2  # pairs of which FLOPs are counted


class Batches:
    """What open_clip's epoch reads; takes the time between two of its steps on the device."""

    def __init__(self, batch: tuple[torch.Tensor, torch.Tensor], warm: int, measured: int):
        self.batch, self.warm, self.end = batch, warm, warm + measured
        self.num_batches = self.end
        self.num_samples = self.end * len(batch[1])
        self.dataloader = self

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.end):
            if step == self.warm:
                self.first = now()
            yield self.batch
        self.seconds = self.first.elapsed_time(now()) / 1e3

    def set_epoch(self, epoch: int) -> None:
        """What open_clip calls."""


def now() -> torch.cuda.Event:
    """Waits for the device and marks the time."""
    torch.cuda.synchronize()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    event.synchronize()
    return event


def run_open_clip(
    sizes: Any, batch: int, steps: tuple[int, int], backend: str | None, peak: float
) -> dict[str, float]:
    """Trains for some steps with open_clip's own code; returns speed and FLOPs."""
    model: Any = open_clip.create_model(sizes.open_clip, output_dict=True)
    flops = flops_a_pair(model)
    model = model.cuda().train()
    named = list(model.named_parameters())
    plain = [p for n, p in named if is_plain(n, p)]
    decayed = [p for n, p in named if not is_plain(n, p)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6)
    if backend is not None:
        model = torch.compile(model, backend=backend)
    (made,) = make_batches(1, batch, SIZE)
    image = (made["image"].float() / 255 - 0.45) / 0.27
    batches = Batches((image.pin_memory(), made["text"].pin_memory()), *steps)
    args = Namespace(
        device="cuda", precision="amp_bf16", distill=False, accum_freq=1, skip_scheduler=True,
        grad_clip_norm=None, horovod=False, rank=0, local_rank=0, world_size=1, log_local=False,
        batch_size=batch, log_every_n_steps=1000, wandb=False, tensorboard=False, save_logs=False,
    )  # fmt: skip
    with its_settings():
        loss = open_clip.ClipLoss(cache_labels=True)
        train_one_epoch(model, {"train": batches}, loss, 0, optimizer, None, None, None, args)
    pairs, seconds = steps[1] * batch, batches.seconds
    return {
        "ms": 1e3 * seconds / steps[1],
        "pairs_per_s": pairs / seconds if seconds else 0.0,
        "gflop": flops / 1e9,
        "mfu": flops * pairs / seconds / (peak * 1e12) if seconds else 0.0,
    }


def is_plain(name: str, parameter: nn.Parameter) -> bool:
    """Whether open_clip leaves out weight decay."""
    parts = ("bn", "ln", "bias", "logit_scale")
    return parameter.ndim < 2 or any(part in name for part in parts)


@contextmanager
def its_settings() -> Iterator[None]:
    """Sets what open_clip's `main` sets for a GPU."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = before


def flops_a_pair(model: nn.Module) -> float:
    """Returns the FLOPs of forward and backward pass a pair, counted on the CPU."""
    (made,) = make_batches(1, COUNTED, SIZE)
    with FlopCounterMode(display=False) as counter:
        found = model(made["image"].float(), made["text"])
        (found["image_features"].sum() + found["text_features"].sum()).backward()
    model.zero_grad()
    return counter.get_total_flops() / COUNTED
