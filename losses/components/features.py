"""How terms read features: by name, with a clear error where one is missing, in full precision."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

# Features, or entries of the batch, by name.
Tensors = Mapping[str, Tensor]
# What a two-tower model, a teacher and the average have besides features.
MODEL_SCALARS = ("logit_scale", "logit_bias")


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Lifts half-precision tensors to float32; float32 and float64 stay as they are."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def need(features: Tensors, name: str, term: nn.Module, fix: str = "") -> Tensor:
    """Returns `features[name]`; if it is missing, raises a ValueError with the fix."""
    if name not in features:
        names = ", ".join(sorted(features))
        fix = fix or f"there are {names}; a class lists in `needs` the features that it reads"
        raise ValueError(f"{type(term).__name__} needs the feature '{name}': {fix}")
    return features[name]


def stream_of(name: str) -> str:
    """Returns the stream of a feature or batch entry, `sentences` of `sentences/text`; or ""."""
    return name.rpartition("/")[0]


def in_stream(name: str, stream: str) -> str:
    """Returns the name that a stream's feature or entry has among those of all streams."""
    return f"{stream}/{name}" if stream else name


def needs_of_stream(needs: Iterable[str], stream: str) -> set[str]:
    """Returns the needs of a stream by the names that they have there."""
    return {need.rpartition("/")[2] for need in needs if stream_of(need) == stream}


def of_stream(values: Tensors, stream: str) -> Tensors:
    """Returns a stream's features or entries by the names that they have there."""
    if not stream:
        return values
    prefix = in_stream("", stream)
    return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
