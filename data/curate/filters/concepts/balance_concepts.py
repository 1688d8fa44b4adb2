"""Balances the concepts of captions: what is frequent is kept less often (MetaCLIP).

Xu et al., "Demystifying CLIP Data" (2023), section 3.3: entry e, found in count_e captions, has the
probability p_e = min(1, t / count_e). "MetaCLIP 2" (Chuang et al., 2025), section 3.2: t of other
languages is where the tail has the same share of all matches as in English.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from ....hashing import mix, seeded
from ...base import KEEP, WEIGHT, Columns, Filter, State, lists, numbers
from ...entries import Entries


@dataclass(frozen=True)
class BalanceConcepts(Filter):
    """Keeps a sample with the probability that one of its entries is drawn, 1 - prod(1 - p_e).

    Writes `probability` in either case. `OUT/tables/` gets language, entry, count and probability.

    Args:
        entries: as `match_concepts` has them.
        t: matches of an entry above which it is thinned out (MetaCLIP: 20,000 for 400 million
            samples, 170,000 for 2.5 billion); with several languages, that of `reference`.
        tail_share: instead of `t`: so large a part of all matches falls on entries of at most t.
        reference: the language whose tail share the others get.
        result: `keep`: the list is drawn now, each entry for itself, by a hash of key, entry and
            seed. `weight`: the probability is the sample's weight, to be drawn anew in each epoch
            (`data.keep_weights` with `Redrawn`).
        seed: of the draw.

    Raises:
        ValueError: not one of `t` and `tail_share`, or `reference` has no entries.
    """

    entries: Path | dict[str, Path]
    t: int | None = None
    tail_share: float | None = None
    reference: str = "en"
    result: Literal["keep", "weight"] = "keep"
    seed: int = 0

    reads = ("concepts",)

    def __post_init__(self):
        if (self.t is None) == (self.tail_share is None):
            raise ValueError("BalanceConcepts takes t or tail_share, one of them")
        if self.t is not None and self.t < 1:
            raise ValueError(f"t={self.t} is below 1 match")
        if self.tail_share is not None and not 0 < self.tail_share <= 1:
            raise ValueError(f"tail_share={self.tail_share} is not above 0 and at most 1")
        if isinstance(self.entries, dict) and self.t and self.reference not in self.entries:
            raise ValueError(
                f"t is that of the language '{self.reference}', which has no entries; set "
                "reference or tail_share"
            )

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The draw or the weight, and the probability."""
        return (KEEP if self.result == "keep" else WEIGHT, "probability")

    def files(self) -> Sequence[Path]:
        return list(Entries(self.entries).by_language.values())

    def partial(self, rows: pa.RecordBatch) -> State:
        found, _ = lists(rows, "concepts")
        entries = len(Entries(self.entries).all())
        counts = np.bincount(found, minlength=entries)
        if len(counts) > entries:
            raise ValueError(
                f"concepts has the entry number {len(counts) - 1}, and entries only {entries}; "
                "give balance_concepts the entries that match_concepts has"
            )
        return {"counts": counts}

    def finish(self, total: State) -> State:
        """Returns count and probability of each entry."""
        counts = total["counts"]
        languages = list(Entries(self.entries).first_numbers().items())
        ends = [first for _, first in languages[1:]] + [len(counts)]
        parts = {code: counts[a:b] for (code, a), b in zip(languages, ends, strict=True)}
        share, t_of = self.tail_share, {}
        if share is None:
            assert self.t is not None
            code = self.reference if isinstance(self.entries, dict) else None
            share, t_of = share_of(parts[code], self.t), {code: self.t}
        probabilities = []
        for code, part in parts.items():
            t = t_of.get(code) or threshold_of(part, share)
            probabilities.append(t / np.maximum(part, t))
        return {"counts": counts, "probabilities": np.concatenate(probabilities)}

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        found, sizes = lists(rows, "concepts")
        each = state["probabilities"][found]
        missed = np.ones(len(sizes))
        firsts = (np.cumsum(sizes) - sizes)[sizes > 0]
        if len(firsts):
            missed[sizes > 0] = np.multiply.reduceat(1 - each, firsts)
        probability = 1 - missed
        if self.result == "weight":
            return {WEIGHT: probability, "probability": probability}
        keys = np.repeat(numbers(rows, "key"), sizes)
        draws = mix(found, mix(keys, seeded(self.seed, "balance")))
        keep = np.zeros(len(sizes), dtype=bool)
        if len(firsts):
            drawn = (draws >> np.uint64(11)) / float(1 << 53) < each
            keep[sizes > 0] = np.logical_or.reduceat(drawn, firsts)
        return {KEEP: keep, "probability": probability}

    def table(self, state: State) -> pa.Table:
        entries = Entries(self.entries)
        firsts = list(entries.first_numbers().values())
        sizes = np.diff([*firsts, len(state["counts"])])
        codes = [code or "" for code in entries.by_language]
        return pa.table(
            {
                "language": np.repeat(codes, sizes),
                "entry": entries.all(),
                "count": state["counts"],
                "probability": state["probabilities"],
            }
        )


def share_of(counts: np.ndarray, t: int) -> float:
    """Returns which part of all matches falls on entries with fewer than `t`."""
    return float(counts[counts < t].sum() / max(counts.sum(), 1))


def threshold_of(counts: np.ndarray, share: float) -> int:
    """Returns the count up to which entries have about this share of all matches; 1 or more."""
    ordered = np.sort(counts)
    shares = np.cumsum(ordered) / max(ordered.sum(), 1)
    return max(int(ordered[np.abs(shares - share).argmin()]), 1)
