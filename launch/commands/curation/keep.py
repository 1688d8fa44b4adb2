"""The command `counterpoint keep`: combine keep-lists, draw them, bring them elsewhere."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from ...arguments import Arguments
from ..progress import track
from .pass_options import add_pass_options, key_fields_of

Run = Callable[[argparse.Namespace], int]


def main(argv: list[str]) -> int:
    """Runs one sub-command; returns the exit status."""
    options = parser().parse_args(argv)
    if options.run is not run_repack:
        check_out(options)
    from ....data.files import folder_of_results

    with folder_of_results(options.out.parent):
        return options.run(options)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all sub-commands."""
    top = Arguments(prog="counterpoint keep", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Run, text: str, description: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=description)
        made.set_defaults(run=run)
        return made

    combine = add(
        "combine",
        run_combine,
        "union, intersection, difference or mixture of keep-lists",
        "Combines keep-lists of one pool by the keys of samples. Of a sample's weights, a union "
        "takes the largest, an intersection the smallest. In a mixture each list has its share of "
        "all draws: a sample's weight is the sum of share x weight / (the list's sum), times the "
        "samples of an epoch.",
    )
    how = combine.add_mutually_exclusive_group(required=True)
    for name, text in (
        ("union", "in any of the lists"),
        ("intersect", "in all of the lists"),
        ("minus", "in the first list and in none of the others"),
    ):
        how.add_argument(f"--{name}", nargs="+", type=Path, metavar="LIST", help=text)
    how.add_argument("--mix", nargs="+", metavar="LIST=SHARE", help="such as a.parquet=0.7 b=0.3")
    combine.add_argument(
        "--samples", type=int, help="of an epoch of a mixture (its different ones)"
    )

    located = add(
        "locate",
        run_locate,
        "a list for the same samples in other shards",
        "Writes a list of the same samples, by key, where they are in the shards of another score "
        "table.",
    )
    drawn = add(
        "random",
        run_random,
        "a random list",
        "Draws usable samples by a hash of key and seed: a smaller list is part of a larger one of "
        "the same seed, and re-sharding changes nothing.",
    )
    drawn.add_argument("--samples", type=int, required=True)
    drawn.add_argument("--seed", type=int, default=0)
    npy = add(
        "npy",
        run_npy,
        "a list in DataComp's format",
        "Writes DataComp's array (u8,u8, sorted), in which a sample is as often as its weight "
        "says.",
    )
    from_npy = add(
        "from_npy", run_from_npy, "a list of DataComp's format", "Reads DataComp's array."
    )
    from_npy.add_argument("subset", type=Path, metavar="SUBSET.npy")
    repack = add(
        "repack",
        run_repack,
        "new tars with the samples of a list",
        "Copies the samples of a list into new tars, OUT/SOURCE/00000.tar, and writes "
        "OUT/manifest.parquet. Start it again to go on where it stopped.",
    )
    repack.add_argument(
        "--manifest", type=Path, nargs="+", required=True, help="of the list's shards"
    )
    repack.add_argument("--samples_per_shard", type=int, default=10_000, help="(10000)")
    repack.add_argument(
        "--ignore_weights", action="store_true", help="copy each sample once, whatever its weight"
    )
    add_pass_options(repack)

    for command in (located, npy, repack):
        command.add_argument("list", type=Path, metavar="LIST")
    for command in (located, drawn, npy, from_npy):
        command.add_argument("--table", type=Path, required=True, help="of counterpoint score")
    for command in (npy, from_npy):
        command.add_argument("--field", default="json:uid", help="the uids' column (json:uid)")
    for command in (combine, located, drawn, npy, from_npy, repack):
        text = "folder of the tars" if command is repack else "the file to write"
        command.add_argument("--out", type=Path, required=True, help=text)
    return top


def check_out(options: argparse.Namespace) -> None:
    """Refuses to write over what is read, or over what is no list."""
    from ....data.curate.lists.algebra import Operation
    from ....data.curate.lists.keep_list import KeepList

    out, given = options.out, vars(options)
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file, such as {out / 'keep.parquet'}")
    if (options.run is run_npy) != (out.suffix == ".npy"):
        kind = "an array of DataComp's ends in .npy" if options.run is run_npy else "it is parquet"
        raise ValueError(f"--out {out}: {kind}; name another file")
    if not out.exists():
        return
    lists = [path for how in get_args(Operation) for path in given.get(how) or ()]
    lists += [*shares_of(given.get("mix") or ()), *filter(None, [given.get("list")])]
    for path in lists:
        if (path / "keep.parquet" if path.is_dir() else path).resolve() == out.resolve():
            raise ValueError(f"--out {out} is one of the lists that are read; name another file")
    if options.run is not run_npy:
        try:
            KeepList(out)
        except ValueError as error:
            raise ValueError(f"--out would write over another file: {error}") from None


def run_combine(options: argparse.Namespace) -> int:
    """Combines lists."""
    from ....data.curate.lists.algebra import Operation, combine, mix_lists

    if options.mix:
        kept = mix_lists(shares_of(options.mix), options.out, options.samples)
    elif options.samples is not None:
        raise ValueError("--samples is for a mixture (--mix)")
    else:
        operation = next(name for name in get_args(Operation) if getattr(options, name))
        paths = getattr(options, operation)
        if len(paths) < 2:
            raise ValueError(f"--{operation} {paths[0]}: name two lists or more")
        kept = combine(operation, paths, options.out)
    print(f"{options.out}: {kept:,} samples")
    return 0


def shares_of(words: Sequence[str]) -> dict[Path, float]:
    """Returns the shares of `LIST=SHARE` arguments.

    Raises:
        ValueError: one is not of that form, or a list comes twice.
    """
    shares: dict[Path, float] = {}
    for word in words:
        path, _, share = word.rpartition("=")
        try:
            number = float(share)
        except ValueError:
            path = ""
        if not path or Path(path) in shares:
            raise ValueError(f"--mix {word}: write LIST=SHARE for each list, such as a.parquet=0.7")
        shares[Path(path)] = number
    return shares


def run_locate(options: argparse.Namespace) -> int:
    """Brings a list to other shards."""
    from ....data.curate.lists.from_table import locate
    from ....data.curate.table import Table

    kept, total = locate(options.list, Table(options.table), options.out)
    missing = f"; {total - kept:,} are not in the table" if kept < total else ""
    print(f"{options.out}: {kept:,} of {total:,} samples{missing}")
    return 0


def run_random(options: argparse.Namespace) -> int:
    """Draws a list."""
    from ....data.curate.lists.from_table import draw
    from ....data.curate.table import Table

    kept = draw(Table(options.table), options.samples, options.seed, options.out)
    print(f"{options.out}: {kept:,} samples")
    return 0


def run_npy(options: argparse.Namespace) -> int:
    """Writes DataComp's format."""
    from ....data.curate.lists.datacomp import write_subset
    from ....data.curate.score import column_of
    from ....data.curate.table import Table

    column = column_of(options.field)
    entries = write_subset(options.list, Table(options.table), column, options.out)
    print(f"{options.out}: {entries:,} uids")
    return 0


def run_from_npy(options: argparse.Namespace) -> int:
    """Reads DataComp's format."""
    from ....data.curate.lists.datacomp import read_subset
    from ....data.curate.score import column_of
    from ....data.curate.table import Table

    column = column_of(options.field)
    table = Table(options.table)
    kept, found, total = read_subset(options.subset, table, column, options.out)
    missing = f"; not in the table: {total - found:,}" if found < total else ""
    print(f"{options.out}: {kept:,} samples, of {total:,} entries{missing}")
    return 0


def run_repack(options: argparse.Namespace) -> int:
    """Writes new tars."""
    from ....data.curate.engine import Processes, Serial
    from ....data.curate.lists.repack import Repack
    from ....data.shards.manifest import Manifest
    from ....data.shards.transport import Transport

    manifest = Manifest.load(options.manifest)
    repack = Repack(
        options.list,
        manifest,
        options.out,
        options.samples_per_shard,
        key_fields_of(options.key_field, manifest.sources),
        Transport(allow_pipe=options.allow_pipe),
    )
    repack.open(options.ignore_weights)
    if options.workers == 1:
        counts = repack.run(Serial(), track())
    else:
        with Processes(options.workers) as engine:
            counts = repack.run(engine, track())
    print(f"{options.out / 'manifest.parquet'}: {counts['successes']:,} samples")
    if counts["unreadable"]:
        print(f"{counts['unreadable']:,} samples could not be read and are left out")
    if counts["no_key"]:
        print(
            f"{counts['no_key']:,} samples have no key in their JSON: theirs are made of the "
            "shard's name, and are others now than in stores and tables of the old shards"
        )
    return 0
