"""Base of probes: features and classes of a training split and of a test split.

In: two image sets with a class each. Out: matrices of both, for a classifier. Every rank fits the
same classifier to the same features, so that nothing has to be exchanged.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....data.image_sets import ImageSet
from ....models.two_tower import Form
from ..encode import Encoder
from ..task import Task


@dataclass(frozen=True)
class Part:
    """Images with their classes.

    Attributes:
        features: float32 [n, d].
        targets: classes, int64 [n], on the same device.
    """

    features: Tensor
    targets: Tensor


class Labelled(Task):
    """A task whose classifier is fitted to a training split.

    Args:
        data: the test split.
        train: the training split; another set, or other images of the same one.
        label: the field that names an image's class; None: the folder, or `cls` in shards.
        form: which features: `.pooled`, before the projection, `.raw`, after it, or ``, the
            normalised embedding.
        train_where: fields and values of the training images that are used; None: all.
        where: see `Task`.
        by: see `Task`; the classifier is that of all groups.
    """

    def __init__(
        self,
        data: ImageSet,
        train: ImageSet,
        label: str | None = None,
        form: Form = ".pooled",
        train_where: dict[str, Any] | None = None,
        where: dict[str, Any] | None = None,
        by: str | None = None,
    ):
        super().__init__(data, where, by)
        self.train = train
        self.label = label
        self.form: Form = form
        self.train_where = train_where

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        self._train_chosen = training_items(self.train, self.train_where, self.data, chosen)
        label = self.label or self.data.default_label
        names = self.train.values(self.label or self.train.default_label, self._train_chosen)
        index = {name: i for i, name in enumerate(sorted(set(names)))}
        if len(index) < 2:
            raise ValueError(f"train: {self.train} have one class, '{names[0]}'; give at least two")
        self.num_classes = len(index)
        self._train_targets = np.array([index[name] for name in names])
        labels = self.data.values(label, chosen)
        if unknown := sorted(set(labels) - set(index)):
            raise ValueError(
                f"{len(unknown)} classes '{label}' of {self.data} have no image in the training "
                f"split, such as '{unknown[0]}'; add some, or leave them out with `where`"
            )
        self._targets = dict(zip(chosen.tolist(), (index[name] for name in labels), strict=True))
        return chosen

    def further_images(self) -> list[tuple[ImageSet, np.ndarray]]:
        return [(self.train, self._train_chosen)]

    def parts(self, encoder: Encoder, chosen: np.ndarray) -> tuple[Part, Part]:
        """Returns the training split and the chosen items of the test split."""
        train = encoder.image_features(self.train, self._train_chosen, self.form)
        test = encoder.image_features(self.data, chosen, self.form)
        targets = torch.tensor([self._targets[i] for i in chosen.tolist()], device=test.device)
        train_targets = torch.from_numpy(self._train_targets).to(train.device)
        return Part(train, train_targets), Part(test, targets)


def training_items(
    train: ImageSet, where: dict[str, Any] | None, test: ImageSet, chosen: np.ndarray
) -> np.ndarray:
    """Returns the items of a training split.

    Raises:
        ValueError: it shares images with the test split.
    """
    items = np.asarray(train.select(where), dtype=np.int64)
    if train is test and len(both := np.intersect1d(items, chosen)):
        raise ValueError(
            f"{len(both)} images of {test} are in the training split and in the test split; tell "
            "them apart with `where` and `train_where`"
        )
    return items
