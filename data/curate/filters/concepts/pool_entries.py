"""Makes a list of entries from the captions of the pool, where no other is at hand.

MetaCLIP's list holds, beside WordNet's synsets and titles, the frequent words of Wikipedia and
pairs of words that come together more often than by chance (Xu et al., "Demystifying CLIP Data",
2023, section 3.1, and its code): log2(count(ab) N / (count(a) count(b))) of at least 30, where N
words are counted. Here both are counted in captions, whose words are cut as `match_concepts` cuts
them.
"""

import string
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ....hashing import mix, text_hash
from ...base import Columns, Filter, State, texts
from ...entries import PUNCTUATION, spaced
from ...numerics.sparse import look_up


@dataclass(frozen=True)
class PoolEntries(Filter):
    """Writes entry, count and pmi to `OUT/tables/`, most frequent first; leaves nothing out.

    Memory grows with the number of different words and pairs: some 50 bytes for each.

    Args:
        min_count: a word that comes so often is an entry.
        min_pair_count: so is a pair of words that comes so often,
        min_pmi: if its pointwise mutual information is at least this (bits). It cannot exceed the
            logarithm of the number of words, which is 20 for a million.
    """

    min_count: int = 100
    min_pair_count: int = 100
    min_pmi: float = 30.0

    reads = ("caption",)
    writes = ()

    def partial(self, rows: pa.RecordBatch) -> State:
        words, sizes = [], []
        for caption in texts(rows, "caption"):
            part = spaced(caption).split()
            words += part
            sizes.append(len(part))
        encoded = pa.array(words, pa.large_string()).dictionary_encode()
        hashes = np.array([text_hash(word) for word in encoded.dictionary.to_pylist()], np.int64)
        codes = encoded.indices.to_numpy().astype(np.int64)
        row_of = np.repeat(np.arange(len(sizes)), sizes)
        follows = row_of[1:] == row_of[:-1]
        pairs = codes[:-1][follows] << 32 | codes[1:][follows]
        pairs, pair_counts = np.unique(pairs, return_counts=True)
        firsts, seconds = hashes[pairs >> 32], hashes[pairs & 0xFFFFFFFF]
        counts = np.bincount(codes, minlength=len(hashes))
        return _sum_up(encoded.dictionary, counts, firsts, seconds, pair_counts, hashes)

    def merge(self, one: State, other: State) -> State:
        joined = {
            name: np.concatenate([one[name], other[name]])
            for name in ("words", "counts", "firsts", "seconds", "pair_counts")
        }
        names = pa.concat_arrays([_from_bytes(one), _from_bytes(other)])
        pairs = joined["firsts"], joined["seconds"], joined["pair_counts"]
        return _sum_up(names, joined["counts"], *pairs, joined["words"])

    def finish(self, total: State) -> State:
        """Returns the entries with their counts and pmi (NaN of words)."""
        words, counts = total["words"], total["counts"]
        names = np.array(_from_bytes(total).to_pylist(), dtype=object)
        marks = set(string.punctuation) | set(PUNCTUATION)
        is_word = np.array([name not in marks for name in names], dtype=bool)
        chosen = is_word & (counts >= self.min_count)
        places = np.arange(len(words))
        first = look_up(words, places, total["firsts"], -1)
        second = look_up(words, places, total["seconds"], -1)
        expected = counts[first].astype(np.float64) * counts[second]
        pmi = np.log2(total["pair_counts"] * float(counts.sum()) / expected)
        pairs = (pmi >= self.min_pmi) & (total["pair_counts"] >= self.min_pair_count)
        pairs &= is_word[first] & is_word[second]
        entries = [*names[chosen], *names[first[pairs]] + " " + names[second[pairs]]]
        counts = np.concatenate([counts[chosen], total["pair_counts"][pairs]])
        pmi = np.concatenate([np.full(chosen.sum(), np.nan), pmi[pairs]])
        order = sorted(range(len(entries)), key=lambda at: (-counts[at], entries[at]))
        names = pa.array([entries[at] for at in order], pa.large_string())
        return {**_to_bytes(names), "counts": counts[order], "pmi": pmi[order]}

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        return {}

    def table(self, state: State) -> pa.Table:
        pmi = pa.array(state["pmi"], mask=np.isnan(state["pmi"]))
        names = _from_bytes(state).cast(pa.string())
        return pa.table({"entry": names, "count": state["counts"], "pmi": pmi})


def _sum_up(
    names: pa.Array,
    counts: np.ndarray,
    firsts: np.ndarray,
    seconds: np.ndarray,
    pair_counts: np.ndarray,
    hashes: np.ndarray,
) -> State:
    """Returns words and pairs that may come several times, once each, sorted by their hashes."""
    order = np.argsort(hashes, kind="stable")
    own = order[_starts(hashes[order])]
    sums = np.add.reduceat(counts[order], _starts(hashes[order])) if len(order) else counts
    pair_hashes = mix(firsts, seconds.view(np.uint64)).view(np.int64)
    by_pair = np.argsort(pair_hashes, kind="stable")
    starts = _starts(pair_hashes[by_pair])
    pairs = by_pair[starts]
    return {
        **_to_bytes(names.take(pa.array(own))),
        "words": hashes[own],
        "counts": sums.astype(np.int64),
        "firsts": firsts[pairs],
        "seconds": seconds[pairs],
        "pair_counts": np.add.reduceat(pair_counts[by_pair], starts) if len(pairs) else pair_counts,
    }


def _starts(ordered: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))


def _to_bytes(names: pa.Array) -> State:
    """Returns texts as arrays: their bytes, and where each ends."""
    sizes = np.array([len(name.encode()) for name in names.to_pylist()], dtype=np.int64)
    letters = "".join(names.to_pylist()).encode()
    return {"letters": np.frombuffer(letters, dtype=np.uint8), "ends": np.cumsum(sizes)}


def _from_bytes(state: State) -> pa.Array:
    offsets = np.concatenate([[0], state["ends"]]).astype(np.int64)
    letters = pa.py_buffer(np.ascontiguousarray(state["letters"]))
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), letters)
