"""This loader against open_clip's, and against simplejpeg alone, on the same photographs.

Run:
    pip install --no-deps --target FOLDER "webdataset==0.2.86" braceexpand pandas scikit-image
    cd tests && OMP_NUM_THREADS=1 PYTHONPATH=FOLDER ../.venv/bin/python -m benchmarks.loader

All have their workers at once, and those of the others are stopped while one is timed; they take
turns, round by round, so that a noisy machine disturbs all alike. Rates are medians over the
rounds, ratios medians of the rounds' ratios. Each is given twice: by the clock, and by the
processor time of the workers, which other jobs on the machine disturb much less. Printed as
Markdown.
"""

import argparse
import gc
import io
import logging
import multiprocessing
import os
import queue
import signal
import statistics
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from benchmarks.photos import make_shards
from PIL import Image

from counterpoint.data.images.decode import EncodedImage
from counterpoint.data.images.transforms import TrainTransform
from counterpoint.data.module import PairsDataModule
from counterpoint.data.order.steps import Steps
from counterpoint.data.shards.index import index_shards

SIZE, BATCH, CONTEXT, WORKERS, PREFETCH = 224, 64, 77, 2, 4
SCALE, RATIO = (0.9, 1.0), (3 / 4, 4 / 3)  # open_clip's augmentation by default
TARGETS = {(512, "exact"): 3.3, (512, "dct"): 4.1, (256, "exact"): 3.5}


class Contestant:
    """An endless source of batches whose workers run only while they are timed.

    Args:
        start: Starts the workers and returns the batches.
        warm: Batches that may have been made while others were timed.
    """

    def __init__(self, start: Callable[[], Iterator[Any]], warm: int):
        before = set(multiprocessing.active_children())
        self.batches = start()
        self.warm = warm
        for _ in range(warm):
            next(self.batches)
        self.children = set(multiprocessing.active_children()) - before
        self.pids = [child.pid for child in self.children if child.pid is not None]
        assert len(self.pids) == WORKERS, self.pids
        self._signal(signal.SIGSTOP)

    def rates(self, num_batches: int) -> tuple[float, float]:
        """Returns images per second, and per second of one worker's processor times the workers."""
        self._signal(signal.SIGCONT)
        for _ in range(self.warm):
            next(self.batches)
        start, used = time.perf_counter(), self._processor_seconds()
        for _ in range(num_batches):
            next(self.batches)
        seconds, used = time.perf_counter() - start, self._processor_seconds() - used
        self._signal(signal.SIGSTOP)
        num_images = num_batches * BATCH
        return num_images / seconds, num_images / used * WORKERS

    def end(self) -> None:
        """Ends the workers."""
        self._signal(signal.SIGCONT)
        del self.batches
        gc.collect()
        for child in self.children:
            child.terminate()

    def _processor_seconds(self) -> float:
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _signal(self, number: int) -> None:
        for pid in self.pids:
            os.kill(pid, number)


def ours(urls: list[str], folder: Path, decode: str) -> Iterator[Any]:
    """Starts this project's loader."""
    manifest = str(folder / "manifest.parquet")
    index_shards(urls, manifest)
    transform = TrainTransform(SCALE, RATIO, decode=decode)  # pyright: ignore[reportArgumentType]
    data = PairsDataModule(manifest, train_transform=transform, num_workers=WORKERS)
    data.connect(Steps([(10**6, BATCH)]), seed=0, image_size=SIZE, context_length=CONTEXT)
    return iter(data.train_dataloader())


def open_clips(urls: list[str]) -> Iterator[Any]:
    """Starts open_clip's loader as its trainer does."""
    import open_clip
    import webdataset
    from open_clip_train.data import get_wds_dataset

    if webdataset.__version__ > "0.2.86":
        raise ValueError(
            f"open_clip's loader fails with webdataset {webdataset.__version__}: install 0.2.86 "
            "into a folder of its own and put that on PYTHONPATH"
        )
    logging.getLogger().setLevel(logging.ERROR)
    first, last = Path(urls[0]), Path(urls[-1])
    args = Namespace(
        train_data=str(first.with_name(f"{{{first.stem}..{last.stem}}}.tar")),
        train_data_upsampling_factors=None,
        train_num_samples=10**6,
        dataset_resampled=True,  # endless, as ours
        seed=0,
        batch_size=BATCH,
        workers=WORKERS,
        world_size=1,
    )
    transform = open_clip.image_transform(SIZE, is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=CONTEXT)
    data = get_wds_dataset(args, transform, is_train=True, tokenizer=tokenizer)
    return iter(data.dataloader)


def decoders(jpegs: list[bytes], factor: int) -> Iterator[None]:
    """Starts processes that do nothing but decode; yields when another batch is done."""
    context = multiprocessing.get_context("fork")
    done = context.Queue(maxsize=WORKERS * PREFETCH)

    def work(first: int) -> None:
        bounds = [scaled_bounds(jpeg, factor) for jpeg in jpegs]
        place = first
        while True:
            for _ in range(BATCH):
                simplejpeg.decode_jpeg(jpegs[place], "RGB", **bounds[place])
                place = (place + 1) % len(jpegs)
            done.put(None)

    for number in range(WORKERS):
        context.Process(target=work, args=(number * len(jpegs) // 2,), daemon=True).start()
    while True:
        try:
            yield done.get(timeout=60)
        except queue.Empty:
            raise RuntimeError("the decoding processes died") from None


def scaled_bounds(jpeg: bytes, factor: int) -> dict[str, int]:
    """Returns simplejpeg's arguments for a scale, found beforehand."""
    height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    sides = {"min_height": -(-int(height) // factor), "min_width": -(-int(width) // factor)}
    return {**sides, "min_factor": factor}


def read_jpegs(url: str) -> list[bytes]:
    """Returns the images of a shard."""
    with tarfile.open(url) as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".jpg")]
        return [file.read() for file in files if file is not None]


def likeness(jpegs: list[bytes], decode: str) -> tuple[float, float]:
    """Returns the PSNR (dB) of our views against Pillow's of the same crop: of all, the lowest.

    Pillow 13 takes the vertical pass first where that is less work. The intermediate pixels are
    then rounded elsewhere, which is the difference between about 74 dB and about 55.
    """
    transform = TrainTransform(SCALE, RATIO, decode=decode)  # pyright: ignore[reportArgumentType]
    errors = []
    for number, jpeg in enumerate(jpegs):
        image = EncodedImage.open(jpeg)
        rng = np.random.default_rng(number)
        params = transform.draw(image.height, image.width, rng)
        factor, box = transform.view(image, SIZE, params)
        top, left, rows, columns = (factor * edge for edge in box)
        crop = Image.open(io.BytesIO(jpeg)).crop((left, top, left + columns, top + rows))
        pillow = np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64)
        view = transform.apply(image, SIZE, params).permute(1, 2, 0).numpy()
        errors.append(np.square(view - pillow).mean())
    return tuple(float(10 * np.log10(255**2 / error)) for error in (np.mean(errors), max(errors)))


def measure(urls: list[str], folder: Path, side: int, rounds: int) -> None:
    """Measures images of one size and prints the rows of the table."""
    jpegs = read_jpegs(urls[0])
    queued = WORKERS * PREFETCH
    factor = 2 if side == 512 else 1
    contestants = {
        "open_clip": Contestant(lambda: open_clips(urls), WORKERS * 2),
        "exact": Contestant(lambda: ours(urls, folder, "exact"), queued),
        "dct": Contestant(lambda: ours(urls, folder, "dct"), queued),
        "decode exact": Contestant(lambda: decoders(jpegs, 1), queued),
        "decode dct": Contestant(lambda: decoders(jpegs, factor), queued),
    }
    # About as long for each.
    lengths = {"open_clip": 8, "exact": 24, "dct": 28, "decode exact": 32, "decode dct": 32}
    table: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    try:
        for _ in range(rounds):
            for name, contestant in contestants.items():
                table[name].append(contestant.rates(lengths[name]))
    finally:
        for contestant in contestants.values():
            contestant.end()

    def rate(name: str) -> str:
        return f"{statistics.median(clock for clock, _ in table[name]):.0f}"

    def ratios(name: str, other: str) -> list[float]:
        rounds = zip(table[name], table[other], strict=True)
        columns = zip(*((a / c, b / d) for (a, b), (c, d) in rounds), strict=True)
        return [statistics.median(column) for column in columns]

    print(f"| {side} | open_clip | {rate('open_clip')} | 1 | | | |")
    for name in ("exact", "dct"):
        overall, low = likeness(jpegs[:50], name)
        wanted = f" (wanted {TARGETS[side, name]})" if (side, name) in TARGETS else ""
        clock, processor = ratios(name, "open_clip")
        shares = " / ".join(f"{100 * share:.0f}%" for share in ratios(name, f"decode {name}"))
        print(
            f"| {side} | {name} | {rate(name)} | {clock:.2f} / {processor:.2f}{wanted} | "
            f"{rate(f'decode {name}')} | {shares} | {overall:.1f} (lowest {low:.1f}) |",
            flush=True,
        )


def main() -> None:
    """Makes the shards if need be, measures, prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 256])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir(), "counterpoint-photos")
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {WORKERS} workers, {os.cpu_count()} cores, batch {BATCH}\n")
    print("Ratios: by the clock / by processor time.\n")
    print("| side | loader | images/s | x open_clip | simplejpeg alone | share of it | PSNR, dB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for side in args.sides:
        folder = args.folder / str(side)
        measure(make_shards(folder, side, args.num_samples), folder, side, args.rounds)


if __name__ == "__main__":
    main()
