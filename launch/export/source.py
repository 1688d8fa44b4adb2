"""What is exported: a run's checkpoint, with its trained or averaged weights."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...data.images.transforms import EvalTransform
from ...losses.components.similarity import Similarity
from ...models.image import PixelStem
from ...models.two_tower import TwoTower
from ...train.checkpointing import checkpoint as checkpoints
from ..run.load import LoadedRun, Weights, checkpoint_of, load_run


@dataclass(frozen=True)
class Source:
    """A run and the weights of it that are exported.

    Attributes:
        run: rebuilt, its model in float32 on the CPU and in evaluation mode.
        folder: of the run.
        step: of the checkpoint.
        weights: `trained` or `ema`.
    """

    run: LoadedRun
    folder: Path
    step: int
    weights: Weights

    @property
    def model(self) -> TwoTower:
        return self.run.model

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.run.config.get("name") or self.folder.resolve().name)

    @property
    def embed_dim(self) -> int:
        """Length of the embeddings."""
        matrices = [p for p in self.model.image_projection.parameters() if p.ndim == 2]
        return len(matrices[-1]) if matrices else self.model.image.width

    @property
    def stem(self) -> PixelStem:
        """What normalises pixels.

        Raises:
            ValueError: the image tower normalises in a way of its own.
        """
        stem = getattr(self.model.image, "stem", None)
        if not isinstance(stem, PixelStem):
            raise ValueError(
                f"a {type(self.model.image).__name__} normalises images in a way of its own, which "
                "other libraries cannot repeat; export --to onnx or safetensors"
            )
        return stem

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation that images are normalised with, in units of [0, 1]."""
        return (self.stem.mean.flatten() / 255).tolist(), (self.stem.std.flatten() / 255).tolist()

    def denormalised(self, pixels: Tensor) -> Tensor:
        """Returns normalised images in grey levels, 0 to 255."""
        return pixels * self.stem.std + self.stem.mean

    @property
    def eval_transform(self) -> EvalTransform:
        """How images are prepared.

        Raises:
            ValueError: by a transform of the user's own, which no other library can repeat.
        """
        transform = self.run.eval_transform
        if type(transform) is not EvalTransform:
            raise ValueError(
                f"images of {self.folder} are prepared by a {type(transform).__name__}, which "
                "other libraries cannot repeat; export --to safetensors, or use EvalTransform"
            )
        return transform

    def check_cosine(self, target: str) -> None:
        """Refuses models whose embeddings are not compared by their cosine."""
        similarity = self.run.objective.metric().similarity
        if similarity.form or type(similarity).lift_image is not Similarity.lift_image:
            raise ValueError(
                f"{self.folder} compares embeddings by {type(similarity).__name__}, and {target} "
                "compares them by their cosine: its results would be those of another model; "
                "export --to safetensors"
            )


def load_source(folder: Path, step: int | None = None, weights: Weights = "trained") -> Source:
    """Loads what is exported.

    Args:
        folder: of the run.
        step: which checkpoint; None: the newest whole one.
        weights: `trained`, or `ema`: their moving average.

    Raises:
        ValueError: there is no such run or checkpoint, or it holds no average.
    """
    step = checkpoints.step_of(checkpoint_of(folder, step))
    run = load_run(folder, step, weights)
    model = run.model.float().requires_grad_(False)
    return Source(replace(run, model=model), folder, step, weights)


def end_of_text(source: Source) -> int:
    """Returns the id of the token that ends every caption.

    Raises:
        ValueError: captions end with different tokens, so that their ends cannot be found by one.
    """
    texts = ["a", "a cat", "two red houses"]
    ids, lengths = source.run.tokenizer(texts, source.model.context_length)
    ends = set(ids[torch.arange(len(texts)), lengths - 1].tolist())
    if len(ends) > 1:
        raise ValueError(
            f"the tokenizer of {source.folder} ends captions with different tokens ({ends}): other "
            "libraries would not find the ends; export --to onnx or safetensors"
        )
    return ends.pop()
