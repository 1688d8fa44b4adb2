"""`counterpoint card`: one HTML page about a pool, and about what a curation has left out."""

from pathlib import Path

from ...arguments import Arguments


def main(argv: list[str]) -> int:
    """Writes the page and prints its path."""
    parser = Arguments(
        prog="counterpoint card",
        description="Writes one HTML page, in need of no other file, about a pool: words, lengths, "
        "sizes, copies, samples, and what the filters of a curation have left out.",
    )
    parser.add_argument("table", type=Path, metavar="TABLE", help="what counterpoint score wrote")
    parser.add_argument(
        "--curation", type=Path, metavar="OUT", help="folder that counterpoint curate wrote"
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        action="append",
        metavar="FILE",
        help="where the images are; may be repeated, as for the table",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page to write")
    options = parser.parse_args(argv)
    if options.out.is_dir():
        raise ValueError(f"--out {options.out} is a folder; name a file, such as card.html")
    from ....data.curate.table import Table
    from ....data.files import write_whole
    from ....data.shards.manifest import Manifest
    from ...reporting.data_card import render_card

    manifest = Manifest.load(options.manifest) if options.manifest else None
    text = render_card(Table(options.table), options.curation, manifest)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.out, text)
    print(f"card: {options.out}")
    return 0
