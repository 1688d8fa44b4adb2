"""Exports a run: written beside its place, reloaded, compared, described, and only then there."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...data.files import whole_folder
from . import card, parity
from .datacomp import DataComp
from .onnx import Onnx
from .open_clip import OpenClip
from .safetensors import Safetensors
from .sentence_transformers import SentenceTransformers
from .source import Source
from .target import Target, check_packages
from .transformers import Transformers

TARGETS: dict[str, Callable[[], Target]] = {
    target.name: target
    for target in (Safetensors, OpenClip, Transformers, SentenceTransformers, Onnx, DataComp)
}


@dataclass(frozen=True)
class Exported:
    """What was done.

    Attributes:
        card: the file with the model card.
        parity: largest differences from the run.
        notes: sentences about what the target does not hold.
    """

    card: Path
    parity: parity.Parity
    notes: list[str]


def export(source: Source, path: Path, target_name: str, licence: str = "") -> Exported:
    """Exports a run to one of `TARGETS`.

    Args:
        source: the run.
        path: the file or folder to write; nothing may be there.
        target_name: of the layout.
        licence: of the weights, for the card.

    Raises:
        ValueError: `path` exists, the target cannot hold the model or gives other embeddings, or
            its packages are not installed. Nothing is left at `path`.
    """
    target = TARGETS[target_name]()
    check_packages(target)
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not target.suffix:
        with whole_folder(path) as folder:
            found = fill(source, target, folder, folder / "README.md", path, licence)
        return Exported(path / "README.md", *found)
    written = path.with_suffix(".md")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        file, about = Path(folder) / path.name, Path(folder) / written.name
        found = fill(source, target, file, about, path, licence)
        about.replace(written)
        file.replace(path)
    return Exported(written, *found)


def fill(
    source: Source, target: Target, part: Path, about: Path, path: Path, licence: str
) -> tuple[parity.Parity, list[str]]:
    """Writes a model to `part` and its card to `about`; returns differences and notes.

    Raises:
        ValueError: see `export`.
    """
    notes = target.write(source, part)
    differences = parity.measure(source, target.reload(source, part))
    parity.check(differences, target.name)
    facts = target.facts(source, part)
    text = card.render(source, target, str(path), differences, notes, facts, licence)
    about.write_text(text, encoding="utf-8")
    return differences, notes


def check_place(path: Path) -> None:
    """Refuses to overwrite anything."""
    if path.exists():
        raise ValueError(f"{path} exists already; remove it, or export to another place")
