"""The run's tokenizer in files that `tokenizers` and transformers read.

In: a run. Out: a `tokenizers.Tokenizer`, or a tokenizer of transformers, that gives the same ids.
Both repeat lower-casing, splitting into words and byte pairs. What CLIP's cleaning does besides
(HTML's references, text in broken encodings) stays with the caller.
"""

import copy
import json
from typing import Any

from ...data.text.tokenize import (
    CONTRACTIONS,
    END,
    START,
    ClipTokenizer,
    HFTokenizer,
    byte_pair_model,
)
from .source import Source

WORDS = rf"{CONTRACTIONS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
# What ftfy makes of curly quotes.
QUOTES = {"[\u02bc\u2018-\u201b]": "'", "[\u201c-\u201f]": '"'}


def make_tokenizer(source: Source) -> Any:
    """Returns a `tokenizers.Tokenizer` that cuts and pads as the run does.

    A batch is padded to its longest text, or always to the whole length where the text tower looks
    at padding.

    Raises:
        ValueError: the run has a tokenizer of another kind.
    """
    from tokenizers import Tokenizer

    ours, length = source.run.tokenizer, source.model.context_length
    if isinstance(ours, ClipTokenizer):
        tokenizer, pad = _clip(ours), "!"
    elif isinstance(ours, HFTokenizer) and ours.tokenizer.is_fast:
        tokenizer = Tokenizer.from_str(ours.tokenizer.backend_tokenizer.to_str())
        pad = str(ours.tokenizer.pad_token)
    else:
        raise _unknown(source)
    tokenizer.enable_truncation(length)
    whole = None if source.model.text.ignores_padding else length
    tokenizer.enable_padding(pad_id=ours.pad_id, pad_token=pad, length=whole)
    return tokenizer


def make_hf_tokenizer(source: Source) -> Any:
    """Returns a tokenizer of transformers.

    Raises:
        ValueError: the run has a tokenizer of another kind.
    """
    from transformers import CLIPTokenizer

    ours, length = source.run.tokenizer, source.model.context_length
    if isinstance(ours, ClipTokenizer):
        model = json.loads(_clip(ours).to_str())["model"]
        vocabulary = model["vocab"] | {
            "<|startoftext|>": ours.start_id,
            "<|endoftext|>": ours.end_id,
        }
        merges: Any = [tuple(pair) for pair in model["merges"]]
        return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)
    if isinstance(ours, HFTokenizer):
        tokenizer = copy.deepcopy(ours.tokenizer)
        tokenizer.model_max_length = length
        if not source.model.text.ignores_padding:
            # No mask, since padding is attended to; saved are the arguments that it was made with.
            tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
        return tokenizer
    raise _unknown(source)


def _clip(ours: ClipTokenizer) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(byte_pair_model())
    # Words are lower-cased, the two special tokens are found before.
    special = [AddedToken(token, normalized=False, special=True) for token in (START, END)]
    tokenizer.add_special_tokens(special)
    quotes = [normalizers.Replace(Regex(pattern), quote) for pattern, quote in QUOTES.items()]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), *quotes, normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, ours.start_id), (END, ours.end_id)],
    )
    return tokenizer


def _unknown(source: Source) -> ValueError:
    return ValueError(
        f"{source.folder} reads texts by a {type(source.run.tokenizer).__name__}, which other "
        "libraries do not have; export --to safetensors, or train with ClipTokenizer or HFTokenizer"
    )
