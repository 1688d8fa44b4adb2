"""The job script is what it was asked to be, and works where SLURM's commands are played."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cluster_jobs
import fake_slurm
import pytest
import tiny
from progress import fence
from waiting import until

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.launch.run import env
from counterpoint.train.checkpointing.checkpoint import load, newest

manifest, run_file = cluster_jobs.manifest, cluster_jobs.run_file


def directives(text: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in text.splitlines() if line[:7] == "#SBATCH"}


def test_a_script_says_what_was_asked_and_is_bash(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = run_file(tmp_path / "a b", manifest)
    options = ["--nodes=2", "--gpus=3", "--time=2-12:00:00", "--partition=gpu", "--grace=90"]
    options += ["--sbatch=--qos=high", "--sbatch=--exclusive", "--interface=ib0", "--venv=.venv"]
    options += ["--mem=200G", "--setup=module load cuda", "--setup=echo 'it'\\''s set' >&2"]
    overrides = ["--optim.weight_decay=0.5", "--name", "it's", "--data.num_workers=3"]
    argv = ["launch", "slurm", "--config", str(path), *options, *overrides]
    assert main([*argv, "--run_dir=runs/one"]) == 0
    file = tmp_path / "runs" / "one" / "job.sbatch"
    text = file.read_text()
    assert directives(text) == {
        *("--job-name=it-s", "--nodes=2", "--ntasks-per-node=3", "--gpus-per-node=3"),
        *("--cpus-per-task=6", "--mem=200G"),  # three loader workers, see below
        *("--time=2-12:00:00", "--partition=gpu", "--qos=high"),
        *("--exclusive", f"--output={file.parent}/slurm-%j.log", "--open-mode=append"),
        *("--signal=USR1@90", "--requeue"),
    }
    assert "@{" not in text and "NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0" in text
    environment = text[text.index("# --- Environment") :].splitlines()[1:4]
    assert environment[:2] == ["module load cuda", "echo 'it'\\''s set' >&2"]
    assert environment[2] == f"source {tmp_path}/.venv/bin/activate"
    # What bash makes of the last command, with srun as a program that shows its words.
    subprocess.run(["bash", "-n", file], check=True)
    show = "srun() { printf '%s\\n' \"$@\"; }; squeue() { :; }; source() { :; }; module() { :; }\n"
    show += "SLURM_CPUS_PER_TASK=16\n"  # sbatch may be told another number than the script's
    done = subprocess.run(["bash", "-c", show + text], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        *("--kill-on-bad-exit=1", "--cpus-per-task=16", "counterpoint", "fit", "--resume", "auto"),
        *("--config", str(path), *overrides, "--run_dir", str(file.parent)),
    ]


def test_containers_see_what_the_run_names(manifest, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "slots").mkdir()
    values = tiny.config(manifest, steps=cluster_jobs.STEPS)
    (tmp_path / "slots" / "model.yaml").write_text(json.dumps(values["model"]))
    (tmp_path / "rows").mkdir()
    tiny.write_shards(tmp_path / "elsewhere", 1)
    index_shards([str(tmp_path / "elsewhere" / "00000.tar")], str(tmp_path / "m" / "m.parquet"))
    path = run_file(tmp_path / "file", tmp_path / "m" / "m.parquet", model="../slots/model.yaml")
    sidecar = json.dumps({"s": {"folder": "../rows", "columns": {"a": "b"}}})
    argv = ["--config", str(path), "--gpus=1", "--container=x.sif", f"--data.sidecars={sidecar}"]
    assert main(["launch", "slurm", *argv, "--run_dir=runs/one", "--out=job"]) == 0
    found = re.findall(r"--bind (\S+)", Path("job").read_text())
    names = ("elsewhere", "file", "m", "rows", "slots", "work")
    assert found == [str(tmp_path / name) for name in names]


def test_a_script_that_was_edited_is_left_alone(manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["launch", "slurm", "--config", str(run_file(tmp_path / "file", manifest)), "--gpus=2"]
    assert main(argv) == main(argv) == 0
    path = tmp_path / "runs" / "tiny" / "job.sbatch"
    path.write_text(path.read_text() + "# mine\n")
    assert main(argv) == 2
    assert "differs from what this command writes" in capsys.readouterr().err
    assert path.read_text().endswith("# mine\n")
    assert main([*argv, "--out", "other.sbatch"]) == 0


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("nvcr.io#x:1", "_PER_TASK\" '--container-image=nvcr.io#x:1'"),
        ("image.sif", '_PER_TASK" apptainer exec --nv --bind'),
    ],
)
def test_containers(manifest, tmp_path, monkeypatch, image, words):
    monkeypatch.chdir(tmp_path)
    argv = ["--config", str(run_file(tmp_path / "run", manifest)), "--gpus=0", "--tasks=2"]
    assert main(["launch", "slurm", *argv, "--container", image, "--out", "job"]) == 0
    text = (tmp_path / "job").read_text()
    assert (
        words in text.replace(" \\\n    ", " ")
        and "--gpus-per-node" not in text
        and "activate" not in text
    )


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--gpus=5", "batch_size=12 (the global batch) does not divide by the world size 5"),
        ("--gpus=0", "--tasks"),
        ("--time=long", "--time is long"),
        ("--model.typo=1", "model.typo"),
        ("--cache=cache", "give it a data.cache"),
        ("--resume=auto", "leave --resume out"),
        ("--submit", "there is no sbatch"),
    ],
)
def test_what_cannot_work_is_said_before_the_queue(
    manifest, tmp_path, monkeypatch, capsys, option, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    argv = ["launch", "slurm", "--config", str(run_file(tmp_path / "run", manifest)), "--gpus=2"]
    assert main([*argv, option]) == 2
    assert words in capsys.readouterr().err


def test_tasks_of_srun_get_the_variables_of_torchrun(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_")) or name.endswith("RANK"):
            monkeypatch.delenv(name)
    given = {
        "SLURM_JOB_ID": "123456",
        "SLURM_PROCID": "11",
        "SLURM_LOCALID": "3",
        "SLURM_NODEID": "2",
        "SLURM_NTASKS": "16",
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_STEP_TASKS_PER_NODE": "4(x4)",
        "SLURM_STEP_NODELIST": "node[07-09,12]",
    }
    monkeypatch.setattr(os, "environ", dict(os.environ) | given)
    env.adopt_slurm_tasks()
    assert env.under_torchrun() == (4, 4) and not env.is_first_process()
    assert os.environ["MASTER_ADDR"] == "node07" and os.environ["MASTER_PORT"] == "18456"
    assert env.cluster_plugins() == [] and not env.starts_again_by_itself()
    uneven = given | {"SLURM_STEP_TASKS_PER_NODE": "4(x3),2"}
    monkeypatch.setattr(os, "environ", uneven)
    with pytest.raises(ValueError, match="every node needs the same number"):
        env.adopt_slurm_tasks()
    # A batch script's own process, which srun did not start, is no task of sixteen.
    monkeypatch.setattr(os, "environ", {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16"})
    env.adopt_slurm_tasks()
    assert env.under_torchrun() is None and len(env.cluster_plugins()) == 1


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_a_job_that_runs_out_of_time_or_dies_goes_on(manifest, tmp_path, number):
    """Two tasks over gloo; the same weights as two processes that were left alone."""
    environment = {**os.environ, **fake_slurm.install(tmp_path / "slurm")}
    # The tests' own modules (progress) must be found by the tasks as well.
    helpers = Path(__file__).resolve().parents[2] / "helpers"
    environment["PYTHONPATH"] = f"{helpers}:{os.environ.get('PYTHONPATH', '')}"
    path, run_dir = run_file(tmp_path / "file", manifest), tmp_path / "run"
    job = [*("launch", "slurm", "--config", str(path), "--run_dir", str(run_dir), "--submit")]
    job += ["--gpus=0", "--tasks=2"]
    command = [sys.executable, "-m", "counterpoint.launch.cli", *job]
    fence(tmp_path / "file" / "at", 12)
    submitted = subprocess.Popen(command, env=environment, cwd=tmp_path)
    at, tasks = tmp_path / "file" / "at.1", tmp_path / "slurm" / "tasks"
    until(
        lambda: at.exists() and int(at.read_text().split()[1]) >= 10,
        lambda: submitted.poll() is None,
        lambda: log(run_dir),
    )
    for pid in map(
        int, tasks.read_text().split()[-1:] if number == 9 else tasks.read_text().split()
    ):
        os.kill(pid, number)
    fence(tmp_path / "file" / "at", None)
    assert submitted.wait() == 0
    assert (tmp_path / "slurm" / "state").read_text() == "ENDED 0 1", log(run_dir)
    starts = [json.loads(line) for line in (run_dir / "starts.jsonl").read_text().splitlines()]
    assert [start["step"] > 0 for start in starts] == [False, True]
    assert starts[1]["environment"]["SLURM_RESTART_COUNT"] == "1"
    assert "back into the queue" in log(run_dir)

    from processes import fit

    fit(["--config", str(path), "--run_dir", str(tmp_path / "whole")], 2, tmp_path / "log")
    got, want = (load(newest(folder))["state_dict"] for folder in (run_dir, tmp_path / "whole"))
    assert got.keys() == want.keys()
    assert [name for name in want if not (got[name] == want[name]).all()] == []


def log(run_dir: Path) -> str:
    path = run_dir / "slurm-4242.log"
    return path.read_text()[-4000:] if path.exists() else ""
