"""The plan over 500,000 shards and 5 billion samples: time to load, memory, time of a step.

Run: `cd tests && OMP_NUM_THREADS=1 ../.venv/bin/python -m benchmarks.plan_scale`. The manifest is
made up; nothing is read but the manifest, and a keep-list of 5 million samples. Peak memory is that
of a fresh process for each part, imports and all.
"""

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from counterpoint.data.order.mixed_plan import MixedPlan
from counterpoint.data.order.selection import Selection
from counterpoint.data.order.steps import Steps
from counterpoint.data.shards.manifest import SCHEMA, Manifest

NUM_SHARDS, PER_SHARD = 500_000, 10_000
BATCH, WORLD_SIZE, LANES = 32_768, 64, 64
SHARES = {"cc12m": 0.2, "laion": 0.7, "own": 0.1}
ROUNDS = 30
NUM_KEPT = 5_000_000


def timed(action: Callable) -> tuple[float, object]:
    """Returns seconds and the result."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def report(what: str, seconds: float) -> None:
    """Prints a row of the table."""
    shown = f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
    print(f"| {what} | {shown} |", flush=True)


def peak(what: str) -> None:
    """Prints this process's peak resident memory."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| peak memory: {what} | {size:.0f} MiB |", flush=True)


def write_manifest(path: Path) -> None:
    """Writes the synthetic manifest: three sources, absolute addresses, checksums."""
    rng = np.random.default_rng(0)
    names = np.array(sorted(SHARES))
    counts = rng.multinomial(NUM_SHARDS * PER_SHARD, np.full(NUM_SHARDS, 1 / NUM_SHARDS))
    columns = {
        "source": pa.array(names[rng.choice(3, NUM_SHARDS, p=[SHARES[n] for n in names])]),
        "url": pa.array([f"s3://a-bucket/some/folder/{n:06d}.tar" for n in range(NUM_SHARDS)]),
        "num_samples": counts,
        "num_bytes": counts * 20_000,
        "sha256": pa.array([rng.bytes(32).hex() for _ in range(NUM_SHARDS)]),
    }
    Manifest(pa.table(columns, schema=SCHEMA), path.parent).save(path)


def measure_loading(path: Path) -> None:
    """Loads the manifest and hashes it."""
    peak("imports alone")
    seconds, manifest = timed(lambda: Manifest.load(path))
    report("load the manifest", seconds)
    report("fingerprint", timed(lambda: manifest.fingerprint)[0])
    peak("manifest and fingerprint")


def measure_steps(path: Path, shares: dict[str, float] | None) -> None:
    """Orders steps anywhere in a run of 100 epochs."""
    manifest = Manifest.load(path)
    arguments = (manifest.counts, manifest.source_ids, manifest.sources, 0, LANES, 4096, shares)
    kind = "one plan" if shares is None else "three sources in shares"
    seconds, plan = timed(lambda: MixedPlan(*arguments))
    report(f"{kind}: build", seconds)
    steps_an_epoch = manifest.num_samples // BATCH
    steps = Steps([(100 * steps_an_epoch, BATCH)])

    def order(step: int, rank: int, world_size: int) -> None:
        positions = steps.positions(step)
        plan.locate(steps.deal(positions, plan.lane(positions), rank, world_size))

    rng = np.random.default_rng(1)
    anywhere = [int(step) for step in rng.integers(steps.total_steps, size=7)]
    first = statistics.median(timed(lambda s=s: order(s, 0, 1))[0] for s in anywhere)
    report(f"{kind}: first step in an epoch not seen before", first)
    near = [int(step) for step in rng.integers(steps_an_epoch // 2, size=ROUNDS)]
    for world_size in (1, WORLD_SIZE):
        order(near[0], 0, world_size)
        taken = [timed(lambda s=s, w=world_size: order(s, w // 2, w))[0] for s in near]
        what = f"{BATCH // world_size} of {BATCH} positions, world size {world_size}"
        report(f"{kind}: any step, {what}", statistics.median(taken))
    peak(kind)
    for num_nodes in (1, 8):
        shards, size = plan.working_set(manifest.num_bytes, num_nodes, BATCH)
        print(f"| {kind}: working set of one of {num_nodes} nodes | {shards} shards, ", end="")
        print(f"{size / 1e9:.0f} GB |")


def measure_selection(path: Path) -> None:
    """Compiles an unsorted keep-list and resolves a batch."""
    manifest = Manifest.load(path)
    rng = np.random.default_rng(2)
    places = np.unique(rng.integers(NUM_SHARDS * (PER_SHARD // 2), size=NUM_KEPT))
    shards, indices = np.divmod(rng.permutation(places), PER_SHARD // 2)
    names = pa.array([f"{n:06d}.tar" for n in range(NUM_SHARDS)])
    shard = pa.DictionaryArray.from_arrays(shards.astype(np.int32), names).cast(pa.string())
    lists = path.with_name("kept.parquet")
    pq.write_table(pa.table({"shard": shard, "index": indices.astype(np.int32)}), lists)
    peak("before compiling")
    cache = path.with_name("cache")
    seconds, selection = timed(lambda: Selection.compile([lists], manifest, cache, 0))
    report(f"compile a keep-list of {len(places):,} samples in random order", seconds)
    report("open it again", timed(lambda: Selection.compile([lists], manifest, cache, 0))[0])
    some = rng.integers(NUM_SHARDS, size=BATCH)
    some = some[selection.counts.at(0, some) > 0]
    report(f"resolve {len(some)} samples", timed(lambda: selection.resolve(0, some, some * 0))[0])
    peak("compiled")


def main() -> None:
    """Prints a markdown table."""
    print(f"{NUM_SHARDS:,} shards, {NUM_SHARDS * PER_SHARD:,} samples, {os.cpu_count()} cores")
    print("| what | median |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        parts = [
            (write_manifest, path),
            (measure_loading, path),
            (measure_steps, path, None),
            (measure_steps, path, SHARES),
            (measure_selection, path),
        ]
        for part, *arguments in parts:
            process = get_context("spawn").Process(target=part, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{part.__name__} failed")


if __name__ == "__main__":
    main()
