"""How far images and captions lie apart, and how evenly each are spread.

On embeddings of length one, u of images and v of captions:

- gap: |mean u - mean v| (Liang et al. 2022, "Mind the Gap", section 2.1);
- alignment: the mean squared distance of an image and its caption, and
- uniformity: log mean exp(-2 d^2) over pairs of different rows (Wang and Isola 2020,
  "Understanding Contrastive Representation Learning", section 4.1): lower is more even;
- effective rank: exp of the entropy of the normalised singular values (Roy and Vetterli 2007;
  Garrido et al. 2023, RankMe), without centring: 1 if all are equal, at most the dimension.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..encode import Encoder
from ..outcomes import Outcomes
from ..retrieval import Retrieval
from ..task import order_by_hash

# Products held at a time (32 MiB of float64).
CHUNK_PRODUCTS = 1 << 22


class ModalityGeometry(Retrieval):
    """Gap, alignment, uniformity and effective rank of pairs.

    Measures: `modality_gap.length`, `alignment.squared_distance`, `image_uniformity.nats`,
    `text_uniformity.nats`, `image_rank.dimensions`, `text_rank.dimensions`. An image counts with
    its first caption, a caption once. Embeddings are normalised under every objective.

    Args:
        max_pairs: at most so many images are used, the same ones for every model.
        retrieval: arguments of `Retrieval`; `k` plays no part.
    """

    def __init__(self, max_pairs: int = 5000, **retrieval):
        super().__init__(**retrieval)
        if max_pairs < 2:
            raise ValueError(f"max_pairs is {max_pairs}; it takes two pairs to compare them")
        self.max_pairs = max_pairs

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        keys = self.keys(chosen)
        self._chosen = np.sort(chosen[order_by_hash(keys)[: self.max_pairs]])
        return self._chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        captions = [self._captions[i][0] for i in chosen.tolist()]
        position = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        image = encoder.image_features(self.data, chosen).cpu().double()
        text = encoder.text_features(list(position)).cpu().double()
        own = text[torch.tensor([position[caption] for caption in captions])]
        apart = (image - own).square().sum(1).numpy()
        return {
            "modality_gap.length": float((image.mean(0) - own.mean(0)).norm()),
            "alignment.squared_distance": Outcomes(float(apart.mean()), apart, self.keys(chosen)),
            "image_uniformity.nats": uniformity(image),
            "text_uniformity.nats": uniformity(text),
            "image_rank.dimensions": effective_rank(image),
            "text_rank.dimensions": effective_rank(text),
        }


def uniformity(rows: Tensor) -> float:
    """Returns log mean exp(-2 |x - y|^2) over pairs of different rows, which have length one."""
    num = len(rows)
    if num < 2:
        return float("nan")
    total, at_a_time = rows.new_zeros(()), max(1, CHUNK_PRODUCTS // num)
    for start in range(0, num, at_a_time):
        products = rows[start : start + at_a_time] @ rows.T
        total += (4 * (products - 1)).exp().sum()
    # Each row with itself is 1; rounding of its length is taken out, too.
    itself = (4 * (rows.square().sum(1) - 1)).exp().sum()
    return float(((total - itself) / (num * (num - 1))).log())


def effective_rank(rows: Tensor) -> float:
    """Returns exp of the entropy of the singular values as shares of their sum."""
    if not rows.isfinite().all():  # of a model that diverged
        return float("nan")
    values = torch.linalg.svdvals(rows)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
