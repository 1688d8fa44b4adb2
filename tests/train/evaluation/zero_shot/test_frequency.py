"""Accuracy by class against frequency: Pearson's formula in plain Python, through an evaluation."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_evaluation import CLASSES, ToyImages, run

from counterpoint.train.evaluation.suite import Suite
from counterpoint.train.evaluation.zero_shot.classification import ZeroShot
from counterpoint.train.evaluation.zero_shot.frequency import FrequencyCorrelation, correlate


def pearson(x, y):
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)
    return covariance / math.sqrt(spread)


def test_the_correlation_by_hand():
    classes = np.array([0, 0, 1, 1, 1, 3])
    right = np.array([1, 0, 1, 1, 1, 0])
    frequencies = np.array([2.0, 5.0, 99.0, 1.0])  # class 2 has no images
    wanted = pearson([0.5, 1.0, 0.0], [2.0, 5.0, 1.0])
    assert correlate(right, classes, frequencies) == pytest.approx(wanted)
    assert correlate(right * 0, classes, frequencies) == 0.0


@pytest.fixture
def counts(tmp_path):
    """Frequencies in another order than the classes, and one class more."""
    path = tmp_path / "concepts.parquet"
    order = [5, 2, 0, 6, 1, 3, 4]
    rows = {"class": [*(CLASSES[i] for i in order), "other"]}
    pq.write_table(pa.table({**rows, "count": [3**i for i in order] + [7]}), path)
    return path


def test_an_evaluation_reports_it(counts):
    data = ToyImages(60)
    task = FrequencyCorrelation(str(counts), data=data, classes=CLASSES, templates="{c}")
    found, details = {}, {}
    values = run(Suite("toy", {"all": task}), outcomes=found, details=details)
    plain = ZeroShot(ToyImages(60), classes=CLASSES, templates="{c}")
    assert values.items() >= run(Suite("toy", {"all": plain})).items()
    right = found["toy/all/top1"].values
    occurring = sorted(set(data.classes))
    accuracy = [
        np.mean([r for r, c in zip(right, data.classes, strict=True) if c == name])
        for name in occurring
    ]
    logs = [math.log(1 + 3 ** CLASSES.index(name)) for name in occurring]
    assert len(set(accuracy)) > 2
    curve = details["toy/all/by_frequency"].record()["curve"]
    points = sorted(zip(curve["names"], curve["x"], curve["y"], curve["sizes"], strict=True))
    sizes = [data.classes.count(name) for name in occurring]
    counts_of = [1 + 3 ** CLASSES.index(name) for name in occurring]
    assert points == sorted(zip(occurring, counts_of, accuracy, sizes, strict=True))
    assert values["toy/all/frequency_correlation"] == pytest.approx(pearson(accuracy, logs))


def test_classes_that_were_not_counted_are_named(counts, tmp_path):
    task = FrequencyCorrelation(str(counts), data=ToyImages(9), classes=[*CLASSES, "new"])
    with pytest.raises(ValueError, match="has no class 'new'"):
        task.prepare()
    task = FrequencyCorrelation(str(tmp_path / "none"), data=ToyImages(9), classes=CLASSES)
    with pytest.raises(ValueError, match="is no parquet file with the columns"):
        task.prepare()
