"""The score pass against decoding alone, on emoji (PNG) and on photographs (JPEG).

Run:
    counterpoint data emoji emoji
    pip install --no-deps --target FOLDER scikit-image
    cd tests && export OMP_NUM_THREADS=1 PYTHONPATH=FOLDER
    ../.venv/bin/python -m benchmarks.score_pass ../emoji/train.parquet

Decoding is what a loader does before the first transform: the sample is read, its key and caption
are taken, its header is checked, all its pixels are decoded. Both take turns on the same samples,
shard by shard, in one process; the numbers are processor time, which other jobs on the machine
disturb less than the clock. Printed as Markdown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.photos import make_shards

from counterpoint.data.curate.score import Scores, ScoreSettings
from counterpoint.data.images.decode import EncodedImage
from counterpoint.data.shards.fields import find_image, sample_key
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.manifest import Manifest
from counterpoint.data.shards.reader import ShardReader
from counterpoint.data.text.captions import FirstFound

SHORT_SIDES = (256, 384, 512)


def decode(manifest: Manifest, shard: int) -> None:
    """Reads and decodes the samples of a shard, one by one."""
    reader, caption = ShardReader(manifest.urls), FirstFound()
    source = manifest.sources[manifest.source_ids[shard]]
    for index in range(int(manifest.counts[shard])):
        raw = reader.read(shard, index)
        sample_key(raw, source, "x.tar", "key")
        caption(raw, 0.0)
        EncodedImage.open(find_image(raw)).pixels()


def seconds(call: Callable[[], object]) -> float:
    """Returns the processor time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(name: str, manifest: Manifest, rounds: int) -> str:
    """Returns a row of the table: samples per second of both, and the ratio of their costs."""
    sources = manifest.sources
    settings = ScoreSettings(dict.fromkeys(sources, ("txt",)), dict.fromkeys(sources, "key"))
    fast = ScoreSettings(settings.captions, settings.key_fields, pixels=False)
    rates: dict[str, list[float]] = {"decode": [], "score": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        passes = {
            "decode": lambda shard: decode(manifest, shard),
            "score": lambda shard: Scores(Path(folder), manifest, settings).write(shard, "x.tar"),
            "without": lambda shard: Scores(Path(folder), manifest, fast).write(shard, "x.tar"),
        }
        for _ in range(rounds):
            for shard in range(len(manifest.counts)):
                for each, call in passes.items():
                    taken = seconds(lambda call=call, shard=shard: call(shard))
                    rates[each].append(taken / int(manifest.counts[shard]))
    ratios = [s / d for s, d in zip(rates["score"], rates["decode"], strict=True)]
    cells = [f"{1 / statistics.median(rates[each]):,.0f}" for each in passes]
    return f"| {name} | {' | '.join(cells)} | {statistics.median(ratios):.2f} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("emoji", help="manifest of the emoji pool")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "photos"))
    parser.add_argument("--samples", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| pool | decoding, samples/s | score pass | `--no-pixels` | score pass / decoding |")
    print("|---|---|---|---|---|")
    print(measure("emoji, PNG, 72 px", Manifest.load(arguments.emoji), arguments.rounds))
    for side in SHORT_SIDES:
        folder = arguments.folder / str(side)
        manifest = index_shards(
            make_shards(folder, side, arguments.samples), folder / "manifest.parquet"
        )
        print(measure(f"photographs, JPEG, {side} px", manifest, arguments.rounds))


if __name__ == "__main__":
    main()
