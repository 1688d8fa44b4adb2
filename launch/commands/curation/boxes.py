"""`counterpoint boxes MANIFEST... --out FOLDER`: where text stands in each image, and what it says.

In: the manifests of a pool. Out: a sidecar for filters (`text_area`, `parrot_captions`) and for the
view that covers text. One shard is one file: start the command again to go on, or several times,
on any machine that sees the folder, to share the work.
"""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ...arguments import Arguments
from ...experiments.work_claims import claimed
from ..progress import counter
from .pass_options import add_pass_options, key_fields_of

if TYPE_CHECKING:
    from ....data.curate.text_boxes import TextBoxes

ABOUT = "boxes.json"


def main(argv: list[str]) -> int:
    """Writes what is missing of a sidecar; returns 0, or 1 when others still work on parts."""
    options = parser().parse_args(argv)
    if options.workers < 1 or options.side < 32 or not 0 <= options.min_confidence <= 1:
        raise ValueError(
            f"--workers {options.workers}, --side {options.side}, --min_confidence "
            f"{options.min_confidence}: give 1 or more, 32 or more, and 0 to 1"
        )
    from ....data.curate.text_boxes import TextBoxes, load_spotter
    from ....data.shards.manifest import Manifest
    from ....data.shards.transport import Transport
    from ....data.sidecar import check_file_names

    load_spotter(options.side, options.min_confidence)  # so that what is missing is said at once
    manifest = Manifest.load(options.manifests)
    check_file_names(manifest)
    key_fields = key_fields_of(options.key_field, manifest.sources)
    transport = Transport(allow_pipe=options.allow_pipe)
    boxes = TextBoxes(
        options.out, manifest, key_fields, options.side, options.min_confidence, transport
    )
    _open(boxes)
    write_all(boxes, options.workers)
    missing = _missing(boxes)
    if missing:
        print(f"{options.out}: shards not done: {len(missing)}; others work on them")
        return 1
    print(f"{options.out}: complete, {manifest.num_samples:,} samples")
    return 0


def parser() -> Arguments:
    """Returns the parser."""
    made = Arguments(
        prog="counterpoint boxes",
        description="Reads the text in the images of a pool. Start it again to go on where it "
        "stopped, or several times, on any machine that sees the folder, to share the work.",
    )
    made.add_argument("manifests", type=Path, nargs="+", metavar="MANIFEST", help="data index's")
    made.add_argument("--out", required=True, type=Path, help="folder of the sidecar")
    made.add_argument(
        "--side", type=int, default=320, help="to which a smaller image is enlarged, pixels (320)"
    )
    made.add_argument("--min_confidence", type=float, default=0.5, help="of a text (0.5)")
    add_pass_options(made)
    return made


def write_all(boxes: "TextBoxes", workers: int) -> None:
    """Writes the missing shards that no other process works on."""
    from ....data.curate.engine import Processes, Serial

    counts, missing = boxes.manifest.counts, _missing(boxes)
    done, total = int(counts.sum() - counts[missing].sum()), int(counts.sum())
    workers = min(workers, len(missing))
    task = _Task(boxes)
    with (
        counter("reading") as moved,
        Processes(workers) if workers > 1 else nullcontext(Serial()) as engine,
    ):
        for shard, _ in zip(missing, engine.map(task, missing), strict=True):
            done += int(counts[shard])
            moved(done, total)


class _Task:
    """Writes a shard unless another process does."""

    def __init__(self, boxes: "TextBoxes"):
        self.boxes = boxes

    def __call__(self, shard: int) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        path = self.boxes.path(shard)
        with claimed(path.with_suffix(".claim")) as ours:
            if ours and not path.exists():
                self.boxes.write(shard)


def _open(boxes: "TextBoxes") -> None:
    """Begins the sidecar, or goes on with one of the same pool and settings."""

    from ....data.files import check_own, write_json

    path = boxes.folder / ABOUT
    check_own(boxes.folder, ABOUT)
    about = {
        "manifest": boxes.manifest.fingerprint,
        "key_fields": dict(boxes.key_fields),
        "side": boxes.side,
        "min_confidence": boxes.min_confidence,
    }
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if other := [name for name, value in about.items() if stored.get(name) != value]:
            raise ValueError(
                f"'{boxes.folder}' holds text boxes of other {', '.join(other)}; choose another "
                "--out, or remove the folder"
            )
    write_json(path, about)


def _missing(boxes: "TextBoxes") -> list[int]:
    """Shards that have samples and no file."""
    counts = boxes.manifest.counts.tolist()
    return [shard for shard, n in enumerate(counts) if n and not boxes.path(shard).exists()]
