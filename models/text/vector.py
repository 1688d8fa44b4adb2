"""A text tower over vectors that a frozen language model made of the captions (LLM2CLIP).

In: stored vectors; or token ids, which the language model turns into vectors first. Out: one
pooled vector a caption. Huang et al., "LLM2CLIP: Powerful Language Model Unlocks Richer Visual
Representation" (2024), and the authors' code (TextProj).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Ids, Lengths, TextTower
from .language_model import LanguageModel


class VectorTower(TextTower):
    """Residual blocks over a language model's caption vector, brought to length one.

    Training reads stored vectors (`counterpoint embed --language_model`), so that no step runs the
    language model. Where batches have none, as in evaluation, it reads the captions' token ids.
    LLM2CLIP's projection to the shared space has a bias: `text_projection: affine` in the model.

    Args:
        width: length of the language model's vectors.
        stored: batch entry that holds them, such as `llm.text` of the sidecar `llm`; None: the
            language model runs in each step.
        language_model: what makes the vectors of other texts: prompts, captions of suites. None:
            texts cannot be encoded, only stored vectors.
        context_length: tokens of a caption that the language model reads.
        depth: residual blocks.
        expansion: inner width of a block as a multiple of `width`.

    Raises:
        ValueError: there is neither a stored entry nor a language model.
    """

    def __init__(
        self,
        width: int,
        stored: str | None = None,
        language_model: LanguageModel | None = None,
        context_length: int = 512,
        depth: int = 4,
        expansion: float = 2.0,
    ):
        super().__init__()
        if stored is None and language_model is None:
            raise ValueError(
                "a VectorTower needs vectors: set stored to the entry of a sidecar (llm.text), or "
                "language_model, or both"
            )
        self.width, self.stored, self.context_length = width, stored, context_length
        self.language_model = language_model
        self.blocks = nn.ModuleList(ResidualMLP(width, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def layers(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def forward(
        self, text: Ids | Float[Tensor, "n width"], text_length: Lengths | None = None
    ) -> Float[Tensor, "n width"]:
        """Returns the pooled vector of each caption.

        Args:
            text: stored vectors, or token ids.
            text_length: tokens of each caption; None with vectors.

        Raises:
            ValueError: there are token ids and no language model, or vectors of another width.
        """
        vectors = text
        if not text.is_floating_point():
            assert text_length is not None
            vectors = self.reader()(text, text_length)
        if vectors.shape[1] != self.width:
            origin = self.stored if text.is_floating_point() else "the language model"
            raise ValueError(
                f"{origin} has vectors of length {vectors.shape[1]}, and the VectorTower takes "
                f"{self.width}: set model.text.init_args.width to {vectors.shape[1]}"
            )
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        x = F.normalize(vectors, dim=-1).to(self.norm.weight.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def reader(self) -> LanguageModel:
        """Returns the language model.

        Raises:
            ValueError: there is none.
        """
        if self.language_model is None:
            raise ValueError(
                "the text tower reads vectors that a language model has made, and the run names "
                "none that could read other texts, such as prompts and captions of a suite: set "
                "model.text.init_args.language_model to it (class_path: "
                "counterpoint.models.text.language_model.LanguageModel, init_args: {source: "
                "FOLDER})"
            )
        return self.language_model


class ResidualMLP(nn.Module):
    """x + W2 GELU(W1 LN(x)).

    Args:
        width: of the vectors.
        expansion: inner width as a multiple of it.
    """

    def __init__(self, width: int, expansion: float):
        super().__init__()
        inner = int(width * expansion)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        return x + self.mlp(self.norm(x))
