"""What is said of a run that has collapsed, and of others that look a little like one."""

import pytest

from counterpoint.launch.run.collapse import collapse

HEALTHY = {"loss": 0.3, "grad_norm": 0.4, "mean_cosine/image": 0.2, "mean_cosine/text": 0.3}
EQUAL = {"mean_cosine/image": 0.99998}
EUCLIDEAN = {"mean_cosine/image": 0.99998, "spread/image": 0.4, "spread/text": 0.5}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        (EQUAL, "images are nearly equal (mean cosine 0.999980)"),
        ({"mean_cosine/text": 1.0}, "texts are nearly equal (mean cosine 1.000000)"),
        # At random weights.
        ({"mean_cosine/image": 0.97, "mean_cosine/text": 0.97, "grad_norm": 0.02}, ""),
        ({"grad_norm": 1e-6}, "no gradient is left (its norm is 1e-06, the loss 0.3)"),
        # A loss that has come to its end.
        ({"grad_norm": 5e-4, "loss": 1e-4}, ""),
        ({"grad_norm": 5e-4, "loss": -0.7}, "no gradient is left"),
        # Distances, and not angles, are compared.
        (EUCLIDEAN, ""),
        (EUCLIDEAN | {"spread/text": 2e-5}, "texts are nearly equal (their variance is 2e-05 of"),
        ({"loss": float("nan"), "grad_norm": float("nan")}, ""),
    ],
)
def test_what_is_said(changes, said):
    evaluation = {"step": 9, "emoji/heldout/top1": 0.0}
    rows = [HEALTHY, *([HEALTHY | changes, evaluation] * 2)]
    assert (said in collapse(rows)) and (bool(said) == bool(collapse(rows)))
    if said:
        assert collapse(rows).startswith("collapsed: ")


def test_one_row_says_nothing_and_both_reasons_are_named():
    dead = HEALTHY | EQUAL | {"grad_norm": 1e-7}
    assert collapse([]) == collapse([dead]) == collapse([dead, HEALTHY]) == ""
    assert collapse([HEALTHY, dead]) == ""
    assert " and no gradient is left" in collapse([dead, dead])
