"""Views to be compared: blur and solarization against torchvision, probabilities, refusals."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as V

from counterpoint.data.images.decode import Pixels
from counterpoint.data.images.transforms import TrainTransform
from counterpoint.data.images.view_transform import ViewTransform, blurred

WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}


def image_of(seed=0, size=40):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=g)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_torchvisions(sigma):
    image, side = image_of(), 2 * int(np.ceil(3 * sigma)) + 1
    want = V.gaussian_blur(image, [side, side], [sigma, sigma])
    assert (blurred(image, sigma).int() - want.int()).abs().max() <= 1
    if sigma < 0.2:
        assert torch.equal(want, image)
    assert blurred(image_of(size=3), 2.0).shape == (3, 3, 3)


def test_solarization_equals_torchvisions_and_comes_after_the_blur():
    image, rng = image_of(), np.random.default_rng(0)
    only = ViewTransform(jitter=0, solarize=1, **WHOLE)(image, 40, rng)
    assert torch.equal(only, V.solarize(image, 128)) and not torch.equal(only, image)
    both = ViewTransform(jitter=0, blur=1, blur_sigma=(1.5, 1.5), solarize=1, **WHOLE)
    want = V.solarize(V.gaussian_blur(image, [11, 11], [1.5, 1.5]), 128)
    near = (both(image, 40, rng).int() - want.int()).abs() <= 1
    assert near.float().mean() > 0.99  # levels next to 128 may fall to either side


def test_each_operation_has_its_probability_and_leaves_the_others_draws():
    view = ViewTransform(jitter=0.8, blur=0.5, solarize=0.2, grayscale=0.2, **COLOURS)
    plain = TrainTransform(grayscale=0.2, **COLOURS)
    drawn, theirs = [], []
    for seed in range(2000):
        drawn.append(view.draw(50, 60, np.random.default_rng(seed)))
        theirs.append(plain.draw(50, 60, np.random.default_rng(seed)))
    drawn, theirs = np.stack(drawn), np.stack(theirs)
    column = {name: drawn[:, i] for i, name in enumerate(view.columns)}
    jittered = column["brightness"] != 1
    assert jittered.mean() == pytest.approx(0.8, abs=0.03)
    for name in ("contrast", "saturation"):
        assert ((column[name] != 1) == jittered).all()
    assert ((column["hue"] != 0) == jittered).all()
    assert (drawn[jittered, :18] == theirs[jittered]).all()
    same = [i for i, name in enumerate(plain.columns) if name not in COLOURS]
    assert (drawn[:, same] == theirs[:, same]).all()
    sigma = column["blur"]
    assert (sigma > 0).mean() == pytest.approx(0.5, abs=0.04)
    assert sigma[sigma > 0].min() >= 0.1 and 1.9 < sigma.max() <= 2.0
    assert column["solarize"].mean() == pytest.approx(0.2, abs=0.03)
    assert abs(np.corrcoef(sigma > 0, column["solarize"])[0, 1]) < 0.06


def test_what_was_drawn_makes_the_same_view_again():
    image, view = image_of(), ViewTransform(blur=1, solarize=0.5, flip=0.5, erase=0.5, **COLOURS)
    for seed in range(4):
        params = view.draw(40, 40, np.random.default_rng(seed))
        made = view.apply(Pixels(image), 24, params)
        assert torch.equal(made, view(image, 24, np.random.default_rng(seed)))
        # Without both it is what TrainTransform makes.
        params[-2:] = 0
        plain = TrainTransform(erase=0.5).apply(Pixels(image), 24, params[:-2])
        assert torch.equal(view.apply(Pixels(image), 24, params), plain)
        assert not torch.equal(made, plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jitter": 1.5}, "jitter=1.5 must lie between 0 and 1"),
        ({"blur": -0.1}, "blur=-0.1"),
        ({"solarize": 2}, "solarize=2"),
        ({"blur_sigma": (2.0, 1.0)}, "rising, above 0"),
        ({"hue": 0.7}, "half a turn"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        ViewTransform(**arguments)
