"""Features of whole sets, computed by all ranks together.

In: a model's towers, an image set or texts. Out: float32 features [n, d] in the set's order, on
every rank: lifted, so that inner products of images' with texts' rank as the objective's similarity
does, or in a form of their own (`image_features`, `text_features`).

Batches are cut from the global order with one fixed size; batch k belongs to rank k % world_size.
So a batch has the same rows, and its features the same bits, for any number of processes.
Every rank makes the same number of tower calls (a rank without a batch encodes a spare
one): under sharded strategies an unequal number is a deadlock.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ...data.errors import SampleError
from ...data.image_sets import ImageSet
from ...losses.components.similarity import Metric
from ...models.two_tower import Form
from ..distributed import gather_objects
from .prompts import PromptCache, Prompts, chunks, prompts_digest
from .ranks import full_precision

Encode = Callable[..., Tensor]


class ByteCache:
    """Keeps decoded batches between evaluations, up to a number of bytes.

    Nothing is evicted: evaluation scans its set in the same order each time, and a cache that
    evicts the oldest entry of a longer scan never has a hit.

    Args:
        max_bytes: total size of the entries; 0: none are kept.
    """

    def __init__(self, max_bytes: int = 512 << 20):
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._scope: tuple[Any, ...] = ()
        self._entries: dict[Any, tuple[Tensor, ...]] = {}

    def enter(self, *scope: Any) -> None:
        """Empties the cache unless `scope` (what entries depend on) is that of the last call."""
        same = len(scope) == len(self._scope) and all(
            a is b or (isinstance(a, int) and a == b)
            for a, b in zip(scope, self._scope, strict=True)
        )
        if not same:
            self._scope, self._entries, self.num_bytes = scope, {}, 0

    def get(self, key: Any) -> tuple[Tensor, ...] | None:
        """Returns the entry, or None."""
        return self._entries.get(key)

    def put(self, key: Any, tensors: tuple[Tensor, ...]) -> None:
        """Adds the entry if it fits."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if key not in self._entries and self.num_bytes + size <= self.max_bytes:
            self._entries[key] = tensors
            self.num_bytes += size


@dataclass
class Encoder:
    """The towers of a model as functions of whole sets; lives for one evaluation.

    Attributes:
        model: has `encode_image(uint8 [n,3,H,W])`, `encode_text(ids, lengths)`, `image_size`,
            `context_length`. For other than normalised features the two take `form=`.
        tokenizer: `(texts, context_length) -> (ids [n, L], lengths [n])`.
        transform: `(uint8 [3,H,W], size, None) -> uint8 [3,size,size]`.
        device: where the towers run and the features are kept.
        precision: makes the context the towers run in (autocast).
        batch_size: images or texts per tower call.
        rank, world_size: this process among those that share the work.
        wanted: items of each image set that tasks need; each is encoded once.
        cache: decoded images from one evaluation to the next.
        num_threads: threads that decode images.
        metric: the similarity that ranks.
        prompts: embeddings of class prompts on the disk; None: computed each time.
        logit_scale: what the model multiplies similarities with to make logits.
    """

    model: Any
    tokenizer: Callable[[list[str], int], tuple[Tensor, Tensor]]
    transform: Callable[[Tensor, int, Any], Tensor]
    device: torch.device
    precision: Callable[[], AbstractContextManager] = nullcontext
    batch_size: int = 256
    rank: int = 0
    world_size: int = 1
    wanted: dict[ImageSet, np.ndarray] = field(default_factory=dict)
    cache: ByteCache = field(default_factory=lambda: ByteCache(0))
    num_threads: int = 2
    metric: Metric = field(default_factory=Metric)
    prompts: PromptCache | None = None
    logit_scale: float = 100.0
    _encoded: dict[tuple[ImageSet, Form], Tensor] = field(default_factory=dict, init=False)
    _images: dict[ImageSet, Tensor] = field(default_factory=dict, init=False)

    def images(self, images: ImageSet, chosen: Sequence[int] | np.ndarray) -> Tensor:
        """Returns the features of the chosen items by which they are ranked, float32 [n, k].

        Raises:
            ValueError: images cannot be decoded; raised on every rank.
        """
        rows = self._rows(images, chosen)
        if images not in self._images:
            self._images[images] = self.metric.images(self._all_images(images, self.metric.form))
        return self._images[images][rows]

    def image_features(
        self, images: ImageSet, chosen: Sequence[int] | np.ndarray, form: Form = ""
    ) -> Tensor:
        """Returns features of the chosen items, whatever the objective's similarity is.

        Args:
            images: the set.
            chosen: its items.
            form: ``: of length one; `.raw`: before normalisation; `.pooled`: before projection.

        Returns:
            float32 [n, d].

        Raises:
            ValueError: images cannot be decoded; raised on every rank.
        """
        rows = self._rows(images, chosen)
        return self._all_images(images, form)[rows]

    def _rows(self, images: ImageSet, chosen: Sequence[int] | np.ndarray) -> Tensor:
        """Returns the places of items among those that are encoded."""
        if images not in self.wanted:
            self.wanted[images] = np.unique(np.asarray(chosen))
        wanted = self.wanted[images]
        rows = np.searchsorted(wanted, chosen)
        assert np.array_equal(wanted[rows], chosen), "a task asks for items it did not announce"
        return torch.from_numpy(rows).to(self.device)

    def _all_images(self, images: ImageSet, form: Form) -> Tensor:
        if (images, form) not in self._encoded:
            features = self._encode_images(images, self.wanted[images], form)
            self._encoded[images, form] = features
        return self._encoded[images, form]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Returns the features of the texts by which they are ranked, float32 [n, k]."""
        return self.metric.texts(self.plain_texts(texts))

    def logits(self, image: Tensor, text: Tensor, scale: float | None = None) -> Tensor:
        """Returns the objective's logits, float32 [n, m], without its bias.

        Args:
            image: what `images` returns, [n, k].
            text: what `texts` or `mean_texts` return, [m, k].
            scale: in the place of the model's own.
        """
        similarity = self.metric.similarity
        with full_precision(image.device):
            scores = image @ text.T
        if similarity.point is not None:
            scores = similarity.point.value(scores)
        factor = image.new_tensor([self.logit_scale if scale is None else scale])
        return similarity.scale(factor, self.metric.scalars) * scores

    def mean_texts(self, means: Tensor) -> Tensor:
        """Returns what `texts` does, from means of `plain_texts`."""
        return self.metric.mean_texts(means)

    def prompt_means(self, prompts: Prompts) -> Tensor:
        """Returns the mean of each class's `plain_texts`, float32 [classes, d]."""
        key = ""
        if self.prompts is not None:
            about = f"{self.metric.form} {self.batch_size} {self.device.type}"
            key = prompts_digest(prompts, self._tokenize, about)
            if (means := self.prompts.read(key)) is not None:
                return means.to(self.device)
        parts: list[Tensor] = []
        for chunk in chunks(prompts):
            features = self.plain_texts([text for texts in chunk for text in texts])
            parts += [part.mean(0) for part in features.split([len(texts) for texts in chunk])]
        means = torch.stack(parts)
        if self.prompts is not None:
            self.prompts.write(key, means)
        return means

    def plain_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns features of texts that may be averaged, float32 [n, d]."""
        return self.text_features(texts, self.metric.form)

    def text_features(self, texts: Sequence[str], form: Form = "") -> Tensor:
        """Returns features of texts, float32 [n, d], in a form as of `image_features`."""
        texts = list(texts)

        def load(start: int) -> tuple[Tensor, ...]:
            return self._tokenize(texts[start : start + self.batch_size])

        with ThreadPoolExecutor(1) as ahead:
            batches = _one_ahead(ahead, load, self._starts(len(texts)))
            return self._run(len(texts), batches, self.model.encode_text, form)

    def _tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.tokenizer(list(texts), self.model.context_length)

    def _encode_images(self, images: ImageSet, wanted: np.ndarray, form: Form) -> Tensor:
        size = self.model.image_size
        # Decoded images may only be used again for the same items, size and transform.
        self.cache.enter(self.transform, size, self.batch_size, self.rank, self.world_size)
        failures: list[str] = []

        def load_one(index: int) -> Tensor:
            try:
                return self.transform(images.image(index), size, None)
            except (SampleError, OSError) as error:
                failures.append(f"{images.items[index].get('key')} ({error})")
                return torch.zeros(3, size, size, dtype=torch.uint8)

        def load_piece(rows: np.ndarray) -> Tensor:
            return torch.stack([load_one(row) for row in rows.tolist()])

        def load(start: int) -> tuple[Tensor, ...]:
            rows = wanted[start : start + self.batch_size].tolist()
            key = (images, tuple(rows))
            batch = self.cache.get(key)
            if batch is None:
                before = len(failures)
                # A piece a thread: small images, handed over one by one, cost half as much again.
                pieces = np.array_split(rows, min(self.num_threads, len(rows)))
                batch = (torch.cat(list(pool.map(load_piece, pieces))),)
                if len(failures) == before:
                    self.cache.put(key, batch)
            return batch

        with ThreadPoolExecutor(self.num_threads) as pool, ThreadPoolExecutor(1) as ahead:
            batches = _one_ahead(ahead, load, self._starts(len(wanted)))
            features = self._run(len(wanted), batches, self.model.encode_image, form)
        # All ranks continue, or all stop.
        messages = [text for texts in gather_objects(failures) for text in texts]
        if messages:
            raise ValueError(
                f"{len(set(messages))} of {len(wanted)} images of {images} cannot be read, such as "
                f"{min(messages)}; repair or remove them, so that all runs are measured alike"
            )
        return features

    def _starts(self, num_rows: int) -> list[int]:
        """Returns the first rows of this rank's batches, one a round, spare ones included."""
        num_batches = -(-num_rows // self.batch_size)
        rounds = -(-num_batches // self.world_size)
        mine = [r * self.world_size + self.rank for r in range(rounds)]
        return [min(k, num_batches - 1) * self.batch_size for k in mine]

    def _run(
        self, num_rows: int, batches: Iterator[tuple[Tensor, ...]], encode: Encode, form: Form
    ) -> Tensor:
        """Encodes this rank's batches and gathers the features of all, round by round."""
        features = None
        encode = partial(encode, form=form) if form else encode
        for r, batch in enumerate(batches):
            with self.precision():
                rows = encode(*(part.to(self.device, non_blocking=True) for part in batch))
            # Normalised again: under autocast unit length is exact to three digits only.
            rows = rows.float() if form else F.normalize(rows.float(), dim=-1)
            if features is None:
                features = rows.new_empty(num_rows, rows.shape[1])
            first = r * self.world_size * self.batch_size
            for k, part in enumerate(self._gather(rows)):
                start = first + k * self.batch_size
                features[start : start + self.batch_size] = part[: max(0, num_rows - start)]
        assert features is not None, "nothing to encode"
        return features

    def _gather(self, rows: Tensor) -> list[Tensor]:
        """Returns every rank's rows, each padded to the batch size."""
        if self.world_size == 1:
            return [rows]
        rows = F.pad(rows, (0, 0, 0, self.batch_size - len(rows)))
        wire = rows.cpu() if dist.get_backend() == "gloo" else rows
        parts = [torch.empty_like(wire) for _ in range(self.world_size)]
        dist.all_gather(parts, wire)
        return [part.to(rows.device) for part in parts]


def _one_ahead(
    pool: ThreadPoolExecutor, load: Callable[[int], Any], starts: Sequence[int]
) -> Iterator[Any]:
    """Yields batches, and loads the next one meanwhile."""
    coming: Future[Any] | None = None
    for start in starts:
        ready, coming = coming, pool.submit(load, start)
        if ready is not None:
            yield ready.result()
    if coming is not None:
        yield coming.result()
