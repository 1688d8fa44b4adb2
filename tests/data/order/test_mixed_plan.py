"""Several sources: the same guarantees as one plan, in the sources' proportions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.order.mixed_plan import MixedPlan
from counterpoint.data.order.plan import Plan
from counterpoint.data.order.steps import Steps

NAMES = ["laion", "cc12m", "own"]


@st.composite
def mixed_plans(draw) -> MixedPlan:
    num = draw(st.integers(3, 10))
    ids = draw(st.permutations([0, 1, 2] + [n % 3 for n in range(num - 3)]))
    counts = draw(st.lists(st.integers(1, 12), min_size=num, max_size=num))
    shares = draw(st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
    return MixedPlan(
        np.array(counts),
        np.array(ids),
        NAMES,
        seed=draw(st.integers(-5, 5)),
        lanes=draw(st.integers(1, 4)),
        block=draw(st.integers(1, 20)),
        shares=dict(zip(NAMES, shares, strict=True)),
    )


def rows(plan, positions):
    return list(zip(*(part.tolist() for part in plan.locate(positions)), strict=True))


def shards_of(plan: MixedPlan, source: int) -> list[int]:
    return plan._shards[source].tolist()


@settings(max_examples=50)
@given(mixed_plans(), st.integers(1, 300))
def test_each_source_has_each_sample_once_an_epoch(plan, num):
    located = rows(plan, np.arange(num))
    for source in range(3):
        own = shards_of(plan, source)
        everything = {(s, o) for s in own for o in range(int(plan.counts.at(0)[s]))}
        stream = [row for row in located if row[1] in own]
        for epoch in range(num // len(everything) + 1):
            chunk = stream[epoch * len(everything) :][: len(everything)]
            assert {e for e, _, _ in chunk} <= {epoch}
            assert len({(s, o) for _, s, o in chunk} & everything) == len(chunk)


@settings(max_examples=30)
@given(mixed_plans(), st.integers(0, 10**12), st.integers(1, 60), st.integers(1, 60))
def test_skipping_is_dropping(plan, first, skipped, num):
    whole = rows(plan, np.arange(first, first + skipped + num))
    assert rows(plan, np.arange(first + skipped, first + skipped + num)) == whole[skipped:]


@settings(max_examples=50)
@given(mixed_plans(), st.integers(1, 4), st.integers(1, 8), st.integers(0, 500))
def test_ranks_partition_the_global_batch_and_keep_to_their_lanes(plan, world_size, each, first):
    positions = np.arange(first, first + world_size * each)
    lanes = plan.lane(positions)
    assert lanes.min() >= 0 and lanes.max() < plan.lanes * 3
    parts = [Steps.deal(positions, lanes, rank, world_size) for rank in range(world_size)]
    located = [row for part in parts for row in rows(plan, part)]
    assert sorted(located) == sorted(rows(plan, positions))
    sources = np.array([next(s for s in range(3) if r[1] in shards_of(plan, s)) for r in located])
    spread = [set(plan.lane(part).tolist()) for part in parts]
    assert sum(map(len, spread)) <= len(set(lanes.tolist())) + world_size - 1
    assert sorted((lanes % 3).tolist()) == sorted(sources.tolist())


def test_without_shares_it_is_the_plan():
    counts = np.array([5, 0, 9, 30, 2])
    plan = Plan(counts, seed=3, lanes=4, block=7)
    mixed = MixedPlan(counts, np.array([0, 1, 0, 2, 1]), NAMES, seed=3, lanes=4, block=7)
    positions = np.arange(150)
    assert rows(mixed, positions) == rows(plan, positions)
    assert mixed.lane(positions).tolist() == plan.lane(positions).tolist()
    sizes = np.arange(5) + 1
    assert mixed.working_set(sizes, 2, 8) == plan.working_set(sizes, 2, 8)


def test_another_source_leaves_the_order_of_the_first_ones():
    counts, ids = np.array([40, 50, 60]), np.array([0, 1, 0])
    two = MixedPlan(counts, ids, ["a", "c"], 1, 4, 16, {"a": 0.6, "c": 0.4})
    three = MixedPlan(
        np.array([40, 70, 50, 60]),
        np.array([0, 1, 2, 0]),
        ["a", "b", "c"],
        1,
        4,
        16,
        {"a": 0.3, "b": 0.5, "c": 0.2},
    )
    renamed = {0: 0, 2: 1, 3: 2}
    for shards in ({0, 2}, {1}):
        before = [row for row in rows(two, np.arange(400)) if row[1] in shards]
        after = [(e, renamed[s], o) for e, s, o in rows(three, np.arange(800)) if s in renamed]
        after = [row for row in after if row[1] in shards]
        assert len(before) > 150
        assert after[: len(before)] == before[: len(after)]


def test_a_share_of_0_is_never_read_and_proportions_are_met():
    counts = np.array([100, 0, 3000, 100_000])
    shares = {"laion": 3, "cc12m": 0, "own": 1}
    plan = MixedPlan(counts, np.array([0, 1, 2, 1]), NAMES, 0, shares=shares)
    _, shards, _ = plan.locate(np.arange(20_000))
    assert np.bincount(shards, minlength=4).tolist() == pytest.approx([15_000, 0, 5000, 0], abs=2)


def test_a_node_gets_some_of_each_source_and_never_more_than_the_working_set():
    counts = np.full(600, 40)
    ids = np.repeat([0, 1, 2], [300, 200, 100])
    shares = {"laion": 0.7, "cc12m": 0.2, "own": 0.1}
    plan = MixedPlan(counts, ids, NAMES, 0, lanes=8, block=64, shares=shares)
    num_nodes, size = 4, 512
    num_shards, num_bytes = plan.working_set(np.full(600, 3), num_nodes, size)
    assert num_bytes == 3 * num_shards < 3 * 300
    seen: list[set[int]] = [set() for _ in range(num_nodes)]
    for step in range(20):
        positions = np.arange(step * size, (step + 1) * size)
        lanes = plan.lane(positions)
        for node in range(num_nodes):
            mine = Steps.deal(positions, lanes, node, num_nodes)
            shards = set(plan.locate(mine)[1].tolist())
            assert len(shards) <= num_shards
            seen[node] |= {lane for lane in plan.lane(mine).tolist() if step}
            found = np.bincount(ids[sorted(shards)], minlength=3)
            assert (found > 0).all()
    # 2 of 8 lanes of each of three sources, and at either border some more.
    assert max(map(len, seen)) <= 3 * 4


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"laion": 1, "cc12m": 1, "own": 1, "lion": 1}, "name 'lion', which .* are 'laion', 'cc1"),
        ({"laion": 1}, "miss the manifest's 'cc12m', 'own'; give each a share, 0"),
        ({"laion": 1, "cc12m": 1, "own": 1}, "'own' has a share of 1 but no samples"),
    ],
)
def test_refusals(shares, message):
    with pytest.raises(ValueError, match=message):
        MixedPlan(np.array([3, 4, 0]), np.arange(3), NAMES, 0, shares=shares)
