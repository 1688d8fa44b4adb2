"""What happens to one tile of logits of any size: its sums of exponentials, and their gradient.

In: logits [r, c]. Out: log sum exp of rows and columns; gradients by the logits. Plain functions of
tensors in torch; on CUDA the same in Triton, which reads the tile once (`tile_ops_triton`).
`of(device)` chooses.
"""

from typing import Protocol

import torch
from torch import Tensor


class TileOps(Protocol):
    """The functions of a tile."""

    def log_sum_exps(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log sum exp of each row [r] and of each column [c]."""
        ...

    def softmax_grad(
        self,
        logits: Tensor,
        over_columns: Tensor,
        over_rows: Tensor,
        by_row: Tensor,
        by_column: Tensor,
        out: Tensor,
    ) -> Tensor:
        """Writes g_i exp(l_ij - row_i) + h_j exp(l_ij - column_j) to `out`.

        Args:
            logits: l [r, c], which may be overwritten.
            over_columns, over_rows: row [r] and column [c], finite.
            by_row, by_column: g [r] and h [c].
            out: [r, c].
        """
        ...


class TorchTileOps:
    """The functions in torch, without graph breaks."""

    def log_sum_exps(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits.logsumexp(1), logits.logsumexp(0)

    def softmax_grad(
        self,
        logits: Tensor,
        over_columns: Tensor,
        over_rows: Tensor,
        by_row: Tensor,
        by_column: Tensor,
        out: Tensor,
    ) -> Tensor:
        torch.sub(logits, over_columns[:, None], out=out)
        out.exp_().mul_(by_row[:, None])
        return out.add_(logits.sub_(over_rows).exp_().mul_(by_column))


TORCH = TorchTileOps()


def of(device: torch.device) -> TileOps:
    """Returns the fastest form for a device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return TORCH
    try:
        from .tile_ops_triton import FUSED
    except ImportError:  # Triton comes with torch on Linux only.
        return TORCH
    return FUSED
