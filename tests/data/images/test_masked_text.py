"""Text in boxes is covered by the mean colour around it, before the image is resized."""

import numpy as np
import pytest
import torch

from counterpoint.data.images.masked_text import MAX_BOXES, MaskedText
from counterpoint.data.images.transforms import EvalTransform


def parameters(*boxes):
    params = np.zeros((MAX_BOXES, 4))
    params[: len(boxes)] = np.reshape(boxes, (-1, 4))
    return params.reshape(-1)


def image(height, width):
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=draw)


def covered_by_hand(pixels, boxes, margin):
    """Pixel by pixel, in plain Python."""
    _, height, width = pixels.shape
    inside = {
        (y, x)
        for left, top, right, bottom in boxes
        for y in range(top, bottom)
        for x in range(left, right)
    }
    result = pixels.clone()
    for left, top, right, bottom in boxes:
        ring = [
            (y, x)
            for y in range(max(0, top - margin), min(height, bottom + margin))
            for x in range(max(0, left - margin), min(width, right + margin))
        ]
        free = [at for at in ring if at not in inside] or ring
        for channel in range(3):
            mean = sum(int(pixels[channel, y, x]) for y, x in free) / len(free)
            result[channel, top:bottom, left:right] = int(np.rint(mean))
    return result


@pytest.mark.parametrize(
    "boxes", [[(4, 2, 10, 8)], [(0, 0, 20, 5), (3, 4, 9, 16)], [(0, 0, 20, 16)]]
)
def test_boxes_are_filled_with_the_mean_around_them(boxes):
    pixels = image(16, 20)
    fractions = [np.array(box) / [20, 16, 20, 16] for box in boxes]
    from counterpoint.data.images.decode import Pixels

    made = MaskedText(margin=2, resize="squash").apply(Pixels(pixels), 16, parameters(*fractions))
    expected = EvalTransform(resize="squash")(covered_by_hand(pixels, boxes, 2), 16)
    assert torch.equal(made, expected)
    assert not torch.equal(made, EvalTransform(resize="squash")(pixels, 16))


def test_without_boxes_it_is_the_view_of_evaluation():
    pixels = image(30, 40)
    assert torch.equal(MaskedText()(pixels, 24), EvalTransform()(pixels, 24))


def test_a_margin_of_none_is_refused():
    with pytest.raises(ValueError, match="margin=0: give 1 pixel or more"):
        MaskedText(margin=0)


def test_boxes_of_whole_pixels_cover_these_alone():
    """Stored fractions are float32: their rounding must not add a row or a column."""
    from counterpoint.data.images.decode import Pixels

    pixels = image(49, 49)
    view, plain = MaskedText(margin=2, resize="squash"), EvalTransform(resize="squash")
    for first in range(40):
        box = (first, 5, first + 7, 5 + first // 2 + 1)
        fractions = (np.array(box) / 49).astype(np.float32)
        made = view.apply(Pixels(pixels), 49, parameters(fractions))
        assert torch.equal(made, plain(covered_by_hand(pixels, [box], 2), 49)), box
