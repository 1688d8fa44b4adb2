"""Index of one tar file: the members of each sample and the offsets of their bytes.

In: a local tar in WebDataset layout (`KEY.jpg`, `KEY.txt`, ... next to one another). Out: a
`MemberIndex`, built by walking the headers once and stored beside the tar (`NAME.tar.index`), so
that any sample is one read away.

Where WebDataset leaves it open, these rules hold:

- Adjacent members of one key are one sample. Where other samples lie between them, or where a kind
  of member repeats, another sample begins.
- Only regular files are members. Links (also to a file of the same tar), folders, devices and
  sparse files are skipped; a sample that needed one is counted as `no_image` or `no_caption`.
- At the first damage the tar ends: samples after it, and the one before it, which may have lost
  members, count as `shard_truncated`.
- A tar without an end mark is complete if its last sample has all kinds of members that the one
  before has; else it was cut off between two members.
"""

import contextlib
import json
import os
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import SampleError
from ..files import whole_file
from .tar import NoEndMark, TarDamage, walk_members

VERSION = 2
MAGIC = b"counterpoint members %d\n" % VERSION
# Far more than an image of the largest accepted size takes; read into memory at once.
MAX_SAMPLE_BYTES = 256 << 20
MAX_SAMPLE_MEMBERS = 4096


@dataclass(frozen=True)
class MemberIndex:
    """Samples of one tar in file order.

    Attributes:
        firsts: first member of each sample, and the number of members, int64 [samples + 1].
        offsets: position of each member's bytes in the tar, int64 [members].
        sizes: number of bytes of each member, int64 [members].
        kinds: index into `extensions` of each member, int64 [members].
        extensions: lower-case extensions without the leading dot.
        keys: keys of the samples.
        damaged: what ended the walk early; "" for a complete tar.
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

    def read(self, descriptor: int, ordinal: int) -> dict[str, bytes | str]:
        """Reads the members of one sample.

        Args:
            descriptor: the tar, opened for reading.
            ordinal: number of the sample in the tar.

        Returns:
            Member bytes by extension, and the sample's key under `__key__`.

        Raises:
            SampleError: `wrong_count` or `shard_truncated` (the tar has no such sample, or not all
                of its bytes), `too_large`.
        """
        if not 0 <= ordinal < len(self):
            if self.damaged:
                raise SampleError("shard_truncated", self.damaged)
            raise SampleError("wrong_count", f"it holds {len(self)} samples, not {ordinal}+1")
        first, last = self.firsts[ordinal : ordinal + 2].tolist()
        offsets, sizes = self.offsets[first:last].tolist(), self.sizes[first:last].tolist()
        if last - first > MAX_SAMPLE_MEMBERS or sum(sizes) > MAX_SAMPLE_BYTES:
            raise SampleError(
                "too_large",
                f"'{self.keys[ordinal][:100]}' has {last - first} members, {sum(sizes)} bytes",
            )
        contents = _read_parts(descriptor, offsets, sizes)
        kinds = self.kinds[first:last].tolist()
        sample: dict[str, bytes | str] = {}
        for kind, content in zip(kinds, contents, strict=True):
            sample[self.extensions[kind]] = content
        # Last, because a member may be called `a.__key__`.
        sample["__key__"] = self.keys[ordinal]
        return sample


def _read_parts(descriptor: int, offsets: list[int], sizes: list[int]) -> list[bytes]:
    """Reads neighbouring spans of a file, at once unless much lies between them."""
    start = offsets[0]
    length = offsets[-1] + sizes[-1] - start
    spans = [(start, length)]
    if length > MAX_SAMPLE_BYTES:
        spans = list(zip(offsets, sizes, strict=True))
    try:
        contents = [os.pread(descriptor, size, offset) for offset, size in spans]
    except OSError as error:
        raise SampleError("shard_truncated", str(error.strerror)) from error
    if sum(map(len, contents)) < sum(size for _, size in spans):
        raise SampleError("shard_truncated", "it became shorter while it was read")
    if len(contents) == len(sizes):
        return contents
    parts = zip(offsets, sizes, strict=True)
    return [contents[0][offset - start : offset - start + size] for offset, size in parts]


def open_index(path: str, descriptor: int) -> MemberIndex:
    """Returns the index of an open tar: the stored one if it fits, else a new one.

    Args:
        path: the tar; the index is written beside it if possible.
        descriptor: the tar opened for reading.
    """
    status = os.fstat(descriptor)
    stamp = [status.st_size, status.st_mtime_ns]
    beside = Path(f"{path}.index")
    index = _load(beside, stamp)
    if index is None:
        index = build_index(descriptor, status.st_size)
        _save(index, beside, stamp)
    return index


def build_index(descriptor: int, num_bytes: int) -> MemberIndex:
    """Walks all headers up to the first damage, and drops the sample cut by it."""
    firsts, offsets, sizes, kinds = array("q"), array("q"), array("q"), array("q")
    extensions: dict[str, int] = {}
    keys: list[str] = []
    present: set[str] = set()
    before: set[str] = set()
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
                before, present = present, set()
            present.add(extension)
            offsets.append(offset)
            sizes.append(size)
            kinds.append(extensions.setdefault(extension, len(extensions)))
    except NoEndMark as end:
        damaged = "" if keys and before <= present else str(end)
    except TarDamage as damage:
        damaged = str(damage)
    if damaged and keys:
        # The sample before the damage may have lost members: it must not be read as complete.
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
    top = name.partition("/")[0]
    # Notes about the shard, such as `__meta__/a.txt`.
    if top.startswith("__") and top.endswith("__") and (top == name or len(top) >= 4):
        return None
    # WebDataset's rule: the key ends at the first dot of the base name, the rest is the extension.
    # Its regular expression takes time with the square of a hostile name's length.
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    # The key of a base name that begins with a dot is the folder, if that has no dot.
    if not dot or not (stem or (slash and "." not in folder.rpartition("/")[2])):
        return None
    return f"{folder}{slash}{stem}", extension.lower()


def _save(index: MemberIndex, beside: Path, stamp: list[int]) -> None:
    """Writes the index beside the tar if the folder can be written.

    The file: a line with the version, the checksum of the rest, the length of the texts, the texts
    as JSON (which keeps any name), the four columns.
    """
    columns = [index.firsts, index.offsets, index.sizes, index.kinds]
    about = [stamp, list(map(len, columns)), index.extensions, index.keys, index.damaged]
    texts = json.dumps(about).encode()
    body = b"".join([len(texts).to_bytes(8, "little"), texts, *(c.tobytes() for c in columns)])
    # A read-only or full disk merely costs time at the next opening.
    with contextlib.suppress(OSError), whole_file(beside) as part:
        part.write_bytes(MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)


def _load(beside: Path, stamp: list[int]) -> MemberIndex | None:
    """Reads an index stored beside a tar; None without one that fits."""
    try:
        content = beside.read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + 4
    body = memoryview(content)[start:]
    checksum = int.from_bytes(content[len(MAGIC) : start], "little")
    if not content.startswith(MAGIC) or len(body) < 8 or zlib.crc32(body) != checksum:
        return None
    try:
        end = 8 + int.from_bytes(body[:8], "little")
        stored, lengths, extensions, keys, damaged = json.loads(bytes(body[8:end]))
        if stored != stamp:
            return None
        numbers = np.frombuffer(body[end:], dtype=np.int64)
        firsts, offsets, sizes, kinds = np.split(numbers, np.cumsum(lengths[:3]))
        index = MemberIndex(firsts, offsets, sizes, kinds, extensions, keys, damaged)
        return index if _fits(index, stamp[0]) else None
    # The file may come from anywhere, such as with a data set.
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return None


def _fits(index: MemberIndex, num_bytes: int) -> bool:
    """Whether an index can be that of a tar of this size."""
    firsts, offsets, sizes, kinds = index.firsts, index.offsets, index.sizes, index.kinds
    num_members = len(offsets)
    return (
        isinstance(index.keys, list)
        and isinstance(index.extensions, list)
        and len(firsts) == len(index.keys) + 1
        and len(sizes) == len(kinds) == num_members
        and firsts[0] == 0
        and firsts[-1] == num_members
        and bool((np.diff(firsts) > 0).all())
        and bool((offsets >= 0).all() and (sizes >= 0).all())
        and bool((offsets <= num_bytes).all() and (sizes <= num_bytes - offsets).all())
        and bool((np.diff(offsets) > 0).all())
        and bool((kinds >= 0).all() and (kinds < len(index.extensions)).all())
        and all(isinstance(text, str) for text in (*index.extensions, *index.keys, index.damaged))
    )
