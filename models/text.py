"""Text towers: token ids in, one pooled vector a caption out."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from .layers import Tower, repeated_layers

Ids = Int64[Tensor, "n tokens"]  # padded after the end of text
Lengths = Int64[Tensor, " n"]  # tokens of each caption, start and end included


class TextTower(Tower):
    """What a text tower must offer: `forward(ids [n, tokens], lengths [n]) -> [n, width]`.

    Attributes:
        context_length: longest caption in tokens.
        ignores_padding: whether the result stays the same without the columns after the longest
            caption's end, so that they need not be computed.
    """

    context_length: int
    ignores_padding: bool = False

    def borrow(self, model: nn.Module) -> None:
        """Called once by the model when both towers exist; most towers borrow nothing."""


class ClipTextTower(TextTower):
    """CLIP's causal text transformer, built from a configuration (nothing is downloaded).

    The pooled vector is the last layer's state at the end-of-text token. Attention is causal, so
    padding after it changes nothing. Radford et al. (2021), section 2.4.

    Args:
        width, depth, num_heads: of the transformer.
        context_length: longest caption in tokens, start and end included.
        vocab_size: number of token ids (CLIP's BPE has 49,408).
        mlp_ratio: hidden width of the MLPs as a multiple of `width`.
        activation: `gelu`, or `quick_gelu` for OpenAI's weights.
        dropout: on the attention weights, in training.
    """

    ignores_padding = True

    def __init__(
        self,
        width: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        context_length: int = 77,
        vocab_size: int = 49408,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        dropout: float = 0.0,
    ):
        super().__init__()
        if width % num_heads:
            raise ValueError(
                f"text width {width} does not divide by num_heads {num_heads}: "
                f"use {width // num_heads * num_heads} or other heads"
            )
        config = CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=int(width * mlp_ratio),
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
            max_position_embeddings=context_length,
            hidden_act=activation,
            attention_dropout=dropout,
            projection_dim=width,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=0,
        )
        self.trunk = CLIPTextModel(config)
        self.context_length = context_length
        self.width = width

    def layers(self) -> Sequence[nn.Module]:
        """Returns the transformer's layers; releases of transformers differ in where they are."""
        return repeated_layers(self.trunk)

    def forward(self, text: Ids, text_length: Lengths) -> Float[Tensor, "n width"]:
        """Returns the state at position `text_length - 1` (the end of text) of each caption."""
        return self.states(text, text_length)[1]

    def states(  # type: ignore[override] - the tower's own inputs
        self, text: Ids, text_length: Lengths
    ) -> tuple[Float[Tensor, "n tokens width"], Float[Tensor, "n width"]]:
        states = self.trunk(input_ids=text).last_hidden_state
        return states, states[torch.arange(len(text), device=text.device), text_length - 1]
