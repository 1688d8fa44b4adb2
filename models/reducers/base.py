"""Token reducers: what a training step leaves out before the towers run.

In: uint8 images, token ids, sample keys. Out: smaller images, indices of kept patches, shorter
captions. A reducer belongs to a phase; evaluation has none. What is kept depends on (seed, step,
sample key, view) and on the reducer's own scores alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from ..image import ImageTower
from ..text.base import Lengths
from .keyed_random import draw, stream

Grid = tuple[int, int]  # rows and columns of patches
Keys = Int64[Tensor, " n"]  # of the samples
Tensors = Mapping[str, Tensor]  # features, or entries of the batch, by name
Scores = Mapping[str, Float[Tensor, "n rows columns"]]  # of the patches, by view


class Patches(NamedTuple):
    """What a tower sees of each image.

    Attributes:
        kept: rising indices into the grid of patches, row by row.
        hidden: which of them are hidden behind the tower's mask token; None: none.
        num_hidden: how many of each image's are.
    """

    kept: Int64[Tensor, "n k"]
    hidden: Bool[Tensor, "n k"] | None = None
    num_hidden: int = 0


class ImageView(NamedTuple):
    """An image entry of batches, as it is known before a run.

    Attributes:
        size: side in pixels.
        augmentation: columns of the batch entry `NAME.augmentation`; () for views of an image that
            is not the sample's own.
    """

    size: int
    augmentation: tuple[str, ...] = ()


Views = Mapping[str, ImageView]


class ImageReducer:
    """Shortens the image tower's sequence; this one changes nothing.

    Subclasses override `pixels`, `keep`, or both: `pixels` acts first. A reducer that keeps patches
    by scores of its own overrides `scores` too, and reads them in `keep` from `reduction.scores`.

    Attributes:
        needs: features that `scores` reads: those of frozen models (`ema.VIEW`,
            `teacher.NAME.VIEW`, each also as `.raw` and, of a ViT with a class token,
            `.attention`), or entries of sidecars (`NAME.COLUMN`).
    """

    needs: tuple[str, ...] = ()

    def prepare(self, tower: ImageTower) -> None:
        """Gives the tower the parameters that this reducer needs, when a run is built.

        Raises:
            ValueError: the two do not fit.
        """

    def check_views(self, tower: ImageTower, views: Views, scored: Sequence[str]) -> None:
        """Checks, when a run is built, that `scores` can be computed from what batches hold.

        Args:
            tower: of the student.
            views: the images that batches hold.
            scored: names of those that the student encodes.

        Raises:
            ValueError: a view is missing or of no use.
        """

    def scores(self, features: Tensors, batch: Tensors, grids: Mapping[str, Grid]) -> Scores:
        """Scores the patches of each view in `grids`, before the student runs; {}: no scores.

        Args:
            features: those in `needs`, without gradient.
            batch: as for the model.
            grids: rows and columns of patches of the views that the student encodes.
        """
        return {}

    def pixels(self, image: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h2 w2"]:
        """Returns the images to cut into patches."""
        return image

    def keep(self, grid: Grid, keys: Keys, view: str, reduction: "Reduction") -> Patches | None:
        """Chooses the patches that the tower sees; None: all as they are.

        Args:
            grid: rows and columns of patches of what `pixels` returned.
            keys: sample keys.
            view: batch entry, such as `image` or `image.strong_1`; each view draws anew.
            reduction: of the step.
        """
        return None


class WrappedReducer(ImageReducer, ABC):
    """A reducer around another one: what it does not override, the inner one does.

    Args:
        inner: the reducer inside.
    """

    @abstractmethod
    def __init__(self, inner: ImageReducer):
        self.inner = inner
        self.needs = inner.needs

    def prepare(self, tower: ImageTower) -> None:
        self.inner.prepare(tower)

    def check_views(self, tower: ImageTower, views: Views, scored: Sequence[str]) -> None:
        self.inner.check_views(tower, views, scored)

    def scores(self, features: Tensors, batch: Tensors, grids: Mapping[str, Grid]) -> Scores:
        return self.inner.scores(features, batch, grids)

    def pixels(self, image: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h2 w2"]:
        return self.inner.pixels(image)

    def keep(self, grid: Grid, keys: Keys, view: str, reduction: "Reduction") -> Patches | None:
        return self.inner.keep(grid, keys, view, reduction)


class TextReducer:
    """Shortens the text tower's sequence; this one changes nothing."""

    def tokens(
        self,
        text: Int64[Tensor, "n t"],
        length: Lengths,
        keys: Keys,
        view: str,
        reduction: "Reduction",
    ) -> tuple[Int64[Tensor, "n t2"], Lengths]:
        """Shortens captions; the last token of each (the end of text) stays its last.

        Args:
            text: token ids, padded after the end of text.
            length: of each caption.
            keys: sample keys.
            view: batch entry, such as `text`; each view draws anew.
            reduction: of the step.

        Returns:
            The ids, padded, and the new lengths.
        """
        return text, length


@dataclass(frozen=True)
class Reduction:
    """The reducers of one training step, and what their choices depend on.

    Attributes:
        seed: of the run.
        step: global step.
        image: None: images stay whole.
        text: None: captions stay whole.
        scores: what `image.scores` returned, by view.
    """

    seed: int
    step: int
    image: ImageReducer | None = None
    text: TextReducer | None = None
    scores: Scores = field(default_factory=dict)

    def draw(self, keys: Keys, view: str, count: int) -> Int64[Tensor, "n count"]:
        """Draws `count` numbers a sample, uniform in 0 .. 2^63 - 1, for this step and view."""
        return draw(stream(self.seed, self.step, view), keys, count)
