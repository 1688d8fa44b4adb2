"""Weights into a model, with a report of what matched.

In: a file of tensors (safetensors, or a checkpoint read without running code). Out: the model with
every tensor of the same name and shape replaced, the share of the parameters that this is, and the
names of the others. A file that fills neither tower by half is refused: what is left would be
trained from scratch under the name of these weights.
"""

import pickle
import re
import zipfile
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from .distributed_checkpoint import (
    damage_of_distributed,
    is_distributed,
    read_distributed,
    whole,
)

PREFIX = "model."
OURS = "counterpoint"  # a key of checkpoints, whose checksums are always written
# Of a tower's parameters or tensors, so that it counts as filled. By parameters, a small tower with
# another vocabulary would not; by tensors, one of which most layers are missing may not either.
ENOUGH = 0.5
TOWERS = ("image", "text")
# Names that only one layout has: the layout, and how such a file is named as a source.
NAMED = "name its architecture, as in ViT-B-32:FILE or openai:FILE"
WITH_CONFIG = "name its folder, with config.json"
TRUNK = "name its architecture, as in timm/vit_base_patch16_224:FILE"
FOREIGN = {
    "vision_model.": ("a CLIP or SigLIP of transformers", WITH_CONFIG),
    "text_model.": ("a CLIP or SigLIP of transformers", WITH_CONFIG),
    "visual.": ("a model of open_clip or OpenAI", NAMED),
    "module.visual.": ("a training checkpoint of open_clip", NAMED),
    "transformer.resblocks.": ("a text tower of open_clip or OpenAI", "alone it cannot be read"),
    "patch_embed.": ("an image tower of timm", TRUNK),
    "blocks.": ("an image tower of timm", TRUNK),
    "bert.": ("a text tower of transformers", WITH_CONFIG),
    "encoder.layer.": ("a tower of transformers", WITH_CONFIG),
}


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did: names of model tensors by outcome, and of unused file tensors.

    Attributes:
        share: of the model's parameters that matched.
        resized: names of those that matched after their positions or vocabulary were resized.
        towers: the same by tower (`image`, `text`), each with its projection.
    """

    matched: list[str]
    missing: list[str]
    reshaped: list[str]
    unused: list[str]
    share: float
    towers: dict[str, float]
    resized: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line; lists the first few names of each kind that did not match."""
        towers = ", ".join(f"{name} tower {percent(x)}" for name, x in self.towers.items())
        towers = f" ({towers})" if towers else ""
        parts = [f"{percent(self.share)} of the model's parameters matched{towers}"]
        for kind in ("resized", "missing", "reshaped", "unused"):
            names = getattr(self, kind)
            if names:
                more = ", ..." if len(names) > 3 else ""
                parts.append(f"{len(names)} {kind} ({', '.join(names[:3])}{more})")
        return "; ".join(parts)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads `.safetensors`, or a torch file (flat, or under `state_dict`); no code is run.

    Raises:
        ValueError: the file is missing, not readable, or a checkpoint in which bytes have changed.
    """
    path = Path(path)
    if not (path.is_file() or is_distributed(path)):
        run = "" if path.suffix else " and no such run: train it first, or name another"
        raise ValueError(f"there is no weights file {path}{run}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # Of a folder, the optimizer's states are not read.
        content = read_torch(path, mmap=path.is_dir())
    except Exception as error:
        # torch advises to run what is in the file.
        reason = str(error).partition("\n")[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds no tensors, or more than these"
        raise ValueError(
            f"{path} cannot be read as weights: {reason}; take safetensors, or a torch file of "
            "tensors by name"
        ) from error
    ours = isinstance(content, Mapping) and OURS in content
    if ours and (reason := damage(path)):
        raise ValueError(f"{path} is damaged ({reason}): take another file, or copy it again")
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{path} cannot be read as weights: it holds a {type(state).__name__}; save a "
            "state_dict, tensors by name"
        )
    if any(name.startswith(PREFIX) for name in state):
        state = {n.removeprefix(PREFIX): v for n, v in state.items() if n.startswith(PREFIX)}
    state = whole(dict(state))
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def read_torch(path: str | Path, mmap: bool = False) -> Any:
    """Reads a torch file, or the folder of a distributed checkpoint; no code in it is run.

    Args:
        path: of it.
        mmap: whether tensors are read from the disk only when they are used; those of a folder are
            then `StoredTensor`s.

    Raises:
        Exception: of many types, if it cannot be read. A file with compressed records is refused:
            torch writes none, and a few bytes could fill the memory.
    """
    if is_distributed(path):
        content = read_distributed(path)
        return content if mmap else whole(content)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            packed = [r.filename for r in file.infolist() if r.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{packed[0]} in it is compressed, which torch never does")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def damage(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None."""
    if path.is_dir():
        return damage_of_distributed(path)
    try:
        read_torch(path, mmap=True)
        with zipfile.ZipFile(path) as file:
            record = file.testzip()
    except Exception as error:  # whatever a parser meets in damaged bytes
        return f"{type(error).__name__}: {error}"
    return None if record is None else f"bytes of {record} have changed"


@torch.no_grad()
def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, resized: Iterable[str] = ()
) -> LoadReport:
    """Copies every tensor of equal name and shape into `model`.

    One tower alone may match (the other one, or a projection, starts afresh), and tensors of other
    shapes are left as they are; those of `resized` have been given theirs.

    Raises:
        ValueError: neither tower matches by half (`source` is named in the message).
    """
    own = model.state_dict()
    same = {n for n in own if n in weights and weights[n].shape == own[n].shape}
    by_tower = {tower: [n for n in own if re.match(rf"{tower}[._]", n)] for tower in TOWERS}
    by_tower = {tower: names for tower, names in by_tower.items() if names}
    report = LoadReport(
        matched=[n for n in own if n in same],
        missing=[n for n in own if n not in weights],
        reshaped=[n for n in own if n in weights and n not in same],
        unused=[n for n in weights if n not in own],
        share=_share(own, own, same),
        towers={tower: _share(own, names, same) for tower, names in by_tower.items()},
        resized=[n for n in resized if n in same],
    )
    filled = (
        max(report.towers[tower], sum(n in same for n in names) / len(names)) >= ENOUGH
        for tower, names in by_tower.items()
    )
    if not any(filled):
        raise ValueError(
            f"{source} holds the weights of another model: {report}; {advice(weights)}"
        )
    for name in report.matched:
        own[name].copy_(weights[name])
    return report


def advice(weights: Iterable[str]) -> str:
    """What to do with weights of these names, of which too few are the model's."""
    found = next((k for n in weights for k in FOREIGN if n.startswith(k)), None)
    if found is None:
        return (
            "at least half of one tower has to match: use the model configuration that it was "
            "trained with"
        )
    layout, how = FOREIGN[found]
    return f"by its names ({found}...) it is {layout}: {how}"


def percent(share: float) -> str:
    """A share in whole percent; neither all nor nothing unless it is."""
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def _share(state: Mapping[str, Tensor], names: Iterable[str], same: Container[str]) -> float:
    """Of the elements of the tensors `names`, those in tensors that are in `same`."""
    sizes = {name: state[name].numel() for name in names}
    return sum(size for name, size in sizes.items() if name in same) / max(sum(sizes.values()), 1)
