"""Weights into a model, with a report of what matched.

In: a file of tensors (safetensors, or a checkpoint read without running code). Out: the model with
every tensor of the same name and shape replaced, and the names of the others.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

PREFIX = "model."
OURS = "counterpoint"  # a key of checkpoints, whose checksums are always written


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did: names of model tensors by outcome, and of unused file tensors."""

    matched: list[str]
    missing: list[str]
    reshaped: list[str]
    unused: list[str]

    def __str__(self) -> str:
        """One line; lists the first few names of each kind that did not match."""
        parts = [f"{len(self.matched)} tensors matched"]
        for kind in ("missing", "reshaped", "unused"):
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
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
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
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def damage(path: Path) -> str | None:
    """Says what is wrong with a checkpoint file, or None."""
    try:
        with zipfile.ZipFile(path) as file:
            record = file.testzip()
    except Exception as error:  # whatever a parser meets in damaged bytes
        return f"{type(error).__name__}: {error}"
    return None if record is None else f"bytes of {record} have changed"


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copies every tensor of equal name and shape into `model`.

    Raises:
        ValueError: not one tensor matches (`source` is named in the message).
    """
    own = model.state_dict()
    same = {n for n in own if n in weights and weights[n].shape == own[n].shape}
    report = LoadReport(
        matched=[n for n in own if n in same],
        missing=[n for n in own if n not in weights],
        reshaped=[n for n in own if n in weights and n not in same],
        unused=[n for n in weights if n not in own],
    )
    towers = [n for n in report.matched if "." in n]
    if not towers:
        raise ValueError(
            f"{source} holds the weights of another model: {report}; "
            "use the model configuration that it was trained with"
        )
    for name in report.matched:
        own[name].copy_(weights[name])
    return report
