"""The two-tower model: its features against the towers used by hand, its scalars, its weights."""

import math

import pytest
import safetensors.torch
import torch
from tiny_tower import tiny_vit
from torch.nn import functional as F

from counterpoint.models.image import OPENAI_MEAN, OPENAI_STD, PixelStem, TimmTower
from counterpoint.models.text.base import TextTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.models.weights import load_weights, read_weights


def tiny(bias=None, width=16):
    torch.manual_seed(0)
    image = tiny_vit(1, width)
    text = ClipTextTower(width=width, depth=2, num_heads=2, context_length=12, vocab_size=50)
    return TwoTower(image, text, embed_dim=8, logit_scale_init=10.0, logit_bias_init=bias)


def batch(n=3):
    g = torch.Generator().manual_seed(1)
    length = torch.tensor([4, 12, 2])[:n]
    text = torch.randint(1, 48, (n, 12), generator=g)
    for row, end in zip(text, length, strict=True):
        row[end - 1], row[end:] = 49, 0
    image = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=g)
    return {"image": image, "text": text, "text_length": length}


def test_stem_is_the_usual_normalisation():
    image = batch()["image"]
    want = (image.double() / 255 - torch.tensor(OPENAI_MEAN, dtype=torch.float64).view(3, 1, 1)) / (
        torch.tensor(OPENAI_STD, dtype=torch.float64).view(3, 1, 1)
    )
    got = PixelStem(OPENAI_MEAN, OPENAI_STD)(image)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    # The layout in memory makes no difference, not even in the last bit of what follows.
    other = PixelStem(OPENAI_MEAN, OPENAI_STD)(image.to(memory_format=torch.channels_last))
    assert torch.equal(other, got) and other.is_contiguous() and got.is_contiguous()


def test_features_are_named_normalised_and_computed_once():
    model, data = tiny(bias=-10.0).eval(), batch()
    calls = []
    model.image.register_forward_hook(lambda *_: calls.append("image"))
    features = model(data, {"image", "image.raw", "text", "logit_scale"})
    assert calls == ["image"]
    torch.testing.assert_close(features["image"], F.normalize(features["image.raw"], dim=-1))
    torch.testing.assert_close(features["image"], model.encode_image(data["image"]))
    torch.testing.assert_close(
        features["text"], model.encode_text(data["text"], data["text_length"])
    )
    assert math.isclose(features["logit_scale"].item(), 10.0, rel_tol=1e-6)
    assert features["logit_bias"].item() == -10.0


def test_only_needed_towers_run():
    model, data = tiny(), batch()
    del data["text"], data["text_length"]
    assert "text" not in model(data, {"image", "logit_scale"})
    assert model(data, {"image"})["image"].shape == (3, 8)
    assert "logit_bias" not in model(data, {"image"})


def test_another_view_goes_through_the_same_tower():
    model, data = tiny().eval(), batch()
    data["image.strong_1"] = data["image"].flip(0)
    features = model(data, {"image", "image.strong_1"})
    torch.testing.assert_close(features["image.strong_1"], features["image"].flip(0))


def test_padding_changes_nothing_and_the_end_token_is_pooled():
    model, data = tiny().double().eval(), batch()
    full = model.encode_text(data["text"], data["text_length"])
    other = data["text"].clone()
    other[0, 4:] = 7
    torch.testing.assert_close(model.encode_text(other, data["text_length"]), full)
    for row, length, want in zip(data["text"], data["text_length"], full, strict=True):
        alone = model.encode_text(row[None, :length], length[None])
        torch.testing.assert_close(alone[0], want, rtol=1e-12, atol=1e-12)
    pooled = model.text.trunk(input_ids=data["text"]).pooler_output
    torch.testing.assert_close(model.text(data["text"], data["text_length"]), pooled)


def test_the_scale_is_bounded_on_both_sides():
    model = tiny()
    ((scale, low, high),) = model.bounds()
    assert scale is model.logit_scale
    assert (math.exp(low), math.exp(high)) == pytest.approx((1, 100))
    lower = TwoTower(model.image, model.text, embed_dim=8, logit_scale_bounds=(0.05, 50.0))
    ((_, low, high),) = lower.bounds()
    assert (math.exp(low), math.exp(high)) == pytest.approx((0.05, 50))


def test_weights_go_in_and_the_report_names_the_rest(tmp_path):
    source, target = tiny(), tiny()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    file = tmp_path / "weights.safetensors"
    extra = {**source.state_dict(), "head.weight": torch.zeros(2)}
    del extra["text_projection.weight"]
    safetensors.torch.save_file(extra, file)
    before = target.text_projection.weight.clone()
    report = load_weights(target, read_weights(file), str(file))
    assert report.missing == ["text_projection.weight"]
    assert report.unused == ["head.weight"]
    assert not report.reshaped
    torch.testing.assert_close(target.image_projection.weight, source.image_projection.weight)
    torch.testing.assert_close(target.text_projection.weight, before)


def test_weights_of_another_model_are_refused(tmp_path):
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"conv.weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="another model"):
        load_weights(tiny(), read_weights(file), str(file))
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(file)
    for content in ([torch.ones(2)], {"state_dict": torch.ones(2)}):
        torch.save(content, tmp_path / "list.pt")
        with pytest.raises(ValueError, match=r"read as weights: it holds a (list|Tensor)"):
            read_weights(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no weights file"):
        read_weights(tmp_path / "absent.pt")


@pytest.mark.parametrize("ours", [True, False])
def test_changed_bytes_of_a_checkpoint_are_noticed(tmp_path, ours):
    """Another program's file need not have checksums (`torch.serialization`'s option)."""
    path = tmp_path / "step-00000001.ckpt"
    weight = torch.arange(100.0)
    torch.save({"state_dict": {"w": weight}} | ({"counterpoint": {}} if ours else {}), path)
    assert torch.equal(read_weights(path)["w"], weight)
    data = bytearray(path.read_bytes())
    data[data.index(weight.numpy().tobytes()) + 40] ^= 1
    path.write_bytes(data)
    if ours:
        with pytest.raises(ValueError, match=r"is damaged \(bytes of .*data/0 have changed\)"):
            read_weights(path)
    else:
        assert not torch.equal(read_weights(path)["w"], weight)


def test_bad_names_get_a_sentence():
    with pytest.raises(ValueError, match="timm has no model 'vit_tinny'"):
        TimmTower("vit_tinny")
    with pytest.raises(ValueError, match="does not divide by num_heads 7"):
        ClipTextTower(width=64, num_heads=7)


class Bag(TextTower):
    """Means of embeddings; `width` may be wrong, or missing."""

    context_length = 12

    def __init__(self, width=None, pooled=True):
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 16)
        self.pooled = pooled
        if width is not None:
            self.width = width

    def forward(self, text, text_length):
        states = self.embedding(text)
        return states.mean(1) if self.pooled else states


def test_a_tower_without_a_width_is_refused():
    with pytest.raises(ValueError, match=r"Bag has no width: set self\.width"):
        TwoTower(tiny_vit(1), Bag(), embed_dim=8)


@pytest.mark.parametrize(
    ("width", "pooled", "words"),
    [
        (8, True, r"Bag returned \[3, 16\] for 3 inputs, and its width is 8"),
        (16, False, r"Bag returned \[3, 12, 16\] for 3 inputs, and its width is 16"),
    ],
)
def test_vectors_of_another_shape_than_declared_are_refused(width, pooled, words):
    model = TwoTower(tiny_vit(1), Bag(width, pooled), embed_dim=8)
    with pytest.raises(ValueError, match=words):
        model(batch(), ("text",))


class Mean(TextTower):
    """A tower that does not show its tokens."""

    def __init__(self):
        super().__init__()
        self.width, self.context_length = 4, 12
        self.embedding = torch.nn.Embedding(50, 4)

    def forward(self, text, text_length):
        return self.embedding(text).mean(1)


@pytest.mark.parametrize("chunks", [1, 2])
def test_what_stands_before_the_projection_is_a_feature(chunks):
    model, data = tiny(), batch()
    needs = {"image.pooled", "text.pooled", "image.tokens", "text.tokens", "text"}
    features = model(data, needs, chunks=chunks)
    trunk = model.image.trunk
    tokens = trunk.forward_features(model.image.stem(data["image"]))
    states = model.text.trunk(input_ids=data["text"]).last_hidden_state
    torch.testing.assert_close(features["image.tokens"], tokens)
    torch.testing.assert_close(features["image.pooled"], trunk.forward_head(tokens))
    for row, length in enumerate(data["text_length"]):  # behind the end there is only padding
        got, want = features["text.tokens"][row, :length], states[row, :length]
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(features["text.pooled"][row], want[-1])
    assert features["text.tokens"].shape == (3, 12, 16)
    for tower, project in (("image", model.image_projection), ("text", model.text_projection)):
        raw = project(features[f"{tower}.pooled"])
        torch.testing.assert_close(features[f"{tower}.raw"], raw)
    assert "image.pooled" not in model(data, {"image", "text.pooled"})
    encoded = model.encode_image(data["image"], form=".pooled")
    torch.testing.assert_close(encoded, features["image.pooled"])
    encoded = model.encode_text(data["text"], data["text_length"], form=".pooled")
    torch.testing.assert_close(encoded, features["text.pooled"])


def test_tokens_are_those_of_kept_patches_and_of_maps():
    tower, data = tiny_vit(2).eval(), batch()
    keep = torch.tensor([[0, 2], [1, 3], [0, 3]])
    states, pooled = tower.states(data["image"], keep)
    torch.testing.assert_close(pooled, tower(data["image"], keep))
    torch.testing.assert_close(states[:, 0], pooled)  # the class token
    assert states.shape == (3, 1 + 2, 16)
    network = TimmTower("resnet10t", image_size=64).eval()
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    states, pooled = network.states(image)
    assert states.shape == (2, 4, 512)
    torch.testing.assert_close(states.mean(1), pooled)
    torch.testing.assert_close(pooled, network(image))


def test_a_tower_without_tokens_says_so():
    model, data = TwoTower(tiny_vit(1), Mean(), embed_dim=8), batch()
    assert model(data, {"text.pooled"})["text.pooled"].shape == (3, 4)
    with pytest.raises(ValueError, match="Mean does not show its tokens"):
        model(data, {"text.tokens"})
