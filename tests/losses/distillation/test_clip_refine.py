"""CLIP-Refine's random vectors: shared by a pair, new at each step, the same after a resume."""

import torch

from counterpoint.losses.distillation.clip_refine import HyCD, RaFA


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    names = ("image.raw", "text.raw", "teacher.start.image.raw", "teacher.start.text.raw")
    features = {name: torch.randn(6, 5, generator=g, dtype=torch.float64) for name in names}
    return features, {"key": torch.arange(6) * 11}


def test_each_step_draws_anew_and_a_resume_goes_on():
    features, batch = inputs()
    term, resumed = RaFA(), RaFA()
    values = []
    for step in range(3):
        values.append(term(features, batch)["rafa"])
        # What is logged of single samples is what was optimised.
        assert torch.equal(term.per_sample(features, batch).mean(), values[-1])
        if step == 1:
            resumed.load_state_dict(term.state_dict())
    assert len({float(value) for value in values}) == 3
    assert torch.equal(resumed(features, batch)["rafa"], values[-1])
    assert not torch.equal(RaFA(seed=1)(features, batch)["rafa"], values[0])


def test_both_features_of_a_pair_are_drawn_to_the_same_vector():
    features, batch = inputs()
    pair = {name: features[name].requires_grad_() for name in ("image.raw", "text.raw")}
    image, text = torch.autograd.grad(RaFA()(pair, batch)["rafa"], list(pair.values()))
    # d/dx of (x - z)^2 / (n d) leaves z when x is taken off.
    drawn = [x - g * x.numel() / 2 for x, g in zip(pair.values(), (image, text), strict=True)]
    torch.testing.assert_close(drawn[0], drawn[1])
    assert drawn[0].std() > 0.5


def test_hycd_is_least_where_student_and_mixture_agree():
    """A student that is its teacher and sees only its own pair (alpha 0) has no gradient."""
    features, batch = inputs()
    same = features | {f"teacher.start.{n}": features[n] for n in ("image.raw", "text.raw")}
    student = [same[name].clone().requires_grad_() for name in ("image.raw", "text.raw")]
    value = HyCD(["teacher.start"], alpha=0.0)(
        same | {"image.raw": student[0], "text.raw": student[1]}, batch
    )["hycd"]
    for gradient in torch.autograd.grad(value, student):
        assert gradient.abs().max() < 1e-12
