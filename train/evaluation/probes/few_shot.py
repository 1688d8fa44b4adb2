"""Base of few-shot heads: zero-shot logits plus a bias that a few images a class give.

In: a zero-shot task and a training split. Out: accuracies of `100 * cosine + bias`. How the bias is
weighted is chosen on images of the training split that are not among the shots, never on the test
split (where several published scripts choose it).
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....data.image_sets import ImageSet
from ....losses.components.similarity import Metric
from ..accuracy import accuracies, class_ranks
from ..details import Detail
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import full_precision
from ..task import order_by_hash
from ..zero_shot.classification import ZeroShot
from .labelled import training_items
from .linear_probe import quality

SCALE = 100.0


@dataclass(frozen=True)
class Shots:
    """Images with what heads read of them.

    Attributes:
        features: embeddings of length one, float32 [n, d].
        logits: zero-shot logits, 100 times the cosine, float32 [n, classes].
        targets: int64 [n].
        auxiliary: features of another kind, of length one [n, k]; empty unless a head asks.
    """

    features: Tensor
    logits: Tensor
    targets: Tensor
    auxiliary: Tensor


class FewShot(ZeroShot):
    """Accuracy of a zero-shot classifier with a logit bias from a few images a class.

    Measures: `top1`, `top5` (with more than five classes) and `mean_per_class_recall` of the head,
    `zero_shot_top1` of the same prompts without it. Embeddings are normalised under every
    objective.

    Args:
        train: images of the same classes, at least two of each.
        shots: images a class; None: all, but for a fifth that is left for the choice of settings.
        seed: of the draw of images.
        train_where: fields and values of the training images that are drawn from; None: all.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(
        self,
        train: ImageSet,
        shots: int | None = 16,
        seed: int = 0,
        train_where: dict[str, Any] | None = None,
        **zeroshot,
    ):
        super().__init__(**zeroshot)
        if shots is not None and shots < 1:
            raise ValueError(f"shots is {shots}; it is a number of images a class, at least 1")
        self.train = train
        self.shots = shots
        self.seed = seed
        self.train_where = train_where
        self._head: tuple[Any, tuple[float, ...]] | None = None

    @abstractmethod
    def settings(self) -> Sequence[tuple[float, ...]]:
        """Returns the settings to choose from."""

    @abstractmethod
    def fit(self, shots: Shots, num_classes: int) -> Any:
        """Returns what `bias` needs of the shots."""

    @abstractmethod
    def bias(self, fitted: Any, queries: Shots, setting: tuple[float, ...]) -> Tensor:
        """Returns what is added to the zero-shot logits, [n, classes]."""

    def auxiliary(self, encoder: Encoder, images: ImageSet, chosen: np.ndarray) -> Tensor:
        """Returns features of another kind."""
        return torch.empty(len(chosen), 0, device=encoder.device)

    def further_labels(self) -> list[str]:
        label = self.label if self.label != self.data.default_label else self.train.default_label
        items = training_items(self.train, self.train_where, self.data, self._chosen)
        self._train_labels = self.train.values(label, items)
        self._train_items = items
        return self._train_labels

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        known = [i for i, label in enumerate(self._train_labels) if label in self._index]
        self._train_items = self._train_items[known]
        targets = np.array([self._index[self._train_labels[i]] for i in known])
        order = order_by_hash(self.keys(self._train_items, self.train), self.seed)
        shots: list[int] = []
        validation: list[int] = []
        for position, name in enumerate(self._names):
            of_class = order[targets[order] == position].tolist()
            if len(of_class) < 2:
                raise ValueError(
                    f"train: {self.train} have {len(of_class)} images of the class '{name}', and "
                    "two are needed, one to learn from and one to choose settings with"
                )
            most = len(of_class) // 5 if self.shots is None else min(4, self.shots)
            num_validation = max(1, min(most, len(of_class) // 2))
            validation += of_class[:num_validation]
            shots += of_class[num_validation:][: self.shots]
        # Sorted, so that what is computed does not depend on the order of the draw.
        self._parts = [np.array(sorted(part)) for part in (shots, validation)]
        self._train_targets = targets
        self._used = np.sort(self._train_items[np.concatenate(self._parts)])
        return chosen

    def further_images(self) -> list[tuple[ImageSet, np.ndarray]]:
        return [(self.train, self._used)]

    def run(self, encoder: Encoder) -> Iterator[tuple[str, str, float | Outcomes | Detail]]:
        self._head = None  # of another model
        yield from super().run(encoder)
        self._head = None

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        # Heads are defined on embeddings of length one.
        classifier = self.classifier(replace(encoder, metric=Metric()))

        def read(images: ImageSet, items: np.ndarray, targets: Sequence[int] | np.ndarray) -> Shots:
            features = encoder.image_features(images, items)
            with full_precision(features.device):
                logits = SCALE * features @ classifier.T
            labels = torch.as_tensor(targets, device=features.device)
            return Shots(features, logits, labels, self.auxiliary(encoder, images, items))

        test = read(self.data, chosen, [self._targets[i] for i in chosen.tolist()])
        if self._head is None:
            shots, validation = (
                read(self.train, self._train_items[part], self._train_targets[part])
                for part in self._parts
            )
            fitted = self.fit(shots, len(self._names))

            def score(setting: tuple[float, ...]) -> tuple[float, float]:
                scores = validation.logits + self.bias(fitted, validation, setting)
                return quality(scores, validation.targets)

            self._head = fitted, max(self.settings(), key=score)
        scores = test.logits + self.bias(self._head[0], test, self._head[1])
        targets, keys = test.targets.cpu().numpy(), self.keys(chosen)
        head, plain_ranks = (class_ranks(s, test.targets) for s in (scores, test.logits))
        without = accuracies(plain_ranks, targets, keys, len(self._names))["top1"]
        values = accuracies(head, targets, keys, len(self._names))
        return {**values, "zero_shot_top1": without}
