"""Logistic regression on embeddings, for probes: the same result each time.

In: embeddings and labels. Out: the weight and bias of a linear probe
(`filters/embeddings/probe.py`). Newton's direction by L-BFGS in float64 over all rows at once, from
zero: nothing is drawn.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def fit_logistic(
    values: np.ndarray, labels: np.ndarray, l2: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns weight [c, d] and bias [c], float64; c = 1 for two classes.

    Minimises the sum of the cross-entropies and `l2` / 2 times the squared weights (not the bias).

    Args:
        values: embeddings, made of length one [n, d].
        labels: classes 0 to c - 1 [n].
        l2: strength of the penalty.

    Raises:
        ValueError: there are not two classes, a number is not finite, or `l2` is not positive.
    """
    if not np.isfinite(values).all():
        raise ValueError("an embedding has numbers that are not finite; make the store again")
    if labels.min(initial=0) < 0:
        raise ValueError(f"there is the label {labels.min()}; labels are 0, 1, 2, ...")
    classes = int(labels.max(initial=-1)) + 1
    counts = np.bincount(labels, minlength=max(classes, 2))
    if (counts == 0).any():
        missing = int(np.flatnonzero(counts == 0)[0])
        raise ValueError(f"no row has the label {missing}; a probe needs rows of every class")
    if l2 <= 0:
        raise ValueError(f"l2={l2} must be above 0: without it separable classes have no optimum")
    inputs = F.normalize(torch.from_numpy(values).double(), dim=1)
    targets = torch.from_numpy(labels).long()
    rows = 1 if classes == 2 else classes
    layer = torch.zeros(rows, inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [layer],
        max_iter=2000,
        tolerance_grad=1e-9,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(inputs, layer[:, :-1], layer[:, -1])
        if rows == 1:
            fit = F.binary_cross_entropy_with_logits(logits[:, 0], targets.double())
        else:
            fit = F.cross_entropy(logits, targets)
        value = fit + l2 / 2 / len(targets) * layer[:, :-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    found = layer.detach().numpy()
    return found[:, :-1], found[:, -1]
