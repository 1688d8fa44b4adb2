"""A finished or stopped run, rebuilt for evaluation and reports.

In: a run folder. Out: its module with the newest weights, its data module, its configuration.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.module import PairsDataModule
from ..losses.objective import Objective
from ..models.weights import load_weights, read_weights
from ..train import checkpoint as checkpoints
from ..train.module import ContrastiveModule
from . import config as run_config
from .build import build
from .env import say

CONFIG = "config.yaml"


def load_run(
    run_dir: str | Path, step: int | None = None
) -> tuple[ContrastiveModule, PairsDataModule, dict[str, Any]]:
    """Rebuilds a run in evaluation mode on the CPU.

    Args:
        run_dir: folder written by `counterpoint fit`.
        step: which checkpoint; None: the newest whole one.

    Raises:
        ValueError: no run, or no such checkpoint, or it is damaged.
    """
    run_dir = Path(run_dir)
    weights = checkpoint_of(run_dir, step)
    parser = run_config.make_parser()
    config = run_config.parse(parser, ["--config", str(run_dir / CONFIG)])
    module, parts = build(parser, config)
    load_weights(module.model, read_weights(weights), str(weights))
    if module.objective.scalars:
        load_scalars(module.objective, checkpoints.load(weights)["state_dict"])
    return module.eval(), parts.data, run_config.plain(parser, config)


def checkpoint_of(run_dir: Path, step: int | None = None) -> Path:
    """Returns the checkpoint of a step; without one, the newest whole one, and says what is not.

    Raises:
        ValueError: there is none, or it is no run folder.
    """
    if not (run_dir / CONFIG).exists():
        raise ValueError(f"{run_dir} is no run folder: it has no {CONFIG}")
    if step is None:
        path, damaged = checkpoints.newest_whole(run_dir)
        for worse, reason in damaged.items():
            say(f"{worse} is damaged ({reason}); {path.name} is used instead")
        return path
    path = run_dir / "checkpoints" / f"step-{step:08d}.ckpt"
    if not path.exists():
        raise ValueError(f"{run_dir} holds no checkpoint of step {step}")
    return path


def weights_file(source: str) -> Path:
    """Returns the file of weights that is meant by a run folder, or by its own name.

    Raises:
        ValueError: the folder holds no whole checkpoint.
    """
    path = Path(source)
    return checkpoint_of(path) if path.is_dir() else path


def load_scalars(objective: Objective, state: Mapping[str, Tensor]) -> None:
    """Gives the objective's learned scalars (curvatures) their values of a checkpoint."""
    prefix = "objective.scalars."
    found = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    objective.scalars.load_state_dict(found)
