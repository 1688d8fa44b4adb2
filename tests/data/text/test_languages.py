"""Captions of several languages: the policy names it, the tokenizer puts its token first."""

import json
import pickle

import pytest
import torch
from transformers import NllbTokenizer

from counterpoint.data.errors import SampleError
from counterpoint.data.text.captions import FirstFound, FirstSentence
from counterpoint.data.text.languages import InLanguages, LanguageTokenizer, WithLanguage
from counterpoint.data.text.tokenize import ClipTokenizer, HFTokenizer

LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz"]


def sample(**fields):
    return {"__key__": "k", "txt": b"a dog", "json": json.dumps(fields).encode()}


@pytest.fixture(scope="module")
def nllb(tmp_path_factory):
    """An NLLB tokenizer of a few letters, with all its languages."""
    folder = str(tmp_path_factory.mktemp("nllb"))
    words = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS, "▁dog", "▁hund"]
    merges = [("▁", "d"), ("o", "g"), ("▁d", "og")]
    words += ["▁d", "og"]
    vocab = {word: i for i, word in enumerate(words)}
    NllbTokenizer(vocab=vocab, merges=merges).save_pretrained(folder)
    return folder


def test_ids_are_those_of_transformers_in_each_language(nllb):
    ours, theirs = LanguageTokenizer(HFTokenizer(nllb)), NllbTokenizer.from_pretrained(nllb)
    assert {"deu_Latn", "yor_Latn", "zho_Hans"} <= ours.ids.keys() and len(ours.ids) == 202
    captions = {"deu_Latn": "ein hund", "zho_Hans": "a dog and more dogs", "eng_Latn": "dog"}
    texts = [f"{language} {text}" for language, text in captions.items()]
    ids, lengths = ours([*texts, "dog"], 8)
    for row, length, (language, text) in zip(ids, lengths, captions.items(), strict=False):
        theirs.src_lang = language
        want = theirs(text, truncation=True, max_length=8)["input_ids"]
        assert row[:length].tolist() == want and set(row[length:].tolist()) <= {ours.pad_id}
        assert want[0] == theirs.convert_tokens_to_ids(language) and want[-1] == 2
    # No language named: the tokenizer's own.
    assert torch.equal(ids[3], ids[2]) and ours.vocab_size == len(theirs)
    german = LanguageTokenizer(HFTokenizer(nllb), default="deu_Latn")
    assert torch.equal(german(["ein hund"], 8)[0], ids[:1])
    assert torch.equal(pickle.loads(pickle.dumps(german))(["ein hund"], 8)[0], ids[:1])


def test_a_tokenizer_without_languages_gets_ids_behind_its_vocabulary():
    clip, ours = ClipTokenizer(), LanguageTokenizer(languages=["en", "de_"], default=None)
    assert ours.vocab_size == 49410
    texts = ["de_ ein Hund läuft über die Straße", "en dog", "dog", "de la mer"]
    ids, lengths = ours(texts, 7)
    want, _ = clip(["ein Hund läuft über die Straße", "dog", "dog", "de la mer"], 6)
    assert ids[:2, 0].tolist() == [49409, 49408] and torch.equal(ids[:2, 1:], want[:2])
    assert lengths.tolist() == [7, 4, 3, 5]
    # Without a language nothing is put before, and a word that is none stays a word.
    assert torch.equal(ids[2:, :6], want[2:]) and not ids[2:, 6].any()
    assert ours([], 5)[0].shape == (0, 5)
    with pytest.raises(ValueError, match="at least 2: one token is the language's"):
        ours(["a"], 1)


def test_what_cannot_be_told_apart_is_refused(nllb):
    with pytest.raises(ValueError, match="ClipTokenizer has no tokens for languages: name them"):
        LanguageTokenizer()
    words = r"a token for the language deu_Latn and none for german: name those that it has"
    for languages in (["deu_Latn", "german"], ["german", "deu_Latn"]):
        with pytest.raises(ValueError, match=words):
            LanguageTokenizer(HFTokenizer(nllb), languages)
    with pytest.raises(ValueError, match="default: fr is none of the languages en, de"):
        LanguageTokenizer(languages=["en", "de"], default="fr")
    # The older order, with the language behind the text.
    old = HFTokenizer(nllb)
    old.tokenizer = NllbTokenizer.from_pretrained(nllb, legacy_behaviour=True)
    with pytest.raises(ValueError, match=r"does not begin its rows .* legacy_behaviour=False"):
        LanguageTokenizer(old)


def test_one_text_of_those_in_any_language():
    policy = InLanguages({"txt": "eng_Latn", "json:de": "deu_Latn", "json:fr": "fra_Latn"})
    given = sample(de=["Hund", "ein Hund"])
    found = [policy(given, i / 400) for i in range(400)]
    counts = {text: found.count(text) for text in set(found)}
    assert counts == {"eng_Latn a dog": 200, "deu_Latn Hund": 100, "deu_Latn ein Hund": 100}
    assert policy.fields == ("txt", "json:de", "json:fr")
    with pytest.raises(SampleError, match="no_caption"):
        InLanguages({"json:it": "ita_Latn"})(given, 0.5)
    with pytest.raises(ValueError, match="names no fields"):
        InLanguages({})


def test_the_language_that_a_sample_names():
    policy = WithLanguage(FirstSentence(FirstFound(["json:text"])), "json:lang", {"de": "deu_Latn"})
    given = {"text": "Ein Hund. Er bellt."}
    assert policy(sample(lang="de", **given), 0) == "deu_Latn Ein Hund."
    assert policy(sample(lang="xx", **given), 0) == policy(sample(**given), 0) == "Ein Hund."
    assert WithLanguage()(sample(language="fra_Latn"), 0.3) == "fra_Latn a dog"
    assert policy.fields == ("json:text", "json:lang")
