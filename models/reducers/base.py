"""Token reducers: what a training step leaves out before the towers run.

In: uint8 pictures, token ids, sample keys. Out: smaller pictures, indices of kept patches, shorter
captions. A reducer belongs to a phase; evaluation has none. What is kept depends on (seed, step,
sample key, view) alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ..image import ImageTower
from .keyed_random import draws, stream


class ImageReducer:
    """Shortens the image tower's sequence; this one changes nothing.

    Subclasses override `pixels`, `keep`, or both: `pixels` acts first.

    Attributes:
        sees: Batch entry of the pictures that the moving average of the image tower must look at
            for `Reduction.scores`; None: no scores are needed.
    """

    sees: str | None = None

    def prepare(self, tower: ImageTower) -> None:
        """Gives the tower the parameters that this reducer needs, when a run is built.

        Raises:
            ValueError: the two do not fit.
        """

    def pixels(self, image: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h2 w2"]:
        """Returns the pictures to cut into patches."""
        return image

    def keep(
        self,
        grid: tuple[int, int],
        keys: Int64[Tensor, " n"],
        view: str,
        reduction: "Reduction",
    ) -> Int64[Tensor, "n k"] | None:
        """Chooses the patches that the tower sees.

        Args:
            grid: Rows and columns of patches of what `pixels` returned.
            keys: Sample keys.
            view: Batch entry, such as `image` or `image.strong_1`; each view draws anew.
            reduction: Of the step.

        Returns:
            Rising indices into the grid, row by row; `~i` stands for patch `i` hidden behind the
            tower's mask token. None: all patches as they are.
        """
        return None


class TextReducer:
    """Shortens the text tower's sequence; this one changes nothing."""

    def tokens(
        self,
        text: Int64[Tensor, "n t"],
        length: Int64[Tensor, " n"],
        keys: Int64[Tensor, " n"],
        view: str,
        reduction: "Reduction",
    ) -> tuple[Int64[Tensor, "n t2"], Int64[Tensor, " n"]]:
        """Shortens captions; the last token of each (the end of text) stays its last.

        Args:
            text: Token ids, padded after the end of text.
            length: Tokens of each caption, start and end included.
            keys: Sample keys.
            view: Batch entry, such as `text`; each view draws anew.
            reduction: Of the step.

        Returns:
            The ids, padded, and the new lengths.
        """
        return text, length


@dataclass(frozen=True)
class Reduction:
    """The reducers of one training step, and what their choices depend on.

    Attributes:
        seed: Of the run.
        step: Global step.
        image: None: pictures stay whole.
        text: None: captions stay whole.
        scores: How much each patch matters, [n, rows, columns] by view, for reducers that ask.
    """

    seed: int
    step: int
    image: ImageReducer | None = None
    text: TextReducer | None = None
    scores: Mapping[str, Float[Tensor, "n rows columns"]] = field(default_factory=dict)

    def draws(self, keys: Int64[Tensor, " n"], view: str, count: int) -> Int64[Tensor, "n count"]:
        """Draws `count` numbers a sample, uniform in 0 .. 2^63 - 1, for this step and view."""
        return draws(stream(self.seed, self.step, view), keys, count)
