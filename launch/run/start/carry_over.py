"""What a stage takes from the one before it: weights by name, and the place in the data.

In: the last checkpoint of a stage, and what the next one builds. Out: the next stage's model,
heads, average and data as that checkpoint leaves them, where they are the same; the rest is fresh,
and a line says what. The optimizer begins anew.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....data.pairs import Pairs
from ....models.distributed_checkpoint import whole
from ....models.weight_resizing import resized
from ....models.weights import load_weights
from ....train.checkpointing import checkpoint as checkpoints
from ....train.module import ContrastiveModule
from ..env import log

NUM_NAMED = 3


def carry_model(saved: Mapping[str, Any], path: Path, parts: Any) -> None:
    """Gives the towers and the heads of the objective their weights of a checkpoint."""
    weights = _below(saved, "model.")
    changed = resized(weights, parts.model)
    report = load_weights(parts.model, weights | changed, str(path), changed)
    log(f"model of {path.name}: {report}")
    _carry(parts.objective, _below(saved, "objective."), "heads and state of the objective")


def carry_rest(
    saved: Mapping[str, Any], path: Path, module: ContrastiveModule, data: Pairs
) -> None:
    """Gives the moving average its weights, the guard its totals, and the data their place.

    Counts of samples that could not be read go on where the data are the same.
    """
    ours, of_data = saved["counterpoint"], saved[type(data).__qualname__]
    average = _below(saved, "ema.model.")
    if module.ema is not None and average:  # else it begins as the model is now
        average |= resized(average, module.ema.model)
        _carry(module.ema.model, average, "moving average")
    module.guard.load_state_dict(ours["guard"])
    if ours["fingerprint"] == module.run.fingerprint:
        data.load_state_dict(of_data)
    else:
        data.go_on(checkpoints.step_of(path), of_data)


@torch.no_grad()
def _carry(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    own = module.state_dict()
    same = [n for n in own if n in state and state[n].shape == own[n].shape]
    for name in same:
        own[name].copy_(state[name])
    fresh = [name for name in own if name not in same]
    dropped = [name for name in state if name not in same]
    if fresh or dropped:
        kept = f"{len(same)} kept"
        log(f"{what}: {kept}, {_listed(fresh, 'fresh')}, {_listed(dropped, 'dropped')}")


def _listed(names: list[str], what: str) -> str:
    more = ", ..." if len(names) > NUM_NAMED else ""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:NUM_NAMED])}{more})" if names else "")


def _below(saved: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    state = saved["state_dict"]
    return whole({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
