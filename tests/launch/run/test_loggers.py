"""Loggers of a run: configuration, name, and one identity across a resume."""

import csv
import json
import sys
import time

import pytest
import tiny
import yaml

from counterpoint.launch import cli
from counterpoint.launch.commands.fit import main
from counterpoint.launch.run.loggers import Loggers

STEPS = 4


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loggers")
    shards = tiny.write_shards(folder / "shards", 2, 9)
    assert cli.main(["data", "index", *map(str, shards), "--out", str(folder / "m.parquet")]) == 0
    return folder / "m.parquet"


@pytest.fixture
def run(manifest, tmp_path, monkeypatch):
    """Trains with `logger`; the run folder. Ends as if killed after the last step but one save."""
    monkeypatch.chdir(tmp_path)

    def start(logger):
        values = tiny.config(manifest, steps=STEPS)
        values["data"]["num_workers"] = 0
        values["trainer"] |= {"logger": logger}
        values["checkpoint"] = {"every_n_steps": 2, "keep": 0}
        path = tiny.write_config(tmp_path, values)
        assert main(["--config", str(path), "--run_dir", "run"]) == 0
        (tmp_path / "run/checkpoints/step-00000004.ckpt").unlink()
        return tmp_path / "run"

    return start


def test_files_have_the_configuration_and_go_on_after_a_resume(run):
    folder = run(["csv", "tensorboard"])
    with open(folder / "csv/metrics.csv") as file:
        before = list(csv.DictReader(file))
    main(["--resume", str(folder)])
    with open(folder / "csv/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]
    assert [float(row["loss"]) for row in rows] == losses
    assert rows[:2] == [
        row | {k: str(float(v)) for k, v in row.items() if k != "step"} for row in before[:2]
    ]
    for logger in ("csv", "tensorboard"):
        hparams = yaml.safe_load((folder / logger / "hparams.yaml").read_text())
        assert hparams["phases.train.learning_rate"] == 1e-3
        assert hparams["model.embed_dim"] == 8

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_wandb_is_one_run_under_the_runs_name(run, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder, seen = None, []
    for _ in range(2):
        folder = run("wandb") if folder is None else folder
        if seen:
            main(["--resume", str(folder)])
        seen.append((wandb.run.id, wandb.run.name, dict(wandb.run.config), wandb.run.resumed))
        wandb.finish()
    (first, name, config, _), (second, _, _, _) = seen
    assert first == second and name == "tiny"
    assert config["phases.train.learning_rate"] == 1e-3 and config["data.lanes"] == 2
    assert len(list(folder.glob(f"wandb/offline-run-*-{first}"))) == 2


def test_mlflow_is_one_run_under_the_runs_name(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="package mlflow")
    pytest.importorskip("sqlalchemy", reason="package mlflow, not mlflow-skinny")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = run("mlflow")
    main(["--resume", str(folder), f"--phases.train.samples={6 * 12}"])  # changes a parameter
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("counterpoint")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "tiny"
    assert found.data.params["phases.train.learning_rate"] == "0.001"
    assert {m.step for m in client.get_metric_history(found.info.run_id, "loss")} == set(
        range(1, 7)
    )


@pytest.mark.parametrize("how", ["no package", "no argument", "no class"])
def test_a_resumed_run_does_without_a_logger_that_cannot_be_made(run, monkeypatch, capsys, how):
    folder = run("csv")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    kind = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}}
    if how == "no argument":
        kind["init_args"]["entity"] = "x"
    if how == "no class":
        kind["class_path"] = "their_own.Logger"
    wanted = ["csv", "wandb" if how == "no package" else kind]
    config["trainer"]["logger"] = wanted
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setitem(sys.modules, "wandb", None)
    main(["--resume", str(folder)])
    out = capsys.readouterr().out
    word = {"no package": "wandb is not installed", "no argument": "entity"}
    assert word.get(how, "their_own") in out and "the run goes on without it" in out
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"] == wanted
    rows = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert rows == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("logger", "words"),
    [
        ("wandb", "trainer.logger is wandb, and the package wandb is not installed here"),
        ({"class_path": "WandbLogger"}, "trainer.logger is WandbLogger, and the package wandb"),
        ({"class_path": "CSVLogger", "init_args": {"save_dir": ".", "fold": 1}}, "fold"),
        ({"class_path": "CSVLogger"}, "save_dir"),
        ({"class_path": "CsvLogger"}, "CsvLogger, which cannot be imported"),
    ],
)
def test_a_new_run_is_refused(tmp_path, monkeypatch, logger, words):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=words):
        Loggers(logger, "x", tmp_path, resumes=False)


def test_what_the_user_chose_stays(tmp_path):
    chosen = [
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "a")}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "mine"}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "mine"}},
    ]
    made = Loggers(chosen, "x", tmp_path, resumes=False).start({"a": {"b": 1}}, 0)
    assert [(logger.name, logger.version) for logger in made] == [
        ("x", 0),
        ("mine", 0),
        ("mine", 1),
    ]
    again = Loggers(chosen, "x", tmp_path, resumes=True).start({}, 3)
    assert [(logger.name, logger.version) for logger in again] == [
        ("x", 0),
        ("mine", 0),
        ("mine", 1),
    ]


@pytest.mark.parametrize("num_cut", [4, 8, 9])  # within the last value, behind the first, within it
def test_a_file_cut_by_a_kill_stops_no_resume(tmp_path, num_cut):
    logger = Loggers("csv", "x", tmp_path, resumes=False).start({}, 0)[0]
    for step in (1, 2, 3):
        logger.log_metrics({"loss": 1.5, "z": 2.25}, step)
    logger.save()
    path = tmp_path / "csv/metrics.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True))[:-num_cut])
    Loggers("csv", "x", tmp_path, resumes=True).start({}, 2)
    rows = list(csv.DictReader(path.open()))
    assert [(row["loss"], int(row["step"]), row["z"]) for row in rows] == [
        ("1.5", 1, "2.25"),
        ("1.5", 2, "2.25"),
    ]


def test_events_of_a_start_that_left_no_checkpoint_are_gone(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for value, steps in ((1.0, 5), (2.0, 3)):
        second = int(time.time())  # files of one second are read by their names: .10 before .9
        while int(time.time()) == second:
            time.sleep(0.01)
        (logger,) = Loggers("tensorboard", "x", tmp_path, resumes=False).start({}, 0)
        for step in range(1, steps + 1):
            logger.log_metrics({"loss": value}, step)
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 2.0), (2, 2.0), (3, 2.0)]
