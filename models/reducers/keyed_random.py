"""Random numbers for token reducers: sample keys in, well mixed integers out.

Every number depends on (seed, step, view, sample key, column) alone. Integer arithmetic that wraps
is the same on CPUs and GPUs, so that neither the device, nor how a batch is cut into chunks, nor
the number of processes changes what is kept. Generators have a state and would.
"""

import hashlib

import torch
from jaxtyping import Int64
from torch import Tensor

# splitmix64 (Steele et al., 2014); int64 tensors hold the same 64 bits as its unsigned words.
GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
LARGEST = (1 << 63) - 1


def draw(word: int, keys: Int64[Tensor, " n"], count: int) -> Int64[Tensor, "n count"]:
    """Draws `count` numbers a sample, uniform in 0 .. 2^63 - 1.

    Args:
        word: from `stream`: what all samples share.
        keys: sample keys, any 64 bits.
        count: numbers a sample.
    """
    columns = torch.arange(1, count + 1, device=keys.device) * GAMMA
    return mix(mix(keys * GAMMA + word)[:, None] + columns) & LARGEST


def stream(seed: int, step: int, view: str) -> int:
    """Returns a signed 64-bit word from the seed, the step and the name of the batch entry."""
    digest = hashlib.blake2b(f"{seed}/{step}/{view}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def mix(x: Tensor) -> Tensor:
    """Hashes int64 to int64 (splitmix64's finaliser)."""
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        x = (x ^ shifted(x, shift)) * factor
    return x ^ shifted(x, 31)


def shifted(x: Tensor, bits: int) -> Tensor:
    """Shifts right as if the integers were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
