"""A data card: what a pool holds and what the filters of a curation have left out, as one page.

In: a score table; perhaps the folder of a curation, and the manifest for images. Out: one HTML file
that needs no other. One pass over the table: memory holds counts, and the examples shown.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.curate.rows import LEFT_OUT
from ...data.curate.table import Table, file_of, read_rows
from ...data.hashing import mix, seeded
from ...data.shards.manifest import Manifest
from .data_examples import (
    Example,
    Examples,
    add_images,
    add_values,
    cell_of,
    ranks_of,
    shown_columns,
)
from .page import template

NUM_EXAMPLES, NUM_LEFT_OUT, NUM_ROWS = 48, 8, 24
# Words and hashes counted at once. Of more, rare words are forgotten, and fewer hashes looked at.
MAX_WORDS, MAX_HASHES = 500_000, 1_000_000
WORD = re.compile(r"\w+")
SIDES = (32, 64, 128, 200, 256, 384, 512, 1024, 2048)  # pixels
WORDS = (*range(1, 16), 20, 30, 50, 100)
WEIGHTS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


@dataclass(frozen=True)
class Bar:
    """One line of a chart: a name, a count, and its share of the largest, in percent."""

    name: str
    count: int
    width: float


class Copies:
    """Counts samples that repeat a hash, by looking at some of the hashes."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._limit = 1 << 64

    def add(self, hashes: np.ndarray) -> None:
        """Adds hashes, int64 [n]."""
        mixed = mix(hashes, seeded("copies"))
        self._counts.update(mixed[mixed <= np.uint64(self._limit - 1)].tolist())
        while len(self._counts) > MAX_HASHES:
            self._limit //= 2
            self._counts = Counter({h: n for h, n in self._counts.items() if h < self._limit})

    @property
    def share(self) -> float:
        """Part of the samples that are a further copy."""
        total = self._counts.total()
        return 1 - len(self._counts) / total if total else 0.0


@dataclass
class Card:
    """What the page shows."""

    samples: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)
    image_bytes: int = 0
    copies: dict[str, Copies] = field(
        default_factory=lambda: {"image": Copies(), "caption": Copies(), "phash": Copies()}
    )
    examples: Examples = field(default_factory=lambda: Examples(NUM_EXAMPLES))

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Counts the rows of a shard."""
        usable = np.array([error is None for error in rows["error"]], dtype=bool)
        self.samples += len(usable)
        self.errors.update(rows["error"][~usable].tolist())
        self.sources.update(rows["source"].tolist())
        if not usable.any():
            return
        for caption in rows["caption"][usable].tolist():
            self.words.update(set(WORD.findall(caption.casefold())))
        if len(self.words) > MAX_WORDS:
            self.words = Counter(dict(self.words.most_common(MAX_WORDS // 2)))
        self.lengths.update(_bins(rows["words"][usable], WORDS))
        sides = np.minimum(*(rows[name][usable].astype(np.int64) for name in ("width", "height")))
        self.sides.update(_bins(sides, SIDES))
        self.image_bytes += int(rows["num_bytes"][usable].sum())
        for name, copies in self.copies.items():
            hashes = rows[name if name == "phash" else f"{name}_hash"][usable]
            known = np.array([each is not None and each == each for each in hashes], dtype=bool)
            copies.add(hashes[known].astype(np.int64))
        self.examples.add(rows, ranks_of(rows), np.flatnonzero(usable))


@dataclass
class Removed:
    """A filter of the curation and some of what it left out."""

    facts: Mapping[str, Any]
    examples: list[Example]


@dataclass
class FilterTable:
    """The first rows of what a filter has counted; of quantiles, rows in equal steps."""

    name: str
    head: list[str]
    rows: list[list[str]]
    num_rows: int


def render_card(table: Table, curation: Path | None, manifest: Manifest | None) -> str:
    """Returns the page.

    Args:
        table: the pool's score table.
        curation: folder that `counterpoint curate` wrote.
        manifest: where the images are; without one none is shown.

    Raises:
        ValueError: `curation` is no such folder, or of another table.
    """
    page = template("data_card.html", thousands="{:,}".format, percent="{:.2%}".format)
    card, removed, tables, weights, summary = Card(), [], [], [], None
    columns = [f.name for f in pq.read_schema(table.files[0]) if not f.name.startswith("json:")]
    for path in table.files:
        card.add(_read(path, columns))
    if curation is not None:
        summary = _summary(curation, table)
        given: dict[str, Path] = {}  # where the columns of filters lie
        for facts in summary["filters"]:
            removed.append(_removed(curation, facts, table, given))
        add_values(card.examples.sorted(), given)
        tables = [_filter_table(path) for path in sorted((curation / "tables").glob("*.parquet"))]
        weights = _weights(curation / "keep.parquet")
    examples = card.examples.sorted()
    shown = [*examples, *(example for each in removed for example in each.examples)]
    note = add_images(shown, manifest)
    return page.render(
        title=f"Data card: {table.folder.name}",
        card=card,
        sources=_bars(card.sources.most_common(NUM_ROWS)),
        words=_bars(card.words.most_common(2 * NUM_ROWS)),
        num_words=len(card.words),
        lengths=_bars(_named(card.lengths, WORDS, "words")),
        sides=_bars(_named(card.sides, SIDES, "px")),
        errors=_bars(card.errors.most_common()),
        copies={name: copies.share for name, copies in card.copies.items()},
        examples=examples,
        summary=summary,
        removed=removed,
        tables=tables,
        weights=weights,
        note=note,
    )


def _read(path: Path, columns: Iterable[str]) -> dict[str, np.ndarray]:
    rows = read_rows(path, list(columns))
    return {name: _array(rows[name]) for name in rows.column_names}


def _array(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_integer(column.type) and column.null_count):
        return column.to_numpy()
    # Arrow would make floats of them, and hashes and keys of 64 bits would lose their last bits.
    values = column.fill_null(0).to_numpy().astype(object)
    values[column.is_null().to_numpy()] = None
    return values


def _bins(values: np.ndarray, edges: tuple[int, ...]) -> list[int]:
    """Returns the number of edges that each value has reached."""
    return np.searchsorted(np.array(edges), values.astype(np.int64), side="right").tolist()


def _named(counts: Counter[int], edges: tuple[int, ...], unit: str) -> list[tuple[str, int]]:
    """Returns all bins between the first and the last that has samples."""
    if not counts:
        return []
    named = []
    for number in range(min(counts), max(counts) + 1):
        if number == 0:
            name = f"below {edges[0]}"
        elif number == len(edges):
            name = f"{edges[-1]} or more"
        elif edges[number] - edges[number - 1] == 1:
            name = f"{edges[number - 1]}"
        else:
            name = f"{edges[number - 1]} to {edges[number] - 1}"
        named.append((f"{name} {unit}", counts[number]))
    return named


def _bars(counts: Iterable[tuple[str, int]]) -> list[Bar]:
    counts = list(counts)
    largest = max((count for _, count in counts), default=0) or 1
    return [Bar(name, count, 100 * count / largest) for name, count in counts]


def _summary(curation: Path, table: Table) -> dict[str, Any]:
    path = curation / "summary.json"
    if not path.is_file():
        raise ValueError(
            f"'{curation}' holds no curation (no summary.json); give the folder that counterpoint "
            "curate wrote"
        )
    summary = json.loads(path.read_text(encoding="utf-8"))
    if summary["samples"] != table.num_samples:
        raise ValueError(
            f"'{curation}' is of a pool of {summary['samples']:,} samples, and '{table.folder}' "
            f"has {table.num_samples:,}; give the table that it was made from"
        )
    if summary.get("pool", table.pool) != table.pool:
        raise ValueError(
            f"'{curation}' is of another pool than '{table.folder}', as large; give the table that "
            "it was made from"
        )
    return summary


def _removed(
    curation: Path, facts: Mapping[str, Any], table: Table, given: dict[str, Path]
) -> Removed:
    """Returns what a filter left out, with what it read and wrote; adds its columns to `given`."""
    found = Examples(NUM_LEFT_OUT)
    # A filter's name may hold a dash, its hash never does.
    steps = (curation / "steps").glob("*")
    folders = [step for step in steps if step.name.rpartition("-")[0] == facts["name"]]
    if not folders:
        raise ValueError(
            f"'{curation}/steps' has nothing of the filter {facts['name']}; run counterpoint "
            "curate again"
        )
    columns = ["key", "source", "shard", "index", "caption"]
    for path, (source, shard, samples) in zip(table.files, table.shards, strict=True):
        file = folders[0] / file_of(source, shard)
        if not file.is_file():
            raise ValueError(
                f"'{curation}' has nothing of the shard '{shard}' of the source '{source}'; give "
                "the table that it was made from"
            )
        verdict = read_rows(file, ["verdict"], remove=folders[0])["verdict"].to_numpy()
        if len(verdict) != samples:
            raise ValueError(
                f"'{curation}' has {len(verdict):,} samples of the shard '{shard}' of the source "
                f"'{source}', and the table {samples:,}; give the table that it was made from"
            )
        at = np.flatnonzero(verdict == LEFT_OUT)
        if len(at):
            rows = _read(path, columns)
            found.add(rows, ranks_of(rows), at)
    examples = found.sorted()
    read = dict.fromkeys(shown_columns(table.folder, table), table.folder) | given
    own = dict.fromkeys(shown_columns(folders[0], table), folders[0])
    add_values(examples, {n: read[n] for n in facts["reads"] if n in read} | own)
    given |= own
    return Removed(facts, examples)


def _filter_table(path: Path) -> FilterTable:
    file = pq.ParquetFile(path)
    head, num_rows = file.schema_arrow.names, file.metadata.num_rows
    spread = "quantile" in head
    first = next(file.iter_batches(num_rows if spread else NUM_ROWS), None)
    rows = first.to_pylist() if first is not None else []
    rows = rows[:: -(-num_rows // NUM_ROWS)] if spread else rows
    cells = [[cell_of(row[name]) for name in head] for row in rows]
    return FilterTable(path.stem, head, cells, len(cells) if spread else num_rows)


def _weights(path: Path) -> list[Bar]:
    file = pq.ParquetFile(path)
    if "weight" not in file.schema_arrow.names:
        return []
    counts = np.zeros(len(WEIGHTS) + 1, dtype=np.int64)
    for batch in file.iter_batches(columns=["weight"]):
        at = np.searchsorted(WEIGHTS, batch.column(0).to_numpy(), side="right")
        counts += np.bincount(at, minlength=len(counts))
    names = [f"below {WEIGHTS[0]}"]
    names += [f"{low:g} to {high:g}" for low, high in itertools.pairwise(WEIGHTS)]
    return _bars(zip([*names, f"{WEIGHTS[-1]:g} or more"], counts.tolist(), strict=True))
