"""The tokenisers: equal to open_clip's on anything that a caption may be."""

import pickle
import random

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

import counterpoint.data.text.tokenize as tokenize
from counterpoint.data.corpora.emoji.names import load_names
from counterpoint.data.text.tokenize import ClipTokenizer, HFTokenizer

LENGTHS = (1, 2, 3, 8, 16, 77, 160)

PIECES = [
    *["'s", "'S", "'t", "'re", "'VE", "'m", "'ll", "'d", "’s", "'", "''s", "\u017f", "'\u017f"],
    *["<start_of_text>", "<END_OF_TEXT>", "<end_of_text>", "<|endoftext|>", "<start_of_text"],
    *[
        "&amp;",
        "&lt;b&gt;",
        "&amp;amp;",
        "&#39;s",
        "&#x1F600;",
        "&#xD800;",
        "&#00000065;",
        "&#99999999",
        "&nbsp;",
        "&",
        "&copy",
    ],
    *["Ã©", "â€œquotedâ€\x9d", "schÃ¶n", "ï»¿", "l’humanitÃ©", "\ufb01ne", "ＦＵＬＬ", "…", "“”"],
    *["\x00", "\x07", "\x1b[31m", "\x1c", "\x1f", "\x7f", "\x85", "\ufffe", "\uffff", "\ufeff"],
    *["\t", "\n", "\r\n", "\r", "\v", "\f", "\u00a0", "\u2003", "\u2028", "\u3000", "   "],
    *["\u200b", "\u200d", "\u200c", "\u2060", "\u00ad", "\ufe0f", "\u202e", "\U000e0041"],
    *["e\u0301", "é", "Z͑ͫ̓ͪ̂a̴", "ก็็็", "İ", "ı", "ß", "ẞ", "Σς", "ǅ", "K", "Å", "\U00010400"],
    *[
        "图像",
        "カタカナ",
        "한국어",
        "हिन्दी",
        "العربية",
        "עברית",
        "ไทย",
        "👩🏾‍🚒",
        "🇫🇷",
        "👍🏽",
        "☺️",
    ],
    *["0", "42", "3.14", "½", "²", "٣", "Ⅷ", "1,000", "2nd", "100%"],
    *["\ud800", "\udc00", "\ud83d\ude00", "\ud83d", "🏻", "\U0010ffff", "\ue000"],
    *["a photo of", "IMG_1234.JPG", "Woman", "hahaha", "www.a.com/?q=1&b=2", "C++", "#tag", "@me"],
    *["!!!", "----", "......", "(", "]", '"', "\\", "/", "_", "^", "~", "$5", "`", "*", "=>"],
]


@pytest.fixture(scope="module")
def reference():
    """Returns open_clip's tokenizer."""
    return SimpleTokenizer()


def odd_strings(num, seed):
    """Strings of odd pieces, of random characters, and long runs, with a fixed seed."""
    rng = random.Random(seed)
    planes = [(0x20, 0x7F), (0, 0x250), (0x250, 0x3000), (0x3000, 0xFFFF), (0x10000, 0x1FFFF)]
    strings = []
    for index in range(num):
        kind = index % 4
        if kind == 0:
            text = rng.choice(["", " "]).join(rng.choices(PIECES, k=rng.randint(1, 12)))
        elif kind == 1:
            low, high = rng.choice(planes)
            text = "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(0, 30)))
        elif kind == 2:
            alphabet = rng.choice(["ab", "ha", "ing", "aeiou", "th e", "01", "'s ", "!.", "éa"])
            text = "".join(rng.choices(alphabet, k=rng.randint(1, 250)))
        else:
            unit = rng.choice(PIECES)
            text = unit * rng.randint(1, 60) + rng.choice(PIECES)
        strings.append(text)
    return strings


def assert_equal_ids(reference, texts, context_length):
    """Compares ids and lengths with open_clip's, naming the first caption that differs."""
    ids, lengths = ClipTokenizer()(texts, context_length)
    expected = reference(texts, context_length)
    assert ids.dtype == lengths.dtype == torch.int64
    assert ids.shape == (len(texts), context_length)
    differing = [
        (text, ours.tolist(), theirs.tolist())
        for text, ours, theirs in zip(texts, ids, expected, strict=True)
        if not torch.equal(ours, theirs)
    ]
    assert not differing, differing[0]
    # End-of-text is the largest id: its first place says where the caption ends. (A caption that
    # spells it out has an earlier one.)
    plain = [row for row, text in enumerate(texts) if "end_of_text" not in text.lower()]
    assert torch.equal(lengths[plain], expected[plain].argmax(dim=1) + 1)
    last = ids.gather(1, lengths[:, None] - 1)
    assert (last == reference.eot_token_id).all()


def test_ids_equal_open_clip_on_every_emoji_caption_in_every_language(reference):
    names = load_names()
    captions = [name.caption for name in names]
    assert len(captions) > 3900
    assert_equal_ids(reference, captions, 24)
    assert_equal_ids(reference, captions, 7)
    foreign = [text for name in names[::25] for text in name.names.values()]
    assert_equal_ids(reference, foreign, 77)


@pytest.mark.parametrize("context_length", LENGTHS)
def test_ids_equal_open_clip_on_odd_strings(reference, context_length):
    num = 4000 if context_length == 77 else 600
    assert_equal_ids(reference, odd_strings(num, seed=context_length), context_length)


def test_ids_equal_open_clip_on_all_ascii_pairs(reference):
    plain = [chr(code) for code in range(128) if tokenize.PLAIN.fullmatch(chr(code))]
    assert len(plain) == 128 - 32 - 1 + 3 - 2  # no controls but tab, newline, return; no & and <
    pairs = [" ".join(f"a{first}{second}b" for second in plain) for first in plain]
    pairs += ["".join(f"{first}{second}" for second in plain) for first in plain]
    assert_equal_ids(reference, pairs, 1200)
    single = [f"{a}{chr(code)}{b}" for code in range(256) for a in ("", "x") for b in ("", "9")]
    assert_equal_ids(reference, single, 12)


def test_references_of_any_number_of_digits():
    """Python refuses to read numbers of over 4,300 digits, zeros at the beginning included."""
    num = 5000
    for digits, character in [
        ("9" * num, "\ufffd"),
        ("0" * num + "65", "a"),
        ("0" * num, "\ufffd"),
        ("10000000", "\ufffd"),
        ("00000065", "a"),
        ("1114112", "\ufffd"),
        ("128512", "\U0001f600"),
    ]:
        for mark in ("&#", "&amp;#", "&#38;#", "&#" + "0" * num + "38;#"):
            for end in (";", "", " x"):
                expected = character + end.removeprefix(";")
                assert tokenize.clean(f"b{mark}{digits}{end}") == f"b{expected}"
    assert ClipTokenizer()(["&#" + "9" * num], 4)[1].tolist() == [3]


def test_no_captions_and_empty_captions(reference):
    ids, lengths = ClipTokenizer()([], 5)
    assert ids.shape == (0, 5) and lengths.shape == (0,)
    assert_equal_ids(reference, ["", " ", "\n"], 5)


def test_ids_do_not_depend_on_what_came_before(reference, monkeypatch):
    texts = odd_strings(200, seed=3)
    expected = ClipTokenizer()(texts, 77)[0]
    monkeypatch.setattr(tokenize, "MAX_CACHED_WORDS", 3)
    monkeypatch.setattr(tokenize, "MAX_CACHED_LENGTH", 4)
    small = ClipTokenizer()
    for _ in range(2):
        assert torch.equal(small(texts, 77)[0], expected)
    assert len(small._cache) <= 3


def test_pickle_carries_no_cache_and_gives_the_same_ids():
    texts = odd_strings(100, seed=5)
    tokenizer = ClipTokenizer()
    expected = tokenizer(texts, 32)[0]
    data = pickle.dumps(tokenizer)
    assert len(data) < 200
    assert torch.equal(pickle.loads(data)(texts, 32)[0], expected)


def test_vocabulary_is_that_of_open_clip(reference):
    tokenizer = ClipTokenizer()
    assert tokenizer.vocab_size == reference.vocab_size
    assert tokenizer.start_id == reference.sot_token_id
    assert tokenizer.end_id == reference.eot_token_id


@pytest.mark.parametrize("context_length", [0, -1])
def test_impossible_length_is_refused(context_length):
    with pytest.raises(ValueError, match=f"at least 1, not {context_length}"):
        ClipTokenizer()(["a"], context_length)


def test_one_string_is_refused():
    with pytest.raises(ValueError, match=r"list of captions; write \['a dog'\]"):
        ClipTokenizer()("a dog", 8)


@pytest.fixture
def local_tokenizer(tmp_path):
    """A word-level tokeniser of transformers, saved to a folder; returns (folder, words)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dog"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )

    def save(name, **special):
        folder = tmp_path / name
        PreTrainedTokenizerFast(
            tokenizer_object=core, unk_token="[UNK]", **special
        ).save_pretrained(folder)
        return str(folder)

    return save


def test_hf_tokenizer_pads_cuts_and_counts(local_tokenizer):
    folder = local_tokenizer("padded", pad_token="[PAD]", padding_side="left")
    tokenizer = HFTokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (7, 0)
    for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        ids, lengths = copy(["a red dog", "dog", "a red cat a red dog"], 6)
        assert ids.tolist() == [[2, 4, 5, 6, 3, 0], [2, 6, 3, 0, 0, 0], [2, 4, 5, 1, 4, 3]]
        assert lengths.tolist() == [5, 3, 6]
        assert ids.dtype == lengths.dtype == torch.int64
    assert tokenizer([], 6)[0].shape == (0, 6)


def test_hf_tokenizer_without_padding_token(local_tokenizer):
    with_end = HFTokenizer(local_tokenizer("end", eos_token="[SEP]"))
    ids, lengths = with_end(["dog"], 5)
    assert ids.tolist() == [[2, 6, 3, 3, 3]] and lengths.tolist() == [3]
    folder = local_tokenizer("bare")
    with pytest.raises(ValueError, match="neither a padding nor an end-of-text token"):
        HFTokenizer(folder)


def test_hf_tokenizer_cleans_and_leaves_tokens_out(local_tokenizer):
    folder = local_tokenizer("padded", pad_token="[PAD]")
    tokenizer = HFTokenizer(folder, clean="canonicalize", left_out=["[SEP]"])
    for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        ids, lengths = copy(["A  RED, dog!", "a red cat a red dog"], 6)
        assert ids.tolist() == [[2, 4, 5, 6, 0, 0], [2, 4, 5, 1, 4, 0]]
        assert lengths.tolist() == [4, 5]


def test_hf_tokenizer_that_is_not_there(tmp_path):
    missing = str(tmp_path / "nothing")
    with pytest.raises(ValueError, match=f"no tokenizer could be loaded from '{missing}'"):
        HFTokenizer(missing)
