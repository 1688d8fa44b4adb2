"""The layers of a network that another library built, found by its structure.

In: timm's, transformers' or open_clip's module. Out: its layers, from the embedding to the top.
"""

from torch import nn


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
