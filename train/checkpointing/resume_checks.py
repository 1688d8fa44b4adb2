"""What may change when a run continues, and what may not.

In: what the checkpoint holds (configuration, groups of parameters) and what is asked for. Out:
nothing, or one sentence that names every change that would make the continued run another run.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from ..optim.adamw import AdamW

FIXED = ("seed", "model", "objective", "teachers", "ema")
# What the batches hold and in which order; where shards, caches and sidecars lie may change.
FIXED_DATA = (
    *("lanes", "block", "train_transform", "tokenizer", "caption", "key_field"),
    *("sources", "temperature", "same_as", "caption_same_as", "views", "texts", "sidecars"),
    "keep_weights",
)
MOVABLE = ("folder", "max_open")
PLACED = "placement"  # where a teacher's weights are
USUAL = {"class_path": f"{AdamW.__module__}.{AdamW.__qualname__}"}  # of a run file without `optim`
# How features are computed, not what they are.
COMPUTED = ("model.chunks", "model.text_parts")


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
        saved: The configuration in the checkpoint.
        wanted: The one to continue with.
        saved_data: What the data was.
        wanted_data: What it is now.
        step: That the run continues at.
        chosen: Dotted names of what in `wanted` is not as it is when nobody names it, and of the
            mappings around it (None: of all). What else the checkpoint does not know, a later
            version has added; it changes nothing.

    Raises:
        ValueError: seed, model, objective, the optimiser (but for its numbers), the data or a
            phase's batch size differ, or the phases before `step` took another number of samples.
    """
    named = None if chosen is None else frozenset(chosen)
    changes = list(_differences("", _part(saved, FIXED), _part(wanted, FIXED), named))
    old_optim, new_optim = (dict(_choices(_whole(c.get("optim")))) for c in (saved, wanted))
    changes += _differences("optim", old_optim, new_optim, named)
    old_data, new_data = (_part(c["data"], FIXED_DATA) for c in (saved, wanted))
    changes += _differences("data", old_data, new_data, named)
    old_phases = {name: phase["batch_size"] for name, phase in saved["phases"].items()}
    new_phases = {name: phase["batch_size"] for name, phase in wanted["phases"].items()}
    if list(old_phases) != list(new_phases)[: len(old_phases)]:
        changes.append(f"phases: {list(old_phases)} -> {list(new_phases)}")
    for name in old_phases.keys() & new_phases.keys():
        name_of = f"phases.{name}.batch_size"
        changes += _differences(name_of, old_phases[name], new_phases[name], named)
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
    """Compares the groups of parameters, by whose places an optimiser's states are found again.

    Args:
        saved: The optimiser's state in the checkpoint.
        optimizer: The one to continue with.

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


def _choices(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What an optimiser is told that is no number: its class, its patterns; None for the rest."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _choices(value, f"{path}.{key}".removeprefix("."))
        return
    parts = tree if isinstance(tree, list | tuple) else [] if tree is None else [tree]
    is_choice = any(isinstance(x, bool) or not isinstance(x, int | float) for x in parts)
    yield path, tree if is_choice else None


def _samples_before(phases: Mapping[str, Any], step: int) -> int | None:
    """Returns how many samples the phases take before a step; None: they end before it."""
    seen = 0
    for phase in phases.values():
        num_steps = min(step, math.ceil(phase["samples"] / phase["batch_size"]))
        seen += num_steps * phase["batch_size"]
        step -= num_steps
    return None if step else seen


def _whole(optim: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """With its class, which AdamW's arguments stood without before others could be named."""
    return optim if optim and "class_path" in optim else USUAL | {"init_args": optim or {}}


def _part(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Some keys; what is empty counts as if it were not there."""
    empty: tuple[Any, ...] = ({}, [], ())
    return {key: None if config[key] in empty else config[key] for key in keys if key in config}


def _differences(path: str, old: Any, new: Any, named: frozenset[str] | None) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            if path.startswith("data.sidecars.") and key in MOVABLE:
                continue
            if path.startswith("teachers.") and key == PLACED:
                continue
            name = f"{path}.{key}".removeprefix(".")
            if key not in old and named is not None and name not in named:
                continue
            yield from _differences(name, old.get(key), new.get(key), named)
    elif old != new and path not in COMPUTED:
        yield f"{path}: {old} -> {new}"
