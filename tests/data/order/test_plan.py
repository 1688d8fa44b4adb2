"""The plan is a bijection every epoch, from any position, and looks the same to any world size."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.order.plan import Plan, lanes_of_node, permute
from counterpoint.data.order.steps import Steps

counts_lists = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
plans = st.builds(
    Plan,
    counts=counts_lists.map(np.array),
    seed=st.integers(-(2**70), 2**70),
    lanes=st.integers(1, 9),
    block=st.integers(1, 50),
)


def rows(plan: Plan, positions: np.ndarray) -> list[tuple[int, int, int]]:
    return list(zip(*(part.tolist() for part in plan.locate(positions)), strict=True))


@given(plans)
def test_every_epoch_has_every_sample_once(plan):
    located = rows(plan, np.arange(3 * plan.num_samples))
    everything = {
        (s, o) for s, count in enumerate(plan.counts.at(0).tolist()) for o in range(count)
    }
    for epoch in range(3):
        chunk = located[epoch * plan.num_samples : (epoch + 1) * plan.num_samples]
        assert {e for e, _, _ in chunk} == {epoch}
        assert len(chunk) == len(everything)
        assert {(s, o) for _, s, o in chunk} == everything


@settings(max_examples=40)
@given(plans, st.data())
def test_a_position_resolves_alone_as_in_the_sequence(plan, data):
    last = 4 * plan.num_samples
    positions = data.draw(st.lists(st.integers(0, last), min_size=1, max_size=20))
    sequence = rows(plan, np.arange(max(positions) + 1))
    fresh = Plan(plan.counts, plan.seed, plan.lanes, plan.block)
    assert rows(fresh, np.array(positions)) == [sequence[p] for p in positions]
    assert [rows(fresh, np.array([p]))[0] for p in positions] == [sequence[p] for p in positions]


@settings(max_examples=40)
@given(plans, st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_global_batches_do_not_depend_on_the_world_size(plan, per_rank, world_size, num_steps):
    steps = Steps([(num_steps, per_rank * world_size)])
    for step in range(num_steps):
        positions = steps.positions(step)
        lanes = plan.lane(positions)
        parts = [steps.deal(positions, lanes, r, world_size) for r in range(world_size)]
        located = [row for part in parts for row in rows(plan, part)]
        assert sorted(located) == sorted(rows(plan, positions))


@given(plans)
def test_a_lane_is_a_contiguous_slice_of_the_epoch(plan):
    positions = np.arange(2 * plan.num_samples)
    lanes = plan.lane(positions)
    assert lanes.tolist() == [p % plan.num_samples % plan.lanes for p in positions.tolist()]
    for epoch in range(2):
        line = plain_line(plan, epoch)
        located = [(s, o) for _, s, o in rows(plan, positions[epoch * len(line) :][: len(line)])]
        taken = 0
        for lane in range(plan.lanes):
            own = [located[p] for p in range(lane, len(line), plan.lanes)]
            assert sorted(own) == sorted(line[taken : taken + len(own)])
            taken += len(own)


@settings(max_examples=50)
@given(plans, st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), st.integers(1, 40))
def test_a_node_never_needs_more_than_the_working_set(plan, num_nodes, ranks, per_rank):
    """Everything under the blocks of a step's lanes, counted one by one."""
    size = num_nodes * ranks * per_rank
    num_bytes = 1000 + np.arange(len(plan.counts.least)) ** 2
    num_shards, total = plan.working_set(num_bytes, num_nodes, size)
    lines = [plain_line(plan, epoch) for epoch in range(3 + size // plan.num_samples)]
    for first in range(0, 2 * plan.num_samples, size):
        positions = np.arange(first, first + size)
        lanes = plan.lane(positions)
        for node in range(num_nodes):
            mine = Steps.deal(positions, lanes, node, num_nodes)
            needed = sorted({s for p in mine.tolist() for s in shards_under(plan, p, lines)})
            assert len(needed) <= num_shards
            assert num_bytes[needed].sum() <= total


@settings(max_examples=40)
@given(st.integers(8, 40), st.sampled_from([2, 3, 4, 8]), st.integers(1, 12), st.integers(30, 99))
def test_a_node_keeps_to_its_lanes(lanes, num_nodes, per_node, num_samples):
    """For any batch size, with epochs that begin inside batches."""
    plan = Plan(np.array([num_samples * lanes]), seed=0, lanes=lanes)
    size = num_nodes * per_node
    spread = plan.num_runs(size) * lanes / 4
    seen: list[set[int]] = [set() for _ in range(num_nodes)]
    for first in range(0, 3 * plan.num_samples, size):
        positions = np.arange(first, first + size)
        for node in range(num_nodes):
            mine = Steps.deal(positions, plan.lane(positions), node, num_nodes)
            seen[node].update(plan.lane(mine).tolist())
    assert max(map(len, seen)) <= lanes_of_node(lanes, num_nodes, size, spread)


@settings(max_examples=40)
@given(
    st.sampled_from([4, 15]),
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 20),
    st.integers(0, 2**32),
)
def test_a_lane_has_few_shards_at_hand(count, lanes, block, size, seed):
    """Shards of like size, so that the bound is far below their number."""
    counts = count + np.arange(30) % 3
    plan = Plan(counts, seed=seed, lanes=lanes, block=block)
    most = plan.at_hand(1, counts, size)[0]
    lines = [plain_line(plan, epoch) for epoch in range(3)]
    places = np.arange(2 * plan.num_samples + size)
    own = plan.lane(places) == 0
    under = [shards_under(plan, p, lines) if own[p] else set() for p in places.tolist()]
    found = [len(set().union(*under[first : first + size])) for first in range(len(under) - size)]
    assert max(found) <= most


def shards_under(plan: Plan, position: int, lines: list[list[tuple[int, int]]]) -> set[int]:
    """Shards with a sample in the block of the line that a position's lane is in."""
    epoch, offset = divmod(position, plan.num_samples)
    start = sum(
        len(range(number, plan.num_samples, plan.lanes)) for number in range(offset % plan.lanes)
    )
    end = start + len(range(offset % plan.lanes, plan.num_samples, plan.lanes))
    first = start + offset // plan.lanes // plan.block * plan.block
    return {shard for shard, _ in lines[epoch][first : min(first + plan.block, end)]}


def test_the_working_set_is_enough_and_not_far_too_much():
    """A least-recently-used cache of that size fetches each shard about once an epoch."""
    plan = Plan(np.full(400, 50), seed=0, lanes=16, block=100)
    num_nodes, size = 4, 256
    num_shards, num_bytes = plan.working_set(np.full(400, 7), num_nodes, size)
    assert num_bytes == 7 * num_shards
    # 4 of 16 lanes and two at the borders; two blocks of two shards and four ends.
    assert num_shards <= 6 * 8
    for node in range(num_nodes):
        cache: dict[int, None] = {}
        fetched = 0
        touched: set[int] = set()
        for first in range(0, plan.num_samples - size + 1, size):
            positions = np.arange(first, first + size)
            mine = Steps.deal(positions, plan.lane(positions), node, num_nodes)
            for shard in plan.locate(mine)[1].tolist():
                fetched += shard not in cache
                cache.pop(shard, None)
                cache[shard] = None
                if len(cache) > num_shards:
                    cache.pop(next(iter(cache)))
                touched.add(shard)
        assert len(touched) <= 100 + 8
        assert fetched == len(touched)


def test_unknown_sizes_count_as_the_largest():
    plan = Plan(np.array([5, 0, 5]), seed=0)
    assert plan.working_set(np.array([30, 90, 0]), 1, 4) == (2, 60)
    assert plan.working_set(np.array([0, 0, 0]), 1, 4) == (2, 0)


@given(
    st.integers(1, 300), st.integers(0, 2**64 - 1), st.integers(1, 300), st.integers(0, 2**64 - 1)
)
def test_permute_is_one_to_one_for_each_key_and_size(size, key, other_size, other_key):
    values = np.concatenate([np.arange(size), np.arange(other_size)])
    sizes = np.repeat([size, other_size], [size, other_size])
    keys = np.repeat(np.array([key, other_key], dtype=np.uint64), [size, other_size])
    result = permute(values, sizes, keys)
    assert sorted(result[:size].tolist()) == list(range(size))
    assert sorted(result[size:].tolist()) == list(range(other_size))


def test_permute_is_well_mixed():
    """Chi-squared of where element 3 of 10 lands under 20,000 keys (9 degrees: 99.9% at 27.9)."""
    num = 20_000
    keys = np.arange(num, dtype=np.uint64)
    places = permute(np.full(num, 3), np.full(num, 10), keys)
    observed = np.bincount(places, minlength=10)
    assert ((observed - num / 10) ** 2 / (num / 10)).sum() < 27.9


def test_epochs_and_seeds_differ_and_lanes_interleave():
    counts = np.full(20, 50)
    plan = Plan(counts, seed=0, lanes=4, block=64)
    epochs = [rows(plan, np.arange(e * 1000, (e + 1) * 1000)) for e in range(2)]
    other = rows(Plan(counts, seed=1, lanes=4, block=64), np.arange(1000))
    shards = [[s for _, s, _ in rows_] for rows_ in (*epochs, other)]
    same = [np.mean(np.array(a) == b) for a, b in ((shards[0], shards[1]), (shards[0], shards[2]))]
    assert max(same) < 0.25  # chance is 0.05
    # Each lane walks its own five shards, two or three at a time.
    for lane in range(4):
        walk = shards[0][lane::4]
        assert len(set(walk)) == 5
        assert all(len(set(walk[i : i + 60])) <= 4 for i in range(190))


MASK = 2**64 - 1


def plain_mix(value: int, key: int) -> int:
    """Splitmix64's finaliser, twice, in Python's integers."""
    gamma = 0x9E3779B97F4A7C15
    x = (value * gamma + key) & MASK
    for _ in range(2):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        x = ((x ^ (x >> 31)) + gamma) & MASK
    return x


def plain_seed(*numbers: int) -> int:
    text = "\0".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def plain_permute(value: int, size: int, key: int) -> int:
    half = 1
    while 4**half < size:
        half += 1
    while True:
        left, right = value >> half, value & (2**half - 1)
        for number in range(6):
            scrambled = plain_mix(right, plain_mix(number, key)) % 2**half
            left, right = right, left ^ scrambled
        value = (left << half) | right
        if value < size:
            return value


def plain_line(plan: Plan, epoch: int) -> list[tuple[int, int]]:
    """All (shard, ordinal) of an epoch in the order of its shards."""
    counts = plan.counts.at(epoch).tolist()
    key = plain_seed(plan.seed, epoch)
    order = sorted(range(len(counts)), key=lambda shard: plain_mix(shard, key))
    return [(shard, ordinal) for shard in order for ordinal in range(counts[shard])]


def plain_locate(plan: Plan, position: int) -> tuple[int, int, int]:
    """The plan's definition, one position at a time, over a list of all samples."""
    epoch, offset = divmod(position, plan.num_samples)
    line = plain_line(plan, epoch)
    lane = [place for place in range(plan.num_samples) if place % plan.lanes == offset % plan.lanes]
    start = sum(
        len(range(number, plan.num_samples, plan.lanes)) for number in range(offset % plan.lanes)
    )
    row = lane.index(offset)
    block = row // plan.block
    first = block * plan.block
    size = min(plan.block, len(lane) - first)
    lane_key = plain_mix(offset % plan.lanes, plain_seed(plan.seed, epoch, 1))
    place = plain_permute(row - first, size, plain_mix(block, lane_key))
    return (epoch, *line[start + first + place])


@settings(max_examples=30)
@given(plans, st.data())
def test_order_is_what_is_written_down(plan, data):
    """The order is part of the format: a change breaks the resuming of every run there is."""
    last = 4 * plan.num_samples
    positions = data.draw(st.lists(st.integers(0, last), min_size=1, max_size=20))
    assert rows(plan, np.array(positions)) == [plain_locate(plan, p) for p in positions]


@settings(max_examples=20)
@given(st.integers(0, 5_000_000_000))
def test_positions_beyond_32_bits(offset):
    plan = Plan(np.array([1_000_000_000_000, 2_000_000_000_000]), seed=0, block=2**20)
    epoch, shard, ordinal = plan.locate(np.arange(offset * 1000, offset * 1000 + 500))
    assert (epoch == (np.arange(offset * 1000, offset * 1000 + 500) // 3_000_000_000_000)).all()
    assert ((ordinal >= 0) & (ordinal < plan.counts.at(0)[shard])).all()
    assert len(set(zip(shard.tolist(), ordinal.tolist(), strict=True))) == 500


@pytest.mark.parametrize(
    ("counts", "lanes", "block", "message"),
    [([0, 0], 1, 1, "no samples"), ([3], 0, 1, "lanes=0"), ([3], 1, 0, "block=0")],
)
def test_refusals(counts, lanes, block, message):
    with pytest.raises(ValueError, match=message):
        Plan(np.array(counts), seed=0, lanes=lanes, block=block)
