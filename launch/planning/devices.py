"""What a device can do: constants from a file, or measured on the machine at hand.

In: the name of a packaged device (configs/device/), or a file of the same keys. Out: rates in bytes
and FLOPs a second, peaks times the share of them that real kernels attain.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ...train.callbacks.flops import measure_peak
from ..config.packaged import find
from ..config.run_files import load

GB, GIB, MICRO = 1e9, 2.0**30, 1e-6
SECONDS = 0.7  # of each measurement


@dataclass(frozen=True)
class Device:
    """Constants of one device; a CPU is one device with all its cores.

    Attributes:
        kind: `cuda` or `cpu`.
        names: of GPUs with these peaks, as torch says them.
        tflops: peaks of `bf16` and `fp32` products, dense, in TFLOP/s.
        memory: GiB.
        bandwidth: of its memory, GB/s.
        node: `gpus` in it, and `bandwidth` between them, GB/s a device and direction.
        network: between nodes, GB/s a device and direction.
        host: from the host's memory, GB/s.
        attained: share that kernels reach: of products in `bf16` and `fp32`, of `attention`, of
            `bandwidth`, and of the links `node` and `network`.
        microseconds: the shortest `kernel`, the host's time a `launch`, which a GPU's kernels hide
            and a processor's do not, a `collective` call.
        reserved: memory that is gone before anything is allocated, GiB.
        storage: GB/s at which a checkpoint is written.
        images: that one core decodes and crops a second.
    """

    kind: Literal["cuda", "cpu"]
    names: list[str]
    tflops: dict[str, float]
    memory: float
    bandwidth: float
    node: dict[str, float]
    network: float
    host: float
    attained: dict[str, float]
    microseconds: dict[str, float]
    reserved: float
    storage: float
    images: float

    def flops(self, kind: str) -> float:
        """Returns FLOP/s that products reach, in `bf16`, `fp32`, or bf16 `attention`."""
        peak = self.tflops["fp32" if kind == "fp32" else "bf16"]
        return peak * 1e12 * self.attained[kind]

    def link(self, is_one_node: bool) -> float:
        """Returns bytes a second between the devices of a run, a device and direction."""
        if is_one_node:
            return self.node["bandwidth"] * GB * self.attained["node"]
        return self.network * GB * self.attained["network"]

    @property
    def memory_rate(self) -> float:
        """Bytes a second from and to its memory."""
        return self.bandwidth * GB * self.attained["bandwidth"]


def load_device(name_or_path: str) -> Device:
    """Reads a device.

    Raises:
        ValueError: there is no such device or file, or it lacks keys.
    """
    path = find(name_or_path, "device")
    values = load(path, "kind: cuda")
    known = Device.__dataclass_fields__
    wrong = sorted(known.keys() ^ values.keys())
    if wrong:
        verb = "lacks" if wrong[0] in known else "has the unknown key"
        raise ValueError(f"{path} {verb} {wrong[0]}; it takes {', '.join(known)}")
    return Device(**values)


def measure(seconds: float = SECONDS) -> Device:
    """Measures the machine at hand in seconds: products and what moves bytes, the best of many.

    A processor is measured by its thread's own time, which other jobs disturb less than the clock.

    Links, storage and decoding are not measured: they are those of the H100's file.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    values: dict[str, Any] = asdict(load_device("h100"))
    device = torch.device(kind)
    rates = {name: measure_peak(device, name, seconds) for name in ("bf16", "fp32")}
    values["names"] = [torch.cuda.get_device_name()] if kind == "cuda" else []
    values |= {"kind": kind, "tflops": {k: round(v / 1e12, 4) for k, v in rates.items()}}
    values["attained"] |= {"bf16": 1.0, "fp32": 1.0, "bandwidth": 1.0}
    rate = _copy_rate(seconds) if kind == "cuda" else _elementwise_rate(seconds)
    values["bandwidth"] = round(rate / GB, 2)
    if kind == "cuda":
        values["memory"] = round(torch.cuda.mem_get_info()[1] / GIB, 1)
    else:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        values |= {"memory": round(pages / GIB, 1), "reserved": 0.5}
        values["node"] = {"gpus": 1, "bandwidth": 1.0}
        values |= {"network": 1.0, "host": values["bandwidth"]}
        launch = round(_host_seconds(seconds) / MICRO, 1)
        values["microseconds"] = {"kernel": 0, "launch": launch, "collective": 100}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            share = _layer_rate(dtype, seconds) / rates[name]
            values["attained"][name] = round(min(1.0, share), 3)
        share = _attention_rate(seconds) / (rates["fp32"] * values["attained"]["fp32"])
        values["attained"]["attention"] = round(share, 3)
    return Device(**values)


def write(device: Device, path: Path) -> None:
    """Writes a device's constants as YAML."""
    head = (
        f"# Measured by counterpoint plan --measure: {_name(device)}, torch {torch.__version__}.\n"
    )
    head += "# Products and the memory's bandwidth are measured; links, storage, images are not.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + yaml.safe_dump(asdict(device), sort_keys=False), encoding="utf-8")


def _name(device: Device) -> str:
    if device.kind == "cuda":
        return torch.cuda.get_device_name()
    return f"a processor, {torch.get_num_threads()} threads"


def _copy_rate(seconds: float) -> float:
    """Returns bytes a second of a large copy on the GPU."""
    source = torch.zeros(1 << 27, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    end, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() / best


# Layers one behind the other, as in a tower: what the backward pass reads has left the caches.
DEPTH = 4


def _host_seconds(seconds: float) -> float:
    """Returns what an operation takes beside its work: Python, dispatcher, autograd, allocator.

    Measured on blocks of a tower with next to no numbers; views count as operations, too.
    """
    block = partial(nn.TransformerEncoderLayer, 8, 1, 8, 0.0, "gelu", batch_first=True)
    blocks = nn.Sequential(*(block(norm_first=True) for _ in range(DEPTH)))
    value = torch.randn(1, 2, 8)
    inputs, outward = [*blocks.parameters()], torch.ones_like(value)

    def once() -> None:
        torch.autograd.grad(blocks(value), inputs, outward)

    with _Operations() as operations:
        once()
    return _median_time(once, seconds) / operations.count


class _Operations(TorchDispatchMode):
    """Counts what the dispatcher is asked for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _attention_rate(seconds: float) -> float:
    """Returns FLOP/s of fused attention of a small tower, forward and backward, in fp32."""
    shape = batch, heads, tokens, width = 64, 4, 32, 32
    inputs = [[torch.randn(shape, requires_grad=True) for _ in range(3)] for _ in range(DEPTH)]
    outward = [torch.ones(shape)] * DEPTH

    def once() -> None:
        results = [F.scaled_dot_product_attention(q, k, v) for q, k, v in inputs]
        torch.autograd.grad(results, [x for each in inputs for x in each], outward)

    flops = 3 * 4 * batch * heads * tokens * tokens * width * DEPTH
    return flops / _median_time(once, seconds)


def _layer_rate(dtype: torch.dtype, seconds: float) -> float:
    """Returns FLOP/s of a small tower's linear layers, forward and backward, on the processor."""
    rows, width, hidden = 2048, 160, 640
    value = torch.randn(rows, width).to(dtype)
    up, down = (torch.randn(size).to(dtype) for size in ((hidden, width), (width, hidden)))
    weights = [w.clone().requires_grad_() for _ in range(DEPTH) for w in (up, down)]
    value.requires_grad_()

    def once() -> None:
        result = value
        for weight in weights:
            result = F.linear(result, weight)
        torch.autograd.grad(result, [value, *weights], torch.ones_like(result))

    return 3 * 2 * rows * width * hidden * 2 * DEPTH / _median_time(once, seconds)


def _elementwise_rate(seconds: float) -> float:
    """Returns bytes a second of a layer's operations between its products, on the processor.

    What they read and write lies in caches or in fresh pages, and GELU computes: a copy says little
    about them.
    """
    value, weight = torch.randn(4096, 512, requires_grad=True), torch.ones(512)
    outward = torch.ones_like(value)

    def once() -> None:
        result = value
        for _ in range(DEPTH):
            result = result + F.gelu(F.layer_norm(result, (512,), weight))
        torch.autograd.grad(result, value, outward)

    # Forward a norm and a GELU (2 tensors each), a sum (3); backward each of them 3.
    moved = (2 + 2 + 3 + 3 * 3) * value.numel() * value.element_size() * DEPTH
    return moved / _median_time(once, seconds)


def _median_time(once: Callable[[], None], seconds: float) -> float:
    """Returns the seconds of a call by its thread's own time.

    A median, since caches are shared with whatever else computes, as they are in a step.
    """
    end, taken = time.perf_counter() + seconds, []
    while time.perf_counter() < end or len(taken) < 3:
        start = time.thread_time()
        once()
        taken.append(time.thread_time() - start)
    return statistics.median(taken)
