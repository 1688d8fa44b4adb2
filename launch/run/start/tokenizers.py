"""Whether two tokenizers read texts alike, so that weights of one may be used with the other.

In: tokenizers, or values of `data.tokenizer`. Out: yes or no, by a sentence that both read.
"""

import pkgutil
from collections.abc import Mapping
from typing import Any

import torch

from ....data.text.tokenize import ClipTokenizer, Tokenizer

# What two tokenizers must agree on to be taken for the same.
PROBE = ["A photo of 3 red squares, a fish & the moon's house."]
PROBE_TOKENS = 64


def read_alike(ours: Tokenizer, theirs: Tokenizer) -> bool:
    """Whether both give the same ids, padding left out."""
    ids, length = ours(PROBE, PROBE_TOKENS)
    their_ids, their_length = theirs(PROBE, PROBE_TOKENS)
    return torch.equal(ids[0, : length[0]], their_ids[0, : their_length[0]])


def tokenizer_of(value: Mapping[str, Any]) -> Tokenizer:
    """Makes the tokenizer of a value of `data.tokenizer`; an empty one is CLIP's."""
    if not value:
        return ClipTokenizer()
    arguments = {
        name: tokenizer_of(v) if isinstance(v, Mapping) and "class_path" in v else v
        for name, v in (value.get("init_args") or {}).items()
    }
    return pkgutil.resolve_name(value["class_path"])(**arguments)
