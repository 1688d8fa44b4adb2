"""Text augmentation without a model: edits of a caption's own words.

In: the caption that another policy chooses, and the sample's uniform number. Out: the caption with
words swapped, or with words left out. The same (seed, epoch, key) gives the same words.
"""

import numpy as np

from ..hashing import mix, seeded
from ..shards.reader import RawSample
from .captions import CaptionPolicy, FirstFound


class WordEdits(CaptionPolicy):
    """Swaps words, or leaves words out, each half of the times; a single word stays as it is.

    Two of the four edits of Wei and Zou, "EDA: Easy Data Augmentation Techniques" (2019), section
    2; the other two put in synonyms, which needs a thesaurus.

    Args:
        of: the policy whose caption is edited; the first field found by default.
        fraction: how many swaps, per word (at least one); how likely each word is left out (one
            always stays).

    Raises:
        ValueError: `fraction` is not between 0 and 1.
    """

    def __init__(self, of: CaptionPolicy | None = None, fraction: float = 0.1):
        if not 0 < fraction < 1:
            raise ValueError(f"WordEdits has fraction={fraction}: it must lie between 0 and 1")
        self.of = of or FirstFound()
        self.fields = self.of.fields
        self.fraction = fraction

    def __call__(self, sample: RawSample, draw: float) -> str:
        words = self.of(sample, draw).split()
        if len(words) < 2:
            return " ".join(words)
        # The choice of `of` depends on `draw` itself: the edits need other numbers.
        bits = mix(np.arange(2 * len(words) + 2), seeded("word edits", draw)) >> np.uint64(11)
        chance, *numbers = (bits * 2.0**-53).tolist()
        edit = self._swapped if chance < 0.5 else self._thinned
        return " ".join(edit(words, numbers))

    def _swapped(self, words: list[str], numbers: list[float]) -> list[str]:
        count = len(words)
        for i in range(max(1, round(self.fraction * count))):
            first = int(numbers[2 * i] * count)
            second = (first + 1 + int(numbers[2 * i + 1] * (count - 1))) % count
            words[first], words[second] = words[second], words[first]
        return words

    def _thinned(self, words: list[str], numbers: list[float]) -> list[str]:
        remaining = [
            word for word, number in zip(words, numbers, strict=False) if number >= self.fraction
        ]
        return remaining or [words[int(numbers[-1] * len(words))]]
