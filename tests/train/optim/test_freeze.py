"""Frozen parts stay as they are, whatever train() is called on."""

import copy
import pickle

import pytest
import torch
from torch import nn

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.optim.freeze import freeze
from counterpoint.train.phases import Phase, Phases


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.text = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.logit_scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return (self.image(x) * self.text(x)).sum() * self.logit_scale


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()


@pytest.mark.parametrize(
    "copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_frozen_tower_survives_training(copied):
    model = Model()
    freeze(model, ["image.*"])
    model = copied(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.eval()
    model.train()
    assert model.training and model.text.training
    assert not any(module.training for module in model.image.modules())
    optimizer = AdamW().build(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    for _ in range(3):
        step(model, optimizer, torch.randn(8, 4))
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"text.0.weight", "text.0.bias", "logit_scale"}
    assert all(p.grad is None for p in model.image.parameters())


def test_a_part_of_a_module_is_frozen_without_the_rest():
    model = Model()
    freeze(model, ["image.0.*", "logit_scale"])
    model.train()
    assert not model.image[0].training and model.image[1].training and model.image[2].training
    assert model.image[1].weight.requires_grad and not model.logit_scale.requires_grad


def test_a_copy_freezes_itself_not_the_original():
    model = Model()
    freeze(model, ["image.*"])
    other = copy.deepcopy(model)
    assert other.image.train() is other.image


def test_a_run_with_a_batch_norm_is_not_cut_into_parts():
    model = TwoTower(TimmTower("resnet10t", 32), ClipTextTower(8, 1, 1, 6, 50), 8, chunks=2)
    phases = Phases({"train": Phase(8, 4, 1e-3)})
    made = ContrastiveModule(model, Objective({"infonce": InfoNCE()}), phases, AdamW(), seed=0)
    with pytest.raises(ValueError, match=r"model\.chunks is 2, and 'image\.trunk\."):
        made.configure_model()


def test_a_pattern_that_names_nothing_is_refused():
    with pytest.raises(ValueError, match="picture"):
        freeze(Model(), ["picture.*"])
