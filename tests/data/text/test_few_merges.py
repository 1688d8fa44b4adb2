"""CLIP's encoding with fewer merges, against its merges one at a time and the full encoding."""

import gzip
import pickle
from itertools import pairwise
from pathlib import Path

import open_clip
import pytest

from counterpoint.data.text.few_merges import FewMerges
from counterpoint.data.text.tokenize import ClipTokenizer, byte_characters

CAPTIONS = ["woman firefighter: medium-dark skin tone", "Flagge: \u00c5land", "\u732b cat", ""]


def merged(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The merge of lowest rank, again and again."""
    symbols = [byte_characters()[byte] for byte in word.encode()]
    symbols[-1] += "</w>"
    while True:
        found = [(ranks[p], i) for i, p in enumerate(pairwise(symbols)) if p in ranks]
        if not found:
            return symbols
        _, at = min(found)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def test_words_are_merged_by_the_first_merges_alone():
    path = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1:401]
    pairs = [tuple(line.split()) for line in lines]
    characters = sorted(byte_characters())
    table = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in pairs)]
    ids, lengths = FewMerges(400)(CAPTIONS, 60)
    words = [["woman", "firefighter", ":", "medium", "-", "dark", "skin", "tone"]]
    words += [["flagge", ":", "\u00e5land"], ["\u732b", "cat"], []]
    for row, length, caption in zip(ids.tolist(), lengths.tolist(), words, strict=True):
        ranks = {pair: rank for rank, pair in enumerate(pairs)}
        symbols = [symbol for word in caption for symbol in merged(word, ranks)]
        assert row[:length] == [912, *(table.index(symbol) for symbol in symbols), 913]
        assert not any(row[length:])


def test_with_all_merges_it_is_clips():
    few, clip = FewMerges(48894), ClipTokenizer()
    assert (few.start_id, few.end_id, few.vocab_size) == (49406, 49407, 49408)
    assert (few(CAPTIONS, 30)[0] == clip(CAPTIONS, 30)[0]).all()


def test_it_travels_to_workers_and_refuses_what_clip_has_not():
    few = FewMerges(400)
    again = pickle.loads(pickle.dumps(few))
    assert again.vocab_size == 914 and (again(CAPTIONS, 30)[0] == few(CAPTIONS, 30)[0]).all()
    with pytest.raises(ValueError, match="give 0 to 48894"):
        FewMerges(50000)
