"""A term on nested prefixes of the embeddings, so that short ones are good embeddings too.

L = sum_w c_w L(first w dimensions of every feature, normalised again). Kusupati et al., "Matryoshka
Representation Learning" (2022), section 3, where all c_w are 1 and the widths halve.
"""

from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..base import Term
from ..components.features import MODEL_SCALARS, Tensors, full_precision, need
from ..components.similarity import Similarity


class Matryoshka(Term):
    """Another term at several widths.

    Features of the towers are cut (`image`, `text`, their views, and those of an EMA of them); a
    teacher's, which have a space of their own, are not. The logit scale is the same at all widths.

    Args:
        term: the loss. It reads features and nothing else of the embeddings' width.
        widths: the prefixes; name the full width too.
        weights: c_w; 1 unless given.

    Raises:
        ValueError: widths do not grow, or weights do not belong to them.
    """

    def __init__(self, term: Term, widths: Sequence[int], weights: Sequence[float] | None = None):
        super().__init__()
        if not widths or min(widths) < 1 or sorted(set(widths)) != list(widths):
            raise ValueError(f"widths: {widths} are not growing numbers of dimensions above 0")
        if weights is not None and len(weights) != len(widths):
            raise ValueError(f"weights: {weights} are not one number for each of {widths}")
        self.term = term
        self.widths = tuple(widths)
        self.weights = tuple(weights or [1.0] * len(widths))
        self.needs = term.needs

    def ranking_similarity(self) -> Similarity | None:
        return self.term.ranking_similarity()

    @property
    def reads_weight(self) -> bool:
        return self.term.reads_weight

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        """Returns `{NAME_WIDTH: c_w times the value}`, this rank's shares."""
        return {
            f"{name}_{width}": weight * value
            for width, weight, cut in self._cuts(features)
            for name, value in self.term(cut, batch).items()
        }

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"] | None:
        rows = [(c, self.term.per_sample(cut, batch)) for _, c, cut in self._cuts(features)]
        parts = [c * row for c, row in rows if row is not None]
        return sum(parts[1:], start=parts[0]) if parts else None

    def _cuts(self, features: Tensors) -> Iterator[tuple[int, float, dict[str, Tensor]]]:
        """Yields widths, their weights, and the features with those of the towers cut.

        Raises:
            ValueError: a feature is narrower.
        """
        towers = [n for n in self.needs if n.split(".")[0] in ("image", "text", "ema")]
        # The average has scalars as well.
        names = [n for n in towers if n.split(".")[-1] not in MODEL_SCALARS]
        # In full precision before they are cut: the gradients of all widths are added up in it.
        uncut = dict(
            zip(names, full_precision(*(need(features, n, self) for n in names)), strict=True)
        )
        for width, weight in zip(self.widths, self.weights, strict=True):
            yield width, weight, {**features, **{n: _cut(n, uncut[n], width) for n in names}}


def _cut(name: str, feature: Float[Tensor, "b d"], width: int) -> Float[Tensor, "b w"]:
    if feature.shape[-1] < width:
        raise ValueError(
            f"widths: '{name}' has {feature.shape[-1]} dimensions, fewer than {width}; "
            "change widths, or model.embed_dim"
        )
    prefix = feature[..., :width]
    is_uncut = name.endswith(".raw") or feature.shape[-1] == width
    return prefix if is_uncut else F.normalize(prefix, dim=-1)
