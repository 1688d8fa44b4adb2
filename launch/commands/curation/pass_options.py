"""The options of every pass over the shards of a pool, and what they say of each source."""

import argparse
import re
from collections.abc import Sequence

from ...run.provenance import num_cores

KEY_FIELD = "key"


def add_pass_options(made: argparse.ArgumentParser) -> None:
    """Adds `--key_field`, `--workers` and `--allow_pipe`."""
    made.add_argument(
        "--key_field",
        action="append",
        default=[],
        metavar="[SOURCE=]NAME",
        help="JSON field that identifies a sample, as data.key_field (key)",
    )
    made.add_argument("--workers", type=int, default=num_cores(), help="processes (one a core)")
    made.add_argument(
        "--allow_pipe",
        action="store_true",
        help="run the commands of pipe: addresses, which you trust",
    )


def by_source(words: Sequence[str], sources: Sequence[str], option: str) -> dict[str, list[str]]:
    """Returns each source's fields: those of `SOURCE=FIELD`, or else of all the plain `FIELD`s."""
    common: list[str] = []
    own: dict[str, list[str]] = {}
    for word in words:
        named = re.fullmatch(r"([\w.-]+)=(.+)", word)
        if named and named[1] not in sources:
            raise ValueError(
                f"{option} {word}: the manifest has no source '{named[1]}'; it has "
                f"{', '.join(sources)}"
            )
        (own.setdefault(named[1], []) if named else common).append(named[2] if named else word)
    return {source: own.get(source, common) for source in sources}


def key_fields_of(words: Sequence[str], sources: Sequence[str]) -> dict[str, str]:
    """Returns the key field of each source, from the words of `--key_field`."""
    given = by_source(words, sources, "--key_field")
    if several := [name for name, fields in given.items() if len(fields) > 1]:
        raise ValueError(f"--key_field: the source '{several[0]}' has two; give one")
    return {name: (fields or [KEY_FIELD])[0] for name, fields in given.items()}
