"""Ranks of right answers, exact and in bounded memory.

The rank of a query is the number of wrong candidates that score at least as high as its best right
one. So ties count against the model, the order of candidates plays no part, and features that are
not finite are misses: a collapsed or diverged model scores zero, not one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# Scores held at a time (256 MiB of float32); the queries of a chunk share them.
CHUNK_SCORES = 1 << 26


def ranks(
    queries: Tensor,
    candidates: Tensor,
    positives: Sequence[Sequence[int]],
    chunk_scores: int = CHUNK_SCORES,
) -> Tensor:
    """Returns the rank of every query's best right candidate; 0 is a hit at the top.

    Args:
        queries: features [n, d].
        candidates: features [m, d].
        positives: for each query its right candidates, at least one.
        chunk_scores: how many scores may be in memory at a time (at least one row is).

    Returns:
        int64 [n], on the CPU.
    """
    out = torch.empty(len(queries), dtype=torch.int64)
    rows = max(1, chunk_scores // len(candidates))
    for start in range(0, len(queries), rows):
        with full_precision(queries.device):
            scores = queries[start : start + rows] @ candidates.T
        lists = positives[start : start + rows]
        row = torch.tensor([i for i, right in enumerate(lists) for _ in right])
        column = torch.tensor([j for right in lists for j in right])
        right = torch.zeros_like(scores, dtype=torch.bool)
        right[row.to(scores.device), column.to(scores.device)] = True
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        # "not below" also counts NaN, which compares to nothing.
        out[start : start + rows] = (~(scores < best) & ~right).sum(1).cpu()
    return out


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Computes products in full float32: in bf16 or tf32, neighbours among 1,000 names tie."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def recall_at(ranks: Tensor, k: int) -> float:
    """Returns the fraction of queries with a right candidate among the first k."""
    return float((ranks < k).double().mean())
