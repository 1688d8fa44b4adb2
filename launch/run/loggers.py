"""Loggers beside the metrics file: by a word or by class, under the run's name, across resumes.

In: `trainer.logger` as it is written. Out: Lightning's loggers, each with the run's flat
configuration; `RUN/loggers.json` keeps under which identity (W&B's id, MLflow's run id, ...) each
one logs, so that a resumed run goes on there.
"""

import csv
import importlib.util
import json
import os
import pkgutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger
from lightning.pytorch.loggers.logger import Logger

from ...data.files import write_whole
from ..config.identity import leaves
from ..config.messages import shortened
from .env import is_first_process, log

IDENTITIES = "loggers.json"

# By class: the argument with the identity, and packages of which one is needed.
KNOWN = {
    "WandbLogger": ("id", ("wandb",)),
    "MLFlowLogger": ("run_id", ("mlflow",)),
    "CometLogger": ("experiment_key", ("comet_ml",)),
    "TensorBoardLogger": ("version", ("tensorboard", "tensorboardX")),
    "CSVLogger": ("version", ()),
}
# Lightning's default.
UNCHOSEN = (None, "lightning_logs", ".", "./mlruns")
PLACE = "lightning.pytorch.loggers"


class Loggers:
    """The loggers that a run's configuration names.

    Args:
        chosen: `trainer.logger` of the resolved configuration.
        name: of the run.
        run_dir: its folder.
        resumes: whether the run is resumed; then a logger that cannot be made is left out, with a
            line in the log.
    """

    def __init__(self, chosen: Any, name: str, run_dir: Path, resumes: bool):
        self.name, self.run_dir = name, run_dir
        self.path = run_dir / IDENTITIES
        self.identities: dict[str, str | int] = {}
        if resumes and self.path.exists():
            self.identities = json.loads(self.path.read_text())
        self.specs: list[dict[str, Any]] = []
        for one in self._listed(chosen):
            try:
                self.specs.append(self._checked(one))
            except ValueError as error:
                if not resumes:
                    raise
                log(f"{error}; the run goes on without it, and keeps it in its configuration")

    def start(self, resolved: Mapping[str, Any], step: int) -> list[Logger]:
        """Makes them, each with the run's flat configuration; they have begun to log.

        Args:
            resolved: the run's configuration.
            step: that the run goes on from, under the identities that its loggers had; 0: it
                begins.

        Raises:
            ValueError: one cannot start (no key, no network, ...).
        """
        specs = [self._completed(spec, self._key(i), step) for i, spec in enumerate(self.specs)]
        made = [_parsed(spec, build=True) for spec in specs]
        if made and is_first_process():
            for logger in made:
                try:
                    _begin(logger, leaves(resolved), step)
                except Exception as error:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    raise ValueError(
                        f"trainer.logger: {type(logger).__name__} cannot start ({reason}); log in, "
                        "work offline (WANDB_MODE=offline; MLFLOW_TRACKING_URI=sqlite:///mlflow.db)"
                        ", or leave it out"
                    ) from error
            self._remember(made)
        return made

    def _remember(self, made: list[Logger]) -> None:
        for i, logger in enumerate(made):
            if logger.version not in (None, ""):
                self.identities[self._key(i)] = logger.version
        write_whole(self.path, json.dumps(self.identities, indent=1) + "\n")

    def _listed(self, chosen: Any) -> list[Any]:
        if chosen in (None, True):
            installed = any(importlib.util.find_spec(p) for p in KNOWN["TensorBoardLogger"][1])
            return ["tensorboard"] if installed else []
        return chosen if isinstance(chosen, list) else [chosen] if chosen else []

    def _checked(self, one: Any) -> dict[str, Any]:
        """A logger as its class and arguments, which have been looked at."""
        in_folder = {"save_dir": str(self.run_dir), "version": ""}
        words: dict[str, dict[str, Any]] = {
            "wandb": {"class_path": f"{PLACE}.WandbLogger"},
            "mlflow": {"class_path": f"{PLACE}.MLFlowLogger"},
            "tensorboard": {
                "class_path": f"{PLACE}.TensorBoardLogger",
                "init_args": {**in_folder, "name": "tensorboard"},
            },
            "csv": {"class_path": f"{PLACE}.CSVLogger", "init_args": {**in_folder, "name": "csv"}},
        }
        spec = words[one] if isinstance(one, str) else one
        packages = KNOWN.get(kind_of(spec), ("", ()))[1]
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise ValueError(
                f"trainer.logger is {one if isinstance(one, str) else kind_of(spec)}, and the "
                f"package {packages[0]} is not installed here: pip install {packages[0]}, or leave "
                "it out (metrics.jsonl is always written)"
            )
        _parsed(spec)
        return spec

    def _key(self, index: int) -> str:
        kinds = [kind_of(spec) for spec in self.specs]
        before = kinds[:index].count(kinds[index])
        return f"{kinds[index]}.{before}" if before else kinds[index]

    def _completed(self, spec: Mapping[str, Any], key: str, step: int) -> dict[str, Any]:
        """Fills in what the user left open."""
        kind, env = kind_of(spec), os.environ
        ours: dict[str, Any] = {}
        if kind == "WandbLogger":
            project = env.get("WANDB_PROJECT", "counterpoint")
            ours = {"name": self.name, "project": project, "save_dir": str(self.run_dir)}
            ours["resume"] = "allow"  # as Lightning's own default, which a null would replace
        elif kind == "MLFlowLogger":
            ours = {"run_name": self.name, "experiment_name": "counterpoint"}
            if env.get("MLFLOW_EXPERIMENT_NAME"):
                ours["experiment_name"] = env["MLFLOW_EXPERIMENT_NAME"]
            # MLflow's own default. Lightning's, a folder, is refused by MLflow, and could not hold
            # `loss` beside `loss/infonce`.
            ours["tracking_uri"] = env.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        elif kind in ("TensorBoardLogger", "CSVLogger", "CometLogger"):
            ours = {"name": self.name}
        if kind == "TensorBoardLogger":
            # From 0: a start that was killed before its first checkpoint has left events.
            ours["purge_step"] = step + 1 if step else 0
        if key in self.identities and not spec.get("init_args", {}).get("version"):
            ours[KNOWN[kind][0]] = self.identities[key]
        chosen = dict(spec.get("init_args") or {})
        return {
            **spec,
            "init_args": chosen | {k: v for k, v in ours.items() if chosen.get(k) in UNCHOSEN},
        }


def _begin(logger: Logger, values: Mapping[str, Any], step: int) -> None:
    """Starts a logger with the configuration, after what it held up to `step`."""
    if step and isinstance(logger, CSVLogger):
        restore(logger, step)
    known = set()
    if step and isinstance(logger, MLFlowLogger):  # which refuses to have a value changed
        known = logger.experiment.get_run(logger.run_id).data.params.keys()
    logger.log_hyperparams({name: value for name, value in values.items() if name not in known})


def restore(logger: CSVLogger, step: int) -> None:
    """Writes a CSV file's rows up to a step again: Lightning's logger begins by deleting it."""
    path = Path(logger.log_dir, "metrics.csv")
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it deletes the file
        _ = logger.experiment
    for row in rows:
        try:
            at = int(row.pop("step"))
            values: dict[str, Any] = {k: float(v) for k, v in row.items() if v}
        except (TypeError, ValueError):  # the last line, cut by a kill
            break
        if at <= step:
            logger.log_metrics(values, at)
    if rows:
        logger.save()


def kind_of(spec: Mapping[str, Any]) -> str:
    """The known class that a logger is, or derives from; else its own name."""
    path = str(spec.get("class_path", ""))
    path = path if "." in path else f"{PLACE}.{path}"
    try:
        kind = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"trainer.logger is {path}, which cannot be imported ({error})") from error
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in KNOWN), kind.__name__)


def _parsed(spec: Mapping[str, Any], build: bool = False) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--logger", type=Logger)
    try:
        parsed = parser.parse_object({"logger": dict(spec)})
    except ArgumentError as error:
        raise ValueError(f"trainer.logger: {shortened(str(error))}") from None
    return parser.instantiate(parsed).logger if build else None
