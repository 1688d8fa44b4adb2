"""A term on several views of the pairs: two crops with one caption, an image with two captions.

L = 1/V sum over the V pairs of views of L(image view, text view), for any term over `image` and
`text`. A-CLIP has InfoNCE of two crops with the caption: Yang et al., "Attentive Mask CLIP" (2023),
section 3.3.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..base import Term
from ..components.features import Tensors, need
from ..components.similarity import Similarity

MAIN = ("image", "text")
# Of a view's features, what is behind its name.
FORMS = ("raw", "pooled", "tokens", "hidden")


class OverViews(Term):
    """Another term, which is shown one pair of views after the other as `image` and `text`.

    All forms of these features are exchanged (`image.raw` by `image.other.raw`), and the entries of
    the batch that the views are made of; features of teachers and averages, and further views that
    the term names itself (`text.negative`), are not. What the term counts, it counts once a pair.

    Args:
        term: the loss.
        views: pairs of a view of the images and one of the texts.

    Raises:
        ValueError: there is no pair, or a name is no view of its modality.
    """

    def __init__(self, term: Term, views: Sequence[tuple[str, str]] = (("image", "text"),)):
        super().__init__()
        if not views or not all(
            name.split(".")[0] == main
            for pair in views
            for name, main in zip(pair, MAIN, strict=True)
        ):
            raise ValueError(
                f"views={[list(pair) for pair in views]} must be pairs of an image view and a text "
                "view, such as [[image, text], [image.other, text]]"
            )
        self.term = term
        self.views: list[dict[str, str]] = [dict(zip(MAIN, pair, strict=True)) for pair in views]
        self.needs = tuple(
            dict.fromkeys(_shown(name, views) for views in self.views for name in term.needs)
        )

    def ranking_similarity(self) -> Similarity | None:
        return self.term.ranking_similarity()

    @property
    def reads_weight(self) -> bool:
        return self.term.reads_weight

    @property
    def ahead(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(_shown(name, views) for views in self.views for name in self.term.ahead)
        )

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        """Returns the term's values, means over the pairs of views."""
        values = [self.term(*inputs) for inputs in self._inputs(features, batch)]
        return {name: torch.stack([v[name] for v in values]).mean(0) for name in values[0]}

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"] | None:
        rows = [self.term.per_sample(*inputs) for inputs in self._inputs(features, batch)]
        parts = [row for row in rows if row is not None]
        return torch.stack(parts).mean(0) if parts else None

    def _inputs(self, features: Tensors, batch: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        for views in self.views:
            mains = [name for name in self.term.needs if _main(name) is not None]
            shown = {name: need(features, _shown(name, views), self) for name in mains}
            entries = dict(batch)
            for main, view in views.items():
                # The texts of a view have their lengths beside them: `text.long_length`.
                own = [name for name in batch if name == view or name.startswith(f"{view}_")]
                entries |= {main + name.removeprefix(view): batch[name] for name in own}
            yield {**features, **shown}, entries


def _main(name: str) -> str | None:
    """Returns which of `MAIN` a feature is a form of; None: it is another view, or no student's."""
    main, _, form = name.partition(".")
    return main if main in MAIN and form in ("", *FORMS) else None


def _shown(name: str, views: Mapping[str, str]) -> str:
    """Returns the feature that stands for another under these views."""
    main = _main(name)
    return name if main is None else views[main] + name.removeprefix(main)
