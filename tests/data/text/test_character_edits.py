"""Captions edited character by character."""

from collections import Counter

import pytest

from counterpoint.data.hashing import text_hash
from counterpoint.data.render import uniform
from counterpoint.data.text.captions import FirstFound, FirstSentence, WeightedChoice
from counterpoint.data.text.character_edits import ALPHABET, CharacterEdits

TEXT = "red fox"


def edited(policy, text, draws=4000):
    sample = {"__key__": "a", "txt": text.encode()}
    return [policy(sample, i / draws) for i in range(draws)]


def levenshtein(a, b):
    """The table of Wagner and Fischer."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@pytest.mark.parametrize("edits", [1, 2, 5])
def test_no_text_is_further_away_than_there_are_edits(edits):
    distances = Counter(
        levenshtein(TEXT, t) for t in edited(CharacterEdits(edits=edits), TEXT, 1500)
    )
    assert max(distances) == edits and distances[edits] > 700
    if edits == 1:
        assert set(distances) == {1}


def test_places_and_kinds_are_as_frequent_as_they_should_be():
    texts = edited(CharacterEdits(alphabet="XY"), "abc", 7000)
    kinds = Counter(len(text) - 3 for text in texts)
    # Four gaps and three characters; of three choices for a character one leaves it out.
    assert abs(kinds[1] / 7000 - 4 / 7) < 0.02 and abs(kinds[-1] / 7000 - 1 / 7) < 0.02
    wanted = {
        a + x + b for a, b in (("", "abc"), ("a", "bc"), ("ab", "c"), ("abc", "")) for x in "XY"
    }
    wanted |= {x + y + z for x in "aXY" for y in "bXY" for z in "cXY" if f"{x}{y}{z}" != "abc"
               and sum(c in "XY" for c in x + y + z) == 1}  # fmt: skip
    wanted |= {"bc", "ac", "ab"}
    counts = Counter(texts)
    assert set(counts) == wanted
    for place in ("Xabc", "aXbc", "abcX"):
        assert abs(counts[place] / 7000 - 1 / 14) < 0.015
    # A character in the place of itself is left out, so that the text is another one.
    assert Counter(edited(CharacterEdits(alphabet="a"), "a", 300)).keys() == {"aa", "a"}


def test_the_alphabet_is_that_of_the_authors():
    assert len(ALPHABET) == len(set(ALPHABET)) == 95 and {" ", "~", "Z", "0"} <= set(ALPHABET)


def test_one_number_gives_one_text_and_names_of_texts_give_different_ones():
    policy = CharacterEdits()
    sample = {"__key__": "a", "txt": TEXT.encode()}
    names = [f"text.attack_{i}" for i in range(8)]
    drawn = [
        [policy(sample, uniform(0, epoch, n, text_hash("a"))) for n in names] for epoch in (0, 1)
    ]
    again = [policy(sample, uniform(0, 0, name, text_hash("a"))) for name in names]
    assert again == drawn[0] and len(set(drawn[0])) >= 7 and drawn[0] != drawn[1]


def test_the_same_caption_is_edited():
    texts = edited(CharacterEdits(FirstSentence(FirstFound(["txt"]))), "Aaaaa. Bbbbb.", 50)
    assert all("B" not in text or levenshtein("Aaaaa.", text) == 1 for text in texts)
    with pytest.raises(ValueError, match="WeightedChoice, which draws a caption of its own"):
        CharacterEdits(FirstSentence(WeightedChoice({"txt": 1, "json:a": 1})))


@pytest.mark.parametrize("wrong", [{"edits": 0}, {"alphabet": ""}])
def test_no_edit_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one edit and one character"):
        CharacterEdits(**wrong)
