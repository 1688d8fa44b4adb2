"""CLIP's text tower."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ..causal_attention import CausalAttention
from ..packing import Packed, can_attend
from .base import EncoderTower, Ids, Lengths, at_end, check_heads


class ClipTextTower(EncoderTower):
    """CLIP's causal text transformer, built from a configuration (nothing is downloaded).

    The pooled vector is the last layer's state at the end-of-text token. Attention is causal, so
    padding after it changes nothing. Radford et al. (2021), section 2.4. On GPUs in 16 bits
    captions are packed, so that there is no padding.

    Args:
        width, depth, num_heads: of the transformer.
        context_length: longest caption in tokens, start and end included.
        vocab_size: number of token ids (CLIP's BPE has 49,408).
        mlp_ratio: hidden width of the MLPs as a multiple of `width`.
        activation: `gelu`, or `quick_gelu` for OpenAI's weights.
        dropout: on the attention weights, in training.
        kept_positions: where weights of fewer positions are loaded, so many of the first stay as
            they are, and the others are stretched alone (Long-CLIP: 20 of 77, for 248).
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
        kept_positions: int = 0,
    ):
        super().__init__()
        check_heads(width, num_heads)
        if not 0 <= kept_positions < context_length:
            raise ValueError(
                f"kept_positions={kept_positions} of {context_length}: give 0 or more, and fewer "
                "than context_length"
            )
        self.kept_positions = kept_positions
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
        for layer in self.layers():
            layer.self_attn = CausalAttention(layer.self_attn)  # type: ignore[arg-type]
        self.context_length, self.width = context_length, width
        self._head_width = width // num_heads

    def takes_packed(self, device_type: str, dtype: torch.dtype) -> bool:
        return can_attend(device_type, dtype, self._head_width)

    def forward(
        self, text: Ids | Packed, text_length: Lengths | None = None
    ) -> Float[Tensor, "n width"]:
        return self.states(text, text_length)[1]

    def states(  # type: ignore[override] - the tower's own inputs
        self, text: Ids | Packed, text_length: Lengths | None = None
    ) -> tuple[Float[Tensor, "*tokens width"], Float[Tensor, "n width"]]:
        # Not the trunk's own forward, which makes masks and pools as well.
        transformer: Any = getattr(self.trunk, "text_model", self.trunk)
        packed = None
        if isinstance(text, Packed):
            packed = text.starts, text.longest
            # As rows of one token: the embedding checks how long rows are.
            x = transformer.embeddings(text.ids[:, None], text.positions[:, None]).transpose(0, 1)
        else:
            x = transformer.embeddings(text)
        for layer in self.layers():
            x = layer(x, None, packed=packed)
        states = transformer.final_layer_norm(x)
        if isinstance(text, Packed):
            return states[0], states[0].index_select(0, text.ends)
        assert text_length is not None
        return states, at_end(states, text_length)
