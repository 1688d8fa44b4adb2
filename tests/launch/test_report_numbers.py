"""What `counterpoint report` prints: every final number of every run, then the page's path."""

import json

import pytest

from counterpoint.launch import cli


def make_run(folder, **final):
    folder.mkdir()
    rows = [{"step": 1, "wall": 1.0, "loss": 4.0}, {"step": 2, "wall": 2.0, **final}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"final": final, "steps": 2, "seconds": 2.0}))
    return str(folder)


def test_the_numbers_and_then_the_path_are_printed(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    one = make_run(tmp_path / "one", **{"loss": 1.5, "emoji/heldout/top1": 0.625})
    two = make_run(tmp_path / "two", loss=0.25)
    assert cli.main(["report", one, two, "--suite", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["one", "two"]
    assert [line.split()[-2:] for line in lines if "top" in line.lower()] == [["62.5%", "-"]]
    assert [line.split()[-2:] for line in lines if line.startswith("Loss")] == [["1.5", "0.25"]]
    assert lines[-1] == f"report: {tmp_path / 'one' / 'comparison.html'}"
