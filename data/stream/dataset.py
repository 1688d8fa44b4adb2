"""Batches from a stream of shards.

In: a stream and a recipe. Out: this rank's batches, a step at a time, for ever. The samples depend
on the speed of disks and networks, and cannot be repeated.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import detshuffle

from ..dataset import PART_BYTES, Batch, TokenizeTexts, tokenize_texts
from ..errors import CAUSES, SampleError
from ..hashing import text_hash
from ..images.decode import EncodedImage, Pixels, on_white
from ..order.steps import Steps
from ..recipe import Recipe
from ..refusals import Refusal, refusal
from ..render import Renderer, Sample
from ..shards.fields import IMAGE_EXTENSIONS, sample_key
from ..text.syntax import WordReducer
from ..urls import base_name
from .shards import Faults, Shards, Stream


class Parts:
    """Splits this rank's batches into parts, of which a worker makes one at a time.

    Args:
        steps: maps steps to batch sizes.
        world_size: number of processes.
        part_rows: samples of a part at most.
    """

    def __init__(self, steps: Steps, world_size: int, part_rows: int):
        self.steps = steps
        self.world_size = world_size
        self.part_rows = part_rows

    def __len__(self) -> int:
        return self.steps.total_steps

    def num_parts(self, step: int) -> int:
        """Returns how many parts make up a step's batch."""
        return -(-self._rows(step) // self.part_rows)

    def after(self, first_step: int) -> Iterator[tuple[int, int]]:
        """Yields (step, number of samples) of each part from a step on."""
        for step in range(first_step, len(self)):
            rows = self._rows(step)
            for first in range(0, rows, self.part_rows):
                yield step, min(self.part_rows, rows - first)

    def _rows(self, step: int) -> int:
        return self.steps.batch_size(step) // self.world_size


class StreamDataset(IterableDataset):
    """This rank's batches in parts; each of K workers makes every K-th part from its own stream.

    Batches are those of `StepDataset`, without sidecars, and `skipped`: (cause, source, shard) of
    every sample or shard that could not be used, int64 [n, 3].

    Args:
        urls: addresses of the shards.
        stream: how they are mixed.
        recipe: views and texts of every sample.
        readers: tokenizer and context length by text entry.
        steps: maps steps to batch sizes.
        first_step: the first step to make.
        rank: this process.
        world_size: number of processes.
        word_reducers: shortens captions before tokenizing, by phase; None: does not.
    """

    def __init__(
        self,
        urls: Sequence[str],
        stream: Stream,
        recipe: Recipe,
        readers: Mapping[str, tuple[TokenizeTexts, int]],
        steps: Steps,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        word_reducers: Sequence[WordReducer | None] = (),
    ):
        self.urls = urls
        self.stream = stream
        self.renderer = Renderer(recipe)
        self.readers = readers
        self.steps = steps
        self.parts = Parts(steps, world_size, max(1, PART_BYTES // recipe.bytes_per_sample))
        self.first_step = first_step
        self.rank = rank
        self.world_size = world_size
        self.word_reducers = word_reducers

    def __iter__(self) -> Iterator[Batch | Refusal]:
        worker = get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        faults = Faults(self.urls)
        samples = self._samples(faults, number)
        for step, rows in islice(self.parts.after(self.first_step), number, None, num_workers):
            try:
                yield self._part(step, rows, samples, faults)
            except ValueError as error:
                yield refusal(error)
                return

    def _part(
        self, step: int, rows: int, samples: Iterator[tuple[Sample, str]], faults: Faults
    ) -> Batch:
        images, chosen, shards = self.renderer.new_images(rows), [], []
        for row, (sample, url) in enumerate(islice(samples, rows)):
            self.renderer.transform(sample, images, row)
            chosen.append(sample)
            shards.append(faults.numbers.get(url, 0))
        batch, texts = self.renderer.batch(chosen, images)
        phase = self.steps.phase(step)
        reducer = self.word_reducers[phase] if self.word_reducers else None
        batch |= tokenize_texts(texts, self.readers, reducer)
        return batch | {
            "source": torch.zeros(rows, dtype=torch.int64),
            "shard": torch.tensor(shards, dtype=torch.int64),
            "skipped": faults.take(),
        }

    def _samples(self, faults: Faults, worker: int) -> Iterator[tuple[Sample, str]]:
        """Yields decoded samples with their shards, for ever; counts unusable ones."""
        source, recipe = self.stream.source, self.renderer.recipe
        for number, members in enumerate(self._endless(faults, worker)):
            url = str(members.get("__url__", ""))
            # A sample repeats; each time it draws anew.
            draw = text_hash("stream", self.first_step, self.rank, worker, number)
            try:
                raw = as_members(members)
                key = sample_key(raw, source, base_name(url), recipe.key_fields[source])
                sample = self.renderer.prepare(raw, source, key, draw, {})
                self.renderer.decode(sample)
            except SampleError as error:
                faults.count_sample(url, error)
                continue
            faults.count_good()
            yield sample, url

    def _endless(self, faults: Faults, worker: int) -> Iterator[dict[str, Any]]:
        """Yields webdataset's samples, one pass over the shards after the other.

        Raises:
            ValueError: a pass yields nothing, or something that is no sample.
        """
        stream = self.stream
        recipe_seed = self.renderer.recipe.seed
        seed = text_hash("stream", recipe_seed, self.first_step) & 0x7FFFFFFF
        dataset = Shards(self.urls, stream, self.rank, self.world_size, seed, faults)
        if stream.shuffle:
            # Workers have different shards, and so different samples.
            dataset.append(detshuffle(stream.shuffle, stream.shuffle, seed))
        samples = dataset if stream.pipeline is None else stream.pipeline(dataset)
        if isinstance(samples, Iterator):
            raise ValueError(
                "data.webdataset.pipeline returns a generator, which ends with the first pass over "
                "the shards; return the dataset with a further stage: dataset.compose(STAGE), "
                "where STAGE is a generator function of samples"
            )
        while True:
            sample = None
            for sample in samples:
                if not isinstance(sample, dict) or "__key__" not in sample:
                    raise ValueError(
                        f"data.webdataset.pipeline yields a {type(sample).__name__}; it must yield "
                        "samples: dicts with __key__ and their members by extension"
                    )
                yield sample
            if sample is None:
                causes = Counter(CAUSES[cause] for cause, _, _ in faults.counts.elements())
                why = ", ".join(f"{count} {cause}" for cause, count in causes.items())
                raise ValueError(
                    f"data.webdataset: worker {worker} of process {self.rank} found no sample in a "
                    f"whole pass over its shards ({why or 'nothing failed'}); look at "
                    "data.webdataset.urls and data.webdataset.pipeline"
                )


def as_members(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a raw sample; decoded members are encoded again, except for images.

    Args:
        sample: webdataset's, after the user's stages: bytes, texts, JSON, numbers, images.

    Raises:
        ValueError: an image is of an unknown type.
    """
    raw = {name: _member(name, value) for name, value in sample.items() if name[:2] != "__"}
    # Others, such as arrays of numbers, are dropped.
    return {name: value for name, value in raw.items() if value is not None} | {
        "__key__": str(sample["__key__"])
    }


def _member(name: str, value: Any) -> bytes | EncodedImage | None:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict | list):
        return json.dumps(value).encode()
    if name.rpartition(".")[2] in IMAGE_EXTENSIONS:
        return _image(name, value)
    return str(value).encode() if isinstance(value, int | float) else None


def _image(name: str, value: Any) -> EncodedImage:
    if isinstance(value, Image.Image):
        value = np.array(on_white(value))
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape[2:] == (3,):
        return Pixels(torch.from_numpy(value).permute(2, 0, 1))
    if isinstance(value, Tensor) and value.dtype == torch.uint8 and len(value) == 3:
        return Pixels(value.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    raise ValueError(
        f"data.webdataset.pipeline makes of the member '{name}' a {type(value).__name__}; leave "
        "its bytes, or make a PIL image, a uint8 array [h, w, 3] or a uint8 tensor [3, h, w]"
    )
