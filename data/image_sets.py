"""Evaluation data: images with fields, in a fixed order, from class folders or shards.

In: paths. Out: an `ImageSet`: item i has an image (decoded on access) and fields, which a task
reads by name: the members of a sample that are text (`txt`, `cls`), the entries of its JSON (dots
go deeper: `exif.model`), `key`, and for class folders `folder`. Tasks choose which fields are
caption, class or filter, so that they can use the same set and its features.

The set is indexed at the first use: one walk over the tar headers, text members read, images left
on the disk.
"""

import glob
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .images.decode import decode_image
from .shards.fields import IMAGE_EXTENSIONS
from .shards.manifest import Manifest
from .shards.members import open_index
from .urls import expand_all

TEXTS = ("txt", "cls", "text", "caption")
MEMBERS = (*TEXTS, "json")
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Item:
    """One image and its fields.

    Attributes:
        path: the image file, or its tar.
        offset: first byte of the image in that file.
        size: number of bytes.
        fields: text members, JSON entries, `key`, `folder`.
    """

    path: str
    offset: int
    size: int
    fields: dict[str, Any] = field(hash=False)

    def decode(self) -> Tensor:
        """Returns the image, uint8 [3, height, width]; raises SampleError when it is broken."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return decode_image(file.read(self.size))

    def get(self, name: str) -> Any:
        """Returns the field `name`, or None: absent and null are the same."""
        value = self.fields.get(name, _ABSENT)
        if value is not _ABSENT:
            return value
        value = self.fields
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


class ImageSet(ABC):
    """Images in a fixed order, the same on every rank.

    Attributes:
        default_label: the field that names the class unless a task says otherwise.
        root: base of relative paths; set when a suite is read, before the first use.
    """

    default_label: str
    root: Path = Path()

    @property
    def is_there(self) -> bool:
        """Whether there is anything at all; False: a suite may go on without it."""
        return True

    @property
    def note(self) -> str:
        """What to log about the set before its use; "": nothing."""
        return ""

    @abstractmethod
    def walk(self) -> Iterator[Item]:
        """Yields the items in order; raises ValueError for unusable data."""

    @cached_property
    def items(self) -> list[Item]:
        """All items, indexed at the first use."""
        items = list(self.walk())
        if not items:
            raise ValueError(
                f"{self} holds no images; files that end in {', '.join(IMAGE_EXTENSIONS)} are "
                "images"
            )
        return items

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Tensor:
        """Returns image `index`, uint8 [3, height, width]; raises SampleError if damaged."""
        return self.items[index].decode()

    def select(self, where: Mapping[str, Any] | None) -> list[int]:
        """Returns the items whose fields equal the values in `where` (or one of a list of them).

        Raises:
            ValueError: no item matches.
        """
        chosen = list(range(len(self)))
        for name, values in (where or {}).items():
            accepted = [str(value) for value in _as_list(values)]
            before, chosen = chosen, [i for i in chosen if str(self.items[i].get(name)) in accepted]
            if not chosen:
                seen = sorted({str(self.items[i].get(name)) for i in before})
                raise ValueError(
                    f"{self} has no image where {name} is {' or '.join(accepted)}; "
                    f"found there: {_few(seen)}"
                )
        return chosen

    def values(self, name: str, chosen: Iterable[int]) -> list[str]:
        """Returns the field `name` of the chosen items as text.

        Raises:
            ValueError: an item has no such field, or it holds more than one value.
        """
        values = []
        for i in chosen:
            value = self.items[i].get(name)
            if value is None or isinstance(value, list | dict):
                what = f"has no field '{name}'" if value is None else f"has {name}: {value}"
                raise ValueError(
                    f"sample {self.items[i].get('key')} in {self.items[i].path} {what}; name a "
                    f"field with one value (here: {_few(sorted(self.items[i].fields))}), or leave "
                    "such samples out with `where`"
                )
            values.append(str(value).strip())
        return values

    def lists(self, name: str, chosen: Iterable[int], separator: str | None) -> list[list[str]]:
        """Returns the field `name` of the chosen items as non-empty lists of texts.

        Args:
            name: a text, or a JSON list of texts.
            chosen: indices of items.
            separator: cuts one text into several ("\\n": one a line); None: does not.

        Raises:
            ValueError: an item has no text there.
        """
        lists = []
        for i in chosen:
            texts = [str(text) for text in _as_list(self.items[i].get(name)) if text is not None]
            if separator is not None:
                texts = [part for text in texts for part in text.split(separator)]
            texts = [text.strip() for text in texts if text.strip()]
            if not texts:
                raise ValueError(
                    f"sample {self.items[i].get('key')} in {self.items[i].path} has no caption "
                    f"'{name}'; fields there: {_few(sorted(self.items[i].fields))}"
                )
            lists.append(texts)
        return lists


class FolderSet(ImageSet):
    """Class folders: `path/CLASS/**/NAME.png`, class = `folder`.

    Images directly in `path` have no class (retrieval needs none). `NAME.txt` and `NAME.json`
    beside an image are its fields, as in a shard.

    Args:
        path: the folder of class folders.
        num_classes: the required number of class folders. With it, images have the field
            `class_index`: the position of their folder among the sorted names, from 0.
    """

    default_label = "folder"

    def __init__(self, path: str, num_classes: int | None = None):
        self.path = path
        self.num_classes = num_classes

    @property
    def is_there(self) -> bool:
        return (self.root / self.path).is_dir()

    def __str__(self) -> str:
        return f"the folder {self.root / self.path}"

    def walk(self) -> Iterator[Item]:
        """Yields classes and their files, both sorted by name."""
        top = self.root / self.path
        if not top.is_dir():
            raise ValueError(_absent(top))
        index = self._class_index(top)
        for folder, names in _walk(top):
            present = set(names)
            for name in sorted(names):
                stem, _, extension = name.rpartition(".")
                if extension.lower() not in IMAGE_EXTENSIONS or name.startswith("."):
                    continue
                image = Path(folder, name)
                parts = image.relative_to(top).parts
                texts = {
                    ext: image.with_name(f"{stem}.{ext}").read_bytes()
                    for ext in MEMBERS
                    if f"{stem}.{ext}" in present
                }
                fields = _fields(texts, "/".join(parts), str(image))
                if len(parts) > 1:
                    fields["folder"] = parts[0]
                    fields |= {"class_index": str(index[parts[0]])} if index else {}
                yield Item(str(image), 0, image.stat().st_size, fields)

    def _class_index(self, top: Path) -> dict[str, int]:
        """Returns the positions of the class folders, without hidden ones."""
        if self.num_classes is None:
            return {}
        names = sorted(p.name for p in top.iterdir() if p.is_dir() and p.name[0] != ".")
        if len(names) != self.num_classes:
            raise ValueError(
                f"{top} has {len(names)} class folders ({_few(names, 3) or 'none'}), and "
                f"{self.num_classes} are needed, one a class, each with that class's images"
            )
        return {name: i for i, name in enumerate(names)}


class ShardSet(ImageSet):
    """WebDataset shards: `KEY.png` with `KEY.txt`, `KEY.cls`, `KEY.json` in tar files.

    Args:
        urls: tar files, patterns (`*`, `{000..041}`), folders of tars, or a manifest (`.parquet`);
            one or a list.

    Attributes:
        members: extensions of the members of a sample that become fields.
    """

    default_label = "cls"
    members: tuple[str, ...] = MEMBERS

    def __init__(self, urls: str | list[str]):
        self.urls = [str(url) for url in _as_list(urls)]

    def __str__(self) -> str:
        return f"the shards {', '.join(self.urls)} in {self.root.resolve()}"

    def paths(self) -> list[str]:
        """Returns the tar files, each pattern's sorted by name."""
        paths: list[str] = []
        for url in self.urls:
            target = self.root / url
            if target.suffix == ".parquet":
                paths += Manifest.load(target).urls
            elif target.is_file():
                paths.append(str(target))
            else:
                paths += self._expand(url)
        return list(dict.fromkeys(paths))

    def _expand(self, url: str) -> list[str]:
        # The root may hold characters that are special in a pattern.
        target = self.root / url
        pattern = target if target.is_dir() else Path(glob.escape(str(self.root)), url)
        try:
            paths = expand_all([str(pattern)])
        except ValueError:
            paths = []
        if not paths:
            raise ValueError(_absent(target))
        return paths

    def walk(self) -> Iterator[Item]:
        for path in self.paths():
            yield from _walk_tar(path, self.members)


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields folders, sorted, and the names of their files; links to folders are followed.

    Several links may lead to one folder; links back to a parent are not followed.
    """
    around: dict[str, set[str]] = {}
    for folder, folders, names in os.walk(top, followlinks=True):
        within = around.pop(folder, set()) | {os.path.realpath(folder)}
        paths = {name: os.path.join(folder, name) for name in sorted(folders)}
        folders[:] = [name for name, path in paths.items() if os.path.realpath(path) not in within]
        around.update((paths[name], within) for name in folders)
        yield folder, names


def _walk_tar(path: str, members: Sequence[str]) -> Iterator[Item]:
    """Yields the samples of a tar that have an image; reads those members of them."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"the shard {path} cannot be opened ({error.strerror})") from error
    try:
        index = open_index(path, descriptor)
        if index.damaged:
            raise ValueError(
                f"the shard {path} is damaged: {index.damaged}; write or copy it again (a tar for "
                "evaluation is whole and uncompressed)"
            )
        for sample, key in enumerate(index.keys):
            images: dict[str, tuple[int, int]] = {}
            texts: dict[str, bytes] = {}
            for member in range(index.firsts[sample], index.firsts[sample + 1]):
                extension = index.extensions[index.kinds[member]]
                span = int(index.offsets[member]), int(index.sizes[member])
                if extension in IMAGE_EXTENSIONS:
                    images[extension] = span
                elif extension in members:
                    texts[extension] = os.pread(descriptor, span[1], span[0])
            if images:
                # Of several images the first kind in this order, as in training.
                first = min(images, key=IMAGE_EXTENSIONS.index)
                yield Item(path, *images[first], _fields(texts, key, path))
    finally:
        os.close(descriptor)


def _fields(texts: Mapping[str, bytes], key: str, path: str) -> dict[str, Any]:
    """Merges a sample's text members and JSON entries; a member wins over an entry."""
    fields: dict[str, Any] = {}
    try:
        if "json" in texts:
            loaded = json.loads(texts["json"])
            fields.update(loaded if isinstance(loaded, dict) else {"json": loaded})
        if "npy" in texts:
            fields["npy"] = np.load(io.BytesIO(texts["npy"]), allow_pickle=False).tolist()
        fields.update({e: data.decode().strip() for e, data in texts.items() if e in TEXTS})
    except ValueError as error:
        raise ValueError(
            f"what lies beside image {key} in {path} is not UTF-8, JSON or an array ({error}); "
            "repair it"
        ) from error
    return fields | {"key": key}


def _absent(target: Path) -> str:
    return (
        f"{target} does not exist or matches nothing; relative paths of a suite start from its "
        "data_root: give the folder that holds the data"
    )


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _few(values: Sequence[str], limit: int = 8) -> str:
    more = f", ... ({len(values)} in all)" if len(values) > limit else ""
    return ", ".join(values[:limit]) + more
