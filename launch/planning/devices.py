"""What a device can do: constants from a file, or measured on the machine at hand.

In: the name of a packaged device (configs/device/), or a file of the same keys. Out: rates in bytes
and FLOPs a second, peaks times the share of them that real kernels attain.
"""

import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch.nn import functional as F

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
        microseconds: the shortest `kernel`, the host's time a `launch`, a `collective` call.
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
        values["microseconds"] = {"kernel": 5, "launch": 0, "collective": 100}
        values["attained"]["attention"] = 0.5
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            share = _layer_rate(dtype, seconds) / rates[name]
            values["attained"][name] = round(min(1.0, share), 3)
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


def _layer_rate(dtype: torch.dtype, seconds: float) -> float:
    """Returns FLOP/s of a linear layer of a small tower, forward and backward, on the processor."""
    rows, width, hidden = 4096, 192, 768
    value, weight = (torch.randn(n, width).to(dtype) for n in (rows, hidden))
    inputs = value.requires_grad_(), weight.requires_grad_()
    outward = torch.ones(rows, hidden, dtype=dtype)
    end, taken = time.perf_counter() + seconds, []
    while time.perf_counter() < end or len(taken) < 3:
        start = time.thread_time()
        torch.autograd.grad(F.linear(*inputs), inputs, outward)
        taken.append(time.thread_time() - start)
    return 3 * 2 * rows * width * hidden / statistics.median(taken)


def _elementwise_rate(seconds: float) -> float:
    """Returns bytes a second of a layer's operations between its products, on the processor.

    What they read and write lies in caches or in fresh pages, and GELU computes: a copy says little
    about them.
    """
    value, weight = torch.randn(4096, 512, requires_grad=True), torch.ones(512)
    outward = torch.ones_like(value)
    end, taken = time.perf_counter() + seconds, []
    while time.perf_counter() < end or len(taken) < 3:
        start = time.thread_time()
        result = value + F.gelu(F.layer_norm(value, (512,), weight))
        torch.autograd.grad(result, value, outward)
        taken.append(time.thread_time() - start)
    # Of a median, since caches are shared with whatever else computes, as they are in a step.
    # Forward a norm and a GELU (2 tensors each), a sum (3); backward each of them 3.
    return (2 + 2 + 3 + 3 * 3) * value.numel() * value.element_size() / statistics.median(taken)
