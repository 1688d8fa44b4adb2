"""The samples of one tar file: which members belong together and where their bytes lie.

In: a local tar in WebDataset layout (`KEY.jpg`, `KEY.txt`, ... next to one another). Out: a
`MemberIndex`, made by walking the headers once and kept beside the tar (`NAME.tar.index`), so that
any sample is one read away.
"""

import contextlib
import os
import re
import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VERSION = 1
BLOCK = 512
# A header that describes another header (long names, pax records) is small in any honest tar.
MAX_EXTENSION_BYTES = 1 << 20
# WebDataset's rule: the key ends at the first dot of the base name, the rest is the extension.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


class TarDamage(Exception):
    """The tar ends in the middle of a member, or a header is not one."""


@dataclass(frozen=True)
class MemberIndex:
    """Samples of one tar in file order.

    Attributes:
        firsts: First member of each sample, and the number of members, int64 [samples + 1].
        offsets: Position of each member's bytes in the tar, int64 [members].
        sizes: Number of bytes of each member, int64 [members].
        kinds: Index into `extensions` of each member, int64 [members].
        extensions: Lower-case extensions without the leading dot.
        keys: Keys of the samples.
        damaged: What is wrong with the part that could not be walked; "" for a whole tar.
    """

    firsts: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    kinds: np.ndarray
    extensions: list[str]
    keys: list[str]
    damaged: str

    def __len__(self) -> int:
        return len(self.keys)


def open_index(path: str, descriptor: int) -> MemberIndex:
    """Returns the index of an open tar: the one kept beside it if it fits, else a new one.

    Args:
        path: The tar, whose folder receives the index when it can be written.
        descriptor: The tar opened for reading.
    """
    status = os.fstat(descriptor)
    stamp = (VERSION, status.st_size, status.st_mtime_ns)
    beside = Path(f"{path}.index")
    index = _load(beside, stamp)
    if index is None:
        index = build_index(descriptor, status.st_size)
        _save(index, beside, stamp)
    return index


def build_index(descriptor: int, num_bytes: int) -> MemberIndex:
    """Walks all headers; what precedes a damaged place is kept, except a sample cut by it."""
    firsts, offsets, sizes, kinds = array("q"), array("q"), array("q"), array("q")
    extensions: dict[str, int] = {}
    keys: list[str] = []
    present: set[str] = set()
    damaged = ""
    try:
        for name, offset, size in walk_members(descriptor, num_bytes):
            split = split_name(name)
            if split is None:
                continue
            key, extension = split
            # A second member of the same kind cannot be in the same sample.
            if not keys or key != keys[-1] or extension in present:
                firsts.append(len(offsets))
                keys.append(key)
                present = set()
            present.add(extension)
            offsets.append(offset)
            sizes.append(size)
            kinds.append(extensions.setdefault(extension, len(extensions)))
    except TarDamage as damage:
        damaged = str(damage)
        # The sample before the damage may have lost members: it is not read as if it were whole.
        if keys:
            keys.pop()
            del offsets[firsts[-1] :], sizes[firsts[-1] :], kinds[firsts[-1] :]
            firsts.pop()
    firsts.append(len(offsets))
    return MemberIndex(
        firsts=np.frombuffer(firsts, dtype=np.int64),
        offsets=np.frombuffer(offsets, dtype=np.int64),
        sizes=np.frombuffer(sizes, dtype=np.int64),
        kinds=np.frombuffer(kinds, dtype=np.int64),
        extensions=list(extensions),
        keys=keys,
        damaged=damaged,
    )


def split_name(name: str) -> tuple[str, str] | None:
    """Splits a member name into key and lower-case extension; None for names WebDataset skips."""
    match = _NAME.fullmatch(name)
    if match is None or ("/" not in name and name.startswith("__") and name.endswith("__")):
        return None
    return match[1], match[2].lower()


def walk_members(descriptor: int, num_bytes: int) -> Iterator[tuple[str, int, int]]:
    """Yields (name, offset, size) of every regular file in a tar (v7, ustar, GNU, pax).

    Links, folders, devices and sparse files are passed over. The headers are parsed here because
    the standard library's tarfile needs ten times as long.

    Raises:
        TarDamage: After the last member before the damaged place.
    """
    position = 0
    long_name: str | None = None
    pax: dict[str, str] = {}
    shared_pax: dict[str, str] = {}
    while position < num_bytes:
        header = os.pread(descriptor, BLOCK, position)
        if not any(header) and len(header) == BLOCK:
            return
        size = _checked_size(header, position)
        kind = header[156:157]
        data = position + BLOCK
        if kind in b"123456":
            # Some writers give links a size, yet no bytes follow them.
            position, long_name, pax = data, None, {}
            continue
        if kind == b"S":
            data = _skip_sparse_map(descriptor, header, data)
        records = shared_pax | pax
        if kind not in b"xgLK" and records.get("size", "").isdecimal():
            size = int(records["size"])
        if data + size > num_bytes:
            raise TarDamage(f"it ends inside the member whose header is at byte {position}")
        position = data + -(-size // BLOCK) * BLOCK
        if kind in b"xgLK":
            if size > MAX_EXTENSION_BYTES:
                raise TarDamage(f"the header at byte {data - BLOCK} extends over {size} bytes")
            content = os.pread(descriptor, size, data)
            if kind == b"L":
                long_name = _text(content)
            elif kind == b"x":
                pax = _pax_records(content)
            elif kind == b"g":
                shared_pax |= _pax_records(content)
            continue
        name = records.get("path") or long_name or _short_name(header)
        sparse = kind == b"S" or any(record.startswith("GNU.sparse.") for record in records)
        long_name, pax = None, {}
        if kind in (b"0", b"\0", b"7") and not sparse and not name.endswith("/"):
            yield name, data, size


def _checked_size(header: bytes, position: int) -> int:
    """Returns the size field of a header whose checksum is right."""
    if len(header) < BLOCK:
        raise TarDamage(f"it ends inside the header at byte {position}")
    try:
        stored = int(header[148:156].strip(b" \0") or b"0", 8)
        if stored != sum(header) - sum(header[148:156]) + 8 * 32:
            raise ValueError("checksum")
        if header[124] & 0x80:
            size = int.from_bytes(header[125:136], "big")
        else:
            size = int(header[124:136].strip(b" \0") or b"0", 8)
        if size < 0:
            raise ValueError("size")
    except ValueError:
        raise TarDamage(f"there is no tar header at byte {position}") from None
    return size


def _skip_sparse_map(descriptor: int, header: bytes, data: int) -> int:
    """Returns where an old GNU sparse member's bytes begin: after the blocks of its map."""
    more = header[482]
    while more:
        block = os.pread(descriptor, BLOCK, data)
        if len(block) < BLOCK:
            raise TarDamage(f"it ends inside the map at byte {data}")
        more = block[504]
        data += BLOCK
    return data


def _short_name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax_records(content: bytes) -> dict[str, str]:
    """Parses records of the form `LENGTH KEY=VALUE\\n`; what does not parse ends the list."""
    records: dict[str, str] = {}
    while match := re.match(rb"(\d{1,7}) ([^=]+)=", content):
        length = int(match[1])
        if length <= match.end() or length > len(content):
            break
        value = content[match.end() : length - 1]
        records[match[2].decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return records


def _save(index: MemberIndex, beside: Path, stamp: tuple[int, int, int]) -> None:
    """Writes the index beside the tar, or leaves it when the folder cannot be written."""
    keys = [key.encode("utf-8", "surrogateescape") for key in index.keys]
    texts = {
        "keys": b"\0".join(keys),
        "extensions": "\0".join(index.extensions).encode("utf-8", "surrogateescape"),
        "damaged": index.damaged.encode(),
    }
    columns = {name: np.frombuffer(text, dtype=np.uint8) for name, text in texts.items()}
    temporary = beside.with_name(f".{beside.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                stamp=np.array(stamp, dtype=np.int64),
                firsts=index.firsts,
                offsets=index.offsets,
                sizes=index.sizes,
                kinds=index.kinds,
                **columns,
            )
        os.replace(temporary, beside)
    except OSError:
        # A read-only or full disk costs time at the next opening, nothing else.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _load(beside: Path, stamp: tuple[int, int, int]) -> MemberIndex | None:
    """Reads an index kept beside a tar; None when there is none that fits the tar."""
    try:
        with np.load(beside, allow_pickle=False) as stored:
            if tuple(stored["stamp"].tolist()) != stamp:
                return None
            columns = {name: stored[name] for name in ("firsts", "offsets", "sizes", "kinds")}
            texts = {
                name: stored[name].tobytes().decode("utf-8", "surrogateescape")
                for name in ("keys", "extensions", "damaged")
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    keys = texts["keys"].split("\0") if len(columns["firsts"]) > 1 else []
    extensions = texts["extensions"].split("\0")
    index = MemberIndex(**columns, extensions=extensions, keys=keys, damaged=texts["damaged"])
    return index if len(index.firsts) == len(keys) + 1 else None
