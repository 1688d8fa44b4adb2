"""Attacks by characters: what the search finds, and accuracies under it, against numpy."""

import numpy as np
import pytest
import torch
from vector_model import NAMES, Classes, features, run, texts, unit

from counterpoint.data.text.character_edits import edited_at
from counterpoint.train.evaluation.robustness.character_attacks import (
    AttackedNames,
    AttackedRetrieval,
    attack,
)

DATA = Classes(60, noise=60, seed=2)


def test_a_place_is_a_gap_or_a_character():
    assert [edited_at("ab", place, "x") for place in range(5)] == ["xab", "xb", "axb", "ax", "abx"]
    assert [edited_at("ab", place, "") for place in range(5)] == ["ab", "b", "ab", "a", "ab"]
    assert edited_at("ab", 1, "a") == "b" and edited_at("ab", 0, "a") == "aab"


def by_rules(candidates):
    """Far away without the c, then the further the later in the alphabet letters after e are."""
    rows = [
        [[100.0 * ("c" not in text), sum(max(0, ord(c) - ord("e")) for c in text)] for text in each]
        for each in candidates
    ]
    return torch.tensor(rows)


def test_the_worst_place_is_found_then_the_worst_letter():
    assert attack(["abcde", "c"], by_rules, 1, 3000, 0) == ["ab~de", "~"]
    # A second edit starts from the first.
    (twice,) = attack(["abcde"], by_rules, 2, 3000, 0)
    assert "c" not in twice and twice.count("~") == 2
    few = [attack(["abcde"], by_rules, 1, 2, seed)[0] for seed in range(12)]
    assert len(set(few)) > 5 and few[0] == attack(["abcde", "x"], by_rules, 1, 2, 0)[0]


def test_attacked_names_are_measured_as_numpy_does():
    task = AttackedNames(edits=1, candidates=5, data=DATA, templates=["a {c}", "the {c}"])
    results = run(task)

    def means(names, form=""):
        return np.array([texts([f"a {n}", f"the {n}"], form).mean(0) for n in names])

    def raw(candidates):
        return torch.tensor(np.array([means(names, ".raw") for names in candidates]))

    def top1(names):
        scores = features(DATA) @ unit(means(names)).T
        own = scores[np.arange(len(scores)), DATA.labels]
        return ((scores >= own[:, None]).sum(1) == 1).mean()

    attacked = attack(NAMES, raw, 1, 5, 0)
    assert all(a != b for a, b in zip(attacked, NAMES, strict=True))
    assert results == pytest.approx({"clean_top1": top1(NAMES), "attacked_top1": top1(attacked)})
    assert results["attacked_top1"] < results["clean_top1"]


def test_attacked_captions_are_measured_as_numpy_does():
    results = run(AttackedRetrieval(DATA, candidates=4, edits=2, captions="cls", k=[1, 3]))

    def raw(candidates):
        return torch.tensor(np.array([texts(each, ".raw") for each in candidates]))

    clean = list(dict.fromkeys(NAMES[label] for label in DATA.labels))
    attacked = attack(clean, raw, 2, 4, 0)
    for name, lines in (("clean", clean), ("attacked", attacked)):
        scores = texts(lines) @ features(DATA).T
        right = np.array([[NAMES[label] == text for label in DATA.labels] for text in clean])
        for k in (1, 3):
            hits = [any(r[np.argsort(-s)[:k]]) for s, r in zip(scores, right, strict=True)]
            assert results[f"{name}_text_to_image_recall@{k}"] == pytest.approx(np.mean(hits))
            hits = [any(r[np.argsort(-s)[:k]]) for s, r in zip(scores.T, right.T, strict=True)]
            assert results[f"{name}_image_to_text_recall@{k}"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("wrong", [{"edits": 0}, {"candidates": 0}])
def test_no_attack_is_refused(wrong):
    with pytest.raises(ValueError, match="give at least 1"):
        AttackedNames(data=DATA, templates=["{c}"], **wrong)
