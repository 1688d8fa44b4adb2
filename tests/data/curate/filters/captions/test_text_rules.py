"""Rules against plain Python, caption by caption."""

import re
from collections import Counter

import pytest
from helpers.filter_run import batch_of, run_filter

from counterpoint.data.curate.filters.captions.text_rules import TextRules

CAPTIONS = [
    "A dog on the beach",
    "IMG_20210304_112233.JPG",
    "sale sale sale sale now",
    "Hund und Katze, Hund",
    "x-24-filled 2",
    "日本の犬 2024年",
    "3.14159 2.71828 1.41421",
    "http://example.com/a.png",
    "don't stop",
    "naïve café über Straße",
    "!!!",
    "",
    "The the THE the cat",
    "ab 12",
]
ROWS = batch_of({"caption": CAPTIONS})


def keep(**settings):
    return run_filter(TextRules(**settings), ROWS, pieces=4)["keep"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 1.0])
def test_shares_of_letters_and_digits(share):
    def counted(text, is_one):
        return sum(map(is_one, text)), max(len(re.findall(r"\S", text)), 1)

    letters = [counted(text, str.isalpha) for text in CAPTIONS]
    assert keep(min_letters=share) == [n >= share * of for n, of in letters]
    digits = [counted(text, str.isdigit) for text in CAPTIONS]
    assert keep(max_digits=share) == [n <= share * of for n, of in digits]
    assert len(set(keep(min_letters=share))) == 2


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_the_most_frequent_word(share):
    wanted = []
    for text in CAPTIONS:
        words = re.findall(r"[\w'-]+", text.lower().replace("_", " "))
        most = max(Counter(words).values(), default=0)
        wanted.append(len(words) < 4 or most <= share * len(words))
    assert keep(max_repeated=share) == wanted and False in wanted


def test_patterns_and_words(tmp_path):
    patterns = (r"(?i)\.(jpe?g|png)\b", "https?://", "^!")
    wanted = [not any(re.search(pattern, text) for pattern in patterns) for text in CAPTIONS]
    assert keep(refuse=patterns) == wanted
    (tmp_path / "words.txt").write_text("dog\n\nHUND\nstraße\ndon't\n", encoding="utf-8")
    found = [row for row, kept in enumerate(keep(words=tmp_path / "words.txt")) if kept]
    assert found == [0, 3, 8, 9]
    assert TextRules(words=tmp_path / "words.txt").files() == [tmp_path / "words.txt"]


def test_rules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="max_digits=20 is no share"):
        TextRules(max_digits=20)
    with pytest.raises(ValueError, match=r"refuse: '\(a' is no expression of RE2"):
        TextRules(refuse=("(a",))
