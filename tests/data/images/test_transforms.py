"""Pixels against torchvision and Pillow; randomness; ranges."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as V
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode

from counterpoint.data.images import transforms as module
from counterpoint.data.images.decode import EncodedImage, Pixels
from counterpoint.data.images.pixels import hue_rotation, map_colours, move
from counterpoint.data.images.transforms import EvalTransform, TrainTransform, crop_box

BICUBIC = InterpolationMode.BICUBIC
WHOLE: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}


def with_whole(name: str, value: float) -> dict[str, Any]:
    return {**WHOLE, name: value}


def rng(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def smooth(height, width, seed=0):
    """Waves plus some noise, channels last in memory as decoded images are."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(generator.uniform(0.05, 0.3) * (x + y * c)) for c in (0.5, 1, 2)]
    pixels = 127 + 100 * np.stack(waves, -1) + generator.normal(0, 5, (height, width, 3))
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)


def difference(a, b):
    return (a.float() - b.float()).abs()


def psnr(a, b):
    return float(10 * torch.log10(255**2 / difference(a, b).square().mean()))


@pytest.mark.parametrize(("height", "width"), [(72, 72), (48, 100), (301, 200), (64, 64), (30, 17)])
def test_eval_equals_torchvision_and_pillow(height, width):
    image, size = smooth(height, width), 64
    result = EvalTransform()(image, size)
    reference = V.center_crop(V.resize(image, [size], BICUBIC, antialias=True), [size])
    assert torch.equal(result, reference)
    scale = size / min(height, width)
    shape = (int(width * scale), int(height * scale))
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(shape, Image.Resampling.BICUBIC)
    pillow = V.center_crop(torch.from_numpy(np.array(pillow)).permute(2, 0, 1), [size])
    assert psnr(result, pillow) >= 55

    squashed = EvalTransform("squash")(image, size)
    assert torch.equal(squashed, V.resize(image, [size, size], BICUBIC, antialias=True))


def test_eval_crop_and_padding():
    image = smooth(40, 80)
    cut = EvalTransform(crop=0.5)(image, 20)
    assert torch.equal(cut, V.center_crop(V.resize(image, [40], BICUBIC), [20]))
    padded = EvalTransform("longest")(image, 40)
    assert torch.equal(padded[:, 10:30], V.resize(image, [20, 40], BICUBIC))
    assert (padded[:, :10] == 255).all() and (padded[:, 30:] == 255).all()
    bilinear = EvalTransform(interpolation="bilinear")(image, 20)
    reference = V.resize(image, [20], V.InterpolationMode.BILINEAR, antialias=True)
    assert torch.equal(bilinear, V.center_crop(reference, [20]))
    assert not torch.equal(bilinear, EvalTransform()(image, 20))


def test_train_crop_equals_torchvisions_resized_crop(monkeypatch):
    image = smooth(60, 90)
    boxes: list[tuple[int, int, int, int]] = []

    def recording(*args):
        boxes.append(crop_box(*args))
        return boxes[-1]

    monkeypatch.setattr(module, "crop_box", recording)
    for seed in range(20):
        result = TrainTransform(scale=(0.2, 1.0))(image, 48, rng(seed))
        assert torch.equal(
            result, V.resized_crop(image, *boxes[-1], size=[48, 48], interpolation=BICUBIC)
        )
    assert len(set(boxes)) == 20


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.floats(0.01, 1.0),
    st.floats(0.2, 1.0),
    st.integers(0, 10**6),
)
def test_crop_boxes_lie_inside(height, width, low, ratio, seed):
    draws = np.random.default_rng(seed).random((10, 4))
    top, left, rows, columns = crop_box(height, width, (low, 1.0), (ratio, 1 / ratio), draws)
    assert rows > 0 and columns > 0
    assert 0 <= top <= height - rows and 0 <= left <= width - columns


def test_crop_boxes_have_the_wanted_areas_and_shapes():
    draws = np.random.default_rng(0).random((2000, 10, 4))
    boxes = np.array([crop_box(500, 500, (0.2, 0.6), (0.5, 2.0), d) for d in draws])
    area = boxes[:, 2] * boxes[:, 3] / 500**2
    shape = boxes[:, 3] / boxes[:, 2]
    assert 0.195 < area.min() < 0.21 and 0.59 < area.max() < 0.605
    assert 0.49 < shape.min() < 0.52 and 1.93 < shape.max() < 2.03
    assert abs(area.mean() - 0.4) < 0.01
    assert abs(np.log(shape).mean()) < 0.03


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(0, 10**6))
def test_any_image_becomes_a_square(height, width, size, seed):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    full = TrainTransform((0.01, 1), (0.3, 3), 0.5, 180, 1, 1, 1, 1, 0.5, 0.5, 1)
    for transform in (full, EvalTransform(), EvalTransform("longest"), EvalTransform("squash")):
        result = transform(image, size, rng(seed))
        assert result.shape == (3, size, size) and result.dtype == torch.uint8


def test_the_image_that_came_in_is_left_alone():
    image = smooth(32, 32)
    before = image.clone()
    TrainTransform(**WHOLE, flip=1, rotate=30, brightness=0.5, erase=1)(image, 32, rng())
    TrainTransform(**WHOLE, erase=1)(image, 32, rng())
    assert torch.equal(image, before)


def test_randomness_comes_from_the_generator_alone():
    image = smooth(50, 50)
    transform = TrainTransform(flip=0.5, rotate=20, translate=0.1, brightness=0.3, hue=0.1)
    torch.manual_seed(0)
    first = [transform(image, 32, rng(seed)) for seed in range(5)]
    torch.manual_seed(1)
    again = [transform(image, 32, rng(seed)) for seed in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(first[0], other) for other in first[1:])


def test_switching_one_operation_on_leaves_the_crop_and_the_flip():
    image = smooth(50, 50)
    plain = TrainTransform(flip=0.5)
    brighter = TrainTransform(flip=0.5, brightness=0.02, erase=1.0)
    for seed in range(10):
        a, b = plain(image, 32, rng(seed)), brighter(image, 32, rng(seed))
        assert float(difference(a, b).median()) <= 4


@pytest.mark.parametrize("degrees", [0.0, 17.0, 90.0, -135.0])
@pytest.mark.parametrize("shift", [(0, 0), (5, -3)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_moving_equals_torchvisions_affine(degrees, shift, mirrored):
    size = 48
    image = smooth(size, size)
    result = move(image.float(), degrees, (shift[0] / size, shift[1] / size), 255, mirrored)
    source = V.horizontal_flip(image) if mirrored else image
    # Its angle is clockwise, its shift in pixels.
    reference = V.affine(
        255 - source.float(), -degrees, list(shift), 1.0, [0.0, 0.0], InterpolationMode.BILINEAR
    )
    # Its result has a soft mask at the border, where both mix in the fill.
    assert float(difference(result, 255 - reference)[:, 8:-8, 8:-8].max()) < 0.1
    if degrees == 0 and shift == (0, 0):
        assert float(difference(result, source).max()) < 0.01
    elif shift == (5, -3) and degrees == 0:
        assert torch.allclose(result[:, :-3, 5:], source.float()[:, 3:, :-5], atol=0.01)
        assert torch.allclose(result[:, -3:], torch.tensor(255.0), atol=0.01)
        assert torch.allclose(result[:, :, :5], torch.tensor(255.0), atol=0.01)


def fixed(value) -> Any:
    """A generator whose every draw is one number."""
    return SimpleNamespace(random=lambda shape: np.full(shape, value))


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    ("name", "adjust"),
    [
        ("brightness", V.adjust_brightness),
        ("contrast", V.adjust_contrast),
        ("saturation", V.adjust_saturation),
    ],
)
def test_colour_factors_equal_torchvisions(name, adjust, draw):
    image = smooth(32, 32)
    result = TrainTransform(**with_whole(name, 0.4))(image, 32, fixed(draw))
    reference = adjust(image, 1 + 0.4 * (2 * draw - 1))
    assert float(difference(result, reference).max()) <= 2


def test_grey_and_hue():
    image = smooth(32, 32)
    grey = TrainTransform(**WHOLE, grayscale=1.0)(image, 32, rng())
    assert float(difference(grey, V.rgb_to_grayscale(image, 3)).max()) <= 1

    luma = np.array([0.299, 0.587, 0.114])
    turn = hue_rotation(2 * np.pi / 3)
    np.testing.assert_allclose(luma @ turn, luma, atol=1e-12)
    np.testing.assert_allclose(turn @ np.ones(3), 1, atol=1e-3)
    np.testing.assert_allclose(turn @ turn @ turn, np.eye(3), atol=1e-9)
    # It turns the same way as the hue of HSV: thirds of a turn lead from one primary to the next.
    for channel in range(3):
        primary = torch.zeros(3, 1, 1)
        primary[channel] = 100
        for third in (1, -1):
            turned = map_colours(primary, hue_rotation(third * 2 * np.pi / 3), 0.0)
            assert turned.argmax() == V.adjust_hue(primary.to(torch.uint8), third / 3).argmax()


def test_colours_combine_in_the_order_named():
    image = smooth(32, 32) // 4 + 90  # no value reaches the ends, so nothing is clamped midway
    transform = TrainTransform(**WHOLE, brightness=0.2, contrast=0.2, saturation=0.2)
    result = transform(image, 32, fixed(0.9))
    reference = image.float() / 255
    for adjust in (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation):
        reference = adjust(reference, 1.16)
    assert float(difference(result, reference * 255).max()) <= 1


@pytest.mark.parametrize("name", ["flip", "grayscale", "erase"])
def test_probabilities(name):
    image = smooth(16, 16)
    plain = TrainTransform(**WHOLE)(image, 16, rng())
    sure, half = (TrainTransform(**with_whole(name, p)) for p in (1.0, 0.5))
    assert not torch.equal(sure(image, 16, rng()), plain)
    kept = sum(torch.equal(half(image, 16, rng(seed)), plain) for seed in range(200))
    assert 70 <= kept <= 130


def test_erased_rectangles():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    transform = TrainTransform(**WHOLE, erase=1.0)
    shares = []
    for seed in range(200):
        mask = (transform(image, 64, rng(seed)) == 255).all(0)
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns
        shares.append(float(mask.float().mean()))
    assert 0.01 < min(shares) < 0.04 and 0.18 < max(shares) < 0.22


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\)"),
        ({"scale": (0.5, 1.5)}, "at most 1"),
        ({"ratio": (2.0, 1.0)}, "rising"),
        ({"flip": 2}, "flip=2 must lie between 0 and 1"),
        ({"hue": 0.7}, "half a turn"),
        ({"rotate": -5}, "between 0 and 180"),
        ({"fill": 300}, "fill=300"),
        ({"decode": "fast"}, "decode='fast' must be 'exact' or 'dct'"),
    ],
)
def test_train_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**arguments)


def test_eval_refusals():
    with pytest.raises(ValueError, match="resize='fit'"):
        EvalTransform(resize="fit")
    with pytest.raises(ValueError, match="crop=0"):
        EvalTransform(crop=0)


def jpeg(image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def photograph(seed, height=300, width=420):
    """A JPEG of blobs of all sizes, whose spectrum falls off about as that of photographs does."""
    noise = np.fft.rfft2(np.random.default_rng(seed).normal(size=(3, height, width)))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    waves = np.fft.irfft2(noise / (np.hypot(y, x) + 0.01) ** 1.6, (height, width))
    pixels = 128 + 45 * waves / waves.std((1, 2), keepdims=True)
    return jpeg(torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)))


def pillow_view(data, box, size):
    """What a trainer on Pillow makes of a crop (top, left, rows, columns)."""
    top, left, rows, columns = box
    crop = Image.open(io.BytesIO(data)).crop((left, top, left + columns, top + rows))
    return torch.from_numpy(np.array(crop.resize((size, size), Image.Resampling.BICUBIC))).permute(
        2, 0, 1
    )


@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.3, 0.6)])
def test_exact_jpegs_equal_pillows_resized_crop(scale):
    transform = TrainTransform(scale=scale)
    for seed in range(6):
        data = photograph(seed)
        params = transform.draw(300, 420, rng(seed))
        view = transform.apply(EncodedImage.open(data), 96, params)
        reference = pillow_view(data, params[:4].astype(int), 96)
        assert psnr(view, reference) >= 55
        assert float(difference(view, reference).max()) <= 1


@pytest.mark.parametrize(("size", "factor"), [(60, 4), (110, 2), (160, 1)])
def test_scaled_jpegs_are_close_to_pillows_resized_crop(size, factor):
    pytest.importorskip("simplejpeg")
    transform = TrainTransform(scale=(0.9, 1.0), ratio=(1.0, 1.4), decode="dct")
    for seed in range(6):
        image = EncodedImage.open(photograph(seed))
        params = transform.draw(300, 420, rng(seed))
        assert transform.factor(image, size, params) == factor
        _, box = transform.view(image, size, params)
        whole = tuple(factor * edge for edge in box)
        drawn = params[:4].astype(int).tolist()
        for start, end in ((0, 2), (1, 3)):
            assert drawn[start] <= whole[start] < drawn[start] + factor
            last, limit = whole[start] + whole[end], drawn[start] + drawn[end]
            assert limit - factor < last <= limit
        view = transform.apply(image, size, params)
        assert psnr(view, pillow_view(photograph(seed), whole, size)) >= 40


def test_only_training_with_dct_leaves_the_pixels_of_the_whole_image():
    data, params = photograph(0), TrainTransform().draw(300, 420, rng())
    exact = TrainTransform().apply(EncodedImage.open(data), 60, params)
    scaled = TrainTransform(decode="dct").apply(EncodedImage.open(data), 60, params)
    assert not torch.equal(exact, scaled)
    png = Pixels(EncodedImage.open(data).pixels())
    assert torch.equal(TrainTransform(decode="dct").apply(png, 60, params), exact)
    for transform in (EvalTransform(), EvalTransform("longest"), EvalTransform("squash")):
        image = EncodedImage.open(data)
        assert transform.factor(image, 60, transform.draw(300, 420)) == 1
        assert torch.equal(transform(image, 60), transform(png, 60))


def test_draws_have_names_and_can_be_edited():
    image = smooth(40, 60)
    transform = TrainTransform(flip=0.5, rotate=20, translate=0.1, erase=0.5, brightness=0.3)
    params = transform.draw(40, 60, rng())
    named = dict(zip(transform.columns, params.tolist(), strict=True))
    assert abs(named["angle"]) <= 20 and 0.7 <= named["brightness"] <= 1.3
    still = {"top": 3, "left": 5, "rows": 32, "columns": 32, "flip": 1, "erase": 0}
    still |= {"angle": 0, "right": 0, "down": 0, "brightness": 1}
    edited = np.array([{**named, **still}[name] for name in transform.columns])
    result = transform.apply(Pixels(image), 32, edited)
    assert float(difference(result, image[:, 3:35, 5:37].flip(-1)).max()) <= 1
