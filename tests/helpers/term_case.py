"""What the tests of every term need to know of it: `tests/losses/cases/NAME.py` holds `CASES`.

A case makes the term, draws a global batch in float64 and states the loss of that batch by its
formula, over whole matrices. `tests/losses/test_terms.py` collects the cases, splits the batch over
ranks, and compares values and all gradients; a term without a case fails there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CASES = Path(__file__).parents[1] / "losses" / "cases"
Tensors = dict[str, Tensor]


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(generator: torch.Generator, *shape: int) -> Tensor:
    """Rows of length one."""
    return F.normalize(normal(generator, *shape), dim=-1)


def pairs(generator: torch.Generator, b: int, scale: float = 9.0) -> tuple[Tensors, Tensors]:
    """Features of b pairs and scalars, and an empty batch: the inputs of most terms."""
    features = {"image": unit(generator, b, 7), "text": unit(generator, b, 7)}
    return features | {"logit_scale": torch.tensor([scale], dtype=torch.float64)}, {}


@dataclass
class Case:
    """How a term is tested.

    Attributes:
        make: called with `exchange` and `tile_bytes` if the term takes them.
        formula: (features, batch, term) -> loss of the whole batch, dense, in the dtype given;
            `term` lends its parameters and settings only.
        inputs: (generator, b) -> features and batch entries of b samples, float64. Those with b
            rows are split over ranks; others are the same on every rank.
        takes_exchange: the term compares pairs through an exchange.
        is_mean: the loss is a mean over samples whose columns are the batch, so that with `Local`
            it is the mean of the ranks' formulas.
        min_rows: fewest rows of a rank with which `Local` makes sense.
        constants: features that get no gradient by definition (teachers).
    """

    make: Callable[..., nn.Module]
    formula: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Any], Tensor]
    inputs: Callable[[torch.Generator, int], tuple[Tensors, Tensors]] = pairs
    takes_exchange: bool = True
    is_mean: bool = True
    min_rows: int = 1
    constants: frozenset[str] = field(default_factory=frozenset)


def all_cases() -> dict[str, Case]:
    """All cases by `FILE/NAME`."""
    cases = {}
    for file in sorted(CASES.glob("*.py")):
        spec = spec_from_file_location(f"term_cases_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        cases |= {f"{file.stem}/{name}": case for name, case in module.CASES.items()}
    return cases
