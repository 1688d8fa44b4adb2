"""The stages of a run as configurations, of which each continues the one before.

In: parsed configurations by name. Out: the stages in their order, with where each begins. A run
without stages is one of a single stage called "".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from . import parser as run_config
from .identity import Identity, leaves
from .run_files import Written
from .stages import OF_MODEL, SHARED, split_stages


@dataclass(frozen=True)
class Stage:
    """A configuration that trains for a part of a run.

    Attributes:
        name: of the stage.
        config: parsed.
        resolved: as plain values.
        chosen: without what is at its default.
        earlier: (steps, global batch size) of all phases of the stages before.
    """

    name: str
    config: Namespace
    resolved: dict[str, Any]
    chosen: dict[str, Any]
    earlier: tuple[tuple[int, int], ...]

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """(steps, global batch size) of its own phases."""
        phases = self.resolved["phases"].values()
        sizes = [(phase["samples"], phase["batch_size"]) for phase in phases]
        return tuple((math.ceil(samples / size), size) for samples, size in sizes)

    @property
    def first_step(self) -> int:
        """Steps before it."""
        return sum(steps for steps, _ in self.earlier)

    @property
    def last_step(self) -> int:
        """Steps when it is over."""
        return sum(steps for steps, _ in (*self.earlier, *self.lengths))


def parse_stages(parser: ArgumentParser, written: Written) -> dict[str, Namespace]:
    """Parses what is written for each stage; a mistake becomes one sentence.

    Raises:
        ValueError: there is a mistake.
        SystemExit: the configurations were to be printed, and are.
    """
    stages, configs = split_stages(written), {}
    prints = any(option.key.startswith("print_config") for option in written.options)
    for stage, own in stages.items():
        if stage and prints:
            print(f"# stages.{stage}", flush=True)
        try:
            configs[stage] = run_config.parse_written(parser, own)
        except ValueError as error:
            raise ValueError(f"stages.{stage}.{error}" if stage else f"{error}") from error
        except SystemExit:
            if stage == list(stages)[-1]:
                raise
    return configs


def stages_of(parser: ArgumentParser, configs: Mapping[str, Namespace]) -> list[Stage]:
    """Returns the stages.

    Raises:
        ValueError: a stage changes what all of them share.
    """
    stages: list[Stage] = []
    for name, config in configs.items():
        resolved = run_config.plain(parser, config)
        chosen = run_config.without_defaults(parser, config)
        earlier = (*stages[-1].earlier, *stages[-1].lengths) if stages else ()
        stages.append(Stage(name, config, resolved, chosen, earlier))
    for stage in stages[1:]:
        one, other = _shared(stages[0].resolved), _shared(stage.resolved)
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                raise ValueError(
                    f"stages.{stage.name}.{key} is {other.get(key)}, and {one.get(key)} in "
                    f"{stages[0].name}: all stages share {', '.join(SHARED)}, and the model but "
                    f"for {', '.join(OF_MODEL)}; give it beside stages"
                )
    return stages


def identity_of(stages: list[Stage]) -> Identity:
    """Returns the identity of a run: of its only stage, or of all under their names."""
    if len(stages) == 1:
        return Identity.of(stages[0].resolved, stages[0].chosen)
    values: dict[str, Any] = {}
    chosen: set[str] = set()
    for stage in stages:
        one = Identity.of(stage.resolved, stage.chosen)
        of = f"stages.{stage.name}."
        names = {k: k if k.partition(".")[0] in SHARED else f"{of}{k}" for k in one.values}
        values |= {names[key]: value for key, value in one.values.items()}
        chosen |= {names[key] for key in one.chosen}
    return Identity(values, frozenset(chosen))


def _shared(resolved: Mapping[str, Any]) -> dict[str, Any]:
    shared = {key: resolved[key] for key in SHARED if key in resolved}
    # The start of the scale is the first stage's; later ones have it in their weights.
    of_objective = ("logit_scale_init", "logit_bias_init", "logit_scale_bounds")
    free = {f"model.{key}" for key in (*OF_MODEL, *of_objective)}
    found = leaves({**shared, "model": resolved["model"]})
    return {key: v for key, v in found.items() if key.replace(".init_args", "") not in free}
