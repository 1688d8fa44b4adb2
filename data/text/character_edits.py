"""Texts with some characters changed: attacks on a text tower, for a loss that takes the worst.

In: the caption that another policy chooses, and the sample's uniform number. Out: a caption near
it. Each text of a batch has a number of its own, so that several of these texts are several
proposals. The same (seed, epoch, key) gives the same characters.
"""

import string

import numpy as np

from ..hashing import mix, seeded
from ..shards.reader import RawSample
from .captions import CaptionPolicy, FirstFound, FirstSentence

# Of the authors' code: letters, space, digits, punctuation.
ALPHABET = string.ascii_lowercase + " " + string.ascii_uppercase + string.digits
ALPHABET += string.punctuation


class CharacterEdits(CaptionPolicy):
    """Inserts, leaves out or replaces characters at random places.

    Of the 2n + 1 places of a text with n characters every second one lies between two of them,
    where a character is inserted; at the others one is replaced, or left out (also where it would
    be replaced by itself). Abad Rocamora et al., "Robustness in Both Domains: CLIP Needs a Robust
    Text Encoder" (2025, LEAF), section 4, search among 50 such places, then 50 characters, with the
    text tower in the loop; here a text is one proposal.

    Args:
        of: the policy whose caption is edited; the first field found by default. It has to choose
            without a draw: a text that is a random one of several would not be the edited one.
        edits: how many changes, so at most the Levenshtein distance from the caption.
        alphabet: the characters to insert and to put in the place of others.

    Raises:
        ValueError: `edits` is below 1, `alphabet` is empty, or `of` draws its caption.
    """

    def __init__(self, of: CaptionPolicy | None = None, edits: int = 1, alphabet: str = ALPHABET):
        if edits < 1 or not alphabet:
            raise ValueError(
                f"CharacterEdits has edits={edits} and alphabet={alphabet!r}: give at least one "
                "edit and one character"
            )
        chosen = of
        while isinstance(chosen, FirstSentence):
            chosen = chosen.of
        if not isinstance(chosen, FirstFound | None):
            raise ValueError(
                f"CharacterEdits has of={type(chosen).__name__}, which draws a caption of its own "
                "for each text, so that another one than the run's would be edited: name a "
                "FirstFound with the run's fields"
            )
        self.of = of or FirstFound()
        self.fields = self.of.fields
        self.edits = edits
        self.alphabet = alphabet

    def __call__(self, sample: RawSample, draw: float) -> str:
        caption = self.of(sample, draw).strip()
        bits = mix(np.arange(2 * self.edits), seeded("character edits", draw)) >> np.uint64(11)
        numbers = (bits * 2.0**-53).tolist()
        text = caption
        for where, choice in zip(numbers[::2], numbers[1::2], strict=True):
            place = int(where * (2 * len(text) + 1))
            # Characters may be left out as well, which is one choice more.
            letters = [*self.alphabet, ""] if place % 2 else self.alphabet
            text = edited_at(text, place, letters[int(choice * len(letters))])
        return text if text.strip() else caption


def edited_at(text: str, place: int, letter: str) -> str:
    """Returns a text with one change; a character in the place of itself is left out.

    Args:
        text: the text, of n characters.
        place: from 0 to 2n; odd ones are characters, even ones the gaps around them.
        letter: what comes there; "" leaves the character out, and a gap as it is.
    """
    i, is_character = divmod(place, 2)
    if not is_character:
        return text[:i] + letter + text[i:]
    return text[:i] + ("" if letter == text[i] else letter) + text[i + 1 :]
