"""Tars in img2dataset's layout, the same bytes every time, and the summary of a corpus.

In: samples of each shard, in order, as bytes by extension. Out: `00000.tar` ... with
`00000_stats.json` ... beside them; a JSON file with facts about a folder and its files' sizes.
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from webdataset.writer import ShardWriter


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


def write_stats(folder: Path, counts: Iterable[int]) -> None:
    """Writes img2dataset's `00000_stats.json` ... for tars with so many samples."""
    for shard, count in enumerate(counts):
        stats = {
            "count": count,
            "successes": count,
            "failed_to_download": 0,
            "failed_to_resize": 0,
            "duration": 0.0,  # times would differ from build to build
            "bytes_downloaded": 0,
            "start_time": 0.0,
            "end_time": 0.0,
            "status_dict": {"success": count},
        }
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=4), "utf-8")


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
