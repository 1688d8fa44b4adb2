"""Caption vectors of a language model, and the tower that reads them."""

import copy

import pytest
import torch
import transformers
from tiny_language_model import WIDTH, write_language_model
from tiny_tower import tiny_vit
from torch.nn import functional as F

from counterpoint.data.text.tokenize import HFTokenizer
from counterpoint.models.reducers.base import Reduction
from counterpoint.models.teachers.language import LanguageTeacher
from counterpoint.models.text.language_model import LanguageModel
from counterpoint.models.text.vector import VectorTower
from counterpoint.models.two_tower import TwoTower

TEXTS = ["red square", "a photo of moon fish tree house bird star", "sun", "blue circle blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_language_model(tmp_path_factory.mktemp("language_model")))


@pytest.fixture(scope="module")
def ids(folder):
    return HFTokenizer(folder)(TEXTS, 12)


@torch.no_grad()
def states_alone(folder, row, is_causal):
    """Each caption by itself, layer by layer, without padding."""
    llama = transformers.LlamaModel.from_pretrained(folder, attn_implementation="eager")
    x, positions = llama.embed_tokens(row[None]), torch.arange(len(row))[None]
    mask = torch.full((len(row), len(row)), -torch.inf).triu(1)[None, None] if is_causal else None
    angles = llama.rotary_emb(x, positions)
    for layer in llama.layers:
        x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=angles)
    return llama.norm(x)[0]


@pytest.mark.parametrize("attention", ["own", "bidirectional"])
@pytest.mark.parametrize("tokens_per_call", [4096, 12, 1])
def test_vectors_are_those_of_each_caption_alone(folder, ids, attention, tokens_per_call):
    pooled = {
        ("mean", 0): lambda states: states.mean(0),
        ("mean", 1): lambda states: states[1:].mean(0),
        # Of captions that end before, the last token.
        ("mean", 3): lambda states: states[min(3, len(states) - 1) :].mean(0),
        ("last", 0): lambda states: states[-1],
    }
    alone = [
        states_alone(folder, row[:length], attention == "own")
        for row, length in zip(*ids, strict=True)
    ]
    for (pooling, skip), pool in pooled.items():
        made = LanguageModel(folder, pooling, skip, attention, "float32", tokens_per_call)
        torch.testing.assert_close(
            made(*ids), torch.stack([pool(states) for states in alone]), rtol=1e-5, atol=1e-5
        )


def test_parts_are_no_larger_than_asked_for(folder, ids, monkeypatch):
    model = LanguageModel(folder, precision="float32", tokens_per_call=24)
    network, sizes = model.network, []

    def noted(input_ids, attention_mask):
        sizes.append(input_ids.numel())
        return network(input_ids=input_ids, attention_mask=attention_mask)

    noted.to = network.to
    monkeypatch.setitem(model.__dict__, "network", noted)
    model(*ids)
    assert max(sizes) <= 24 and len(sizes) > 1


def test_an_encoder_with_a_decoder_is_read_by_its_encoder(tmp_path, ids):
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, num_decoder_layers=1
    )
    t5 = transformers.T5Model(config).eval()
    t5.save_pretrained(tmp_path)
    (row,), (length,) = ids[0][:1], ids[1][:1]
    made = LanguageModel(str(tmp_path), precision="float32")
    assert made.width == 8
    want = t5.encoder(input_ids=row[None, :length]).last_hidden_state.mean(1)
    torch.testing.assert_close(made(row[None], length[None]), want)


def tower(**arguments):
    torch.manual_seed(0)
    return VectorTower(WIDTH, **arguments)


def formula(made, vectors):
    """LLM2CLIP's adapter: four residual blocks of the doubled width, then a norm."""
    x = vectors / vectors.square().sum(1, keepdim=True).sqrt()
    assert len(made.blocks) == 4
    for block in made.blocks:
        first, second = block.mlp[0], block.mlp[2]
        assert first.weight.shape == (2 * WIDTH, WIDTH)
        inner = F.linear(normed(x, block.norm), first.weight, first.bias)
        inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        x = x + F.linear(inner, second.weight, second.bias)
    return normed(x, made.norm)


def normed(x, norm):
    spread = x - x.mean(1, keepdim=True)
    return spread / (spread.square().mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def test_the_adapter_is_that_of_the_paper():
    made = tower(stored="llm.text").double()
    vectors = torch.randn(5, WIDTH, dtype=torch.float64) * 30
    torch.testing.assert_close(made(vectors), formula(made, vectors))
    torch.testing.assert_close(made(vectors), made(3 * vectors))


def joined(text):
    torch.manual_seed(1)
    return TwoTower(tiny_vit(1), text, 8, text_projection="affine")


def batch(n=5):
    g = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=g)
    vectors = torch.randn(n, WIDTH, generator=g).half()
    ids = torch.zeros(n, 4, dtype=torch.int64)
    return {
        "image": image,
        "llm.text": vectors,
        "llm.text.negative": vectors.flip(0),
        "text": ids,
        "text_length": torch.full((n,), 4),
        "key": torch.arange(n),
    }


@pytest.mark.parametrize("chunks", [1, 2])
def test_stored_vectors_are_read_in_place_of_tokens(chunks):
    text = tower(stored="llm.text")
    made, data = joined(text), batch()
    needs = ("image", "text", "text.negative", "text.pooled")
    features = made(data, needs, Reduction(0, 0), chunks=chunks)
    want = made.text_projection(text(data["llm.text"].float()))
    torch.testing.assert_close(features["text"], F.normalize(want, dim=1))
    torch.testing.assert_close(features["text.negative"], F.normalize(want.flip(0), dim=1))
    torch.testing.assert_close(features["text.pooled"], text(data["llm.text"].float()))
    assert not any(name.startswith("tokens/") for name in features)
    (features["text"] * features["image"]).sum().backward()
    assert all(p.grad is not None for name, p in made.named_parameters() if "logit" not in name)


def test_stored_vectors_of_a_further_stream_are_its_own():
    text = tower(stored="llm.text")
    made = joined(text).double()
    vectors = {
        "llm.text": torch.randn(3, WIDTH).double(),
        "texts/llm.text": torch.randn(4, WIDTH).double(),
        "texts/llm.text.answer": torch.randn(4, WIDTH).double(),
    }
    found = made(vectors, ("text", "texts/text", "texts/text.answer"))
    for name in ("text", "texts/text", "texts/text.answer"):
        stream, slash, entry = name.rpartition("/")
        alone = made({"llm.text": vectors[f"{stream}{slash}llm.{entry}"]}, ("text",))["text"]
        torch.testing.assert_close(found[name], alone)


def test_without_stored_vectors_the_language_model_reads_the_tokens(folder, ids):
    model = LanguageModel(folder, precision="float32")
    text = tower(stored="llm.text", language_model=model)
    made = joined(text).eval()
    stored = made({"llm.text": model(*ids)}, ("text",))["text"]
    torch.testing.assert_close(made.encode_text(*ids), stored)
    # It is no part of the model: not in its state, not copied with it.
    assert not any("language_model" in name for name in made.state_dict())
    assert copy.deepcopy(made).text.language_model is model


def test_what_is_missing_is_said(folder, ids, tmp_path):
    with pytest.raises(ValueError, match=r"set stored to the entry of a sidecar \(llm.text\)"):
        VectorTower(4)
    with pytest.raises(ValueError, match=r"set model.text.init_args.language_model to it"):
        joined(tower(stored="llm.text")).encode_text(*ids)
    with pytest.raises(ValueError, match=r"llm.text has vectors of length 7, and the VectorTower"):
        tower(stored="llm.text")(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"the language model '.*none' cannot be read"):
        LanguageModel(str(tmp_path / "none"))(*ids)
    with pytest.raises(ValueError, match="skip=-1 must be 0 or more"):
        LanguageModel(folder, skip=-1)
    with pytest.raises(ValueError, match="does not show its tokens"):
        joined(tower(stored="llm.text"))(batch(), ("text.tokens",))


def test_a_language_model_is_a_teacher_of_texts(folder, ids):
    model = LanguageModel(folder, precision="float32")
    teacher = LanguageTeacher(model, context_length=12)
    towers = teacher.build(lambda source: pytest.fail("nothing is loaded"))
    features = towers({"text.llm": ids[0], "text.llm_length": ids[1]}, ("text.llm",))
    torch.testing.assert_close(features["text.llm"], F.normalize(model(*ids), dim=1))
    assert torch.equal(teacher.tokenize(TEXTS, 12), ids[0])
    assert towers.model.logit_scale.isnan()
    with pytest.raises(ValueError, match="a language model has no images"):
        towers({"image": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, ("image",))
