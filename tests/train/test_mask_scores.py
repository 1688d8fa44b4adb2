"""Masking rules with scores of their own: each is a class of this file, which no other knows."""

import re
from pathlib import Path

import pytest
import torch
from small_run import B, batches, module, train
from torch.nn import functional as F

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.reducers.base import ImageReducer, Patches
from counterpoint.models.reducers.mask_token import MaskTokens
from counterpoint.models.reducers.patches import Resize
from counterpoint.models.teachers.frozen import FrozenTowers
from counterpoint.train.ema import Ema, EmaConfig
from counterpoint.train.features import check_needs, check_scores


class Best(ImageReducer):
    """Keeps the half of the patches with the highest scores; remembers it by step and key."""

    def __init__(self):
        self.log = {}

    def keep(self, grid, keys, view, reduction):
        order = reduction.scores[view].flatten(1).argsort(dim=1, descending=True, stable=True)
        kept = order[:, : order.shape[1] // 2].sort(1).values
        if len(keys) > 1:  # else it is tried on an image before the run
            rows = zip(keys.tolist(), kept.tolist(), strict=True)
            self.log |= {(reduction.step, view, key): row for key, row in rows}
        return Patches(kept)


class PixelVariance(Best):
    """Busy patches stay; nothing but the pixels is read."""

    def scores(self, features, batch, grids):
        return {view: self.variance(batch[view], grid) for view, grid in grids.items()}

    def variance(self, image, grid):
        pixels = image.double()
        mean, square = (F.adaptive_avg_pool2d(x, grid) for x in (pixels, pixels.square()))
        return (square - mean.square()).sum(1)


class FrozenAttention(Best):
    """What the class token of a frozen model attends to."""

    def __init__(self, model):
        super().__init__()
        self.needs = (f"{model}.image.attention",)

    def scores(self, features, batch, grids):
        return dict.fromkeys(grids, features[self.needs[0]])


class FrozenAgreement(Best):
    """The left half of an image for samples whose text a frozen model matches, else the right."""

    needs = ("teacher.x.image", "teacher.x.text")

    def scores(self, features, batch, grids):
        image, text = (features[name] for name in self.needs)
        sign = torch.where((image * text).sum(1) > 0, -1.0, 1.0)
        return {
            view: sign[:, None, None] * torch.arange(columns).expand(len(sign), rows, -1)
            for view, (rows, columns) in grids.items()
        }


class StoredScores(Best):
    """Scores that come with the samples, from a sidecar."""

    needs = ("saliency.map",)

    def scores(self, features, batch, grids):
        assert features["saliency.map"].dtype == torch.float32
        return dict.fromkeys(grids, features["saliency.map"])


def reference_attention(model, image):
    """The class token's row of whole attention maps, averaged over layers and heads."""
    maps = []
    for block in model.image.trunk.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, __: maps.append(inputs[0]))
    model.image(image)
    side = int((maps[0].shape[-1] - 1) ** 0.5)
    return torch.stack(maps).mean(dim=(0, 2))[:, 0, 1:].view(len(image), side, side)


def half_of(scores):
    """Indices of the larger half, by sorting in Python."""
    rows = scores.flatten(1).tolist()
    return [
        sorted(sorted(range(len(row)), key=lambda i, row=row: -row[i])[: len(row) // 2])
        for row in rows
    ]


def perturbed():
    """Another model of the student's kind."""
    model = module(1).model
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def run(reducer, teacher=None, ema=None, world_size=1, name="auto", data=None):
    made = module(2, torch.float64, reducer=reducer)
    reducer.prepare(made.model.image)
    made.double()
    made.teachers |= {} if teacher is None else {"x": teacher.double()}
    made.ema = ema and ema.double()
    train(made, world_size, name, data=data)
    return made


def kept_at(reducer, step, batch):
    return [reducer.log[step, "image", key] for key in batch["key"].tolist()]


def test_variance_of_pixels_needs_neither_an_average_nor_a_teacher():
    reducer = PixelVariance()
    run(reducer)
    for step, batch in enumerate(batches(2)):
        patches = batch["image"].double().unfold(2, 8, 8).unfold(3, 8, 8)
        want = patches.flatten(4).var(-1, correction=0).sum(1)
        assert kept_at(reducer, step, batch) == half_of(want)


def test_the_class_in_the_docs_is_such_a_rule():
    text = (Path(__file__).resolve().parents[2] / "docs" / "tokens.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(block, names)
    documented, want = names["BusyPatches"](), PixelVariance()
    losses = [run(reducer).losses for reducer in (documented, want)]
    assert losses[0] == losses[1]


def test_inside_of_other_reducers_scores_are_those_of_the_smaller_grid():
    reducer = PixelVariance()
    data = batches(2)
    for step, batch in enumerate(data):
        g = torch.Generator().manual_seed(step)
        batch["image"] = torch.randint(0, 256, (B, 3, 32, 32), dtype=torch.uint8, generator=g)
    run(Resize(16, then=MaskTokens(reducer)), data=data)
    for step, batch in enumerate(data):
        patches = batch["image"].double().unfold(2, 16, 16).unfold(3, 16, 16)
        want = patches.flatten(4).var(-1, correction=0).sum(1)
        assert kept_at(reducer, step, batch) == half_of(want)


def variance_record(rank, world_size):
    reducer = PixelVariance()
    run(reducer, world_size=world_size, name="ddp")
    return reducer.log


def test_what_is_kept_does_not_depend_on_the_number_of_processes(gloo):
    alone, both = PixelVariance(), gloo(2, variance_record)
    run(alone)
    assert both[0] | both[1] == alone.log


@pytest.mark.parametrize("name", ["ema", "teacher.x"])
def test_attention_of_any_frozen_model_is_a_feature(name):
    reducer, model, is_average = FrozenAttention(name), perturbed(), name == "ema"
    towers = Ema(model, EmaConfig(1.0)) if is_average else FrozenTowers(model)
    calls = []
    towers.model.image.register_forward_hook(lambda *_: calls.append(1))
    run(reducer, **{"ema" if is_average else "teacher": towers})
    assert len(calls) == 2, "once a step"
    for step, batch in enumerate(batches(2)):
        want = reference_attention(perturbed().double(), batch["image"])
        assert kept_at(reducer, step, batch) == half_of(want)


def test_features_of_a_teacher_that_no_term_reads_can_decide():
    reducer, model = FrozenAgreement(), perturbed()
    run(reducer, FrozenTowers(model))
    for step, batch in enumerate(batches(2)):
        image = F.normalize(model.project_image(batch["image"]), dim=1)
        text = F.normalize(model.project_text(batch["text"], batch["text_length"]), dim=1)
        for row, agreement in zip(
            kept_at(reducer, step, batch), (image * text).sum(1), strict=True
        ):
            assert {patch % 2 for patch in row} == ({0} if agreement > 0 else {1})


def test_scores_may_come_from_a_sidecar():
    reducer, data = StoredScores(), batches(2)
    maps = [torch.rand(B, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for batch, values in zip(data, maps, strict=True):
        batch["saliency.map"] = values.half()
    run(reducer, data=data)
    for step, (batch, values) in enumerate(zip(data, maps, strict=True)):
        assert kept_at(reducer, step, batch) == half_of(values.half())


def test_what_a_reducer_needs_and_the_run_lacks_is_refused():
    made = module(1, reducer=FrozenAttention("teacher.x"))
    assert made.phases.needs == {"teacher.x.image.attention"}
    with pytest.raises(ValueError, match=r"the reducer needs .* configure teachers: \{x: "):
        check_needs(made.phases.needs, ["ema"], ["image", "text"], (), "the reducer")
    check_needs(made.phases.needs, ["teacher.x"], ["image", "text"], ())
    with pytest.raises(ValueError, match=r"FrozenAttention needs 'teacher.x.image.attention'"):
        train(made, 1, "auto")
    with pytest.raises(ValueError, match="the image tower has none"):
        no_class_token = module(1).model
        no_class_token.image.has_class_token = False
        FrozenTowers(no_class_token)(batches(1)[0], ("image.attention",))


def test_the_students_own_features_come_too_late():
    reducer = PixelVariance()
    reducer.needs = ("image",)
    made = module(1, reducer=reducer, objective=Objective({"infonce": InfoNCE()}))
    with pytest.raises(ValueError, match=r"phases.train.image_reducer: .* after the scores"):
        check_scores(made.phases, made.objective.needs, {}, made.model.image)
