"""The layers of a tower; of a network that another library built, found by its structure."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Tower(nn.Module):
    """What image and text towers have in common.

    Attributes:
        width: length of the pooled vector.
    """

    width: int

    def layers(self) -> Sequence[nn.Module]:
        """Returns the repeated layers, from the embedding to the top.

        Strategies shard them and `trainer.compile` compiles them one by one, learning rates decay
        from each to the one below it, and a smaller student inherits every d-th of them. Without
        any (the default) the tower is sharded as a whole, and what needs layers is refused.
        """
        return ()

    def states(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Returns the last states [n, tokens, d], normalised as they are pooled, and `forward`'s.

        Takes what `forward` takes. Of captions the rows behind a caption's end mean nothing.

        Raises:
            ValueError: the tower does not show its tokens.
        """
        raise ValueError(
            f"{type(self).__name__} does not show its tokens, so there are no features `.tokens`: "
            "give it a method `states`, or use pooled features"
        )


def repeated_layers(network: nn.Module) -> list[nn.Module]:
    """Returns the composed modules that stand as equals in a list, the innermost such lists'.

    Those are the blocks of a transformer, and the blocks (not the stages) of a hierarchical or a
    convolutional network.
    """
    children = list(network.children())
    if inner := [layer for child in children for layer in repeated_layers(child)]:
        return inner
    is_list = isinstance(network, nn.Sequential | nn.ModuleList)
    if not is_list or len({type(child) for child in children}) != 1:
        return []
    return children if any(children[0].children()) else []
