"""A trained model as an object: images and texts in, features and similarities out.

In: a run folder of `counterpoint fit`, or a model of another library. Out: an `Embedder`, whose
features are those that `counterpoint evaluate` ranks and `counterpoint embed` stores.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from ...data.images.transforms import Transform
from ...data.text.tokenize import Tokenizer
from ...losses.components.similarity import Metric
from ...models.teachers.frozen import lowered
from ...models.two_tower import TwoTower
from ..run.load import Weights
from .images import is_one, pixels_of
from .sources import load_source

MAX_THREADS = 8  # that decode images
T = TypeVar("T")


class Embedder:
    """A two-tower model with what reads images and texts for it, in evaluation mode.

    Args:
        model: with its weights.
        tokenizer: texts and a length to ids and lengths.
        eval_transform: an image to the model's square.
        metric: how features are compared; None: by the cosine.

    Attributes:
        model: the two towers; `encode_image` and `encode_text` there take pixels and token ids.
        tokenizer: `(texts, context_length) -> (ids, lengths)`.
        eval_transform: `(image, size, None) -> pixels`.
        metric: how features are compared.
    """

    def __init__(
        self,
        model: TwoTower,
        tokenizer: Tokenizer,
        eval_transform: Transform,
        metric: Metric | None = None,
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.eval_transform = eval_transform
        self.metric = metric or Metric()

    @property
    def device(self) -> torch.device:
        """Where the towers run, and where features are."""
        return self.model.logit_scale.device

    @property
    def logit_scale(self) -> float:
        """What the similarity is multiplied with to become a logit."""
        scale = self.model.logit_scale.detach().exp()
        return float(self.metric.similarity.scale(scale, self.metric.scalars))

    @property
    def logit_bias(self) -> float | None:
        """What is added to a logit (SigLIP); None: the model has none."""
        bias = self.model.logit_bias
        return None if bias is None else float(bias.detach())

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "Embedder":
        """Moves the model, and puts its weights into a precision; returns this object."""
        if dtype is not None:
            lowered(self.model, dtype)
        if device is not None:
            self.model.to(device)
            self.metric = self.metric.to(device)
        return self

    def transform(self, image: Any) -> UInt8[Tensor, "3 s s"]:
        """Returns the model's view of one image: its pixels, not yet normalised.

        Raises:
            ValueError: the image cannot be read.
        """
        return self.eval_transform(pixels_of(image), self.model.image_size, None)

    def encode_image(
        self, images: Any, *, normalize: bool = True, batch_size: int = 64
    ) -> Float[Tensor, "*n d"]:
        """Computes features of images.

        Args:
            images: one image (a path, bytes, a Pillow image, a uint8 array [h, w, 3] or tensor
                [3, h, w]), or several (a list, an iterator, an array or tensor with an axis more).
            normalize: to length one; False: as the projection gives them.
            batch_size: images a call of the tower.

        Returns:
            [d] of one image, [n, d] of several, in float32 (or the weights' float64).

        Raises:
            ValueError: an image cannot be read, or there is none.
        """
        form = _form(normalize)
        with ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:

            def encode(batch: list[Any]) -> Tensor:
                pixels = torch.stack(list(pool.map(self.transform, batch)))
                return self.model.encode_image(pixels.to(self.device), form)

            return _encoded(images, is_one(images), batch_size, encode)

    def encode_text(
        self, texts: str | Iterable[str], *, normalize: bool = True, batch_size: int = 64
    ) -> Float[Tensor, "*n d"]:
        """Computes features of texts.

        Args:
            texts: one text, or several.
            normalize: to length one; False: as the projection gives them.
            batch_size: texts a call of the tower.

        Returns:
            [d] of one text, [n, d] of several, in float32 (or the weights' float64).

        Raises:
            ValueError: there is no text.
        """
        form = _form(normalize)

        def encode(batch: list[str]) -> Tensor:
            ids, lengths = self.tokenizer(batch, self.model.context_length)
            return self.model.encode_text(ids.to(self.device), lengths.to(self.device), form)

        return _encoded(texts, isinstance(texts, str), batch_size, encode)

    @torch.no_grad()
    def similarity(self, images: Any, texts: Any, *, batch_size: int = 64) -> Float[Tensor, "n m"]:
        """Compares images with texts as the model's loss does, before scale and bias.

        Args:
            images: as for `encode_image`; or features of images, a float tensor [d] or [n, d].
            texts: as for `encode_text`; or features of texts, a float tensor [d] or [m, d].
                Features are those of `normalize=False`; the cosine takes either kind.
            batch_size: images or texts a call of a tower.
        """
        metric, normalize = self.metric, not self.metric.form

        def rows(values: Any, encode: Callable[..., Tensor]) -> Tensor:
            if not (isinstance(values, Tensor) and values.is_floating_point()):
                values = encode(values, normalize=normalize, batch_size=batch_size)
            values = torch.atleast_2d(values.to(self.device))
            return F.normalize(values, dim=-1) if normalize else values

        image, text = rows(images, self.encode_image), rows(texts, self.encode_text)
        inner = metric.images(image) @ metric.texts(text).T
        point = metric.similarity.point
        return inner if point is None else point.value(inner)


def load_model(
    source: str | Path,
    *,
    step: int | None = None,
    weights: Weights = "trained",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Embedder:
    """Loads a trained model.

    Args:
        source: folder of a run, or a checkpoint in one; a folder of open_clip's or transformers'
            layout, a file of OpenAI's, or `NAME:FILE` with the architecture's name in open_clip or
            timm (see `models.interop.read`). Nothing is downloaded or executed.
        step: which checkpoint of a run; None: the newest whole one.
        weights: `trained`, or `ema`: the run's moving average.
        device: where it runs; None: on a GPU, if there is one.
        dtype: of the weights; None: float32, as they are stored.

    Raises:
        ValueError: there is no such model, or it cannot be read.
    """
    loaded = load_source(source, step, weights)
    embedder = Embedder(loaded.model, loaded.tokenizer, loaded.eval_transform, loaded.metric)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return embedder.to(device, dtype)


def _form(normalize: bool) -> Literal["", ".raw"]:
    return "" if normalize else ".raw"


@torch.no_grad()
def _encoded(
    items: Any, is_single: bool, batch_size: int, encode: Callable[[list[Any]], Tensor]
) -> Tensor:
    """Encodes one item, or several in batches."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give 1 or more")
    if not is_single and not isinstance(items, Iterable):
        raise ValueError(f"{type(items).__name__} is nothing to encode: give an item or a list")
    batches = [encode(batch) for batch in _batches([items] if is_single else items, batch_size)]
    if not batches:
        raise ValueError("there is nothing to encode: the list is empty")
    rows = torch.cat(batches)
    rows = rows.float() if rows.dtype.itemsize < 4 else rows
    return rows[0] if is_single else rows


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
