"""What training asks of a strategy: the whole contract, and who answers it for Lightning's own.

In: a strategy of Lightning's or ours. Out: its adapter for gradients and parameters, the module cut
over ranks, and what checks need to know. Nothing else in the package looks at a strategy's class.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from .row_shards import shard_rows
from .sharded_tensors import LocalTensors, Tensors


class Sharding:
    """What lies on a rank. The defaults are those of one process and of DDP: everything.

    A strategy derives from this class first and then from the Lightning strategy that it extends,
    and overrides what differs. `choose.PACKAGED` gives it a name for `trainer.strategy`.

    Attributes:
        cuts_inside_tensors: ranks step flat pieces of parameters, so that an optimizer whose update
            needs a whole tensor would compute something else.
        cuts_states: resumes from optimizer states that are cut like their parameters; states of
            other shapes cannot be.
        knows_extra_backward: gradients of a second backward pass, outside of `training_step`, can
            be reached.
        gathers_in_forward: parameters are whole only inside of their module's `forward`; its other
            methods find pieces.
        saves_pieces: states for checkpoints hold a `Piece` where a rank has one, and are not put
            together; inside of `pieces`.
    """

    cuts_inside_tensors = False
    cuts_states = False
    knows_extra_backward = True
    gathers_in_forward = False
    saves_pieces = False

    def shard(
        self,
        module: nn.Module,
        parts: Mapping[nn.Module, Sequence[nn.Module]],
        num_calls: int = 1,
    ) -> None:
        """Leaves each rank its part of the module, once ranks are known, before the optimizer.

        Args:
            module: all that is trained and saved.
            parts: those of its modules that are called by themselves, each with its layers.
            num_calls: how often a step calls a layer at most, in parts of the batch.

        Raises:
            ValueError: the module has row shards, which the strategy would take for copies.
        """
        shard_rows(module)

    def tensors(self) -> Tensors:
        """Returns the adapter for gradients and parameters; called once, when all is set up."""
        return LocalTensors()

    @contextmanager
    def pieces(self) -> Iterator[None]:
        """Leaves states for checkpoints as they lie on the ranks, within the block."""
        self.saves_pieces = True
        try:
            yield
        finally:
            self.saves_pieces = False

    def prepare_compiled(self, layers: Iterable[nn.Module]) -> None:
        """Adapts the strategy to layers of which each runs as one graph."""
