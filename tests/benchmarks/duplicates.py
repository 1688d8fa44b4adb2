"""Filters of duplicates and clusters: rows a second of one core, and memory at five million rows.

Run: `cd tests && OMP_NUM_THREADS=1 ../.venv/bin/python -m benchmarks.duplicates --folder FOLDER`;
with `pip install datasketch` MinHash is compared to it. The pool is made up, a tenth of it copies;
each filter runs in a fresh process, whose processor time and peak memory (imports and all) are
printed.
"""

import argparse
import resource
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from counterpoint.data.curate.base import Filter
from counterpoint.data.curate.filters.clusters.cluster_weights import ClusterWeights
from counterpoint.data.curate.filters.duplicates.exact_duplicates import ExactDuplicates
from counterpoint.data.curate.filters.duplicates.near_captions import NearCaptions
from counterpoint.data.curate.filters.duplicates.near_images import NearImages
from counterpoint.data.curate.filters.duplicates.semantic_balance import SemanticBalance
from counterpoint.data.curate.filters.duplicates.semdedup import SemDeDup
from counterpoint.data.curate.filters.general.cap import Cap
from counterpoint.data.curate.numerics.similarity import near_earlier, rounded
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.stores import Store
from counterpoint.data.curate.table import COLUMNS, Table, file_of, write_about, write_rows
from counterpoint.data.sidecar import write_sidecar

PER_SHARD, CLUSTERS = 50_000, 50_000
WIDTH, IN_A_CLUSTER = 512, 2600  # 130 million samples in 50,000 clusters
FILTERS = {
    "exact_duplicates": ExactDuplicates(),
    "near_images": NearImages(),
    "near_captions": NearCaptions(),
    "cap": Cap("caption_hash", at_most=20),
    "cluster_weights": ClusterWeights(),
}
OF_VECTORS = {"semdedup": SemDeDup(), "semantic_balance": SemanticBalance(at_most=1000)}


def made_up_words(count: int) -> list[str]:
    """Returns words of three to nine letters."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return ["".join(letters[rng.integers(26, size=rng.integers(3, 10))]) for _ in range(count)]


def write_table(folder: Path, num_rows: int) -> None:
    """Writes a score table with captions of 4 to 14 words, a tenth of its rows near copies."""
    words = pa.array(made_up_words(50_000))
    listed = []
    for number in range(num_rows // PER_SHARD):
        rng = np.random.default_rng(number)
        origin = np.arange(PER_SHARD)
        copies = rng.random(PER_SHARD) < 0.1
        origin[copies] = rng.integers(PER_SHARD, size=copies.sum())
        lengths = rng.integers(4, 15, PER_SHARD)
        offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
        drawn = words.take(pa.array(rng.zipf(1.1, offsets[-1]) % len(words)))
        captions = pc.call_function(
            "binary_join", [pa.ListArray.from_arrays(pa.array(offsets), drawn), pa.scalar(" ")]
        )
        phash = rng.integers(-(1 << 63), 1 << 63, PER_SHARD)[origin]
        phash ^= np.int64(1) << rng.integers(0, 63, PER_SHARD)
        phash[rng.random(PER_SHARD) < 0.01] = 0  # blank images
        name = f"{number:05d}.tar"
        values = {
            "key": rng.integers(-(1 << 63), 1 << 63, PER_SHARD),
            "caption": captions.take(pa.array(origin)),
            "image_hash": rng.integers(1 << 62, size=PER_SHARD)[origin],
            "caption_hash": rng.zipf(1.2, PER_SHARD),
            "phash": phash,
            "cluster": rng.zipf(1.2, PER_SHARD) % CLUSTERS,
            "source": pa.array(["web"] * PER_SHARD),
            "shard": pa.array([name] * PER_SHARD),
            "index": np.arange(PER_SHARD),
        }
        schema = pa.schema([COLUMNS.field(each) for each in values if each in COLUMNS.names])
        schema = schema.append(pa.field("cluster", pa.int64()))
        rows = pa.table({each: values[each] for each in schema.names}).cast(schema)
        write_rows(folder / file_of("web", name), rows)
        listed.append(("web", name, PER_SHARD))
    write_about(folder, listed, {})


def write_vectors(folder: Path, table: Table) -> None:
    """Writes a store of vectors and clusters for a table, a tenth of the rows near copies."""
    centres = np.random.default_rng(0).normal(size=(table.num_samples // IN_A_CLUSTER, WIDTH))
    for number, (source, shard, size) in enumerate(table.shards):
        rng = np.random.default_rng(number)
        cluster = rng.integers(len(centres), size=size)
        rows = centres[cluster] + rng.normal(size=(size, WIDTH))
        copies = rng.integers(size, size=size // 10)
        rows[: len(copies)] = rows[copies] + 0.1 * rng.normal(size=(len(copies), WIDTH))
        cluster[: len(copies)] = cluster[copies]
        columns = {
            "key": torch.from_numpy(pq.read_table(table.files[number])["key"].to_numpy().copy()),
            "image": torch.from_numpy(rows).half(),
            "id": torch.from_numpy(cluster),
        }
        write_sidecar(folder, source, shard, columns)


def run_filter(name: str, each: Filter, table: Path, stores: dict[str, Path], out: Path) -> None:
    """Runs one filter and prints its row."""
    opened = {store: Store(folder) for store, folder in stores.items()}
    start, used = time.perf_counter(), time.process_time()
    summary = Curation(Table(table), {name: each}, opened, out).run()
    seconds, used = time.perf_counter() - start, time.process_time() - used
    rows, peak = summary["samples"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"| {name} | {rows:,} | {summary['kept']:,} | {seconds:.0f} s | {used:.0f} s "
        f"| {rows / used:,.0f} | {peak:,.0f} MiB |",
        flush=True,
    )


def idle(table: Path) -> None:
    """Prints the memory of a process that has only the imports."""
    Table(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| imports alone | | | | | | {peak:,.0f} MiB |", flush=True)


def print_semantic_duplicates() -> None:
    """Prints how many rows of 512 dimensions SemDeDup takes a second, by the size of clusters."""
    rng = np.random.default_rng(0)
    print("\n| rows in a cluster | rows a second of one core |\n| --- | --- |")
    for size in (100, 1000, 2600, 5000, 10_000, 20_000):
        rows = rng.normal(size=(size, 512)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        rounds = max(1, 5000 // size)
        used = time.process_time()
        for _ in range(rounds):
            near_earlier(rounded(rows), 0.95)
        print(f"| {size:,} | {size * rounds / (time.process_time() - used):,.0f} |", flush=True)


def print_minhash(num_rows: int = 20_000) -> None:
    """Prints captions a second of one core: 100 minima, and datasketch's of the same shingles."""
    rng = np.random.default_rng(0)
    words = np.array(made_up_words(50_000))
    captions = [" ".join(words[rng.integers(50_000, size=9)]) for _ in range(num_rows)]
    rows = pa.record_batch({"caption": captions})
    used = time.process_time()
    NearCaptions().groups(rows, {})
    print(f"\nMinHash: {num_rows / (time.process_time() - used):,.0f} captions a second")
    try:
        from datasketch import MinHash
    except ImportError:
        print("datasketch is not installed")
        return
    used = time.process_time()
    sets = [[text[at : at + 5].encode() for at in range(len(text) - 4)] for text in captions[:2000]]
    MinHash.bulk(sets, num_perm=100)
    print(f"datasketch: {2000 / (time.process_time() - used):,.0f} captions a second")


def main() -> None:
    """Prints all of it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the made-up pool")
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="rows of 512 dimensions")
    parser.add_argument("--only", choices=[*FILTERS, *OF_VECTORS], action="append")
    options = parser.parse_args()
    chosen = options.only or [*FILTERS, *OF_VECTORS]
    table = options.folder / f"table-{options.rows}"
    small, store = (options.folder / f"{kind}-{options.vectors}" for kind in ("table", "store"))
    for folder, rows in ((table, options.rows), (small, options.vectors)):
        if not (folder / "table.json").exists():
            write_table(folder, rows)
    if not store.exists() and OF_VECTORS.keys() & set(chosen):
        write_vectors(store, Table(small))
    print("| filter | rows | kept | time | of one core | rows a core-second | peak memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    context = get_context("spawn")
    out = options.folder / "out"
    for name in [None, *chosen]:
        shutil.rmtree(out, ignore_errors=True)
        job, arguments = idle, (table,)
        if name in FILTERS:
            job, arguments = run_filter, (name, FILTERS[name], table, {}, out)
        elif name:
            stores = {"clip": store, "clusters": store}
            job, arguments = run_filter, (name, OF_VECTORS[name], small, stores, out)
        process = context.Process(target=job, args=arguments)
        process.start()
        process.join()
    print_semantic_duplicates()
    print_minhash()


if __name__ == "__main__":
    main()
