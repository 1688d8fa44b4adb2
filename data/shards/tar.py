"""Walks the headers of a tar file.

In: an open tar in any of the usual formats (v7, ustar, GNU, pax). Out: name, offset and size of
every regular file up to the first damage. Nothing is ever written under a member's name: it is a
mere key, so `../../x.jpg` or `/etc/x.jpg` do no harm.
"""

import os
from collections.abc import Iterator

BLOCK = 512
# A header that describes another header (long names, pax records) is small in any honest tar.
MAX_EXTENSION_BYTES = 1 << 20
# What a file system accepts as a path; keys are held in memory.
MAX_NAME_BYTES = 4096
# An index takes some hundred bytes a member. An honest shard has at most some 100,000.
MAX_MEMBERS = 1 << 23
TAIL_BYTES = 1 << 16

_ZEROS = bytes(BLOCK)
_LINKS = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_EXTENSIONS = frozenset((b"x", b"X", b"g", b"L", b"K"))
_FILES = frozenset((b"0", b"\0", b"7"))


class TarDamage(Exception):
    """The tar ends inside a member, or a header is invalid."""


class NoEndMark(TarDamage):
    """The tar ends after a complete member, without the closing block of zeros.

    Some writers omit it; a tar cut between two members looks the same.
    """


def walk_members(descriptor: int, num_bytes: int) -> Iterator[tuple[str, int, int]]:
    """Yields (name, offset, size) of every regular file in a tar.

    Links, folders, devices and sparse files are skipped. The headers are parsed here because the
    standard library's tarfile takes ten times as long and reads some damage as the tar's end.

    Args:
        descriptor: the tar, opened for reading.
        num_bytes: its size.

    Raises:
        TarDamage: after the last member before the damage.
    """
    position = num_members = 0
    pending: dict[str, str] | None = None
    while position < num_bytes:
        header = os.pread(descriptor, BLOCK, position)
        if header == _ZEROS:
            if pending is not None:
                raise TarDamage(f"there is no tar header at byte {position}")
            _check_end(descriptor, position, num_bytes)
            return
        size = _checked_size(header, position)
        kind = header[156:157]
        data = position + BLOCK
        if kind in _EXTENSIONS:
            content = _extension(descriptor, data, size, num_bytes)
            # Of two records about the same member the first holds, as in tarfile.
            pending = _statements(kind, content, position) | (pending or {})
            position = data + _padded(size)
            continue
        if kind in _LINKS or (kind == b"\0" and _text(header[:100]).endswith("/")):
            # Some writers give these a size, yet no bytes follow them.
            position, pending = data, None
            continue
        if kind == b"S":
            data = _skip_sparse_map(descriptor, header, data)
        stated = pending or {}
        if "size" in stated:
            size = _stated_size(stated["size"], position)
        if data + size > num_bytes:
            raise TarDamage(f"it ends inside the member whose header is at byte {position}")
        if kind in _FILES and "sparse" not in stated:
            num_members += 1
            if num_members > MAX_MEMBERS:
                raise TarDamage(f"it has more than {MAX_MEMBERS} members")
            yield stated.get("path") or _short_name(header), data, size
        position, pending = data + _padded(size), None
    if pending is not None:
        raise TarDamage("it ends between a member's long name and the member")
    raise NoEndMark(f"it ends at byte {num_bytes} without an end mark")


def _check_end(descriptor: int, position: int, num_bytes: int) -> None:
    """Raises a TarDamage unless only zeros follow the end mark."""
    for offset in (position, max(position, num_bytes - TAIL_BYTES)):
        if any(os.pread(descriptor, TAIL_BYTES, offset)):
            raise TarDamage(
                f"more follows its end mark at byte {position} (tars joined end to end, or zeros "
                "in place of what was there)"
            )


def _checked_size(header: bytes, position: int) -> int:
    """Returns the size field of a header whose checksum is right."""
    if len(header) < BLOCK:
        raise TarDamage(f"it ends inside the header at byte {position}")
    try:
        stored = _number(header[148:156])
        total = sum(header) - sum(header[148:156]) + 8 * 32
        if stored != total:
            # Some old writers added up signed bytes.
            rest = header[:148] + header[156:]
            if stored != total - 256 * sum(byte > 127 for byte in rest):
                raise ValueError("checksum")
        return _number(header[124:136])
    except ValueError:
        raise TarDamage(f"there is no tar header at byte {position}") from None


def _number(field: bytes) -> int:
    """Reads a number field: octal digits, or binary after a byte 0x80."""
    digits = field.rstrip(b" \0")
    if not digits.isdigit():
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        digits = field.split(b"\0", 1)[0].strip() or b"0"
        if not digits.isdigit():
            raise ValueError("number")
    return int(digits, 8)


def _extension(descriptor: int, data: int, size: int, num_bytes: int) -> bytes:
    """Returns the content of a header that describes the next one."""
    if size > MAX_EXTENSION_BYTES:
        raise TarDamage(f"the header at byte {data - BLOCK} extends over {size} bytes")
    if data + size > num_bytes:
        raise TarDamage(f"it ends inside the header at byte {data - BLOCK}")
    return os.pread(descriptor, size, data)


def _statements(kind: bytes, content: bytes, position: int) -> dict[str, str]:
    """Returns the `path`, `size` and `sparse` that such a header sets for the next member."""
    if kind == b"K":
        return {}
    if content.startswith(b"\0"):
        raise TarDamage(f"zeros stand in place of what belongs to the header at byte {position}")
    stated = {"path": _text(content)} if kind == b"L" else _pax_records(content, position)
    if kind == b"g":
        if stated:
            raise TarDamage(f"the header at byte {position} gives all members one name or size")
        return {}
    if len(stated.get("path", "")) > MAX_NAME_BYTES:
        raise TarDamage(f"the header at byte {position} gives a name of over 4096 bytes")
    return stated


def _pax_records(content: bytes, position: int) -> dict[str, str]:
    """Parses records of the form `LENGTH KEY=VALUE\\n`; unused ones are skipped."""
    records: dict[str, str] = {}
    start = 0
    while start < len(content) and content[start]:
        space = content.find(b" ", start, start + 8)
        length = content[start : max(space, start)]
        end = start + int(length) if length.isdigit() else 0
        equals = content.find(b"=", space, end)
        if equals < 0 or end > len(content) or content[end - 1 : end] != b"\n":
            raise TarDamage(f"the pax header at byte {position} cannot be read")
        key, value = content[space + 1 : equals], content[equals + 1 : end - 1]
        if key in (b"path", b"size"):
            if b"\0" in value:
                raise TarDamage(f"the pax header at byte {position} cannot be read")
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse."):
            records["sparse"] = ""
        start = end
    return records


def _stated_size(text: str, position: int) -> int:
    """Returns the size in a pax header, which replaces the field."""
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise TarDamage(f"the member at byte {position} has the size '{text[:20]}'")
    return int(text)


def _skip_sparse_map(descriptor: int, header: bytes, data: int) -> int:
    """Returns the offset of an old GNU sparse member's bytes, after the blocks of its map."""
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


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
