"""SigLIP's text tower, whose tokens all attend to one another, padding included."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from transformers import SiglipTextConfig, SiglipTextModel

from .base import EncoderTower, Ids, Lengths, at_end, check_heads, padded


class SiglipTextTower(EncoderTower):
    """A bidirectional text transformer, built from a configuration (nothing is downloaded).

    Rows have one length: what is missing is filled with the padding token, which is attended to
    like any other. Zhai et al. (SigLIP, 2023); SigLIP 2 (Tschannen et al. 2025) is the same with a
    larger vocabulary. The projection in SigLIP has a bias: `text_projection: affine` in the model.

    Args:
        width, depth, num_heads: of the transformer.
        context_length: tokens of each row.
        vocab_size: number of token ids (32,000 in SigLIP, 256,000 in SigLIP 2).
        mlp_ratio: hidden width of the MLPs as a multiple of `width`.
        activation: transformers' name, `gelu_pytorch_tanh` or `gelu`.
        eps: of the norms.
        pad_id: the token that rows are filled with: the tokenizer's.
        pooling: state of the `last` position of the row, or at the `end` of the caption.
        dropout: on the attention weights, in training.
    """

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        context_length: int = 64,
        vocab_size: int = 32000,
        mlp_ratio: float = 4.0,
        activation: str = "gelu_pytorch_tanh",
        eps: float = 1e-6,
        pad_id: int = 1,
        pooling: Literal["last", "end"] = "last",
        dropout: float = 0.0,
    ):
        super().__init__()
        check_heads(width, num_heads)
        config = SiglipTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=int(width * mlp_ratio),
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
            max_position_embeddings=context_length,
            hidden_act=activation,
            layer_norm_eps=eps,
            attention_dropout=dropout,
            projection_size=width,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=pad_id,
        )
        self.trunk = SiglipTextModel(config)
        # The projection is the model's. Releases of transformers differ in where this one is.
        holder = next(
            m for m in self.trunk.modules() if isinstance(getattr(m, "head", 0), nn.Linear)
        )
        holder.head = nn.Identity()
        self.context_length, self.width = context_length, width
        self.pad_id, self.pooling = pad_id, pooling

    def states(  # type: ignore[override] - the tower's own inputs
        self, text: Ids, text_length: Lengths
    ) -> tuple[Float[Tensor, "n tokens width"], Float[Tensor, "n width"]]:
        rows = padded(text, text_length, self.context_length, self.pad_id)
        states = self.trunk(input_ids=rows).last_hidden_state
        return states, states[:, -1] if self.pooling == "last" else at_end(states, text_length)
