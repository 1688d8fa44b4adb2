"""Held-out pairs to validate on, without those that training would replace.

In: the manifest that `counterpoint data index --holdout` wrote. Out: an `ImageSet` of bounded size.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from .errors import SampleError
from .image_sets import Item, ShardSet


class ValidationPairs(ShardSet):
    """The first usable pairs of held-out shards.

    A pair is usable if it has a caption and its image can be decoded, which is checked when the set
    is indexed: a damaged image would else end the run at its first evaluation. The caption is the
    field `caption` of every pair.

    Args:
        manifest: written by `counterpoint data index ... --holdout`.
        captions: the caption field, or several of which the first with text is used, as in
            `data.caption`.
        limit: how many pairs to use; further shards are not opened.

    Attributes:
        passed_over: unusable samples, by cause.
    """

    def __init__(
        self,
        manifest: str = "val.parquet",
        captions: str | list[str] | tuple[str, ...] = ("txt", "json:caption"),
        limit: int = 5000,
    ):
        super().__init__(manifest)
        if limit < 1:
            raise ValueError(f"limit: {limit} is not a number of pairs, such as 5000")
        fields = [captions] if isinstance(captions, str) else captions
        self.captions = [field.removeprefix("json:") for field in fields]
        self.limit = limit
        self.passed_over: Counter[str] = Counter()

    @property
    def note(self) -> str:
        causes = ", ".join(f"{count} {cause}" for cause, count in sorted(self.passed_over.items()))
        return f"{len(self)} pairs of {self.urls[0]}" + (f", passed over: {causes}" * bool(causes))

    def paths(self) -> list[str]:
        if not (path := self.root / self.urls[0]).is_file():
            raise ValueError(
                f"there is no {path} to validate on; `counterpoint data index SHARDS --out "
                f"train.parquet --holdout {self.limit}` writes it beside train.parquet; to train "
                "without: --evaluation.suite null"
            )
        return super().paths()

    def shared_with(self, shards: Iterable[str]) -> int:
        """Counts the shards whose addresses are also in `shards`."""
        return len(set(self.paths()).intersection(shards))

    def walk(self) -> Iterator[Item]:
        self.passed_over.clear()
        num_pairs = 0
        for item in super().walk():
            caption = self._caption(item)
            if cause := _flaw(item, caption):
                self.passed_over[cause] += 1
                continue
            yield replace(item, fields=item.fields | {"caption": caption})
            num_pairs += 1
            if num_pairs == self.limit:
                return
        if not num_pairs:
            raise ValueError(
                f"no sample of {self} can be used: {dict(self.passed_over)}; where captions are "
                f"looked for (now: {', '.join(self.captions)}) is named in the suite's file"
            )

    def _caption(self, item: Item) -> Any:
        """Returns the first of the fields that has text (a text or a list of them), or None."""
        for name in self.captions:
            value = item.get(name)
            texts = value if isinstance(value, list) else [value]
            if any(text is not None and str(text).strip() for text in texts):
                return value
        return None


def _flaw(item: Item, caption: Any) -> str | None:
    if caption is None:
        return "no_caption"
    try:
        item.decode()
    except (SampleError, OSError):
        return "bad_image"
    return None
