"""Tokenizers: `tokenizer(texts, context_length) -> (ids, lengths)`.

`ClipTokenizer` gives the ids of CLIP's byte-pair encoding, equal to those of open_clip's
`SimpleTokenizer` for any string. It works without a network: the merges ship inside
`open_clip_torch`. `HFTokenizer` wraps any tokenizer of `transformers`, by name or folder.
Tokenizers are picklable, so that they reach DataLoader workers under any start method.
"""

import functools
import gzip
import html
import importlib.util
import os
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ftfy
import numpy as np
import regex
import torch
from torch import Tensor

# Forked DataLoader workers would otherwise each print a warning about the threads of the Rust
# tokenizers; the workers are the parallelism here.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

NUM_MERGES = 49152 - 256 - 2  # what CLIP keeps of the merges in the file
START, END = "<start_of_text>", "<end_of_text>"
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"

# Strings on which ftfy and HTML unescaping change nothing and no special token can occur:
# ASCII without control characters, without `&` and `<`. Nearly every caption passes.
PLAIN = re.compile(r"[\t\n\r -%'-;=-~]*")
PLAIN_WORDS = re.compile(rf"{CONTRACTIONS}|[a-z]+|[0-9]|[^\sa-z0-9]+")
WORDS = regex.compile(
    rf"{START}|{END}|{CONTRACTIONS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)

# Python reads no number of over 4,300 digits; 8 are more than any character has.
LONG_REFERENCE = re.compile("&#([0-9]{8,})")

PUNCTUATION = str.maketrans("", "", string.punctuation)
Clean = Literal["none", "whitespace", "lower", "canonicalize"]

MAX_CACHED_WORDS = 1 << 17  # about 30 MB a process
MAX_CACHED_LENGTH = 32


class Tokenizer(ABC):
    """Turns captions into rows of token ids of one fixed length.

    Attributes:
        vocab_size: number of ids, for the embedding table of the text tower.
        pad_id: the id that fills a row after the caption.
    """

    vocab_size: int
    pad_id: int

    @abstractmethod
    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[Tensor, Tensor]:
        """Encodes a batch of captions.

        Args:
            texts: n captions.
            context_length: L, the number of ids in a row; longer captions are cut.

        Returns:
            ids: int64 [n, L].
            lengths: int64 [n], tokens up to and including end-of-text.

        Raises:
            ValueError: `texts` is one string, or `context_length` is below 1.
        """


class ClipTokenizer(Tokenizer):
    """CLIP's lower-cased byte-pair encoding; ids equal to open_clip's `SimpleTokenizer`.

    A caption is [start, words..., end, 0...]; truncation keeps end-of-text last. The ids of a
    word are computed once by the Rust `tokenizers` and then looked up, which makes ordinary
    captions several times faster than encoding whole strings in Rust.
    """

    start_id = 49406
    end_id = 49407
    pad_id = 0
    vocab_size = 49408
    num_merges = NUM_MERGES

    def __init__(self) -> None:
        self._cache: dict[str, tuple[int, ...]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self._cache = {}

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[Tensor, Tensor]:
        check_arguments(texts, context_length)
        rows = np.zeros((len(texts), context_length), dtype=np.int64)
        lengths = np.empty(len(texts), dtype=np.int64)
        for row, text in enumerate(texts):
            ids = [self.start_id, *self.encode(text, context_length), self.end_id]
            if len(ids) > context_length:
                ids = ids[:context_length]
                ids[-1] = self.end_id
            rows[row, : len(ids)] = ids
            lengths[row] = len(ids)
        return torch.from_numpy(rows), torch.from_numpy(lengths)

    def encode(self, text: str, limit: int) -> list[int]:
        """Returns the ids of `text` without start and end; may stop once it has `limit` of them."""
        ids: list[int] = []
        for word in split_words(text):
            cached = self._cache.get(word)
            ids += self._encode_word(word) if cached is None else cached
            if len(ids) >= limit:
                break
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word in (START, END):
            return (self.start_id if word == START else self.end_id,)
        characters = byte_characters()
        spelled = "".join(characters[byte] for byte in word.encode("utf-8"))
        ids = tuple(token.id for token in byte_pair_model(self.num_merges).tokenize(spelled))
        if len(word) <= MAX_CACHED_LENGTH:
            if len(self._cache) >= MAX_CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = ids
        return ids


class HFTokenizer(Tokenizer):
    """Any tokenizer of `transformers`, by name or local folder.

    Captions are padded on the right with the tokenizer's padding token, or with its end-of-text
    token where it has none; truncation leaves room for the special tokens.
    `lengths` counts the tokens that are not padding.
    """

    def __init__(self, name: str, clean: Clean = "none", left_out: Sequence[str] = ()) -> None:
        """Loads the tokenizer.

        Args:
            name: a model name, or a folder written by `save_pretrained`.
            clean: what is done to captions before: repaired and with white space joined
                (`whitespace`), and lower-cased (`lower`), and without punctuation (`canonicalize`);
                models of open_clip were trained with one of these.
            left_out: tokens that padding takes the place of, such as `[SEP]`.

        Raises:
            ValueError: it cannot be loaded, or has no token to pad with.
        """
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"no tokenizer could be loaded from '{name}'; give a folder written by "
                "save_pretrained, or the name of a model that can be downloaded from here"
            ) from error
        if self.tokenizer.pad_token_id is None:
            if self.tokenizer.eos_token_id is None:
                raise ValueError(
                    f"the tokenizer '{name}' has neither a padding nor an end-of-text token; set "
                    "one (`tokenizer.pad_token = ...`) and save it to a folder"
                )
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.clean: Clean = clean
        self.left_out = self.tokenizer.convert_tokens_to_ids(list(left_out))
        self.tokenizer.padding_side = "right"
        self.tokenizer.truncation_side = "right"
        self.vocab_size = len(self.tokenizer)
        pad_id: Any = self.tokenizer.pad_token_id
        self.pad_id = int(pad_id)

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[Tensor, Tensor]:
        check_arguments(texts, context_length)
        if not texts:
            empty = torch.zeros(0, context_length, dtype=torch.int64)
            return empty, torch.zeros(0, dtype=torch.int64)
        batch = self.tokenizer(
            [cleaned(text, self.clean) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=context_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, is_token = batch["input_ids"].long(), batch["attention_mask"].bool()
        for token in self.left_out:
            is_token &= ids != token
        return ids.where(is_token, self.pad_id), is_token.sum(dim=1)


def check_arguments(texts: Sequence[str], context_length: int) -> None:
    """Raises a ValueError for arguments that no tokenizer can encode."""
    if isinstance(texts, str):
        raise ValueError(f"a tokenizer takes a list of captions; write [{texts[:40]!r}]")
    if context_length < 1:
        raise ValueError(f"context_length must be at least 1, not {context_length}")


def split_words(text: str) -> list[str]:
    """Returns the words that CLIP's encoding begins with, cleaned and lower-cased."""
    if PLAIN.fullmatch(text):
        return PLAIN_WORDS.findall(text.lower())
    return WORDS.findall(clean(text))


def clean(text: str) -> str:
    """Repairs encodings and HTML entities, joins white space, lower-cases: CLIP's cleaning."""
    text = unescaped(unescaped(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def cleaned(text: str, how: Clean) -> str:
    """Returns a caption as open_clip's cleaning of this name leaves it."""
    if how == "none":
        return text
    text = " ".join(unescaped(unescaped(ftfy.fix_text(text))).split())
    if how == "canonicalize":
        text = " ".join(text.replace("_", " ").translate(PUNCTUATION).split())
    return text if how == "whitespace" else text.lower()


def unescaped(text: str) -> str:
    """Replaces HTML's references to characters; like `html.unescape`, for any number of digits."""
    short = LONG_REFERENCE.sub(lambda match: f"&#{match[1].lstrip('0')[:8] or '0'}", text)
    return html.unescape(short)


@functools.cache
def byte_characters() -> list[str]:
    """Returns the character of each byte 0..255 in CLIP's vocabulary.

    Printable Latin-1 maps to itself; the other bytes, in order, to U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(0x100 + rank) for rank, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


@functools.cache
def byte_pair_model(num_merges: int = NUM_MERGES):
    """Returns CLIP's byte-pair encoding of one word, or its first merges, as a Rust model.

    Rust merges the pair of lowest rank one occurrence at a time, CLIP all its occurrences
    together. No two merges in CLIP's table give the same symbol, so that a new pair always ranks
    after the one being merged: both orders give the same result.
    """
    from tokenizers.models import BPE

    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.origin is not None, "open_clip_torch is a dependency"
    path = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    pairs = (line.split() for line in lines[1 : num_merges + 1])
    merges = [(first, second) for first, second in pairs]
    # Ids: the bytes (printable ones first), the bytes ending a word, the merges by rank.
    characters = sorted(byte_characters())
    symbols = [*characters, *(character + "</w>" for character in characters)]
    symbols += [first + second for first, second in merges]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    assert len(vocabulary) == 2 * 256 + num_merges
    return BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>")
