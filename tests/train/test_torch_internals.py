"""Torch's private parts do what they are used for; an upgrade of torch opens this file."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from counterpoint.train import torch_internals


def test_a_recomputation_knows_that_it_is_in_a_backward_pass():
    seen = []

    def layer(x):
        seen.append(torch_internals.is_in_backward())
        return x.sin()

    checkpoint(layer, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
    assert seen == [False, True]
    assert not torch_internals.is_in_backward()


def test_compiling_follows_the_options():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def function(x, factor):
        return x * factor

    settings = torch._dynamo.config
    names = ("recompile_limit", "optimize_ddp", "specialize_float")
    # Not by pytest's monkeypatch, which deletes settings in the end.
    with settings.patch({name: getattr(settings, name) for name in names}):
        torch_internals.set_compile_options(2)
        compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=True)
        # Sizes that are equal by chance make no graph of their own.
        for shape in ((3, 3), (3, 5), (4, 4)):
            assert torch.equal(compiled(torch.ones(shape), 2.0), torch.full(shape, 2.0))
        assert len(graphs) == 1
        compiled(torch.ones(3, 3), 3.0)  # a number is a part of the graph
        assert len(graphs) == 2
        with pytest.raises(Exception) as error:
            compiled(torch.ones(3, 3), 4.0)
        assert torch_internals.is_compiler_error(error.value)
        assert not torch_internals.is_compiler_error(ValueError("of ours"))
    torch._dynamo.reset()


def test_evaluation_mode_for_good_follows_copies():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    torch_internals.stay_in_eval_mode(model[0])
    for module in (model, copy.deepcopy(model)):
        assert [part.training for part in module.train()] == [False, True]


def test_own_tensors_move_and_those_inside_stay():
    model = nn.Sequential(nn.Linear(2, 2))
    model.weight = nn.Parameter(torch.ones(2))
    model.register_buffer("count", torch.ones(1))
    torch_internals.move_own_tensors(model, torch.device("meta"))
    assert model.weight.is_meta and model.count.is_meta and not model[0].weight.is_meta


def gradients(rank, world_size):
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    own = model[0].own = nn.Parameter(torch.full((2,), float(rank)))
    torch_internals.hide_from_ddp(model, ["0.own"])
    wrapped = nn.parallel.DistributedDataParallel(model)
    (wrapped(torch.full((1, 2), rank + 1.0)).sum() + (own * rank).sum()).backward()
    return own.tolist(), own.grad.tolist(), model[0].weight.grad[0].tolist()


def test_ddp_leaves_hidden_parameters_alone(gloo):
    results = gloo(2, gradients)
    assert [own for own, _, _ in results] == [[0.0, 0.0], [1.0, 1.0]]
    assert [gradient for _, gradient, _ in results] == [[0.0, 0.0], [1.0, 1.0]]
    assert [weight for _, _, weight in results] == [[1.5, 1.5]] * 2


def test_operations_on_many_tensors():
    tensors = [torch.tensor([3.0, -4.0]), torch.tensor([[6.0]], dtype=torch.float32)]
    norms = torch_internals.norms_of(tensors, torch.float64)
    assert [norm.item() for norm in norms] == [5.0, 6.0]
    assert {norm.dtype for norm in norms} == {torch.float64}
    torch_internals.scale_all(tensors, torch.tensor(0.5))
    torch_internals.clamp_all(tensors, 1.75)
    assert [tensor.flatten().tolist() for tensor in tensors] == [[1.5, -1.75], [1.75]]


def trace(rank, world_size):
    return torch_internals.nccl_trace()


def test_there_is_no_trace_of_nccl_without_it(gloo):
    assert torch_internals.nccl_trace() is None
    assert gloo(2, trace) == [None, None]


def test_the_flight_recorder_can_be_read_as_what_torchfrtrace_reads():
    """Nothing was recorded here; torch has the function, and its answer is a pickle of a dict."""
    content = pickle.loads(torch._C._distributed_c10d._dump_nccl_trace())
    assert "version" in content


def test_ranks_that_do_not_exist():
    with torch_internals.fake_process_group(512):
        assert (dist.get_rank(), dist.get_world_size()) == (0, 512)
        gathered = torch.empty(1024)
        dist.all_gather_into_tensor(gathered, torch.ones(2))  # nobody is waited for
    assert not dist.is_initialized()
