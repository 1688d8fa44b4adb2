"""Frozen two-tower models: how a run file names one, and how it answers.

In: whose weights, and batches. Out: named features without gradient, those that `TwoTower` makes,
and for images `VIEW.attention` (of a ViT with a class token).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..attention import run_with_attention
from ..image import ImageTower
from ..two_tower import TwoTower
from ..two_tower import view_of as student_view_of

# Where weights are: whole on the device; layers cut over ranks; layers in the host's memory.
Placement = Literal["device", "sharded", "host"]
ATTENTION = ".attention"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenTowers(nn.Module):
    """A two-tower model that only answers: in evaluation mode, without gradient.

    Args:
        model: its parameters are frozen in place.
        placement: where its weights are while it answers; see
            `train.strategies.teacher_placement`.
    """

    def __init__(self, model: TwoTower, placement: Placement = "device"):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.placement = placement
        self.placed = False
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenTowers":
        """Stays in evaluation mode, whatever the mode of the module around it."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor], needs: Iterable[str]) -> dict[str, Tensor]:
        """Returns what `TwoTower` does, with all tokens, in the model's number of chunks.

        Raises:
            ValueError: `VIEW.attention` is needed of a tower that has none.
        """
        needs, features = set(needs), {}
        for name in sorted(need for need in needs if need.endswith(ATTENTION)):
            view = view_of(name)
            also = (need for need in needs if view_of(need) == view and need != name)
            run = partial(self.model, batch, (view, *also), chunks=self.model.chunks)
            tower = cast(ImageTower, self.model.image)
            view_features, features[name] = run_with_attention(tower, batch[view], run)
            features |= view_features
        if rest := needs - features.keys():
            features |= self.model(batch, rest, chunks=self.model.chunks)
        return features


def view_of(feature: str) -> str:
    """Returns the view that a frozen model makes a feature of: `image` of `image.raw`."""
    return student_view_of(feature).removesuffix(ATTENTION)


def lowered(model: TwoTower, dtype: torch.dtype) -> TwoTower:
    """Puts the weights into a precision, but for scale and bias: bfloat16 makes 99 of 100."""
    scalars = [p for p in (model.logit_scale, model.logit_bias) if p is not None]
    values = [scalar.data for scalar in scalars]
    model.to(dtype)
    for scalar, value in zip(scalars, values, strict=True):
        scalar.data = value
    return model


class Teacher(ABC):
    """What a run file names under `teachers`: knows how to make a frozen model, and makes it late.

    It is built when training starts, so that reading a run file loads no weights.
    """

    @abstractmethod
    def build(self, load: Callable[[str | None], TwoTower]) -> FrozenTowers:
        """Makes the frozen model.

        Args:
            load: returns a model of Counterpoint's own with the weights of a run folder, a
                checkpoint or a safetensors file; of None, with those that the run starts from.
        """

    def tokenize(self, texts: Sequence[str], length: int) -> Tensor | None:
        """Returns the ids [n, length] that the model was trained with, padded on the right.

        None: `load` compares the tokenizers.
        """
        return None


class Frozen(Teacher):
    """A model of Counterpoint's own, or one that it can read, frozen.

    Args:
        source: run folder (its newest checkpoint), checkpoint in one, a file of weights of the
            run's own architecture, or a model of another library (`models.interop.read`: a folder
            of open_clip or transformers, `ViT-B-32:FILE`, `openai:FILE`). None: what `init_from`
            names, so that the teacher is the student as it was before the first step.
        precision: of the weights and, without autocast, of the computation.
        placement: where the weights of its layers are: `device`, `sharded` over the ranks, or in
            the memory of the `host`; from the latter two a layer is fetched each time that it runs.
    """

    def __init__(
        self,
        source: str | None = None,
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
        placement: Placement = "device",
    ):
        self.source = source
        self.dtype = DTYPES[precision]
        self.placement: Placement = placement

    def build(self, load: Callable[[str | None], TwoTower]) -> FrozenTowers:
        return FrozenTowers(lowered(load(self.source), self.dtype), self.placement)
