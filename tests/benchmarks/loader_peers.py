"""This loader against datago's and open_clip's on the same pictures: images a second and core.

Run:
    pip install --no-deps --target FOLDER "webdataset==0.2.86" braceexpand pandas datago
    cd tests && OMP_NUM_THREADS=1 PYTHONPATH=FOLDER ../.venv/bin/python -m benchmarks.loader_peers

Pictures of 512 px with the bit rate of photographs, made on the spot, crops of 224 px in batches of
64, two worker processes each. open_clip and Counterpoint read tars, draw crops and make tokens of
captions; datago (Rust; https://pypi.org/project/datago) reads files, one task a process, crops in
the middle, and gives pictures alone: the least that a loader does. Contestants take turns, and
those that are not timed are stopped, as in `benchmarks.loader`. A core's figure is of the workers'
processor time. `decode`: what simplejpeg alone decodes of the same files. Printed as Markdown.
"""

import argparse
import json
import multiprocessing
import os
import queue
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.loader import write_shard
from benchmarks.loader import (
    BATCH,
    PREFETCH,
    SIZE,
    WORKERS,
    Contestant,
    decoders,
    open_clips,
    ours,
    read_jpegs,
)

SIDE, NUM_SHARDS, PER_SHARD = 512, 4, 64
ALONE = "simplejpeg, decoding alone"
WARM = {"open_clip": WORKERS * 2}  # its loader keeps fewer batches


def datagos(files: Path) -> Iterator[None]:
    """Starts processes in which datago serves a part of the files each; yields a batch's end."""
    context = multiprocessing.get_context("fork")
    done = context.Queue(maxsize=WORKERS * PREFETCH)

    def work(rank: int) -> None:
        os.environ["DATAGO_MAX_TASKS"] = "1"
        from datago import DatagoClient  # pyright: ignore[reportMissingImports]

        image = {"crop_and_resize": True, "default_image_size": SIZE, "downsampling_ratio": 1}
        image |= {"min_aspect_ratio": 1.0, "max_aspect_ratio": 1.0, "pre_encode_images": False}
        source = {"root_path": str(files / str(rank)), "rank": 0, "world_size": 1}
        config = {"source_type": "file", "source_config": source, "image_config": image}
        client = DatagoClient(json.dumps(config | {"limit": 10**9, "samples_buffer_size": 64}))
        while True:
            made: list[Any] = []
            while len(made) < BATCH:
                if (sample := client.get_sample()) is None:
                    client.start()  # another pass
                else:
                    made.append(np.asarray(sample.image))
            assert np.stack(made).shape == (BATCH, SIZE, SIZE, 3)
            done.put(None)

    for rank in range(WORKERS):
        context.Process(target=work, args=(rank,), daemon=True).start()
    while True:
        try:
            yield done.get(timeout=120)
        except queue.Empty:
            raise RuntimeError("datago's processes died") from None


def extract(urls: list[str], folder: Path) -> Path:
    """Writes the pictures as files, a folder for each process."""
    jpegs = [jpeg for url in urls for jpeg in read_jpegs(url)]
    for number, jpeg in enumerate(jpegs):
        path = folder / str(number % WORKERS) / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    return folder


def main() -> None:
    """Makes the shards, measures in rounds, prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls = [str(folder / f"{number:05d}.tar") for number in range(NUM_SHARDS)]
        for url in urls:
            write_shard(Path(url), PER_SHARD, SIDE)
        files, jpegs = extract(urls, folder / "files"), read_jpegs(urls[0])
        starts: dict[str, Callable[[], Iterator[Any]]] = {
            "Counterpoint, exact": lambda: ours(urls, folder, "exact"),
            "Counterpoint, `decode: dct`": lambda: ours(urls, folder, "dct"),
            "datago, pictures alone": lambda: datagos(files),
            "open_clip": lambda: open_clips(urls),
            ALONE: lambda: decoders(jpegs, 1),
        }
        contestants = {
            name: Contestant(start, WARM.get(name, WORKERS * PREFETCH))
            for name, start in starts.items()
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        try:
            for _ in range(options.rounds):
                for name, contestant in contestants.items():
                    rates[name].append(contestant.rates(8 if name == "open_clip" else 16))
        finally:
            for contestant in contestants.values():
                contestant.end()
    print(f"torch {torch.__version__}, {options.rounds} rounds, {os.cpu_count()} cores\n")
    print("| Loader | images/s, clock | images/s a core | x open_clip | decoding's share |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, found in rates.items():
        clock = statistics.median(rate for rate, _ in found)
        core = statistics.median(rate / WORKERS for _, rate in found)
        pairs = zip(found, rates["open_clip"], rates[ALONE], strict=True)
        ratios = [(own[1] / its[1], own[1] / alone[1]) for own, its, alone in pairs]
        speed, share = (statistics.median(each) for each in zip(*ratios, strict=True))
        print(f"| {name} | {clock:.0f} | {core:.0f} | {speed:.2f} | {share:.0%} |")


if __name__ == "__main__":
    main()
