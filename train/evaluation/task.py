"""Base class of tasks: images, a selection of them, groups, and a measure.

In: an `Encoder`. Out: (group, measure, value) triples. With `by: style` a task is measured once for
every value of the field `style`, and once more as the plain mean of these.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...data.image_sets import ImageSet
from .details import Detail
from .encode import Encoder
from .outcomes import Outcomes, mean_of_groups


class Task(ABC):
    """A measure on an image set. A new task is one class with one method and one suite entry.

    Args:
        data: the images.
        where: fields and the values (or lists of values) to keep; None: every image.
        by: a field; the task is measured for each of its values separately, then averaged.
    """

    def __init__(
        self, data: ImageSet, where: Mapping[str, Any] | None = None, by: str | None = None
    ):
        if not isinstance(data, ImageSet):
            raise ValueError(
                f"data: {data!r} is not an image set; give a class_path such as "
                "counterpoint.data.image_sets.ShardSet with its init_args"
            )
        if where is not None and not isinstance(where, Mapping):
            raise ValueError(f"where: {where!r} is not a mapping of fields to values")
        self.data = data
        self.where = where
        self.by = by

    def prepare(self) -> np.ndarray:
        """Reads the data's index and checks everything that needs no model.

        Returns:
            The items the task uses, sorted, int64 [n].

        Raises:
            ValueError: the data does not fit the task.
        """
        self._chosen = np.asarray(self.data.select(self.where), dtype=np.int64)
        return self._chosen

    def image_sets(self) -> dict[ImageSet, np.ndarray]:
        """Returns the items, sorted, of each image set that `measure` reads; after `prepare`."""
        sets = {self.data: self._chosen}
        for images, items in self.further_images():
            sets[images] = np.union1d(sets.get(images, items[:0]), items)
        return sets

    def further_images(self) -> list[tuple[ImageSet, np.ndarray]]:
        """Returns the items of other sets, or further ones of `data`, that `measure` reads."""
        return []

    @abstractmethod
    def measure(
        self, encoder: Encoder, chosen: np.ndarray
    ) -> Mapping[str, float | Outcomes | Detail]:
        """Returns measures on the chosen items by name.

        Shares (from 0 to 1) are shown in percent. The name of any other number ends with a dot and
        its unit, as `uniformity.nats` does.

        A measure that is a mean over items is better returned as `Outcomes`, with what it is the
        mean of: then runs can be compared item for item. A `Detail` is no measure: it is written
        beside them.

        Called on every rank, with the same items: the encoder's features are those of the whole set
        on each, so the values are equal without further exchange.
        """

    def keys(self, chosen: np.ndarray, images: ImageSet | None = None) -> list[str]:
        """Returns the names of items, for `Outcomes`; of `data` unless `images` are given."""
        items = (self.data if images is None else images).items
        return [str(items[i].get("key")) for i in chosen.tolist()]

    def run(self, encoder: Encoder) -> Iterator[tuple[str, str, float | Outcomes | Detail]]:
        """Yields (group or "", measure, value), the mean over groups last; after `prepare`."""
        if self.by is None:
            for name, value in self.measure(encoder, self._chosen).items():
                yield "", name, value
            return
        values = np.asarray(self.data.values(self.by, self._chosen))
        groups: dict[str, list[float | Outcomes]] = {}
        for group in sorted(set(values.tolist())):
            for name, value in self.measure(encoder, self._chosen[values == group]).items():
                if not isinstance(value, Detail):
                    groups.setdefault(name, []).append(value)
                yield group, name, value
        for name, parts in groups.items():
            yield "", name, mean_of_groups(parts)


def order_by_hash(keys: Sequence[str], seed: int = 0) -> np.ndarray:
    """Returns a permutation of items that their names and a seed decide, whatever their order."""
    digests = [hashlib.sha256(f"{seed}/{key}".encode()).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=lambda i: (digests[i], keys[i])), dtype=np.int64)
