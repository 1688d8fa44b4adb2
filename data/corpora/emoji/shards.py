"""Emoji images into tars: img2dataset's layout, the same bytes every time.

In: the images of one split, in order. Out: `00000.tar` ... with KEY.json, KEY.png and KEY.txt,
and `00000_stats.json` ... beside them.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from webdataset.writer import ShardWriter

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
    for shard, part in enumerate(parts):
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


def write_tars(folder: Path, shards: Iterable[Iterable[Mapping[str, str | bytes]]]) -> None:
    """Writes `00000.tar` ... whose bytes depend on the samples alone.

    Args:
        folder: an existing folder.
        shards: samples of each tar: bytes by extension, and the key under `__key__`. The members of
            a sample are written in alphabetical order.
    """
    # Absolute, so that webdataset cannot read the folder's name as an address.
    pattern = str(folder.resolve()).replace("%", "%%") + "/%05d.tar"
    header = {"mtime": 0, "user": "", "group": "", "mode": 0o644}
    for number, samples in enumerate(shards):
        with ShardWriter(
            pattern,
            start_shard=number,
            maxcount=sys.maxsize,
            maxsize=sys.maxsize,
            verbose=0,
            encoder=False,
            **header,
        ) as writer:
            for sample in samples:
                writer.write(dict(sample))


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


def write_summary(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes facts about a folder, and the sizes of its files, to `path` in it; returns both."""
    files = sorted(file for file in path.parent.rglob("*") if file.is_file())
    sizes = {str(file.relative_to(path.parent)): file.stat().st_size for file in files}
    summary = {**facts, "files": sizes}
    path.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    return summary


def read_summary(path: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """Returns what `write_summary` wrote if these are among its facts and all files are there."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        summary = json.loads(path.read_text("utf-8"))
        sizes = {name: (path.parent / name).stat().st_size for name in summary["files"]}
        if summary | facts | {"files": sizes} == summary:
            return summary
    return None


def to_json(content: dict[str, Any]) -> bytes:
    """Returns compact JSON in UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
