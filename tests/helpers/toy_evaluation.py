"""A model, images and a suite whose results can be worked out by hand."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from counterpoint.data.image_sets import ImageSet, Item
from counterpoint.train.evaluation.evaluate import evaluate
from counterpoint.train.evaluation.retrieval import Retrieval
from counterpoint.train.evaluation.suite import Suite
from counterpoint.train.evaluation.zero_shot.classification import ZeroShot

CLASSES = [f"c{i}" for i in range(7)]


class Toy(nn.Module):
    """Towers that show whether evaluation mode, calls and random states are as they should be."""

    image_size = 4
    context_length = 6

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.image = nn.Linear(3 * 16, 8, bias=False)
        self.text = nn.Embedding(128, 8)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(8)
        self.frozen = nn.Dropout(0.5).eval()
        self.image.weight.data = torch.randn(8, 48, generator=generator)
        self.text.weight.data = torch.randn(128, 8, generator=generator)
        self.calls = []

    def encode_image(self, image):
        self.calls.append(("image", len(image)))
        assert image.dtype == torch.uint8 and not torch.is_grad_enabled()
        torch.rand(1)
        return self.norm(self.dropout(self.image(image.flatten(1).float() / 255 - 0.5)))

    def encode_text(self, ids, lengths):
        self.calls.append(("text", len(ids)))
        random.random()
        np.random.rand()  # noqa: NPY002
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return F.normalize((self.text(ids) * mask[..., None]).sum(1), dim=-1)


def tokenizer(texts, context_length):
    ids = torch.zeros(len(texts), context_length, dtype=torch.int64)
    lengths = torch.tensor([min(len(t), context_length) for t in texts])
    for i, text in enumerate(texts):
        for j, character in enumerate(text[-context_length:]):
            ids[i, j] = ord(character) % 128
    return ids, lengths


def transform(image, size, rng):
    assert rng is None
    return image[:, :size, :size]


class ToyImages(ImageSet):
    """Random images in memory, with fields."""

    default_label = "cls"

    def __init__(self, num, broken=()):
        rng = np.random.default_rng(0)
        self.pixels = torch.from_numpy(rng.integers(0, 256, (num, 3, 4, 4), dtype=np.uint8))
        self.broken = broken
        self.loads = 0
        self.classes = [CLASSES[i] for i in rng.integers(0, 6, num)]  # the last class never occurs

    def __str__(self):
        return "the images"

    def walk(self):
        for i, name in enumerate(self.classes):
            captions = [f"cap{i // 2}", f"x{i}", f"x{i}"]
            fields = {"key": f"k{i}", "cls": name, "style": "ab"[i % 2], "captions": captions}
            yield Item("memory", 0, 0, fields)

    def image(self, index):
        self.loads += 1
        if index in self.broken:
            raise OSError("disk on fire")
        return self.pixels[index]


def toy_suite(num=23, **kwargs):
    data = ToyImages(num, **kwargs)
    tasks = {
        "all": ZeroShot(data, classes=CLASSES, templates=["{c}", "a {c}", "the {c}!"]),
        "style": ZeroShot(data, classes=CLASSES, templates="{c}", by="style"),
        "pairs": Retrieval(data, captions="captions"),
        "half": Retrieval(data, captions="captions", k=[2], where={"style": "b"}),
    }
    return Suite("toy", tasks)


def run(suite, model=None, **kwargs):
    return evaluate(model or Toy(), suite, tokenizer, transform, **kwargs)


def features(model, data):
    """Features of all images, texts by a normalisation of its own, in float64."""
    pixels = data.pixels.flatten(1).double() / 255 - 0.5
    image = pixels @ model.image.weight.double().T
    image = image / (1 + model.norm.eps) ** 0.5  # batch norm of a new model, in evaluation mode

    def text(texts):
        ids, lengths = tokenizer(texts, model.context_length)
        rows = [model.text.weight[i[:n]].double().sum(0) for i, n in zip(ids, lengths, strict=True)]
        return unit(torch.stack(rows))

    return unit(image).detach(), lambda texts: text(texts).detach()


def unit(rows):
    return rows / rows.pow(2).sum(-1, keepdim=True).sqrt()
