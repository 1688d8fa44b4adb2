"""Near duplicates of captions: texts most of whose parts are the same.

Broder, "On the resemblance and containment of documents" (1997): shingles and their minima under
random hashes; Leskovec et al., "Mining of massive datasets", section 3.4: bands of these minima
bring the likely pairs together, which are then compared exactly.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from ....hashing import mix, seeded
from ...base import Columns, GroupFilter, State, numbers, texts
from .exact_duplicates import first_of_equal

SHINGLE = 5  # bytes of UTF-8
SHINGLE_BITS = 8 * SHINGLE
BETWEEN_WORDS = re.compile(r"[\W_]+")
# Shingles hashed at once: arrays that stay in a processor's cache; and compared at once.
CHUNK, COMPARED_AT_ONCE = 1 << 15, 1 << 22
# A caption is written once for each of these, so that 5 million take 1.5 GB of disk.
BANDS_AT_ONCE = 4


@dataclass(frozen=True)
class NearCaptions(GroupFilter):
    """Leaves out a caption that has most shingles in common with an earlier one, kept or not.

    Captions are compared in lower case, their words separated by single spaces, by the sets of all
    runs of 5 bytes in them. Which caption is earlier is a hash of the seed and the key. Two of
    similarity s meet with a probability of 1 - (1 - s^rows)^bands: 0.9996 for 0.8, 0.97 for 0.7.

    Of captions that share a band, each is compared with the first `compared` ones: of m captions
    m * compared pairs at most, however popular a phrase is. Equal captions count once.

    Args:
        similarity: Jaccard similarity from which a caption is left out; above 0, at most 1.
        bands: of minima.
        rows: minima in a band.
        compared: captions of a band with which the others are compared.
        seed: of the order and the hashes.

    Raises:
        ValueError: a setting is out of range.
    """

    similarity: float = 0.8
    bands: int = 20
    rows: int = 5
    compared: int = 32
    seed: int = 0

    reads = ("caption",)

    def __post_init__(self):
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity={self.similarity}: give more than 0, and at most 1")
        for name in ("bands", "rows", "compared"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give 1 or more")

    def parts(self) -> Sequence[GroupFilter]:
        own = {field.name: getattr(self, field.name) for field in fields(NearCaptions)}
        return [
            _SomeBands(**own, first=first, last=min(first + BANDS_AT_ONCE, self.bands))
            for first in range(0, self.bands, BANDS_AT_ONCE)
        ]

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        return self._groups(texts(rows, "caption"), range(self.bands))

    def _groups(self, captions: list[str], bands: range) -> np.ndarray:
        hashes = np.arange(bands.start * self.rows, bands.stop * self.rows)
        parts = _minima(captions, hashes, self.seed).reshape(-1, len(bands), self.rows)
        groups = np.broadcast_to(np.array(bands, dtype=np.uint64), parts.shape[:2])
        for at in range(self.rows):
            groups = mix(groups, parts[:, :, at].astype(np.uint64))
        return groups.view(np.int64)

    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        near = np.zeros(rows.num_rows, dtype=bool)
        group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        # Most captions are alone in their band.
        shared = np.flatnonzero(np.diff(starts)[group] > 1)
        if len(shared):
            encoded = rows.column("caption").take(pa.array(shared)).dictionary_encode()
            caption = encoded.indices.to_numpy().astype(np.int64)
            shingles = Shingles(encoded.dictionary.to_pylist())
            order = mix(numbers(rows, "key")[shared], seeded(self.seed, "near captions"))
            group = group[shared]
            near[shared] = True
            firsts = first_of_equal(group, caption, order)
            firsts = firsts[np.lexsort((order[firsts], group[firsts]))]
            near[shared[firsts]] = self._near(caption[firsts], group[firsts], shingles)
        return {"keep": ~near}

    def _near(self, caption: np.ndarray, group: np.ndarray, shingles: "Shingles") -> np.ndarray:
        """Returns which captions [n], sorted by group and order, are near an earlier one."""
        near = np.zeros(len(caption), dtype=bool)
        starts = np.searchsorted(group, group)
        for place in range(self.compared):
            at = np.flatnonzero(~near & (np.arange(len(caption)) - starts > place))
            if not len(at):
                break
            one, other = caption[at], caption[starts[at] + place]
            # Sets whose sizes differ too much cannot be alike.
            likely = shingles.bound(one, other) >= self.similarity
            alike = shingles.jaccard(one[likely], other[likely])
            near[at[likely]] = alike >= self.similarity
        return near


@dataclass(frozen=True)
class _SomeBands(NearCaptions):
    """The same with the bands from the first to before the last."""

    first: int = 0
    last: int = 0

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        return self._groups(texts(rows, "caption"), range(self.first, self.last))


class Shingles:
    """The sets of shingles of some captions.

    Args:
        captions: texts.
    """

    def __init__(self, captions: list[str]):
        assert len(captions) < 1 << 23, "more captions than fit beside a shingle in 64 bits"
        values, starts = _shingles(captions)
        owner = np.repeat(np.arange(len(captions), dtype=np.int64), np.diff(starts))
        # Caption and shingle as one number: sorted, each once.
        pairs = np.sort(owner << SHINGLE_BITS | values.astype(np.int64))
        self._pairs = pairs[np.append(True, np.diff(pairs) != 0)]
        self._starts = np.searchsorted(self._pairs, np.arange(len(captions) + 1) << SHINGLE_BITS)

    def bound(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Returns what `jaccard` is at most, by the sizes of the sets."""
        sizes = np.diff(self._starts)
        return np.minimum(sizes[one], sizes[other]) / np.maximum(sizes[one], sizes[other])

    def jaccard(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Returns the shared by all shingles of pairs of captions, by their numbers [n]."""
        sizes = np.diff(self._starts)
        common = np.empty(len(one), dtype=np.int64)
        # In the order of what is searched, which finds it in the processor's cache.
        order = np.argsort(other, kind="stable")
        ends = np.cumsum(sizes[one[order]])
        first = 0
        while first < len(one):
            before = ends[first - 1] if first else 0
            last = max(int(np.searchsorted(ends, before + COMPARED_AT_ONCE)), first + 1)
            pairs = order[first:last]
            common[pairs] = self._common(one[pairs], other[pairs])
            first = last
        return common / (sizes[one] + sizes[other] - common)

    def _common(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        sizes = np.diff(self._starts)[one]
        ends = np.cumsum(sizes)
        within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        own = self._pairs[np.repeat(self._starts[one], sizes) + within]
        wanted = own + np.repeat((other - one) << SHINGLE_BITS, sizes)
        at = np.searchsorted(self._pairs, wanted).clip(max=len(self._pairs) - 1)
        return np.add.reduceat(self._pairs[at] == wanted, ends - sizes, dtype=np.int64)


def normal_form(caption: str) -> str:
    """Returns a caption in lower case, its words between single spaces; at least one shingle."""
    words = BETWEEN_WORDS.sub(" ", caption.lower()).strip()
    return f" {words or caption.strip()} ".ljust(SHINGLE)


def _shingles(captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shingles of captions, uint64 [m], and where those of each begin, [n + 1]."""
    encoded = [normal_form(caption).encode("utf-8", "surrogatepass") for caption in captions]
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    text = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.uint64)
    values = np.zeros(max(len(text) - SHINGLE + 1, 0), dtype=np.uint64)
    for at in range(SHINGLE):
        values = values << np.uint64(8) | text[at : at + len(values)]
    inside = np.ones(len(values), dtype=bool)
    ends = np.cumsum(lengths)[:-1]
    for back in range(1, SHINGLE):
        inside[ends - back] = False
    starts = np.append(0, np.cumsum(lengths - SHINGLE + 1))
    return values[inside], starts


def _minima(captions: list[str], hashes: np.ndarray, seed: int) -> np.ndarray:
    """Returns the minima of the captions' shingles under hashes [m] by number, uint32 [n, m]."""
    factors = mix(hashes, seeded(seed, "minhash factors")).astype(np.uint32) | np.uint32(1)
    terms = mix(hashes, seeded(seed, "minhash terms")).astype(np.uint32)
    shingles, starts = _shingles(captions)
    values = mix(shingles, seeded("shingle")).astype(np.uint32)
    minima = np.empty((len(hashes), len(captions)), dtype=np.uint32)
    first = 0
    while first < len(captions):
        last = int(np.searchsorted(starts, starts[first] + CHUNK, side="right")) - 1
        last = min(max(last, first + 1), len(captions))
        part = values[starts[first] : starts[last]]
        begins = starts[first:last] - starts[first]
        hashed = np.empty_like(part)
        for at in range(len(hashes)):
            np.multiply(part, factors[at], out=hashed)
            np.add(hashed, terms[at], out=hashed)
            np.minimum.reduceat(hashed, begins, out=minima[at, first:last])
        first = last
    return np.ascontiguousarray(minima.T)
