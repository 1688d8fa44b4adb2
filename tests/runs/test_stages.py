"""Runs of several stages: one command, and bit-equal wherever they are killed."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from processes import Run, fit
from progress import fence
from recorder import read
from test_resume import begun, flat, losses
from tiny import SENTENCES, TEXT_PAIRS, config, write_shards, write_texts

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.launch.experiments.results import identity
from counterpoint.launch.reporting.about import origin
from counterpoint.launch.reporting.runs import read_run
from counterpoint.launch.run.load import load_run
from counterpoint.train.checkpointing.checkpoint import load, newest, write

STEPS = {"texts": 5, "views": 8, "long": 4}
TOTAL = sum(STEPS.values())
STRONG = {"transform": {"class_path": "counterpoint.data.images.transforms.TrainTransform"}}
SIMCLR = {
    "class_path": "counterpoint.losses.self_supervision.simclr.SimCLR",
    "init_args": {
        "head": {
            "class_path": "counterpoint.losses.components.heads.MLP",
            "init_args": {"widths": [8, 16, 8]},
        }
    },
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Two of pairs, of other shards, and one of texts."""
    folder = tmp_path_factory.mktemp("pairs")
    paths = [str(p) for p in write_shards(folder, num_shards=5)]
    for name, shards in (("one", paths[:2]), ("two", paths[2:])):
        index_shards(shards, str(folder / f"{name}.parquet"))
    texts = [str(p) for p in write_texts(folder / "texts")]
    index_shards(texts, str(folder / "texts.parquet"), caption=["json:anchor"], images=())
    return folder


def values(manifests: Path) -> dict:
    """A run of three stages: other data, heads, averages, frozen groups, optimizers and lengths.

    The later ones have a second stream, which in the last takes turns with the first.
    """
    run = config(manifests / "one.parquet")
    streams = {"sentences": {"manifest": str(manifests / "texts.parquet"), "batch_size": 6}}
    streams["sentences"] |= SENTENCES
    of_streams = {"streams": {"sentences": "sentences"}}
    infonce = run.pop("objective")["terms"]

    def phases(name: str, batch_size: int) -> dict:
        size = {"samples": STEPS[name] * batch_size, "batch_size": batch_size}
        return {name: {**size, "learning_rate": 1e-3, "warmup_samples": 2 * batch_size}}

    del run["phases"]
    run["checkpoint"] = {"every_n_steps": 3, "keep": 0}
    run["stages"] = {
        "texts": {
            "objective": {"terms": infonce},
            "optim": {"groups": {"frozen": ["image.*"]}},
            "phases": phases("texts", 12),
        },
        "views": {
            "objective": {
                "terms": {**infonce, "simclr": SIMCLR, "sentences": TEXT_PAIRS},
                "weights": {"simclr": 0.5},
                **of_streams,
            },
            "data": {
                "manifest": str(manifests / "two.parquet"),
                "streams": streams,
                "views": {"strong_1": STRONG, "strong_2": STRONG},
            },
            "ema": {"decay": 0.9},
            "phases": phases("views", 8),
        },
        "long": {
            "objective": {"terms": {**infonce, "sentences": TEXT_PAIRS}, **of_streams},
            "data": {"streams": streams, "turns": {"main": 2, "sentences": 1}},
            "model": {"text": {"init_args": {"context_length": 12}}},
            "ema": {"decay": 0.5},
            "optim": {"betas": [0.8, 0.9]},
            "phases": phases("long", 16),
        },
    }
    return run


def write_config(folder: Path, run: dict) -> Path:
    """Writes a run file; stages keep their order."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run, sort_keys=False))
    return path


def run_file(folder: Path, manifests: Path, **trainer) -> list[str]:
    folder.mkdir()
    run = values(manifests)
    keys = {"class_path": "recorder.Keys", "init_args": {"path": str(folder / "keys.txt")}}
    progress = {"class_path": "progress.Progress", "init_args": {"path": str(folder / "at")}}
    run["trainer"] |= {"callbacks": [keys, progress], **trainer}
    return ["--config", str(write_config(folder, run)), "--run_dir", str(folder / "run")]


def assert_equal(killed: Path, whole: Path, world_size: int) -> None:
    want, got = read(whole / "keys.txt"), read(killed / "keys.txt")
    assert len(want) == TOTAL * world_size
    assert got == want
    assert losses(killed / "run") == losses(whole / "run")
    assert [step for step, _, _ in losses(whole / "run")] == list(range(1, TOTAL + 1))
    one, other = (load(newest(folder / "run")) for folder in (whole, killed))
    assert one["global_step"] == other["global_step"] == TOTAL
    for part in ("state_dict", "optimizer_states"):
        a, b = dict(flat(one[part])), dict(flat(other[part]))
        assert a.keys() == b.keys() and a
        assert [key for key in a if not torch.equal(a[key], b[key])] == []


def kill(arguments: list[str], folder: Path, step: int, world_size: int) -> None:
    """Kill -9 to all ranks while `step` is under way."""
    fence(folder / "at", step + 1)
    run = Run(arguments, world_size, folder / "log")
    begun(run, folder, step)
    run.signal(signal.SIGKILL)
    assert set(run.wait()) == {-9}
    fence(folder / "at", None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, manifests):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    fit(run_file(folder, manifests), 1, folder / "log")
    return folder


def state(run_dir: Path, step: int, prefix: str) -> dict[str, torch.Tensor]:
    saved = load(run_dir / f"checkpoints/step-{step:08d}.ckpt")["state_dict"]
    return {n.removeprefix(prefix): v for n, v in saved.items() if n.startswith(prefix)}


def test_each_stage_goes_on_from_the_one_before(whole):
    ends = [5, 13, 17]
    saved = [load(whole / "run" / f"checkpoints/step-{end:08d}.ckpt") for end in ends]
    assert [each["counterpoint"]["stage"] for each in saved] == list(STEPS)
    assert [each["counterpoint"]["samples"] for each in saved] == [60, 124, 188]
    # The image tower is frozen in the first stage, and trains in the second.
    first = {n: v for n, v in state(whole / "run", 3, "model.image.").items()}
    assert all(torch.equal(v, first[n]) for n, v in state(whole / "run", 5, "model.image.").items())
    after = state(whole / "run", 6, "model.")
    moved = [(v - after[n]).abs().max() for n, v in state(whole / "run", 5, "model.").items()]
    # One step from the last weights, at most at the rate of a warm-up: no new start.
    assert 0 < max(moved) < 3e-3
    assert not any(n.startswith("objective.terms.simclr") for n in saved[0]["state_dict"])
    assert any(n.startswith("objective.terms.simclr") for n in saved[1]["state_dict"])
    assert not any(n.startswith("objective.terms.simclr") for n in saved[2]["state_dict"])
    # Averages begin as the model is, and go on in a stage that has one.
    begun_at, average = state(whole / "run", 5, "model."), state(whole / "run", 6, "ema.model.")
    for name, value in average.items():
        if value.is_floating_point():
            expected = 0.9 * begun_at[name] + 0.1 * after[name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    log = (whole / "log").read_text()
    assert "moving average: " not in log  # whole, positions stretched
    assert "heads and state of the objective: 0 kept, 7 fresh (terms.simclr.head.0.weight" in log
    assert "0 kept, 0 fresh, 7 dropped (terms.simclr.head.0.weight" in log
    rows = [json.loads(x) for x in (whole / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == [0] * 5 + [1] * 8 + [2] * 4
    assert [row["samples"] for row in rows][-1] == 188
    summary = json.loads((whole / "run/summary.json").read_text())
    assert summary["steps"] == TOTAL and summary["samples"] == 188


def test_each_step_has_its_stages_batch_and_the_average_goes_on(whole):
    seen = read(whole / "keys.txt")
    # Step 13 is the second of a turn of three, whose third has sentences only.
    sizes = [[12]] * 5 + [[8, 6]] * 8 + [[16], [6], [16], [16]]
    for step, size in enumerate(sizes):
        (row,) = seen[step, 0]
        assert [len(keys.split(",")) for keys in row.split(" ")[0].split(";")] == size
    before, after = (state(whole / "run", step, "ema.model.") for step in (13, 15))
    for name, weights in state(whole / "run", 15, "model.").items():
        if weights.is_floating_point() and before[name].shape == weights.shape:
            # Two steps at 0.5: a quarter is of the stage before, another of step 14.
            between = 4 * (after[name] - before[name] / 4 - weights / 2)
            assert (between - weights).abs().max() < 1.5e-3  # one step at a rate of 1e-3


def test_totals_of_the_guard_go_on(tmp_path, whole):
    shutil.copytree(whole / "run", tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").glob("*.ckpt"):
        if int(path.stem[5:]) > 13:
            path.unlink()
    end = tmp_path / "run/checkpoints/step-00000013.ckpt"
    saved = load(end)
    saved["counterpoint"]["guard"]["nonfinite"] += 3
    write(saved, end)
    fit(["--resume", str(tmp_path / "run")], 1, tmp_path / "log")
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == TOTAL and last["guard/nonfinite"] == 3


def test_a_stage_of_longer_captions_stretches_their_positions(whole):
    def positions(step: int) -> torch.Tensor:
        found = state(whole / "run", step, "model.text.").items()
        return next(value for name, value in found if name.endswith("position_embedding.weight"))

    columns = positions(13).double().T[None]
    expected = torch.nn.functional.interpolate(columns, size=12, mode="linear")[0].T
    assert (positions(15) - expected).abs().max() < 3e-3  # two steps later


def test_optimizers_begin_anew_and_rates_are_the_stages_own(whole):
    rows = [json.loads(x) for x in (whole / "run/metrics.jsonl").read_text().splitlines()]
    for first in (0, 5, 13):
        assert rows[first]["lr"] < rows[first + 1]["lr"] == pytest.approx(1e-3)
    for step, steps in ((6, 1), (13, 8), (17, 4)):
        saved = load(whole / "run" / f"checkpoints/step-{step:08d}.ckpt")
        states = saved["optimizer_states"][0]["state"].values()
        assert {int(each["step"]) for each in states} == {steps}


@pytest.mark.parametrize(
    "step", [pytest.param(4, marks=pytest.mark.soak), 5, pytest.param(13, marks=pytest.mark.soak)]
)
def test_killed_in_a_stage_and_at_its_start(tmp_path, manifests, whole, step):
    killed = tmp_path / "killed"
    kill(["fit", *run_file(killed, manifests)], killed, step, 1)
    fit(["--resume", str(killed / "run")], 1, killed / "log")
    assert_equal(killed, whole, 1)


@pytest.mark.soak
def test_stages_whose_checkpoints_are_written_behind_them(tmp_path, manifests, whole):
    killed = tmp_path / "killed"
    kill(["fit", *run_file(killed, manifests), "--checkpoint.format=distributed"], killed, 6, 1)
    fit(["--resume", str(killed / "run")], 1, killed / "log")
    assert_equal(killed, whole, 1)
    assert (killed / "run/checkpoints/step-00000005.ckpt").is_dir()


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_in_every_stage_and_at_both_boundaries(tmp_path, manifests, strategy, world_size):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(run_file(whole, manifests, strategy=strategy), world_size, whole / "log")
    draw = random.Random(f"{strategy}{world_size}")
    arguments = ["fit", *run_file(killed, manifests, strategy=strategy)]
    for step in (draw.randrange(3, 5), 5, draw.randrange(7, 13), 13, draw.randrange(14, 17)):
        kill(arguments, killed, step, world_size)
        arguments = ["fit", "--resume", str(killed / "run")]
    fit(["--resume", str(killed / "run")], world_size, killed / "log")
    assert_equal(killed, whole, world_size)


def test_stages_that_cannot_be_are_refused(tmp_path, manifests, whole, capsys):
    def refused(message: str, *options: str, **changes) -> None:
        run = values(manifests) | changes
        path = write_config(tmp_path, run)
        assert main(["fit", "--config", str(path), "--run_dir", str(tmp_path / "x"), *options]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()

    phase = {"samples": 12, "batch_size": 12, "learning_rate": 1e-3}
    refused("a run with stages has phases in each of them", phases={"train": phase})
    refused("--stages.text.seed: there is no such stage", "--stages.text.seed=1")
    refused("--phases.train.samples: there is no such stage or phase", "--phases.train.samples=1")
    refused("stages.views.seed is 4, and 0 in texts: all stages share", "--stages.views.seed=4")
    refused("stages.long.phases (in", stages={"long": {"objective": "clip"}})
    refused("stages (in", stages=["texts"])
    refused("stages (in", stages={})
    refused("stages.views.mirror is", "--stages.views.mirror=s3://b/r")
    wider = "--stages.long.model.embed_dim=16"
    refused("stages.long.model.embed_dim is 16, and 8 in texts", wider)


def test_the_report_names_the_stages(whole):
    rows = {row.title: row.cells[0] for row in origin([read_run(whole / "run")])}
    assert rows["Stages"] == "texts from step 1, views from step 6, long from step 14"
    assert "starts" not in rows["Date"]


def test_a_run_is_loaded_as_the_stage_of_its_checkpoint(whole):
    both = {"infonce", "sentences"}
    for step, terms in ((5, {"infonce"}), (13, both | {"simclr"}), (17, both)):
        loaded = load_run(whole / "run", step)
        assert loaded.objective.terms.keys() == terms
        assert torch.equal(
            loaded.model.state_dict()["logit_scale"],
            state(whole / "run", step, "model.")["logit_scale"],
        )
    shown = yaml.safe_load((whole / "run/config.yaml").read_text())
    assert list(shown["phases"]) == ["long"]


def test_every_stage_is_printed(tmp_path, manifests, capsys):
    path = write_config(tmp_path, values(manifests))
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(path), "--print_config"])
    assert ended.value.code == 0
    texts = capsys.readouterr().out.split("# stages.")[1:]
    assert [text.partition("\n")[0] for text in texts] == list(STEPS)
    shown = [yaml.safe_load(text.partition("\n")[2]) for text in texts]
    assert [list(each["phases"]) for each in shown] == [[name] for name in STEPS]


@pytest.mark.soak
def test_a_change_in_any_stage_makes_another_result(tmp_path, manifests):
    path = str(write_config(tmp_path, values(manifests)))
    one = identity(path, {})
    assert one.agrees(identity(path, {"seed": 3, "trainer.devices": 2}))
    for key in ("stages.texts.phases.texts.samples", "phases.long.samples"):
        assert not one.agrees(identity(path, {key: 600}))
    assert not one.agrees(identity(path, {"stages.views.objective.weights.simclr": 0.25}))
    precise = identity(path, {"trainer.precision": "bf16-mixed"})
    assert not one.agrees(precise) and precise.trained_in("bf16-mixed").agrees(precise)


def test_what_is_over_may_not_change(tmp_path, whole, capsys):
    shutil.copytree(whole / "run", tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").glob("*.ckpt"):
        if int(path.stem[5:]) > 6:
            path.unlink()
    stages = yaml.safe_load((tmp_path / "run/stages.yaml").read_text())["stages"]
    assert [list(stage["phases"]) for stage in stages.values()] == [[name] for name in STEPS]

    def refused(message: str, *options: str) -> None:
        assert main(["fit", "--resume", str(tmp_path / "run"), *options]) == 2
        assert message in capsys.readouterr().err

    refused("was written in the stage 'views'", "--phases.texts.samples=120")
    refused("stages that are over keep their names and lengths", "--phases.texts.samples=36")
    (tmp_path / "run/checkpoints/step-00000006.ckpt").unlink()
    refused("batch_size: 12 -> 6", "--phases.texts.batch_size=6", "--phases.texts.samples=30")


def test_the_last_stage_may_be_longer(tmp_path, whole):
    """A run that is over goes on with a longer last stage."""
    shutil.copytree(whole / "run", tmp_path / "run")
    longer = ["--phases.long.samples=96", "--checkpoint.keep=1"]
    fit(["--resume", str(tmp_path / "run"), *longer], 1, tmp_path / "log")
    # The last weights of stages stay.
    names = {path.stem for path in (tmp_path / "run/checkpoints").glob("*.ckpt")}
    assert names == {f"step-{step:08d}" for step in (5, 13, 18, 19)}
    saved = load(newest(tmp_path / "run"))
    assert saved["global_step"] == TOTAL + 2
    assert saved["counterpoint"]["stage"] == "long"
