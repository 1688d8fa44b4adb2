"""A further text of every sample, which may have a tokenizer of its own (a teacher's)."""

from dataclasses import dataclass

from .text.captions import CaptionPolicy
from .text.tokenize import Tokenizer


@dataclass(frozen=True)
class Text:
    """One text of every sample.

    Attributes:
        caption: Where it is found: a policy, or places in order of preference; None: it is the main
            caption itself, for a reader with another tokenizer.
        tokenizer: What turns it into ids; None: the tokenizer of `data`.
        context_length: Tokens of a row; None: those of the model's captions.

    Raises:
        ValueError: context_length is below 1.
    """

    caption: CaptionPolicy | tuple[str, ...] | None = None
    tokenizer: Tokenizer | None = None
    context_length: int | None = None

    def __post_init__(self) -> None:
        if self.context_length is not None and self.context_length < 1:
            raise ValueError(f"a text has context_length={self.context_length}; give 1 or more")
