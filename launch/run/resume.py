"""Resuming: which checkpoint a run continues from, and whether it may.

In: a run folder, and the configuration to continue with. Out: the newest whole checkpoint, or one
sentence that names every change that would make the continued run another run.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from ...train.checkpointing import checkpoint as checkpoints
from ...train.checkpointing.disk import remove
from ...train.module import ContrastiveModule
from ..config.identity import OF_A_RUN, Difference, differences, leaves
from ..config.staged import Stage
from .env import log
from .rendezvous import agreed


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of a run; its tensors stay on the disk until they are used.

    Raises:
        ValueError: it is none, or damaged.
    """
    saved = checkpoints.load(path, mmap=True)
    if "counterpoint" not in saved:
        raise ValueError(f"{path} was not written by counterpoint; use --init_from for its weights")
    return saved


def stage_at(stages: Sequence[Stage], step: int) -> int:
    """Returns which stage the step after `step` belongs to; past the end, the last one."""
    return next((i for i, stage in enumerate(stages) if step < stage.last_step), len(stages) - 1)


def check_checkpoint(path: Path, stage: Stage, module: ContrastiveModule) -> None:
    """Checks that a stage may go on from a checkpoint of its own.

    Raises:
        ValueError: it is past the end, or a change that may not be made.
    """
    saved = read_checkpoint(path)
    data = (saved["counterpoint"]["fingerprint"], module.run.fingerprint)
    check_stage(saved, path, stage, *data)
    optimizer = module.optim.build(module.model, module.objective)
    check_groups(saved["optimizer_states"][0], optimizer)
    if checkpoints.step_of(path) > (end := module.phases.total_steps):
        raise ValueError(
            f"{path} is past the end of a run of {end} steps; raise phases.NAME.samples"
        )


def check_stage(
    saved: Mapping[str, Any], path: Path, stage: Stage, saved_data: str = "", wanted_data: str = ""
) -> None:
    """Checks that a checkpoint is of a stage as it is configured now.

    Raises:
        ValueError: it is of another stage, or a change was made that may not be.
    """
    ours, step = saved["counterpoint"], checkpoints.step_of(path)
    name, earlier = ours.get("stage", ""), ours.get("earlier", [])
    if name != stage.name or earlier != [list(length) for length in stage.earlier]:
        raise ValueError(
            f"cannot resume: {path.name} was written in the stage '{name}' after (steps, batch) of "
            f"{earlier}, and step {step} lies in '{stage.name}' after {list(stage.earlier)} now; "
            "stages that are over keep their names and lengths"
        )
    chosen, done = leaves(stage.chosen).keys(), step - stage.first_step
    check_resume(ours["config"], stage.resolved, saved_data, wanted_data, done, chosen)


def agreed_checkpoint(run_dir: Path) -> Path:
    """Returns the newest whole checkpoint of a run, as the first process finds it.

    It alone reads every byte; hundreds would keep the file system busy with it. Damaged ones that
    are newer are renamed, so that they are not taken for whole ones later.

    Raises:
        ValueError: there is none.
    """

    def find() -> str:
        path, damaged = checkpoints.newest_whole(run_dir)
        for worse, reason in damaged.items():
            log(f"{worse} is damaged ({reason}); {path.name} is used instead")
            aside = worse.with_suffix(".damaged")
            remove(aside)
            worse.replace(aside)
        return path.name

    return run_dir / "checkpoints" / agreed("CHECKPOINT", find)


def check_resume(
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    saved_data: str,
    wanted_data: str,
    step: int,
    chosen: Collection[str] | None = None,
) -> None:
    """Compares two resolved configurations and two data fingerprints.

    Args:
        saved: the configuration in the checkpoint.
        wanted: the one to continue with.
        saved_data: fingerprint of the data until now.
        wanted_data: fingerprint of the data from now on.
        step: of the phases, after which the run continues.
        chosen: dotted names of the leaves of `wanted` that are not at their default (None: all).

    Raises:
        ValueError: a key differs that is fixed for a run (`launch/config/identity.py`), or the data
            do, or the phases before `step` took another number of samples.
    """
    old_names, new_names = list(saved["phases"]), list(wanted["phases"])
    # Phases may be appended.
    old, new = (_leaves(c, set(old_names) & set(new_names)) for c in (saved, wanted))
    changed = list(differences(old, new, OF_A_RUN, new_chosen=chosen))
    if old_names != new_names[: len(old_names)]:
        changed.append(Difference("phases", old_names, new_names))
    changes = [f"{each.name}: {each.old} -> {each.new}" for each in changed]
    old_seen, new_seen = (_samples_before(c["phases"], step) for c in (saved, wanted))
    if not changes and None not in (old_seen, new_seen) and old_seen != new_seen:
        changes.append(
            f"phases.NAME.samples of phases that are over: step {step} would begin after "
            f"{new_seen} samples, where the run had seen {old_seen}"
        )
    if saved_data != wanted_data:
        changes.append(f"the data behind data.manifest: {saved_data[:12]} -> {wanted_data[:12]}")
    if changes:
        raise ValueError(
            "cannot resume: " + "; ".join(changes) + ". A resumed run keeps its seed, data, global "
            "batch, model, objective and optimiser; start a new run with --init_from to change them"
        )


def check_groups(saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Compares parameter groups with a checkpoint's: states are found again by their order.

    Raises:
        ValueError: changed rates or decays have split groups, or joined them.
    """
    old = [len(group["params"]) for group in saved["param_groups"]]
    new = [len(group["params"]) for group in optimizer.param_groups]
    if old != new:
        raise ValueError(
            f"cannot resume: optim makes groups of {new} parameters, and the run had {old}. Rates "
            "and decays may change, but those that were equal stay equal and others apart; start "
            "a new run with --init_from to change more"
        )


def _leaves(config: Mapping[str, Any], phases: Collection[str]) -> dict[str, Any]:
    """Returns the leaves of a configuration, of its phases only those that are named."""
    kept = {name: phase for name, phase in config["phases"].items() if name in phases}
    return leaves({**config, "phases": kept})


def _samples_before(phases: Mapping[str, Any], step: int) -> int | None:
    """Returns how many samples the phases take before a step; None: they end before it."""
    seen = 0
    for phase in phases.values():
        num_steps = min(step, math.ceil(phase["samples"] / phase["batch_size"]))
        seen += num_steps * phase["batch_size"]
        step -= num_steps
    return None if step else seen
