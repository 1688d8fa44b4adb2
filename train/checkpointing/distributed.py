"""Writes a checkpoint as a folder, each rank its part of it, while training goes on.

In: Lightning's dictionary, in which a rank may hold a `Piece` of a tensor. Out: the folder that
`models/distributed_checkpoint.py` reads, whole or absent: ranks write and sync their files into a
hidden folder, the first one adds the index of all and gives it its name.
"""

import io
import json
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...data.files import beside, sync
from ...losses.distributed.collectives import world
from ...models.distributed_checkpoint import DTYPES, FORMAT, INDEX, STATE
from ..strategies.pieces import Piece
from .disk import disk_error, remove

# What is cut into parts; all else is small.
CUT = ("state_dict", "optimizer_states")
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Keys = tuple[Any, ...]


@dataclass(frozen=True)
class Part:
    """One rank's file: name, size, checksum, and what lies where in it.

    Attributes:
        places: of each piece the keys of its tensor, its first byte in the file, the number of its
            first element in the flattened tensor, and how many elements it has.
    """

    name: str
    size: int
    checksum: int
    places: list[tuple[Keys, int, int, int]]


class DistributedWriter:
    """Copies what this rank holds, and writes it in a thread; one checkpoint at a time.

    Every rank makes it, and calls it, in the same order.

    Args:
        on_whole: is called on the first rank, in the thread, for each checkpoint that is whole.
    """

    def __init__(self, on_whole: Callable[[Path], None]):
        self.on_whole = on_whole
        self.rank, self.world_size = world()
        # Of its own: collectives of a thread must not meet those of the training loop.
        self._group: Any = dist.new_group(backend="gloo") if self.world_size > 1 else None
        self._copies: dict[Keys, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None

    def begin(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Copies a checkpoint (collective), and begins to write it; the last one must have ended.

        Args:
            checkpoint: of this rank; it may be changed afterwards, and the tensors in it.
            path: of the checkpoint.
        """
        assert self._thread is None
        rest, cut = _split(checkpoint)
        layout = [(keys, *_kind(value)) for keys, value in cut.items()]
        owners = _owners(cut, self.world_size)
        pieces: list[tuple[Keys, Piece]] = []
        for keys, value in cut.items():
            piece = value if isinstance(value, Piece) else Piece(value, value.shape, 0)
            if piece.value.numel() and owners.get(keys, self.rank) == self.rank:
                pieces.append((keys, replace(piece, value=self._copied(keys, piece.value))))
        if any(copy.is_pinned() for copy in self._copies.values()):
            torch.cuda.synchronize()
        state = io.BytesIO()
        if self.rank == 0:
            torch.save(rest, state)
        folder = [beside(path) if self.rank == 0 else None]
        if self._group is not None:
            dist.broadcast_object_list(folder, src=0, group=self._group)
        self._failure = None
        arguments = folder[0], path, pieces, layout, state.getbuffer()
        self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> OSError | None:
        """Waits for the end of what was begun; returns why it could not be written, if so.

        On the first rank for any of them.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            self._thread = None
        return self._failure

    def _copied(self, keys: Keys, value: Tensor) -> Tensor:
        """Copies a tensor to memory of the host that is kept for the next checkpoint."""
        copy = self._copies.get(keys)
        if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._copies[keys] = copy
        return copy.copy_(value.detach(), non_blocking=True)

    def _write(
        self,
        folder: Path,
        path: Path,
        pieces: list[tuple[Keys, Piece]],
        layout: list[tuple[Keys, list[int], str]],
        state: memoryview,
    ) -> None:
        try:
            mine: Part | OSError = self._write_part(folder, pieces)
            parts = self._gathered(mine)
            if self.rank == 0:
                for part in parts:
                    if not isinstance(part, Part):
                        raise part
                self._finish(folder, path, layout, parts, state)
            elif isinstance(mine, OSError):
                self._failure = mine
        # A rank that has ended, too: nothing may be raised in a thread, where nobody sees it.
        except Exception as error:
            self._failure = disk_error(error, path)
            if self.rank == 0 and folder.exists():
                remove(folder)

    def _write_part(self, folder: Path, pieces: list[tuple[Keys, Piece]]) -> Part | OSError:
        name = f"part-{self.rank:05d}.safetensors"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _write_part(folder / name, pieces)
        except Exception as error:
            return disk_error(error, folder)

    def _gathered(self, mine: Part | OSError) -> list[Any]:
        if self._group is None:
            return [mine]
        parts: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(mine, parts, dst=0, group=self._group)
        return parts or []

    def _finish(
        self,
        folder: Path,
        path: Path,
        layout: list[tuple[Keys, list[int], str]],
        parts: list[Part],
        state: memoryview,
    ) -> None:
        """Writes the rest, and gives the folder its name."""
        if missing := [part.name for part in parts if not (folder / part.name).exists()]:
            raise OSError(
                f"{missing[0]} is not where the first process looks for it: checkpoint.format="
                "distributed needs a run folder that all machines share"
            )
        with open(folder / STATE, "wb") as file:
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        with open(folder / INDEX, "w") as file:
            json.dump(_index(layout, parts), file)
            file.flush()
            os.fsync(file.fileno())
        sync(folder)
        if path.exists():
            remove(path)
        folder.rename(path)
        sync(path.parent)
        self.on_whole(path)


def _split(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[Keys, Any]]:
    """Returns a checkpoint without what goes into parts, and that by the keys where it lay."""
    cut: dict[Keys, Any] = {}

    def walk(value: Any, keys: Keys) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner, (*keys, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner, (*keys, number)) for number, inner in enumerate(value)]
        # Numbers among an optimizer's states are its counts of steps.
        is_tensor = isinstance(value, Tensor) and (value.ndim > 0 or keys[0] == "state_dict")
        if isinstance(value, Piece) or is_tensor:
            cut[keys] = value
            return None
        return value

    pairs = checkpoint.items()
    return {name: walk(v, (name,)) if name in CUT else v for name, v in pairs}, cut


def _kind(value: Piece | Tensor) -> tuple[list[int], str]:
    """Returns the shape of the whole tensor and its type."""
    dtype = (value.value if isinstance(value, Piece) else value).dtype
    return list(value.shape), NAMES[dtype]


def _owners(cut: dict[Keys, Any], world_size: int) -> dict[Keys, int]:
    """Chooses who writes what all ranks hold, as many bytes each as can be."""
    sizes = {k: v.numel() * v.dtype.itemsize for k, v in cut.items() if not isinstance(v, Piece)}
    taken = [0] * world_size
    owners = {}
    for keys in sorted(sizes, key=lambda keys: -sizes[keys]):
        owners[keys] = taken.index(min(taken))
        taken[owners[keys]] += sizes[keys]
    return owners


def _write_part(path: Path, pieces: list[tuple[Keys, Piece]]) -> Part:
    """Writes safetensors, whose header tells torch's own reader where a piece belongs."""
    header: dict[str, Any] = {}
    offsets, at = {}, 0
    for keys, piece in pieces:
        value, name = piece.value, ".".join(map(str, keys))
        end = at + value.numel() * value.dtype.itemsize
        header[name] = {
            "dtype": NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [at, end],
        }
        offsets[name] = {"saved_offsets": [piece.first, *[0] * (value.ndim - 1)][: value.ndim]}
        at = end
    header["__metadata__"] = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    checksum = 0
    with open(path, "wb", buffering=0) as file:

        def write(data: memoryview) -> None:
            nonlocal checksum
            checksum = zlib.crc32(data, checksum)
            while data:
                data = data[file.write(data) :]

        write(memoryview(len(text).to_bytes(8, "little") + text))
        for _, piece in pieces:
            write(piece.value.reshape(-1).view(torch.uint8).numpy().data)
        os.fsync(file.fileno())
    places, at = [], start
    for keys, piece in pieces:
        count = piece.value.numel()
        places.append((keys, at, piece.first_element, count))
        at += count * piece.value.dtype.itemsize
    return Part(path.name, at, checksum, places)


def _index(layout: list[tuple[Keys, list[int], str]], parts: list[Part]) -> dict[str, Any]:
    """Returns what is written of all parts, the tensors in the first rank's order."""
    placed: dict[Keys, list[tuple[int, int, int, int]]] = {keys: [] for keys, _, _ in layout}
    for number, part in enumerate(parts):
        for keys, at, first, count in part.places:
            placed[keys].append((number, at, first, count))
    return {
        "format": FORMAT,
        "files": {part.name: {"bytes": part.size, "crc32": part.checksum} for part in parts},
        "tensors": [
            {"keys": keys, "shape": shape, "dtype": dtype, "parts": placed[keys]}
            for keys, shape, dtype in layout
        ],
    }
