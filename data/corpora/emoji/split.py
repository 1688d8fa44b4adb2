"""Chooses the held-out emoji: combinations not in training, whose parts all are.

In: the names, and the names that share an image. Out: the set of held-out captions, a pure
function of the captions and the seed (each caption has its own rank, so that one emoji more or
less moves few others).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from .names import EmojiName

MAX_SHARE = 0.4  # of the toned variants of one emoji may be held out
TOLERANCE = 8  # of 255: what rounding of curves can change in one pixel


def choose_held_out(
    names: Sequence[EmojiName], excluded: Iterable[str], num_held_out: int, seed: int
) -> set[str]:
    """Chooses captions with a skin tone to hold out.

    For each of them its base (the same emoji in other tones) stays in training, at least three
    fifths of the variants, and each of its tones stays with other emoji; each tone of a couple of
    unlike tones also stays with its own base.

    Args:
        names: all names of the corpus.
        excluded: captions that may not be held out.
        num_held_out: how many to hold out.
        seed: chooses which.

    Returns:
        The held-out captions.

    Raises:
        ValueError: fewer than `num_held_out` can be held out.
    """
    excluded = set(excluded)
    variants: dict[str, list[EmojiName]] = defaultdict(list)
    for name in names:
        if name.skin_tones:
            variants[name.base].append(name)
    training = {base: list(group) for base, group in variants.items()}
    candidates = [name for group in variants.values() for name in group]
    held_out: set[str] = set()
    for name in sorted(candidates, key=lambda name: draw(seed, "split", name.caption)):
        if len(held_out) == num_held_out:
            break
        others = [other for other in training[name.base] if other is not name]
        enough = len(others) >= (1 - MAX_SHARE) * len(variants[name.base])
        if name.caption not in excluded and enough and tones_remain(name, others):
            training[name.base] = others
            held_out.add(name.caption)
    if len(held_out) < num_held_out:
        raise ValueError(
            f"num_held_out is {num_held_out}, but only {len(held_out)} of {len(names)} emoji can "
            "be held out so that all their parts stay in training; hold out fewer"
        )
    return held_out


def tones_remain(name: EmojiName, others: Sequence[EmojiName]) -> bool:
    """Whether each tone of a couple remains with the couple, on either side."""
    if len(name.skin_tones) == 1:
        return True
    return all(any(tone in other.skin_tones for other in others) for tone in name.skin_tones)


def draw(seed: int, purpose: str, text: str) -> bytes:
    """Returns a random rank of `text`, by hashing: the same on every machine."""
    return hashlib.blake2b(f"{seed}/{purpose}/{text}".encode(), digest_size=8).digest()


def shared_images(pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> list[int]:
    """Finds the images that another image repeats.

    Some drawings serve several names ("artist dark skin tone" and "man artist dark skin tone" in
    one style), now and then with curves rounded differently. Two images are the same when no
    channel of any pixel differs by more than `TOLERANCE` and their 12 x 12 thumbnails differ by
    less than 2 (root mean square).

    Args:
        pixels: uint8 [n, 72, 72, 3], all images of one style.
        rows: the images to look at.

    Returns:
        Those of `rows` that equal at least one other image.
    """
    num, height, width, channels = pixels.shape
    blocks = pixels.reshape(num, 12, height // 12, 12, width // 12, channels)
    small = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(num, -1)
    small -= small.mean(axis=0)
    norms = np.einsum("ij,ij->i", small, small)
    distance = norms[rows, None] + norms[None] - 2 * (small[rows] @ small.T)
    near = np.argwhere(distance < 4 * small.shape[1])
    shared = set()
    for index, other in near:
        row = rows[index]
        if row != other and row not in shared:
            difference = pixels[row].astype(np.int16) - pixels[other]
            if np.abs(difference).max() <= TOLERANCE:
                shared.add(int(row))
    return sorted(shared)
