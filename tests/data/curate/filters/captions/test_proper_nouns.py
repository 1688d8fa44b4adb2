"""Captions of names against plain Python, and the paper's own examples."""

import re

import pytest
from helpers.filter_run import batch_of, run_filter

from counterpoint.data.curate.filters.captions.proper_nouns import ProperNouns

# Of the authors' page.
NAMES = ["Dora Riparia", "Anna Maria Mozzoni", "Joey Ramone Place", "Kim Rhodes"]
NAMES += ["Ralph George Hawtrey"]
OTHERS = [
    "Roberto Baggio in campo nel 1994",
    "una foto di Roma",
    "Gatto",
    "",
    "due cavalli marroni",
    "Lo squalo e il cavallo",
    "PIÙ ÈLITE È È è",
    "Piazza Él-Alamein, Étretat o Londra",
    "日本の犬 2024年",
    "Roma 1994 1995",
]


def kept(share):
    rows = batch_of({"caption": NAMES + OTHERS})
    return run_filter(ProperNouns(max_share=share), rows, pieces=4)["keep"]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 1.0])
def test_shares_are_those_of_plain_python(share):
    def by_hand(caption):
        later = re.findall(r"[\w'’-]+", caption)[1:]
        names = sum(word[0].isupper() for word in later)
        return not later or names < share * len(later)

    assert kept(share) == [by_hand(caption) for caption in NAMES + OTHERS]


def test_the_papers_examples_are_left_out_and_descriptions_stay():
    found = dict(zip(NAMES + OTHERS, kept(0.8), strict=True))
    assert not any(found[caption] for caption in NAMES)
    assert [c for c in OTHERS if not found[c]] == []


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_another_share_is_refused(share):
    with pytest.raises(ValueError, match="no share above 0"):
        ProperNouns(max_share=share)
