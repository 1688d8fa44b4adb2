"""Runs the filters of a curation over a score table.

In: a table, stores, filters by name. Out: `OUT/keep.parquet` with the samples that all of them
keep, `OUT/summary.json` with what each has left out, and `OUT/tables/NAME.parquet` of filters that
have counted something to read. What is done lies in `OUT/steps/`: a run
that was stopped goes on there, and of changed filters only the first and those after it run again.
"""

import contextlib
import functools
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import check_own, folder_of_results, whole_file, write_json
from ..shards.locks import tried
from .base import KEEP, WEIGHT, Filter, GroupFilter, State, checked
from .digest import digest
from .engine import Engine, Serial
from .rows import KEPT, LACKS, LEFT_OUT, Rows
from .shuffle import BUCKET_BYTES, Shuffle
from .state import STATE, load, save, state_of
from .stores import Store
from .table import Table, read_rows, write_rows

# What lies in the folder of a curation.
STEPS, LIST, SUMMARY, TABLES = "steps", "keep.parquet", "summary.json", "tables"
VERSION = 3  # raise it when the same filters give other results
ROWS_A_BLOCK = 1 << 20
NAME = re.compile(r"\w[\w.-]*")
# What a curation may remove in a folder that holds other things as well.
STEP_FOLDER = re.compile(r".+-[0-9a-f]{12}")
# Columns that are the samples' own, or the runner's.
RESERVED = {"key", "source", "shard", "index", "error", "verdict"}

# Wraps the results of a pass over so many items to show its progress.
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def silent(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Shows no progress."""
    return items


@dataclass(frozen=True)
class Curation:
    """Filters in sequence over a pool.

    Args:
        table: the score table.
        filters: by name, in their order.
        stores: by name.
        out: folder of the results.
        engine: where tasks run.
        progress: shows progress.

    Raises:
        ValueError: a filter reads what there is not, or writes what it may not; or `out` is the
            table's folder.
    """

    table: Table
    filters: Mapping[str, Filter]
    stores: Mapping[str, Store]
    out: Path
    engine: Engine = field(default_factory=Serial)
    progress: Progress = silent

    def __post_init__(self):
        if not self.filters:
            raise ValueError("a curation needs at least one filter")
        if self.out.resolve() == self.table.folder.resolve():
            raise ValueError(f"'{self.out}' is the score table itself; choose another --out")
        known = set(self.table.columns)
        for name, each in self.filters.items():
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"the filter '{name}' becomes the name of files; use letters, digits, . _ and -"
                )
            if wrong := [n for n in each.writes if n in RESERVED or "." in n]:
                raise ValueError(
                    f"the filter '{name}' writes {wrong[0]}, which is the name of a sample's own "
                    "column or, with a dot, of a store's; give its column another name"
                )
            for column in each.reads:
                store, dot, _ = column.partition(".")
                if dot and store not in self.stores:
                    raise ValueError(
                        f"the filter '{name}' reads {column}, and no store is called '{store}'; "
                        f"give one: --store {store}=FOLDER, in an ablation stores: "
                        f"{{{store}: FOLDER}}"
                    )
                if not dot and column not in known:
                    raise ValueError(
                        f"the filter '{name}' reads {column}, which neither the score table nor an "
                        f"earlier filter has; there are {', '.join(sorted(known))}"
                    )
            known |= set(each.writes) - {KEEP, WEIGHT}

    def run(self) -> dict[str, Any]:
        """Runs what is not done; returns what `summary.json` holds.

        Raises:
            ValueError: no sample is left, another process of this machine works in `out`, or that
                is a file or holds other things.
        """
        if self.out.is_file():
            raise ValueError(
                f"'{self.out}' is a file, and a curation is a folder; name another --out"
            )
        check_own(self.out, STEPS, SUMMARY)
        with folder_of_results(self.out), tried(self.out / ".lock") as lock:
            if lock is None:
                raise ValueError(
                    f"another curation runs in '{self.out}'; wait for it, or choose another --out"
                )
            return self._run()

    def _run(self) -> dict[str, Any]:
        # Opened anew: what an earlier run has looked up may have changed since.
        stores = {name: Store(each.folder) for name, each in self.stores.items()}
        rows = Rows(self.table, stores)
        inputs = f"{VERSION} {self.table.fingerprint}"
        steps = []
        for name, given in self.filters.items():
            each = given.for_pool(self.table.num_samples)
            inputs = digest(inputs, each, stores)
            step = Step(name, each, rows, self.out / STEPS / f"{name}-{inputs}")
            step.run(self.engine, self.progress)
            steps.append(step)
            rows = step.after()
        summary = self._summary(steps, rows)
        self._write_list(rows)
        self._write_tables(steps)
        write_json(self.out / SUMMARY, summary)
        for folder in (self.out / STEPS).iterdir():
            old = folder not in {step.folder for step in steps}
            if old and STEP_FOLDER.fullmatch(folder.name):
                shutil.rmtree(folder)
        return summary

    def _summary(self, steps: "Sequence[Step]", rows: Rows) -> dict[str, Any]:
        told = [step.count() for step in steps]
        kept = self.table.num_samples - sum(each["left_out"] + each["lack"] for each in told)
        if not kept:
            last = next(each for each in reversed(told) if each["left_out"] + each["lack"])
            raise ValueError(
                f"the filters leave no sample of {self.table.num_samples:,}; the last, "
                f"'{last['name']}', left out {last['left_out']:,}, and {last['lack']:,} lack what "
                f"it reads ({', '.join(last['reads'])})"
            )
        samples, pool = self.table.num_samples, self.table.pool
        return {"samples": samples, "pool": pool, "kept": kept, "filters": told}

    def _write_tables(self, steps: "Sequence[Step]") -> None:
        folder = self.out / TABLES
        for path in folder.glob("*.parquet"):
            path.unlink()
        with contextlib.suppress(OSError):  # there is none, or other things are in it
            folder.rmdir()
        for step in steps:
            state = load(step.folder / STATE)
            if state and (table := step.filter.table(state)) is not None:
                write_rows(folder / f"{step.name}.parquet", table)

    def _write_list(self, rows: Rows) -> None:
        weighted = WEIGHT in rows.given
        fields = [("source", pa.string()), ("shard", pa.string()), ("index", pa.int32())]
        fields += [("key", pa.int64())] + [("weight", pa.float32())] * weighted
        schema = pa.schema(fields)
        with (
            whole_file(self.out / LIST) as part,
            pq.ParquetWriter(part, schema, compression="zstd") as file,
        ):
            for shard in range(len(self.table.shards)):
                kept = np.flatnonzero(rows.verdicts(shard) == KEPT)
                names = ["source", "shard", "index", "key"]
                path = self.table.folder / rows.file(shard)
                table = read_rows(path, names).take(pa.array(kept))
                if weighted:
                    table = table.append_column(WEIGHT, pa.array(rows.weights(shard)[kept]))
                file.write_table(table.cast(schema))


@dataclass(frozen=True)
class Step:
    """One filter over the pool.

    Args:
        name: of the filter.
        filter: the filter.
        rows: what the filters before it have left.
        folder: of its files.
    """

    name: str
    filter: Filter
    rows: Rows
    folder: Path

    def after(self) -> Rows:
        """Returns the rows as the next filter sees them."""
        number = len(self.rows.earlier)
        given = {**self.rows.given, **{n: number for n in self.filter.writes if n != KEEP}}
        earlier = (*self.rows.earlier, self.folder)
        return Rows(self.rows.table, self.rows.stores, earlier, given)

    def run(self, engine: Engine, progress: Progress) -> None:
        """Does what is not done."""
        done = self.folder / "done"
        if done.exists():
            return
        with folder_of_results(self.folder):
            self._run(engine, progress)
        for name in ("partial", "scatter", "gather"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        with whole_file(done) as part:
            part.touch()

    def _run(self, engine: Engine, progress: Progress) -> None:
        samples = [samples for _, _, samples in self.rows.table.shards]
        blocks = _blocks(samples, ROWS_A_BLOCK)

        def over(function: Callable[[Any], Any], items: Sequence[Any], what: str) -> Iterable[Any]:
            return progress(engine.map(function, items), len(items), f"{self.name}: {what}")

        self._reduce(blocks, over)
        if isinstance(self.filter, GroupFilter):
            parts = self.filter.parts()
            buckets, rows_a_block = self._sizes(parts)
            blocks = _blocks(samples, rows_a_block)
            shuffle = Shuffle(parts, self.rows, blocks, self.folder, buckets)
            numbers = range(len(blocks))
            for part in range(len(parts)):
                of = f" {part + 1} of {len(parts)}" if len(parts) > 1 else ""
                if not shuffle.is_worked(part):
                    scatter = functools.partial(shuffle.scatter, part)
                    _exhaust(over(scatter, numbers, f"groups{of}"))
                    work = functools.partial(shuffle.work, part)
                    _exhaust(over(work, range(buckets), f"filters{of}"))
                shuffle.forget(part)
            _exhaust(over(shuffle.gather, numbers, "writes"))
        else:
            shards = range(len(self.rows.table.shards))
            _exhaust(over(self._apply, shards, "filters"))

    def count(self) -> dict[str, Any]:
        """Returns how many rows the filter has seen, left out, and could not judge."""
        counts = np.zeros(4, dtype=np.int64)
        for shard in range(len(self.rows.table.shards)):
            file = self.folder / self.rows.file(shard)
            verdict = read_rows(file, ["verdict"], remove=self.folder)
            counts += np.bincount(verdict["verdict"].to_numpy(), minlength=4)
        kept, left_out, lack = (int(counts[kind]) for kind in (KEPT, LEFT_OUT, LACKS))
        return {
            "name": self.name,
            "filter": repr(self.filter),
            "reads": list(self.filter.reads),
            "seen": kept + left_out + lack,
            "kept": kept,
            "left_out": left_out,
            "lack": lack,
        }

    def _reduce(self, blocks: Sequence[Sequence[int]], over: Callable[..., Iterable[Any]]) -> None:
        path = self.folder / STATE
        if path.exists():
            return
        total: State = {}
        if self.filter.reduces:
            parts = over(functools.partial(self._partial, blocks), range(len(blocks)), "counts")
            for part in map(load, parts):
                total = self.filter.merge(total, part) if total and part else total or part
            total = self.filter.finish(total) if total else {}
        save(path, total)

    def _partial(self, blocks: Sequence[Sequence[int]], block: int) -> Path:
        path = self.folder / "partial" / f"{block:06d}.npz"
        if not path.exists():
            total: State = {}
            for shard in blocks[block]:
                for _, rows in self.rows.batches(shard, self.filter.reads):
                    part = self.filter.partial(rows)
                    total = self.filter.merge(total, part) if total else part
            save(path, total)
        return path

    def _apply(self, shard: int) -> None:
        if (self.folder / self.rows.file(shard)).exists():
            return
        numbers, columns = [], []
        for seen, rows in self.rows.batches(shard, self.filter.reads):
            given = checked(self.filter, self.filter.apply(rows, state_of(self.folder)), len(seen))
            numbers.append(seen)
            columns.append([given[name] for name in self.filter.writes])
        joined = {
            name: pa.concat_arrays([part[at] for part in columns]) if columns else np.zeros(0)
            for at, name in enumerate(self.filter.writes)
        }
        seen = np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.int64)
        self.rows.write(self.folder, shard, seen, joined, self.filter.writes)

    def _sizes(self, parts: Sequence[GroupFilter]) -> tuple[int, int]:
        """Into how many buckets rows go, and how many rows of the pool are in a block at most.

        Written down, so that a run that goes on has as many. A row of several groups is written as
        often, and counts as often.
        """
        path = self.folder / "sizes.json"
        if path.exists():
            sizes = json.loads(path.read_text(encoding="utf-8"))
            return sizes["buckets"], sizes["rows_a_block"]
        width = 64.0
        for shard in range(len(self.rows.table.shards)):
            _, rows = next(self.rows.batches(shard, parts[0].reads), (None, None))
            if rows is not None and rows.num_rows:
                groups = parts[0].groups(rows, state_of(self.folder))
                copies = 1 if groups.ndim == 1 else groups.shape[1]
                width = (width + rows.get_total_buffer_size() / rows.num_rows) * copies
                break
        buckets = max(1, int(self.rows.table.num_samples * width / BUCKET_BYTES))
        # The results of all parts meet in a block.
        rows_a_block = max(1, min(ROWS_A_BLOCK, int(2 * BUCKET_BYTES / width / len(parts))))
        write_json(path, {"buckets": buckets, "rows_a_block": rows_a_block})
        return buckets, rows_a_block


def _blocks(samples: Sequence[int], most: int) -> list[list[int]]:
    """Cuts shards into blocks of consecutive ones with about equal numbers of samples.

    Args:
        samples: of each shard.
        most: samples of a block, at most, unless a shard has more.
    """
    goal = min(max(sum(samples) // 64, 1 << 14), most)
    blocks: list[list[int]] = [[]]
    size = 0
    for shard, count in enumerate(samples):
        if blocks[-1] and size + count > goal:
            blocks.append([])
            size = 0
        blocks[-1].append(shard)
        size += count
    return blocks


def _exhaust(items: Iterable[Any]) -> None:
    for _ in items:
        pass
