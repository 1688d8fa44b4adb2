"""Weight inheritance: which layers, which slices; a larger model that holds the smaller one."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
)

from counterpoint.models.image import TimmTower
from counterpoint.models.layers import repeated_layers
from counterpoint.models.text.base import TextTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.models.weight_inheritance import inherit


def model(width=16, depth=2, heads=2, seed=0, embed_dim=8, image_size=16, patch=8):
    torch.manual_seed(seed)
    small = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    image = TimmTower("vit_tiny_patch16_224", image_size, model_args=small)
    text = ClipTextTower(width, depth, heads, context_length=6, vocab_size=50)
    made = TwoTower(image, text, embed_dim).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape))  # also biases, norms and positions
    return made


def test_every_second_layer_and_leading_slices():
    student, teacher = model(), model(width=32, depth=5, heads=4, seed=1, embed_dim=12)
    told = inherit(student, teacher)
    assert "2 of 5 layers in image.trunk.blocks" in told
    own, theirs = student.state_dict(), teacher.state_dict()
    for here, there in ((0, 0), (1, 2)):
        name = "image.trunk.blocks.{}.mlp.fc1.weight"
        assert torch.equal(own[name.format(here)], theirs[name.format(there)][:64, :16])
        name = "image.trunk.blocks.{}.attn.qkv.weight"
        # Of queries, keys and values each the first two heads of eight rows.
        rows = [row for part in range(3) for row in range(part * 32, part * 32 + 16)]
        assert torch.equal(own[name.format(here)], theirs[name.format(there)][rows, :16])
    name = "image_projection.weight"
    assert torch.equal(own[name], theirs[name][:8, :16])
    assert torch.equal(own["logit_scale"], theirs["logit_scale"])


def test_heads_that_are_narrower_are_cut_each():
    student, teacher = model(width=16, heads=4), model(width=32, heads=4, seed=1)
    inherit(student, teacher)
    own = student.state_dict()["image.trunk.blocks.0.attn.qkv.weight"].view(3, 4, 4, 16)
    theirs = teacher.state_dict()["image.trunk.blocks.0.attn.qkv.weight"].view(3, 4, 8, 32)
    assert torch.equal(own, theirs[:, :, :4, :16])
    out = "text.trunk.encoder.layers.1.self_attn.out_proj.weight"
    out = out if out in student.state_dict() else out.replace("trunk.", "trunk.text_model.")
    own, theirs = student.state_dict()[out], teacher.state_dict()[out]
    assert torch.equal(own.view(16, 4, 4), theirs.view(32, 4, 8)[:16, :, :4])


class HuggingFaceTower(TextTower):
    """An encoder of transformers with 4 heads, filled with random numbers."""

    context_length = 6

    def __init__(self, kind, width):
        super().__init__()
        self.width = width
        if kind == "bert":
            sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1}
            config = BertConfig(vocab_size=9, num_attention_heads=4, **sizes)
            self.trunk = BertModel(config, add_pooling_layer=False)
        else:
            sizes = {"dim": width, "hidden_dim": width, "n_layers": 1}
            config = DistilBertConfig(vocab_size=9, n_heads=4, **sizes)
            self.trunk = DistilBertModel(config)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape))

    def layers(self):
        return repeated_layers(self.trunk)


@pytest.mark.parametrize(
    ("kind", "query", "output"),
    [
        ("bert", "encoder.layer.0.attention.self.query", "encoder.layer.0.attention.output.dense"),
        (
            "distilbert",
            "transformer.layer.0.attention.q_lin",
            "transformer.layer.0.attention.out_lin",
        ),
    ],
)
def test_heads_of_transformers_encoders_are_cut_each(kind, query, output):
    student, teacher = HuggingFaceTower(kind, 16), HuggingFaceTower(kind, 32)
    inherit(student, teacher)
    own, theirs = student.trunk.state_dict(), teacher.trunk.state_dict()
    got = own[f"{query}.weight"].view(4, 4, 16)
    assert torch.equal(got, theirs[f"{query}.weight"].view(4, 8, 32)[:, :4, :16])
    got = own[f"{output}.weight"].view(16, 4, 4)
    assert torch.equal(got, theirs[f"{output}.weight"].view(32, 4, 8)[:16, :, :4])


def pooled_by_attention(width, heads):
    more = {"patch_size": 8, "embed_dim": width, "depth": 1, "num_heads": heads}
    more |= {"class_token": False, "global_pool": "map"}
    image = TimmTower("vit_tiny_patch16_224", 16, model_args=more)
    with torch.no_grad():
        for parameter in image.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return image


@pytest.mark.parametrize("heads", [2, 4])
def test_attentive_pooling_keeps_its_first_heads_of_keys_and_of_values(heads):
    student, teacher = pooled_by_attention(16, heads), pooled_by_attention(32, 4)
    inherit(student, teacher)
    own, theirs = student.trunk.attn_pool, teacher.trunk.attn_pool
    width = 16 // heads
    for name, parts in (("q", 1), ("kv", 2)):
        got = getattr(own, name).weight.view(parts, heads, width, 16)
        want = getattr(theirs, name).weight.view(parts, 4, 8, 32)
        assert torch.equal(got, want[:, :heads, :width, :16])
    assert torch.equal(own.latent, theirs.latent[:, :, :16])


def test_attention_of_a_kind_that_is_not_known_is_refused():
    def gated(width, heads):
        made = pooled_by_attention(width, heads)
        made.trunk.attn_pool.gate = torch.nn.Linear(width, width)
        return made

    with pytest.raises(ValueError, match=r"in 'trunk.attn_pool.gate.weight' the heads are"):
        inherit(gated(16, 2), gated(32, 4))


def test_a_model_of_the_same_size_is_copied():
    student, teacher = model(), model(seed=1)
    inherit(student, teacher)
    data = {
        "image": torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8),
        "text": torch.randint(1, 50, (3, 6)),
        "text_length": torch.tensor([2, 6, 4]),
    }
    with torch.no_grad():
        for name, value in teacher(data).items():
            assert torch.equal(student(data)[name], value)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"depth": 3}, "the student has 3 layers in image.trunk.blocks, the larger model 2"),
        ({"width": 32}, r"the student's 'image.trunk.\w+' is \[.*32\], the larger model's"),
        ({"width": 32, "heads": 4}, "larger model"),
        ({"heads": 4}, "the student has 4 heads at 'image.trunk.blocks.0.attn"),
        ({"image_size": 24}, "with the same patches and images"),
    ],
)
def test_a_student_that_is_larger_is_refused(wanted, words):
    with pytest.raises(ValueError, match=words):
        inherit(model(**wanted), model(seed=1))


@pytest.mark.parametrize("size", [{"image_size": 16}, {"patch": 4}])
def test_patches_and_positions_are_not_cut(size):
    larger = model(image_size=24) if "image_size" in size else model()
    smaller = model(image_size=16, patch=size.get("patch", 8))
    with pytest.raises(ValueError, match="with the same patches and images"):
        inherit(smaller, larger)


def test_other_kinds_of_towers_are_refused():
    image = TimmTower("resnet10t", 32)
    text = ClipTextTower(16, 2, 2, context_length=6, vocab_size=50)
    with pytest.raises(ValueError, match=r"the larger model has no 'image\.trunk\.cls_token'"):
        inherit(model(), TwoTower(image, text, 8))
