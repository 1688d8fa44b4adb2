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


def load_run(
    run_dir: str | Path, step: int | None = None
) -> tuple[ContrastiveModule, PairsDataModule, dict[str, Any]]:
    """Rebuilds a run in evaluation mode on the CPU.

    Args:
        run_dir: folder written by `counterpoint fit`.
        step: which checkpoint; None: the newest.

    Raises:
        ValueError: no run, or no such checkpoint.
    """
    run_dir = Path(run_dir)
    path = run_dir / "config.yaml"
    if not path.exists():
        raise ValueError(f"{run_dir} is no run folder: it has no config.yaml")
    weights = (
        checkpoints.newest(run_dir)
        if step is None
        else run_dir / "checkpoints" / f"step-{step:08d}.ckpt"
    )
    if weights is None or not weights.exists():
        raise ValueError(f"{run_dir} holds no checkpoint" + (f" of step {step}" if step else ""))
    parser = run_config.make_parser()
    config = run_config.parse(parser, ["--config", str(path)])
    module, parts = build(parser, config)
    load_weights(module.model, read_weights(weights), str(weights))
    if module.objective.scalars:
        load_scalars(module.objective, checkpoints.load(weights)["state_dict"])
    return module.eval(), parts.data, run_config.plain(parser, config)


def load_scalars(objective: Objective, state: Mapping[str, Tensor]) -> None:
    """Gives the objective's learned scalars (curvatures) their values of a checkpoint."""
    prefix = "objective.scalars."
    found = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    objective.scalars.load_state_dict(found)
