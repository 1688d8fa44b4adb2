"""Attention of CLIP's text transformer: causal, over rows of captions or over packed ones."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import CLIPAttention

from . import packing


class CausalAttention(nn.Module):
    """Takes the place of transformers' attention, with its parameters under their names.

    Args:
        attention: of a layer.
    """

    def __init__(self, attention: CLIPAttention):
        super().__init__()
        # In the order of transformers', which numbers the optimizer's states.
        self.k_proj, self.v_proj = attention.k_proj, attention.v_proj
        self.q_proj, self.out_proj = attention.q_proj, attention.out_proj
        self.num_heads, self.dropout = attention.num_heads, float(attention.dropout or 0.0)
        self.fused: Any = None  # of `half_weights`: all three in one product

    def inputs(self) -> list[nn.Linear]:
        """Returns the projections to queries, keys and values."""
        return [self.q_proj, self.k_proj, self.v_proj]

    def forward(
        self,
        hidden_states: Float[Tensor, "n t d"],
        attention_mask: None = None,
        packed: tuple[Tensor, int] | None = None,
        **_: Any,
    ) -> tuple[Float[Tensor, "n t d"], None]:
        """Returns what transformers' attention does, without weights.

        Args:
            hidden_states: of the layer; packed ones are one row.
            attention_mask: none, since padding stands behind.
            packed: first token of each caption (and the end), and the longest one's tokens.
        """
        if self.fused is not None and self.fused.applies(hidden_states):
            inputs = self.fused(hidden_states).chunk(3, dim=-1)
        else:
            inputs = [projection(hidden_states) for projection in self.inputs()]
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)) for x in inputs)
        dropout = self.dropout if self.training else 0.0
        if packed is None:
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            attended = F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=True
            ).transpose(1, 2)
        else:
            query, key, value = (x.squeeze(0) for x in (query, key, value))
            attended = packing.attend(query, key, value, *packed, dropout=dropout)[None]
        return self.out_proj(attended.flatten(-2)), None
