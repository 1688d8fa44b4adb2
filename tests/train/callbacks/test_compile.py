"""Compiled towers: one graph a kind of layer, equal results, the same names, no silent fallback."""

import copy

import pytest
import torch
from small_run import module, train
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters

from counterpoint.models.image import ImageTower
from counterpoint.models.reducers.patches import RandomPatches
from counterpoint.models.text.base import TextTower
from counterpoint.train.callbacks.compile import Compile, compile_layers

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
STEPS = 3


class Graphs:
    """The backend of every day, which counts."""

    def __init__(self):
        self.shapes = []
        self.calls = 0

    def __call__(self, graph, inputs):
        self.shapes.append([tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)])
        compiled = aot_eager(graph, inputs)

        def run(*args):
            self.calls += 1
            return compiled(*args)

        return run


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()


def record(rank, world_size, name, chunks, compiled, dropout=0.0):
    """Losses, norms and pieces of gradients of a short run; graphs and their calls."""
    torch._dynamo.reset()
    counters.clear()
    made = module(STEPS, dropout=dropout, reducer=RandomPatches(0.5), chunks=chunks)
    names, graphs = list(made.state_dict()), Graphs()
    train(made, world_size, name, [Compile(graphs)] if compiled else [])
    assert not counters["graph_break"]
    assert list(made.state_dict()) == names
    return made.losses, made.norms, made.pieces, len(graphs.shapes), graphs.calls


def assert_same(got, want, num_graphs):
    assert got[0] == pytest.approx(want[0], rel=1e-6)
    assert got[1] == pytest.approx(want[1], rel=1e-5)
    for mine, theirs in zip(got[2], want[2], strict=True):
        assert mine.keys() == theirs.keys()
        largest = max(piece.abs().max().item() for piece in theirs.values() if piece.numel())
        for key, piece in theirs.items():
            torch.testing.assert_close(mine[key], piece, rtol=1e-5, atol=1e-5 * largest, msg=key)
    assert got[3] == num_graphs


def test_one_graph_a_kind_of_layer_holds_all_lengths_reducers_and_chunks():
    chunks, layers, parts = 2, 2, 4
    want = record(0, 1, "auto", chunks, False)
    got = record(0, 1, "auto", chunks, True)
    assert_same(got, want, 2)
    # Each layer of each part, in the forward pass and again in the backward pass.
    assert got[4] == STEPS * layers * (chunks + parts) * 2


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x).tanh()


class Broken(Layer):
    def forward(self, x):
        return super().forward(x) if x.sum().item() else x


def tower(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(kind(), kind()), nn.Linear(4, 4))


def test_a_copy_runs_on_its_own_weights_and_names_stay():
    model, graphs = tower(Layer), Graphs()
    names = list(model.state_dict())
    compile_layers(model[0], graphs)
    twin, x = copy.deepcopy(model), torch.randn(3, 4)
    assert list(twin.state_dict()) == names
    nn.init.zeros_(twin[1].weight)
    want = twin[1].bias.expand(3, -1)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    torch.testing.assert_close(twin(x), want)
    for parameter in twin[0].parameters():
        nn.init.zeros_(parameter)
    nn.init.eye_(twin[1].weight)
    torch.testing.assert_close(twin(x), want)
    torch.testing.assert_close(model(x), model[1](torch.tanh(model[0][1].linear(model[0][0](x)))))
    with torch.no_grad():
        model(x)
    model(torch.randn(5, 4))
    # Without gradients, and with them of the weights, then of the input too; both models, all
    # layers and sizes share them.
    assert len(graphs.shapes) == 3 and graphs.calls == 11


def test_what_is_not_one_graph_runs_as_it_is(capsys):
    model, x = tower(Broken), torch.randn(3, 4)
    want = model(x)
    compile_layers(model[0], Graphs())
    for _ in range(2):
        assert torch.equal(model(x), want)
    assert capsys.readouterr().out.count("Broken is not compiled, which costs time") == 1


def test_a_machine_without_a_compiler_trains(capsys):
    def backend(graph, inputs):
        raise FileNotFoundError("no C compiler")

    model, x = tower(Layer), torch.randn(3, 4)
    want = model(x)
    compile_layers(model[0], backend)
    got = model(x)
    got.sum().backward()
    assert torch.equal(got, want)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "Layer is not compiled" in said and "no C compiler" in said


def test_an_error_of_the_layer_is_its_own():
    model = tower(Layer)
    compile_layers(model[0], Graphs())
    with pytest.raises(Exception, match="shapes"):
        model(torch.randn(3, 5))


def test_too_many_graphs_are_said(capsys):
    model = tower(Layer)
    compile_layers(model[0], Graphs())
    # Not by pytest's monkeypatch, which deletes the setting in the end.
    with torch._dynamo.config.patch(recompile_limit=2):
        model(torch.randn(3, 4))
        with torch.no_grad():
            model(torch.randn(3, 4))
    assert "Layer is not compiled" in capsys.readouterr().out


def test_auto_compiles_nothing_on_a_processor(capsys):
    made = module(1)
    train(made, 1, "auto", [Compile("auto")])
    assert "compiled" not in capsys.readouterr().out
    assert not any("forward" in vars(layer) for layer in made.model.layers())


def test_towers_without_layers_are_refused():
    made = module(1)
    made.model.image, made.model.text = ImageTower(), TextTower()
    with pytest.raises(ValueError, match="these towers name none"):
        Compile(Graphs()).setup(None, made, "fit")


@pytest.mark.soak
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy(gloo, name, chunks):
    want = gloo(2, record, name, chunks, False)
    got = gloo(2, record, name, chunks, True)
    # FSDP2 hands a layer a view of its input, but not when a part is recomputed: a graph for each.
    graphs = 4 if name == "fsdp2" and chunks > 1 else 2
    for mine, theirs in zip(got, want, strict=True):
        assert_same(mine, theirs, graphs)
        again = 1 if chunks == 1 else 2
        assert mine[4] == STEPS * 2 * (chunks + 4) * again


@pytest.mark.soak
def test_dropout_is_the_same_in_forward_and_recomputation():
    want = record(0, 1, "auto", 3, False, 0.2)
    # Stochastic depth spares the first layer.
    assert_same(record(0, 1, "auto", 3, True, 0.2), want, 3)
