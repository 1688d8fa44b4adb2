"""A caption decoder: token ids and states of images in, a state for each token to predict out.

Tschannen et al., "Image Captioners Are Scalable Vision Learners Too" (2023, CapPa), section 3 and
the published code: layers that norm first, self-attention among the tokens, cross-attention to all
states of the image, learned positions, and outputs of their own that start from zero.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of rows to others, without biases.

    torch's own takes no empty batch, which a rank may have, and a mask for each head.

    Args:
        width: of the rows.
        seen_width: of what they attend to.
        num_heads: of the attention.
    """

    def __init__(self, width: int, seen_width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(seen_width, width, bias=False)
        self.value = nn.Linear(seen_width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        rows: Float[Tensor, "b t width"],
        others: Float[Tensor, "b s seen_width"],
        seen: Bool[Tensor, "b t s"] | None = None,
    ) -> Float[Tensor, "b t width"]:
        """Returns what each row makes of the others that it sees; None: of all."""
        queries, keys, values = (
            made.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for made in (self.query(rows), self.key(others), self.value(others))
        )
        mask = None if seen is None else seen[:, None]
        made = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out(made.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and an MLP, each with a norm before and the sum after it.

    Args:
        width: of the states.
        image_width: of the image tower's states.
        num_heads: of both attentions.
        hidden: width of the MLP.
    """

    def __init__(self, width: int, image_width: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = Attention(width, width, num_heads)
        self.cross_attention = Attention(width, image_width, num_heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(
        self,
        states: Float[Tensor, "b t width"],
        image: Float[Tensor, "b s image_width"],
        seen: Bool[Tensor, "b t t"],
    ) -> Float[Tensor, "b t width"]:
        """Returns the next states."""
        rows = self.norm_self(states)
        states = states + self.self_attention(rows, rows, seen)
        states = states + self.cross_attention(self.norm_cross(states), image)
        return states + self.mlp(self.norm_mlp(states))


class CaptionDecoder(nn.Module):
    """Reads a caption up to each of its tokens, or none of it, and the image.

    The first input is a prompt, a learned vector that says what is to be written; each further
    input is the token before. A caption that is predicted in parallel has a learned mask in the
    place of every input, and its positions see one another.

    Args:
        image_width: of the image tower's states.
        vocab_size: number of token ids.
        context_length: longest caption in tokens.
        width, depth, num_heads: of the layers (SigLIP 2: the text tower's, half as many).
        mlp_ratio: hidden width of the MLPs as a multiple of `width`.

    Attributes:
        outputs: [vocab_size, width]; logits are their products with the states.
    """

    def __init__(
        self,
        image_width: int,
        vocab_size: int,
        context_length: int = 64,
        width: int = 768,
        depth: int = 6,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        if width % num_heads:
            raise ValueError(
                f"a decoder of width {width} does not divide by num_heads {num_heads}: "
                f"use {width // num_heads * num_heads} or other heads"
            )
        self.context_length, self.num_heads, self.image_width = (
            context_length,
            num_heads,
            image_width,
        )
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.randn(context_length, width) * 0.02)
        self.prompt = nn.Parameter(torch.randn(width) * width**-0.5)
        self.mask = nn.Parameter(torch.randn(width) * width**-0.5)
        nn.init.normal_(self.tokens.weight, std=width**-0.5)
        self.layers = nn.ModuleList(
            DecoderLayer(width, image_width, num_heads, int(width * mlp_ratio))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.Parameter(torch.zeros(vocab_size, width))

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.outputs)

    def forward(
        self,
        image: Float[Tensor, "b states image_width"],
        text: Int64[Tensor, "b t"],
        parallel: Bool[Tensor, "b"],
        prompt: Float[Tensor, "width"] | None = None,
    ) -> Float[Tensor, "b t width"]:
        """Returns the states that predict `text`, token by token.

        Args:
            image: states of the images.
            text: ids; what follows a caption's end changes nothing before it.
            parallel: which captions are predicted without reading any of their tokens.
            prompt: another one; None: that of captions.
        """
        length, dtype = text.shape[1], self.positions.dtype
        before = self.tokens(text[:, :-1])
        first = (self.prompt if prompt is None else prompt).expand(len(text), 1, -1)
        inputs = torch.where(parallel[:, None, None], self.mask, torch.cat([first, before], 1))
        later = torch.ones(length, length, dtype=torch.bool, device=text.device).triu(1)
        seen = ~(later & ~parallel[:, None, None])
        states = inputs + self.positions[:length]
        for layer in self.layers:
            states = layer(states, image.to(dtype), seen)
        return self.norm(states)
