"""A run's model, objective, phases and optimizer on device `meta`, which has shapes and no memory.

In: a parsed configuration. Out: the parts that a step's cost depends on, without data, teachers,
loggers or a device.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...losses.objective import Objective
from ...models.reducers.base import Reduction
from ...models.two_tower import TwoTower, view_of
from ...train.batch_transfer import lengths_on_host
from ...train.callbacks.flops import on_meta
from ...train.optim.adamw import AdamW
from ...train.optim.freeze import freeze
from ...train.phases import Phase, Phases, prepare_reducers
from ..config import parser as run_config
from ..run.build import instantiate

# Lengths of captions: a log-normal distribution, with this deviation of the logarithm.
SPREAD = 0.6
DTYPES = {
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
    "64": torch.float64,
}


@dataclass(frozen=True)
class Parts:
    """What a step is made of.

    Attributes:
        model: on `meta`, in the precision of its parameters.
        objective: on `meta`, for counting parameters.
        small: the objective on the CPU, for a few rows.
        optim: the optimizer's settings.
        phases: of the run.
        views: side in pixels, or tokens, of batch entries besides `image` and `text`.
    """

    model: TwoTower
    objective: Objective
    small: Objective
    optim: AdamW
    phases: Phases
    views: dict[str, int]


def build(config: dict[str, Any], precision: str) -> Parts:
    """Builds the parts of a resolved configuration.

    Raises:
        ValueError: a class refuses its values, or the run has several streams.
    """
    if config["data"].get("streams"):
        raise ValueError(
            "plan counts steps of one stream, and the run has data.streams: leave them and their "
            "terms out (objective.terms, objective.streams), and add their share yourself"
        )
    parser = ArgumentParser(exit_on_error=False)
    run_config.add_model(parser)
    parser.add_subclass_arguments(AdamW, "optim")
    parser.add_argument("--phases", type=dict[str, Phase])
    names = ("model", "objective", "optim", "phases")
    chosen = copy.deepcopy({name: config[name] for name in names})  # it is changed by parsing
    parsed = parser.parse_object(chosen)
    with on_device_meta():
        try:
            parts = instantiate(parser, parsed)
        except (RuntimeError, NotImplementedError):  # a tower that looks at its own weights
            parts = None
    if parts is None:
        parts = instantiate(parser, parsed)
        parts.model = on_meta(parts.model)
    alone = ArgumentParser(exit_on_error=False)
    alone.add_class_arguments(Objective, "objective")
    given = {"objective": copy.deepcopy(config["objective"])}
    small = instantiate(alone, alone.parse_object(given)).objective
    phases = Phases(parts.phases)
    with on_device_meta():
        prepare_reducers(phases, parts.model)
    freeze(parts.model, parts.optim.groups.frozen)
    model = parts.model.to(DTYPES.get(precision, torch.float32))
    data = config["data"]
    views = {f"image.{n}": v.get("size") for n, v in (data.get("views") or {}).items()}
    texts = {n: t for n, t in (data.get("texts") or {}).items() if isinstance(t, dict)}
    views |= {f"text.{n}": t.get("context_length") for n, t in texts.items()}
    views = {name: size for name, size in views.items() if size}
    return Parts(model.train(), parts.objective, small, parts.optim, phases, views)


def optimizer_bytes(parts: Parts) -> tuple[int, bool]:
    """Returns bytes of the optimizer's states, and whether they were counted, by a step on meta."""
    trained = [p for p in parts.model.parameters() if p.requires_grad]
    try:
        optimizer = parts.optim.build(parts.model, parts.objective, fused=False)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        return sum(x.nbytes for x in states if isinstance(x, Tensor)), True
    except Exception:  # of an optimizer that reads numbers, which `meta` does not have
        return 2 * sum(x.nbytes for x in trained), False
    finally:
        for parameter in (*parts.model.parameters(), *parts.objective.parameters()):
            parameter.grad = None


@contextmanager
def on_device_meta() -> Iterator[None]:
    """Makes new tensors on `meta`, but for the numbers that timm reads while it builds."""
    with torch.device("meta"), _HostNumbers():
        yield


class _HostNumbers(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def batch_of(parts: Parts, rows: int, mean_tokens: float) -> dict[str, Any]:
    """Returns a rank's batch on `meta`: the student's views, and the captions' lengths on the host.

    Args:
        parts: whose model encodes it.
        rows: pairs.
        mean_tokens: of a caption, start and end included.
    """
    model, host = parts.model, {}
    batch: dict[str, Tensor] = {"key": _empty(rows, dtype=torch.int64)}
    for view in sorted({view_of(name) for name in parts.objective.needs} | {"image", "text"}):
        if view.partition(".")[0] == "image":
            side = parts.views.get(view, model.image_size)
            batch[view] = _empty(rows, 3, side, side, dtype=torch.uint8)
        elif view.partition(".")[0] == "text" and model.text.stored is not None:
            stored = view.replace("text", model.text.stored, 1)
            batch[stored] = _empty(rows, model.text.width, dtype=torch.float16)
        elif view.partition(".")[0] == "text":
            length = parts.views.get(view, model.context_length)
            batch[view] = _empty(rows, length, dtype=torch.int64)
            batch[f"{view}_length"] = _empty(rows, dtype=torch.int64)
            host[f"{view}_length"] = caption_lengths(rows, mean_tokens, length)
    return batch | lengths_on_host(host)


def caption_lengths(rows: int, mean: float, longest: int) -> Tensor:
    """Returns as many lengths as the quantiles of the assumed distribution."""
    quantiles = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    median = mean * torch.tensor(-(SPREAD**2) / 2).exp()
    lengths = median * (SPREAD * torch.special.ndtri(quantiles)).exp()
    return lengths.round().long().clamp(min(3, longest), longest)


def reduction_of(phase: Phase, model: TwoTower, batch: dict[str, Any]) -> Reduction:
    """Returns a phase's reducers, with scores as if frozen models had given them."""
    scores: dict[str, Tensor] = {}
    if (reducer := phase.image_reducer) is not None:
        for view, image in batch.items():
            if view.partition(".")[0] == "image":
                scores[view] = _empty(len(image), *model.image.grid(reducer.pixels(image)))
    return Reduction(0, 0, phase.image_reducer, phase.text_reducer, scores=scores)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
