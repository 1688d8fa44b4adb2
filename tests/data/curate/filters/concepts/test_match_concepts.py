"""The automaton against naive search for substrings, as MetaCLIP's first code searched."""

import json
import os
import random
import re

import pyarrow as pa
import pytest
from helpers.filter_run import batch_of, run_filter

from counterpoint.data.curate.filters.concepts.match_concepts import MatchConcepts

WORDS = [
    "a",
    "dog",
    "Dog",
    "hot dog",
    "dog house",
    "the",
    "U.S",
    "café",
    "don't",
    "x",
    "new",
    "York",
]
ENTRIES = [
    *WORDS,
    "New York",
    "hot",
    "a hot dog",
    "!",
    "犬",
    "犬小",
    "小屋",
    "naïve",
    "-",
    "dog-house",
]


@pytest.fixture
def entries(tmp_path):
    path = tmp_path / "entries.txt"
    path.write_text("\n".join(ENTRIES) + "\n", encoding="utf-8")
    return path


def captions(size=2000):
    rng = random.Random(0)
    pieces = [*WORDS, "New", "York", "house", "hot", "犬小屋", "doghouse", "dogs", "naïve"]
    joints = [" ", " ", " ", ", ", ".", "\t", "\n", "  ", "!", "-", " - ", "", " `"]
    return [
        "".join(rng.choice(pieces) + rng.choice(joints) for _ in range(rng.randrange(9)))
        for _ in range(size)
    ]


def naive(caption, listed=ENTRIES):
    text = f" {caption} "
    for mark in [",", ".", ";", ":", "?", "!", "`"]:
        text = text.replace(mark, f" {mark} ")
    text = re.sub("[\t\n\r]", " ", text)
    return [number for number, entry in enumerate(listed) if f" {entry} " in text]


@pytest.mark.parametrize("pieces", [1, 13])
def test_every_entry_is_found_where_a_substring_is(entries, pieces):
    texts = captions()
    found = run_filter(MatchConcepts(entries), batch_of({"caption": texts}), pieces)
    assert found["concepts"] == [naive(text) for text in texts]
    assert found["num_matches"] == [len(naive(text)) for text in texts]
    assert found["keep"] == [bool(naive(text)) for text in texts]
    seen = {number for numbers in found["concepts"] for number in numbers}
    # "U.S" cannot occur: its point stands apart in every caption.
    assert {ENTRIES[number] for number in set(range(len(ENTRIES))) - seen} <= {
        "U.S",
        "犬",
        "犬小",
        "小屋",
    }
    assert 100 < found["keep"].count(False) < 1900


def test_scripts_without_spaces(entries):
    each = MatchConcepts(entries, min_matches=2, padding="by_script")
    rows = batch_of({"caption": ["犬小屋", "my犬!", "a dog!", "nothing"]})
    names = [[ENTRIES[n] for n in numbers] for numbers in run_filter(each, rows)["concepts"]]
    assert names == [["犬", "犬小", "小屋"], ["!", "犬"], ["a", "dog", "!"], []]
    assert run_filter(each, rows)["keep"] == [True, True, True, False]


def test_each_language_has_its_own_entries(tmp_path):
    lists = {"de": ["hund", "haus"], "en": ["dog"], "other": ["house", "hund"]}
    files = {}
    for code, words in lists.items():
        files[code] = tmp_path / f"{code}.txt"
        files[code].write_text("\n".join(words))
    rows = batch_of(
        {"caption": ["hund dog haus house"] * 3, "language": pa.array(["en", "de", "fr"])}
    )
    # Numbers go through de, en, other.
    assert run_filter(MatchConcepts(files), rows)["concepts"] == [[2], [0, 1], [3, 4]]
    del files["other"]
    assert run_filter(MatchConcepts(files), rows)["concepts"] == [[2], [0, 1], []]
    assert MatchConcepts(files).reads == ("caption", "language")
    assert list(MatchConcepts(files).files()) == [files["de"], files["en"]]


def test_a_list_in_json_is_that_of_lines(entries, tmp_path):
    """MetaCLIP's own list is published as JSON."""
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(ENTRIES))
    rows = batch_of({"caption": captions(200)})
    assert run_filter(MatchConcepts(path), rows) == run_filter(MatchConcepts(entries), rows)
    for wrong in ('{"dog": 3}', '["dog", 3]', '["dog"'):
        path.write_text(wrong)
        os.utime(path, ns=(1, len(wrong)))
        with pytest.raises(ValueError, match=r"metadata\.json' is no list of texts in JSON"):
            run_filter(MatchConcepts(path), rows)


def test_lists_that_cannot_be_are_refused(tmp_path):
    rows = batch_of({"caption": ["a"]})
    (tmp_path / "twice.txt").write_text("dog\ncat\ndog\n")
    with pytest.raises(ValueError, match="has 'dog' twice"):
        run_filter(MatchConcepts(tmp_path / "twice.txt"), rows)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="has none; write one a line"):
        run_filter(MatchConcepts(tmp_path / "empty.txt"), rows)
    with pytest.raises(ValueError, match=r"gone\.txt' cannot be read"):
        run_filter(MatchConcepts(tmp_path / "gone.txt"), rows)
