"""Reads checkpoints that are folders: of each tensor, the parts that ranks wrote.

In: `step-00000500.ckpt/`: `index.json` (which part of which tensor lies where, sizes and checksums
of files), `part-00003.safetensors` of each rank, `state.pt` with all that is not cut. Out: the
nested dictionary that the one-file format holds, with tensors that are read when they are used, any
range of them. No code in it is run: JSON, plain bytes, and a torch file read with `weights_only`.

The parts are in the layout of torch's distributed checkpoints in safetensors, so that
`torch.distributed.checkpoint` reads them as well (`HuggingFaceStorageReader`).
"""

import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX = "index.json"
STATE = "state.pt"
FORMAT = 1
BLOCK = 1 << 24  # bytes read at once
# Names of types in safetensors.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the files of several ranks.

    Attributes:
        folder: of the files.
        shape: of the whole tensor.
        dtype: of its elements.
        parts: of each part its file, its first byte there, the number of its first element in the
            flattened tensor, and how many elements it has.
    """

    folder: Path
    shape: torch.Size
    dtype: torch.dtype
    parts: list[tuple[str, int, int, int]]

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """The number of elements."""
        return self.shape.numel()

    def whole(self) -> Tensor:
        """Reads all of it."""
        return self.range(0, self.numel()).view(self.shape)

    def range(self, first: int, end: int) -> Tensor:
        """Reads elements of the flattened tensor, [end - first]."""
        result = torch.empty(end - first, dtype=self.dtype)
        size = self.dtype.itemsize
        raw = result.view(torch.uint8).numpy().data
        for name, at, start, count in self.parts:
            low, high = max(start, first), min(start + count, end)
            if low >= high:
                continue
            with open(self.folder / name, "rb", buffering=0) as file:
                file.seek(at + (low - start) * size)
                target = raw[(low - first) * size : (high - first) * size]
                while target:
                    if not (got := file.readinto(target)):
                        raise ValueError(f"{self.folder / name} is cut off")
                    target = target[got:]
        return result


def is_distributed(path: str | Path) -> bool:
    """Whether a path is such a checkpoint."""
    return Path(path, INDEX).is_file()


def read_distributed(folder: str | Path) -> dict[str, Any]:
    """Returns what a checkpoint holds; its tensors that are cut are `StoredTensor`s.

    Raises:
        Exception: of many types, if it cannot be read.
    """
    folder = Path(folder)
    index = _index(folder)
    content = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    for stored, keys in _stored(folder, index):
        place = content
        for key in keys[:-1]:
            place = place[key] if isinstance(place, list) else place.setdefault(key, {})
        place[keys[-1]] = stored
    return content


def whole(content: Any) -> Any:
    """Reads all tensors in nested dictionaries and lists that are not read yet."""
    if isinstance(content, StoredTensor):
        return content.whole()
    if isinstance(content, dict):
        return {key: whole(value) for key, value in content.items()}
    return [whole(value) for value in content] if type(content) is list else content


def damage_of_distributed(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None; reads every byte."""
    try:
        index = _index(folder)
        for stored, keys in _stored(folder, index):
            if not _covers(stored):
                return f"parts of {'.'.join(map(str, keys))} are missing"
        with zipfile.ZipFile(folder / STATE) as file:
            record = file.testzip()
        if record is not None:
            return f"bytes of {STATE}/{record} have changed"
        read_distributed(folder)
        with ThreadPoolExecutor(8) as pool:
            for name, reason in pool.map(
                lambda item: _damage_of_file(folder, *item), _files(index)
            ):
                if reason:
                    return f"{name} {reason}"
    except Exception as error:  # whatever a parser meets in damaged bytes
        return f"{type(error).__name__}: {error}"
    return None


def _index(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / INDEX).read_text())
    if index["format"] != FORMAT:
        raise ValueError(f"its format is {index['format']}, and this version reads {FORMAT}")
    return index


def _stored(folder: Path, index: dict[str, Any]) -> Iterator[tuple[StoredTensor, list[Any]]]:
    """Yields the tensors and the keys under which they lie."""
    names = [name for name, _ in _files(index)]
    for tensor in index["tensors"]:
        shape, dtype = torch.Size(tensor["shape"]), DTYPES[tensor["dtype"]]
        parts = [
            (names[number], int(at), int(first), int(count))
            for number, at, first, count in tensor["parts"]
        ]
        yield StoredTensor(folder, shape, dtype, parts), tensor["keys"]


def _files(index: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """Returns the files of ranks, which lie in the folder itself wherever an index points."""
    for name in index["files"]:
        if Path(name).name != name:
            raise ValueError(f"{name} is no file of the checkpoint")
    return list(index["files"].items())


def _covers(stored: StoredTensor) -> bool:
    """Whether the parts are the whole tensor, each element once."""
    end = 0
    for _, _, first, count in sorted(stored.parts, key=lambda part: part[2]):
        if first != end or count < 0:
            return False
        end += count
    return end == math.prod(stored.shape)


def _damage_of_file(folder: Path, name: str, wanted: dict[str, int]) -> tuple[str, str | None]:
    if (size := (folder / name).stat().st_size) != wanted["bytes"]:
        return name, f"has {size} bytes and not {wanted['bytes']}"
    checksum = 0
    block = memoryview(bytearray(BLOCK))
    with open(folder / name, "rb", buffering=0) as file:
        while got := file.readinto(block):
            checksum = zlib.crc32(block[:got], checksum)
    return name, None if checksum == wanted["crc32"] else "has other bytes than were written"
