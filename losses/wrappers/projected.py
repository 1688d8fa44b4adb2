"""A second projection for one term alone, so that the term does not change the embedding itself.

L(h(x), k(y)) for a term L of the embeddings x and y, with heads h and k that nothing else uses.
They belong to the term: they are trained and saved with the objective; exported models have none.
Yang et al., "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head"
(2024), give the loss on logits a classifier of its own, because both losses pull at the same one;
a head on the embeddings is that for two towers, in our reading.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Term
from ..components.features import Tensors, full_precision, need

TOWERS = ("image", "text")


class Projected(Term):
    """Another term, which sees the student's embeddings through heads.

    Those of the towers (`image`, `text`, their views) go through the head of their modality;
    teachers' and averages' do not.

    Args:
        term: the loss.
        image_head, text_head: take embeddings before normalisation, such as `heads.MLP`.
    """

    def __init__(self, term: Term, image_head: nn.Module, text_head: nn.Module):
        super().__init__()
        self.term = term
        self.image_head, self.text_head = image_head, text_head
        self.views = tuple(
            dict.fromkeys(
                name.removesuffix(".raw") for name in term.needs if name.split(".")[0] in TOWERS
            )
        )
        others = (name for name in term.needs if name.split(".")[0] not in TOWERS)
        self.needs = (*(f"{view}.raw" for view in self.views), *others)

    @property
    def reads_weight(self) -> bool:
        return self.term.reads_weight

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        return self.term(self._projected(features), batch)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"] | None:
        return self.term.per_sample(self._projected(features), batch)

    def _projected(self, features: Tensors) -> dict[str, Tensor]:
        projected = dict(features)
        for view in self.views:
            head = self.image_head if view.split(".")[0] == "image" else self.text_head
            (raw,) = full_precision(need(features, f"{view}.raw", self))
            (raw,) = full_precision(head(raw))
            projected |= {f"{view}.raw": raw, view: F.normalize(raw, dim=-1)}
        return projected
