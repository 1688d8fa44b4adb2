"""Compiled towers: one graph a kind of layer, for any number of rows and tokens.

In: the module that trains, and a backend of torch.compile. Out: the same module, in which the
layers of the towers (and of frozen ones) run compiled. No parameter's name changes, and results
only by rounding.

Layers, not whole towers: FSDP2 and ZeRO gather parameters for a layer, so that all that these
strategies do happens between graphs; and the layers of a tower share one graph, which is compiled
in seconds. What cannot be compiled (no C compiler in the container, a layer that is not one graph)
runs as it is, and a line says so.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from ..module import ContrastiveModule
from ..screen import log_line
from ..torch_internals import is_compiler_error, set_compile_options

# Of one kind of layer: training or not, one row or several, frozen towers of other widths. Past
# the limit the kind is no longer compiled.
MAX_GRAPHS = 64
AUTO = "auto"


class Compile(pl.Callback):
    """Compiles the towers by a backend of torch.compile, before any strategy wraps them.

    Args:
        backend: `auto` is inductor on GPUs, and nothing elsewhere, where it takes minutes first.
    """

    def __init__(self, backend: str | Callable[..., Any]):
        self.backend = backend

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replaces the layers' forward functions and prints how many of each kind."""
        assert isinstance(pl_module, ContrastiveModule)
        backend, layers = self.backend, pl_module.model.layers()
        if backend == AUTO:
            if not layers or trainer.strategy.root_device.type != "cuda":
                return
            backend = "inductor"
        if not layers:
            raise ValueError(
                "trainer.compile compiles the layers of the towers, and these towers name none "
                "(their method `layers`); set trainer.compile=null"
            )
        for towers in pl_module.frozen_towers.values():
            layers += towers.model.layers()
        compile_layers(layers, backend)
        pl_module.sharding.prepare_compiled(layers)
        if trainer.is_global_zero:
            counts = Counter(type(layer).__name__ for layer in layers)
            kinds = ", ".join(f"{count} {name}" for name, count in counts.items())
            log_line(f"compiled with {backend}: {kinds}")


def compile_layers(layers: Iterable[nn.Module], backend: str | Callable[..., Any]) -> None:
    """Compiles layers in place, those of a kind with one function."""
    set_compile_options(MAX_GRAPHS)
    functions: dict[type, Callable[..., Any]] = {}
    for layer in layers:
        kind = type(layer)
        if kind not in functions:
            functions[kind] = compile_forward(kind, backend)
        # A method, so that a copy of the layer runs on its own parameters.
        layer.forward = MethodType(functions[kind], layer)


def compile_forward(kind: type[nn.Module], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """Returns the forward function of a kind of layer as one graph, which its layers share.

    Sizes are symbols from the first call on: captions' lengths, kept patches and parts of a batch
    may differ from call to call, and a recomputed part meets the graph that it was computed with.
    After a failure all calls run as they are.
    """
    functions = [torch.compile(kind.forward, backend=backend, fullgraph=True, dynamic=True)]

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            return functions[-1](self, *args, **kwargs)
        except Exception as error:
            if functions[-1] is kind.forward or not is_compiler_error(error):
                raise
            functions.append(kind.forward)
            if rank_zero_only.rank == 0:
                reason = " ".join(str(error).split())[:300]
                log_line(
                    f"{kind.__name__} is not compiled, which costs time and nothing else: "
                    f"{type(error).__name__}: {reason} (trainer.compile: null leaves it so)"
                )
        return kind.forward(self, *args, **kwargs)

    return forward
