"""Pairs that run at the same time: shares of the machine, stops, claims."""

import json
import os
import subprocess
import sys
import time

import pytest
from waiting import PATIENCE, until

from counterpoint.launch.config.identity import Identity
from counterpoint.launch.experiments import pairs, work_claims
from counterpoint.launch.experiments.pairs import Runner, shares_of_machine
from counterpoint.launch.experiments.results import Pair, settings

DRIVER = """
import signal, sys
from pathlib import Path
from counterpoint.launch.config.identity import Identity
from counterpoint.launch.experiments import pairs, work_claims
from counterpoint.launch.experiments.results import Pair

folder, patient = Path(sys.argv[1]), sys.argv[2]
pairs.shares_of_machine = lambda jobs: [{}] * jobs
runs = [Pair("s", "r", "c", seed, Identity({}, frozenset())) for seed in range(3)]
command = lambda pair, run_dir: [sys.executable, patient, str(run_dir)]
runner = pairs.Runner(folder / "results", folder / "runs", jobs=2, command=command)
with pairs.stoppable(signal.SIGTERM):
    sys.exit(runner.run(runs))
"""
PATIENT = """
import pathlib, signal, sys, time
mark = pathlib.Path(sys.argv[1])
mark.mkdir(parents=True)
signal.signal(signal.SIGTERM, lambda *_: ((mark / "stopped").touch(), sys.exit(143)))
(mark / "started").touch()
time.sleep(36000)
"""


def test_a_termination_stops_all_runs_in_progress_and_starts_no_other(tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "patient.py").write_text(PATIENT)
    words = [sys.executable, tmp_path / "driver.py", tmp_path, tmp_path / "patient.py"]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        started = tmp_path.glob
        until(lambda: len([*started("runs/s/*/started")]) == 2, lambda: process.poll() is None)
        claims = sorted(path.name for path in tmp_path.glob("results/s/*"))
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and b"FAILED" not in errors
    assert claims == ["r-seed0.claim", "r-seed1.claim"]
    assert len([*tmp_path.glob("runs/s/*/stopped")]) == 2
    assert [*tmp_path.glob("results/s/*")] == [] and len([*tmp_path.glob("runs/s/*")]) == 4


def test_runs_at_a_time_share_the_gpus_and_cores(monkeypatch):
    monkeypatch.setattr("counterpoint.data.workers.cores_of", lambda jobs: 12 // jobs)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert shares_of_machine(1) == [{}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares_of_machine(2)] == ["4,7", "5"]
    four = shares_of_machine(4)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in four] == ["4", "5", "7", "4"]
    assert {share["OMP_NUM_THREADS"] for share in four} == {"3"}


def test_a_result_holds_for_its_inputs(tmp_path):
    """A file of the same name with other content makes another pair, in another folder."""
    old = Pair("s", "r", "c", 0, Identity({}, frozenset()), inputs={"subset": "a"})
    new = Pair("s", "r", "c", 0, Identity({}, frozenset()), inputs={"subset": "b"})
    plain = Pair("s", "r", "c", 0, Identity({}, frozenset()))
    runner = Runner(tmp_path, tmp_path)
    folders = {runner.folder(pair) for pair in (old, new, plain)}
    assert len(folders) == 3
    record = {"config": "c", "overrides": {}, "identity": {"values": {}, "chosen": []}}
    assert pairs.same(record, plain) and not pairs.same(record, old)
    record |= {"inputs": {"subset": "a"}}
    assert pairs.same(record, old) and not pairs.same(record, new)


@pytest.mark.parametrize("value", [3, [1.5], {"a": None}, "text"])
def test_overrides_as_words_of_the_command_line(value):
    (word,) = settings({"a.b": value})
    name, _, text = word.partition("=")
    assert name == "--a.b"
    assert (text if isinstance(value, str) else json.loads(text)) == value


def test_the_claim_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path):
    claim = tmp_path / "a.claim"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from counterpoint.launch.experiments.work_claims import claimed\n"
        "with claimed(Path(sys.argv[1])) as ours:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, claim])
    assert done.returncode == -9 and claim.exists()
    with work_claims.claimed(claim) as ours:
        assert ours
        with work_claims.claimed(claim) as again:  # this process lives
            assert not again
    assert not claim.exists()


def test_a_requeued_job_has_its_claims_back(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    # A file system may note times a little earlier.
    monkeypatch.setattr(
        work_claims, "STARTED", time.time() - 1
    )  # these tests may run for a while already
    claim = tmp_path / "a.claim"
    claim.write_text("slurm 77")
    with work_claims.claimed(claim) as ours:
        assert not ours  # written since this process began: by another thread of it
    os.utime(claim, (work_claims.STARTED - 5, work_claims.STARTED - 5))
    with work_claims.claimed(claim) as ours:
        assert ours
    claim.write_text("slurm 78")
    os.utime(claim, (work_claims.STARTED - 5, work_claims.STARTED - 5))
    with work_claims.claimed(claim) as ours:
        assert not ours
