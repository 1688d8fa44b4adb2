"""Expands users' names of shards to addresses.

In: paths, folders, globs, brace patterns, remote addresses, `@FILE` lists. Out: one address a
shard, in order, each once. Only remote folders and globs need a listing.
"""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit, urlunsplit

# Maps an address pattern to the matching addresses and their bytes (0: unknown).
Listing = Callable[[str], dict[str, int]]

# A user, mostly with a password; Azure's `abfs://container@account` has none.
_USER = re.compile(r"(?<!abfs)(?<!abfss)://[^/?#\s]*@")
# It may be a signature.
_QUERY = re.compile(r"\?\S*")


def scheme(url: str) -> str:
    """Returns `http`, `s3`, `pipe`, ... of an address; "" for a path of this machine."""
    if url.startswith("pipe:"):
        return "pipe"
    match = re.match(r"([a-z][a-z0-9+.-]*)://", url)
    return match[1] if match and match[1] != "file" else ""


def shown(url: str) -> str:
    """Returns an address for messages and logs: without user, password and query."""
    return without_secrets(url) if scheme(url) else url


def without_secrets(text: str) -> str:
    """Returns a text, such as a command or a library's message, with its addresses as `shown`."""
    return _QUERY.sub("", _USER.sub("://", text))


def base_name(url: str) -> str:
    """Returns the file name of an address, without the query of a signed one."""
    path = urlsplit(url).path if scheme(url) in ("http", "https") else url
    return path.rstrip("/").rpartition("/")[2]


def sidecar(url: str) -> str:
    """Returns the address of img2dataset's statistics, `NAME_stats.json` beside the shard."""
    parts = urlsplit(url)
    if scheme(url) not in ("http", "https"):
        return re.sub(r"\.tar$", "", url) + "_stats.json"
    path = re.sub(r"\.tar$", "", parts.path) + "_stats.json"
    return urlunsplit(parts._replace(path=path))


def expand_braces(pattern: str) -> list[str]:
    """Expands `{00..41}`, `{41..00}` and `{a,b}`; several groups give every combination."""
    pieces: list[list[str]] = []
    for piece in re.split(r"(\{[^{}]*\})", pattern):
        span = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece)
        if span:
            width = max((len(end) for end in span.groups() if end.startswith("0")), default=0)
            first, last = map(int, span.groups())
            step = 1 if first <= last else -1
            numbers = range(first, last + step, step)
            pieces.append([str(number).zfill(width) for number in numbers])
        elif re.fullmatch(r"\{[^{}]*,[^{}]*\}", piece):
            pieces.append(piece[1:-1].split(","))
        else:
            pieces.append([piece])
    return ["".join(combination) for combination in itertools.product(*pieces)]


def expand_all(urls: Sequence[str], listing: Listing | None = None) -> list[str]:
    """Expands patterns, folders and lists to addresses; see `find_shards`."""
    return list(find_shards(urls, listing))


def find_shards(urls: Sequence[str], listing: Listing | None = None) -> dict[str, int]:
    """Expands patterns, folders and lists to local files and to addresses.

    Args:
        urls: brace patterns (`{00000..00041}`), globs, folders, paths, addresses, `@FILE` with one
            of these a line (empty lines and those that begin with # are skipped).
        listing: lists remote globs and folders; None: they raise.

    Returns:
        Bytes of each shard if a listing has them, else 0; in order, each shard once.

    Raises:
        ValueError: no names are given, or a name matches nothing.
    """
    sizes: dict[str, int] = {}
    missing: list[str] = []
    for url in _lines([urls] if isinstance(urls, str) else urls):
        for pattern in expand_braces(url):
            shards = _expand_one(pattern, listing)
            if not shards:
                missing.append(pattern)
            for shard, num_bytes in shards.items():
                sizes.setdefault(shard, num_bytes)
    if missing:
        names = ", ".join(f"'{shown(name)}'" for name in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"no shard found for {names}{more}; check the path, or the range in braces"
        )
    if not sizes:
        raise ValueError("no shards given; name tar files, a folder, or a pattern of them")
    return sizes


def _lines(urls: Sequence[str]) -> Iterator[str]:
    """Yields the names, with `@FILE` lists replaced by their lines."""
    for url in urls:
        if not url.startswith("@"):
            yield url
            continue
        try:
            with open(url[1:], encoding="utf-8") as file:
                lines = [line.strip() for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"the list of shards '{url[1:]}' cannot be read ({error}); @FILE names a text "
                "file with one address a line"
            ) from error
        yield from (line for line in lines if line and not line.startswith("#"))


def _expand_one(pattern: str, listing: Listing | None) -> dict[str, int]:
    """Returns the files of a folder, glob, path or address without braces."""
    kind = scheme(pattern)
    if kind:
        return _expand_remote(pattern, kind, listing)
    pattern = pattern.removeprefix("file://")
    if os.path.isdir(pattern):
        return dict.fromkeys(sorted(glob.glob(os.path.join(glob.escape(pattern), "*.tar"))), 0)
    if os.path.isfile(pattern):
        return {pattern: 0}
    return dict.fromkeys(sorted(path for path in glob.glob(pattern) if os.path.isfile(path)), 0)


def _expand_remote(url: str, kind: str, listing: Listing | None) -> dict[str, int]:
    if kind == "pipe":
        return {url: 0}
    # A question mark begins the query of an http address; a bucket's glob may hold one.
    is_http = kind in ("http", "https")
    path = urlsplit(url).path if is_http else url
    is_glob = any(mark in path for mark in ("*" if is_http else "*?["))
    if not is_glob and path.endswith(".tar"):
        return {url: 0}
    if listing is None:
        raise ValueError(
            f"'{shown(url)}' is not on this machine; name each of its shards, ending in .tar"
        )
    return listing(url if is_glob else url.rstrip("/") + "/*.tar")
