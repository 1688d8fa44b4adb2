"""A small model that learns scenes in seconds, through the real training step.

In: an objective and batches of scenes. Out: a trained model, and how well it ranks pairs that it
has not seen.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from scenes import BATCH, LENGTH, NUM_TOKENS, SIDE, Scenes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from counterpoint.losses.objective import Objective
from counterpoint.models.image import ImageTower, PixelStem
from counterpoint.models.text.base import TextTower, is_token
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.grad_clip.fixed import Norm
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.phases import Phase

WIDTH = 128  # of towers and embeddings, that of the heads in configs/objective/
HELD_OUT = 256  # pairs: by chance one in 256 is ranked right


class PixelTower(ImageTower):
    """Two layers over all pixels.

    At random weights the vectors of all images are alike, as those of deep towers are.
    """

    image_size = SIDE
    width = WIDTH

    def __init__(self):
        super().__init__()
        self.stem = PixelStem((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        self.first = nn.Linear(3 * SIDE * SIDE, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.common = nn.Parameter(0.15 * torch.randn(WIDTH))

    def forward(self, image: Tensor) -> Tensor:
        hidden = F.gelu(self.first(self.stem(image).flatten(1)))
        return F.gelu(self.second(hidden)) + self.common


class BagTower(TextTower):
    """A layer over the sum of the words' vectors; alike at first, too."""

    context_length = LENGTH
    width = WIDTH

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(NUM_TOKENS, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.common = nn.Parameter(0.6 * torch.randn(WIDTH))

    def forward(self, text: Tensor, text_length: Tensor) -> Tensor:
        words = self.words(text) * is_token(text, text_length)[..., None]
        return F.gelu(self.layer(words.sum(1) / LENGTH**0.5)) + self.common


def two_towers(objective: Objective, embed_dim: int = WIDTH, seed: int = 0) -> TwoTower:
    """A model at its random start, with what the objective says of its scale and bias."""
    torch.manual_seed(seed)
    names = ("logit_scale_init", "logit_bias_init", "logit_scale_bounds")
    chosen = {name: getattr(objective, name) for name in names}
    return TwoTower(PixelTower(), BagTower(), embed_dim, **chosen)


def train(
    model: TwoTower,
    objective: Objective,
    batches: list[dict[str, Tensor]],
    rate: float = 5e-3,
    **parts: Any,
) -> ContrastiveModule:
    """Trains as runs do: learned scale and its bounds, clipping, warm-up and cosine.

    `parts` are further ones of the module.
    """
    samples = len(batches) * BATCH
    phase = Phase(samples, BATCH, rate, warmup_samples=samples // 10)
    optim = AdamW(weight_decay=0.1)
    module = ContrastiveModule(model, objective, {"train": phase}, optim, grad_clip=Norm(), **parts)
    trainer = pl.Trainer(
        max_steps=len(batches),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return module


@torch.no_grad()
def recall(model: TwoTower, objective: Objective, text: str = "text") -> float:
    """Image-to-text R@1 of held-out scenes, ranked as evaluation ranks under the objective."""
    scenes, metric = Scenes(seed=1234), objective.metric()
    held_out = scenes.entries(scenes.draw(HELD_OUT), {"image", text})
    image, caption = f"image{metric.form}", f"{text}{metric.form}"
    features = model(held_out, {image, caption})
    scores = metric.images(features[image]) @ metric.texts(features[caption]).T
    return float((scores.argmax(1) == torch.arange(HELD_OUT)).float().mean())
