"""Captions longer than a text tower reads: overlapping windows, whose vectors are averaged."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from .base import Ids, Lengths, TextTower


class WindowTower(TextTower):
    """Any text tower over windows of a long caption, and the mean of the windows' vectors.

    ClipMD (Glassberg and Hope, "Increasing Textual Context Size Boosts Medical Image-Text
    Matching", 2023): windows of CLIP's 77 tokens, 70 tokens apart. Its code cuts the ids as they
    are, so that only the first window has a start and only the last an end of text; here each
    window is a caption with both, as the tower was trained. No window is made of tokens that all
    lie in the one before it, and a caption of one window has the tower's own vector.

    The tower is called once, with as many windows of each caption as the longest of the batch could
    need: ranks call it equally often, and the spare windows have no part in the means.

    Args:
        tower: reads a window; `init_from` fills it as it would fill the tower alone.
        context_length: longest caption in tokens, start and end included.
        stride: tokens between the first ones of two windows.
        prefix, suffix: tokens at the start and at the end of captions that each window repeats: 1
            and 1 for CLIP, BERT and NLLB, 0 and 1 for SigLIP and T5.

    Raises:
        ValueError: captions would fit into one window, or tokens would lie between two.
    """

    inner = "tower."

    def __init__(
        self,
        tower: TextTower,
        context_length: int = 512,
        stride: int = 70,
        prefix: int = 1,
        suffix: int = 1,
    ):
        super().__init__()
        room = tower.context_length - prefix - suffix
        if context_length <= tower.context_length:
            raise ValueError(
                f"captions of {context_length} tokens fit into the tower's {tower.context_length}: "
                "use the tower itself, or a larger context_length"
            )
        if not 1 <= stride <= room:
            raise ValueError(
                f"windows have room for {room} tokens beside {prefix + suffix} that all repeat, "
                f"and stride is {stride}: give 1 to {room}"
            )
        self.tower, self.width = tower, tower.width
        self.context_length, self.stride = context_length, stride
        self.prefix, self.suffix = prefix, suffix
        self.ignores_padding = tower.ignores_padding

    def layers(self) -> Sequence[nn.Module]:
        return self.tower.layers()

    def borrow(self, model: nn.Module) -> None:
        self.tower.borrow(model)

    def forward(self, text: Ids, text_length: Lengths) -> Float[Tensor, "n width"]:
        """Returns the mean of the windows' vectors of each caption."""
        if text.shape[1] <= self.tower.context_length:
            return self.tower(text, text_length)
        rows, lengths, counts = self.windows(text, text_length)
        vectors = self.tower(rows.flatten(0, 1), lengths.flatten()).unflatten(0, counts.shape)
        return (vectors * counts[:, :, None]).sum(1) / counts.sum(1, keepdim=True)

    def windows(
        self, text: Ids, text_length: Lengths
    ) -> tuple[
        Int64[Tensor, "n windows tokens"], Int64[Tensor, "n windows"], Bool[Tensor, "n windows"]
    ]:
        """Cuts captions into windows.

        Returns:
            Token ids [n, windows, tokens], lengths [n, windows], and which windows count.
        """
        size, around = self.tower.context_length, self.prefix + self.suffix
        room = size - around
        num_windows = 1 + -(-(text.shape[1] - around - room) // self.stride)
        device = text.device
        start = torch.arange(num_windows, device=device) * self.stride
        inside = (text_length - around)[:, None]  # tokens that windows share out
        counts = (start == 0) | (start + room - self.stride < inside)
        body = (inside - start).clamp(0, room)
        column = torch.arange(size, device=device)
        ahead = column - self.prefix - body[:, :, None]  # how far behind the window's body
        index = torch.where(column < self.prefix, column, column + start[:, None])
        end = text_length[:, None, None] - self.suffix + ahead
        index = torch.where(ahead < 0, index, end).clamp(0, text.shape[1] - 1)
        rows = text.gather(1, index.flatten(1)).view(index.shape)
        return rows, (body + around).minimum(text_length[:, None]), counts
