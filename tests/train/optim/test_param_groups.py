"""Rates and decays by tower and layer."""

import pytest
import torch
from timm.optim._param_groups import param_groups_layer_decay
from tiny_tower import tiny_vit
from torch import nn

from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.optim.param_groups import (
    Groups,
    Tower,
    named_parameters,
    parameter_groups,
    tower_of,
)


@pytest.fixture(scope="module")
def model():
    image = tiny_vit(3)
    text = ClipTextTower(width=16, depth=2, num_heads=2, context_length=6, vocab_size=50)
    return TwoTower(image, text, 8)


def settings(model, groups, decay=0.2, scalar_rate=5.0):
    """(rate, decay) by name, each parameter once."""
    names = {id(p): name for name, p in model.named_parameters()}
    made = parameter_groups(model, None, decay, scalar_rate, groups)
    flat = [(names[id(p)], g["rate"], g["weight_decay"]) for g in made for p in g["params"]]
    found = {name: (rate, decay) for name, rate, decay in flat}
    assert len(flat) == len(found) == len(names)
    return found


def test_towers_differ_in_rate_and_decay(model):
    found = settings(model, Groups(image=Tower(0.1, 0.05), text=Tower(2.0)))
    for name, (rate, decay) in found.items():
        tower = tower_of(name)
        assert rate == {"image": 0.1, "text": 2.0, "rest": 5.0}[tower], name
        if dict(model.named_parameters())[name].ndim >= 2:
            assert decay == {"image": 0.05, "text": 0.2}[tower], name
        else:
            assert decay == 0
    assert found["image_projection.weight"] == (0.1, 0.05)
    assert found["logit_scale"] == (5.0, 0.0)


def test_rates_fall_layer_by_layer(model):
    found = settings(model, Groups(image=Tower(1.0, None, 0.5), text=Tower(4.0, None, 0.1)))
    rates = {name: rate for name, (rate, _) in found.items()}
    assert rates["image_projection.weight"] == rates["image.trunk.norm.weight"] == 1.0
    assert [rates[f"image.trunk.blocks.{i}.mlp.fc1.bias"] for i in range(3)] == [
        1 / 8,
        1 / 4,
        1 / 2,
    ]
    stem = ("cls_token", "pos_embed", "patch_embed.proj.weight")
    assert {rates[f"image.trunk.{name}"] for name in stem} == {1 / 16}
    assert rates["text.trunk.embeddings.token_embedding.weight"] == pytest.approx(4e-3)
    assert rates["text.trunk.encoder.layers.1.mlp.fc2.weight"] == pytest.approx(0.4)
    assert rates["text.trunk.final_layer_norm.bias"] == 4.0
    # timm's own groups of the same trunk; it counts the last norm to the last block.
    theirs = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(model.image.trunk, layer_decay=0.5)
        for p in group["params"]
    }
    for name, parameter in model.image.trunk.named_parameters():
        if name not in ("norm.weight", "norm.bias"):
            ratio = rates[f"image.trunk.{name}"] / rates["image.trunk.blocks.0.norm1.bias"]
            assert (
                ratio == theirs[id(parameter)] / theirs[id(model.image.trunk.blocks[0].norm1.bias)]
            )


def test_matrices_named_do_not_decay(model):
    found = settings(model, Groups(no_decay=["*.pos_embed", "*embedding.weight"]))
    spared = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and found[name][1] == 0
    }
    assert spared == {
        "image.trunk.pos_embed",
        "text.trunk.embeddings.token_embedding.weight",
        "text.trunk.embeddings.position_embedding.weight",
    }
    with pytest.raises(ValueError, match="nothing_like_it"):
        settings(model, Groups(no_decay=["nothing_like_it"]))


def test_heads_of_the_objective_have_a_group_of_their_own(model):
    objective = nn.Module()
    objective.head, objective.scale = nn.Linear(8, 8), nn.Parameter(torch.ones(1))
    optimizer = AdamW(scalar_rate=3.0).build(model, objective)
    *_, scalars, heads = optimizer.param_groups
    assert {id(p) for p in heads["params"]} == {id(p) for p in objective.head.parameters()}
    assert (heads["weight_decay"], heads["rate"]) == (0.0, 1.0)
    assert {id(p) for p in scalars["params"]} == {id(model.logit_scale), id(objective.scale)}
    assert "objective.head.weight" in named_parameters(model, objective)


def test_groups_without_exceptions_are_those_of_old_checkpoints(model):
    """Checkpoints hold the optimiser's state by position: kinds in order, parameters in order."""
    everything = list(model.parameters())
    want = [
        [p for p in everything if p.ndim >= 2],
        [p for p in everything if p.ndim < 2 and p.numel() > 1],
        [p for p in everything if p.ndim < 2 and p.numel() == 1],
    ]
    made = AdamW(weight_decay=0.3, scalar_rate=7.0).build(model, nn.Module()).param_groups
    assert [[id(p) for p in g["params"]] for g in made] == [[id(p) for p in g] for g in want]
    assert [(g["weight_decay"], g["rate"]) for g in made] == [(0.3, 1.0), (0.0, 1.0), (0.0, 7.0)]
