"""DDP as training uses it: gradients are the buckets, and only statistics that change are sent."""

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from small_run import Recorded, module, train
from torch import nn

from counterpoint.train.strategies.choose import choose_strategy
from counterpoint.train.strategies.ddp import Ddp, learns_statistics


def options_of(rank, world_size):
    wrappers = []

    class Seen(Recorded):
        def on_train_batch_end(self, *args):
            wrappers.append(self.trainer.strategy.model)

    train(module(1, kind=Seen), world_size, "ddp")
    (wrapper,) = wrappers
    return wrapper.gradient_as_bucket_view, wrapper.will_sync_module_buffers()


def test_gradients_are_buckets_and_constant_buffers_stay(gloo):
    assert gloo(2, options_of) == [(True, False)] * 2


def test_buffers_are_sent_where_statistics_are_learned():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert learns_statistics(model)
    assert not learns_statistics(model.eval())
    assert not learns_statistics(nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("name", "num_processes", "options"),
    [
        ("ddp", 1, {}),
        ("auto", 2, {}),
        ("ddp_find_unused_parameters_false", 2, {}),
        ("ddp_find_unused_parameters_true", 2, {"find_unused_parameters": True}),
    ],
)
def test_every_name_of_it_is_ours(name, num_processes, options):
    made = choose_strategy(name, num_processes)
    assert type(made) is Ddp and isinstance(made, DDPStrategy)
    assert made._ddp_kwargs == {"gradient_as_bucket_view": True} | options


def gradients_of(rank, world_size, name):
    made = module(1)
    train(made, world_size, name)
    return made.pieces[0]


def test_gradients_added_up_in_bf16_are_rounded_and_equal_on_all_ranks(gloo):
    exact = gloo(2, gradients_of, "ddp")[0]
    first, second = gloo(2, gradients_of, "ddp_bf16")
    largest = max(float(g.abs().max()) for g in exact.values())
    for name, wanted in exact.items():
        assert torch.equal(first[name], second[name])
        assert first[name].dtype == torch.float32
        # Bf16 has eight bits; gradients of two ranks may cancel.
        torch.testing.assert_close(first[name], wanted, rtol=0.02, atol=0.01 * largest)
    assert any(not torch.equal(first[name], wanted) for name, wanted in exact.items())
    rounded = [torch.equal(g, g.bfloat16().float()) for g in first.values()]
    assert all(rounded)
