"""Runs whose checkpoints are folders: the same as one file, on any number of processes."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from processes import Run, fit
from test_strategies import arguments, features, flat, rows, train  # noqa: F401
from waiting import until

from counterpoint.launch.cli import main
from counterpoint.launch.run.load import load_run
from counterpoint.models.weights import damage
from counterpoint.train.checkpointing.checkpoint import checkpoints_in, load, newest, newest_whole

SPLIT = "--checkpoint.format=distributed"


def same_tensors(a: Path, b: Path) -> None:
    one, other = load(a), load(b)
    for part in ("state_dict", "optimizer_states"):
        want, got = dict(flat(one[part])), dict(flat(other[part]))
        assert want.keys() == got.keys() and want
        assert [key for key in want if not torch.equal(want[key], got[key])] == []


def back_to_step_6(run_dir: Path, copy: Path) -> Path:
    shutil.copytree(run_dir, copy)
    for step in (12, 18, 20):
        shutil.rmtree(copy / "checkpoints" / f"step-{step:08d}.ckpt")
    return copy


def slowly(arguments, folder: Path) -> list[str]:  # noqa: F811
    """The same run, whose checkpoints take some steps."""
    values = yaml.safe_load(Path(arguments[1]).read_text())
    values["trainer"]["callbacks"] = [{"class_path": "slow_parts.SlowParts"}]
    path = folder / "slow.yaml"
    path.write_text(yaml.safe_dump(values))
    return ["--config", str(path)]


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload"])
def test_a_folder_holds_what_one_file_would(tmp_path, arguments, strategy):  # noqa: F811
    one = train(arguments, tmp_path / "one", strategy, 2, "--ema.decay=0.9")
    many = train(arguments, tmp_path / "many", strategy, 2, "--ema.decay=0.9", SPLIT)
    assert rows(one) == rows(many)
    assert len(checkpoints_in(one)) == len(checkpoints_in(many)) == 4
    for path in checkpoints_in(many):
        assert path.is_dir() and damage(path) is None
        assert len(list(path.glob("part-*.safetensors"))) == 2
        same_tensors(one / "checkpoints" / path.name, path)
    there = {path.name for path in (many / "checkpoints").iterdir()}
    assert there == {path.name for path in checkpoints_in(many)}

    again = back_to_step_6(many, tmp_path / "again")
    fit(["--resume", str(again)], 2, tmp_path / "again.log")
    assert rows(again) == rows(many)
    same_tensors(newest(many), newest(again))


@pytest.mark.soak
@pytest.mark.parametrize(
    "ways",
    [
        (("fsdp2", 2), ("auto", 1), ("fsdp2", 3)),
        (("zero3", 2), ("fsdp2", 3), ("zero2", 1)),
        (("ddp", 3), ("zero3", 2), ("ddp", 1)),
        (("zero1", 3), ("ddp", 2), ("fsdp2", 1)),
    ],
)
def test_other_processes_and_strategies_go_on(tmp_path, arguments, ways):  # noqa: F811
    """Each from what the one before wrote, and all as one process would."""
    one = train(arguments, tmp_path / "one", "auto", 1)
    (strategy, size), *others = ways
    run_dir = train(arguments, tmp_path / "run", strategy, size, SPLIT)
    for strategy, size in others:
        run_dir = back_to_step_6(run_dir, tmp_path / strategy)
        words = ["--resume", str(run_dir), f"--trainer.strategy={strategy}"]
        fit(words, size, tmp_path / "log")
        for key, values in rows(one).items():
            assert rows(run_dir)[key] == pytest.approx(values, rel=1e-5), key
    last, same = load(newest(run_dir))["state_dict"], load(newest(one))["state_dict"]
    for name, value in same.items():
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.soak
def test_copies_on_groups_write_each_element_once(tmp_path, arguments):  # noqa: F811
    name = "counterpoint.train.strategies.fsdp2.Fsdp2"
    hybrid = [SPLIT, "--trainer.strategy.copy_on=2", "--ema.decay=0.9"]
    run_dir = train(arguments, tmp_path / "run", name, 4, *hybrid)
    assert [damage(path) for path in checkpoints_in(run_dir)] == [None] * 4
    again = back_to_step_6(run_dir, tmp_path / "again")
    fit(["--resume", str(again)], 4, tmp_path / "again.log")
    assert rows(again) == rows(run_dir)
    same_tensors(newest(run_dir), newest(again))


@pytest.mark.soak
def test_training_goes_on_and_a_kill_leaves_the_last_one(tmp_path, arguments):  # noqa: F811
    """A rank's part is only written once later steps are done."""
    slow = slowly(arguments, tmp_path)
    whole = train(slow, tmp_path / "whole", "fsdp2", 2, SPLIT)
    assert len(checkpoints_in(whole)) == 4

    run_dir = tmp_path / "killed"
    words = ["--run_dir", str(run_dir), "--trainer.strategy=fsdp2", SPLIT]
    run = Run(["fit", *slow, *words], 2, tmp_path / "killed.log")
    folder = run_dir / "checkpoints"
    until(lambda: any(folder.glob(".step-00000012.ckpt.part-*")), run.alive, run.text)
    run.signal(signal.SIGKILL)
    run.wait()
    path, damaged = newest_whole(run_dir)
    assert path.name in ("step-00000006.ckpt", "step-00000012.ckpt") and not damaged
    fit(["--resume", str(run_dir)], 2, tmp_path / "killed.log")
    assert rows(run_dir) == rows(whole)
    same_tensors(newest(whole), newest(run_dir))
    assert not list(folder.glob(".*"))


@pytest.mark.soak
def test_a_damaged_part_and_what_reads_runs(tmp_path, arguments, capfd):  # noqa: F811
    run_dir = train(arguments, tmp_path / "run", "fsdp2", 2, SPLIT, "--ema.decay=0.9")
    last = newest(run_dir)
    part = next(last.glob("part-00001*"))
    part.write_bytes(part.read_bytes()[:-8] + b"differs!")
    assert newest_whole(run_dir)[0].name == "step-00000018.ckpt"
    step = load_run(run_dir, 18)
    for weights in ("trained", "ema"):
        file = tmp_path / f"{weights}.safetensors"
        words = ["export", str(run_dir), str(file), f"--weights={weights}"]
        assert main(words) == 0
    assert "part-00001.safetensors has other bytes than were written" in capfd.readouterr().out
    started = tmp_path / "started"
    source = str(last.with_name("step-00000018.ckpt"))
    words = [f"--init_from={source}", "--phases.train.samples=12"]
    train(arguments, started, "auto", 1, *words)
    assert features(step)["image"].shape == (3, 8)
    fit(["--resume", str(run_dir)], 3, tmp_path / "again.log")
    assert last.with_suffix(".damaged").is_dir() and damage(last) is None


def test_one_process_saves_and_goes_on(tmp_path, arguments):  # noqa: F811
    """The same run in the same process, in both formats and back."""
    words = [*arguments, "--checkpoint.every_n_steps=2", "--phases.train.samples=48"]
    one, many = tmp_path / "one", tmp_path / "many"
    assert main(["fit", *words, "--run_dir", str(one)]) == 0
    assert main(["fit", *words, "--run_dir", str(many), SPLIT]) == 0
    same_tensors(newest(one), newest(many))
    shutil.rmtree(newest(many))
    (many / "summary.json").unlink()
    assert main(["fit", "--resume", str(many), "--checkpoint.format=single"]) == 0
    assert newest(many).is_file() and newest_whole(many)[1] == {}
    same_tensors(newest(one), newest(many))
