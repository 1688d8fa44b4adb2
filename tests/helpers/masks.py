"""Reducers that record the choices of the ones they wrap, for runs in other processes."""

from pathlib import Path

import torch

from counterpoint.models.reducers.base import ImageReducer, TextReducer, WrappedReducer


class Images(WrappedReducer):
    """Appends `step/view/key kept,kept,...`; `~i` is patch `i` hidden behind the mask token."""

    def __init__(self, of: ImageReducer, path: str):
        super().__init__(of)
        self.path = path

    def keep(self, grid, keys, view, reduction):
        patches = super().keep(grid, keys, view, reduction)
        kept, hidden = patches[:2]
        if len(keys) > 1:  # else it is tried on an image before the run
            signed = kept if hidden is None else torch.where(hidden, ~kept, kept)
            write(self.path, reduction.step, view, keys, signed)
        return patches


class Texts(TextReducer):
    """Appends `step/view/key token,token,...`."""

    def __init__(self, of: TextReducer, path: str):
        self.of, self.path = of, path

    def tokens(self, text, length, keys, view, reduction):
        tokens = self.of.tokens(text, length, keys, view, reduction)
        write(self.path, reduction.step, view, keys, tokens[0])
        return tokens


def write(path, step, view, keys, rows):
    lines = [
        f"{step}/{view}/{key} {','.join(map(str, row))}\n"
        for key, row in zip(keys.tolist(), rows.tolist(), strict=True)
    ]
    with Path(path).open("a") as file:
        file.write("".join(lines))


def read(path) -> dict[str, list[int]]:
    """What was chosen; a step that was taken again must have chosen the same."""
    choices: dict[str, list[int]] = {}
    for line in Path(path).read_text().splitlines():
        name, _, row = line.partition(" ")
        chosen = [int(value) for value in row.split(",")]
        assert choices.setdefault(name, chosen) == chosen, name
    return choices
