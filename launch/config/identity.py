"""What makes two runs the same but for their seed: what is trained, and on what.

In: a configuration. Out: its leaves, which of them the user chose, and a hash. Where a run is, on
how many devices, and how it logs is not part of it. A key that a later version adds does not make
old results another configuration as long as nobody sets it: a leaf that only one side knows counts
only if it was chosen there. A default that changes does. A precision that was left to the machine
(`auto`) agrees with any that a result was trained in; one that is named does not.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SLOTS = (
    "data",
    "model",
    "objective",
    "optim",
    "grad_clip",
    "guard",
    "phases",
    "init_from",
    "inherit_from",
    "teachers",
    "ema",
)
ADAMW = "counterpoint.train.optim.adamw.AdamW"
TRAINER_KEYS = ("precision", "gradient_clip_val")
PRECISION = "trainer.precision"
# Where the shards lie and how they are loaded; the order of samples does not depend on it.
DATA_KEYS_LEFT_OUT = ("num_workers", "manifest", "cache", "allow_pipe")


@dataclass(frozen=True)
class Identity:
    """A configuration, as far as it decides what is trained.

    Attributes:
        values: every leaf by its dotted name, defaults included.
        chosen: names of the leaves that differ from their default.
    """

    values: dict[str, Any]
    chosen: frozenset[str]

    @classmethod
    def of(cls, resolved: Mapping[str, Any], chosen: Mapping[str, Any]) -> "Identity":
        """Builds it from the resolved configuration and the same one without its defaults."""
        values = leaves(_kept(resolved))
        return cls(values, frozenset(leaves(_kept(chosen))) & frozenset(values))

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
        """Tells whether a result of `other` is one of this configuration."""
        missing = object()
        for name in self.values.keys() | other.values.keys():
            mine, theirs = self.values.get(name, missing), other.values.get(name, missing)
            if mine is missing:
                if name in other.chosen:
                    return False
            elif theirs is missing:
                if name in self.chosen:
                    return False
            elif mine != theirs and (name != PRECISION or name in self.chosen):
                return False
        return True

    def trained_in(self, precision: str | None) -> "Identity":
        """Returns it with the precision that `auto` became; None: as it is."""
        known = {} if precision is None else {PRECISION: precision}
        return Identity(self.values | known, self.chosen)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to dotted names; an empty mapping has no leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= leaves(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def names(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of leaves and of mappings; of empty ones, too, unless they are arguments."""
    for key, value in tree.items():
        if key == "init_args" and not value:
            continue
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from names(value, f"{prefix}{key}.")


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a configuration that decides what is trained."""
    kept = {slot: copy.deepcopy(config[slot]) for slot in SLOTS if slot in config}
    if isinstance(kept.get("data"), Mapping):
        kept["data"] = {k: v for k, v in kept["data"].items() if k not in DATA_KEYS_LEFT_OUT}
    for teacher in (kept.get("teachers") or {}).values():
        (teacher.get("init_args") or {}).pop("placement", None)  # where its weights are
    kept["optim"] = _flat(kept.get("optim") or {})
    trainer = config.get("trainer") or {}
    kept["trainer"] = {key: trainer[key] for key in TRAINER_KEYS if key in trainer}
    return kept


def _flat(optim: Mapping[str, Any]) -> dict[str, Any]:
    """AdamW's arguments as they stood before other optimisers could be named."""
    if optim.get("class_path", ADAMW) != ADAMW:
        return dict(optim)
    return dict(optim.get("init_args", optim))
