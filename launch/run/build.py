"""A parsed configuration into the objects of a run, connected to one another."""

from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from ...train.module import ContrastiveModule
from ...train.phases import Phases, connect_data, prepare_reducers
from ..config.messages import shortened


def build(parser: ArgumentParser, config: Namespace) -> tuple[ContrastiveModule, Any]:
    """Instantiates all slots; weights depend on the seed alone.

    Returns:
        The module, and the instantiated slots (`data` is connected to the model and the phases).

    Raises:
        ValueError: a slot refuses its values.
    """
    torch.manual_seed(config.seed)
    config = config.clone()
    config.trainer.logger = None  # made with the trainer, which knows the step it begins at
    parts = instantiate(parser, config)
    phases = Phases(parts.phases)
    prepare_reducers(phases, parts.model)
    connect_data(parts.data, parts.model, phases, config.seed)
    module = ContrastiveModule(
        parts.model,
        parts.objective,
        phases,
        parts.optim,
        config.seed,
        grad_clip=parts.grad_clip,
        guard=parts.guard,
    )
    return module, parts


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Builds the objects of a configuration.

    Raises:
        ValueError: A class refuses its values, said as it says it.
    """
    try:
        return parser.instantiate(config)
    except ValueError as error:
        # A class inside an optional value: the parser repeats what it said among other guesses.
        if "Does not validate" not in str(error):
            raise
        raise ValueError(shortened(str(error))) from error
