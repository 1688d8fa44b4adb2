"""A step that overflows is kept, and computed again elsewhere to the same place."""

import math

import pytest
import torch
from small_run import batches, module, train
from torch import nn

from counterpoint.train.callbacks.capsule import Capsules
from counterpoint.train.checkpointing.checkpoint import load
from counterpoint.train.module import ContrastiveModule
from counterpoint.train.replay import Finiteness, replay

STEPS, BAD, WORD = 5, 3, 49  # the third step has a word that no other one has


def planted(**options):
    """A model in which one word's embedding is so large that its layer norm overflows."""
    made = module(STEPS, dropout=0.1, **options)
    word_embeddings(made).data[WORD] = 2e38
    return made


def word_embeddings(made):
    (weight,) = (
        part.weight
        for part in made.model.text.modules()
        if isinstance(part, nn.Embedding) and part.num_embeddings == 50
    )
    return weight


def data(num=STEPS):
    found = batches(STEPS)
    for batch in found:
        batch["text"].clamp_(max=WORD - 1)
    found[BAD - 1]["text"][-1, 0] = WORD
    return found[:num]


class Watched(ContrastiveModule):
    """Keeps the features of the bad step."""

    def features(self, batch, step, on_feature=None):
        found = super().features(batch, step, on_feature)
        if step == BAD - 1:
            self.seen = {name: value.detach().clone() for name, value in found.items()}
        return found


def captured(rank, world_size, folder, strategy, most=1):
    made = planted(kind=Watched)
    train(made, world_size, strategy, [Capsules(folder, most)], data=data())
    return made.seen


def weights_before(made):
    train(made, 1, "auto", data=data(BAD - 1))
    return made.state_dict()


def check(folder, world_size):
    (path,) = folder.iterdir()
    assert path.name == f"step-{BAD:08d}.pt"
    capsule = load(path)
    assert capsule["ranks"] == list(range(world_size)) and math.isnan(capsule["grad_norm"])
    made = planted(kind=Watched)
    lines, was_seen = replay(made, capsule)
    assert was_seen
    (forward,) = (line for line in lines if line.startswith("the output of"))
    assert forward.startswith("the output of model.text.")
    assert "layers.0.layer_norm1 (LayerNorm) is the first that is not finite" in forward
    assert "e+38 in size" in forward
    assert any(line.startswith("the loss is nan") for line in lines)
    assert any("parameters have gradients that are not finite" in line for line in lines)
    return capsule, made


def test_one_process(tmp_path):
    seen = captured(0, 1, tmp_path, "auto")
    capsule, made = check(tmp_path, 1)
    for name, value in weights_before(planted()).items():
        assert torch.equal(capsule["state_dict"][name], value), name
    # The last replayed rows are those of the run, dropout included.
    assert seen.keys() == made.seen.keys()
    for name, value in seen.items():
        torch.testing.assert_close(made.seen[name], value, rtol=0, atol=0, equal_nan=True)


SHARDED = [pytest.param(name, marks=pytest.mark.soak) for name in ("fsdp2", "zero2", "zero3")]


@pytest.mark.parametrize("strategy", ["ddp", *SHARDED])
def test_two_processes(gloo, tmp_path, strategy):
    _, second = gloo(2, captured, tmp_path, strategy)
    capsule, made = check(tmp_path, 2)
    assert [len(part["text"]) for part in capsule["parts"]] == [8, 8]
    assert math.isnan(capsule["losses"][1])
    torch.testing.assert_close(made.seen["image"], second["image"])


def test_there_are_no_more_than_wanted_and_finite_steps_make_none(tmp_path):
    made = planted()
    everywhere = data()
    for batch in everywhere[1:]:
        batch["text"][0, 0] = WORD
    train(made, 1, "auto", [Capsules(tmp_path, 2)], data=everywhere)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002.pt", "step-00000003.pt"]
    more = Capsules(tmp_path, 2)
    train(planted(), 1, "auto", [more], data=everywhere)
    assert len(list(tmp_path.iterdir())) == 2
    good = [batch for i, batch in enumerate(data()) if i != BAD - 1]
    train(module(4), 1, "auto", [Capsules(tmp_path / "none", 2)], data=good)
    assert not (tmp_path / "none").exists()


def test_a_large_batch_keeps_the_rows_that_are_not_finite(monkeypatch):
    monkeypatch.setattr("counterpoint.train.callbacks.capsule.LIMIT", 100)
    capsules = Capsules(None, 1)
    batch = {"text": torch.zeros(12, dtype=torch.int64), "text_length.host": [1]}

    class Control:
        def gather(self, value):
            return [0.5, math.nan, 0.25, math.inf, value]

    capsules._control = Control()
    assert capsules._choose(batch, 1.0) == (
        [1],
        pytest.approx([0.5, math.nan, 0.25, math.inf, 1.0], nan_ok=True),
    )
    monkeypatch.setattr("counterpoint.train.callbacks.capsule.LIMIT", 300)
    assert capsules._choose(batch, 1.0)[0] == [0, 1, 3]


def test_the_place_between_modules_and_gradients():
    class Middle(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.second(self.first(x) / 0.0)

    whole = nn.ModuleDict({"middle": Middle()})
    seen = Finiteness(whole)
    whole["middle"](torch.ones(1, 2)).sum().backward()
    assert seen.forward is not None
    assert seen.forward.startswith("the input of middle.second (Linear) is not finite")

    whole = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    seen = Finiteness(whole)
    hidden = whole["first"](torch.zeros(1, 2))
    # The root of a square: finite, with a slope that is not.
    whole["second"]((hidden - hidden.detach()).square().sqrt()).sum().backward()
    assert seen.forward is None and seen.backward is not None
    assert "of the output of first is the first" in seen.backward
    assert "finite one before is that of the output of second" in seen.backward
