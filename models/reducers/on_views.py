"""A reducer for some views of a step, the others staying whole.

In: the reducer, names of views. Out: its patches in these. SigLIP 2 hides patches of a view that
the loss between modalities does not see (Tschannen et al. 2025, section 2.3).
"""

from collections.abc import Sequence

from jaxtyping import UInt8
from torch import Tensor

from ..image import ImageTower
from .base import Grid, ImageReducer, Keys, Patches, Reduction, Views, WrappedReducer
from .patches import Resize


class OnViews(WrappedReducer):
    """Keeps or hides patches in the named views alone.

    Args:
        of: chooses the patches of these; images keep their size.
        views: batch entries, such as [image.whole].

    Raises:
        ValueError: no views, or a reducer that makes images smaller.
    """

    def __init__(self, of: ImageReducer, views: Sequence[str]):
        super().__init__(of)
        if isinstance(views, str) or not views:
            raise ValueError(f"OnViews has views={views!r}: give a list such as [image.whole]")
        inner = of
        while isinstance(inner, WrappedReducer):
            if isinstance(inner, Resize):
                raise ValueError(
                    "OnViews holds a Resize, which knows no views: give data.views the size that "
                    "a view is to have, or put OnViews into Resize (as `then`)"
                )
            inner = inner.inner
        self.views = tuple(views)

    def check_views(self, tower: ImageTower, views: Views, scored: Sequence[str]) -> None:
        super().check_views(tower, views, scored)
        if missing := [view for view in self.views if view not in scored]:
            raise ValueError(
                f"OnViews names {missing}, which the student does not encode; it encodes "
                f"{list(scored)}: name one of these, or a term that reads the view"
            )

    def pixels(self, image: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
        return image

    def keep(self, grid: Grid, keys: Keys, view: str, reduction: Reduction) -> Patches | None:
        return super().keep(grid, keys, view, reduction) if view in self.views else None
