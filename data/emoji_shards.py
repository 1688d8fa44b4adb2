"""Emoji pictures into tars: img2dataset's layout, the same bytes every time.

In: the pictures of one split, in order. Out: `00000.tar` ... with KEY.json, KEY.png and KEY.txt,
and `00000_stats.json` ... beside them.
"""

import dataclasses
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .emoji_draw import SIZE
from .emoji_names import EmojiName


@dataclasses.dataclass(frozen=True)
class Picture:
    """One sample: a name drawn in one style."""

    name: EmojiName
    style: str
    png: bytes

    @property
    def key(self) -> str:
        """The sample's key: style and code points, so that it survives any re-sharding."""
        return f"{self.style}-{self.name.code_points}"


def write_shards(folder: Path, split: str, num_shards: int, samples: Sequence[Picture]) -> None:
    """Writes samples to tars of nearly equal size, each with img2dataset's sidecar."""
    folder.mkdir()
    num_shards = max(1, min(num_shards, len(samples)))
    bounds = [len(samples) * shard // num_shards for shard in range(num_shards + 1)]
    for shard in range(num_shards):
        part = samples[bounds[shard] : bounds[shard + 1]]
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for picture in part:
                add_member(tar, f"{picture.key}.json", to_json(attributes(picture, split)))
                add_member(tar, f"{picture.key}.png", picture.png)
                add_member(tar, f"{picture.key}.txt", picture.name.caption.encode())
        stats = {
            "count": len(part),
            "successes": len(part),
            "failed_to_download": 0,
            "failed_to_resize": 0,
            "duration": 0.0,  # times would differ from build to build
            "bytes_downloaded": 0,
            "start_time": 0.0,
            "end_time": 0.0,
            "status_dict": {"success": len(part)},
        }
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=4), "utf-8")


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file whose header says nothing about this machine or moment."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


def attributes(picture: Picture, split: str) -> dict[str, Any]:
    """Returns the content of KEY.json."""
    name = picture.name
    return {
        "key": picture.key,
        "caption": name.caption,
        "status": "success",
        "width": SIZE,
        "height": SIZE,
        "style": picture.style,
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


def to_json(content: dict[str, Any]) -> bytes:
    """Returns compact JSON in UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
