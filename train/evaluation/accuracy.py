"""Accuracies of a classifier, with what each image contributed.

In: scores of the classes, or the rank of the right one. Out: `top1`, `top5` (with more than five
classes) and `mean_per_class_recall`. Ties count against the model, as in `ranks`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .outcomes import Outcomes
from .ranks import recall_at


def class_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns how many wrong classes score at least as high as the right one, int64 [n].

    Args:
        scores: [n, classes].
        targets: the right class of each row, int64 [n], on the same device.
    """
    own = scores.gather(1, targets[:, None])
    is_right = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, targets[:, None], True)
    # "not below" also counts NaN, which compares to nothing.
    return (~(scores < own) & ~is_right).sum(1).cpu()


def accuracies(
    ranks: Tensor, targets: Sequence[int] | np.ndarray, keys: Sequence[str], num_classes: int
) -> dict[str, Outcomes]:
    """Returns the accuracies of a classifier.

    Args:
        ranks: of each image's right class, [n].
        targets: class of each image, [n].
        keys: names of the images.
        num_classes: that there are to choose from.
    """
    found, label = ranks.numpy(), torch.as_tensor(targets)
    values = {"top1": Outcomes(recall_at(ranks, 1), found < 1, keys)}
    if num_classes > 5:
        values["top5"] = Outcomes(recall_at(ranks, 5), found < 5, keys)
    recalls = [recall_at(ranks[label == c], 1) for c in label.unique()]
    _, inverse, counts = np.unique(label.numpy(), return_inverse=True, return_counts=True)
    mean = sum(recalls) / len(recalls)
    by_class = Outcomes(mean, found < 1, keys, 1.0 / counts[inverse])
    return values | {"mean_per_class_recall": by_class}
