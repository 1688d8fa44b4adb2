"""Every packaged filter over a synthetic table of 5 and of 50 million rows: time and peak memory.

Run: `cd tests && ../.venv/bin/python -m benchmarks.curation_scale --folder FOLDER`. The table is
made by hashes, the same on any machine, with vectors of few dimensions in its stores: about 8 GB at
50 million rows, removed at the end with `--clean`. `--distinct N` makes N rows, and the rest of the
table has the same shards again under other names, which saves the making; groups of equal rows grow
with it. Each filter runs as `counterpoint curate` would, keep-list and all; memory is the
proportional set size of all processes. A new file in `configs/filter/` is measured without a change
here, unless it reads a column that this table does not have. Printed as Markdown.
"""

import argparse
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import yaml
from benchmarks.process_memory import watch
from safetensors.torch import save_file

from counterpoint.data.curate.engine import Processes
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.stores import Store
from counterpoint.data.curate.table import COLUMNS, Table, file_of, write_about, write_rows
from counterpoint.data.hashing import mix, seeded
from counterpoint.data.sidecar import write_sidecar
from counterpoint.launch.config.curations import load_curation

PER_SHARD, PER_CLUSTER, WIDTH, VOCABULARY, WORDS = 100_000, 1_000, 8, 5_000, 7
TEXT_BYTES = 32
# Of a hundred samples ten have the image of another one, and another ten the caption.
IMAGES, CAPTIONS = 0.95, 0.95
STORES = ("clip", "dino", "clusters", "boxes")
FILTERS = Path(__file__).parents[2] / "configs" / "filter"

# What the packaged settings cannot know: files, and columns of stores for those of other filters.
SETTINGS = {
    "cluster_weights": {"cluster": "clusters.id"},
    "where": {"column": "source", "values": ["web"]},
    "language": {"languages": None},  # made-up words are of none
    "image_based": {"hits": "stores/clusters"},
    "text_rules": {"max_digits": 0.5},
    "moment_matching": {"mean": 0.3},  # a fifth are women: half of 0.5 they cannot be
}
BEFORE = {"balance_concepts": ["match_concepts"]}
# Of letters alone, as words are to whoever counts them; no dictionary has them.
LETTERS = str.maketrans("0123456789", "bcdfghjklm")
VOCABULARY_WORDS = [f"q{n:04d}".translate(LETTERS) for n in range(VOCABULARY)]
NAMES = "".join(f"{word}\n" for word in VOCABULARY_WORDS) + "".join(
    f"{word} {VOCABULARY_WORDS[(7 * n + k) % VOCABULARY]}\n"
    for k in range(9)
    for n, word in enumerate(VOCABULARY_WORDS)
)


def hashed(values: np.ndarray, *purpose: object) -> np.ndarray:
    """Returns non-negative hashes, int64 [n]."""
    return (mix(values, seeded(*purpose)) >> np.uint64(1)).astype(np.int64)


def write_shard(folder: Path, total: int, number: int) -> None:
    """Writes a shard's rows, and those of its stores.

    Args:
        folder: of the benchmark.
        total: rows of the table.
        number: of the shard.
    """
    shard = f"{number:05d}.tar"
    path = folder / "table" / file_of("web", shard)
    if path.exists():
        return
    rows = np.arange(number * PER_SHARD, (number + 1) * PER_SHARD)
    image = hashed(rows, "image") % int(total * IMAGES)
    caption = hashed(rows, "caption") % int(total * CAPTIONS)
    drawn = np.stack([hashed(caption, "word", n) % VOCABULARY for n in range(WORDS)], axis=1)
    offsets = np.arange(0, PER_SHARD * WORDS + 1, WORDS, dtype=np.int32)
    vocabulary = pa.array(VOCABULARY_WORDS)
    texts = pa.ListArray.from_arrays(pa.array(offsets), vocabulary.take(pa.array(drawn.ravel())))
    texts = pc.binary_join(texts, " ")
    key = hashed(rows, "key")
    columns = {
        "key": key,
        "source": pa.array(["web"] * PER_SHARD),
        "shard": pa.array([shard] * PER_SHARD),
        "index": np.arange(PER_SHARD),
        "name": pa.array([f"{n:09d}" for n in range(PER_SHARD)]),
        "error": pa.nulls(PER_SHARD, pa.string()),
        "caption": texts,
        "width": 64 + hashed(image, "width") % 1024,
        "height": 64 + hashed(image, "height") % 1024,
        "num_bytes": 1000 + hashed(image, "bytes") % 100_000,
        "words": 2 + hashed(caption, "words") % 20,
        "characters": pc.utf8_length(texts),
        "image_hash": hashed(image, "bytes of the image"),
        "caption_hash": hashed(caption, "bytes of the caption"),
        "phash": mix(image, seeded("perceptual")).view(np.int64),
    }
    table = pa.table(columns).cast(COLUMNS)
    probability = (hashed(rows, "probability") % 10_000).astype(np.float32) / 10_000
    table = table.append_column("probability", pa.array(probability))
    for share, name in ((5, "woman"), (7, "doctor"), (11, "nurse")):
        table = table.append_column(name, pa.array(hashed(rows, name) % share == 0))
    cluster = hashed(image, "cluster") % (total // PER_CLUSTER)
    near = embedding(cluster, "centre") + 0.3 * embedding(image, "image")
    vectors = {
        "clip": {"image": near, "text": near + 0.5 * embedding(caption, "text")},
        "dino": {"image": near},
    }
    stored = {
        store: {name: torch.from_numpy(each.astype(np.float16)) for name, each in parts.items()}
        for store, parts in vectors.items()
    }
    stored["clusters"] = {"id": torch.from_numpy(cluster)}
    area = (hashed(image, "area") % 1_000).astype(np.float32) / 1_000
    in_image = np.zeros((PER_SHARD, TEXT_BYTES), dtype=np.uint8)
    letters = texts.cast(pa.binary()).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(area < 0.2):  # a fifth shows the beginning of its caption
        begin = letters[row][:TEXT_BYTES]
        in_image[row, : len(begin)] = np.frombuffer(begin, dtype=np.uint8)
    stored["boxes"] = {"area": torch.from_numpy(area), "text": torch.from_numpy(in_image)}
    for store, tensors in stored.items():
        tensors = {"key": torch.from_numpy(key), **tensors}
        write_sidecar(folder / "stores" / store, "web", shard, tensors)
    write_rows(path, table)


def embedding(ids: np.ndarray, purpose: str) -> np.ndarray:
    """Returns a vector for each id, uniform in [-1, 1], float32 [n, WIDTH]."""
    columns = [hashed(ids, purpose, n) / 2.0**62 - 1 for n in range(WIDTH)]
    return np.stack(columns, axis=1).astype(np.float32)


def write_files(folder: Path, total: int) -> None:
    """Writes what the settings of filters name."""
    (folder / "entries.txt").write_text(NAMES)
    (folder / "classes.txt").write_text("".join(NAMES.splitlines(keepends=True)[:1_000]))
    centres = torch.from_numpy(embedding(np.arange(total // PER_CLUSTER), "centre"))
    (folder / "clusters").mkdir(exist_ok=True)
    save_file({"centres": centres}, folder / "clusters" / "centres.safetensors")
    save_file({"classes": centres[:100].clone()}, folder / "classes.safetensors")
    save_file({"classes": centres[:2].clone()}, folder / "probe.safetensors")


def write_table(folder: Path, total: int, distinct: int, engine: Processes) -> None:
    """Writes table, stores and files; what is there stays."""
    shards = [("web", f"{number:05d}.tar", PER_SHARD) for number in range(total // PER_SHARD)]
    made = min(total, distinct) // PER_SHARD
    for _ in engine.map(partial(write_shard, folder, made * PER_SHARD), range(made)):
        pass
    folders = {folder / "table": ".parquet"}
    folders |= {folder / "stores" / store: ".safetensors" for store in STORES}
    for number in range(made, len(shards)):
        for each, suffix in folders.items():
            again = each / "web" / f"{number:05d}{suffix}"
            if not again.exists():
                os.link(again.with_name(f"{number % made:05d}{suffix}"), again)
    write_about(folder / "table", shards, {"benchmark": total})
    write_files(folder, made * PER_SHARD)


def run(folder: Path, name: str, out: Path, workers: int) -> None:
    """Runs a curation of one filter."""
    os.chdir(folder)
    names = [*BEFORE.get(name, []), name]
    filters = {each: {"config": each, **SETTINGS.get(each, {})} for each in names}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"filters": filters}, sort_keys=False))
    stores = {store: Store(folder / "stores" / store) for store in STORES}
    with Processes(workers) as engine:
        Curation(Table(folder / "table"), load_curation(path), stores, out, engine).run()


def measure(folder: Path, name: str, workers: int, timeout: float) -> str:
    """Returns cells of the table: the clock, processor time, peak memory."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.curation_scale", "--folder", str(folder)]
    command += ["--run", name, "--out", str(out), "--workers", str(workers)]
    used = watch(command, timeout, 1.0)
    shutil.rmtree(out, ignore_errors=True)
    if used.returncode:
        last = used.output.strip().splitlines()[-1:]
        print(f"{name}: {last}", file=sys.stderr, flush=True)
        return f"not within {timeout:.0f} s | | " if used.seconds >= timeout else "failed | | "
    peak = used.peak / 2**20
    return f"{used.seconds:.0f} s | {used.cpu_seconds:.0f} s | {peak:.0f} MiB"


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="*", default=[5_000_000, 50_000_000])
    parser.add_argument("--distinct", type=int, help="rows that are made (all of them)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600.0)
    names = [path.stem for path in sorted(FILTERS.glob("*.yaml"))]
    parser.add_argument("--only", nargs="*", default=names)
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.folder, options.run, options.out, options.workers)
        return
    print("| filter | rows | clock | processor | memory |\n| --- | ---: | ---: | ---: | ---: |")
    for total in options.rows:
        folder = (options.folder / str(total)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with Processes(options.workers) as engine:
            write_table(folder, total, options.distinct or total, engine)
        for name in options.only:
            cells = measure(folder, name, options.workers, options.timeout)
            print(f"| `{name}` | {total:,} | {cells} |", flush=True)
        if options.clean:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
