"""Captions without numbers and what is no word, for scores that look at the meaning alone.

Xu et al., "Devil in the Number: Towards Robust Multi-modality Data Filter" (2023): numbers in
captions move a model's scores whatever the image shows, so that a score is computed anew without
them. What exactly is taken out is our own choice; the paper's code is not public.
"""

import re
from collections.abc import Sequence

from ..errors import SampleError
from ..shards.reader import RawSample
from .captions import CaptionPolicy, FirstFound

# What cameras and files leave in captions.
REDUNDANT = (
    *("img", "dsc", "dscf", "dscn", "dcim", "jpg", "jpeg", "png", "gif", "webp", "bmp", "tiff"),
    *("svg", "pdf", "px"),
)
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
# Digits with the Latin letters around them: x24, 3d, 1980s, DSC00012. Other scripts have no spaces
# around numbers, so that of their words only the digits go. A match begins where letters begin, or
# a long word without digits would be read from each of its letters.
_NUMBER = re.compile(rf"(?<![{_LATIN}\d])[{_LATIN}]*\d[{_LATIN}\d]*")
# Marks that joined a part that is gone, "-abstract" and "(abstract-)"; of "x--filled", all but one.
_MARK = r"[-_./:,'+]"
_LOOSE = re.compile(rf"(?<![^\W_]|{_MARK}){_MARK}+|{_MARK}+(?![^\W_]|{_MARK})|(?<={_MARK}){_MARK}+")
_LETTER = re.compile(r"[^\W\d_]")


class WithoutNumbers(CaptionPolicy):
    """The caption that another policy chooses, without numbers and redundant words.

    Addresses, parts of words with a digit, words of `redundant`, what has no letter, and words that
    repeat the one before are taken out; a caption of nothing else has no text.

    Args:
        of: the policy; the first field found by default.
        redundant: words that go, in lower case, alone or joined to others by a mark.
    """

    def __init__(self, of: CaptionPolicy | None = None, redundant: Sequence[str] = REDUNDANT):
        self.of = of or FirstFound()
        self.fields = self.of.fields
        self.redundant = tuple(redundant)
        names = "|".join(map(re.escape, sorted(self.redundant, key=len, reverse=True)))
        self._redundant = re.compile(rf"(?<![^\W_])(?:{names})(?![^\W_])", re.IGNORECASE)

    def __call__(self, sample: RawSample, draw: float) -> str:
        words: list[str] = []
        for word in _ADDRESS.sub(" ", self.of(sample, draw)).split():
            short = self._shortened(word)
            if short and (not words or short.casefold() != words[-1].casefold()):
                words.append(short)
        if not words:
            raise SampleError(
                "no_caption", f"'{sample['__key__']}' has no text in its caption but numbers"
            )
        return " ".join(words)

    def _shortened(self, word: str) -> str:
        """Returns a word without its numbers and redundant parts, and "" without any letter."""
        rest = _NUMBER.sub("", word)
        if self.redundant:
            rest = self._redundant.sub("", rest)
        if rest != word:
            rest = _LOOSE.sub("", rest)
        return rest if _LETTER.search(rest) else ""
