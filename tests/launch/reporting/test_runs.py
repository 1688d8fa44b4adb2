"""What is a result of an evaluation: any measure of any task, and nothing that training logs."""

import pytest

from counterpoint.launch.reporting.panels import title_of
from counterpoint.launch.reporting.runs import is_evaluation, show


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("s/heldout/top1", "Zero-shot top-1: heldout"),
        (
            "s/heldout/twemoji/mean_per_class_recall",
            "Zero-shot mean per class recall: heldout/twemoji",
        ),
        ("s/find/text_to_image_recall@5", "R@5, text to image"),
        ("s/find/text_to_image_mrr", "Text to image mrr: find"),
    ],
)
def test_measures_of_tasks(name, title):
    assert is_evaluation(name)
    assert show(name, 0.125) == "12.5%"
    assert title_of(name) == title


@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "loss/infonce",
        "loss/nested/part",
        "grad_clip/image/norm",
        "errors/bad_image/default",
    ],
)
def test_what_training_logs(name):
    assert not is_evaluation(name)
    assert show(name, 0.125) == "0.125"
