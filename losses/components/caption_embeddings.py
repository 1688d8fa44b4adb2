"""Embeddings of what captions mean: their cosines measure how alike two captions are.

In: features and batch. Out: an embedding of each of this rank's captions, without gradient, not yet
normalised. A row of zeros is unlike everything.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .features import Tensors, need


class CaptionEmbeddings(nn.Module, ABC):
    """A source of embeddings; `needs` names what is to be computed for it."""

    needs: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b k"]:
        """Returns an embedding of each caption."""


class StoredEmbeddings(CaptionEmbeddings):
    """Computed elsewhere: an entry of the batch (a sidecar's), or a frozen model's feature.

    Args:
        name: such as `sentence.embedding`, or `teacher.NAME.text`.
    """

    def __init__(self, name: str):
        super().__init__()
        self.needs = (name,)

    def forward(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b k"]:
        """Returns the entry; zeros where a sidecar has no row."""
        (name,) = self.needs
        source = features if name in features else batch
        fix = "store it in a sidecar (data.sidecars), or name a teacher's feature"
        return need(source, name, self, fix).detach()


class SharedWords(CaptionEmbeddings):
    """Bags of hashed tokens, whose cosine counts common tokens: for short captions.

    Each token adds 1 or -1, by a hash, to one of `width` numbers, so that different tokens are
    seldom taken for one another. Weinberger et al., "Feature Hashing for Large Scale Multitask
    Learning" (2009).

    Args:
        width: of the bag.
    """

    def __init__(self, width: int = 512):
        super().__init__()
        self.width = width

    def forward(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b k"]:
        """Counts the tokens of the batch's `text` between those of its start and end."""
        text, length = batch["text"], batch["text_length"]
        positions = torch.arange(text.shape[1], device=text.device)
        is_word = (positions > 0) & (positions < length[:, None] - 1)
        # Knuth's multiplicative hash; the product of 32-bit numbers fits 64 bits.
        mixed = (text * 2654435761) & 0xFFFFFFFF
        sign = 1 - 2 * ((mixed >> 8) & 1)
        counts = torch.zeros(len(text), self.width, device=text.device)
        return counts.scatter_add_(1, (mixed >> 12) % self.width, (sign * is_word).float())
