"""Images of single words on a plain ground, drawn when they are asked for.

In: words. Out: an `ImageSet` with each word in four colour styles. Nothing is random, nothing is
downloaded: the font is the one inside Pillow, and glyphs are placed by Pillow's own layout, never
by libraqm, which some installations have and others have not.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .image_sets import ImageSet, Item

# Ground and letters, as Lin et al. (2024) have them.
STYLES = {
    "black_on_white": ("white", "black"),
    "white_on_black": ("black", "white"),
    "white_on_gray": ("gray", "white"),
    "black_on_gray": ("gray", "black"),
}


class WordImages(ImageSet):
    """Each word in four colour styles, in the middle of the image.

    Items have the fields `word`, `style` (`black_on_white`, `white_on_black`, `white_on_gray`,
    `black_on_gray`) and `key` (`WORD/STYLE`). As any other image, they are brought to the model's
    size by the transform of evaluation, and so letters keep their share of the image.

    Args:
        words: a list, or a text file with a word (or several, as one) a line.
        image_size: side of the drawn images, in pixels.
        font_size: in pixels, which are points at 72 dpi.
        font: a TrueType or OpenType file; None: Aileron, inside Pillow, for letters without
            accents, digits and punctuation.
    """

    default_label = "word"

    def __init__(
        self,
        words: list[str] | str,
        image_size: int = 224,
        font_size: int = 32,
        font: str | None = None,
    ):
        for name, value in (("image_size", image_size), ("font_size", font_size)):
            if value < 1:
                raise ValueError(f"{name}: {value} is not a number of pixels, such as 32")
        self.words = words
        self.image_size = image_size
        self.font_size = font_size
        self.font = font

    def __str__(self) -> str:
        where = f"of {self.root / self.words}" if isinstance(self.words, str) else "in `words`"
        return f"the words {where}"

    def walk(self) -> Iterator[Item]:
        """Yields the words in their order, and the styles of each."""
        words = [word.strip() for word in self._read() if word.strip()]
        if not words:
            raise ValueError(
                f"{self} are none; give at least two, a list or a file with one a line"
            )
        self._check(words)
        for word in words:
            for style in STYLES:
                fields = {"key": f"{word}/{style}", "word": word, "style": style}
                yield Item("words", 0, 0, fields)

    def image(self, index: int) -> Tensor:
        fields = self.items[index].fields
        ground, letters = STYLES[fields["style"]]
        image = Image.new("RGB", (self.image_size, self.image_size), ground)
        left, top, right, bottom = self._typeface.getbbox(fields["word"])
        # Whole pixels, so that a letter is the same wherever it stands.
        corner = (self.image_size - left - right) // 2, (self.image_size - top - bottom) // 2
        ImageDraw.Draw(image).text(corner, fields["word"], letters, self._typeface)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    @cached_property
    def _typeface(self) -> ImageFont.FreeTypeFont:
        if self.font is None:
            typeface = ImageFont.load_default(self.font_size)
            assert isinstance(typeface, ImageFont.FreeTypeFont)
            return typeface
        path = self.root / self.font
        try:
            return ImageFont.truetype(path, self.font_size, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            raise ValueError(
                f"font: {path} cannot be read as a font ({error}); name a .ttf or .otf file, or "
                "leave `font` out"
            ) from error

    def _read(self) -> list[str]:
        if not isinstance(self.words, str):
            return [str(word) for word in self.words]
        path = self.root / self.words
        try:
            return path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"words: {path} cannot be read ({error}); name a text file in UTF-8 with a word a "
                "line, or list the words"
            ) from error

    def _check(self, words: list[str]) -> None:
        """Refuses words that cannot be told apart, or cannot be seen in full."""
        word, count = Counter(word.casefold() for word in words).most_common(1)[0]
        if count > 1:
            twice = [each for each in words if each.casefold() == word][:2]
            raise ValueError(
                f"{self}: '{twice[0]}' and '{twice[1]}' are one word to tokenizers that lower "
                "letters; leave one of them out"
            )
        if missing := sorted(filter(self._is_missing, set("".join(words)))):
            word = next(word for word in words if missing[0] in word)
            raise ValueError(
                f"{self}: '{word}' cannot be drawn, since the font {self._typeface.getname()[0]} "
                f"has no '{missing[0]}'; give a `font` file that has it, or leave such words out"
            )
        if cut := [word for word in words if self._is_cut(word)]:
            raise ValueError(
                f"{self}: {len(cut)} of {len(words)}, such as '{cut[0]}', are wider than "
                f"{self.image_size} pixels; leave them out, or lower font_size: {self.font_size}"
            )

    def _is_missing(self, character: str) -> bool:
        # Fonts draw what they lack as the glyph 0, a box or nothing; no font has a U+10FFFF.
        missing = (b"", self._mask("\U0010ffff"))
        return not character.isspace() and self._mask(character) in missing

    def _mask(self, text: str) -> bytes:
        mask: Any = self._typeface.getmask(text)  # Pillow does not say that it gives its bytes
        return bytes(mask)

    def _is_cut(self, word: str) -> bool:
        left, top, right, bottom = self._typeface.getbbox(word)
        return max(right - left, bottom - top) > self.image_size
