"""TextSpan: what each attention head writes into an image's embedding, in words.

Gandelsman et al., "Interpreting CLIP's Image Representation via Text-Based Decomposition" (2024),
section 4.2 and algorithm 1: over many images a head's contributions are rows of a matrix. Of a list
of texts the one along which they vary most is taken, what it explains is taken out of the rows and
of the other texts, and so on. The first texts name what the head looks for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ....data.image_sets import ImageSet
from ....models.head_contributions import HeadContributions
from ..details import Detail, Texts
from ..encode import Encoder
from ..outcomes import Outcomes
from ..task import Task, order_by_hash

RANK = 80  # of a head's contributions, in the published code


class TextSpan(Task):
    """Texts that span what the heads of the last layers contribute.

    Measures: `explained`, the share of a head's variance over images that its texts explain, mean
    over heads; `ablated_cosine`, of embeddings with those in which all but these heads are their
    mean over the images; `spanned_cosine`, the same with heads that are what their texts explain;
    `texts`, the texts of each head, written beside the numbers. It takes a ViT whose parts add up
    (`models/head_contributions.py`).

    Args:
        data: the images; more varied ones show more of a head.
        texts: descriptions to choose from, some thousands: a list, or a file with one a line or a
            list in JSON, relative to the data root.
        layers: how many of the last layers are described; 4 in the paper.
        texts_per_head: how many texts each head gets.
        max_images: at most so many are used, the same ones for every model.
        where: see `Task`.
        by: see `Task`.
    """

    def __init__(
        self,
        data: ImageSet,
        texts: list[str] | str,
        layers: int = 4,
        texts_per_head: int = 10,
        max_images: int = 5000,
        where: dict[str, Any] | None = None,
        by: str | None = None,
    ):
        super().__init__(data, where, by)
        if min(layers, texts_per_head) < 1 or max_images < 2:
            raise ValueError(
                f"layers is {layers}, texts_per_head {texts_per_head}, max_images {max_images}; "
                "each has to be at least 1, and images two, or nothing varies"
            )
        self.texts = texts
        self.layers = layers
        self.texts_per_head = texts_per_head
        self.max_images = max_images

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        texts = _read(self.data.root / self.texts) if isinstance(self.texts, str) else self.texts
        self._texts = list(dict.fromkeys(str(text) for text in texts))
        if len(self._texts) < self.texts_per_head:
            raise ValueError(
                f"texts: there are {len(self._texts)} different ones, and {self.texts_per_head} "
                "are chosen for each head; give more"
            )
        self._chosen = np.sort(chosen[order_by_hash(self.keys(chosen))[: self.max_images]])
        return self._chosen

    def measure(
        self, encoder: Encoder, chosen: np.ndarray
    ) -> Mapping[str, float | Outcomes | Detail]:
        parts = _Parts(encoder.model, self.layers)
        # The other tasks' features and items are of the whole model.
        shared = replace(encoder, model=parts, wanted={self.data: chosen})
        rows = shared.image_features(self.data, chosen, ".raw").cpu().double()
        raw, heads = parts.taken_apart(rows)
        texts = encoder.text_features(self._texts).cpu().double()
        centres = heads.mean(0, keepdim=True)
        rest = (raw - heads.sum((1, 2))).mean(0)
        explained, spanned, lists = [], torch.zeros_like(raw), {}
        for layer, head in np.ndindex(*heads.shape[1:3]):
            own = heads[:, layer, head] - centres[:, layer, head]
            found, share, part = span(
                own, row_space(heads[:, layer, head], texts), self.texts_per_head
            )
            explained.append(share)
            spanned += part + centres[:, layer, head]
            lists[f"layer {parts.first + layer} head {head}"] = [self._texts[i] for i in found]
        cosines = {
            "ablated_cosine": F.cosine_similarity(rest + heads.sum((1, 2)), raw).numpy(),
            "spanned_cosine": F.cosine_similarity(rest + spanned, raw).numpy(),
        }
        keys, shares = self.keys(chosen), np.array(explained)
        return {
            "explained": Outcomes(float(shares.mean()), shares, list(lists)),
            **{name: Outcomes(float(each.mean()), each, keys) for name, each in cosines.items()},
            "texts": Texts(lists),
        }


@dataclass
class _Parts:
    """A model whose image features are its embeddings before normalisation, and heads' parts."""

    model: Any
    layers: int

    def __post_init__(self) -> None:
        towers = (getattr(self.model, name, None) for name in ("image", "image_projection"))
        self.decompose = HeadContributions(*towers)  # type: ignore[arg-type]
        blocks: list[Any] = list(self.decompose.trunk.blocks)
        self.layers = min(self.layers, len(blocks))
        self.first = len(blocks) - self.layers
        self.num_heads: int = blocks[0].attn.num_heads

    @property
    def image_size(self) -> int:
        return self.model.image_size

    def encode_image(self, image: Tensor, form: str = "") -> Tensor:
        found = self.decompose(image)
        return torch.cat([found.total(), found.heads[:, self.first :].flatten(1)], 1)

    def taken_apart(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns embeddings [n, d], and what heads add to them, [n, layers, heads, d]."""
        parts = rows.unflatten(1, (1 + self.layers * self.num_heads, -1))
        return parts[:, 0], parts[:, 1:].unflatten(1, (self.layers, self.num_heads))


def row_space(rows: Tensor, texts: Tensor, rank: int = RANK) -> Tensor:
    """Returns texts [m, d] projected to the directions in which rows [n, d] are longest."""
    if not rows.isfinite().all():  # of a model that diverged
        return texts
    values, directions = torch.linalg.eigh(rows.T @ rows)
    # A head writes into few directions; in the others there is the rounding of float32.
    is_there = values > 1e-10 * values[-1].clamp_min(1e-300)
    basis = directions[:, is_there][:, -rank:]
    return texts @ basis @ basis.T


def span(rows: Tensor, texts: Tensor, count: int) -> tuple[list[int], float, Tensor]:
    """Chooses texts one after the other by the variance of rows along them.

    Args:
        rows: of mean zero, float64 [n, d].
        texts: [m, d]; their lengths count, as in the published code.
        count: how many to choose; fewer, if these explain all.

    Returns:
        Their positions, the share of the rows' variance that they explain, that part of the rows.
    """
    left, texts, found = rows.clone(), texts.clone(), []
    total, smallest = float(rows.square().sum()), 1e-9 * float(texts.square().sum(1).max())
    for _ in range(count):
        lengths = texts.square().sum(1)
        variances = (left @ texts.T).square().sum(0).masked_fill(lengths <= smallest, -1.0)
        best = int(variances.argmax())
        if not variances[best] > 0:  # nothing is left, or the model diverged
            break
        found.append(best)
        direction = texts[best] / lengths[best].sqrt()
        left -= (left @ direction)[:, None] * direction
        texts -= (texts @ direction)[:, None] * direction
    explained = 1 - float(left.square().sum()) / total if total > 0 else 0.0
    return found, explained, rows - left


def _read(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"texts: there is no file {path}")
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
