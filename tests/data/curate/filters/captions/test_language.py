"""Languages and probabilities are those that py3langid itself gives, one caption at a time."""

import itertools

import numpy as np
import pytest
from helpers.filter_run import batch_of, run_filter

from counterpoint.data.curate.filters.captions.language import Language, identifier

BASE = [
    "a photo of a dog running on the beach at sunset",
    "Der schnelle braune Fuchs springt über den faulen Hund",
    "Une maison bleue au bord de la mer",
    "abstract-001",
    "arrow left",
    "黒い猫",
    "Nova kuća u gradu",
    "Нова кућа у граду",
    "ARROW LEFT",
    "cafe\u0301",
    "123",
    "",
    "  ",
]
CAPTIONS = [*BASE, *(" ".join(pair) for pair in itertools.permutations(BASE, 2))]


@pytest.mark.parametrize("candidates", [None, ["de", "en", "fr", "sr"]])
def test_captions_are_scored_as_one_by_one(candidates):
    each = Language(["en", "de"], min_probability=0.3, candidates=candidates)
    found = run_filter(each, batch_of({"caption": CAPTIONS}))
    model = identifier(None if candidates is None else tuple(candidates))
    wanted = [model.classify(caption) for caption in CAPTIONS]
    assert found["language"] == [code for code, _ in wanted]
    np.testing.assert_allclose(found["language_probability"], [p for _, p in wanted], atol=1e-5)
    assert found["keep"] == [code in ("en", "de") and p >= 0.3 for code, p in wanted]
    assert set(found["language"]) >= {"en", "de", "fr"} and 20 < sum(found["keep"]) < 160


def test_no_bit_depends_on_how_rows_are_cut(monkeypatch):
    rows = batch_of({"caption": CAPTIONS})
    whole = run_filter(Language(), rows)
    monkeypatch.setattr("counterpoint.data.curate.filters.captions.language.ROWS_AT_ONCE", 5)
    assert run_filter(Language(), rows, pieces=9) == whole
    assert all(whole["keep"])


def test_a_probability_that_is_just_reached_is_kept():
    rows = batch_of({"caption": CAPTIONS})
    found = run_filter(Language(), rows)["language_probability"]
    least = sorted(set(found))[len(set(found)) // 2]
    kept = run_filter(Language(min_probability=float(least)), rows)["keep"]
    assert kept == [p >= least for p in found] and not all(kept)


def test_languages_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="languages: py3langid does not know the language 'xx'"):
        Language(["en", "xx"])
    with pytest.raises(ValueError, match="has 'fr', which is not among the candidates"):
        Language(["fr"], candidates=["en", "de"])
    with pytest.raises(ValueError, match="min_probability=2 is not between"):
        Language(["en"], min_probability=2)
    with pytest.raises(ValueError, match="languages is empty; name a language"):
        Language([])
    with pytest.raises(ValueError, match="candidates is empty; name a language"):
        Language(candidates=[])
