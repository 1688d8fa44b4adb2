"""Matrix products in Triton: on tensor cores, with float32's accuracy.

In: float32 matrices on a CUDA device (or on the CPU with TRITON_INTERPRET=1, as tests do). Out:
their product, written or added.

A number is cut into two of tf32's 11 bits, and of the four products of such parts the three large
ones are added up in float32 (`tf32x3`; Ootomo and Yokota, "Recovering single precision accuracy
from Tensor Cores while surpassing the FP32 theoretical peak performance" (2022)).
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Of a program: rows, columns, depth at a time; 8 warps hold it in registers without spilling
# (tests/device/test_triton.py). Hopper and datacenter Blackwell hold more.
WARPS = {"num_warps": 8, "num_stages": 3}
BLOCK = {"ROWS": 128, "COLUMNS": 64, "DEPTH": 32}
WIDE_BLOCK = BLOCK | {"COLUMNS": 128}
WIDE = (9, 10)  # major compute capabilities
# A product of fewer blocks than keep a device busy is cut along its depth as well.
PROGRAMS, MIN_DEPTH = 256, 1024
# Rows that begin at multiples of so many numbers are read four numbers at once.
ALIGNED = 16


@triton.jit
def _product(
    a,
    b,
    out,
    num_rows,
    num_columns,
    depth,
    part_depth,
    a_rows,
    a_depth,
    a_row_stride,
    a_depth_stride,
    b_depth_stride,
    b_column_stride,
    out_stride,
    part_stride,
    ADDS: tl.constexpr,
    COLUMNS_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One block of the product over one part of the depth."""
    # Programs that run at the same time share the longer operand.
    row_part, column_part = tl.program_id(0), tl.program_id(1)
    if COLUMNS_FIRST:
        row_part, column_part = column_part, row_part
    rows = row_part * ROWS + tl.arange(0, ROWS)
    columns = column_part * COLUMNS + tl.arange(0, COLUMNS)
    a += rows[:, None].to(tl.int64) * a_row_stride
    b += columns[None, :].to(tl.int64) * b_column_stride
    start = tl.program_id(2) * part_depth
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(start, min(start + part_depth, depth), DEPTH):
        k = first + tl.arange(0, DEPTH)
        x = tl.load(
            a + k[None, :].to(tl.int64) * a_depth_stride,
            mask=(rows[:, None] < a_rows) & (k[None, :] < a_depth),
            other=0.0,
        )
        x = tl.where(k[None, :] < depth, x, 0.0)  # between its rows there may be anything
        y = tl.load(
            b + k[:, None].to(tl.int64) * b_depth_stride,
            mask=(k[:, None] < depth) & (columns[None, :] < num_columns),
            other=0.0,
        )
        total = tl.dot(x, y, total, input_precision="tf32x3")
    out += tl.program_id(2).to(tl.int64) * part_stride
    out += rows[:, None].to(tl.int64) * out_stride + columns[None, :]
    in_block = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    if ADDS:
        total += tl.load(out, mask=in_block, other=0.0)
    tl.store(out, total, mask=in_block)


def product(a: Tensor, b: Tensor, out: Tensor, adds: bool = False) -> Tensor:
    """Writes a b to `out` [r, c], or adds it; `out` is contiguous along its rows."""
    (num_rows, depth), num_columns = a.shape, b.shape[1]
    block = block_of(a.device)
    num_parts = [triton.cdiv(num_rows, block["ROWS"]), triton.cdiv(num_columns, block["COLUMNS"])]
    num_cuts = min(PROGRAMS // max(1, num_parts[0] * num_parts[1]), depth // MIN_DEPTH)
    if num_cuts > 1:
        parts = a.new_empty(num_cuts, num_rows, num_columns)
        part_depth = triton.cdiv(triton.cdiv(depth, num_cuts), block["DEPTH"]) * block["DEPTH"]
        _launch(a, b, parts, part_depth, num_parts, False, block)
        return out.add_(parts.sum(0)) if adds else torch.sum(parts, 0, out=out)
    _launch(a, b, out[None], depth, num_parts, adds, block)
    return out


def _launch(
    a: Tensor,
    b: Tensor,
    parts: Tensor,
    part_depth: int,
    num_parts: list[int],
    adds: bool,
    block: dict[str, int],
) -> None:
    # Triton launches no empty grid.
    if not parts.numel():
        return
    columns_first = num_parts[0] > num_parts[1]
    grid = (*(reversed(num_parts) if columns_first else num_parts), len(parts))
    strides = (*a.stride(), *b.stride(), parts.stride(1), parts.stride(0))
    run: Any = _product[grid]
    run(
        a,
        b,
        parts,
        *(len(a), b.shape[1], len(b), part_depth, *readable(a), *strides),
        ADDS=adds,
        COLUMNS_FIRST=columns_first,
        **block,
        **WARPS,
    )


def readable(matrix: Tensor) -> tuple[int, int]:
    """Returns how far its rows and columns may be read: to the next multiple, if that is there."""
    sizes, strides = list(matrix.shape), matrix.stride()
    for one, other in ((0, 1), (1, 0)):
        if strides[one] == 1:
            sizes[one] = min(
                triton.cdiv(sizes[one], ALIGNED) * ALIGNED, max(sizes[one], strides[other])
            )
            break
    return sizes[0], sizes[1]


@cache
def block_of(device: torch.device) -> dict[str, int]:
    """Returns the size of a program's block."""
    is_wide = device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in WIDE
    return WIDE_BLOCK if is_wide else BLOCK
