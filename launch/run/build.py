"""A parsed configuration into the objects of a run, connected to one another."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from ...models.teachers.frozen import FrozenTowers
from ...train.ema import Ema
from ...train.module import ContrastiveModule, RunInfo
from ...train.phases import Phases, connect_data, prepare_reducers
from ..config.messages import shortened


def build_parts(
    parser: ArgumentParser, config: Namespace, earlier: Sequence[tuple[int, int]] = ()
) -> Any:
    """Instantiates all slots and connects the data; weights depend on the seed alone.

    Args:
        parser: of run files.
        config: parsed.
        earlier: (steps, global batch size) of the phases of earlier stages.
    """
    torch.manual_seed(config.seed)
    config = config.clone()
    config.trainer.logger = None  # made with the trainer, which knows the step it begins at
    parts = instantiate(parser, config)
    parts.phases = Phases(parts.phases, earlier)
    prepare_reducers(parts.phases, parts.model)
    needs = parts.objective.needs
    connect_data(parts.data, parts.model, parts.phases, config.seed, needs)
    return parts


def build_module(
    parts: Any, teachers: Mapping[str, FrozenTowers] | None = None, run: RunInfo | None = None
) -> ContrastiveModule:
    """Makes the module that trains; its moving average starts as the model is now."""
    return ContrastiveModule(
        parts.model,
        parts.objective,
        parts.phases,
        parts.optim,
        parts.seed,
        grad_clip=parts.grad_clip,
        guard=parts.guard,
        teachers=teachers,
        ema=None if parts.ema is None else Ema(parts.model, parts.ema),
        run=run,
    )


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Builds the objects of a configuration; a class that refuses its values is quoted."""
    try:
        return parser.instantiate(config)
    except ValueError as error:
        # A class inside an optional value: the parser repeats its message among other guesses.
        if "Does not validate" not in str(error):
            raise
        raise ValueError(shortened(str(error))) from error
