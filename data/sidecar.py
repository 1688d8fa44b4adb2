"""Tensors of samples, stored beside the shards: teacher embeddings, text vectors, boxes.

In: one safetensors file a shard (`FOLDER/SOURCE/SHARD.safetensors`) with a column `key` [n] and any
further columns [n, ...], in any order. Out: rows joined by the sample's key. A sample without a row
gets zeros and is marked, so that every batch has the same entries. Files are mapped, not read:
memory grows with the open shards.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import whole_file
from .shards.manifest import Manifest
from .urls import base_name

KEY = "key"


class Sidecar:
    """Rows of stored tensors by key.

    Args:
        folder: holds a folder for each source.
        columns: stored column by batch entry, such as `{image: image_embedding}`; entries are named
            `SIDECAR.image` after the sidecar's own name in the run file.
        variants: rows of each sample in every column, [n, variants, ...], such as the embeddings of
            several augmentations; each epoch takes one of them, the same in all columns. 1: columns
            are [n, ...].
        max_open: limit of open files.
        missing: samples without a row have `zeros`, or are `replaced` like others that cannot be
            used (cause `no_row`): for what a tower reads.

    Raises:
        ValueError: no columns are named, or variants is below 1.
    """

    def __init__(
        self,
        folder: str,
        columns: dict[str, str],
        variants: int = 1,
        max_open: int = 64,
        missing: Literal["zeros", "replaced"] = "zeros",
    ):
        if variants < 1:
            raise ValueError(f"variants={variants} of the sidecar '{folder}' must be 1 or more")
        if not columns:
            raise ValueError(f"the sidecar '{folder}' needs columns, such as {{image: embedding}}")
        self.folder = folder
        self.columns = dict(columns)
        self.variants = variants
        self.max_open = max_open
        self.missing: Literal["zeros", "replaced"] = missing
        self._open: OrderedDict[tuple[str, str], _Part | None] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def check(self, sources: Sequence[str] = ()) -> None:
        """Checks the files before training starts.

        Args:
            sources: the run's sources; at least one must have rows.

        Raises:
            ValueError: there are no files, or they do not match `columns` and `variants`.
        """
        if not os.path.isdir(self.folder):
            raise ValueError(f"the sidecar folder '{self.folder}' does not exist; check the path")
        for entry, rows in self._zeros.items():
            if self.variants > 1:
                self._variant(entry, rows, 0)
        if sources and not any(os.path.isdir(os.path.join(self.folder, name)) for name in sources):
            raise ValueError(
                f"the sidecar folder '{self.folder}' has rows of {', '.join(self._sources())}, "
                f"none of the run's sources ({', '.join(sources)}); its folders are named after "
                "the sources"
            )

    def _sources(self) -> list[str]:
        return sorted({path.parent.name for path in Path(self.folder).glob("*/*.safetensors")})

    def row(self, source: str, shard: str, key: int, draw: float = 0.0) -> dict[str, Tensor]:
        """Returns the row of one sample.

        Args:
            source: name of the source.
            shard: file name of the shard, with or without `.tar`.
            key: the sample's key.
            draw: uniform in [0, 1); chooses the variant.

        Returns:
            Each entry of `columns`, and `present`, a bool [].

        Raises:
            ValueError: a file is damaged, lacks a column, or has another number of variants.
        """
        part = self._part(source, shard.removesuffix(".tar"))
        index = part.find(key) if part else -1
        if part and index >= 0:
            row = {entry: part.row(column, index) for entry, column in self.columns.items()}
        else:
            row = self._zeros
        if self.variants > 1:
            variant = int(draw * self.variants)
            row = {entry: self._variant(entry, rows, variant) for entry, rows in row.items()}
        return row | {"present": torch.tensor(index >= 0)}

    def _variant(self, entry: str, rows: Tensor, variant: int) -> Tensor:
        if not rows.dim() or len(rows) != self.variants:
            raise ValueError(
                f"the column '{self.columns[entry]}' of the sidecar '{self.folder}' has rows of "
                f"shape {list(rows.shape)}; with variants={self.variants} they begin with that"
            )
        return rows[variant]

    def _part(self, source: str, stem: str) -> "_Part | None":
        name = (source, stem)
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        path = Path(self.folder, source, f"{stem}.safetensors")
        part = _Part(path, self.columns.values()) if path.is_file() else None
        self._open[name] = part
        if len(self._open) > self.max_open:
            self._open.popitem(last=False)
        return part

    @cached_property
    def _zeros(self) -> dict[str, Tensor]:
        """A row of zeros of each column, in the shapes of the first file."""
        path = next(iter(sorted(Path(self.folder).glob("*/*.safetensors"))), None)
        if path is None:
            raise ValueError(
                f"the sidecar folder '{self.folder}' holds no SOURCE/SHARD.safetensors"
            )
        part = _Part(path, self.columns.values())
        return {entry: part.zeros(column) for entry, column in self.columns.items()}


class EvenDraws(Sidecar):
    """Rows without files: `draw`, one number for all samples, as the choice of their captions.

    With `caption_same_as`, variant v of V has the draw (v + 1/2) / V: so V captions of equal weight
    are each taken once, where as many random draws would take some of them twice.
    """

    def __init__(self) -> None:
        super().__init__("", {"draw": "draw"})
        self.value = 0.5

    def row(self, source: str, shard: str, key: int, draw: float = 0.0) -> dict[str, Tensor]:
        return {
            "draw": torch.tensor(self.value, dtype=torch.float64),
            "present": torch.tensor(True),
        }


def check_file_names(manifest: Manifest) -> None:
    """Checks that no two shards have the same sidecar file.

    Raises:
        ValueError: two shards of one source have the same name.
    """
    seen: dict[tuple[int, str], str] = {}
    for url, source in zip(manifest.urls, manifest.source_ids.tolist(), strict=True):
        stem = base_name(url).removesuffix(".tar")
        first = seen.setdefault((source, stem), url)
        if first != url:
            raise ValueError(
                f"{first} and {url} are shards of the same name in the source "
                f"'{manifest.sources[source]}', and sidecars know shards by these: make each set a "
                "source of its own (counterpoint data index FIRST=URLS SECOND=URLS)"
            )


class _Part:
    """The mapped file of one shard."""

    def __init__(self, path: Path, columns: Any):
        try:
            # Not closed by a `with`: the mapping lives as long as this object.
            self._file = safe_open(str(path), framework="pt")
            names = set(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"the sidecar file '{path}' is damaged ({error})") from error
        missing = sorted({KEY, *columns} - names)
        if missing:
            raise ValueError(
                f"the sidecar file '{path}' has no column {', '.join(missing)}; it has "
                f"{', '.join(sorted(names))}"
            )
        self._slices = {column: self._file.get_slice(column) for column in columns}
        keys = self._file.get_tensor(KEY).numpy()
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, key: int) -> int:
        """Returns the row index of a key, -1 if missing."""
        rank = int(np.searchsorted(self._keys, key))
        if rank == len(self._keys) or self._keys[rank] != key:
            return -1
        return int(self._order[rank])

    def row(self, column: str, index: int) -> Tensor:
        return self._slices[column][index : index + 1][0]

    def zeros(self, column: str) -> Tensor:
        """Returns a row of zeros of a column."""
        none = self._slices[column][0:0]
        return none.new_zeros(none.shape[1:])


def write_sidecar(
    folder: str | os.PathLike[str], source: str, shard: str, columns: Mapping[str, Tensor]
) -> Path:
    """Writes the rows of one shard atomically.

    Args:
        folder: the sidecar's folder.
        source: name of the source.
        shard: file name of the shard.
        columns: `key` int64 [n] and further columns [n, ...].

    Raises:
        ValueError: there is no `key`, keys repeat, or the columns differ in length.
    """
    keys = columns.get(KEY)
    if keys is None or keys.dtype != torch.int64 or keys.dim() != 1:
        raise ValueError("a sidecar needs the column 'key', int64 [n], as batches hold it")
    if len(keys.unique()) < len(keys):
        raise ValueError(f"keys repeat in the sidecar of shard '{shard}'; give each sample one row")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns differ in length: {lengths}")
    path = Path(folder, source, f"{shard.removesuffix('.tar')}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        save_file({name: column.contiguous() for name, column in columns.items()}, part)
    return path
