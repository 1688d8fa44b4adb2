"""Hashes that determine order and randomness: integers in, 64 well mixed bits out.

The generators of numpy and torch may change their streams between versions; a run is the same
function of its seed with any of them.
"""

import hashlib

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Hashes values [n] under keys [n] or [1] to uint64 [n] (splitmix64's finaliser, twice)."""
    x = np.asarray(values).astype(np.uint64) * _GAMMA + keys
    for _ in range(2):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        x += _GAMMA
    return x


def seeded(*parts: object) -> np.ndarray:
    """Returns a key, uint64 [1], from anything with a text, such as (seed, epoch)."""
    return np.array([text_hash(*parts)], dtype=np.int64).view(np.uint64)


def text_hash(*parts: object) -> int:
    """Returns a stable signed 64-bit hash of the parts' texts."""
    return bytes_hash("\0".join(map(str, parts)).encode("utf-8", "surrogateescape"))


def bytes_hash(data: bytes) -> int:
    """Returns a stable signed 64-bit hash of bytes (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
