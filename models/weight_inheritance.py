"""Weight inheritance: a smaller student starts from layers and slices of a larger model.

In: two models of the same kinds of towers. Out: the student, with every d-th block of the larger
model (d = its depth / the student's, rounded down, from the first on) and the leading slice of
every tensor; attention keeps its first heads. Wu et al., "TinyCLIP" (2023), section 3.2, manual
inheritance.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .image import ImageTower
from .text.base import TextTower
from .two_tower import TwoTower

# What timm's, BERT's and DistilBERT's attention modules call the number of their heads.
HEADS = ("num_heads", "num_attention_heads", "n_heads")
# What attention makes of a token, heads side by side, and how many of queries, keys and values.
BY_HEADS = {"qkv": 3, "kv": 2, "q": 1, "k": 1, "v": 1, "q_proj": 1, "k_proj": 1, "v_proj": 1}
BY_HEADS |= {"query": 1, "key": 1, "value": 1, "q_lin": 1, "k_lin": 1, "v_lin": 1}
# What takes the heads side by side: its columns are theirs.
OUTPUTS = ("proj", "out_lin", "output.dense")


@torch.no_grad()
def inherit(
    student: TwoTower | ImageTower | TextTower, teacher: TwoTower | ImageTower | TextTower
) -> str:
    """Fills all tensors of the student; returns a sentence about what was done.

    Raises:
        ValueError: the models are of different kinds, or the student is larger somewhere.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    lists, their_lists = layer_names(student), layer_names(teacher)
    sources = layer_sources(lists, their_lists)
    heads, their_heads = heads_of(student), heads_of(teacher)
    for name, tensor in own.items():
        layer = next((layer for layer in sources if name.startswith(f"{layer}.")), "")
        source = sources.get(layer, "") + name.removeprefix(layer)
        if source not in theirs:
            raise ValueError(
                f"inherit_from: the larger model has no '{source}' for the student's '{name}'; "
                "inherit from a model with the same kinds of towers"
            )
        attention, their_attention = owner(name, heads), owner(source, their_heads)
        if attention is not None and their_attention is not None:
            value = cut_heads(
                theirs[source], tensor, name, heads[attention], their_heads[their_attention]
            )
        else:
            value = cut(theirs[source], tensor.shape, name)
        tensor.copy_(value)
    counts = [f"{len(lists[n])} of {len(their_lists[n])} layers in {n}" for n in sorted(lists)]
    return f"{len(own)} tensors inherited, {', '.join(counts)}"


def layer_names(model: TwoTower | ImageTower | TextTower) -> dict[str, list[str]]:
    """Returns the names of the layers in order, by the name of the list that they stand in."""
    names = {module: name for name, module in model.named_modules()}
    lists: dict[str, list[str]] = {}
    for layer in model.layers():
        lists.setdefault(names[layer].rpartition(".")[0], []).append(names[layer])
    return lists


def layer_sources(
    lists: Mapping[str, list[str]], their_lists: Mapping[str, list[str]]
) -> dict[str, str]:
    """Returns the larger model's layer for each of the student's.

    Raises:
        ValueError: the student is deeper.
    """
    sources = {}
    for name, layers in lists.items():
        their_layers = their_lists.get(name, layers)  # or its tensors are found to be missing
        step = len(their_layers) // len(layers)
        if not step:
            raise ValueError(
                f"inherit_from: the student has {len(layers)} layers in {name}, the larger model "
                f"{len(their_layers)}; give the student as many or fewer"
            )
        sources |= zip(layers, their_layers[::step], strict=False)
    return sources


def heads_of(model: nn.Module) -> dict[str, int]:
    """Heads of every attention module by its name.

    BERT's holds queries, keys and values in `self` and has the output projection beside it.
    """
    return {
        f"{name.removesuffix('.self')}.": int(getattr(module, attribute))
        for name, module in model.named_modules()
        for attribute in HEADS
        if hasattr(module, attribute) and not isinstance(module, nn.MultiheadAttention)
    }


def owner(name: str, heads: Mapping[str, int]) -> str | None:
    """The attention module that a tensor belongs to."""
    return next((attention for attention in heads if name.startswith(attention)), None)


def cut_heads(theirs: Tensor, own: Tensor, name: str, heads: int, their_heads: int) -> Tensor:
    """Cuts a tensor of an attention module: queries, keys and values by heads, the rest plainly.

    Raises:
        ValueError: the student has more heads, or it is unknown where the heads are.
    """
    if heads > their_heads:
        raise ValueError(
            f"inherit_from: the student has {heads} heads at '{name}', the larger model "
            f"{their_heads}; give it as many or fewer"
        )
    for part, num_parts in BY_HEADS.items():
        if f".{part}." in name:
            apart = theirs.unflatten(0, (num_parts, their_heads, -1))
            wanted = own.unflatten(0, (num_parts, heads, -1)).shape
            return cut(apart, wanted, name).flatten(0, 2)
    if name.endswith(tuple(f"{output}.weight" for output in OUTPUTS)) and own.ndim == 2:
        apart = theirs.unflatten(1, (their_heads, -1))
        return cut(apart, own.unflatten(1, (heads, -1)).shape, name).flatten(1)
    # Attentive pooling has an MLP of its own.
    if name.endswith(".weight") and own.ndim == 2 and ".mlp." not in name:
        raise ValueError(
            f"inherit_from: where in '{name}' the heads are is not known; use towers whose "
            f"attention has {', '.join(BY_HEADS)} and {', '.join(OUTPUTS)}"
        )
    return cut(theirs, own.shape, name)


def cut(theirs: Tensor, shape: Iterable[int], name: str) -> Tensor:
    """The leading slice of a tensor.

    Raises:
        ValueError: it is smaller than what is wanted of it.
    """
    shape = tuple(shape)
    fits = theirs.ndim == len(shape) and all(map(int.__ge__, theirs.shape, shape))
    # A leading part of a patch, or of the grid of positions, would mean nothing.
    fixed = {"pos_embed": slice(1, 2), "patch_embed.proj.weight": slice(2, 4)}
    for ending, places in fixed.items():
        if name.endswith(ending):
            fits = fits and theirs.shape[places] == shape[places]
    if not fits:
        raise ValueError(
            f"inherit_from: the student's '{name}' is {list(shape)}, the larger model's "
            f"{list(theirs.shape)}; a student can only be as large or smaller, with the same "
            "patches and images"
        )
    return theirs[tuple(slice(0, size) for size in shape)]
