"""The command `counterpoint data`: build a corpus of emoji or icons, index shards to a manifest."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import Arguments
from ..run.provenance import num_cores
from .progress import counter, track

if TYPE_CHECKING:
    from ...data.shards.manifest import Manifest
    from ...data.shards.transport import Transport

VALIDATION = "val.parquet"


def main(argv: list[str]) -> int:
    """Runs one sub-command; returns the exit status."""
    arguments = parser().parse_args(argv)
    return arguments.run(arguments)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the sub-commands."""
    top = Arguments(prog="counterpoint data", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    emoji = commands.add_parser(
        "emoji",
        help="build the emoji shards: 3,944 names in two drawing styles",
        description="Builds WebDataset shards of emoji images and their names, with a held-out "
        "split of skin-tone combinations; in OUT/negatives the same pairs with hard negatives. "
        "Does nothing when OUT is complete.",
    )
    emoji.add_argument("out", metavar="OUT", help="folder for the shards and manifests")
    emoji.add_argument("--num-held-out", type=int, default=400, help="held-out names (%(default)s)")
    emoji.add_argument("--seed", type=int, default=0, help="decides which names (%(default)s)")
    emoji.add_argument("--limit", type=int, default=0, help="about so many names only; 0: all")
    emoji.add_argument("--workers", type=int, default=num_cores(), help="processes (%(default)s)")
    emoji.set_defaults(run=run_emoji)

    icons = commands.add_parser(
        "icons",
        help="build the icon shards: 142,000 names in 25 sets of the npm registry",
        description="Builds WebDataset shards of icons and their names, one source a set, as dirty "
        "as the sets are, with splits for validation, for known concepts in known and in new "
        "styles, and for unseen concepts. Packages are fetched with npm once and kept. Does "
        "nothing when OUT is complete.",
    )
    icons.add_argument("out", metavar="OUT", help="folder for the shards and manifests")
    icons.add_argument("--sets", metavar="A,B,...", help="these sets only (all)")
    icons.add_argument(
        "--held-out-sets", metavar="A,B,...", help="sets kept away from training (three)"
    )
    icons.add_argument(
        "--min-sets", type=int, default=5, help="sets that show a class in training (%(default)s)"
    )
    icons.add_argument(
        "--num-held-out",
        type=int,
        default=500,
        help="held-out concepts, and as many to validate on (%(default)s)",
    )
    icons.add_argument(
        "--seed", type=int, default=0, help="decides concepts, colours, order (%(default)s)"
    )
    icons.add_argument("--limit", type=int, default=0, help="so many concepts only; 0: all")
    icons.add_argument("--cache", metavar="FOLDER", help="packages (~/.cache/counterpoint/icons)")
    icons.add_argument("--workers", type=int, default=num_cores(), help="processes (%(default)s)")
    icons.set_defaults(run=run_icons)

    index = commands.add_parser(
        "index",
        help="write the manifest of a set of shards",
        description="Counts the samples of shards and writes a manifest. Shards may be given as "
        "paths, addresses (http, s3, gs, hf, ...), folders, globs or brace patterns such as "
        "'shards/{00000..00041}.tar', or @FILE with one of these a line. NAME=URLS puts them into "
        "the source NAME.",
    )
    index.add_argument(
        "urls", metavar="[NAME=]URLS", nargs="+", help="shards, folders, patterns, lists"
    )
    index.add_argument("--out", required=True, help="the manifest to write, a .parquet file")
    index.add_argument(
        "--source", default="default", help="source of URLS without a NAME (%(default)s)"
    )
    index.add_argument(
        "--workers", type=int, default=8, help="shards counted at a time (%(default)s)"
    )
    index.add_argument(
        "--caption",
        metavar="FIELD",
        action="append",
        help="where captions are: an extension, or json:NAME; may be repeated (txt)",
    )
    index.add_argument(
        "--texts", action="store_true", help="shards of texts alone, for a further stream of a run"
    )
    index.add_argument(
        "--allow_pipe",
        action="store_true",
        help="run the commands of pipe: addresses, which you trust",
    )
    index.add_argument("--checksum", action="store_true", help="also store SHA-256 of each shard")
    index.add_argument(
        "--holdout",
        type=int,
        metavar="PAIRS",
        help="keep whole shards with so many pairs away from training, in val.parquet beside OUT",
    )
    index.set_defaults(run=run_index)
    return top


def run_emoji(arguments: argparse.Namespace) -> int:
    """Builds the emoji corpus and its hard negatives, and prints what is in them."""
    from ...data.corpora.emoji.corpus import Settings, build_emoji
    from ...data.corpora.emoji.negatives import build_negatives

    settings = Settings(arguments.num_held_out, arguments.seed, arguments.limit)
    summary = build_emoji(arguments.out, settings, arguments.workers, track())
    pairs = summary["pairs"]
    state = "built" if summary["built"] else "complete already, nothing to do"
    print(
        f"{arguments.out}: {state}; {summary['names']} names, {pairs['train']} pairs to train on, "
        f"{pairs['heldout']} held out"
    )
    negatives = build_negatives(Path(arguments.out), arguments.seed)
    state = "built" if negatives["built"] else "complete already"
    print(
        f"{arguments.out}/negatives: {state}; {negatives['with_negative']} of "
        f"{negatives['pairs']} pairs with a hard negative"
    )
    return 0


def run_icons(arguments: argparse.Namespace) -> int:
    """Builds the icon corpus and prints what is in it."""
    from ...data.corpora.icons.corpus import Settings, build_icons

    given = {
        name: tuple(filter(None, value.split(",")))
        for name, value in (
            ("sets", arguments.sets),
            ("held_out_sets", arguments.held_out_sets),
        )
        if value is not None
    }
    settings = Settings(
        min_sets=arguments.min_sets,
        num_held_out=arguments.num_held_out,
        seed=arguments.seed,
        limit=arguments.limit,
        **given,
    )
    cache = Path(arguments.cache) if arguments.cache else None
    summary = build_icons(arguments.out, settings, arguments.workers, track(), cache)
    state = "built" if summary["built"] else "complete already, nothing to do"
    pairs = summary["pairs"]
    print(
        f"{arguments.out}: {state}; {sum(pairs.values())} pairs of {len(summary['sets'])} sets, "
        f"{summary['concepts']} concepts, {summary['classes']} classes"
    )
    splits = {"train": "to train on", "val": "validation", "indist": "known styles"}
    splits |= {"shift": "new styles", "unseen": "unseen concepts"}
    print(", ".join(f"{text}: {pairs[split]} pairs" for split, text in splits.items()))
    if undrawable := sum(left["undrawable"] for left in summary["left_out"].values()):
        print(f"{undrawable} names left out, whose drawing cannot be drawn")
    return 0


def run_index(arguments: argparse.Namespace) -> int:
    """Writes a manifest, or one to train on and one to validate on; prints what is in them."""
    if (out := Path(arguments.out)).suffix in (".csv", ".json", ".jsonl", ".txt", ".yaml"):
        raise ValueError(f"--out {out}: a manifest is parquet; write {out.with_suffix('.parquet')}")
    from ...data.shards.fields import IMAGE_EXTENSIONS
    from ...data.shards.index import index_shards
    from ...data.shards.transport import Transport

    transport = Transport(allow_pipe=arguments.allow_pipe)
    with counter("counting") as report:
        manifest = index_shards(
            by_source(arguments.urls, arguments.source),
            arguments.out,
            progress=report,
            caption=arguments.caption or ["txt"],
            transport=transport,
            num_workers=arguments.workers,
            images=() if arguments.texts else IMAGE_EXTENSIONS,
        )
    if arguments.checksum:
        from ...data.shards.checksum import store_checksums

        with counter("checksums") as report:
            store_checksums(arguments.out, report, transport)
    written = {Path(arguments.out): manifest}
    if arguments.holdout is not None:
        written = split(Path(arguments.out), arguments.holdout, transport)
    for path, part in written.items():
        print(f"{path}: {len(part.counts)} shards, {part.num_samples} samples")
    return 0


def split(out: Path, num_pairs: int, transport: "Transport") -> "dict[Path, Manifest]":
    """Divides the manifest `out` into itself and `val.parquet` beside it; returns both.

    Shards of other machines that are held out are fetched into the folder `val`.
    """
    from ...data.shards.holdout import fetch, hold_out
    from ...data.shards.manifest import Manifest

    held_out = out.with_name(VALIDATION)
    if out == held_out:
        raise ValueError(f"--out {out}: {VALIDATION} is what --holdout calls the other part")
    training, validation = hold_out(Manifest.load(out), num_pairs)
    validation = fetch(validation, out.parent, "val", transport)
    # In this order a crash leaves no shard in neither of the two.
    validation.save(held_out)
    training.save(out)
    return {out: training, held_out: validation}


def by_source(urls: Iterable[str], default: str) -> dict[str, list[str]]:
    """Sorts `NAME=URL` and plain addresses, which belong to the default, into their sources."""
    sources: dict[str, list[str]] = {}
    for url in urls:
        # A name has no slash or colon, so that neither paths nor signed addresses look like one.
        named = re.fullmatch(r"([\w.-]+)=(.+)", url)
        name, address = (named[1], named[2]) if named else (default, url)
        sources.setdefault(name, []).append(address)
    return sources
