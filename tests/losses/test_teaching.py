"""What all terms with a teacher have in common, and what is particular about single ones."""

import pytest
import torch
from memory_use import kept_bytes, largest_tensor
from torch.nn import functional as F

from counterpoint.losses.components.heads import MLP, UnitMLP
from counterpoint.losses.distillation.augmented_features import AugmentedFeatures
from counterpoint.losses.distillation.feature_regression import FeatureRegression, squared
from counterpoint.losses.distillation.gradient_matching import GradientMatching
from counterpoint.losses.distillation.interactive import Interactive
from counterpoint.losses.distillation.soft_contrastive import SoftContrastive
from counterpoint.losses.distillation.soft_siglip import SoftSigLIP
from counterpoint.losses.distillation.standardized_logits import StandardizedLogits
from counterpoint.losses.distributed.exchange import NoGradGather
from counterpoint.losses.objective import Objective
from counterpoint.losses.wrappers.projected import Projected
from counterpoint.train.optim.param_groups import kind_of, named_parameters

T = "teacher.large"
SCALARS = {"logit_scale": 20.0, "logit_bias": -5.0}


def fusion():
    return UnitMLP([12, 6])


TERMS = {
    "soft_contrastive": lambda **k: SoftContrastive([T], **k),
    "interactive": lambda **k: Interactive(T, **k),
    "gradients": lambda **k: GradientMatching(T, **k),
    "augmented": lambda **k: AugmentedFeatures(T, fusion(), fusion(), **k),
    "soft_siglip": lambda **k: SoftSigLIP([T], **k),
    "standardised": lambda **k: StandardizedLogits([T], **k),
}


def inputs(b=10, width=6, scale=20.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    made = {}
    for prefix in ("", f"{T}."):
        for side in ("image", "text"):
            made[f"{prefix}{side}"] = F.normalize(torch.randn(b, width, generator=g), dim=1)
        made |= {f"{prefix}{k}": torch.tensor([x]) for k, x in SCALARS.items()}
        made[f"{prefix}logit_scale"] = torch.tensor([scale])
    return {name: value.to(dtype).requires_grad_() for name, value in made.items()}


def value_of(term, features, batch=None):
    (value,) = term(features, batch or {}).values()
    return value


@pytest.mark.parametrize("make", TERMS.values(), ids=TERMS)
def test_the_teacher_gets_no_gradient_and_the_student_does(make):
    features = inputs()
    value_of(make(), features).backward()
    touched = {name for name, value in features.items() if value.grad is not None}
    assert {"image", "text"} <= touched <= {"image", "text", *SCALARS}


@pytest.mark.parametrize("make", TERMS.values(), ids=TERMS)
def test_a_stored_teacher_is_as_good_as_one_that_answers(make):
    features, term = inputs(), make()
    want = value_of(term, features)
    stored = {f"{T}.{side}": features.pop(f"{T}.{side}") for side in ("image", "text")}
    torch.testing.assert_close(value_of(term, features, stored), want, rtol=0, atol=0)
    half = {name: value.half() for name, value in stored.items()}
    torch.testing.assert_close(value_of(term, features, half), want, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("make", TERMS.values(), ids=TERMS)
def test_large_scales_and_equal_rows_stay_finite(make):
    for features in (inputs(b=64, scale=300.0), inputs(b=1)):
        value = value_of(make(tile_bytes=4096), features)
        value.backward()
        assert value.isfinite() and features["image"].grad.isfinite().all()
    same = {k: v.detach()[:1].expand(len(v), -1) if v.ndim == 2 else v for k, v in inputs().items()}
    same["image"] = same["image"].clone().requires_grad_()
    value = value_of(make(), same)
    value.backward()
    assert value.isfinite() and same["image"].grad.isfinite().all()


@pytest.mark.parametrize("make", TERMS.values(), ids=TERMS)
def test_memory_grows_with_the_batch_not_its_square(make):
    def at(b):
        features, term = inputs(b), make(tile_bytes=1 << 14)
        return (f(lambda: value_of(term, features)) for f in (largest_tensor, kept_bytes))

    for small, large in zip(at(128), at(256), strict=True):
        assert large <= 2.2 * small


def test_other_widths_are_told_and_heads_fit_them():
    features = inputs()
    for side in ("image", "text"):
        features[f"{T}.{side}"] = F.normalize(torch.randn(10, 9), dim=1)
    for term in (Interactive, GradientMatching):
        with pytest.raises(ValueError, match=r"UnitMLP with widths \[6, 9\]"):
            term(T)(features, {})
        made = term(T, image_head=UnitMLP([6, 9]), text_head=UnitMLP([6, 9]))
        value_of(made, features).backward()
        assert all(p.grad.abs().sum() > 0 for p in made.image_head.parameters())


def test_unit_heads_compare_directions():
    """CLIP-KD's FD: the projected embedding is normalised, and the mean is over B D numbers."""
    x, y = torch.randn(5, 3), F.normalize(torch.randn(5, 4), dim=1)
    head = UnitMLP([3, 4])
    value = value_of(FeatureRegression("image", "t", squared, head), {"image": x, "t": y})
    want = F.mse_loss(F.normalize(head[0](x), dim=1), y)
    torch.testing.assert_close(value, want)
    with torch.autocast("cpu", torch.bfloat16):
        rows = head(x)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    assert head(torch.zeros(0, 3)).shape == (0, 4)


def test_a_student_that_is_the_teacher_has_its_gradients():
    features = inputs(dtype=torch.float64)
    for name in ("image", "text", "logit_scale"):
        features[name] = features[f"{T}.{name}"].detach().requires_grad_()
    value = value_of(GradientMatching(T), features)
    value.backward()
    assert value < 1e-24 and features["image"].grad.abs().max() < 1e-10


def test_matching_a_student_of_the_teachers_logits_is_best():
    """The value of soft targets is least, the targets' entropy, where both sides agree."""
    features = inputs(dtype=torch.float64)
    for make in (TERMS["soft_siglip"], TERMS["standardised"], TERMS["soft_contrastive"]):
        agreed = dict(features)
        for name in ("image", "text", *SCALARS):
            agreed[name] = features[f"{T}.{name}"].detach().requires_grad_()
        value = value_of(make(), agreed)
        value.backward()
        assert value < value_of(make(), features)
        assert agreed["image"].grad.abs().max() < 1e-12


def test_auxiliary_heads_leave_the_embedding_and_other_features_alone():
    seen = {}

    class Spy(SoftContrastive):
        def per_sample(self, features, batch):
            seen.update(features)
            return super().per_sample(features, batch)

    features = inputs() | {"image.raw": torch.randn(10, 6), "text.raw": torch.randn(10, 6)}
    before = dict(features)
    term = Projected(Spy([T], [9.0]), MLP([6, 4]), MLP([6, 8, 4]))
    assert set(term.needs) == {"image.raw", "text.raw", f"{T}.image", f"{T}.text"}
    value = value_of(term, features)
    assert features == before and value == term.per_sample(features, {}).mean()
    torch.testing.assert_close(seen["image"], F.normalize(term.image_head(before["image.raw"])))
    assert seen["text"].shape == (10, 4) and seen[f"{T}.image"] is before[f"{T}.image"]


def test_projections_and_scales_are_trained_saved_and_bounded():
    term = Interactive(T, UnitMLP([6, 6]), UnitMLP([6, 6]))
    objective = Objective(
        {"interactive": term, "augmented": AugmentedFeatures(T, fusion(), fusion())}
    )
    named = named_parameters(torch.nn.Identity(), objective)
    kinds = [kind_of(name, p) for name, p in named.items() if p.requires_grad]
    # Two heads with weight and bias, and a scale, of each term; neither kind decays.
    assert sorted(kinds) == ["heads"] * 8 + ["scalars"] * 2
    assert set(objective.state_dict()) == {name.removeprefix("objective.") for name in named}
    objective(inputs(), {})[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    bounded = [b for m in objective.modules() if hasattr(m, "bounds") for b in m.bounds()]
    assert {id(p) for p, _, _ in bounded} == {
        id(term.scale.log),
        id(objective.terms["augmented"].scale.log),
    }


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"\[1.0\] for each teacher's logit_bias must be one num"):
        SoftSigLIP(["teacher.a", "teacher.b"], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"set objective\.logit_bias_init"):
        missing = {k: v for k, v in inputs().items() if k != "logit_bias"}
        SoftSigLIP([T])(missing, {})
    with pytest.raises(ValueError, match=r"temperature=0 and eps=1e-05 must be above 0"):
        StandardizedLogits([T], temperature=0)
    with pytest.raises(ValueError, match=r"needs the feature .teacher\.large\.logit_bias."):
        missing = {k: v for k, v in inputs().items() if k != f"{T}.logit_bias"}
        SoftSigLIP([T])(missing, {})
    for make in TERMS.values():
        if not isinstance(term := make(exchange=NoGradGather()), AugmentedFeatures):
            with pytest.raises(ValueError, match="use AllGather"):
                term(inputs(), {})
