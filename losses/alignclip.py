"""In-modal separation (AlignCLIP): unlike samples of one modality are pushed apart.

L = CE_r(s A) + CE_r(s B), A_ij = D_ij u_i.u_j and B_ij = D_ij v_i.v_j off the diagonal, A_ii =
u_i.v_i = B_ii: each anchor's positive is its pair, its negatives are others of its own modality,
whose logits are scaled by the semantic distance D_ij = 1 - cos(e_i, e_j) of their captions' frozen
embeddings e. Eslami and de Melo, "Mitigate the Gap: Investigating Approaches for Improving
Cross-Modal Alignment in CLIP" (2024); the sum of both sides, as in their code, where the paper has
images only. There it stands with weight 1/2 beside the sum (not the mean) of InfoNCE's directions,
over towers that share their parameters (`models.shared`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .base import PairwiseTerm
from .components.caption_embeddings import CaptionEmbeddings, StoredEmbeddings
from .components.features import Tensors
from .kernels.masks import Below, Distance
from .kernels.reductions import row_sums


class Negatives(ABC):
    """What becomes of negatives that mean nearly the same."""

    @abstractmethod
    def choices(self, meaning: Float[Tensor, "b k"]) -> dict[str, Any]:
        """Returns fields of a `Pairing`, of normalised embeddings of the meaning."""


class Rescaled(Negatives):
    """Their logits shrink with the distance; those of equal meaning still count, with exp(0)."""

    def choices(self, meaning: Float[Tensor, "b k"]) -> dict[str, Any]:
        return {"factor": Distance(meaning, meaning)}


class Removed(Negatives):
    """They are no negatives at all, the others are in full.

    Args:
        limit: the cosine of two meanings from which on they count as the same.
    """

    def __init__(self, limit: float = 0.9):
        self.limit = limit

    def choices(self, meaning: Float[Tensor, "b k"]) -> dict[str, Any]:
        return {"weights": (Below(meaning, meaning, self.limit),)}


class Separation(PairwiseTerm):
    """Sum over modalities of the cross-entropy of the pair among others of the same modality.

    Args:
        semantics: embeddings of the captions' meaning, without gradient: the name of a batch entry
            (a sidecar's, such as `sentence.embedding`) or of a feature (`teacher.NAME.text`), or
            what makes them of the batch (`caption_embeddings.SharedWords`).
        negatives: what becomes of those that mean nearly the same.
        sides: modalities that are spread out; `[image]` as in the paper.
        pairwise: of `PairwiseTerm`.

    Raises:
        ValueError: `sides` are no modalities.
    """

    name = "separation"

    def __init__(
        self,
        semantics: CaptionEmbeddings | str,
        negatives: Negatives | None = None,
        sides: Sequence[str] = ("image", "text"),
        **pairwise: Any,
    ):
        super().__init__(**pairwise)
        if not sides or not set(sides) <= {"image", "text"}:
            raise ValueError(f"Separation has sides={list(sides)}: name image, text or both")
        self.semantics = StoredEmbeddings(semantics) if isinstance(semantics, str) else semantics
        self.negatives = negatives or Rescaled()
        self.sides = tuple(sides)
        self.needs = ("image", "text", *self.semantics.needs)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Sum over the sides of each sample; reads `image`, `text` [b, d] and the meaning."""
        image, text = self.take(features, "image", "text")
        with torch.no_grad():
            meaning = F.normalize(self.semantics(features, batch).to(image.dtype), dim=1)
        scale = self.logit_scale(features)
        positive = scale * (image * text).sum(1)
        losses = []
        for side in self.sides:
            rows = {"image": image, "text": text}[side]
            pairing = self.pairing(pairs="others", **self.negatives.choices(meaning))
            losses.append(
                torch.logaddexp(row_sums(rows, rows, scale, pairing), positive) - positive
            )
        return torch.stack(losses).sum(0)
