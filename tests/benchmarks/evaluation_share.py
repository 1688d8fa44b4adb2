"""How long a large zero-shot evaluation takes, and what share of it the towers take.

Run in `tests`: `OMP_NUM_THREADS=1 ../.venv/bin/python -m
benchmarks.evaluation_share --model icons_small`.

JPEGs in shards are classified among classes of 80 prompts by the model of a packaged file with new
weights, on the CPU. Two parts are measured first, of many images and of many prompts: the cost of
an image and of a class follow from them, and with these the time of the whole is predicted, and
then measured. All of it twice: by the clock, and by the processor time of all
threads, which other jobs on the machine disturb less. Decoding has threads of its own beside the
tower; reading the shards' index counts.
"""

import argparse
import functools
import io
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

from counterpoint.data.image_sets import ShardSet
from counterpoint.data.images.transforms import EvalTransform
from counterpoint.data.text.tokenize import ClipTokenizer
from counterpoint.launch.config.packaged import find
from counterpoint.launch.run.env import prepare
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.evaluation.evaluate import evaluate
from counterpoint.train.evaluation.suite import Suite
from counterpoint.train.evaluation.zero_shot.classification import ZeroShot

SHARD = 1000
DISTINCT = 64  # images that are encoded; the shards repeat them under other names
PARTS = ((0.2, 0.02), (0.02, 0.2))  # of the images, of the classes
TEMPLATES = open_clip.OPENAI_IMAGENET_TEMPLATES
CLOCKS = {"by the clock": time.perf_counter, "by processor time": time.thread_time}
Seconds = dict[str, np.ndarray]


def write_shards(folder: Path, num: int, side: int, num_classes: int) -> None:
    """Writes noise, smoothed so that a JPEG is as large as that of a photograph."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(DISTINCT):
        pixels = rng.integers(0, 256, (max(2, side // 8), max(2, side // 8), 3), dtype=np.uint8)
        out = io.BytesIO()
        smooth = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        smooth.save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    for first in range(0, num, SHARD):
        with tarfile.open(folder / f"{first // SHARD:04d}.tar", "w") as tar:
            for i in range(first, min(num, first + SHARD)):
                members = {"jpg": images[i % DISTINCT], "cls": str(i % num_classes).encode()}
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{i:07d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def make_model(name: str) -> TwoTower:
    """Builds the model of a packaged file, with new weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TwoTower, "model")
    torch.manual_seed(0)
    written = yaml.safe_load(find(name, "model").read_text())
    return parser.instantiate(parser.parse_object({"model": written})).model


def timed(call: Callable[..., Any], seconds: Seconds, name: str) -> Callable[..., Any]:
    """Returns the function, whose time by each of `CLOCKS` is added up under a name."""

    @functools.wraps(call)
    def run(*args: Any, **options: Any) -> Any:
        before = now()
        try:
            return call(*args, **options)
        finally:
            seconds[name] += now() - before

    return run


def now() -> np.ndarray:
    """Returns this thread's time by each of `CLOCKS`."""
    return np.array([clock() for clock in CLOCKS.values()])


def measure(model: TwoTower, folder: Path, num_classes: int, batch_size: int) -> Seconds:
    """Evaluates once; returns seconds by each of `CLOCKS`: `whole`, and of its parts."""
    seconds: Seconds = defaultdict(lambda: np.zeros(len(CLOCKS)))
    data = ShardSet(str(folder))
    data.walk = timed(lambda walk=data.walk: list(walk()), seconds, "index")  # type: ignore[method-assign]
    data.image = timed(data.image, seconds, "decoding")  # type: ignore[method-assign]
    names = [f"{name} {i}" for i, name in enumerate(open_clip.IMAGENET_CLASSNAMES[:num_classes])]
    classes = {str(i): name for i, name in enumerate(names)}
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES
    task = ZeroShot(data, label="cls", classes=classes, templates=templates)
    encoders = model.encode_image, model.encode_text
    model.encode_image = timed(encoders[0], seconds, "image tower")
    model.encode_text = timed(encoders[1], seconds, "text tower")
    tokenizer = timed(ClipTokenizer(), seconds, "tokenizing")
    transform = timed(EvalTransform(), seconds, "resizing")
    suite, before = Suite("s", {"t": task}), (time.perf_counter(), time.process_time())
    evaluate(model, suite, tokenizer, transform, batch_size=batch_size)
    seconds["whole"] = np.array([time.perf_counter(), time.process_time()]) - before
    model.encode_image, model.encode_text = encoders
    return seconds


def main() -> None:
    """Prints the prediction, what came of it, and the shares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000, help="of 80 prompts each")
    parser.add_argument("--model", default="icons_small", help="a file of configs/model")
    parser.add_argument("--side", type=int, default=64, help="of the JPEGs, in pixels")
    parser.add_argument("--batch_size", type=int, default=256)
    options = parser.parse_args()
    prepare()
    model = make_model(options.model)
    size = np.array([options.images, options.classes])
    parts = [(size * shares).astype(int) for shares in PARTS]
    found = []
    with tempfile.TemporaryDirectory() as root:
        # The first one warms up.
        for i, (num_images, num_classes) in enumerate([parts[0], *parts, size]):
            folder = Path(root, str(i))
            folder.mkdir()
            write_shards(folder, num_images, options.side, num_classes)
            found.append(measure(model, folder, num_classes, options.batch_size))
            clock, processor = found[-1]["whole"]
            print(
                f"{num_images} images, {num_classes} classes: {clock:.1f} s by the clock, "
                f"{processor:.1f} s of processor time",
                flush=True,
            )
    system = np.array(parts)
    for k, name in enumerate(CLOCKS):
        cost = np.linalg.solve(system, [seconds["whole"][k] for seconds in found[1:-1]])
        seconds = {part: float(each[k]) for part, each in found[-1].items()}
        whole, predicted = seconds["whole"], cost @ size
        towers = seconds["image tower"] + seconds["text tower"]
        print(f"\n{name}: an image {1e6 * cost[0]:.0f} us, a class {1e3 * cost[1]:.1f} ms")
        print(
            f"  predicted {predicted:.1f} s, measured {whole:.1f} s ({whole / predicted - 1:+.0%})"
        )
        print(f"  share of the towers: {towers / whole:.1%}")
        for part, each in seconds.items():
            print(f"    {part}: {each:.1f} s, {each / whole:.1%}")


if __name__ == "__main__":
    main()
