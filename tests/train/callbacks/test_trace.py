"""Windows of steps that are recorded: read again as a trace."""

import gzip
import json

import pytest
from small_run import module, train

from counterpoint.train.callbacks.trace import Trace, TraceConfig


def events(path):
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def steps_of(found):
    """Names of the steps that a trace holds, with their times."""
    return {
        event["name"]: (event["ts"], event["ts"] + event["dur"])
        for event in found
        if event.get("name", "").startswith("step ") and "dur" in event
    }


@pytest.mark.parametrize(
    ("window", "steps"), [((3, 5), (3, 4, 5)), ((1, 2), (1, 2)), ((5, 9), (5, 6))]
)
def test_a_trace_has_the_operations_of_its_steps(tmp_path, window, steps):
    train(module(6), 1, "auto", [Trace(TraceConfig(window), tmp_path)])
    (path,) = tmp_path.iterdir()
    assert path.name == f"steps-{window[0]}-{window[1]}-rank-0.json.gz"
    found = events(path)
    times = steps_of(found)
    assert set(times) == {f"step {step}" for step in steps}
    products = [e for e in found if e.get("name") == "aten::addmm" and "dur" in e]
    updates = [e for e in found if e.get("name", "").startswith("Optimizer.step#AdamW")]
    for begin, end in times.values():
        assert sum(begin <= event["ts"] <= end for event in products) >= 12
        assert sum(begin <= event["ts"] <= end for event in updates) == 1
    assert any("Input Dims" in event["args"] for event in products)


def trace_on(rank, world_size, folder):
    train(module(4), world_size, "ddp", [Trace(TraceConfig((2, 3), ranks=(1,)), folder)])


def test_only_the_named_ranks_record(gloo, tmp_path):
    gloo(2, trace_on, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name == "steps-2-3-rank-1.json.gz"
    assert any(e.get("name") == "gloo:all_reduce" for e in events(path))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": (3, 2)}, "trace.steps is [3, 2]"),
        ({"steps": (0, 2)}, "give the first and the last step"),
        ({"memory_steps": (1, 2)}, "trains on the CPU"),
        ({"steps": (1, 2), "ranks": (0, 2)}, "names [2], and the run has ranks 0 to 0"),
    ],
)
def test_what_cannot_be_recorded_is_refused(tmp_path, settings, told):
    with pytest.raises(ValueError) as error:
        train(module(2), 1, "auto", [Trace(TraceConfig(**settings), tmp_path)])
    assert told in str(error.value)
