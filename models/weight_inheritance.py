"""Weight inheritance: a smaller student starts from layers and slices of a larger model.

In: two models of the same kinds of towers. Out: the student, with every d-th block of the larger
model (d = its depth / the student's, rounded down, from the first on) and the leading slice of
every tensor; attention keeps its first heads. Wu et al., "TinyCLIP" (2023), section 3.2, manual
inheritance.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

# `blocks.3.` of timm, `layers.3.` of transformers: the name up to the number, and the number.
BLOCK = re.compile(r"(.*\b(?:blocks|layers)\.)(\d+)(?=\.)")
# What attention makes of a token, heads side by side, and how many of queries, keys and values.
BY_HEADS = {"qkv": 3, "kv": 2, "q": 1, "k": 1, "v": 1, "q_proj": 1, "k_proj": 1, "v_proj": 1}


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> str:
    """Fills all tensors of the student; returns a sentence about what was done.

    Raises:
        ValueError: the models are of different kinds, or the student is larger somewhere.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    depths, their_depths = depths_of(own), depths_of(theirs)
    heads, their_heads = heads_of(student), heads_of(teacher)
    for name, tensor in own.items():
        source = source_of(name, depths, their_depths)
        if source not in theirs:
            raise ValueError(
                f"inherit_from: the larger model has no '{source}' for the student's '{name}'; "
                "inherit from a model with the same kinds of towers"
            )
        attention, theirs_there = owner(name, heads), owner(source, their_heads)
        if attention is not None and theirs_there is not None:
            found = cut_heads(
                theirs[source], tensor, name, heads[attention], their_heads[theirs_there]
            )
        else:
            found = cut(theirs[source], tensor.shape, name)
        tensor.copy_(found)
    kept = [f"{depths[p]} of {their_depths[p]} layers in {p.rstrip('.')}" for p in sorted(depths)]
    return f"{len(own)} tensors inherited, {', '.join(kept)}"


def depths_of(names: Iterable[str]) -> dict[str, int]:
    """Number of blocks by the name that comes before the number."""
    depths: dict[str, int] = {}
    for name in names:
        if found := BLOCK.match(name):
            depths[found[1]] = max(depths.get(found[1], 0), int(found[2]) + 1)
    return depths


def source_of(name: str, depths: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    """The larger model's tensor for one of the student's.

    Raises:
        ValueError: the student is deeper.
    """
    found = BLOCK.match(name)
    if found is None or found[1] not in theirs:
        return name
    step = theirs[found[1]] // depths[found[1]]
    if not step:
        raise ValueError(
            f"inherit_from: the student has {depths[found[1]]} layers in {found[1].rstrip('.')}, "
            f"the larger model {theirs[found[1]]}; give the student as many or fewer"
        )
    return f"{found[1]}{int(found[2]) * step}{name[found.end() :]}"


def heads_of(model: nn.Module) -> dict[str, int]:
    """Heads of every attention module by its name."""
    return {
        f"{name}.": int(module.num_heads)  # type: ignore[arg-type]
        for name, module in model.named_modules()
        if hasattr(module, "num_heads") and not isinstance(module, nn.MultiheadAttention)
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
    if name.endswith(("proj.weight", "out_proj.weight")) and own.ndim == 2:
        apart = theirs.unflatten(1, (their_heads, -1))
        return cut(apart, own.unflatten(1, (heads, -1)).shape, name).flatten(1)
    # Attentive pooling has an MLP of its own.
    if name.endswith(".weight") and own.ndim == 2 and ".mlp." not in name:
        raise ValueError(
            f"inherit_from: where in '{name}' the heads are is not known; use towers whose "
            f"attention has {', '.join(BY_HEADS)} and proj or out_proj"
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
            "patches and pictures"
        )
    return theirs[tuple(slice(0, size) for size in shape)]
