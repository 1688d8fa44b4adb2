"""Renders raw samples by a recipe.

In: the members of samples, their keys and joined rows. Out: `Sample`s with drawn parameters, then
batch entries. All randomness comes from (seed, epoch, key, name of the view or text). An unusable
sample raises a `SampleError`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .errors import SampleError
from .hashing import text_hash
from .images.decode import EncodedImage, Pixels
from .recipe import Recipe
from .shards.fields import find_image
from .shards.reader import RawSample

# Pixels of a missing image.
WHITE = 255

Rows = Mapping[str, Tensor]  # joined rows by batch entry
Images = dict[str | None, EncodedImage]  # a sample's own under None, others by member


@dataclass(frozen=True)
class Sample:
    """One sample before its views are computed.

    Attributes:
        images: its own image under None, further ones under the member's name.
        params: parameters of each view's transform.
        texts: captions by batch entry; "" if missing.
        rows: joined rows by batch entry.
        key: the sample's key.
        status: `CAUSES` code of the sample that it replaces; 0 for none.
        weight: weight in the keep-list.
    """

    images: Images
    params: dict[str, np.ndarray]
    texts: dict[str, str]
    rows: dict[str, Tensor]
    key: int
    status: int
    weight: float

    @property
    def num_bytes(self) -> int:
        """Size of the decoded pixels."""
        return sum(image.num_bytes for image in self.images.values())

    @property
    def file_bytes(self) -> int:
        """Size of the encoded files."""
        return sum(image.file_bytes for image in self.images.values())


class Renderer:
    """Renders samples and batches by a recipe.

    Args:
        recipe: views and texts of every sample.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self._randomness = Randomness()

    def prepare(
        self,
        raw: RawSample,
        source: str,
        key: int,
        epoch: int,
        rows: Rows,
        status: int = 0,
        weight: float = 1.0,
    ) -> Sample:
        """Opens images, chooses texts and draws parameters; no pixel is decoded yet.

        Args:
            raw: the sample's members.
            source: name of its source.
            key: its key.
            epoch: the epoch, on which all draws depend.
            rows: joined rows by batch entry.
            status: cause of replacing another sample; 0 for none.
            weight: weight in the keep-list.

        Raises:
            SampleError: the sample cannot be used.
        """
        texts = {
            name: self._text(raw, name, source, rows, epoch, key) for name in self.recipe.texts
        }
        images = self._images(raw)
        params = self._draw(images, rows, epoch, key)
        return Sample(images, params, texts, dict(rows), key, status, weight)

    def blank(self, epoch: int, rows: Rows, status: int) -> Sample:
        """Returns a white sample without texts."""
        images: Images = {None: Pixels(torch.full((3, 2, 2), WHITE, dtype=torch.uint8))}
        params = self._draw(images, rows, epoch, 0)
        texts = dict.fromkeys(self.recipe.texts, "")
        return Sample(images, params, texts, dict(rows), 0, status, 1.0)

    def decode(self, sample: Sample) -> None:
        """Decodes the pixels for the views; raises SampleError if they are damaged."""
        for name, view in self.recipe.views.items():
            image = sample.images.get(view.member)
            if image is not None:
                params = sample.params[name]
                image.pixels(view.transform.factor(image, view.side, params))

    def new_images(self, number: int) -> dict[str, Tensor]:
        """Allocates every view of `number` samples."""
        return {name: new_images(number, view.side) for name, view in self.recipe.views.items()}

    def transform(self, sample: Sample, images: Mapping[str, Tensor], row: int) -> None:
        """Fills a row of each view from a decoded sample, and frees its pixels."""
        for name, view in self.recipe.views.items():
            view_params = sample.params[name]
            image = sample.images.get(view.member)
            if image is None:
                images[name][row] = WHITE
            else:
                images[name][row] = view.transform.apply(image, view.side, view_params)
        for image in sample.images.values():
            image.forget()

    def batch(
        self, samples: Sequence[Sample], images: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Joins samples.

        Args:
            samples: transformed samples.
            images: their rows of each view.

        Returns:
            Batch entries: each view uint8 [n, 3, size, size] and its augmentation float64 [n, p],
            `present` bool [n] of views that samples may lack, `key` and `status` int64 [n], joined
            rows; and the texts of each text entry.
        """
        batch: dict[str, Tensor] = dict(images)
        for name, view in self.recipe.views.items():
            if view.transform.columns:
                params = np.stack([sample.params[name] for sample in samples])
                batch[f"{name}.augmentation"] = torch.from_numpy(params)
            if view.member is not None:
                present = [view.member in sample.images for sample in samples]
                batch[f"{name}.present"] = torch.tensor(present)
        for name in samples[0].rows:
            batch[name] = torch.stack([sample.rows[name] for sample in samples])
        batch["key"] = torch.tensor([sample.key for sample in samples], dtype=torch.int64)
        batch["status"] = torch.tensor([sample.status for sample in samples], dtype=torch.int64)
        texts = {name: [sample.texts[name] for sample in samples] for name in self.recipe.texts}
        return batch, texts

    def _images(self, raw: RawSample) -> Images:
        """Opens the images of all views; all but the sample's own may be absent."""
        if not self.recipe.views:
            return {}
        images: Images = {None: opened(find_image(raw))}
        for member in {view.member for view in self.recipe.views.values()} - {None}:
            try:
                data = find_image(raw, member)
            except SampleError:
                continue
            images[member] = opened(data)
        return images

    def _draw(self, images: Images, rows: Rows, epoch: int, key: int) -> dict[str, np.ndarray]:
        """Returns the parameters of every view, a function of epoch, key and the view's name."""
        params: dict[str, np.ndarray] = {}
        for name, view in self.recipe.views.items():
            # A missing image draws as the sample's own: batches have a row for it.
            image = images.get(view.member, images[None])
            drawn = view.replayed(params, rows)
            if drawn is None:
                rng = self._randomness.start(stream(self.recipe.seed, epoch, name), key)
                others = [params[other] for other in view.transform.around]
                drawn = view.transform.draw(image.height, image.width, rng, others)
            params[name] = drawn
        return params

    def _text(
        self, raw: RawSample, name: str, source: str, rows: Rows, epoch: int, key: int
    ) -> str:
        policy = self.recipe.texts[name][source]
        draw = uniform(self.recipe.seed, epoch, policy.draws_as or name, key)
        stored = self.recipe.caption_same_as if name == "text" else None
        if stored is not None and rows[f"{stored.partition('.')[0]}.present"]:
            draw = float(rows[stored])
        try:
            return policy(raw, draw)
        except SampleError as error:
            # Only the main caption is required; batches mark which of the others are present.
            if name != "text" and error.cause == "no_caption":
                return ""
            raise


def opened(data: bytes | EncodedImage) -> EncodedImage:
    """Opens an image file that is not opened already."""
    return data if isinstance(data, EncodedImage) else EncodedImage.open(data)


def new_images(number: int, side: int) -> Tensor:
    """Allocates images: uint8 [n, 3, side, side], channels last as they are decoded.

    A worker allocates shared memory, so that the training process reads the batch without a copy.
    torch's own collation does the same.
    """
    shape = (number, side, side, 3)
    if get_worker_info() is None:
        images = torch.empty(shape, dtype=torch.uint8)
    else:
        storage = torch.UntypedStorage._new_shared(math.prod(shape))
        images = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
    return images.permute(0, 3, 1, 2)


class Randomness:
    """A generator that is reset for every sample: a new one would take ten times as long."""

    def __init__(self):
        self._bits = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
        self._generator = np.random.Generator(self._bits)
        self._fresh = self._bits.state

    def start(self, *words: int) -> np.random.Generator:
        """Returns the generator reset to two signed 64-bit words; valid until the next call."""
        self._fresh["state"]["key"] = np.array(words, dtype=np.int64).view(np.uint64)
        self._bits.state = self._fresh
        return self._generator


@lru_cache(maxsize=64)
def stream(seed: int, epoch: int, view: str) -> int:
    """Returns the half of a view's seed that is constant in an epoch."""
    return text_hash(seed, epoch) if view == "image" else text_hash(seed, epoch, view)


def uniform(*parts: object) -> float:
    """Returns a number in [0, 1) that depends on the parts alone."""
    return (text_hash(*parts) & ((1 << 53) - 1)) / (1 << 53)
