"""Text reducers: the first tokens, random ones, or a random span, between start and end of text.

In: padded token ids and lengths. Out: the same, at most `num_tokens` long. The first token (the
start of text) and the last (the end of text, which is pooled) always stay. Li et al., "An Inverse
Scaling Law for CLIP Training" (CLIPA, 2023), section 3. The fourth way, by part of speech, needs
words: `data/text/syntax.py`.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor

from ..text.base import Lengths
from .base import Keys, Reduction, TextReducer

# Draws so many numbers a sample, uniform in 0 .. 2^63 - 1.
Draw = Callable[[int], Int64[Tensor, "n count"]]


class _Selection(TextReducer):
    """Keeps tokens by position; shorter captions stay as they are.

    Args:
        num_tokens: longest caption, start and end included.

    Raises:
        ValueError: `num_tokens` leaves no room for a word.
    """

    def __init__(self, num_tokens: int):
        if num_tokens < 3:
            raise ValueError(
                f"{type(self).__name__} has num_tokens={num_tokens}; give 3 (start, one token, "
                "end) or more"
            )
        self.num_tokens = num_tokens

    def tokens(
        self,
        text: Int64[Tensor, "n t"],
        length: Lengths,
        keys: Keys,
        view: str,
        reduction: Reduction,
    ) -> tuple[Int64[Tensor, "n t2"], Lengths]:
        if text.shape[1] <= self.num_tokens:
            return text, length
        positions = torch.arange(self.num_tokens, device=text.device)
        selected = self.positions(text.shape[1], length, partial(reduction.draw, keys, view))
        end = (length - 1)[:, None]
        # The end of text comes right after the last kept word.
        selected = torch.where(positions == self.num_tokens - 1, end, selected)
        kept = torch.where((length <= self.num_tokens)[:, None], positions, selected)
        return text.gather(1, kept), length.clamp(max=self.num_tokens)

    def positions(self, width: int, length: Lengths, draw: Draw) -> Int64[Tensor, "n k"]:
        """Returns rising positions of captions that are too long; the last is not used.

        Args:
            width: positions of a row, padding included.
            length: of each caption.
            draw: of these captions.
        """
        raise NotImplementedError


class Truncate(_Selection):
    """Keeps the first tokens; also the text length of a phase."""

    def positions(self, width: int, length: Lengths, draw: Draw) -> Int64[Tensor, "n k"]:
        return torch.arange(self.num_tokens, device=length.device).expand(len(length), -1)


class RandomTokens(_Selection):
    """Keeps random tokens in their order, every subset equally likely."""

    def positions(self, width: int, length: Lengths, draw: Draw) -> Int64[Tensor, "n k"]:
        # Of the words, those with the lowest random numbers.
        positions = torch.arange(width, device=length.device)
        scores = draw(width)
        scores = scores.masked_fill(positions == 0, -1)
        # The end and the padding come last.
        scores = scores.masked_fill(
            positions >= (length - 1)[:, None], torch.iinfo(torch.int64).max
        )
        order = scores.argsort(dim=1, stable=True)
        words = order[:, : self.num_tokens - 1].sort(dim=1).values
        return torch.cat([words, words[:, -1:]], dim=1)


class TokenBlock(_Selection):
    """Keeps a random span of neighbouring tokens, every position equally likely."""

    def positions(self, width: int, length: Lengths, draw: Draw) -> Int64[Tensor, "n k"]:
        num_starts = (length - self.num_tokens + 1).clamp(min=1)
        first = draw(1)[:, 0] % num_starts
        offsets = torch.arange(self.num_tokens, device=length.device)
        return offsets + torch.where(offsets > 0, first[:, None], 0)
