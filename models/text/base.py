"""Text towers: token ids in, one pooled vector a caption out."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..layers import Tower, repeated_layers

Ids = Int64[Tensor, "n tokens"]  # padded after the end of text
Lengths = Int64[Tensor, " n"]  # tokens of each caption, start and end included


class TextTower(Tower):
    """What a text tower must offer: `forward(ids [n, tokens], lengths [n]) -> [n, width]`.

    Attributes:
        context_length: longest caption in tokens.
        ignores_padding: whether the result stays the same without the columns after the longest
            caption's end, so that they need not be computed.
        stored: batch entry of floats [n, ...] that the tower reads in place of `text`, where
            batches hold it: `llm.text`, and `llm.text.NAME` for `text.NAME`. `forward` gets it
            alone then. None: it reads token ids.
        inner: where a tower that wraps another one holds it (`tower.`): weights of that one alone,
            which know nothing of the wrapper, go there.
    """

    context_length: int
    ignores_padding: bool = False
    stored: str | None = None
    inner: str = ""

    def takes_packed(self, device_type: str, dtype: torch.dtype) -> bool:
        """Whether `forward` and `states` also take `Packed` captions, where they are computed so.

        They return the states of all tokens [tokens, width] then, and as ever a vector a caption.
        """
        return False

    def borrow(self, model: nn.Module) -> None:
        """Called once by the model when both towers exist; most towers borrow nothing."""


class EncoderTower(TextTower):
    """A text tower around an encoder of transformers.

    Attributes:
        trunk: the encoder.
    """

    trunk: PreTrainedModel

    def layers(self) -> Sequence[nn.Module]:
        """Returns the encoder's layers; releases of transformers differ in where they are."""
        return repeated_layers(self.trunk)

    def forward(self, text: Ids, text_length: Lengths) -> Float[Tensor, "n width"]:
        """Returns the pooled state of each caption."""
        return self.states(text, text_length)[1]

    @abstractmethod
    def states(  # type: ignore[override] - the tower's own inputs
        self, text: Ids, text_length: Lengths
    ) -> tuple[Float[Tensor, "n tokens width"], Float[Tensor, "n width"]]:
        """See `Tower.states`."""


def check_heads(width: int, num_heads: int) -> None:
    """Refuses a width that heads cannot share."""
    if width % num_heads:
        raise ValueError(
            f"text width {width} does not divide by num_heads {num_heads}: "
            f"use {width // num_heads * num_heads} or other heads"
        )


def is_token(text: Ids, text_length: Lengths) -> Bool[Tensor, "n tokens"]:
    """Returns which tokens are no padding."""
    return torch.arange(text.shape[1], device=text.device) < text_length[:, None]


def padded(text: Ids, text_length: Lengths, length: int, pad_id: int) -> Int64[Tensor, "n length"]:
    """Returns rows of one length, filled with the padding token behind each caption's end."""
    text = text.where(is_token(text, text_length), pad_id)
    return F.pad(text, (0, length - text.shape[1]), value=pad_id)


def at_end(
    states: Float[Tensor, "n tokens width"], text_length: Lengths
) -> Float[Tensor, "n width"]:
    """Returns the state at position `text_length - 1`, the end of text, of each caption."""
    rows = torch.arange(len(states), device=states.device)
    # Not by two indices, whose gradient sorts.
    return states.flatten(0, 1).index_select(0, rows * states.shape[1] + text_length - 1)
