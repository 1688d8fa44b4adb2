"""Parameter groups: who gets weight decay, and who learns at which rate."""

import pytest
import torch
from torch import nn

from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.optim.param_groups import parameter_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_every_trainable_parameter_is_in_one_group():
    model = Model()
    groups = parameter_groups(model, None, 0.3, scalar_rate=20.0)
    matrices, vectors, scalars = groups
    assert [id(p) for p in matrices["params"]] == [id(model.linear.weight)]
    assert len(vectors["params"]) == 3
    assert [id(p) for p in scalars["params"]] == [id(model.logit_scale)]
    assert [g["weight_decay"] for g in groups] == [0.3, 0.0, 0.0]
    assert [g["rate"] for g in groups] == [1.0, 1.0, 20.0]


def test_heads_of_terms_have_a_group_without_decay():
    head = Model()
    optimizer = AdamW(weight_decay=0.3, scalar_rate=20.0).build(Model(), head)
    *_, scalars, heads = optimizer.param_groups
    assert {id(p) for p in heads["params"]} == {
        id(p) for n, p in head.named_parameters() if n not in ("logit_scale", "frozen")
    }
    assert (heads["weight_decay"], heads["rate"]) == (0.0, 1.0)
    assert len(scalars["params"]) == 2 and id(head.logit_scale) == id(scalars["params"][1])


def test_decay_shrinks_matrices_only():
    model = Model()
    optimizer = AdamW(weight_decay=0.5).build(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.1
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"linear.weight"}
    torch.testing.assert_close(model.linear.weight, before["linear.weight"] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(("before", "now", "device"), [(False, True, "meta"), (True, False, "cpu")])
def test_steps_are_counted_where_the_resumed_optimiser_counts_them(before, now, device):
    """fp16's scaler forbids fused steps; a fused one counts on the parameters' device."""
    first = Model()
    for parameter in first.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = AdamW(betas=(0.8, 0.9)).build(first, fused=before)
    optimizer.step()
    resumed = AdamW(betas=(0.7, 0.9)).build(Model().to("meta"), fused=now)
    resumed.load_state_dict(optimizer.state_dict())
    assert {str(s["step"].device) for s in resumed.state.values()} == {device}
    assert {(g["fused"], g["betas"]) for g in resumed.param_groups} == {(now, (0.7, 0.9))}
