"""What each configuration key means: whether a changed value makes another run.

In: resolved configurations. Out: where they differ, as far as that counts: for a resumed run
(`launch/run/resume.py`), the results of a sweep (`Identity`), or a store of embeddings.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any


class Role(Enum):
    """What a key decides."""

    TRAINS = "what is learned, from what"
    ORDERS = "which sample comes when, and how often"
    SEEDS = "which of the equal repetitions of a configuration this is"
    ADJUSTS = "how training proceeds; it may change while a run is under way"
    OPTIMIZES = "ADJUSTS where the value is a number, such as a decay; else TRAINS, such as a class"
    HOW = "how the same numbers are computed, equal up to rounding"
    WHERE = "places, devices, workers, logs, files, evaluation"


# A key that is not listed TRAINS, so that a new option cannot change unnoticed when a run is
# resumed. An entry holds for every key below it as well; `*` stands for one name, `**` for any
# number of them.
_KEYS = {
    Role.SEEDS: "seed",
    Role.OPTIMIZES: "optim",
    Role.ORDERS: "data.lanes data.block data.temperature data.keep_weights data.sources.*.share",
    # Always 1: accumulate_grad_batches.
    Role.HOW: "trainer.strategy trainer.plugins trainer.compile trainer.deterministic "
    "trainer.benchmark trainer.detect_anomaly trainer.inference_mode "
    "trainer.accumulate_grad_batches model.chunks model.text_parts objective.**.tile_bytes",
    # A resumed run has init_from and inherit_from in its weights. Keep-lists may move; the
    # fingerprint covers the samples they keep. Samples of a stream cannot be repeated in any case.
    # Resume compares the samples of phases that are over (`check_resume`).
    Role.ADJUSTS: "init_from inherit_from trainer.precision data.keep_lists data.webdataset "
    "data.eval_transform data.max_error_rate grad_clip guard phases.*.samples "
    "phases.*.learning_rate phases.*.warmup_samples phases.*.cooldown_samples "
    "phases.*.timescale_samples phases.*.schedule phases.*.final_fraction phases.*.rate_batch "
    "phases.*.rate_scaling phases.*.image_reducer phases.*.text_reducer phases.*.word_reducer",
    # Resume compares the fingerprint of the manifest's shards.
    Role.WHERE: "run_dir mirror name evaluation checkpoint watch trace "
    "trainer.accelerator trainer.devices trainer.num_nodes trainer.callbacks trainer.max_time "
    "trainer.log_every_n_steps trainer.enable_progress_bar trainer.enable_model_summary "
    "trainer.profiler trainer.logger trainer.peak_tflops "
    "data.num_workers data.manifest data.cache data.allow_pipe "
    "data.sidecars.*.init_args.folder data.sidecars.*.init_args.max_open "
    "teachers.*.init_args.placement",
}
ROLES = {key: role for role, keys in _KEYS.items() for key in keys.split()}
# A further stream's keys decide what those of the main one do.
ROLES |= {
    f"data.streams.*.init_args.{key.removeprefix('data.')}": role
    for key, role in ROLES.items()
    if key.startswith("data.")
}

# The roles that count for each of the three.
OF_A_RUN = frozenset({Role.TRAINS, Role.ORDERS, Role.SEEDS})
OF_A_RESULT = frozenset({Role.TRAINS, Role.ORDERS, Role.ADJUSTS})
OF_A_STORE = frozenset({Role.TRAINS, Role.SEEDS})

PRECISION = "trainer.precision"
EMPTY = ({}, [], ())


@dataclass(frozen=True)
class Difference:
    """One key with two values; None: it has none there."""

    name: str
    old: Any
    new: Any


def differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    roles: Collection[Role],
    old_chosen: Collection[str] | None = None,
    new_chosen: Collection[str] | None = None,
) -> Iterator[Difference]:
    """Compares the leaves of two configurations; an empty value counts as none.

    Args:
        old: a leaf's value by its dotted name.
        new: likewise.
        roles: of the keys to compare.
        old_chosen: names of the leaves of `old` that are not at their default (None: all). Versions
            of the code know different keys: one that is known on one side only is a difference if
            it was chosen there.
        new_chosen: likewise.
    """
    for name in sorted(old.keys() | new.keys()):
        a, b = _value(old.get(name)), _value(new.get(name))
        if a == b or not {role(name, a), role(name, b)} & set(roles):
            continue
        in_both = _knows(old, name) and _knows(new, name)
        chosen = old_chosen if name in old else new_chosen
        if in_both or chosen is None or name in chosen:
            yield Difference(name, a, b)


def role(name: str, value: Any = None) -> Role:
    """Returns what a key decides, by its dotted name."""
    listed = _listed(name)
    if listed is Role.OPTIMIZES:
        items = value if isinstance(value, list | tuple) else [] if value is None else [value]
        is_choice = any(isinstance(x, bool) or not isinstance(x, int | float) for x in items)
        return Role.TRAINS if is_choice else Role.ADJUSTS
    return listed


def leaves_of(config: Mapping[str, Any], roles: Collection[Role]) -> dict[str, Any]:
    """Returns the leaves of a configuration with these roles."""
    flat = leaves(config)
    return {name: value for name, value in flat.items() if role(name, value) in roles}


def leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens nested mappings to dotted names; an empty mapping has no leaves."""
    return {name: value for name, value in flatten(tree) if not isinstance(value, Mapping)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every leaf; empty mappings are leaves."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def names(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of leaves and mappings, of empty ones unless they are arguments."""
    for key, value in tree.items():
        if key == "init_args" and not value:
            continue
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from names(value, f"{prefix}{key}.")


@cache
def _listed(name: str) -> Role:
    for pattern, listed in ROLES.items():
        if _below(pattern).match(f"{name}."):
            return listed
    return Role.TRAINS


@cache
def _below(pattern: str) -> re.Pattern[str]:
    names = {"*": r"[^.]+\.", "**": r"([^.]+\.)*"}
    return re.compile("".join(names.get(n, re.escape(f"{n}.")) for n in pattern.split(".")))


def _value(value: Any) -> Any:
    return None if value in EMPTY else value


def _knows(config: Mapping[str, Any], name: str) -> bool:
    """Whether the key is there, or one above it has no value, such as `ema` for `ema.decay`."""
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in config for i in range(len(parts)))


@dataclass(frozen=True)
class Identity:
    """A configuration without its seed, as far as it decides the results of a run.

    A precision that was left to the machine (`auto`) agrees with any that a result was trained in;
    one that is named does not.

    Attributes:
        values: every leaf by its dotted name, defaults included.
        chosen: names of the leaves that differ from their default.
    """

    values: dict[str, Any]
    chosen: frozenset[str]

    @classmethod
    def of(cls, resolved: Mapping[str, Any], chosen: Mapping[str, Any]) -> "Identity":
        """Builds it from the resolved configuration and the same one without its defaults."""
        values = leaves_of(resolved, OF_A_RESULT)
        return cls(values, frozenset(leaves(chosen)) & frozenset(values))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Identity":
        """Reads what `to_json` wrote."""
        return cls(dict(stored["values"]), frozenset(stored["chosen"]))

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain JSON."""
        return {"values": self.values, "chosen": sorted(self.chosen)}

    @property
    def digest(self) -> str:
        """Hash of all values: a short name for the configuration in this version of the code."""
        text = json.dumps(self.values, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def agrees(self, other: "Identity") -> bool:
        """Whether a result of `other` is one of this configuration."""
        changed = differences(self.values, other.values, OF_A_RESULT, self.chosen, other.chosen)
        return all(each.name == PRECISION and PRECISION not in self.chosen for each in changed)

    def trained_in(self, precision: str | None) -> "Identity":
        """Returns it with the precision that `auto` became; None: as it is."""
        known = {} if precision is None else {PRECISION: precision}
        return Identity(self.values | known, self.chosen)
