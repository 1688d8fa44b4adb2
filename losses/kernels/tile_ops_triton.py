"""The functions of a tile in Triton: each reads the logits once.

In: logits [r, c] on a CUDA device (or on the CPU with TRITON_INTERPRET=1, as tests do). Out: as
`tile_ops.TileOps` documents.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .products_triton import product, readable

# Of a program: rows and columns. Powers of two; small enough for registers.
BLOCK = {"ROWS": 32, "COLUMNS": 128}


@triton.jit
def _read(logits, rows, columns, num_rows, num_columns, width, stride):
    """Reads logits, -inf outside of the tile; its rows are `width` long in memory."""
    offsets = rows[:, None].to(tl.int64) * stride + columns[None, :]
    in_memory = (rows[:, None] < num_rows) & (columns[None, :] < width)
    x = tl.load(logits + offsets, mask=in_memory, other=float("-inf"))
    return tl.where(columns[None, :] < num_columns, x, float("-inf"))


@triton.jit
def _sums(
    logits,
    row_most,
    row_sum,
    column_most,
    column_sum,
    num_rows,
    num_columns,
    width,
    stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Maximum and sum of exponentials below it, of the rows and columns of one part of a tile."""
    row_part, column_part = tl.program_id(0), tl.program_id(1)
    rows = row_part * ROWS + tl.arange(0, ROWS)
    columns = column_part * COLUMNS + tl.arange(0, COLUMNS)
    x = _read(logits, rows, columns, num_rows, num_columns, width, stride)
    most = tl.max(x, axis=1)
    shift = tl.where(most == float("-inf"), 0.0, most)
    total = tl.sum(tl.exp(x - shift[:, None]), axis=1)
    tl.store(row_most + column_part * num_rows + rows, most, mask=rows < num_rows)
    tl.store(row_sum + column_part * num_rows + rows, total, mask=rows < num_rows)
    most = tl.max(x, axis=0)
    shift = tl.where(most == float("-inf"), 0.0, most)
    total = tl.sum(tl.exp(x - shift[None, :]), axis=0)
    tl.store(column_most + row_part * num_columns + columns, most, mask=columns < num_columns)
    tl.store(column_sum + row_part * num_columns + columns, total, mask=columns < num_columns)


@triton.jit
def _softmax_grad(
    logits,
    over_columns,
    over_rows,
    by_row,
    by_column,
    out,
    num_rows,
    num_columns,
    width,
    stride,
    out_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient by the logits of one part of a tile."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows, in_columns = rows < num_rows, columns < num_columns
    x = _read(logits, rows, columns, num_rows, num_columns, width, stride)
    row = tl.load(over_columns + rows, mask=in_rows, other=0.0)
    column = tl.load(over_rows + columns, mask=in_columns, other=0.0)
    g = tl.load(by_row + rows, mask=in_rows, other=0.0)
    h = tl.load(by_column + columns, mask=in_columns, other=0.0)
    grad = g[:, None] * tl.exp(x - row[:, None]) + h[None, :] * tl.exp(x - column[None, :])
    offsets = rows[:, None].to(tl.int64) * out_stride + columns[None, :]
    tl.store(out + offsets, grad, mask=in_rows[:, None] & (columns[None, :] < width))


class TritonTileOps:
    """See `tile_ops.TileOps`."""

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        return product(a, b, out)

    def add_product(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        return product(a, b, out, adds=True)

    def log_sum_exps(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        num_rows, num_columns = logits.shape
        grid = _grid(num_rows, num_columns)
        by_row = logits.new_empty(2, grid[1], num_rows)
        by_column = logits.new_empty(2, grid[0], num_columns)
        run: Any = _sums[grid]
        run(
            logits,
            *by_row,
            *by_column,
            num_rows,
            num_columns,
            readable(logits)[1],
            logits.stride(0),
            **BLOCK,
        )
        return tuple((most + total.log()).logsumexp(0) for most, total in (by_row, by_column))  # type: ignore[return-value]

    def softmax_grad(
        self,
        logits: Tensor,
        over_columns: Tensor,
        over_rows: Tensor,
        by_row: Tensor,
        by_column: Tensor,
        out: Tensor,
    ) -> Tensor:
        num_rows, num_columns = logits.shape
        grid = _grid(num_rows, num_columns)
        vectors = [t.contiguous() for t in (over_columns, over_rows, by_row, by_column)]
        width = min(readable(logits)[1], readable(out)[1])
        strides = logits.stride(0), out.stride(0)
        run: Any = _softmax_grad[grid]
        run(logits, *vectors, out, num_rows, num_columns, width, *strides, **BLOCK)
        return out


def _grid(num_rows: int, num_columns: int) -> tuple[int, int]:
    return triton.cdiv(num_rows, BLOCK["ROWS"]), triton.cdiv(num_columns, BLOCK["COLUMNS"])


FUSED = TritonTileOps()
