"""A perceptual hash: copies of an image in other sizes, formats and qualities differ in few bits.

In: images as thumbnails (`EncodedImage.thumbnail`). Out: 64 bits each. Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), section 3.2.1: the
lowest frequencies of a small grey image, compared with their median.
"""

import numpy as np

SIDE = 32
FREQUENCIES = 8
# What an image has nothing of (a mirror-symmetric one every second frequency) comes back as noise
# from a lossy copy; only above this fraction of the mean absolute value does it set a bit. Emoji
# and the same as JPEGs then differ in at most 4 bits instead of 16.
DEAD_ZONE = 0.125


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Returns the hashes of grey thumbnails, uint8 [n, 32, 32], as int64 [n].

    All sums are whole numbers below 2^53, which float64 holds exactly: a hash depends neither on
    the other images nor on how the processor adds.
    """
    basis = _BASIS @ thumbnails.astype(np.float64) @ _BASIS.T
    low = basis.reshape(len(thumbnails), FREQUENCIES**2)
    noise = DEAD_ZONE * np.abs(low).mean(axis=1, keepdims=True)
    bits = low > np.median(low, axis=1, keepdims=True) + noise
    return np.packbits(bits, axis=1, bitorder="little").view("<i8").ravel().astype(np.int64)


def _cosines() -> np.ndarray:
    """Returns frequencies 1 to 8 of the DCT-II, in whole 4096ths, float64 [8, 32]."""
    frequencies = np.arange(1, FREQUENCIES + 1)[:, None]
    places = np.arange(SIDE)[None, :] + 0.5
    return np.rint(4096 * np.cos(np.pi * frequencies * places / SIDE))


_BASIS = _cosines()
