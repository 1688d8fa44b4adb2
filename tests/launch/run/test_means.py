"""Means over a run against a simulated clock that knows when every step began and ended."""

import pytest

from counterpoint.launch.run.means import means, short_steps


def simulate(durations, batch_sizes, waits, log_at):
    """Rows as `Metrics` writes them of steps with given seconds, pairs and waits."""
    rows, samples, since = [], 0, 0
    for step, pairs in enumerate(batch_sizes, start=1):
        samples += pairs
        if step in log_at:
            seconds = sum(durations[since:step])
            taken = sum(batch_sizes[since:step])
            flops = 7.0 * taken + (100 if step > 6 else 0)
            rows.append({
                "step": step, "samples": samples, "pairs_per_s": taken / seconds,
                "data_wait": sum(waits[since:step]) / seconds,
                "flops_per_pair": flops / taken, "mfu": flops / seconds / 1000,
            })  # fmt: skip
            rows.append({"step": step, "emoji/x/top1": 0.5})
            since = step
    return rows


def test_a_last_row_of_few_steps_weighs_little():
    durations = [1.0, 2.0, 1.5, 1.0, 1.0, 3.0, 1.0, 1.0, 0.1]
    batch_sizes = [8, 8, 8, 8, 16, 16, 16, 16, 16]
    waits = [0.5, 0, 0, 0.25, 0, 1.0, 0, 0, 0.05]
    rows = simulate(durations, batch_sizes, waits, {4, 8, 9})
    got = means(rows)
    flops = 7.0 * sum(batch_sizes) + 200
    assert got["training_seconds"] == pytest.approx(sum(durations))
    assert got["pairs_per_s"] == pytest.approx(sum(batch_sizes) / sum(durations))
    assert got["data_wait"] == pytest.approx(sum(waits) / sum(durations))
    assert got["flops_per_pair"] == pytest.approx(flops / sum(batch_sizes))
    assert got["mfu"] == pytest.approx(flops / sum(durations) / 1000)
    assert "hardware_flops_per_pair" not in got
    assert rows[-2]["pairs_per_s"] > 10 * got["pairs_per_s"]
    assert short_steps(rows) == {9}


def test_rows_that_measured_nothing():
    assert means([]) == {}
    assert means([{"step": 1, "loss": 2.0}, {"step": 2, "samples": 8}]) == {}
    rows = [{"step": 1, "samples": 4, "pairs_per_s": 2.0, "mfu": float("nan")}]
    assert means(rows) == {"training_seconds": 2.0, "pairs_per_s": 2.0}
    assert short_steps(rows) == set()
