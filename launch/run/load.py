"""A finished or stopped run, rebuilt for evaluation, reports, teachers and exports.

In: a run folder. Out: its model and objective with the weights of a checkpoint, and how texts and
images are read for it. Only what these are made of is read of the run's configuration: where the
run logged, its callbacks and its data need not exist here.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from ...data.images.transforms import EvalTransform, Transform
from ...data.module import PairsDataModule
from ...data.text.tokenize import ClipTokenizer, Tokenizer
from ...losses.objective import Objective
from ...models.distributed_checkpoint import whole
from ...models.two_tower import TwoTower
from ...models.weights import load_weights, read_weights
from ...train.checkpointing import checkpoint as checkpoints
from ..config import parser as run_config
from ..config.messages import shortened
from ..config.stages import FILE
from .build import instantiate
from .env import log

CONFIG = "config.yaml"
# Of the data's slot: what turns a text and an image into the model's input in evaluation.
READS = ("tokenizer", "eval_transform")
# Of a checkpoint: those of the last step, or their moving average.
Weights = Literal["trained", "ema"]
AVERAGE = "ema.model."


@dataclass(frozen=True)
class LoadedRun:
    """What a run's checkpoint is evaluated with, on the CPU and in evaluation mode.

    Attributes:
        model: with the checkpoint's weights.
        objective: with its learned scalars; `objective.metric()` is how features are compared.
        tokenizer: texts and a length to ids and lengths.
        eval_transform: an image to the model's input.
        config: the run's whole resolved configuration, as plain values.
    """

    model: TwoTower
    objective: Objective
    tokenizer: Tokenizer
    eval_transform: Transform
    config: dict[str, Any]


def load_run(
    run_dir: str | Path, step: int | None = None, weights: Weights = "trained"
) -> LoadedRun:
    """Rebuilds a run in evaluation mode on the CPU.

    Args:
        run_dir: folder written by `counterpoint fit`.
        step: which checkpoint; None: the newest whole one.
        weights: those of the last step, or their moving average.

    Raises:
        ValueError: no run, or no such checkpoint, or it is damaged, has no average, or does not fit
            the run's model.
    """
    run_dir = Path(run_dir)
    path = checkpoint_of(run_dir, step)
    config = yaml.safe_load((run_dir / CONFIG).read_text())
    if (run_dir / FILE).exists():  # that of the checkpoint's stage; the next may have begun
        config = checkpoints.load(path, mmap=True)["counterpoint"]["config"]
    parts = build_slots(config, str(run_dir / CONFIG))
    tensors = read_weights(path) if weights == "trained" else read_average(path)
    if "image.mask_token" in tensors:  # which a phase's reducer gave the tower
        parts.model.image.learn_mask_token()
    report = load_weights(parts.model, tensors, str(path))
    if report.missing or report.reshaped:
        raise ValueError(f"{path} and the model of {run_dir / CONFIG} do not fit: {report}")
    if parts.objective.scalars:
        load_scalars(parts.objective, states_in(path))
    return LoadedRun(
        parts.model.eval(),
        parts.objective.eval(),
        parts.data.tokenizer or ClipTokenizer(),
        parts.data.eval_transform or EvalTransform(),
        config,
    )


def read_average(path: Path) -> dict[str, Tensor]:
    """Returns the moving average in a checkpoint, under the model's names."""
    state = states_in(path)
    found = {n.removeprefix(AVERAGE): v for n, v in state.items() if n.startswith(AVERAGE)}
    if not found:
        raise ValueError(
            f"{path} holds no moving average: the run has no `ema`; take the trained weights"
        )
    return whole(found)


def states_in(path: Path) -> dict[str, Any]:
    """Returns parameters and buffers by name; those of a folder are read when they are used."""
    return checkpoints.load(path, mmap=path.is_dir())["state_dict"]


def build_slots(config: Mapping[str, Any], source: str) -> Any:
    """Builds the model, the objective and what reads texts and images; `source` is for errors."""
    parser = ArgumentParser(exit_on_error=False)
    run_config.add_model(parser)
    others = inspect.signature(PairsDataModule).parameters.keys() - READS
    parser.add_class_arguments(PairsDataModule, "data", skip=set(others), instantiate=False)
    data = {name: config["data"][name] for name in READS if name in config["data"]}
    chosen = {"model": config["model"], "objective": config["objective"], "data": data}
    try:
        parsed = parser.parse_object(chosen)
    except ArgumentError as error:
        raise ValueError(f"{source}: {shortened(str(error))}") from None
    return instantiate(parser, parsed)


def checkpoint_of(run_dir: Path, step: int | None = None) -> Path:
    """Returns the checkpoint of a step; else the newest whole one, and logs damaged ones."""
    if not (run_dir / CONFIG).exists():
        raise ValueError(f"{run_dir} is no run folder: it has no {CONFIG}")
    if step is None:
        path, damaged = checkpoints.newest_whole(run_dir)
        for worse, reason in damaged.items():
            log(f"{worse} is damaged ({reason}); {path.name} is used instead")
        return path
    path = run_dir / "checkpoints" / f"step-{step:08d}.ckpt"
    if not path.exists():
        raise ValueError(f"{run_dir} holds no checkpoint of step {step}")
    return path


def load_scalars(objective: Objective, state: Mapping[str, Tensor]) -> None:
    """Gives the objective's learned scalars (curvatures) their values of a checkpoint."""
    prefix = "objective.scalars."
    scalars = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    objective.scalars.load_state_dict(whole(scalars))
