"""Compiles our Triton kernels for GPUs that are not there, and reads what became of them.

In: a compute capability. Out: registers, spilled bytes, shared memory and instructions of each
kernel, by the tools in Triton's wheel.
"""

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from counterpoint.losses.kernels import products_triton, tile_ops_triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CAPABILITIES = (80, 90, 100)
# Of a row-major `a` times a transposed `b` (logits), times `b` (gradients of rows), and of a
# transposed `a` times `b` (gradients of columns): which strides are one.
LAYOUTS = {
    "logits": {"a_depth_stride", "b_depth_stride"},
    "grad of rows": {"a_depth_stride", "b_column_stride"},
    "grad of columns": {"a_row_stride", "b_column_stride"},
}
LOADS = re.compile(r"\b(?:LDG|LDGSTS)\.[\w.]+")
TENSOR_CORES = re.compile(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\.?[\w.]*")


@dataclass(frozen=True)
class Compiled:
    """What became of a kernel.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread that found no register.
        shared: bytes of a program's shared memory.
        loads: instructions that read the device's memory, by their width in bits.
        tensor_cores: instructions for them.
    """

    registers: int
    spilled: int
    shared: int
    loads: dict[int, int]
    tensor_cores: int


def kernels(capability: int, folder: Path) -> dict[str, Compiled]:
    """Compiles all kernels for a compute capability (90: H100); writes files to `folder`."""
    is_wide = capability // 10 in products_triton.WIDE
    block = products_triton.WIDE_BLOCK if is_wide else products_triton.BLOCK
    choices = block | {"ADDS": True, "COLUMNS_FIRST": False}
    found = {}
    for name, ones in LAYOUTS.items():
        product = products_triton._product, choices, ones, set[str](), products_triton.WARPS
        found[f"product, {name}"] = _compile(*product, capability, folder)
    for odd in (set[str](), {"num_rows", "num_columns"}):
        for name in ("_sums", "_softmax_grad"):
            kernel = getattr(tile_ops_triton, name)
            tile = kernel, tile_ops_triton.BLOCK, set[str](), odd, {"num_warps": 4}
            found[name[1:] + (", odd sizes" if odd else "")] = _compile(*tile, capability, folder)
    return found


def _compile(
    kernel: Any,
    constants: dict[str, Any],
    ones: set[str],
    odd: set[str],
    options: dict[str, int],
    capability: int,
    folder: Path,
) -> Compiled:
    """Compiles as a launch would: numbers are one, odd, or multiples of 16 like all pointers."""
    numbers = {"depth", "width", "num_rows", "num_columns", "part_depth", "a_rows", "a_depth"}
    signature, constexprs, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants or name in ones:
            signature[name], constexprs[(i,)] = "constexpr", constants.get(name, 1)
            continue
        is_number = name in numbers or name.endswith("stride")
        signature[name] = "i32" if is_number else "*fp32"
        if name not in odd:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    file = folder / "kernel.cubin"
    file.write_bytes(made.asm["cubin"])
    usage = _run("cuobjdump", "--dump-resource-usage", file)
    code = _run("nvdisasm", "-c", file)
    used = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    widths = (re.search(r"\.(64|128)\b", load) for load in LOADS.findall(code))
    return Compiled(
        used["REG"],
        used["STACK"] + used["LOCAL"],
        made.metadata.shared,
        dict(Counter(int(width[1]) if width else 32 for width in widths)),
        len(TENSOR_CORES.findall(code)),
    )


def _run(tool: str, *arguments: Any) -> str:
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
