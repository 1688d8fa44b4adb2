"""Sophia-G: the step of its formula, and what it is refused for."""

import pytest
import torch
from small_run import module, train
from torch import nn

from counterpoint.losses.objective import Objective
from counterpoint.losses.siglip import SigLIP
from counterpoint.train.optim.sophia import (
    EstimateCurvature,
    Sophia,
    SophiaG,
    unclipped_fraction,
    update_curvature,
)


def test_the_step_is_that_of_the_formula():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
    optimizer = Sophia([parameter], betas=(0.9, 0.8), rho=0.05)
    optimizer.param_groups[0].update(lr=0.01, weight_decay=0.3)
    w, m, h = parameter.detach().clone(), torch.zeros(6, 4), torch.zeros(6, 4)
    for step in range(12):
        g = torch.randn(6, 4, dtype=torch.float64)
        parameter.grad = g.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * g
        w = w * (1 - 0.01 * 0.3)
        w = w - 0.01 * m.sign() * torch.minimum(m.abs() / (0.05 * h + 1e-15), torch.tensor(1.0))
        torch.testing.assert_close(parameter.detach(), w, rtol=1e-9, atol=1e-12)
        if step % 3 == 2:
            parameter.grad = 4 * g
            update_curvature(optimizer, [parameter], 0.8)
            h = 0.8 * h + 0.2 * (4 * g) ** 2
            share = (m.abs() < 0.05 * h).double().mean()
            assert unclipped_fraction(optimizer, [parameter], 0.05).item() == pytest.approx(
                share.item()
            )
    assert 0 < share < 1


def test_what_has_no_softmax_is_refused():
    objective = Objective({"pairs": SigLIP()}, logit_bias_init=-10.0)
    with pytest.raises(ValueError, match="no softmax to draw labels from"):
        SophiaG().build(nn.Linear(2, 2), objective)
    with pytest.raises(ValueError, match=r"optim\.rho is 0"):
        SophiaG(rho=0)


def test_a_trainer_of_ones_own_gets_the_callback_once():
    made = module(4)
    made.optim = SophiaG(every=2)
    trainer = train(made, 1, "auto")
    assert [type(callback) for callback in trainer.callbacks].count(EstimateCurvature) == 1
    (optimizer,) = trainer.optimizers
    # Estimated after the second and the fourth step, and logged.
    assert sum(state["hessian"].sum() for state in optimizer.state.values()) > 0
    assert 0 < trainer.logged_metrics["unclipped"] <= 1
    again = module(1)
    again.optim = made.optim
    trainer = train(again, 1, "auto", made.optim.callbacks())
    assert [type(callback) for callback in trainer.callbacks].count(EstimateCurvature) == 1
