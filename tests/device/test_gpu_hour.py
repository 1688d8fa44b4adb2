"""`make gpu` at a tiny scale, on the null GPU and on a processor; and what is said of failures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import losses
from benchmarks.gpu.carry import names_in, needed
from benchmarks.gpu.hour import PIECES, note
from benchmarks.gpu.piece import MODULES, measure
from benchmarks.gpu.report import Report
from null_gpu.device import prepare

HOUR = Path(__file__).parents[1] / "benchmarks" / "gpu" / "hour.py"


def tried(rank, world_size, messages, piece, path):
    """Runs a piece on the null GPU."""
    prepare()
    torch.set_num_threads(1)
    measure(piece, Report(path, piece, "tiny"))


def rows_of(path, piece):
    found = json.loads(path.read_text())["pieces"][piece]
    assert "failed" not in found
    return found["rows"]


def test_pieces_fit_into_25_minutes():
    assert PIECES.keys() == MODULES.keys()
    assert max(PIECES.values()) <= 9 * 60 and sum(PIECES.values()) <= 25 * 60


@pytest.mark.parametrize(
    ("piece", "num_rows", "keys"),
    [
        pytest.param("losses", 6, {"ours_ms", "open_clip_ms", "ours_gib"}, marks=pytest.mark.soak),
        pytest.param("loader", 2, {"pairs_per_s", "data_wait"}, marks=pytest.mark.soak),
        pytest.param("step-b32", 3, {"ms", "gflop", "mfu", "gib"}, marks=pytest.mark.soak),
        pytest.param("siglip", 1, {"ms", "gflop", "mfu", "gib"}, marks=pytest.mark.soak),
    ],
)
def test_a_piece_on_the_null_gpu(null_gpu, tmp_path, piece, num_rows, keys):
    path = tmp_path / "found.json"
    null_gpu(1, tried, piece, path)
    rows = rows_of(path, piece)
    assert len(rows) == num_rows
    assert not [row for row in rows if "failed" in row], rows
    assert any(keys <= row.keys() for row in rows)
    assert "null" in json.loads(path.read_text())["machine"]["device"].lower()


def test_losses_on_a_processor(tmp_path):
    """Gradients, with open_clip's beside them, against the formula in float64."""
    path = tmp_path / "found.json"
    measure("losses", Report(path, "losses", "tiny"))
    *timed, softmax, sigmoid = rows_of(path, "losses")
    assert len(timed) == 4 and all(row["open_clip_ms"] > 0 for row in timed)
    for row in (softmax, sigmoid):
        assert row["ours_gradient_error"] < 1e-5 and row["open_clip_gradient_error"] < 1e-5
        assert row["open_clip_bf16_gradient_error"] > 1e-4


def test_what_goes_wrong_is_a_sentence_and_the_rest_stays(tmp_path, monkeypatch):
    path = tmp_path / "found.json"
    Report(path, "siglip").measure(lambda: {"ms": 1.0}, batch=7)
    monkeypatch.setattr(losses, "compare", lambda *_: 1 / 0)
    report = Report(path, "losses", "tiny", seconds=1e9)
    measure("losses", report)
    rows = rows_of(path, "losses")
    assert rows[0] == {
        "batch": 64,
        "loss": "softmax",
        "failed": "ZeroDivisionError: division by zero",
    }
    assert rows_of(path, "siglip") == [{"batch": 7, "ms": 1.0}]
    late = Report(path, "losses", "tiny", seconds=-1.0)
    assert "time of this piece was used up" in late.measure(dict)["failed"]
    note(path, "losses", "stopped after 3 s")
    note(path, "siglip", "stopped after 3 s")
    pieces = json.loads(path.read_text())["pieces"]
    assert pieces["siglip"] == {**pieces["siglip"], "failed": "stopped after 3 s"}


@pytest.mark.soak
def test_a_piece_that_takes_too_long_is_stopped_and_the_next_one_runs(tmp_path):
    words = [sys.executable, str(HOUR), "--scale", "tiny", "--out", str(tmp_path)]
    stopped = subprocess.run(
        [*words, "losses", "--limit", "0.1"], capture_output=True, text=True, check=False
    )
    assert stopped.returncode == 1 and "losses: 0 s, stopped after 0 s" in stopped.stdout
    done = subprocess.run([*words, "losses", "loader"], capture_output=True, text=True, check=True)
    path = Path(done.stdout.splitlines()[-1])
    assert path.parent == tmp_path and path.name.startswith("cpu-")
    assert len(rows_of(path, "losses")) == 6 and len(rows_of(path, "loader")) == 1
    done = subprocess.run([*words, "lossess"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "there is no piece lossess" in done.stderr


def test_what_is_there_is_not_carried():
    environment = {"python_version": "3.12", "platform_machine": "x86_64", "extra": ""}
    there = names_in("numpy==2.4.6\nPyYAML==6\nlightning-utilities, timm\n")
    assert there == {"numpy", "pyyaml", "lightning-utilities", "timm"}
    everything = needed("counterpoint", environment, set())
    assert everything >= {"numpy", "open-clip-torch", "deepspeed", "hjson", "pytest"}
    assert not [name for name in everything if name.startswith(("torch", "nvidia", "triton"))] or (
        {n for n in everything if n.startswith("torch")} <= {"torchmetrics"}
    )
    assert needed("counterpoint", environment, there) <= everything - there
