"""How far a class's accuracy follows its frequency in the training data.

Wen et al., "What Makes CLIP More Robust to Long-Tailed Pre-Training Data?" (2024), section 2:
the correlation of accuracy by class with the logarithm of how many captions speak of the class. The
closer to 0, the less the imbalance of the data shows.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..details import Curve, Detail
from ..encode import Encoder
from ..outcomes import Outcomes
from .classification import ZeroShot


class FrequencyCorrelation(ZeroShot):
    """Zero-shot accuracy, and its correlation with frequency.

    Measures: those of `ZeroShot`, and `frequency_correlation`, Pearson's coefficient between the
    top-1 of each class and log(1 + count), from -1 to 1; 0 where one of the two is constant;
    `by_frequency`, the accuracy of each class by its count as a curve.

    Args:
        counts: parquet with the columns `class` and `count`, as the filter `concept_counts` writes
            it to `OUT/tables/`; classes are named as in `classes`.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(self, counts: str, **zeroshot):
        super().__init__(**zeroshot)
        self.counts = counts

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        counts = _read(Path(self.counts))
        if missing := [name for name in self._names if name not in counts]:
            raise ValueError(
                f"counts: '{self.counts}' has no class '{missing[0]}' (and {len(missing) - 1} more "
                "of the task are missing); count the classes of the task with the filter "
                "concept_counts"
            )
        self._frequencies = np.log1p([counts[name] for name in self._names])
        return chosen

    def measure(
        self, encoder: Encoder, chosen: np.ndarray
    ) -> Mapping[str, float | Outcomes | Detail]:
        values = super().measure(encoder, chosen)
        top1 = values["top1"]
        assert isinstance(top1, Outcomes)
        targets = np.array([self._targets[i] for i in chosen.tolist()])
        correlation = correlate(top1.values, targets, self._frequencies)
        totals, right = by_class(top1.values, targets, len(self._names))
        there = np.flatnonzero(totals)
        curve = Curve(
            np.exp(self._frequencies[there]).round().tolist(),
            (right[there] / totals[there]).tolist(),
            "1 + captions that name the class",
            "accuracy",
            totals[there].tolist(),
            [self._names[i] for i in there.tolist()],
            "logarithmic",
        )
        return {**values, "frequency_correlation": correlation, "by_frequency": curve}


def correlate(is_right: np.ndarray, classes: np.ndarray, frequencies: np.ndarray) -> float:
    """Returns Pearson's correlation of accuracy by class with a number of each class.

    Args:
        is_right: outcome of each image [n].
        classes: class of each image, int64 [n].
        frequencies: of each class [classes]; those without images do not count.
    """
    totals, right = by_class(is_right, classes, len(frequencies))
    accuracy, numbers = right[totals > 0] / totals[totals > 0], frequencies[totals > 0]
    if np.ptp(accuracy) == 0 or np.ptp(numbers) == 0:
        return 0.0
    return float(np.corrcoef(accuracy, numbers)[0, 1])


def by_class(is_right: np.ndarray, classes: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many images each class has, and how many of them are right, [num] each."""
    totals = np.bincount(classes, minlength=num)
    return totals, np.bincount(classes, weights=is_right, minlength=num)


def _read(path: Path) -> dict[str, int]:
    """Returns the count of each class."""
    try:
        table = pq.read_table(path, columns=["class", "count"])
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"counts: '{path}' is no parquet file with the columns class and count; the filter "
            "concept_counts writes one to OUT/tables/"
        ) from error
    columns = table.to_pydict()
    return dict(zip(columns["class"], columns["count"], strict=True))
