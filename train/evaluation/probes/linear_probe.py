"""Linear probe: logistic regression on frozen features.

Radford et al. (2021, CLIP), appendix A.3: features before the projection, L-BFGS with at most 1,000
iterations, the strength of the L2 penalty by a search on a validation part over 10^-6 to 10^6 in
96 steps, of which the neighbourhood of the peak is halved until steps are an eighth of a decade;
then the classifier is fitted to the training and the validation part together.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..accuracy import accuracies, class_ranks
from ..details import Detail
from ..encode import Encoder
from ..outcomes import Outcomes
from ..task import order_by_hash
from .labelled import Labelled, Part

MAX_ITERATIONS = 1000
FIRST, STEPS_PER_DECADE, NUM_STEPS = -6, 8, 96
# Scores held at a time (256 MiB of float64).
CHUNK_SCORES = 1 << 25


class Linear:
    """Weights [d, classes] and biases [classes], float64."""

    def __init__(self, weight: Tensor, bias: Tensor):
        self.weight = weight
        self.bias = bias

    def __call__(self, features: Tensor) -> Tensor:
        """Returns scores of the classes, float64 [n, classes]."""
        return features.to(self.weight) @ self.weight + self.bias


class LinearProbe(Labelled):
    """Accuracy of logistic regression on features of a training split.

    Measures: `top1`, `top5` (with more than five classes), `mean_per_class_recall`, and
    `penalty.decades`, the logarithm of the penalty's strength that was chosen: the search ends at
    -6 and 6.

    Args:
        penalty: strength of the penalty, 1/C of scikit-learn's `LogisticRegression`; None: that
            with the highest accuracy (then the lowest loss) on a fifth of each class's images.
        labelled: arguments of `Labelled`.
    """

    def __init__(self, penalty: float | None = None, **labelled):
        super().__init__(**labelled)
        if penalty is not None and penalty <= 0:
            raise ValueError(f"penalty is {penalty}, and has to be above 0; null searches for it")
        self.penalty = penalty
        self._fitted: tuple[Linear, float] | None = None

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        keys = self.keys(self._train_chosen, self.train)
        self._is_validation = fifth(keys, self._train_targets)
        if self.penalty is None and not self._is_validation.any():
            raise ValueError(
                f"train: no class of {self.train} has two images, so that none can be left for the "
                "choice of the penalty; give more, or a `penalty`"
            )
        return chosen

    def run(self, encoder: Encoder) -> Iterator[tuple[str, str, float | Outcomes | Detail]]:
        self._fitted = None  # of another model
        yield from super().run(encoder)
        self._fitted = None

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        train, test = self.parts(encoder, chosen)
        if self._fitted is None:
            penalty = self.penalty or self._search(train)
            self._fitted = fit(train, self.num_classes, penalty), penalty
        linear, penalty = self._fitted
        ranks = class_ranks(linear(test.features), test.targets)
        targets, keys = test.targets.cpu().numpy(), self.keys(chosen)
        values = accuracies(ranks, targets, keys, self.num_classes)
        return {**values, "penalty.decades": float(np.log10(penalty))}

    def _search(self, train: Part) -> float:
        held_out = torch.from_numpy(self._is_validation).to(train.targets.device)
        rest = Part(train.features[~held_out], train.targets[~held_out])
        validation = Part(train.features[held_out], train.targets[held_out])
        starts: dict[int, Linear] = {}

        def score(step: int) -> tuple[float, float]:
            nearest = min(starts, key=lambda other: abs(other - step), default=None)
            start = None if nearest is None else starts[nearest]
            starts[step] = fit(rest, self.num_classes, penalty_of(step), start)
            return quality(starts[step](validation.features), validation.targets)

        return penalty_of(search(score))


def fit(train: Part, num_classes: int, penalty: float, start: Linear | None = None) -> Linear:
    """Minimises the sum of cross entropies plus penalty / 2 times the sum of squared weights.

    Biases are not penalised. Computed in float64, so that the solution is that of the formula.

    Args:
        train: features [n, d] and classes.
        num_classes: that are told apart.
        penalty: strength.
        start: where to begin; None: at zero.
    """
    device = train.features.device if train.features.device.type != "mps" else torch.device("cpu")
    features, targets = train.features.to(device).double(), train.targets.to(device)
    num, width = features.shape
    # One parameter [d + 1, classes]: the last row is the biases'.
    solution = torch.zeros(width + 1, num_classes, dtype=torch.float64, device=device)
    if start is not None:
        solution = torch.cat([start.weight, start.bias[None]])
    rows = max(1, CHUNK_SCORES // num_classes)
    optimizer = torch.optim.LBFGS(
        [solution],
        max_iter=MAX_ITERATIONS,
        max_eval=MAX_ITERATIONS * 5 // 4,
        tolerance_grad=1e-7,
        tolerance_change=1e-14,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        weight, bias = solution[:-1], solution[-1]
        loss = weight.square().sum() * (penalty / 2)
        grad = torch.cat([weight * penalty, torch.zeros_like(bias)[None]])
        for first in range(0, num, rows):
            x, y = features[first : first + rows], targets[first : first + rows]
            logits = (x @ weight + bias).log_softmax(1)
            loss = loss - logits.gather(1, y[:, None]).sum()
            error = logits.exp()
            error[torch.arange(len(y), device=device), y] -= 1.0
            grad[:-1] += x.T @ error
            grad[-1] += error.sum(0)
        # A mean, so that the tolerance does not depend on the number of images.
        solution.grad = grad / num
        return loss / num

    optimizer.step(closure)
    return Linear(solution[:-1].clone(), solution[-1].clone())


def search(score: Callable[[int], tuple[float, float]]) -> int:
    """Returns the step of the peak: coarse steps first, then half as wide around the best one.

    Args:
        score: of a step, to be as large as possible; called once a step.
    """
    width = NUM_STEPS // 6
    scores = {step: score(step) for step in range(0, NUM_STEPS + 1, width)}
    while True:
        best = max(sorted(scores), key=lambda step: scores[step])
        if width == 1:
            return best
        width //= 2
        for step in (best - width, best + width):
            if 0 <= step <= NUM_STEPS and step not in scores:
                scores[step] = score(step)


def penalty_of(step: int) -> float:
    """Returns the penalty's strength of a step of the search, 0 to 96."""
    return 10.0 ** (FIRST + step / STEPS_PER_DECADE)


def quality(scores: Tensor, targets: Tensor) -> tuple[float, float]:
    """Returns the accuracy and, for ties, the negative loss of scores [n, classes]."""
    targets = targets.to(scores.device)
    accuracy = (class_ranks(scores, targets) < 1).double().mean()
    return float(accuracy), -float(F.cross_entropy(scores.double(), targets))


def fifth(keys: list[str], targets: np.ndarray) -> np.ndarray:
    """Returns which items are left for validation: a fifth of each class, at least one of two."""
    chosen = np.zeros(len(keys), dtype=bool)
    order = order_by_hash(keys)
    for label in np.unique(targets):
        of_class = order[targets[order] == label]
        if len(of_class) > 1:
            chosen[of_class[: max(1, len(of_class) // 5)]] = True
    return chosen
