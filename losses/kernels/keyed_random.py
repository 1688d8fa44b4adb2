"""Random numbers of a sample: functions of its key, the same on any rank and any device.

In: keys. Out: numbers. A generator would make them depend on which samples share a rank.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# SplitMix64 (Steele et al. 2014) as signed 64-bit numbers, which wrap around.
STEP, _FIRST, _SECOND = (
    n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def normal(
    keys: Int64[Tensor, "b"], width: int, *words: int | Int64[Tensor, "1"]
) -> Float[Tensor, "b width"]:
    """Returns standard normal numbers, float64, that depend on (words, key, column) alone."""
    seed = torch.zeros_like(keys)
    for word in words:
        seed = mix(seed + word)
    columns = torch.arange(width, device=keys.device)
    bits = mix(mix(mix(seed + keys))[:, None] + columns)
    # The middle of one of 2^52 intervals: neither 0 nor 1, where the normal number is infinite. Of
    # 2^53 the last middle would round to 1.
    return torch.special.ndtri((shifted(bits, 12).double() + 0.5) * 2.0**-52)


def mix(bits: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """Returns 64 bits each of which depends on every bit of the input (one step of SplitMix64)."""
    return finalised(bits + STEP)


def finalised(bits: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """Returns SplitMix64's finaliser of the bits; integers wrap."""
    bits = (bits ^ shifted(bits, 30)) * _FIRST
    bits = (bits ^ shifted(bits, 27)) * _SECOND
    return bits ^ shifted(bits, 31)


def shifted(bits: Int64[Tensor, "*n"], by: int) -> Int64[Tensor, "*n"]:
    """Returns the bits shifted to the right, zeros coming in."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
