"""Pairs that a small model learns in seconds, and that it can be tested on: scenes of attributes.

A scene has a value of each of its attributes; its caption names them, a word each, and its image is
a random nonlinear map of them with noise. Held-out scenes are combinations that training has not
seen, so that whoever ranks them well has learned what the words mean.
"""

import re
from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

ATTRIBUTES, VALUES = 6, 6
SIDE = 4  # of images, in pixels
LENGTH = ATTRIBUTES + 2  # of captions, in tokens
BATCH = 64
START, END, FIRST = 0, 1, 2
# Every value has a word in each of these vocabularies, which share none.
NUM_WORDS, VOCABULARIES = ATTRIBUTES * VALUES, 5
NUM_TOKENS = FIRST + NUM_WORDS * VOCABULARIES


class Scenes:
    """Draws scenes, and their images and captions.

    Args:
        seed: of the draws; the world in which images look as they do is one and the same.
    """

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        world = torch.Generator().manual_seed(99)
        pixels = 3 * SIDE * SIDE
        self.looks = torch.randn(ATTRIBUTES, VALUES, pixels, generator=world) / ATTRIBUTES**0.5
        self.mixing = torch.randn(pixels, pixels, generator=world) / pixels**0.5

    def draw(self, n: int) -> Tensor:
        """Values of n scenes [n, attributes]."""
        return torch.randint(VALUES, (n, ATTRIBUTES), generator=self.generator)

    def image(self, scene: Tensor, noise: float = 0.3) -> Tensor:
        """Pixels, uint8 [n, 3, side, side]."""
        looks = self.looks[torch.arange(ATTRIBUTES), scene].sum(1)
        looks = looks + torch.tanh(2 * looks @ self.mixing)
        looks = looks + noise * torch.randn(looks.shape, generator=self.generator)
        return (128 + 40 * looks).clamp(0, 255).to(torch.uint8).unflatten(1, (3, SIDE, SIDE))

    def text(self, scene: Tensor, vocabulary: int = 0) -> Tensor:
        """Captions, int64 [n, length]."""
        words = FIRST + vocabulary * NUM_WORDS + torch.arange(ATTRIBUTES) * VALUES + scene
        return F.pad(F.pad(words, (1, 0), value=START), (0, 1), value=END)

    def changed(self, scene: Tensor) -> Tensor:
        """The same scenes with another value of one attribute."""
        n = len(scene)
        which = torch.randint(ATTRIBUTES, (n,), generator=self.generator)
        other = torch.randint(1, VALUES, (n,), generator=self.generator)
        changed = scene.clone()
        rows = torch.arange(n)
        changed[rows, which] = (scene[rows, which] + other) % VALUES
        return changed

    def batch(self, needs: Collection[str], n: int = BATCH) -> dict[str, Tensor]:
        """A batch of n new scenes, with every entry that objectives which need these can read."""
        scene = self.draw(n)
        batch = {"key": torch.randint(1 << 62, (n,), generator=self.generator)}
        batch |= self.entries(scene, {"image", "text", *filter(is_view, needs)})
        for name in needs:
            if name == "clusters.id":
                batch[name] = scene[:, 0] * VALUES + scene[:, 1]
            elif name.endswith(".present"):
                batch[name] = torch.rand(n, generator=self.generator) < 0.8
        return batch

    def entries(self, scene: Tensor, needs: Collection[str]) -> dict[str, Tensor]:
        """The views and texts that are needed, by the names of the package's configurations."""
        other = self.changed(scene)
        entries = {}
        for view in sorted({re.sub(r"\.(raw|pooled)$", "", name) for name in needs}):
            modality, _, name = view.partition(".")
            if modality == "image":
                noise = 0.3 if name in ("", "negative") else 0.6
                entries[view] = self.image(other if name == "negative" else scene, noise)
                continue
            text = self.text(other if name in ("negative", "wrong") else scene, vocabulary(name))
            if name.startswith("attack") or name == "augmented":
                which = 1 + torch.randint(ATTRIBUTES, (len(text), 4), generator=self.generator)
                misread = text + (VOCABULARIES - 1) * NUM_WORDS
                text = text.scatter(1, which, misread.gather(1, which))
            if name == "short":
                text = torch.cat([text[:, : ATTRIBUTES // 2 + 1], text[:, -1:]], 1)
            entries[view] = text
            entries[f"{view}_length"] = torch.full((len(text),), text.shape[1])
            entries[f"{view}.present"] = torch.rand(len(text), generator=self.generator) < 0.8
        return entries


def is_view(name: str) -> bool:
    """Whether a tower of the student or a batch entry makes it."""
    return name.split(".")[0] in ("image", "text")


def vocabulary(name: str) -> int:
    """The words that a text is made of."""
    if name.startswith("rewrite"):
        return int(name.rpartition("_")[2]) % (VOCABULARIES - 1)
    return 1 if name in ("answer", "translated") else 0
