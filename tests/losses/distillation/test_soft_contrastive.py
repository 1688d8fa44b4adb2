"""Soft contrastive cross-entropy against open_clip's distillation loss; what it refuses."""

import pytest
import torch
from open_clip.loss import DistillClipLoss
from torch.nn import functional as F

from counterpoint.losses.distillation.soft_contrastive import SoftContrastive
from counterpoint.losses.distributed.exchange import NoGradGather

NAMES = ("image", "text", "teacher.large.image", "teacher.large.text")


def inputs(dtype=torch.float32, b=12):
    g = torch.Generator().manual_seed(3)
    features = {name: F.normalize(torch.randn(b, 7, generator=g), dim=-1) for name in NAMES}
    scales = {"logit_scale": 14.0, "teacher.large.logit_scale": 30.0}
    features |= {name: torch.tensor([scale]) for name, scale in scales.items()}
    return {name: value.to(dtype).requires_grad_() for name, value in features.items()}


def test_equals_open_clips_distillation_loss():
    ours, theirs = inputs(torch.float64), inputs(torch.float64)
    value = SoftContrastive(["teacher.large"])(ours, {})["soft_contrastive"]
    arguments = [theirs[n] for n in ("image", "text", "logit_scale", *NAMES[2:])]
    _, wanted = DistillClipLoss()(*arguments, theirs["teacher.large.logit_scale"])
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
    learned = ("image", "text", "logit_scale")
    found = torch.autograd.grad(value, [ours[n] for n in learned])
    for ours_, theirs_ in zip(
        found, torch.autograd.grad(wanted, [theirs[n] for n in learned]), strict=True
    ):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-9, atol=1e-12)


def test_the_teacher_gets_no_gradient():
    features = inputs()
    value = SoftContrastive(["teacher.large"])(features, {})["soft_contrastive"]
    value.backward()
    assert all(features[name].grad is None for name in features if name.startswith("teacher"))


def test_a_large_batch_and_large_scales_stay_finite():
    features = inputs(b=64)
    features["teacher.large.logit_scale"] = torch.tensor([300.0])
    features["logit_scale"] = torch.tensor([300.0], requires_grad=True)
    value = SoftContrastive(["teacher.large"], tile_bytes=4096)(features, {})["soft_contrastive"]
    value.backward()
    assert value.isfinite() and features["image"].grad.isfinite().all()


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"must be a list such as \[teacher.large\]"):
        SoftContrastive("teacher.large")
    with pytest.raises(ValueError, match="one number for each of"):
        SoftContrastive(["teacher.a", "teacher.b"], [1.0])
    with pytest.raises(ValueError, match=r"diagonal=1.5 must lie between 0 and 1"):
        SoftContrastive(["teacher.a"], diagonal=1.5)
    with pytest.raises(ValueError, match="use AllGather"):
        SoftContrastive(["teacher.large"], exchange=NoGradGather())(inputs(), {})
