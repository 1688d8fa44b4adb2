"""Image reducers: how often each patch is kept, what a choice depends on, and what it must not."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from counterpoint.models.reducers.base import ImageReducer, Reduction
from counterpoint.models.reducers.keyed_random import draw, stream
from counterpoint.models.reducers.patches import BlockPatches, GridPatches, RandomPatches, Resize

MASK = (1 << 64) - 1
KEYS = torch.arange(20000) * 7919 - 10**9
STEP = Reduction(seed=1, step=5)


def kept(reducer, grid=(4, 4), keys=KEYS, view="image", reduction=STEP):
    found, hidden, num_hidden = reducer.keep(grid, keys, view, reduction)
    assert hidden is None and num_hidden == 0
    assert found.dtype == torch.int64
    assert (found.diff(dim=1) > 0).all() and found.min() >= 0 and found.max() < grid[0] * grid[1]
    return found


def frequencies(found, num_patches):
    return torch.bincount(found.flatten(), minlength=num_patches) / len(found)


def splitmix(state):
    """One output of the published generator, in Python's own integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_draws_are_those_of_splitmix():
    keys = torch.tensor([0, 1, -1, 2**62, -(2**63)])
    got = draw(stream(3, 4, "image"), keys, 3)
    for key, row in zip(keys.tolist(), got.tolist(), strict=True):
        start = ((key - 1) * 0x9E3779B97F4A7C15 + stream(3, 4, "image")) & MASK
        first = splitmix(start)
        want = [splitmix(first + i * 0x9E3779B97F4A7C15 & MASK) & MASK >> 1 for i in range(3)]
        assert row == want
    # Known first output of splitmix64 seeded with 0.
    assert splitmix(0) == 0xE220A8397B1DCDAF


def test_every_subset_of_patches_is_alike_likely():
    found = kept(RandomPatches(0.5), grid=(2, 2))
    counts = Counter(map(tuple, found.tolist()))
    assert set(counts) == set(combinations(range(4), 2))
    # Chi-squared with 5 degrees of freedom: above 20.5 once in a thousand.
    expected = len(KEYS) / 6
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 20.5


@pytest.mark.parametrize(
    ("drop", "patches", "want"),
    [
        (0.5, (14, 14), 98),
        (0.75, (14, 14), 49),
        (0.5, (7, 7), 24),
        (0.0, (3, 3), 9),
        (0.99, (2, 2), 1),
    ],
)
def test_number_of_random_patches(drop, patches, want):
    found = kept(RandomPatches(drop), patches, KEYS[:2000])
    assert found.shape[1] == want
    often = frequencies(found, patches[0] * patches[1])
    share = want / (patches[0] * patches[1])
    assert (often - share).abs().max() < 5 * (share * (1 - share) / 2000) ** 0.5 + 1e-6


def test_one_patch_of_each_window():
    found = kept(GridPatches(2), (4, 6))
    rows, columns = found // 6, found % 6
    windows = (rows // 2 * 3 + columns // 2).sort(dim=1).values
    assert (windows == torch.arange(6)).all()
    assert (frequencies(found, 24) - 1 / 4).abs().max() < 0.02
    # Choices in two windows have nothing to do with each other.
    corner = [(rows[:, i] % 2 * 2 + columns[:, i] % 2) for i in (0, 5)]
    pairs = torch.bincount(corner[0] * 4 + corner[1], minlength=16)
    assert pairs.min() > 0
    uneven = frequencies(kept(GridPatches(2), (3, 3)), 9)
    want = torch.tensor([0.25, 0.25, 0.5, 0.25, 0.25, 0.5, 0.5, 0.5, 1.0])
    assert (uneven - want).abs().max() < 0.02


def test_a_block_is_contiguous_and_everywhere():
    found = kept(BlockPatches(0.75), (4, 6))
    assert found.shape[1] == 2 * 3
    places = Counter()
    for row in found.unique(dim=0).tolist():
        top, left = divmod(row[0], 6)
        assert row == [(top + r) * 6 + left + c for r in range(2) for c in range(3)]
        places[top, left] += 1
    assert len(places) == 3 * 4
    first = torch.bincount(found[:, 0])
    often = first[first > 0] / len(found)
    assert len(often) == 12 and (often - 1 / 12).abs().max() < 0.015


@pytest.mark.parametrize("reducer", [RandomPatches(0.6), GridPatches(), BlockPatches(0.5)])
def test_a_choice_depends_on_seed_step_view_and_key_alone(reducer):
    whole = kept(reducer, keys=KEYS[:100])
    order = torch.from_numpy(np.random.default_rng(0).permutation(100))
    assert torch.equal(kept(reducer, keys=KEYS[:100][order]), whole[order])
    parts = [kept(reducer, keys=part) for part in KEYS[:100].split(7)]
    assert torch.equal(torch.cat(parts), whole)
    for other in (
        kept(reducer, keys=KEYS[:100], view="image.strong_1"),
        kept(reducer, keys=KEYS[:100], reduction=Reduction(seed=2, step=5)),
        kept(reducer, keys=KEYS[:100], reduction=Reduction(seed=1, step=6)),
    ):
        assert (other != whole).any(dim=1).float().mean() > 0.5


def test_the_choices_of_two_steps_are_independent():
    now, then = (kept(RandomPatches(0.5), reduction=Reduction(1, step)) for step in (7, 8))
    both = (now[:, :, None] == then[:, None, :]).any(dim=2).sum(dim=1).float()
    assert abs(both.mean().item() - 4) < 0.03  # 8 of 16, twice


def pictures():
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=g)


def test_resizing_is_pillows_antialiased_bicubic():
    image = pictures()
    small = Resize(16).pixels(image)
    assert small.dtype == torch.uint8 and small.shape == (2, 3, 16, 16)
    for row, got in zip(image, small, strict=True):
        want = Image.fromarray(row.permute(1, 2, 0).numpy()).resize(
            (16, 16), Image.Resampling.BICUBIC
        )
        difference = got.permute(1, 2, 0).int() - torch.from_numpy(np.array(want)).int()
        assert difference.abs().max() <= 1
    assert Resize(24).pixels(image) is image
    with pytest.raises(ValueError, match="size=32 and images are 24 x 24"):
        Resize(32).pixels(image)


@pytest.mark.gpu
def test_a_gpu_keeps_the_same_and_resizes_nearly_the_same():
    for reducer in (RandomPatches(0.6), GridPatches(), BlockPatches(0.5)):
        assert torch.equal(kept(reducer, keys=KEYS.cuda()).cpu(), kept(reducer))
    smooth = F.avg_pool2d(pictures().float(), 9, 1, 4).to(torch.uint8)
    there = Resize(16).pixels(smooth.cuda()).cpu()
    assert (there.int() - Resize(16).pixels(smooth).int()).abs().max() <= 1


def test_reducers_can_be_chained_and_the_base_keeps_everything():
    assert ImageReducer().keep((4, 4), KEYS, "image", STEP) is None
    assert Resize(8).keep((2, 2), KEYS, "image", STEP) is None
    chained = Resize(8, then=RandomPatches(0.5))
    assert torch.equal(kept(chained, (2, 2)), kept(RandomPatches(0.5), (2, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomPatches(1.0), "RandomPatches has drop=1.0"),
        (lambda: BlockPatches(-0.1), "BlockPatches has drop=-0.1"),
        (lambda: GridPatches(0), "window=0"),
        (lambda: Resize(0), "size=0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
