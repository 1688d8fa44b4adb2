"""Frozen models: the features of a direct forward, nothing else."""

import pytest
import torch
from tiny_tower import tiny_vit

from counterpoint.models.teachers.frozen import Frozen, FrozenTowers
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower

NEEDS = ("image", "image.b.raw", "text.raw", "text.long", "logit_scale")


def model():
    torch.manual_seed(0)
    image = tiny_vit(2, 16, 0.5)
    text = ClipTextTower(16, 1, 2, context_length=6, vocab_size=50, dropout=0.5)
    return TwoTower(image, text, 8, logit_scale_init=7.0)


def batch(n=7):
    g = torch.Generator().manual_seed(1)
    made = {"key": torch.arange(n)}
    for name in ("image", "image.b"):
        made[name] = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=g)
    for name in ("text", "text.long"):
        made[name] = torch.randint(1, 50, (n, 6), generator=g)
        made[f"{name}_length"] = torch.randint(2, 7, (n,), generator=g)
    return made


def test_features_are_those_of_a_direct_forward():
    towers = FrozenTowers(model())
    towers.train()  # what Lightning does to the whole module
    got, data = towers(batch(), NEEDS), batch()
    direct = model().eval()
    images = {view: direct.project_image(data[view]) for view in ("image", "image.b")}
    texts = {v: direct.project_text(data[v], data[f"{v}_length"]) for v in ("text", "text.long")}
    for view, raw in (images | texts).items():
        torch.testing.assert_close(got[f"{view}.raw"], raw.detach())
        torch.testing.assert_close(got[view], (raw / raw.norm(dim=1, keepdim=True)).detach())
    assert got["logit_scale"].shape == (1,) and abs(got["logit_scale"].item() - 7) < 1e-5
    assert not any(value.requires_grad for value in got.values())
    assert not any(p.requires_grad for p in towers.parameters())


@pytest.mark.parametrize("text_parts", [0, 4])
def test_a_teacher_is_encoded_in_as_many_parts_as_the_model_says(text_parts):
    made, data, rows = model(), batch(), []
    made.text_parts = text_parts
    want = FrozenTowers(made)(data, NEEDS)
    made.chunks = 3
    for tower in (made.image, made.text):
        tower.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    got = FrozenTowers(made)(data, NEEDS)
    assert rows == [3, 2, 2] * 4
    for name in NEEDS:
        torch.testing.assert_close(got[name], want[name])


def test_low_precision_is_the_weights():
    sources = []

    def load(source):
        sources.append(source)
        return TwoTower(model().image, model().text, 8, 117.33, -16.9)

    towers = Frozen("somewhere", precision="bfloat16").build(load)
    got = towers(batch(), ("image", "text"))
    want = load("somewhere").eval()(batch(), ("image", "text"))
    assert sources == ["somewhere"] * 2
    full = {n for n, p in towers.model.named_parameters() if p.dtype != torch.bfloat16}
    assert full == {"logit_scale", "logit_bias"}
    assert got["logit_scale"].item() == pytest.approx(117.33, rel=1e-6)
    assert got["logit_bias"].item() == pytest.approx(-16.9, rel=1e-6)
    for name in ("image", "text"):
        assert got[name].dtype == torch.float32 and got[f"{name}.raw"].dtype == torch.bfloat16
        assert (got[name] * want[name]).sum(1).min() > 0.99
