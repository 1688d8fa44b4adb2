"""The pairwise losses against open_clip's: time and memory of value and gradients in one process.

Run: `cd tests && OMP_NUM_THREADS=2 ../.venv/bin/python -m benchmarks.pair_losses`. Both take turns
in one process; the ratio is the median of the rounds' ratios. Memory is the peak of a fresh process
above what it held with the features made, gradients included.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional as F

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.siglip import SigLIP

DIM = 512
Step = Callable[[], None]


def features(size: int) -> tuple[torch.Tensor, ...]:
    """Returns image and text features, the scale and the bias, all with gradients."""
    generator = torch.Generator().manual_seed(0)
    draw = [F.normalize(torch.randn(size, DIM, generator=generator), dim=1) for _ in range(2)]
    scalars = [torch.tensor([1 / 0.07]), torch.tensor([-10.0])]
    return tuple(t.requires_grad_() for t in (*draw, *scalars))


def step_of(loss: str, who: str, inputs: tuple[torch.Tensor, ...]) -> Step:
    """Returns what computes a loss and all gradients."""
    image, text, scale, bias = inputs
    if who == "open_clip":
        module = ClipLoss() if loss == "softmax" else SigLipLoss()
        more = () if loss == "softmax" else (bias,)

        def value() -> torch.Tensor:
            return module(image, text, scale, *more)
    else:
        term = InfoNCE() if loss == "softmax" else SigLIP()
        named = {"image": image, "text": text, "logit_scale": scale, "logit_bias": bias}

        def value() -> torch.Tensor:
            (result,) = term(named, {}).values()
            return result

    def step() -> None:
        for tensor in inputs:
            tensor.grad = None
        value().backward()

    return step


def seconds(step: Step) -> float:
    """Returns the time of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak(loss: str, who: str, size: int) -> float:
    """Returns the memory of a step in MiB."""
    inputs = features(size)
    step_of(loss, who, tuple(t[:64].detach().requires_grad_() for t in inputs))()  # libraries
    step = step_of(loss, who, inputs)
    # Forgets the peak so far: https://man7.org/linux/man-pages/man5/proc_pid_clear_refs.5.html.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """Returns memory of this process in MiB: now (`VmRSS`) or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def in_fresh_process(loss: str, who: str, size: int) -> float:
    """Returns `peak` of a new process, whose memory nothing has stretched yet."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(peak, (loss, who, size))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, d = {DIM}, fp32\n")
    print("| B | loss | open_clip, s | ours, s | x faster | open_clip, MiB | ours, MiB | x less |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in args.sizes:
        for loss in ("softmax", "sigmoid"):
            inputs = features(size)
            steps = {who: step_of(loss, who, inputs) for who in ("open_clip", "ours")}
            for step in steps.values():
                step()
            times = {who: [] for who in steps}
            for _ in range(args.rounds):
                for who, step in steps.items():
                    times[who].append(seconds(step))
            pairs = zip(times["open_clip"], times["ours"], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            middle = {who: statistics.median(values) for who, values in times.items()}
            memory = {who: in_fresh_process(loss, who, size) for who in steps}
            print(
                f"| {size:,} | {loss} | {middle['open_clip']:.2f} | {middle['ours']:.2f} | "
                f"{ratio:.2f} | {memory['open_clip']:.0f} | {memory['ours']:.0f} | "
                f"{memory['open_clip'] / memory['ours']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
