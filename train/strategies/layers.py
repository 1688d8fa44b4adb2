"""Which modules of a tower are its layers: what is sharded and compiled one by one.

In: a tower. Out: its layers.
"""

from collections.abc import Iterator

from torch import nn


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of transformers and the stages of others: composed modules, equals in a list.

    Inner ones come first.
    """
    for container in reversed(list(module.modules())):
        if not isinstance(container, nn.Sequential | nn.ModuleList):
            continue
        children = list(container)
        if len({type(child) for child in children}) == 1 and any(children[0].children()):
            yield from children
