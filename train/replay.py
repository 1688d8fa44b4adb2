"""Computes a step again that was not finite, and finds where that began.

In: a module as the run had it, and a capsule (`callbacks/capsule.py`). Out: the first module whose
output is not finite though its inputs are, the loss, and where gradients cease to be finite.

Each rank's rows are encoded under its own seed; the losses then see all rows at once, which is the
same loss as that of many ranks.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.components.features import stream_of
from .module import ContrastiveModule
from .seeds import step_seed
from .torch_internals import is_in_backward

DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


class Finiteness:
    """Looks at every module's output, and at the gradients of these outputs.

    Attributes:
        forward: about the first output that is not finite; None: all are.
        backward: about the first gradient of an output that is not, in the order of the backward
            pass; None: all are.
    """

    def __init__(self, module: nn.Module):
        self.forward: str | None = None
        self.backward: str | None = None
        self._last_finite = "the loss"
        for name, part in module.named_modules():
            if name:
                part.register_forward_hook(partial(self._see, name), with_kwargs=True)

    def _see(
        self, name: str, part: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        outputs = list(tensors_in(output))
        if self.forward is None and not is_in_backward() and not all_finite(outputs):
            inputs = list(tensors_in([args, kwargs]))
            kind = type(part).__name__
            if all_finite(inputs):
                self.forward = (
                    f"the output of {name} ({kind}) is the first that is not finite; its inputs "
                    f"are finite, up to {largest(inputs):.4g} in size, its weights up to "
                    f"{largest(part.parameters()):.4g}"
                )
            else:
                self.forward = (
                    f"the input of {name} ({kind}) is not finite, and the outputs of all modules "
                    "before are: look at what lies between"
                )
        for tensor in outputs:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._see_gradient, name))

    def _see_gradient(self, name: str, gradient: Tensor) -> None:
        if self.backward is not None:
            return
        if all_finite([gradient]):
            self._last_finite = f"the output of {name}"
        else:
            self.backward = (
                f"the gradient of the output of {name} is the first that is not finite; the last "
                f"finite one before is that of {self._last_finite}"
            )


def replay(module: ContrastiveModule, capsule: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Computes a capsule's step; returns what was seen, and whether something was not finite."""
    module.load_state_dict(capsule["state_dict"])
    lines = [
        f"{name}: not finite before the step"
        for name, tensor in module.state_dict().items()
        if not all_finite([tensor])
    ]
    for name, tensor in ((n, t) for part in capsule["parts"] for n, t in part.items()):
        if not all_finite([tensor]):
            lines.append(f"the batch's {name}: not finite")
    module.train()
    seen, step = Finiteness(module), capsule["step"]
    with autocast(capsule["precision"], module):
        features, batch = encode(module, capsule)
        module.objective.progress = module.phases.progress(step)
        loss, report = module.objective(features, batch)
    loss.backward()
    terms = ", ".join(f"{name} {float(value):.6g}" for name, value in report.items())
    lines.append(f"the loss is {loss.item():.6g} ({terms})")
    lines += [text for text in (seen.forward, seen.backward) if text is not None]
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    bad = [name for name, gradient in gradients.items() if not all_finite([gradient])]
    if bad:
        named = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        lines.append(
            f"{len(bad)} of {len(gradients)} parameters have gradients that are not finite: {named}"
        )
    was_seen = bool(bad) or len(lines) > 1 or not bool(loss.isfinite())
    return lines, was_seen


def encode(
    module: ContrastiveModule, capsule: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns features and batch of all ranks' rows in the capsule."""
    features: list[dict[str, Tensor]] = []
    for rank, part in zip(capsule["ranks"], capsule["parts"], strict=True):
        torch.manual_seed(step_seed(capsule["seed"], capsule["step"], rank))
        features.append(module.features(part, capsule["step"]))
    parts = capsule["parts"]
    return join(features, parts), join(parts, parts)


def join(parts: list[dict[str, Tensor]], batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Puts rows one below the other; what has no rows is that of the first part."""

    def has_rows(name: str) -> bool:
        stream, pairs = stream_of(name), zip(parts, batches, strict=True)
        rows = [(part[name], rows_of(batch, stream)) for part, batch in pairs]
        return all(values.ndim and len(values) == num_rows for values, num_rows in rows)

    return {
        name: torch.cat([part[name] for part in parts]) if has_rows(name) else value
        for name, value in parts[0].items()
    }


def rows_of(batch: Mapping[str, Tensor], stream: str) -> int:
    """Returns the rows of a stream's batch; 0 if there is none."""
    return next((len(entry) for name, entry in batch.items() if stream_of(name) == stream), 0)


def autocast(precision: str, module: nn.Module) -> Any:
    """Returns the context of a precision of Lightning's; makes parameters those of a `true` one."""
    dtype = next((d for name, d in DTYPES.items() if precision.startswith(name)), torch.float32)
    if precision.endswith("true"):
        module.to(dtype)
        return nullcontext()
    return torch.autocast("cpu", dtype, cache_enabled=False)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yields the floating-point tensors in nested containers."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.numel())


def largest(tensors: Iterable[Tensor]) -> float:
    """Returns the largest absolute value; 0 of nothing."""
    return max(
        (tensor.detach().abs().max().item() for tensor in tensors if tensor.numel()), default=0.0
    )
