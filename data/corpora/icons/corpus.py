"""The icon corpus: icon sets of the npm registry as image-text pairs, one source a set.

In: the packages of `sets.py` and `resvg-py` (the extra `icons`). Out: a folder in img2dataset's
layout, the same bytes every time:

    train/SET/00000.tar ...    KEY.png, KEY.txt (caption), KEY.json (attributes)
    train/SET/00000_stats.json ...
    val/, indist/, shift/, unseen/   the test splits of `split.py`, laid out likewise
    train.parquet, val.parquet, ...  a manifest for each, whose sources are the sets
    classes.txt                the concepts that `indist` and `shift` are classified into
    corpus.json                settings, counts and file sizes
    ATTRIBUTION.md             authors, licences and versions
"""

import dataclasses
import importlib.metadata
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import whole_folder
from ...hashing import text_hash
from ...shards.index import index_shards
from ..build import Progress, check_replaceable, drawing_pool, import_package, silent
from ..shards import read_summary, to_json, write_stats, write_summary, write_tars
from .draw import SIZE, choose_color, draw_svg, to_svg
from .fetch import default_cache, fetch_sets, read_package
from .names import COLORS, Icon, describe, load_icons
from .sets import HELD_OUT_SETS, SETS, check_sets
from .split import SPLITS, Splits, choose_splits, limited

FORMAT = 1  # raise it when the same settings give other bytes
SHARD_PAIRS = 2000  # at most, in one tar
FILES = {"classes.txt", "corpus.json", "ATTRIBUTION.md"}
ENTRIES = FILES | set(SPLITS) | {f"{split}.parquet" for split in SPLITS}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the bytes of the corpus.

    Attributes:
        sets: the sets to draw.
        held_out_sets: those of them that are kept away from training.
        min_sets: sets for training in which a class occurs.
        num_held_out: concepts of the split `unseen`, and as many of `val`.
        seed: decides which they are, the colours, and the order of the samples.
        limit: use so many concepts only, for tests; 0: all.
    """

    sets: tuple[str, ...] = tuple(SETS)
    held_out_sets: tuple[str, ...] = HELD_OUT_SETS
    min_sets: int = 5
    num_held_out: int = 500
    seed: int = 0
    limit: int = 0


def build_icons(
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    num_workers: int = 1,
    progress: Progress = silent,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Builds the corpus in `out`, unless it is complete.

    It is built beside `out` and renamed, so that `out` is never half a corpus. Packages that were
    fetched stay in the cache; a build that was stopped draws anew.

    Args:
        out: the folder; absent, empty, or an earlier build with its `corpus.json` (files may be
            missing).
        settings: what to build.
        num_workers: processes that draw.
        progress: wraps an iterable to show its progress.
        cache: the folder of packages; `~/.cache/counterpoint/icons` by default.

    Returns:
        The content of `corpus.json`, and "built": whether anything was built.

    Raises:
        ValueError: a package is missing, a setting cannot work, or `out` holds other files.
    """
    settings = Settings() if settings is None else settings
    check_settings(settings)
    out = Path(out).resolve()  # `.` and links name a folder, too
    facts = {
        "format": FORMAT,
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(settings).items()},
    }
    complete = read_summary(out / "corpus.json", facts)
    if complete is not None:
        return {**complete, "built": False}
    check_replaceable(out, ENTRIES, "icon")
    import_package("resvg_py", "icons")
    packages = fetch_sets(settings.sets, cache or default_cache(), progress)
    with whole_folder(out) as part:
        summary = write_corpus(part, settings, packages, facts, num_workers, progress)
    return {**summary, "built": True}


def check_settings(settings: Settings) -> None:
    """Raises a ValueError for settings that cannot work."""
    check_sets(settings.sets, "sets")
    check_sets(settings.held_out_sets, "held-out sets")
    if not set(settings.sets) & set(settings.held_out_sets):
        raise ValueError(
            f"none of the sets is held out; add one of {', '.join(settings.held_out_sets)} to the "
            "sets, or name other held-out sets"
        )
    if settings.min_sets < 2:
        raise ValueError(
            f"min_sets is {settings.min_sets}, but a class stays in training when one of its sets "
            "is tested; give 2 or more"
        )
    for name in ("num_held_out", "limit"):
        if getattr(settings, name) < 0:
            raise ValueError(f"{name} is {getattr(settings, name)}; give 0 or more")


def write_corpus(
    folder: Path,
    settings: Settings,
    packages: Mapping[str, Path],
    facts: dict[str, Any],
    num_workers: int,
    progress: Progress,
) -> dict[str, Any]:
    """Writes a corpus into an empty folder and returns its summary."""
    icons: list[Icon] = []
    infos, left_out = {}, {}
    for name, path in sorted(packages.items()):
        content = read_package(path)
        infos[name] = content["info"]
        loaded, reasons = load_icons(content)
        left_out[name] = {**reasons, "undrawable": 0}
        icons += loaded
    icons = limited(icons, settings.limit, settings.seed)
    splits = choose_splits(
        icons,
        set(settings.held_out_sets) & set(settings.sets),
        settings.min_sets,
        settings.num_held_out,
        settings.seed,
    )
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for name, samples, missing in draw_sets(icons, settings, splits, num_workers, progress):
        left_out[name]["undrawable"] = missing
        for split, chosen in samples.items():
            write_samples(folder / split / name, chosen)
            counts[split][name] = len(chosen)
    for split, present in counts.items():
        if present:
            # Paths below the manifest are stored relative to it: the folder may move.
            index_shards(
                {name: [str(folder / split / name)] for name in sorted(present)},
                folder / f"{split}.parquet",
            )
    (folder / "classes.txt").write_text("\n".join(sorted(splits.classes)) + "\n", "utf-8")
    (folder / "ATTRIBUTION.md").write_text(attribution(infos), "utf-8")
    facts = {
        **facts,
        "pairs": {split: present.total() for split, present in counts.items()},
        "sets": {
            name: {split: counts[split][name] for split in SPLITS if counts[split][name]}
            for name in sorted(packages)
        },
        "left_out": left_out,
        "classes": len(splits.classes),
        "concepts": len({icon.concept for icon in icons}),
        "packages": {
            **{f"@iconify-json/{name}": SETS[name].version for name in sorted(packages)},
            **{name: importlib.metadata.version(name) for name in ("resvg-py", "pillow")},
        },
    }
    return write_summary(folder / "corpus.json", facts)


def draw_sets(
    icons: Sequence[Icon],
    settings: Settings,
    splits: Splits,
    num_workers: int,
    progress: Progress,
) -> Iterator[tuple[str, dict[str, list[dict[str, str | bytes]]], int]]:
    """Draws the icons of one set after another.

    Yields:
        The set, its samples by split as `write_tars` takes them, and how many names have a drawing
        that cannot be drawn.
    """
    sets: dict[str, list[Icon]] = {}
    for icon in icons:
        sets.setdefault(icon.set, []).append(icon)
    with drawing_pool(draw_svg, num_workers) as run:
        for name, members in sets.items():
            # All names of a drawing have the same colour, so that one drawing serves them.
            drawings = {icon.drawing: icon for icon in members}
            colors = {n: choose_color(icon, settings.seed) for n, icon in drawings.items()}
            svgs = [to_svg(icon, colors[n]) for n, icon in drawings.items()]
            pngs = dict(zip(drawings, progress(run(svgs), len(svgs), name), strict=True))
            samples: dict[str, list[dict[str, str | bytes]]] = {}
            members.sort(key=lambda icon: text_hash(settings.seed, "order", icon.key))
            drawn = [(icon, png) for icon in members if (png := pngs[icon.drawing]) is not None]
            for icon, png in drawn:
                color = colors[icon.drawing]
                fields = attributes(icon, color, splits)
                sample = {
                    "__key__": icon.key,
                    "json": to_json(fields),
                    "png": png,
                    "txt": icon.caption.encode(),
                }
                samples.setdefault(fields["split"], []).append(sample)
            yield name, samples, len(members) - len(drawn)


def attributes(icon: Icon, color: str, splits: Splits) -> dict[str, Any]:
    """Returns the content of KEY.json."""
    return {
        "key": icon.key,
        "caption": icon.caption,
        "template": describe(icon, color),
        "status": "success",
        "width": SIZE,
        "height": SIZE,
        "set": icon.set,
        "name": icon.name,
        "alias_of": "" if icon.drawing == icon.name else icon.drawing,
        "style": icon.style,
        "base": icon.base,
        "concept": icon.concept,
        "color": color,
        "category": icon.categories[0] if icon.categories else "",
        "categories": list(icon.categories),
        "split": splits.split(icon),
        "in_classes": icon.concept in splits.classes,
    }


def write_samples(folder: Path, samples: Sequence[Mapping[str, str | bytes]]) -> None:
    """Writes the samples of one set to tars of nearly equal size, each with its sidecar."""
    folder.mkdir(parents=True)
    num_shards = -(-len(samples) // SHARD_PAIRS)
    bounds = [len(samples) * shard // num_shards for shard in range(num_shards + 1)]
    parts = [samples[bounds[shard] : bounds[shard + 1]] for shard in range(num_shards)]
    write_tars(folder, parts)
    write_stats(folder, map(len, parts))


def attribution(infos: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the text of ATTRIBUTION.md, from the sets' own `info.json`."""
    rows = []
    for name, info in infos.items():
        author, licence = info.get("author", {}), info.get("license", {})
        spdx = licence.get("spdx") or licence.get("title", "")
        cells = [
            f"`{name}`",
            " ".join(filter(None, [info.get("name", name), info.get("version", "")])),
            _link(author.get("name", ""), author.get("url", "")),
            _link(spdx, licence.get("url", "")),
            f"@iconify-json/{name} {SETS[name].version}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    table = "\n".join(rows)
    return f"""# Where the images and names come from

Each source is one icon set, from a package of the npm registry:

| Source | Set | Author | Licence | Package |
| --- | --- | --- | --- | --- |
{table}

Changed: drawn at {SIZE} x {SIZE} pixels on white; icons without colours of their own in one of
{len(COLORS)} colours. Images under a share-alike licence (CC-BY-SA) that are passed on keep it.
Logos may be trademarks of their owners, whatever the licence of the drawing.
"""


def _link(text: str, url: str) -> str:
    return f"[{text}]({url})" if url else text
