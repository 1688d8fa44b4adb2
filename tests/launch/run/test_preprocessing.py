"""A preprocessing other than the one that weights were trained with is named, with its cure."""

import json
import pkgutil
import re

import pytest
import torch

from counterpoint.data.images.masked_text import MaskedText
from counterpoint.data.images.transforms import EvalTransform
from counterpoint.launch.run.start.pixels import eval_transform_of, preprocessing_mismatch
from counterpoint.models.interop.base import Pixels

CLIP = Pixels(32)
SIGLIP = Pixels(48, interpolation="bilinear", resize="squash")


@pytest.mark.parametrize(
    ("pixels", "transform", "differs"),
    [
        (CLIP, EvalTransform(), False),
        (CLIP, EvalTransform(fill=7), False),  # nothing is filled
        (CLIP, MaskedText(), False),  # where there is no text
        (CLIP, EvalTransform("squash"), True),
        (CLIP, EvalTransform(crop=0.9), True),
        (CLIP, EvalTransform(interpolation="bilinear"), True),
        (SIGLIP, EvalTransform("squash", interpolation="bilinear"), False),
        (SIGLIP, EvalTransform(), True),
        (Pixels(32, resize="longest"), EvalTransform("longest", fill=0), False),
        (Pixels(32, resize="longest"), EvalTransform("longest", fill=255), True),
    ],
)
def test_what_differs_is_seen_in_the_images(pixels, transform, differs):
    text = preprocessing_mismatch(pixels, transform)
    assert bool(text) == differs, text
    if differs:
        assert re.search(r"differs by up to [1-9]\d* of 255 grey levels", text)
        value = json.loads(re.search(r"\{.*\}", text)[0])
        cure = pkgutil.resolve_name(value["class_path"])(**value["init_args"])
        assert preprocessing_mismatch(pixels, cure) == ""
        image = torch.randint(0, 256, (3, 41, 97), dtype=torch.uint8)
        assert torch.equal(cure(image, 32), eval_transform_of(pixels)(image, 32))
