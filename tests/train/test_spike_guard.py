"""The spike guard: what it skips, when it rewinds, what it remembers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from counterpoint.train.distributed import mean_over_ranks
from counterpoint.train.spike_guard import Action, SpikeGuard, Spikes, check_turns, update_rms
from counterpoint.train.strategies.sharded_tensors import LocalTensors

NAN, INF = math.nan, math.inf


def decide(guard, loss, norm):
    return guard.decide(torch.tensor(float(loss)), torch.tensor(float(norm))).action()


def good_steps(guard, steps, seed=0, level=3.0):
    rng = np.random.default_rng(seed)
    return [
        decide(guard, level + 0.1 * rng.standard_normal(), level * math.exp(0.2 * rng.normal()))
        for _ in range(steps)
    ]


def test_steps_that_are_not_finite_are_skipped_and_counted():
    guard = SpikeGuard(max_nonfinite=2)
    norms = [1.0, NAN, INF, 1.0, NAN, NAN]
    actions = [decide(guard, 1.0, norm) for norm in norms]
    assert actions == [Action.SKIP if not math.isfinite(n) else Action.GO_ON for n in norms]
    assert guard.report()["guard/nonfinite"] == 4
    guard.check()
    decide(guard, 1.0, NAN)
    with pytest.raises(ValueError, match="last 3 steps"):
        guard.check()
    decide(guard, 1.0, 1.0)
    guard.check()


def test_ordinary_steps_go_on():
    assert set(good_steps(SpikeGuard(spikes=Spikes()), 600)) == {Action.GO_ON}
    guard = SpikeGuard(spikes=Spikes())
    losses = np.linspace(9.0, 1.0, 500)  # falling fast is no spike
    assert {decide(guard, loss, 3.0) for loss in losses} == {Action.GO_ON}


@pytest.mark.parametrize(("loss", "norm"), [(6.0, 3.0), (3.0, 60.0), (NAN, 3.0), (3.0, INF)])
def test_spikes_are_skipped_and_leave_no_trace(loss, norm):
    guard, calm = SpikeGuard(spikes=Spikes()), SpikeGuard(spikes=Spikes())
    for each in (guard, calm):
        good_steps(each, 50)
    assert [decide(guard, loss, norm) for _ in range(5)] == [Action.SKIP] * 5
    for each in (guard, calm):
        good_steps(each, 20, seed=1)
    counters = {"spikes", "nonfinite"}
    for key, value in guard.state_dict().items():
        assert key in counters or torch.equal(value, calm.state_dict()[key]), key
    assert sum(guard.report().values()) == 5


def test_nothing_is_a_spike_before_the_warmup():
    guard = SpikeGuard(spikes=Spikes(warmup=20))
    assert set(good_steps(guard, 19)) == {Action.GO_ON}
    assert decide(guard, 30.0, 300.0) == Action.GO_ON
    assert decide(guard, 300.0, 3000.0) == Action.SKIP


def test_the_threshold_is_median_and_deviation():
    spikes = Spikes(window=16, warmup=16, z=4.0, floor=1e-3)
    rng = np.random.default_rng(4)
    losses = rng.normal(2.0, 0.3, 40).astype(np.float32)
    guard = SpikeGuard(spikes=spikes)
    for loss in losses:
        assert decide(guard, loss, 1.0) == Action.GO_ON
    last = np.sort(losses[-16:].astype(np.float64))
    middle = last[7]
    limit = middle + 4.0 * 1.4826 * np.sort(np.abs(last - middle))[7]
    state = {key: value.clone() for key, value in guard.state_dict().items()}
    assert decide(guard, limit * 1.0001, 1.0) == Action.SKIP
    guard.load_state_dict(state)
    assert decide(guard, limit * 0.9999, 1.0) == Action.GO_ON


def test_spikes_in_a_row_ask_for_a_rewind_and_then_a_new_level_is_accepted():
    guard = SpikeGuard(spikes=Spikes(patience=4))
    good_steps(guard, 60)
    actions = [decide(guard, 9.0, 9.0) for _ in range(3)]
    actions.append(decide(guard, NAN, NAN))  # neither ends the row nor counts
    actions += [decide(guard, 9.0, 9.0) for _ in range(40)]
    assert actions[:5] == [Action.SKIP] * 4 + [Action.REWIND]
    assert set(actions[5:]) == {Action.GO_ON}
    assert guard.report()["guard/new_levels"] == 1
    assert guard.decide(torch.tensor(NAN), torch.tensor(1.0)).skip


def test_a_resumed_guard_decides_alike(tmp_path):
    def trace(guard, steps):
        return [decide(guard, *step) for step in steps]

    rng = np.random.default_rng(6)
    steps = [(rng.normal(3, 0.1) * (4 if i % 9 == 0 else 1), 1.0) for i in range(150)]
    whole = trace(SpikeGuard(spikes=Spikes()), steps)
    assert {Action.GO_ON, Action.SKIP} <= set(whole)
    first, second = SpikeGuard(spikes=Spikes()), SpikeGuard(spikes=Spikes())
    trace(first, steps[:77])
    torch.save(first.state_dict(), tmp_path / "state")
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert trace(second, steps[77:]) == whole[77:]
    # A guard told only now what a spike is keeps the totals.
    third = SpikeGuard()
    third.state["nonfinite"].fill_(3)
    second.load_state_dict(third.state_dict())
    assert second.state["nonfinite"] == 3 and second.state["good"] == 0


def test_reset_forgets_the_level_only():
    guard = SpikeGuard(spikes=Spikes())
    good_steps(guard, 60)
    decide(guard, 1.0, NAN)
    guard.reset()
    assert set(good_steps(guard, 60, level=30.0)) == {Action.GO_ON}
    assert guard.report()["guard/nonfinite"] == 1


OPTIMISERS = {
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_nan_leaves_weights_and_optimiser_untouched(name):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    parameters = list(model.parameters())
    optimizer, guard = OPTIMISERS[name](parameters), SpikeGuard()

    def step(x):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        tensors = LocalTensors()
        decision = guard.decide(loss, tensors.norms([parameters])[0])
        tensors.drop(optimizer, parameters, decision.skip)
        optimizer.step()

    def everything():
        states = [v for p in parameters for v in optimizer.state[p].values()]
        return [t.detach().clone() for t in (*parameters, *states)]

    x = torch.randn(5, 4)
    step(x)
    before = everything()
    step(x * NAN)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    step(x)
    after = everything()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(t.isfinite().all() for t in after)


def test_update_rms_is_that_of_the_formula():
    torch.manual_seed(1)
    parameter = nn.Parameter(torch.randn(6, 4))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    assert update_rms(optimizer, parameter, LocalTensors()) is None
    second = np.zeros((6, 4))
    for step in range(1, 25):
        gradient = torch.randn(6, 4) * (5.0 if step == 24 else 1.0)
        parameter.grad = gradient
        optimizer.step()
        squares = gradient.double().numpy() ** 2
        second = 0.95 * second + 0.05 * squares
        want = math.sqrt(np.mean(squares / (second / (1 - 0.95**step))))
        assert update_rms(optimizer, parameter, LocalTensors()).item() == pytest.approx(
            want, rel=1e-5
        )
    assert want > 2  # the jump is seen


def loss_of(rank, world_size):
    return mean_over_ranks(torch.tensor(float(rank)))


def test_the_loss_is_that_of_all_ranks(gloo):
    assert gloo(2, loss_of) == [torch.tensor(0.5)] * 2
    assert mean_over_ranks(torch.tensor(3.0)) == 3


def test_a_row_of_spikes_is_noted_once_with_where_it_began():
    guard = SpikeGuard(max_nonfinite=3, spikes=Spikes(warmup=4, patience=3, then="rewind"))
    losses = [3.0] * 10 + [9.0, NAN, 9.0, 9.0, 9.0, 3.0] + [NAN] * 6
    got = []
    for step, loss in enumerate(losses):
        guard.decide(torch.tensor(loss), torch.tensor(1.0), step)
        got.append(guard.row_to_skip())
    assert got == [None] * 13 + [(10, 14)] * 9
    assert guard.report() == {
        "guard/nonfinite": 7,
        "guard/spikes": 4,
        "guard/new_levels": 0,
        "guard/rewinds": 0,
    }
    guard.check()


def test_too_many_steps_that_are_not_finite_are_such_a_row():
    guard = SpikeGuard(max_nonfinite=3, spikes=Spikes(warmup=4, then="rewind"))
    for step, norm in enumerate([1.0, NAN, 1.0, *[INF] * 4]):
        assert guard.row_to_skip() is None
        guard.decide(torch.tensor(1.0), torch.tensor(norm), step)
    assert guard.row_to_skip() == (3, 7)
    guard.check()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Spikes(warmup=1),
        lambda: Spikes(z=0),
        lambda: Spikes(margin=-1),
        lambda: Spikes(max_rewinds=0),
        lambda: SpikeGuard(-1),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="guard"):
        make()


@pytest.mark.parametrize(
    ("turns", "log_every", "unseen", "fit"),
    [
        ({"main": 1, "a": 1}, 50, "main", 51),
        # The rows are of the second and the fourth step of each cycle.
        ({"main": 1, "a": 3}, 50, "main", 51),
        ({"main": 3, "a": 1}, 4, "main", 5),
        ({"main": 4, "a": 1, "b": 1}, 2, "a", 5),
        ({"main": 3, "a": 1}, 50, None, None),
        ({"main": 1, "a": 3}, 1, None, None),
        ({"main": 2, "a": 1}, 50, None, None),
        (None, 50, None, None),
    ],
)
def test_every_stream_comes_into_the_log(turns, log_every, unseen, fit):
    if unseen is None:
        check_turns(turns, SpikeGuard(), log_every)
        return
    with pytest.raises(ValueError, match=f"the losses of '{unseen}': set it to {fit}$"):
        check_turns(turns, SpikeGuard(), log_every)
    check_turns(turns, SpikeGuard(), fit)
