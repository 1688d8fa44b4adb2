"""The syntax reducer: which words stay, with the real tagger and with a made-up one."""

import pickle
import socket
import sys

import pytest

from counterpoint.data.text import syntax
from counterpoint.data.text.syntax import Syntax, WordReducer

TAGS = {"dog": "NN", "grass": "NNS", "brown": "JJ", "green": "JJR", "runs": "VBZ", "the": "DT"}


@pytest.fixture
def made_up(monkeypatch):
    """A tagger of six words, so that the choice is tested without TextBlob."""
    monkeypatch.setattr(
        syntax, "tagger", lambda: lambda words: [[word, TAGS.get(word, "IN")] for word in words]
    )


@pytest.mark.parametrize(
    ("num_words", "want"),
    [
        (1, "dog,"),
        (2, "dog, grass."),
        (3, "brown dog, grass."),
        (4, "brown dog, green grass."),
        (5, "brown dog, runs green grass."),
        (6, "the brown dog, runs green grass."),
        (7, "the brown dog, runs over green grass."),
        (8, "the brown dog, runs over the  green grass."),
    ],
)
def test_nouns_then_adjectives_then_verbs_then_the_rest_in_their_order(made_up, num_words, want):
    assert Syntax(num_words)("the brown dog, runs over the  green grass.") == want


def test_short_captions_and_none_are_left_alone(made_up):
    assert Syntax(3)("  a \t dog ") == "  a \t dog "
    assert Syntax(3)("") == ""
    assert WordReducer()("the dog runs over it") == "the dog runs over it"
    assert Syntax(2)("... -- 1 2") == "... --"


def test_the_real_tagger_works_offline_and_in_a_worker(monkeypatch):
    pytest.importorskip("textblob")

    def refuse(*arguments):
        raise AssertionError("the tagger wants the network")

    monkeypatch.setattr(socket, "socket", refuse)
    syntax.tagger.cache_clear()
    reducer = pickle.loads(pickle.dumps(Syntax(4)))
    assert reducer("A brown dog runs quickly over the green grass.") == "brown dog green grass."
    assert reducer("Two women are playing in the snow") == "women are playing snow"
    assert reducer("a/b ... naïve 🙂 dog of the day") == "a/b naïve 🙂 dog"


def test_what_cannot_work_is_said(monkeypatch):
    with pytest.raises(ValueError, match="num_words=0"):
        Syntax(0)
    syntax.tagger.cache_clear()
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[syntax\]'"):
        Syntax(3)
