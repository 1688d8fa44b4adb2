"""Towers over parts of the local batch: memory for one part, and captions without their padding.

In: rows, and how many parts to make of them. Out: one result a row, in the order of the rows, equal
to that of one call. A part may be recomputed in the backward pass instead of being remembered; then
encoders need memory for a part, however large the batch is, and the loss still sees all of it.

Parts are counted, not sized: under sharded strategies every rank must call a tower equally often,
which a size promises only where it divides every rank's rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .packing import Packed, pack, send

# Most captions are short: the steps are fine where they are many.
STEPS = (0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
MULTIPLE = 8
Part = tuple[Tensor | Packed | None, ...]  # what a tower is called with


def check_parts(model: nn.Module, num_parts: int) -> None:
    """Checks that encoding a batch in parts changes nothing.

    Raises:
        ValueError: there are several parts, and the model has a BatchNorm that learns.
    """
    for name, module in model.named_modules():
        if num_parts > 1 and isinstance(module, _BatchNorm) and module.training:
            raise ValueError(
                f"model.chunks is {num_parts}, and '{name}' is a {type(module).__name__}: its "
                "statistics would be those of a chunk and be counted again in the backward pass; "
                "use model.chunks 1 or a tower without BatchNorm"
            )


def split(rows: Sequence[Tensor | None], num_parts: int) -> list[tuple[Tensor | None, ...]]:
    """Cuts tensors of equally many rows into parts that differ by at most one row.

    Returns:
        For each part its piece of every tensor; what is None stays None. Fewer parts than asked for
        if there are fewer rows.
    """
    assert rows[0] is not None
    num_parts = max(1, min(num_parts, len(rows[0])))
    columns = [
        [None] * num_parts if values is None else values.tensor_split(num_parts) for values in rows
    ]
    return list(zip(*columns, strict=True))


def encode(
    tower: Callable[..., dict[str, Tensor]],
    parts: Sequence[Part],
    recompute: bool,
) -> dict[str, Tensor]:
    """Runs the tower over each part and joins the results.

    Args:
        tower: called with the tensors of a part; returns tensors by name, a row an input.
        parts: what `split` returns.
        recompute: remember nothing of a part but its tensors, and run it again in the backward
            pass, with the same dropout and under the same autocast (gradient caching; Gao et al.
            2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup").
    """
    if recompute and torch.is_grad_enabled():
        results = [checkpoint(tower, *part, use_reentrant=False) for part in parts]
    else:
        results = [tower(*part) for part in parts]
    if len(results) == 1:
        return results[0]
    return {name: torch.cat([result[name] for result in results]) for name in results[0]}


@dataclass(frozen=True)
class Captions:
    """Captions sorted by length and cut into parts, each without the columns that are only padding.

    Attributes:
        parts: (token ids, lengths) of each part, or packed captions.
        index: of each caption's result among the results; None: the results are in order.
        computed: tokens that the tower computes.
    """

    parts: Sequence[Part]
    index: Int64[Tensor, "n"] | None
    computed: int

    def restored(self, results: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Puts results back into the captions' order."""
        if self.index is None:
            return dict(results)
        return {name: result.index_select(0, self.index) for name, result in results.items()}


def whole(text: Int64[Tensor, "n t"], length: Int64[Tensor, "n"], num_parts: int) -> Captions:
    """Returns captions as they are, padding included: for towers whose result depends on it."""
    return Captions(split((text, length), num_parts), None, text.numel())


def packed(
    text: Int64[Tensor, "n t"],
    length: Int64[Tensor, "n"],
    num_parts: int,
    context_length: int,
    known: np.ndarray | None = None,
) -> Captions:
    """Leaves out all padding; for towers that take packed captions. Arguments as of `trimmed`."""
    packs = pack(text, length, num_parts, known)
    check_length(max(part.longest for part in packs), context_length)
    return Captions([(part,) for part in packs], None, sum(len(part.ids) for part in packs))


def trimmed(
    text: Int64[Tensor, "n t"],
    length: Int64[Tensor, "n"],
    num_parts: int,
    context_length: int,
    known: np.ndarray | None = None,
) -> Captions:
    """Sorts captions by length; each part is as long as its longest, rounded up to a stop.

    The number of parts is that of `split`, whatever the lengths are; where they are cut is
    `rows_of_parts`. Only for towers whose result does not depend on padding.

    Args:
        text: token ids.
        length: tokens of each caption.
        num_parts: parts to make.
        context_length: of the tower; it decides on the `stops`.
        known: int64 [n], lengths that are not smaller than `length`. Without them those on the
            device are read, which waits for it.
    """
    lengths = length.cpu() if known is None else torch.from_numpy(known)
    ordered, order = lengths.sort(stable=True)
    widths = stop_at(ordered.numpy(), text.shape[1], context_length)
    rows = rows_of_parts(widths, num_parts)
    index = torch.empty_like(order)
    index[order] = torch.arange(len(order))
    order, index = send(order, text.device), send(index, text.device)
    pieces = zip(text[order].split(rows), length[order].split(rows), strict=True)
    ends = np.cumsum(rows)
    parts = [
        (tokens[:, : widths[end - 1]], lengths)
        for (tokens, lengths), end in zip(pieces, ends, strict=True)
    ]
    return Captions(parts, index, sum(tokens.numel() for tokens, _ in parts))


def rows_of_parts(widths: np.ndarray, num_parts: int) -> list[int]:
    """Returns how many rows each part has, so that all of them have few positions.

    Cuts are best made where rows become wider, of which there are few places; parts that are left
    halve the largest. No part has more positions than parts of equally many rows may have (it needs
    no more memory), nor have all of them together. Where that allows it, there is no better cut.

    Args:
        widths: positions of each row if it were alone, rising; a part is as wide as its last.
        num_parts: at most as many as there are rows, and at least one, are made.
    """
    num_rows = len(widths)
    num_parts = max(1, min(num_parts, num_rows))
    most = math.ceil(num_rows / num_parts) * int(widths[-1])
    places = (np.flatnonzero(np.diff(widths)) + 1).tolist()
    choices: list[tuple[int, list[tuple[int, int]]]] = []
    for num_cuts in range(min(len(places), num_parts - 1) + 1):
        for cuts in combinations(places, num_cuts):
            ends = (*cuts, num_rows)
            groups = [
                (end - begin, int(widths[end - 1]))
                for begin, end in zip((0, *cuts), ends, strict=True)
            ]
            choices.append((sum(rows * width for rows, width in groups), groups))
    for _, groups in sorted(choices):
        counts = _share_out(groups, num_parts)
        shared = list(zip(groups, counts, strict=True))
        if max(math.ceil(rows / count) * width for (rows, width), count in shared) <= most:
            break
    at_stops = [size for (rows, _), count in shared for size in _equally(rows, count)]
    return min(at_stops, _equally(num_rows, num_parts), key=partial(_positions, widths))


def _positions(widths: np.ndarray, rows: Sequence[int]) -> int:
    return int((rows * widths[np.cumsum(rows) - 1]).sum())


def _equally(num_rows: int, num_parts: int) -> list[int]:
    return [num_rows // num_parts + (part < num_rows % num_parts) for part in range(num_parts)]


def _share_out(groups: Sequence[tuple[int, int]], num_parts: int) -> list[int]:
    """Returns how many parts each (rows, width) gets: one, and more the larger its parts are."""
    counts = [1] * len(groups)
    for _ in range(num_parts - len(groups)):
        sizes = [
            math.ceil(rows / count) * width * (rows > count)
            for (rows, width), count in zip(groups, counts, strict=True)
        ]
        counts[sizes.index(max(sizes))] += 1
    return counts


def stops(context_length: int) -> tuple[int, ...]:
    """The lengths that captions are rounded up to: at most six, and so few compiled shapes.

    >>> stops(77)
    (8, 16, 24, 32, 48, 77)
    """
    rounded = (math.ceil(step * context_length / MULTIPLE) * MULTIPLE for step in STEPS)
    return tuple(sorted({min(stop, context_length) for stop in rounded}))


def stop_at(lengths: np.ndarray, width: int, context_length: int) -> np.ndarray:
    """Returns the first stop that holds each length, and at most `width`, that of the tensor.

    Raises:
        ValueError: the tower takes fewer tokens.
    """
    check_length(int(lengths.max(initial=0)), context_length)
    limits = np.array(stops(context_length))
    return limits[np.searchsorted(limits, lengths)].clip(max=width)


def check_length(longest: int, context_length: int) -> None:
    """Refuses captions that are longer than the tower takes."""
    if longest > context_length:
        raise ValueError(
            f"a caption has {longest} tokens, and the text tower takes {context_length}: make "
            "captions of at most as many, or the tower with a longer context_length"
        )
