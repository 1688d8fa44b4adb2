"""Weights drawn anew over 130 million listed samples: time and memory to compile, draw and resolve.

Run: `cd tests && OMP_NUM_THREADS=1 ../.venv/bin/python -m benchmarks.redrawn_scale`. It needs 5 GB
of disk in $TMPDIR. The keep-list is made up as `counterpoint curate` writes one: by shard, with key
and weight. Each part is a fresh process; memory is its peak of pages of its own (RssAnon), without
the memory maps, above that before the part.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from counterpoint.data.order.mixed_plan import MixedPlan
from counterpoint.data.order.selection import Redrawn, Selection
from counterpoint.data.shards.manifest import SCHEMA, Manifest

NUM_SHARDS, PER_SHARD = 13_000, 10_000
SHARDS_A_GROUP = 100
BATCH = 32_768


def anonymous_mib() -> float:
    """Returns resident pages that belong to no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon")


def measure(what: str, action: Callable[[], Any]) -> Any:
    """Prints time and memory of an action, and returns its result."""
    before, peak, done = anonymous_mib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    start, worked = time.perf_counter(), time.process_time()
    result = action()
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    done.set()
    thread.join()
    print(
        f"| {what} | {seconds:.2f} s | {worked:.2f} s | {max(0.0, peak - before):.0f} MiB |",
        flush=True,
    )
    return result


def manifest(folder: Path) -> Manifest:
    """Returns a made-up manifest of one source."""
    columns = {
        "source": ["pool"] * NUM_SHARDS,
        "url": [f"{n:06d}.tar" for n in range(NUM_SHARDS)],
        "num_samples": [PER_SHARD] * NUM_SHARDS,
        "num_bytes": [PER_SHARD * 20_000] * NUM_SHARDS,
        "sha256": [""] * NUM_SHARDS,
    }
    return Manifest(pa.table(columns, schema=SCHEMA), folder)


def write_list(folder: Path) -> None:
    """Writes the keep-list: weights between 0 and 3, keys of 64 random bits."""
    rng = np.random.default_rng(0)
    schema = pa.schema(
        [
            ("source", pa.dictionary(pa.int32(), pa.string())),
            ("shard", pa.dictionary(pa.int32(), pa.string())),
            ("index", pa.int64()),
            ("key", pa.int64()),
            ("weight", pa.float64()),
        ]
    )
    with pq.ParquetWriter(folder / "keep.parquet", schema) as writer:
        for first in range(0, NUM_SHARDS, SHARDS_A_GROUP):
            num = SHARDS_A_GROUP * PER_SHARD
            codes = np.repeat(np.arange(SHARDS_A_GROUP, dtype=np.int32), PER_SHARD)
            names = [f"{n:06d}.tar" for n in range(first, first + SHARDS_A_GROUP)]
            columns = [
                pa.DictionaryArray.from_arrays(np.zeros(num, np.int32), ["pool"]),
                pa.DictionaryArray.from_arrays(codes, names),
                pa.array(np.tile(np.arange(PER_SHARD), SHARDS_A_GROUP)),
                pa.array(rng.integers(-(1 << 63), 1 << 63, num)),
                pa.array(rng.beta(1, 5, num) * 3),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def compile_list(folder: Path) -> Selection:
    """Compiles the list, or opens the compiled one."""
    lists = [folder / "keep.parquet"]
    return Selection.compile(lists, manifest(folder), folder / "cache", 0, Redrawn())


def measure_compiling(folder: Path) -> None:
    """Compiles the list."""
    selection = measure("compile the list, once", lambda: compile_list(folder))
    print(f"| samples of an epoch | {selection.counts.num_samples:,} | | |", flush=True)


def measure_drawing(folder: Path) -> None:
    """Draws epochs and resolves batches, as a worker of the loader does."""
    selection = measure("open the compiled list", lambda: compile_list(folder))
    shards = manifest(folder)
    plan = MixedPlan(selection.counts, shards.source_ids, shards.sources, 0, lanes=64)
    samples = selection.counts.num_samples
    first = np.array([samples])
    measure("draw an epoch, once for all processes", lambda: plan.locate(first))

    def resolve(step: int) -> None:
        places = plan.locate(samples + np.arange(step * BATCH, (step + 1) * BATCH))
        selection.resolve(*places)

    measure(f"first batch of {BATCH:,} from 64 lanes", lambda: resolve(0))
    measure("20 batches", lambda: [resolve(step) for step in range(1, 21)])


def measure_reading(folder: Path) -> None:
    """Begins in an epoch that another process has drawn."""
    selection = compile_list(folder)
    measure("an epoch that is drawn already", lambda: selection.counts.at(1))


def main() -> None:
    """Prints a markdown table."""
    print(f"{NUM_SHARDS * PER_SHARD:,} samples in {NUM_SHARDS:,} shards")
    print("| what | time | processor | memory |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for part in (write_list, measure_compiling, measure_drawing, measure_reading):
            process = get_context("spawn").Process(target=part, args=(Path(folder),))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{part.__name__} failed")


if __name__ == "__main__":
    main()
