"""Captions of several languages, of which each begins with its language's token (NLLB, M2M-100).

A policy that knows the language writes its name before the caption, `deu_Latn ein Hund`, and
`LanguageTokenizer` makes the token of it; prompts of an evaluation name it in the same way
(`deu_Latn {c}`). So the language is a part of the text on its way from the sample to the token.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SampleError
from ..shards.fields import field_texts
from ..shards.reader import RawSample
from .captions import CaptionPolicy, FirstFound
from .tokenize import ClipTokenizer, HFTokenizer, Tokenizer, check_arguments


class InLanguages(CaptionPolicy):
    """A random one of a sample's texts, after the name of its language.

    Every field that has text is equally likely; of a list, every text of it.

    Args:
        languages: name of the language by field, such as `{txt: eng_Latn, json:de: deu_Latn}`.

    Raises:
        ValueError: no fields.
    """

    def __init__(self, languages: dict[str, str]):
        if not languages:
            raise ValueError("languages names no fields; give some, such as {txt: eng_Latn}")
        self.languages = dict(languages)
        self.fields = tuple(languages)

    def __call__(self, sample: RawSample, draw: float) -> str:
        present = [(f, texts) for f in self.fields if (texts := field_texts(sample, f))]
        if not present:
            where = f"'{sample['__key__']}'"
            raise SampleError("no_caption", f"{where} has no text in {', '.join(self.fields)}")
        index = int(draw * len(present))
        field, texts = present[index]
        # The remainder of the draw chooses within the list.
        return f"{self.languages[field]} {texts[int((draw * len(present) - index) * len(texts))]}"


class WithLanguage(CaptionPolicy):
    """The caption that another policy chooses, after the language that the sample names.

    Samples without that field, or of another language than those named, go without: the
    tokenizer's default is theirs.

    Args:
        of: the policy; the first field found by default.
        field: where the sample's language stands.
        names: the tokenizer's name by the field's value, such as `{de: deu_Latn}`; None: the
            values are the tokenizer's names.
    """

    def __init__(
        self,
        of: CaptionPolicy | None = None,
        field: str = "json:language",
        names: dict[str, str] | None = None,
    ):
        self.of = of or FirstFound()
        self.field, self.names = field, names
        self.fields = (*self.of.fields, field)

    def __call__(self, sample: RawSample, draw: float) -> str:
        caption = self.of(sample, draw)
        value = next(iter(field_texts(sample, self.field)), "")
        language = value if self.names is None else self.names.get(value, "")
        return f"{language} {caption}" if language else caption


class LanguageTokenizer(Tokenizer):
    """Another tokenizer, whose rows begin with the token of the caption's language.

    A caption's language is its first word, if that is one of the languages' names. Where the other
    tokenizer has tokens for languages and begins its rows with one, that one is replaced (NLLB's
    `src_lang`, Costa-jussa et al. 2022); a tokenizer without any (CLIP's, XLM-R's) gets further ids
    behind its vocabulary, which are put before its rows.

    Args:
        of: the other tokenizer; CLIP's by default.
        languages: names of languages; none: those of the other tokenizer.
        default: language of captions that name none; None: the other tokenizer's, if it has one.

    Raises:
        ValueError: there are no languages, the other tokenizer knows some of them only, or its rows
            do not begin with one, or the default is none of them.
    """

    def __init__(
        self,
        of: Tokenizer | None = None,
        languages: Sequence[str] = (),
        default: str | None = None,
    ):
        self.of = of or ClipTokenizer()
        known = _language_ids(self.of)
        languages = tuple(languages) or tuple(known)
        if not languages:
            raise ValueError(
                f"a {type(self.of).__name__} has no tokens for languages: name them, such as "
                "languages: [eng_Latn, deu_Latn]"
            )
        self.is_known = languages[0] in known
        if odd := [name for name in languages if (name in known) != self.is_known]:
            have, lack = (languages[0], odd[0]) if self.is_known else (odd[0], languages[0])
            raise ValueError(
                f"the tokenizer has a token for the language {have} and none for {lack}: name "
                f"those that it has, which are {', '.join([*known][:4])}, ..."
            )
        if default is not None and default not in languages:
            raise ValueError(f"default: {default} is none of the languages {', '.join(languages)}")
        self.default = default
        self.pad_id, self.vocab_size = self.of.pad_id, self.of.vocab_size
        if self.is_known:
            self.ids = {name: known[name] for name in languages}
            with torch.device("cpu"):  # also where a run is only planned
                first = int(self.of(["a"], 8)[0][0, 0])
            if first not in known.values():
                raise ValueError(
                    "the tokenizer does not begin its rows with a language's token: load it with "
                    "legacy_behaviour=False, and save it to a folder"
                )
        else:
            self.ids = {name: self.vocab_size + i for i, name in enumerate(languages)}
            self.vocab_size += len(languages)

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[Tensor, Tensor]:
        check_arguments(texts, context_length)
        named = [self.split(text) for text in texts]
        marks = torch.tensor([self.ids.get(name or "", -1) for name, _ in named], dtype=torch.int64)
        captions, has_mark = [caption for _, caption in named], marks >= 0
        if self.is_known:
            ids, lengths = self.of(captions, context_length)
            ids[:, 0] = marks.where(has_mark, ids[:, 0])
            return ids, lengths
        if context_length < 2:
            raise ValueError("context_length must be at least 2: one token is the language's")
        ids, lengths = self.of(captions, context_length - 1)
        rest = ids.new_full((len(ids), 1), self.pad_id)
        after = torch.cat([marks[:, None], ids], dim=1)
        return after.where(has_mark[:, None], torch.cat([ids, rest], dim=1)), lengths + has_mark

    def split(self, text: str) -> tuple[str | None, str]:
        """Returns a caption's language, named or the default, and the caption itself."""
        first, _, rest = text.partition(" ")
        return (first, rest) if first in self.ids else (self.default, text)


def _language_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The tokens of a tokenizer of transformers that are neither words nor have another role."""
    if not isinstance(tokenizer, HFTokenizer):
        return {}
    of: Any = tokenizer.tokenizer
    roles = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    taken = {str(getattr(of, f"{role}_token", None)) for role in roles}
    return {name: int(i) for name, i in of.get_added_vocab().items() if name not in taken}
