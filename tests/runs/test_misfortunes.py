"""What happens to a run from outside ends in a sentence, and costs no step that was saved."""

import errno
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from processes import Run, run_program
from progress import fence, where
from tiny import config, write_config, write_shards
from waiting import until

from counterpoint.data.shards.index import index_shards
from counterpoint.launch import errors
from counterpoint.launch.api.training import build
from counterpoint.launch.cli import main
from counterpoint.launch.run import folder
from counterpoint.launch.run.faults import lock, lost_ranks
from counterpoint.train.callbacks.metrics import read_rows
from counterpoint.train.callbacks.stop import STOP_SIGNALS, StopOnSignal
from counterpoint.train.checkpointing.checkpoint import newest, step_of

STEPS = 20


@pytest.fixture
def arguments(tmp_path):
    """Arguments of `fit` for a run that writes where it is, and waits at a fence."""
    shards = [str(path) for path in write_shards(tmp_path / "pairs")]
    index_shards(shards, str(tmp_path / "train.parquet"))
    values = config(tmp_path / "train.parquet", steps=STEPS)
    values["trainer"] |= {
        "logger": False,
        "callbacks": [
            {"class_path": "progress.Progress", "init_args": {"path": str(tmp_path / "at")}}
        ],
    }
    return ["--config", str(write_config(tmp_path, values)), "--run_dir", str(tmp_path / "run")]


def reached(run: Run, at, step: int) -> None:
    """Waits until every rank stands before a step."""
    ranks = range(len(run.processes))
    until(
        lambda: all((found := where(at, r)) and found[1] == step for r in ranks),
        run.alive,
        lambda: run.text()[-3000:],
    )


@pytest.mark.soak
def test_one_run_at_a_time_and_a_rank_that_is_gone(arguments, tmp_path, capsys):
    fence(tmp_path / "at", 8)
    run = Run(["fit", *arguments, "--checkpoint.every_n_steps=6"], 2, tmp_path / "log")
    reached(run, tmp_path / "at", 8)
    holder = f"is being trained by process {run.processes[0].pid} on {os.uname().nodename} since"
    assert main(["fit", "--resume", str(tmp_path / "run")]) == 2
    assert holder in capsys.readouterr().err
    run.signal(signal.SIGKILL, [1])
    fence(tmp_path / "at", None)
    assert run.wait() == [75, -signal.SIGKILL], run.text()[-3000:]
    sentence = (
        "another process of the run has ended; what it printed last says why; stopped in step"
    )
    assert sentence in run.text() and f"--resume {tmp_path / 'run'}" in run.text()
    assert "Traceback" not in run.text()
    # Whoever had the lock is gone, and so is the lock.
    again = Run(["fit", "--resume", str(tmp_path / "run")], 2, tmp_path / "log")
    assert again.wait() == [0, 0], again.text()[-3000:]
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [
        *range(1, STEPS + 1)
    ]


@pytest.mark.soak
def test_the_first_rank_is_gone(arguments, tmp_path):
    fence(tmp_path / "at", 8)
    run = Run(["fit", *arguments], 2, tmp_path / "log")
    reached(run, tmp_path / "at", 8)
    run.signal(signal.SIGKILL, [0])
    fence(tmp_path / "at", None)
    assert run.wait() == [-signal.SIGKILL, 75], run.text()[-3000:]
    assert "another process of the run has ended" in run.text()
    assert "Traceback" not in run.text()


def test_a_loader_worker_is_gone(arguments, tmp_path):
    fence(tmp_path / "at", 3)
    run = Run(["fit", *arguments, "--data.num_workers=1"], 1, tmp_path / "log")
    reached(run, tmp_path / "at", 3)
    pid = run.processes[0].pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    fence(tmp_path / "at", None)
    assert children and run.wait() == [75], run.text()[-3000:]
    assert re.search(r"a loader worker has ended \(.*\); if memory was short", run.text())
    assert "Traceback" not in run.text()


def test_a_run_before_its_first_checkpoint_is_not_begun_twice(arguments, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    held = lock.RunLock(tmp_path / "run")
    run = Run(["fit", *arguments], 1, tmp_path / "log")
    assert run.wait() == [2]
    assert f"is being trained by process {os.getpid()} on" in run.text()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [lock.NAME]
    held.release()
    run = Run(["fit", *arguments], 1, tmp_path / "log")
    assert run.wait() == [0], run.text()[-3000:]


def test_a_run_that_is_refused_or_over_holds_its_folder_no_longer(arguments, tmp_path):
    """Also while somebody looks at the error, or keeps what was built."""
    options = {"trainer.callbacks": None, "data.num_workers": 0, "phases.train.samples": 24}
    run_dir = tmp_path / "run"
    built = build(arguments[1], options, run_dir=run_dir)
    with pytest.raises(ValueError, match="is being trained by process"):
        other(run_dir)
    built.trainer.fit(built.module, datamodule=built.data)
    other(run_dir)
    argv = ["fit", "--resume", str(run_dir), "--seed=5"]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "sentence", lambda error: seen.append(error) or "kept")
        assert main(argv) == 2
    assert "cannot resume" in str(seen[0])
    other(run_dir)


def other(run_dir) -> None:
    """Takes the lock in another process, as `RunLock` does; raises its error."""
    program = f"from pathlib import Path; from {lock.__name__} import RunLock; "
    program += f"RunLock(Path({str(run_dir)!r}))"
    status, text = run_program(program, run_dir.parent / "other")
    if status:
        raise ValueError(text)


def test_a_terminal_that_is_closed_and_a_folder_that_is_removed(arguments, tmp_path):
    # Whoever runs the tests under nohup has children that ignore it.
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    number = signal.SIGTERM if is_ignored else signal.SIGHUP
    fence(tmp_path / "at", 3)
    run = Run(["fit", *arguments], 1, tmp_path / "log")
    reached(run, tmp_path / "at", 3)
    run.signal(number)
    fence(tmp_path / "at", None)
    assert run.wait() == [128 + number], run.text()[-3000:]
    assert step_of(newest(tmp_path / "run")) in (4, 5) and f"by {number.name}" in run.text()
    fence(tmp_path / "at", 9)
    run = Run(["fit", "--resume", str(tmp_path / "run")], 1, tmp_path / "log")
    reached(run, tmp_path / "at", 9)
    shutil.rmtree(tmp_path / "run")
    fence(tmp_path / "at", None)
    assert run.wait() == [2], run.text()[-3000:]
    assert "run folder is read-only, or has been removed" in run.text()
    assert "Traceback" not in run.text()


def test_a_command_that_ignores_hangups():
    """As under nohup."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        for ignored, number in ((signal.SIG_IGN, 0), (signal.SIG_DFL, signal.SIGHUP)):
            signal.signal(signal.SIGHUP, ignored)
            loops = SimpleNamespace(epoch_loop=SimpleNamespace(_broadcast_sigterm_tensor=None))
            stop = StopOnSignal()
            trainer = SimpleNamespace(should_stop=False, fit_loop=loops)
            stop.on_train_start(trainer, None)
            os.kill(os.getpid(), signal.SIGHUP)
            stop.on_train_batch_end(trainer, None)
            assert (trainer.should_stop, stop.signum or 0) == (number > 0, number)
            stop.teardown(trainer, None, "fit")
            assert signal.getsignal(signal.SIGHUP) == ignored
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_run_folder_that_cannot_be_made(arguments, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["fit", *arguments[:2], "--run_dir", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written (Not a directory): the run folder is" in capsys.readouterr().err


def test_only_errors_about_the_run_folder_are_its_sentence(tmp_path):
    run_dir = tmp_path / "runs" / "a"
    for path in (run_dir, run_dir / "log.txt", tmp_path / "runs"):
        sentence = pytest.raises(ValueError, match=r"Read-only file system\): the run folder")
        with sentence, folder.folder_errors(run_dir):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run_dir))
    elsewhere = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "shard.tar"))
    for error in (full, elsewhere, OSError("no file is named")):
        with pytest.raises(OSError) as caught, folder.folder_errors(run_dir):
            raise error
        assert caught.value is error


def test_a_lock_is_waited_for_and_a_file_system_without_locks_is_said(
    tmp_path, monkeypatch, capsys
):
    program = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX);"
    program += "print(flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        ["python3", "-c", program, str(tmp_path / lock.NAME)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    with pytest.raises(ValueError, match="is being trained by another process; wait until"):
        lock.RunLock(tmp_path)
    monkeypatch.setattr(lock.time, "sleep", lambda _: other.communicate())
    lock.RunLock(tmp_path, patience=1e6)
    assert "waiting for its end" in capsys.readouterr().out

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    lock.RunLock(tmp_path)
    assert "has no locks" in capsys.readouterr().out


def test_who_is_gone(monkeypatch):
    monkeypatch.setattr(lost_ranks, "WAIT", 0.0)
    gloo = RuntimeError("[..gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1")

    def said(error, *statuses):
        procs = [SimpleNamespace(poll=lambda s=s: s, returncode=s) for s in statuses]
        strategy = SimpleNamespace(launcher=SimpleNamespace(procs=procs))
        return lost_ranks.lost_ranks(error, SimpleNamespace(strategy=strategy, global_rank=4))

    assert said(RuntimeError("shapes differ"), -9) is None
    assert said(ValueError("gloo/transport"), -9) is None
    assert said(gloo, None, -9, 0, 1).startswith(
        "rank 6 (SIGKILL: out of memory?) and rank 8 (exit status 1) has ended"
    )
    worker = "DataLoader worker (pid 7) is killed by signal: Killed. "
    sentence = "a loader worker has ended (is killed by signal: Killed); if memory"
    assert said(RuntimeError(worker)).startswith(sentence)
    worker = "DataLoader worker (pid(s) 7, 8) exited unexpectedly"
    assert said(RuntimeError(worker)).startswith("a loader worker has ended (exited unexpectedly);")
    unknown = "another process of the run has ended; what it printed last says why"
    assert said(dist.DistNetworkError("lost")) == said(gloo, None, None) == unknown
