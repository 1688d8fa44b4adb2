"""Towers name their layers, and all that works layer by layer asks them: a tower is one file."""

import pytest
import torch
from bert_tower import BertTower
from small_run import B, Recorded, module, train
from tiny_tower import tiny_vit
from torch._dynamo.utils import counters
from torch.distributed.fsdp import FSDPModule

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.shared import SharedImageTower, SharedTextTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.models.weight_inheritance import inherit
from counterpoint.train.callbacks.compile import Compile
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.optim.param_groups import Groups, Tower, layer_rates
from counterpoint.train.phases import Phase, Phases

STEPS = 2


@pytest.mark.parametrize(
    ("tower", "pattern", "numbers"),
    [
        (tiny_vit(3), "trunk.blocks.{}", ["0", "1", "2"]),
        (ClipTextTower(16, 2, 2, 6, 50), "trunk.encoder.layers.{}", ["0", "1"]),
        (SharedImageTower(16, 8, 16, 2, 2), "blocks.{}", ["0", "1"]),
        (SharedTextTower(16, 6, 50), "", []),
        (BertTower(depth=3), "encoder.layer.{}", ["0", "1", "2"]),
        (TimmTower("resnet10t", 32), "trunk.layer{}.0", ["1", "2", "3", "4"]),
        (
            TimmTower("convnext_atto", 32, model_args={"depths": (1, 1, 2, 1)}),
            "trunk.stages.{}",
            ["0.blocks.0", "1.blocks.0", "2.blocks.0", "2.blocks.1", "3.blocks.0"],
        ),
    ],
    ids=["timm", "clip", "shared", "borrowed", "bert", "resnet", "convnext"],
)
def test_layers_are_named_from_the_embedding_to_the_top(tower, pattern, numbers):
    modules = dict(tower.named_modules())
    # By substring: releases of transformers put `text_model` before `encoder`.
    names = [name.replace("text_model.", "") for name, m in modules.items() if m in tower.layers()]
    assert names == [pattern.format(number) for number in numbers]
    in_order = [next(n for n, m in modules.items() if m is layer) for layer in tower.layers()]
    assert [name.replace("text_model.", "") for name in in_order] == names


def bert_model(width=16, depth=2, heads=2, seed=0):
    torch.manual_seed(seed)
    return TwoTower(tiny_vit(2), BertTower(width, depth, heads), 8)


def test_rates_fall_from_layer_to_layer():
    model = bert_model(depth=3)
    rates = layer_rates(model, Groups(text=Tower(1.0, None, 0.5)))
    named = {name: rates[parameter] for name, parameter in model.text.named_parameters()}
    # Bao et al. (2021): lr * decay^(number of layers + 1 - depth), embeddings at depth 0.
    want = {"word_embeddings": 1 / 16, "position_embeddings": 1 / 16, "pooler": 1.0}
    want |= {"encoder.layer.0": 1 / 8, "encoder.layer.1": 1 / 4, "encoder.layer.2": 1 / 2}
    for name, rate in named.items():
        assert rate == next(value for start, value in want.items() if name.startswith(start)), name
    assert len(rates) == len(named)


def test_between_layers_the_rate_is_the_upper_ones():
    image = TimmTower("convnext_atto", 32, model_args={"depths": (1, 1, 2, 1)})
    model = TwoTower(image, BertTower(), 8)
    rates = layer_rates(model, Groups(image=Tower(1.0, None, 0.5)))
    named = {name: rates[parameter] for name, parameter in image.trunk.named_parameters()}
    assert named["stem.0.weight"] == 1 / 64
    assert named["stages.0.blocks.0.mlp.fc1.weight"] == 1 / 32
    assert named["stages.2.downsample.1.weight"] == 1 / 8
    assert named["stages.2.blocks.0.mlp.fc1.weight"] == 1 / 8
    assert named["stages.2.blocks.1.mlp.fc1.weight"] == 1 / 4
    assert named["head.norm.weight"] == 1


def test_a_tower_that_borrows_its_layers_learns_at_one_rate():
    model = TwoTower(SharedImageTower(16, 8, 16, 2, 2), SharedTextTower(16, 6, 50), 8)
    rates = layer_rates(model, Groups(image=Tower(1.0, None, 0.5)))
    assert not rates.keys() & set(model.text.parameters())
    assert rates[model.image.patches.weight] == 1 / 8


def test_a_layer_decay_without_layers_is_refused():
    model = TwoTower(SharedImageTower(16, 8, 16, 2, 2), SharedTextTower(16, 6, 50), 8)
    words = r"optim\.groups\.text\.layer_decay is 0\.5, and a SharedTextTower has no layers"
    with pytest.raises(ValueError, match=words):
        layer_rates(model, Groups(Tower(1.0, None, 0.5), Tower(1.0, None, 0.5)))


def test_a_smaller_student_inherits_every_second_layer():
    student, teacher = bert_model(), bert_model(width=32, depth=5, heads=4, seed=1)
    assert "2 of 5 layers in text.encoder.layer" in inherit(student, teacher)
    for mine, theirs in ((0, 0), (1, 2)):
        own, larger = student.text.encoder.layer[mine], teacher.text.encoder.layer[theirs]
        assert torch.equal(own.mlp[0].weight, larger.mlp[0].weight[:64, :16])
        assert torch.equal(own.k_proj.weight, larger.k_proj.weight[:16, :16])


def test_a_frozen_layer_stays_as_it_is():
    torch.manual_seed(0)
    optim = AdamW(groups=Groups(frozen=["text.encoder.layer.0.*", "text.word_embeddings.weight"]))
    phases = Phases({"train": Phase(STEPS * B, B, 1e-2, schedule="constant")})
    made = ContrastiveModule(bert_model(), Objective({"infonce": InfoNCE()}), phases, optim)
    before = {name: value.clone() for name, value in made.model.text.state_dict().items()}
    train(made, 1, "auto")
    after = made.model.text.state_dict()
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    frozen = {name for name in before if name.startswith(("encoder.layer.0.", "word_"))}
    # Keys' biases have no gradient but rounding, which Adam may well amplify.
    assert frozen <= same <= frozen | {"encoder.layer.1.k_proj.bias"}


def record(rank, world_size, name, callbacks=()):
    """Losses and norms of a run with a BERT tower, and whether its layers are sharded."""
    torch._dynamo.reset()
    made = module(STEPS, kind=Recorded)
    torch.manual_seed(5)
    made.model.text = BertTower()
    train(made, world_size, name, callbacks)
    are_sharded = [isinstance(layer, FSDPModule) for layer in made.model.text.layers()]
    return made.losses, made.norms, are_sharded


def test_compiled_layers_compute_the_same():
    counters.clear()
    want, got = record(0, 1, "auto"), record(0, 1, "auto", [Compile("aot_eager")])
    assert got[0] == pytest.approx(want[0], rel=1e-6)
    assert got[1] == pytest.approx(want[1], rel=1e-5)
    # One graph for the two layers of each tower.
    assert counters["stats"]["unique_graphs"] == 2


def test_fsdp2_shards_the_layers_and_computes_the_same(gloo):
    want = record(0, 1, "auto")
    results = gloo(2, record, "fsdp2")
    for _, norms, are_sharded in results:
        assert norms == pytest.approx(want[1], rel=1e-5)
        assert are_sharded == [True, True]
    means = torch.tensor([losses for losses, _, _ in results]).mean(0).tolist()
    assert means == pytest.approx(want[0], rel=1e-6)
