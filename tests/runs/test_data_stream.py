"""The stream of samples survives kills, other worker counts and other world sizes."""

import random
from pathlib import Path

import pytest
from mixed import run_file, write_sources
from processes import Run, fit
from recorder import read
from test_resume import kill_at

STEPS = 30
KILLS = 20


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, manifests):
    """What each world size sees, recorded once, without loader workers."""
    streams = {}
    for world_size in (1, 2, 4):
        folder = tmp_path_factory.mktemp("whole") / str(world_size)
        fit(run_file(folder, manifests, STEPS, num_workers=0), world_size, folder / "log")
        streams[world_size] = read(folder / "keys.txt")
    return streams


def batches(stream) -> dict[int, list[str]]:
    """The keys of each global batch, whichever ranks had them, each time they were trained on."""
    found: dict[int, list[str]] = {}
    for (step, _), records in sorted(stream.items()):
        for record in records:
            found.setdefault(step, []).extend(record.split(" ")[0].split(","))
    return {step: sorted(keys) for step, keys in found.items()}


@pytest.mark.soak
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_anywhere_the_stream_is_the_same(tmp_path, manifests, uninterrupted, number):
    rng = random.Random(number)
    world_size, num_workers = (1, 2, 4)[number % 3], number % 4
    folder = tmp_path / "killed"
    arguments = run_file(folder, manifests, STEPS, num_workers=num_workers)
    run = Run(["fit", *arguments], world_size, folder / "log")
    kill_at(run, folder, rng.randrange(7, STEPS - 1))
    resume = ["--resume", str(folder / "run"), f"--data.num_workers={rng.randrange(4)}"]
    fit(resume, world_size, folder / "log")
    # Steps trained twice, before the kill and after it, saw the same samples: one record each.
    assert read(folder / "keys.txt") == uninterrupted[world_size]


@pytest.mark.soak
@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 4), (4, 2), (1, 2), (2, 1)])
def test_another_world_size_loses_and_repeats_nothing(
    tmp_path, manifests, uninterrupted, before, after
):
    folder = tmp_path / "moved"
    run = Run(["fit", *run_file(folder, manifests, STEPS, num_workers=1)], before, folder / "log")
    kill_at(run, folder, 10 + before + after)
    first = read(folder / "keys.txt")
    Path(folder / "keys.txt").unlink()
    fit(["--resume", str(folder / "run")], after, folder / "log")
    second = batches(read(folder / "keys.txt"))
    whole = batches(uninterrupted[1])
    assert {step: keys for step, keys in whole.items() if step >= min(second)} == second
    # The ranks were killed in the middle of their last step.
    trained = {step: keys for step, keys in batches(first).items() if step < min(second)}
    assert trained == {step: keys for step, keys in whole.items() if step < min(second)}
