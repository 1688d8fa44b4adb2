"""`counterpoint score MANIFEST... --out TABLE`: one row a sample, one file a shard.

In: the manifests of a pool. Out: the score table that `counterpoint curate` reads. A file is whole
or absent: start the command again to go on, or several times, on any machine that sees the folder,
to share the work.
"""

import multiprocessing
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from ...arguments import Arguments
from ...experiments.work_claims import claimed
from ..progress import counter
from .pass_options import add_pass_options, by_source, key_fields_of

if TYPE_CHECKING:
    from ....data.curate.score import Scores

CAPTION = "txt"


def main(argv: list[str]) -> int:
    """Writes what is missing of a table; returns 0, or 1 when others still work on parts."""
    options = parser().parse_args(argv)
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers}: give 1 or more")
    if not set(options.field).isdisjoint(options.number):
        raise ValueError("a column is of texts (--field) or of numbers (--number), not both")
    from ....data.curate.score import Scores, ScoreSettings
    from ....data.shards.manifest import Manifest
    from ....data.shards.transport import Transport

    manifest = Manifest.load(options.manifests)
    captions = by_source(options.caption, manifest.sources, "--caption")
    settings = ScoreSettings(
        {name: tuple(fields or [CAPTION]) for name, fields in captions.items()},
        key_fields_of(options.key_field, manifest.sources),
        dict.fromkeys(options.field, "text") | dict.fromkeys(options.number, "number"),
        pixels=not options.no_pixels,
    )
    scores = Scores(options.out, manifest, settings, Transport(allow_pipe=options.allow_pipe))
    scores.open()
    if note := scores.unseen_fields():
        print(note, file=sys.stderr, flush=True)
    write_all(scores, options.workers)
    return report(scores)


def parser() -> Arguments:
    """Returns the parser."""
    made = Arguments(
        prog="counterpoint score",
        description="Writes the score table of a pool: one row a sample, one file a shard. Start "
        "it again to go on where it stopped, or several times, on any machine that sees the "
        "folder, to share the work.",
    )
    made.add_argument("manifests", type=Path, nargs="+", metavar="MANIFEST", help="data index's")
    made.add_argument("--out", required=True, type=Path, help="folder of the table")
    made.add_argument(
        "--caption",
        action="append",
        default=[],
        metavar="[SOURCE=]FIELD",
        help="where captions are, as in data.caption: an extension, or json:NAME; may be repeated, "
        "the first that has text is taken (txt)",
    )
    made.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="FIELD",
        help="a further column of texts: json:NAME or an extension; may be repeated",
    )
    made.add_argument(
        "--number", action="append", default=[], metavar="FIELD", help="one of numbers, likewise"
    )
    made.add_argument(
        "--no-pixels",
        action="store_true",
        help="decode no image: no perceptual hash, and damage inside of images is not found",
    )
    add_pass_options(made)
    return made


def write_all(scores: "Scores", workers: int) -> None:
    """Writes the missing shards that no other process works on."""
    counts = scores.manifest.counts
    missing = scores.missing()
    done, total = int(counts.sum() - counts[missing].sum()), int(counts.sum())
    with counter("scoring") as moved:
        for shard in written(scores, missing, workers):
            done += int(counts[shard])
            moved(done, total)


def written(scores: "Scores", shards: Sequence[int], workers: int) -> Iterator[int]:
    """Yields each shard once it is written, or is another's.

    Raises:
        ValueError: some cannot be opened, and all others are written; or a worker was killed.
    """
    from ....data.curate.engine import WORKER_KILLED
    from ....data.curate.score import shard_names

    failed: list[str] = []
    workers = min(workers, len(shards))
    if workers > 1:
        context = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(workers, context, _start, (scores, shard_names(scores.manifest)))
        try:
            for future in as_completed([pool.submit(_write, shard) for shard in shards]):
                shard, error = future.result()
                failed += [error] * bool(error)
                yield shard
        except BrokenExecutor as error:
            raise ValueError(WORKER_KILLED.format(workers)) from error
        finally:
            pool.shutdown(cancel_futures=True)
    elif shards:
        _start(scores, shard_names(scores.manifest))
        for shard, error in map(_write, shards):
            failed += [error] * bool(error)
            yield shard
    if failed:
        raise ValueError(f"{len(failed)} of {len(shards)} shards are not scored: {failed[0]}")


def report(scores: "Scores") -> int:
    """Prints what is there; returns 1 while shards are missing."""
    missing = scores.missing()
    if missing:
        print(
            f"{scores.folder}: shards not done: {len(missing)}; others work on them (if none "
            f"does, because it was killed: remove {scores.folder}/*/*.claim, and start again)"
        )
        return 1
    errors = scores.errors()
    text = ", ".join(f"{count:,} {cause}" for cause, count in errors.most_common())
    text = f", {errors.total():,} cannot be used ({text})" if errors else ""
    print(f"{scores.folder}: complete, {scores.manifest.num_samples:,} samples{text}")
    if empty := scores.empty_fields():
        print(f"{scores.folder}: no sample has {', '.join(empty)}")
    return 0


# What a process works with: a manifest is too large to come with every task.
_work: "tuple[Scores, list[str]] | None" = None


def _start(scores: "Scores", names: list[str]) -> None:
    import torch

    global _work
    _work = scores, names
    torch.set_num_threads(1)
    # Problems of single images are in the table.
    warnings.filterwarnings("ignore", module="PIL")


def _write(shard: int) -> tuple[int, str]:
    """Writes a shard unless another process does; returns it, and why it could not."""
    assert _work is not None
    scores, names = _work
    path = scores.path(shard)
    with claimed(path.with_suffix(".claim")) as ours:
        if ours and not path.exists():
            try:
                scores.write(shard, names[shard])
            except ValueError as error:
                return shard, str(error)
    return shard, ""
