"""Text towers that wrap encoders of transformers: they train, in chunks, and pass layers on."""

import pytest
import torch
from tiny_tower import tiny_vit

from counterpoint.models.text.hf import HFTextTower
from counterpoint.models.text.siglip import SiglipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.models.weight_inheritance import inherit


def encoder(kind, depth, width, **more):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth}
    sizes |= {"num_attention_heads": 2, "vocab_size": 50, "max_position_embeddings": 14}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {"model_type": kind, "pad_token_id": 1} | sizes | no_dropout | more


TOWERS = {
    "siglip": lambda depth, width: SiglipTextTower(
        width, depth, 2, context_length=12, vocab_size=50
    ),
    "siglip at the end": lambda depth, width: SiglipTextTower(
        width, depth, 2, context_length=12, vocab_size=50, pooling="end"
    ),
    "roberta": lambda depth, width: HFTextTower(encoder("roberta", depth, width), 12),
    "bert": lambda depth, width: HFTextTower(encoder("bert", depth, width), 12, "pooler"),
    "first": lambda depth, width: HFTextTower(encoder("xlm-roberta", depth, width), 12, "first"),
}


@pytest.fixture(params=TOWERS)
def kind(request):
    return TOWERS[request.param]


def model(tower, depth=2, width=16):
    torch.manual_seed(0)
    return TwoTower(tiny_vit(1), tower(depth, width), 8, text_projection="affine")


def batch():
    g = torch.Generator().manual_seed(1)
    length = torch.tensor([4, 12, 2, 7])
    text = torch.randint(2, 50, (4, 12), generator=g)
    image = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=g)
    return {"image": image, "text": text, "text_length": length}


def gradients(made, chunks):
    made.zero_grad()
    features = made(batch(), ("image.raw", "text.raw"), chunks=chunks)
    (features["text.raw"] * features["image.raw"]).sum().backward()
    return features, {name: p.grad for name, p in made.named_parameters()}


def test_every_parameter_learns_and_chunks_change_nothing(kind):
    made = model(kind)
    features, whole = gradients(made, 1)
    unused = [name for name, grad in whole.items() if grad is None]
    assert unused == ["logit_scale"]
    other, parts = gradients(made, 2)
    torch.testing.assert_close(other["text.raw"], features["text.raw"])
    for name, grad in whole.items():
        if grad is not None:
            torch.testing.assert_close(parts[name], grad, msg=name)


@torch.no_grad()
def test_what_follows_a_caption_is_not_read(kind):
    made, data = model(kind).eval(), batch()
    other = data["text"].where(torch.arange(12) < data["text_length"][:, None], 7)
    lengths = data["text_length"]
    want = made.encode_text(data["text"], lengths)
    torch.testing.assert_close(made.encode_text(other, lengths), want)
    torch.testing.assert_close(made.encode_text(data["text"][:1, :4], lengths[:1]), want[:1])
    assert made(data, ("text.tokens",))["text.tokens"].shape == (4, 12, 16)


def test_layers_are_known_and_inherited(kind):
    student, teacher = model(kind), model(kind, depth=4, width=32)
    assert len(student.text.layers()) == 2
    assert "2 of 4 layers in text.trunk.encoder.layer" in inherit(student, teacher)


def test_a_configuration_that_transformers_does_not_know():
    with pytest.raises(ValueError, match="no text encoder of model_type 'nothing'"):
        HFTextTower({"model_type": "nothing"})
    with pytest.raises(ValueError, match="text width 10 does not divide by num_heads 4: use 8"):
        SiglipTextTower(10, 1, 4)
