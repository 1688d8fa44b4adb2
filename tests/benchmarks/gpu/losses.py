"""Value and gradients of the pairwise losses on one GPU against open_clip's, 16k to 131k pairs.

In: features of width 512 on the device, in fp32, as terms take them. Out: a row for each batch and
loss: milliseconds (medians of calls that take turns), most memory above the features, and how far
gradients are from a float64 formula. Where open_clip's matrix of all pairs does not fit, the row
says so and ours is still there. open_clip's own trainer computes the loss in bf16, which is timed,
too.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.gpu.report import Report, sentence
from benchmarks.pair_losses import Step, features, step_of
from torch import Tensor

SIZES = {"full": (16_384, 32_768, 65_536, 131_072), "tiny": (64, 128)}
ROUNDS = {"full": 5, "tiny": 1}
CHECKED = 4096  # pairs at which float64 fits everywhere


def measure(report: Report) -> None:
    """Measures every batch and loss."""
    for size in SIZES[report.scale]:
        for loss in ("softmax", "sigmoid"):
            report.measure(lambda s=size, n=loss: compare(report, s, n), batch=size, loss=loss)
    for loss in ("softmax", "sigmoid"):
        size = min(CHECKED, SIZES[report.scale][0])
        report.measure(lambda n=loss, s=size: accuracy(report, s, n), checked=size, loss=loss)


def compare(report: Report, size: int, loss: str) -> dict[str, Any]:
    """Returns each side's time and memory; `open_clip_failed` where its matrix does not fit."""
    inputs = on_device(report, size)
    steps = {who: step_of(loss, who, inputs) for who in ("ours", "open_clip")}
    steps["open_clip_bf16"] = in_bf16(steps["open_clip"], report)
    row: dict[str, Any] = {}
    for who, step in list(steps.items()):
        try:
            row[f"{who}_gib"] = peak_gib(step, report)
        except torch.OutOfMemoryError as error:
            if who == "ours":
                raise
            row[f"{who}_failed"] = sentence(error)
            del steps[who]
            torch.cuda.empty_cache()
    times: dict[str, list[float]] = {who: [] for who in steps}
    for _ in range(ROUNDS[report.scale]):
        for who, step in steps.items():
            times[who].append(seconds(step, report))
    return row | {f"{who}_ms": 1e3 * statistics.median(found) for who, found in times.items()}


def in_bf16(step: Step, report: Report) -> Step:
    """Returns a loss as open_clip's trainer computes it with `--precision amp_bf16`."""

    def cast() -> None:
        with torch.autocast(report.device.type, torch.bfloat16):
            step()

    return cast


def on_device(report: Report, size: int) -> tuple[Tensor, ...]:
    """Returns both sides' features, scale and bias on the device, with gradients."""
    return tuple(t.detach().to(report.device).requires_grad_() for t in features(size))


def synchronize(report: Report) -> None:
    """Waits for the device."""
    if report.device.type == "cuda":
        torch.cuda.synchronize()


def seconds(step: Step, report: Report) -> float:
    """Returns the time of one call."""
    synchronize(report)
    start = time.perf_counter()
    step()
    synchronize(report)
    return time.perf_counter() - start


def peak_gib(step: Callable[[], None], report: Report) -> float:
    """Returns the most memory of a call, above what was there before; of a CPU: 0."""
    if report.device.type != "cuda":
        step()
        return 0.0
    step()  # libraries
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def accuracy(report: Report, size: int, loss: str) -> dict[str, Any]:
    """Returns the largest error of the gradients, as a share of the largest gradient."""
    inputs = on_device(report, size)
    exact = tuple(t.detach().double().requires_grad_() for t in inputs)
    formula(loss, *exact).backward()
    row = {}
    steps = {who: step_of(loss, who, inputs) for who in ("ours", "open_clip")}
    steps["open_clip_bf16"] = in_bf16(steps["open_clip"], report)
    for who, step in steps.items():
        step()
        errors = [
            ((got.grad - want.grad).abs().max() / want.grad.abs().max()).item()
            for got, want in zip(inputs[:2], exact[:2], strict=True)
            if got.grad is not None and want.grad is not None
        ]
        row[f"{who}_gradient_error"] = max(errors)
    return row


def formula(loss: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The losses over the whole matrix."""
    logits = scale * image @ text.T
    if loss == "softmax":
        both = logits.logsumexp(0) + logits.logsumexp(1) - 2 * logits.diagonal()
        return both.mean() / 2
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -torch.nn.functional.logsigmoid(signs * (logits + bias)).sum() / len(logits)
