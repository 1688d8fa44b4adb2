"""Random numbers of samples: normal, independent, and functions of key and words alone."""

import torch

from counterpoint.losses.kernels import keyed_random as noise
from counterpoint.losses.kernels.keyed_random import mix, normal


def unsigned(bits):
    return [n % (1 << 64) for n in bits.tolist()]


def test_mixes_as_splitmix64_does():
    """The first outputs for the seed 1234567, as published with the algorithm's test vectors."""
    states = torch.tensor([1234567]) + torch.arange(3) * (0x9E3779B97F4A7C15 - (1 << 64))
    assert unsigned(mix(states)) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_numbers_are_standard_normal_and_independent():
    keys = torch.arange(4000) * 3 - 2000
    drawn = normal(keys, 64, 0, 5)
    ordered = drawn.flatten().sort().values
    uniform = (1 + torch.erf(ordered / 2**0.5)) / 2
    distance = (uniform - torch.arange(1, len(ordered) + 1) / len(ordered)).abs().max()
    assert distance < 2 / len(ordered) ** 0.5, "Kolmogorov-Smirnov"
    # Between columns, between neighbouring keys, between neighbouring steps and seeds.
    correlations = (drawn.T @ drawn / len(drawn)).fill_diagonal_(0.0)
    assert correlations.abs().max() < 5 / len(drawn) ** 0.5
    others = [drawn.roll(1, 0), normal(keys, 64, 0, 6), normal(keys, 64, 1, 5)]
    for other in others:
        assert (drawn * other).mean().abs() < 4 / drawn.numel() ** 0.5
    assert drawn.isfinite().all()


def test_the_outermost_bits_give_finite_numbers(monkeypatch):
    monkeypatch.setattr(noise, "mix", lambda bits: torch.full_like(bits, -1))
    assert noise.normal(torch.arange(2), 3).isfinite().all()
    monkeypatch.setattr(noise, "mix", torch.zeros_like)
    assert noise.normal(torch.arange(2), 3).isfinite().all()


def test_numbers_depend_on_nothing_but_key_and_words():
    keys = torch.tensor([2**63 - 1, -(2**63), 0, -1, 5])
    drawn = normal(keys, 7, 3, torch.tensor([9]))
    order = torch.tensor([4, 0, 2])
    assert torch.equal(normal(keys[order], 7, 3, 9), drawn[order])
    assert torch.equal(normal(keys, 4, 3, 9), drawn[:, :4])
    assert normal(keys[:0], 7, 3, 9).shape == (0, 7)
