"""Progress of passes over data, in a log."""

import pytest

from counterpoint.launch.commands import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_ten_seconds_over_all_passes(clock, capsys):
    track = progress.track()
    for name in ("mdi", "tabler", "empty"):
        for item in track(range(4 if name != "empty" else 0), 2000 if name == "mdi" else 4, name):
            clock[0] += 6.0
            assert item < 4
    told = capsys.readouterr()
    assert told.out == ""
    lines = ["mdi: 2 of 2,000 (0%)", "mdi: 4 of 2,000 (0%)"]
    lines += ["tabler: 2 of 4 (50%)", "tabler: 4 of 4 (100%)"]
    assert told.err.splitlines() == lines


def test_counts_in_a_log(clock, capsys):
    with progress.counter("scoring") as moved:
        moved(1, 8)
        clock[0] += 10.0
        moved(5, 8)
        moved(6, 8)
    assert capsys.readouterr().err == "scoring: 5 of 8 (62%)\n"
