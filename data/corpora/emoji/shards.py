"""Emoji images into tars of nearly equal size.

In: the images of one split, in order. Out: `00000.tar` ... with KEY.json, KEY.png and KEY.txt,
and `00000_stats.json` ... beside them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..shards import to_json, write_stats, write_tars
from .draw import SIZE
from .names import EmojiName


@dataclasses.dataclass(frozen=True)
class EmojiImage:
    """One sample: a name drawn in one style."""

    name: EmojiName
    style: str
    png: bytes

    @property
    def key(self) -> str:
        """The sample's key: style and code points, so that it survives any re-sharding."""
        return f"{self.style}-{self.name.code_points}"


def write_shards(folder: Path, split: str, num_shards: int, samples: Sequence[EmojiImage]) -> None:
    """Writes samples to tars of nearly equal size, each with img2dataset's sidecar."""
    folder.mkdir()
    num_shards = max(1, min(num_shards, len(samples)))
    bounds = [len(samples) * shard // num_shards for shard in range(num_shards + 1)]
    parts = [samples[bounds[shard] : bounds[shard + 1]] for shard in range(num_shards)]
    write_tars(folder, [[members(image, split) for image in part] for part in parts])
    write_stats(folder, map(len, parts))


def members(image: EmojiImage, split: str) -> dict[str, str | bytes]:
    """Returns one sample as `write_tars` takes it."""
    return {
        "__key__": image.key,
        "json": to_json(attributes(image, split)),
        "png": image.png,
        "txt": image.name.caption.encode(),
    }


def attributes(image: EmojiImage, split: str) -> dict[str, Any]:
    """Returns the content of KEY.json."""
    name = image.name
    return {
        "key": image.key,
        "caption": name.caption,
        "status": "success",
        "width": SIZE,
        "height": SIZE,
        "style": image.style,
        "split": split,
        "base": name.base,
        "skin_tone": name.skin_tone,
        "skin_tones": list(name.skin_tones),
        "gender": name.gender,
        "group": name.group,
        "emoji": name.characters,
        "code_points": name.code_points,
        "names": name.names,
    }
