"""Several objects: whether size in an image and order in a caption decide what is seen.

Abbasi et al., "CLIP Under the Microscope: A Fine-Grained Analysis of Multi-Object Representation"
(2025): image encoders favour the larger object, text encoders the one that is named first. The
paper renders scenes; here two images of different classes stand side by side, one of them larger.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ....data.image_sets import ImageSet, Item
from ..accuracy import class_ranks
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import full_precision
from ..task import order_by_hash
from ..zero_shot.classification import ZeroShot

CANVAS, GROUND = 224, 255


class MultiObject(ZeroShot):
    """What zero-shot classification sees of two objects.

    Measures: `large_top1` and `small_top1`, the shares of pairs whose larger (smaller) object's
    class scores highest of all; `large_first`, the share in which the larger object's class scores
    higher than the smaller one's; `first_mentioned`, over the pairs of names in both orders, the
    share of captions that lie nearer to the object that is named first. The last two are 50%
    without a bias.

    Args:
        large: side of the larger image, as a share of the canvas; the smaller one takes the rest.
        both: the caption of two objects, with `{a}` and `{b}` for their names.
        seed: of the choice of partners; an image's is of another class.
        zeroshot: arguments of `ZeroShot`; each image shows one object.
    """

    def __init__(self, large: float = 0.7, both: str = "{a} and {b}", seed: int = 0, **zeroshot):
        super().__init__(**zeroshot)
        if not 0.5 < large < 1 or "{a}" not in both or "{b}" not in both:
            raise ValueError(
                f"large is {large}, a share of the side from 0.5 to 1, and both is '{both}', which "
                "needs {a} and {b} for the two names"
            )
        self.large = large
        self.both = both
        self.seed = seed
        self._partners: dict[int, int] = {}

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        labels = np.array([self._targets[i] for i in chosen.tolist()])
        if len(set(labels.tolist())) < 2:
            raise ValueError(f"{self.data} show one class, '{self._names[labels[0]]}'; give two")
        partners = partners_of(labels, self.keys(chosen), self.seed)
        pairs = dict(zip(chosen.tolist(), chosen[partners].tolist(), strict=True))
        if pairs != self._partners:  # else decoded ones are kept from one evaluation to the next
            self._partners = pairs
            self._pairs = Pairs(self.data, pairs, self.large)
        return chosen

    def image_sets(self) -> dict[ImageSet, np.ndarray]:
        return {self._pairs: np.arange(len(self._partners))}

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        keys, items = self.keys(chosen), chosen.tolist()
        place = {item: i for i, item in enumerate(self._partners)}
        classifier = self.classifier(encoder)
        image = encoder.images(self._pairs, [place[i] for i in items])
        with full_precision(image.device):
            scores = image @ classifier.T
        large = torch.tensor([self._targets[i] for i in items], device=image.device)
        small = torch.tensor([self._targets[self._partners[i]] for i in items], device=image.device)
        is_first = (scores.gather(1, large[:, None]) > scores.gather(1, small[:, None]))[:, 0]
        shares = {
            "large_top1": class_ranks(scores, large) < 1,
            "small_top1": class_ranks(scores, small) < 1,
            "large_first": is_first.cpu(),
        }
        values: dict[str, float | Outcomes] = {
            name: Outcomes(float(share.double().mean()), share.numpy(), keys)
            for name, share in shares.items()
        }
        return {**values, "first_mentioned": self._first_mentioned(encoder, items)}

    def _first_mentioned(self, encoder: Encoder, items: list[int]) -> Outcomes:
        pairs = {(self._targets[i], self._targets[self._partners[i]]) for i in items}
        ordered = sorted(pairs | {(b, a) for a, b in pairs})
        captions = [
            self.both.replace("{a}", self._names[a]).replace("{b}", self._names[b])
            for a, b in ordered
        ]
        both = encoder.text_features(captions)
        single = F.normalize(encoder.text_features(self._names), dim=1)
        first, second = torch.tensor(ordered, device=both.device).T
        nearer = (both * single[first]).sum(1) > (both * single[second]).sum(1)
        is_nearer = nearer.cpu().numpy()
        return Outcomes(float(is_nearer.mean()), is_nearer, captions)


class Pairs(ImageSet):
    """Two images beside one another: each one, large, with its partner, small.

    Args:
        images: the single images.
        partners: partner of each item.
        large: side of the larger one, as a share of the canvas.
    """

    default_label = "cls"

    def __init__(self, images: ImageSet, partners: Mapping[int, int], large: float):
        self.images = images
        self.partners = list(partners.items())
        self.large = round(large * CANVAS)

    def __str__(self) -> str:
        return f"pairs of {self.images}"

    def walk(self) -> Iterator[Item]:
        for one, other in self.partners:
            names: list[Any] = [self.images.items[i].get("key") for i in (one, other)]
            yield Item("pairs", 0, 0, {"key": f"{names[0]} {names[1]}"})

    def image(self, index: int) -> Tensor:
        one, other = (self.images.image(i) for i in self.partners[index])
        canvas = torch.full((3, CANVAS, CANVAS), GROUND, dtype=torch.uint8)
        small = CANVAS - self.large
        canvas[:, : self.large, : self.large] = _resized(one, self.large)
        canvas[:, -small:, -small:] = _resized(other, small)
        return canvas


def partners_of(labels: np.ndarray, keys: list[str], seed: int) -> np.ndarray:
    """Returns for each item another one of another class, as their names and a seed decide."""
    order = order_by_hash(keys, seed)
    partners = np.empty(len(labels), dtype=np.int64)
    for position, item in enumerate(order.tolist()):
        others = np.roll(order, -position - 1)
        partners[item] = others[np.flatnonzero(labels[others] != labels[item])[0]]
    return partners


def _resized(image: Tensor, side: int) -> Tensor:
    """Returns the image, squeezed to a square."""
    size = (side, side)
    resized = F.interpolate(image.float()[None], size, mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)
