"""A model whose features are linear in pixels, in all their forms, and images in noisy classes."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from toy_evaluation import tokenizer, transform

from counterpoint.data.image_sets import ImageSet, Item
from counterpoint.models.image import TimmTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.evaluation.evaluate import evaluate
from counterpoint.train.evaluation.suite import Suite

NAMES = ["Ant", "Bee", "Cat", "Dog", "Eel", "Fox", "Gnu"]
PROTOTYPES = np.random.default_rng(9).integers(60, 196, (len(NAMES), 3, 4, 4))


class Vectors(nn.Module):
    """Pooled features [10], raw ones [6], and those of length one."""

    image_size = 4
    context_length = 24

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.image = nn.Parameter(torch.randn(48, 10, generator=generator) / 7)
        self.projection = nn.Parameter(torch.randn(10, 6, generator=generator) / 3)
        self.letters = nn.Parameter(torch.randn(24, 128, 6, generator=generator) / 2)
        # A name begins with the letter of its class, which says roughly what its images look like.
        pixels = torch.from_numpy(PROTOTYPES).flatten(1).float() / 255 - 0.5
        for name, raw in zip(NAMES, pixels @ self.image.data @ self.projection.data, strict=True):
            self.letters.data[:, ord(name[0])] += 4 * F.normalize(raw, dim=0)

    def encode_image(self, image, form=""):
        pooled = (image.flatten(1).float() / 255 - 0.5) @ self.image
        return self._form(pooled, pooled @ self.projection, form)

    def encode_text(self, ids, lengths, form=""):
        rows = torch.arange(ids.shape[1])
        states = self.letters[rows, ids] * (rows < lengths[:, None])[..., None]
        pooled = states.sum(1)
        return self._form(pooled, pooled, form)

    def _form(self, pooled, raw, form):
        return {"": F.normalize(raw, dim=1), ".raw": raw, ".pooled": pooled}[form]


def small_vit(**options):
    """A two-tower model for the same images and texts, whose image tower is a ViT."""
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "embed_dim": 12, "depth": 3, "num_heads": 3}
    image = TimmTower("vit_tiny_patch16_224", image_size=4, model_args=sizes | options)
    text = ClipTextTower(8, 1, 2, context_length=Vectors.context_length, vocab_size=128)
    model = TwoTower(image, text, embed_dim=6)
    for parameter in model.parameters():  # norms and biases too, which start as 1 and 0
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


class Classes(ImageSet):
    """Images around a prototype a class, with fields `cls`, `caption`, `split`, `key`."""

    default_label = "cls"

    def __init__(self, num, noise=60, seed=0, name="images", classes=NAMES, fields=None):
        self.name = name
        self.names = classes
        self.more = fields or (lambda i, label: {})
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, len(classes), num)
        self.labels[: len(classes)] = np.arange(len(classes))[:num]
        chosen = [NAMES.index(classes[label]) for label in self.labels]
        pixels = PROTOTYPES[chosen] + rng.normal(0, noise, (num, 3, 4, 4))
        self.pixels = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))

    def __str__(self):
        return f"the {self.name}"

    def walk(self):
        for i, label in enumerate(self.labels):
            name = self.names[label]
            fields = {"key": f"{self.name}{i}", "cls": name, "caption": f"a {name} {i}"}
            yield Item("memory", 0, 0, fields | self.more(i, name))

    def image(self, index):
        return self.pixels[index]


def run(task, model=None, **options):
    """Results of one task by measure."""
    outcomes = {}
    results = evaluate(
        model or Vectors(),
        Suite("s", {"t": task}),
        tokenizer,
        transform,
        outcomes=outcomes,
        **options,
    )
    for name, each in outcomes.items():  # what every task promises of its outcomes
        weights = np.ones(len(each.values)) if each.weights is None else np.asarray(each.weights)
        mean = (np.asarray(each.values) * weights).sum() / weights.sum()
        np.testing.assert_allclose(results[name], mean, rtol=1e-9, atol=1e-12)
        assert len(each.keys) == len(each.values) == len(weights)
    return {name.removeprefix("s/t/"): value for name, value in results.items()}


def features(data, form="", model=None):
    """Features of a whole set in float64, by numpy alone."""
    model = model or Vectors()
    pixels = data.pixels.numpy().reshape(len(data.pixels), -1) / 255.0 - 0.5
    pooled = pixels @ model.image.detach().double().numpy()
    if form == ".pooled":
        return pooled
    raw = pooled @ model.projection.detach().double().numpy()
    return raw if form else unit(raw)


def texts(lines, form="", model=None):
    """Features of texts in float64."""
    ids, lengths = tokenizer(list(lines), Vectors.context_length)
    letters = (model or Vectors()).letters.detach().double().numpy()
    raw = [letters[np.arange(n), i[:n]].sum(0) for i, n in zip(ids.numpy(), lengths, strict=True)]
    return np.array(raw) if form else unit(np.array(raw))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
