"""The name of a measure says how it is shown, everywhere."""

import pytest

from counterpoint.launch.commands.evaluate import table
from counterpoint.launch.reporting.ablation_sections import mark
from counterpoint.launch.reporting.panels import title_of
from counterpoint.launch.reporting.runs import is_ranked, is_share, lower_is_better, show
from counterpoint.train.callbacks.evaluation import screen_line
from counterpoint.train.evaluation import measures


def test_a_unit_is_shown_wherever_the_measure_is():
    name = "s/photos_v1.5/uniformity.nats"
    assert measures.unit_of(name) == "nats" and not measures.unit_of("s/photos_v1.5/top1")
    assert show(name, -3.14159) == "-3.142 nats" and not is_share(name) and not is_ranked(name)
    assert screen_line({name: -3.14159}) == "s/photos_v1.5/uniformity -3.142 nats"
    assert table({name: -3.14159, "s/photos_v1.5/top1": 0.5}) == (
        "s/photos_v1.5  uniformity -3.142 nats   top1 50.0%"
    )
    assert title_of(name) == "Uniformity (nats): photos v1.5"
    assert measures.show_difference(name, 0.25) == "+0.25"
    assert measures.show_difference("s/t/top1", 0.25) == "+25.0"


@pytest.mark.parametrize(
    ("name", "is_lower"),
    [("s/t/top1", 0), ("s/t/calibration_error", 1), ("s/t/fpr95", 1), ("s/drop/top1", 0)],
)
def test_errors_drops_and_gaps_are_better_when_small(name, is_lower):
    assert lower_is_better(name) == bool(is_lower)
    row = {"num_seeds": 3, "p_holm": 0.01, "value": 0.1}
    assert mark(row, name) == ("worse" if is_lower else "better")
