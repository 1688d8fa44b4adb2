"""Identity inference by hand cases and by brute force."""

import numpy as np
import pytest
import torch
from vector_model import NAMES, Classes, features, run, texts

from counterpoint.train.evaluation.robustness.identity import (
    IdentityAudit,
    has_plurality,
    nearest_alone,
)

TEMPLATES = ["a {c}", "the face of {c}", "{c} at work"]
DATA = Classes(120, noise=40, seed=2, fields=lambda i, name: {"known": name < "D"})


@pytest.mark.parametrize("min_prompts", [1, 2])
def test_a_person_is_found_if_the_own_name_is_the_most_frequent(min_prompts):
    task = IdentityAudit("known", min_prompts, data=DATA, templates=TEMPLATES)
    results = run(task)
    image, found = features(DATA), np.zeros(7, dtype=int)
    for template in TEMPLATES:
        given = (image @ texts(template.format(c=name) for name in NAMES).T).argmax(1)
        for person in range(7):
            counts = sorted((given[DATA.labels == person] == name).sum() for name in range(7))
            own = (given[DATA.labels == person] == person).sum()
            found[person] += own == counts[-1] > counts[-2]
    inferred = found >= min_prompts
    assert results["inferred_members"] == pytest.approx(inferred.mean())
    assert results["true_positive_rate"] == pytest.approx(inferred[:3].mean())
    assert results["false_positive_error"] == pytest.approx(inferred[3:].mean())
    assert 0 < inferred.sum() < 7


def test_plurality_and_ties_by_hand():
    persons = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    nearest = np.array([0, 0, 1, 1, 2, 0, 0, -1])  # 0: two of three; 1: a tie; 2, 3: never
    assert has_plurality(nearest, persons, 4).tolist() == [True, False, False, False]
    scores = torch.tensor([[1.0, 2, 0], [2, 2, 0], [torch.nan, 1, 0]])
    assert nearest_alone(scores).tolist() == [1, -1, -1]


def test_mistakes_are_one_sentence():
    def refuse(message, **options):
        with pytest.raises(ValueError, match=message):
            IdentityAudit(**{"data": DATA, "templates": TEMPLATES} | options).prepare()

    refuse(r"min_prompts is 4, and names have \[3\]", min_prompts=4)
    refuse("'Ant' in cls is neither true nor false", member="cls")
    mixed = Classes(30, fields=lambda i, name: {"known": i % 2})
    refuse("is a member in some images only", data=mixed, member="known")
