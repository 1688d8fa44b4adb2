"""A term over the samples that have what it reads alone: stored teachers with gaps.

In: a mask from the batch. Out: the term's value as if the global batch had no other samples. Ranks
may keep any number of rows, or none.
"""

from torch import Tensor

from ..base import Term
from ..components.features import Tensors
from ..components.similarity import Similarity
from ..distributed.collectives import equal_rows


def needed(mask: str) -> tuple[str, ...]:
    """Returns what a mask adds to `needs`: itself, unless it is that of a view or text.

    Such a mask (`text.long.present`) is always in the batch; as a need, a tower would encode it.
    """
    return () if mask.split(".")[0] in ("image", "text") else (mask,)


class Masked(Term):
    """Another term, on the samples that a mask names; the mean is over them.

    Args:
        term: the loss. It gets the rows of these samples, of features and of batch entries, and no
            pixels.
        mask: batch entry, bool [b], such as `SIDECAR.present`.
    """

    def __init__(self, term: Term, mask: str):
        super().__init__()
        self.term = term
        self.mask = mask
        self.needs = (*term.needs, *needed(mask))

    def ranking_similarity(self) -> Similarity | None:
        return self.term.ranking_similarity()

    @property
    def reads_weight(self) -> bool:
        return self.term.reads_weight

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        mask = batch[self.mask].bool()
        # Scalars have less than two dimensions, pixels four; `.host` is a copy for the towers.
        rows = {n: t[mask] if t.ndim > 1 else t for n, t in features.items()}
        entries = {n: t[mask] for n, t in batch.items() if t.ndim < 4 and not n.endswith(".host")}
        with equal_rows(None):
            return self.term(rows, entries)
