"""Lightning's callbacks in a run: those that need metrics get them, the others are refused."""

import json
import os
import signal

import lightning.pytorch as pl
import pytest
import tiny
import torch
import yaml
from PIL import Image
from processes import fit

from counterpoint.launch import cli
from counterpoint.launch.commands.fit import main
from counterpoint.train.checkpointing.checkpoint import load

TOP1 = "mine/colours/top1"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Shards, and a suite that any model answers with one value for ever."""
    folder = tmp_path_factory.mktemp("callbacks")
    shards = tiny.write_shards(folder / "shards", 2, 9)
    assert cli.main(["data", "index", *map(str, shards), "--out", str(folder / "m.parquet")]) == 0
    (folder / "images/red").mkdir(parents=True)
    Image.new("RGB", (20, 20), (255, 0, 0)).save(folder / "images/red/0.png")
    (folder / "mine.yaml").write_text(tiny.COLOURS)
    return folder


class Signal(pl.Callback):
    """Sends SIGTERM before a step; the run stops after the step."""

    step = None

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def run(world, tmp_path):
    """Trains for a few steps with callbacks; returns the run folder."""

    def start(*callbacks, steps=6, evaluate=2, ranks=1, status=0, **trainer):
        values = tiny.config(world / "m.parquet", steps=steps)
        values["data"]["num_workers"] = 0
        values["trainer"] |= {"logger": False, "callbacks": list(callbacks)}
        values["trainer"] |= trainer
        values["checkpoint"] = {"every_n_steps": 100}
        if evaluate:
            suite = {"suite": str(world / "mine.yaml"), "every_n_steps": evaluate}
            values["evaluation"] = suite
        words = ["--config", str(tiny.write_config(tmp_path, values)), *where]
        if ranks == 1:
            assert main(words) == status
        else:
            fit(words, ranks, tmp_path / "log")
        return tmp_path / "run"

    where = ["--run_dir", str(tmp_path / "run")]
    return start


def callback(name, **arguments):
    return {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments}


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]


def saved(run_dir, folder="checkpoints"):
    return sorted(
        int(path.stem.split("-")[-1].split("=")[-1]) for path in (run_dir / folder).glob("*.ckpt")
    )


@pytest.mark.parametrize("at_epoch_end", [None, True, False])
def test_early_stopping_acts_on_a_training_value(run, capsys, at_epoch_end):
    # The loss falls; of `max` the first stays best. An evaluation at step 2 is no second look.
    stopping = {"monitor": "loss", "mode": "max", "patience": 3}
    run_dir = run(callback("EarlyStopping", **stopping, check_on_train_epoch_end=at_epoch_end))
    losses = [row["loss"] for row in rows(run_dir) if "loss" in row]
    assert len(losses) == 4 and max(losses) == losses[0]
    assert saved(run_dir) == [4]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["samples"] == 48
    assert summary["stopped_by"].startswith("EarlyStopping (Monitored metric loss did not improve")
    assert "stopped by EarlyStopping (Monitored metric loss" in capsys.readouterr().out
    if at_epoch_end is not None:
        return
    # A later start may go on from there.
    main(["--resume", str(run_dir), "--trainer.callbacks=null"])
    assert rows(run_dir)[-1]["step"] == 6
    assert "stopped_by" not in json.loads((run_dir / "summary.json").read_text())


def test_early_stopping_acts_on_an_evaluation(run):
    stopping = callback("EarlyStopping", monitor=TOP1, mode="max", patience=2)
    run_dir = run(stopping, steps=10, log_every_n_steps=4)
    assert [row["step"] for row in rows(run_dir) if TOP1 in row] == [2, 4, 6]
    assert saved(run_dir) == [6]
    # Samples since the last row of training are counted in it as well.
    saved_data = load(run_dir / "checkpoints/step-00000006.ckpt")["PairsDataModule"]
    assert sum(num for _, num in saved_data["ledger"]["samples"]) == 6 * 12


@pytest.mark.parametrize("signalled", [2, 3])
def test_early_stopping_knows_the_value_of_the_step_at_which_a_signal_stops(run, signalled):
    # An undisturbed run ends after step 4: of `max` the first loss stays best.
    Signal.step = signalled
    stopping = callback("EarlyStopping", monitor="loss", mode="max", patience=3)
    run_dir = run(stopping, {"class_path": f"{__name__}.Signal"}, status={2: 143, 3: 0}[signalled])
    if signalled == 2:
        assert saved(run_dir) == [3]
        Signal.step = None
        assert main(["--resume", str(run_dir)]) == 0
    assert saved(run_dir)[-1] == 4
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["stopped_by"].startswith("EarlyStopping (Monitored metric loss")


@pytest.mark.soak
@pytest.mark.parametrize("monitor", ["loss", TOP1])
def test_all_ranks_stop_after_the_same_step(run, monitor):
    stopping = callback("EarlyStopping", monitor=monitor, mode="max", patience=2)
    best = callback("ModelCheckpoint", monitor=TOP1, mode="max")
    run_dir = run(stopping, best, steps=10, ranks=2)
    step = 3 if monitor == "loss" else 6
    assert saved(run_dir) == [step] and rows(run_dir)[-1]["step"] == step
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == step


@pytest.mark.parametrize(
    ("kind", "monitor", "evaluate", "words"),
    [
        ("EarlyStopping", "val_loss", 0, "nothing logs; there are .*, loss, loss/infonce, lr"),
        ("EarlyStopping", "val_loss", 2, "loss/infonce, .* and after evaluations mine/colours/"),
        ("EarlyStopping", "mine/colours/top2", 2, "there are .*mine/colours/top1"),
        ("EarlyStopping", TOP1, 1000, "after the last of the 6 steps only: lower evaluation.every"),
        ("ModelCheckpoint", "val_loss", 2, "ModelCheckpoint monitors 'val_loss', which nothing"),
    ],
)
def test_a_monitor_that_never_comes_is_refused(run, kind, monitor, evaluate, words):
    more = {"every_n_train_steps": 2} if kind == "ModelCheckpoint" else {}
    with pytest.raises(ValueError, match=words):
        run(callback(kind, monitor=monitor, **more), evaluate=evaluate)


def test_model_checkpoint_saves_beside_ours_and_goes_on_after_a_resume(run):
    best = callback("ModelCheckpoint", monitor=TOP1, mode="max", save_top_k=2)
    steps = callback("ModelCheckpoint", every_n_train_steps=3, save_top_k=-1, filename="{step}")
    run_dir = run(best, steps | {"init_args": steps["init_args"] | {"dirpath": None}})
    assert saved(run_dir) == [6]
    assert saved(run_dir, "model_checkpoints") == [2, 3, 4, 6]
    last = load(run_dir / "checkpoints/step-00000006.ckpt")
    states = [v for k, v in last["callbacks"].items() if TOP1 in k]
    # The evaluation of this step is known to it.
    assert [len(state["best_k_models"]) for state in states] == [2]
    main(["--resume", str(run_dir), f"--phases.train.samples={9 * 12}"])
    assert 9 in saved(run_dir, "model_checkpoints")
    weights = load(run_dir / "model_checkpoints/step=6.ckpt")
    name = "model.image_projection.weight"
    assert torch.equal(weights["state_dict"][name], last["state_dict"][name])


def test_a_model_checkpoint_that_would_never_save_is_refused(run):
    with pytest.raises(ValueError, match="give it every_n_train_steps, or the run an evaluation"):
        run(callback("ModelCheckpoint"), evaluate=0)


def test_rows_of_other_callbacks_go_into_the_runs_rows(run):
    run_dir = run(callback("LearningRateMonitor"), callback("DeviceStatsMonitor", cpu_stats=True))
    found = rows(run_dir)
    assert [row["step"] for row in found] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    training = [row for row in found if "loss" in row]
    rates = [name for name in training[0] if name.startswith("lr-")]
    # It looks before the step's own rate is set.
    assert rates and [r[rates[0]] for r in training[1:]] == [r["lr"] for r in training[:-1]]
    assert any(name.startswith("DeviceStatsMonitor") for name in training[-1])


@pytest.mark.parametrize(
    "name", ["TQDMProgressBar", "RichProgressBar", "RichModelSummary", "Timer"]
)
def test_what_is_seen_is_the_users_choice(run, capsys, name):
    pytest.importorskip("rich", reason="extra report")
    run_dir = run(callback(name, **({"duration": "00:01:00:00"} if name == "Timer" else {})))
    assert [row["step"] for row in rows(run_dir)] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    seen = capsys.readouterr()
    words = {"Timer": "", "RichModelSummary": "Total params"}
    assert words.get(name, "Epoch 0") in seen.out + seen.err


def test_a_bar_is_asked_for_by_a_key(run, capsys):
    pytest.importorskip("rich", reason="extra report")
    run(enable_progress_bar=True)
    assert "Epoch 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (callback("GradientAccumulationScheduler", scheduling={0: 2}), "a part of the batch"),
        (callback("StochasticWeightAveraging", swa_lrs=0.1), "average with ema"),
        (callback("EMAWeightAveraging"), "average with ema"),
        (callback("LearningRateFinder"), "the phases set the rate"),
        (callback("BatchSizeFinder"), "model.chunks saves memory"),
        (callback("BackboneFinetuning"), "freeze with optim.groups"),
        (callback("ModelPruning", pruning_fn="l1_unstructured"), "counterpoint export"),
        (callback("OnExceptionCheckpoint", dirpath="x"), "checkpoint.every_n_steps"),
    ],
)
def test_what_cannot_work_is_refused(run, chosen, words):
    with pytest.raises(ValueError, match=words):
        run(chosen)


def test_a_bar_and_no_bar_contradict(run):
    with pytest.raises(ValueError, match="leave one of the two out"):
        run(callback("TQDMProgressBar"), enable_progress_bar=False)


def test_what_the_file_says_is_the_resolved_configuration(run):
    run_dir = run(callback("Timer", duration="00:01:00:00"))
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["trainer"]["callbacks"][0]["init_args"]["interval"] == "step"
