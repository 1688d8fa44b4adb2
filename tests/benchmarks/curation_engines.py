"""Engines for curation: the same two jobs on each, by time, memory and order of the rows.

Needs an environment of its own, since Daft wants an older pyarrow than this project:
`python -m venv E && E/bin/pip install daft "ray[data]" duckdb polars numpy psutil`, then
`cd tests && ../E/bin/python -m benchmarks.curation_engines --folder FOLDER`. The jobs: statistics
of captions by a Python function and a threshold from a histogram (a reduce, a map, written out);
cosines of pairs within groups by a Python function. Memory is the proportional set size of all
processes of an engine, processor time that of all of them. Printed as Markdown.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from benchmarks.engine_jobs import JOBS, PER_FILE, PER_GROUP, WIDTH
from benchmarks.process_memory import watch

WORDS = [
    "a",
    "red",
    "small",
    "old",
    "photo",
    "of",
    "the",
    "dog",
    "house",
    "river",
    "12",
    "sunset",
    "over",
    "on",
    "blue",
    "woman",
    "with",
    "tree",
]
TIMEOUT = 1500


def write_captions(folder: Path, num_rows: int) -> None:
    """Writes the table of the map job: captions of 3 to 12 words, about 40 characters."""
    folder.mkdir(parents=True)
    words = pa.array(WORDS)
    for number in range(num_rows // PER_FILE):
        rng = np.random.default_rng(number)
        lengths = rng.integers(3, 13, PER_FILE)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        drawn = words.take(pa.array(rng.integers(len(WORDS), size=offsets[-1])))
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), drawn)
        sizes = rng.integers(32, 2048, (2, PER_FILE)).astype(np.int32)
        columns = {
            "key": rng.integers(2**62, size=PER_FILE),
            "caption": pc.binary_join(lists, " "),
            "width": sizes[0],
            "height": sizes[1],
            "score": rng.random(PER_FILE, np.float32),
        }
        pq.write_table(pa.table(columns), folder / f"{number:05d}.parquet", compression="zstd")


def write_vectors(folder: Path, num_rows: int) -> None:
    """Writes the table of the group job: vectors as bytes, which every engine can carry."""
    folder.mkdir(parents=True)
    for number in range(num_rows // PER_FILE):
        rng = np.random.default_rng(number)
        vectors = rng.standard_normal((PER_FILE, WIDTH), np.float32).astype(np.float16)
        kind = pa.binary(2 * WIDTH)
        columns = {
            "key": rng.integers(2**62, size=PER_FILE),
            "group": rng.integers(num_rows // PER_GROUP, size=PER_FILE),
            "vector": pa.FixedSizeBinaryArray.from_buffers(
                kind, PER_FILE, [None, pa.py_buffer(vectors.tobytes())]
            ),
        }
        pq.write_table(pa.table(columns), folder / f"{number:05d}.parquet", compression="zstd")


def describe(out: Path) -> tuple[str, str]:
    """Returns a digest of the rows sorted by key, and one of the order in which they lie."""
    files = sorted(out.rglob("*.parquet"))
    table = pa.concat_tables([pq.read_table(file).combine_chunks() for file in files])
    order = np.argsort(table["key"].to_numpy(), kind="stable")
    columns = [table[name].to_numpy() for name in table.column_names if name != "nearest"]
    columns += [np.round(table["nearest"].to_numpy(), 4)] if "nearest" in table.column_names else []
    by_key = hashlib.sha256(b"".join(column[order].tobytes() for column in columns))
    as_is = hashlib.sha256(table["key"].to_numpy().tobytes())
    return f"{table.num_rows} {by_key.hexdigest()[:8]}", as_is.hexdigest()[:8]


def measure(name: str, job: int, folder: Path, work: Path, rounds: int) -> None:
    """Prints a row of the table: rounds of one job on one engine, in fresh processes."""
    seconds, cpu, peaks, rows, orders = [], [], [], set(), set()
    for _ in range(rounds):
        out = Path(tempfile.mkdtemp(dir=work))
        command = [sys.executable, "-m", "benchmarks.curation_engines", "--run", name]
        command += ["--job", str(job), "--folder", str(folder), "--out", str(out)]
        used = watch(command, TIMEOUT, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        if used.returncode:
            print(f"| {name} | failed after {used.seconds:.0f} s, {used.peak / 2**20:.0f} MiB | ")
            print(used.output[-3000:], file=sys.stderr)
            return
        found = describe(out)
        rows.add(found[0])
        orders.add(found[1])
        shutil.rmtree(out)
        seconds.append(used.seconds)
        cpu.append(used.cpu_seconds)
        peaks.append(used.peak)
    texts = [f"{min(seconds):.0f} s", f"{min(cpu):.0f} s", f"{max(peaks) / 2**20:.0f} MiB"]
    texts += [
        "differs" if len(orders) > 1 else "same" if rounds > 1 else "-",
        ", ".join(sorted(rows)),
    ]
    print(f"| {name} | {' | '.join(texts)} |", flush=True)


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--group_rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(JOBS))
    parser.add_argument("--jobs", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--run", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        JOBS[options.run][options.job](options.folder, options.out)
        return
    for job in options.jobs:
        num_rows, write = [
            (options.rows, write_captions),
            (options.group_rows, write_vectors),
        ][job]
        folder = options.folder / f"{write.__name__}-{num_rows}"
        start = time.perf_counter()
        if not folder.exists():
            write(folder, num_rows)
        print(f"\n{num_rows:,} rows, written in {time.perf_counter() - start:.0f} s\n")
        print("| engine | clock | processor | memory | order | rows |")
        print("| --- | ---: | ---: | ---: | --- | --- |", flush=True)
        for name in options.only:
            if JOBS[name][job]:
                measure(name, job, folder, options.folder, options.rounds)


if __name__ == "__main__":
    main()
