"""A text tower of one's own, with BERT's names: what a newcomer writes, and nothing beside it."""

import torch
from torch import nn
from torch.nn import functional as F

from counterpoint.models.text.base import TextTower


class BertLayer(nn.Module):
    """Causal attention and an MLP, each with a norm before it."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        y = self.attention_norm(x)
        projected = self.q_proj(y), self.k_proj(y), self.v_proj(y)
        heads = (z.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for z in projected)
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out_proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nn.Module):
    """Holds the list of layers, which is called `layer`."""

    def __init__(self, width, depth, num_heads):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(width, num_heads) for _ in range(depth))

    def forward(self, x):
        for layer in self.layer:
            x = layer(x)
        return x


class BertTower(TextTower):
    """A tower whose layers are `encoder.layer.N`."""

    ignores_padding = True

    def __init__(self, width=16, depth=2, num_heads=2, context_length=12, vocab_size=50):
        super().__init__()
        self.width, self.context_length = width, context_length
        self.word_embeddings = nn.Embedding(vocab_size, width)
        self.position_embeddings = nn.Parameter(torch.randn(context_length, width) * 0.02)
        self.encoder = Encoder(width, depth, num_heads)
        self.pooler = nn.Linear(width, width)

    def layers(self):
        return list(self.encoder.layer)

    def forward(self, text, text_length):
        x = self.word_embeddings(text) + self.position_embeddings[: text.shape[1]]
        states = self.encoder(x)[torch.arange(len(text), device=text.device), text_length - 1]
        return self.pooler(states).tanh()
