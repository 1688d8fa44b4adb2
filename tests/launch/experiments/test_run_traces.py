"""What a result keeps of its run: curves, and outcomes that come back bit for bit."""

import json

import numpy as np

from counterpoint.launch.experiments.run_traces import keep_traces, unpack
from counterpoint.train.evaluation.outcomes import Outcomes, read_outcomes, write_outcomes

SUITE = "emoji/heldout/top1"


def write_run(folder, rows, **summary):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps(summary))


def test_evaluations_on_the_way_and_the_floating_point_operations_until_then(tmp_path):
    rows = [
        {"step": 10, "loss": 3.0, "samples": 100, "flops_per_pair": 2.0, "grad_norm": 0.5},
        {"step": 10, SUITE: 0.25},
        # A cheaper phase: what was spent until then counts at what it cost then.
        {"step": 20, "loss": 1.0, "loss/infonce": 0.123456789, "samples": 200, "flops_per_pair": 1},
        {"step": 20, SUITE: 0.5},
    ]
    write_run(tmp_path / "run", rows)
    kept = json.loads(json.dumps(keep_traces(tmp_path / "run", tmp_path / "x.json")))
    assert kept == {
        "history": {"samples": [100, 200], "flops": [200.0, 300.0], SUITE: [0.25, 0.5]},
        "training": {
            "samples": [100.0, 200.0],
            "loss": [3.0, 1.0],
            "grad_norm": [0.5, None],
            "loss/infonce": [None, 0.12346],
        },
    }


def test_a_long_run_keeps_a_thin_curve(tmp_path):
    rows = [{"step": n, "loss": float(n), "samples": n} for n in range(1, 601)]
    write_run(tmp_path / "run", rows)
    curve = keep_traces(tmp_path / "run", tmp_path / "x.json")["training"]
    assert len(curve["samples"]) == len(curve["loss"]) == 30
    # Twenty neighbours are averaged to a point.
    assert curve["loss"][0] == np.mean(np.arange(1, 21))


def test_outcomes_come_back_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(37)]
    right = rng.random(37) < 0.3
    weights = rng.random(37)
    outcomes = {
        SUITE: Outcomes(right.mean(), right, names),
        "emoji/heldout/recall": Outcomes(right.mean(), right, names),
        "emoji/heldout/weighted": Outcomes(0.5, ~right, names, weights),
        "emoji/heldout/distance": Outcomes(0.5, weights, names),
    }
    write_run(tmp_path / "run", [])
    write_outcomes(tmp_path / "run" / "outcomes.npz", outcomes)
    kept = json.loads(json.dumps(keep_traces(tmp_path / "run", tmp_path / "x.json")))
    assert kept["outcomes"]["emoji/heldout/recall"] == {"as": SUITE}
    found, stored = unpack(kept), read_outcomes(tmp_path / "run" / "outcomes.npz")
    # A distance is neither right nor wrong.
    assert set(found) == set(stored) - {"emoji/heldout/distance"}
    for name, each in found.items():
        np.testing.assert_array_equal(each.values, stored[name].values)
        np.testing.assert_array_equal(each.weights, stored[name].weights)
        assert each.items == stored[name].items


def test_one_of_many_groups_is_left_out_and_a_half_is_not(tmp_path):
    sizes = {"all": 30, "all_de": 10, "all_except_de": 20, "other_de": 10}
    outcomes = {
        f"emoji/{task}/top1": Outcomes(1.0, np.ones(size), [f"{task}{i}" for i in range(size)])
        for task, size in sizes.items()
    }
    write_run(tmp_path / "run", [])
    write_outcomes(tmp_path / "run" / "outcomes.npz", outcomes)
    found = unpack(keep_traces(tmp_path / "run", tmp_path / "x.json"))
    assert set(found) == set(outcomes) - {"emoji/all_de/top1"}


def test_a_run_without_a_log_keeps_nothing(tmp_path):
    assert keep_traces(tmp_path, tmp_path / "x.json") == {}
    assert unpack({"final": {}}) == {}
