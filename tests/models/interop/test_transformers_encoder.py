"""Encoders of transformers alone: of their folder into a text tower, with transformers' numbers."""

import json
from itertools import combinations

import pytest
import torch
import transformers
from foreign_inputs import captions, shaken

from counterpoint.models.interop.base import made
from counterpoint.models.interop.read import read_foreign
from counterpoint.models.text.hf import HFTextTower

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 14, "pad_token_id": 1}
ENDS = {"bos_token_id": 3, "cls_token_id": 3, "eos_token_id": 4, "sep_token_id": 4}
NLLB = {"d_model": 16, "vocab_size": 50, "pad_token_id": 1, "max_position_embeddings": 14}
NLLB |= {f"{part}_layers": 2 for part in ("encoder", "decoder")}
NLLB |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
NLLB |= {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
# Saved with a head on top, as most are published; the bare model is what a caption goes through.
MODELS = {
    "bert": ("BertForMaskedLM", SIZES),
    "roberta": ("RobertaForSequenceClassification", SIZES),
    "xlm-roberta": ("XLMRobertaModel", SIZES),
    "modernbert": ("ModernBertForMaskedLM", SIZES | ENDS),
    "m2m_100": ("M2M100ForConditionalGeneration", NLLB),
    "t5": ("T5ForConditionalGeneration", T5 | {"pad_token_id": 0}),
}


def save(kind, folder):
    name, sizes = MODELS[kind]
    torch.manual_seed(0)
    model = shaken(getattr(transformers, name)(transformers.AutoConfig.for_model(kind, **sizes)))
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, save(request.param, folder)


def tower_of(foreign, **more):
    config = foreign.config["text"]
    tower = made({"text": config | {"init_args": config["init_args"] | more}})["text"].eval()
    state = {n.removeprefix("text.trunk."): v for n, v in foreign.weights.items()}
    tower.trunk.load_state_dict(state, strict=False)
    return tower, state


def states_of(model, ids, lengths):
    """transformers' last states of each caption alone, without padding."""
    bare = model.base_model
    bare = bare.encoder if model.config.is_encoder_decoder else bare
    rows = zip(ids, lengths.tolist(), strict=True)
    return [bare(input_ids=row[None, :n]).last_hidden_state[0] for row, n in rows]


@torch.no_grad()
def test_every_pooling_is_that_of_transformers_states(saved):
    folder, model = saved
    foreign, (ids, lengths) = read_foreign(str(folder)), captions()
    states = states_of(model, ids, lengths)
    want = {
        "mean": [s.double().mean(0) for s in states],
        "first": [s[0].double() for s in states],
        "last": [s[-1].double() for s in states],
        "max": [s.double().max(0).values for s in states],
    }
    for pooling, vectors in want.items():
        tower, state = tower_of(foreign, pooling=pooling)
        assert state.keys() >= tower.trunk.state_dict().keys()
        got = tower(ids, lengths).double()
        torch.testing.assert_close(got, torch.stack(vectors), rtol=0, atol=2e-6)
    vectors = [torch.stack(v) for v in want.values()]
    assert all((one - other).abs().max() > 0.01 for one, other in combinations(vectors, 2))


@torch.no_grad()
def test_the_own_pooler_comes_along_where_there_is_one(tmp_path):
    model, (ids, lengths) = save("xlm-roberta", tmp_path), captions()
    tower, _ = tower_of(read_foreign(str(tmp_path)), pooling="pooler")
    rows = zip(ids, lengths.tolist(), strict=True)
    want = [model(input_ids=row[None, :n]).pooler_output[0] for row, n in rows]
    torch.testing.assert_close(tower(ids, lengths), torch.stack(want), rtol=0, atol=2e-6)


def test_what_is_read_says_how_to_make_the_tower(saved):
    folder, model = saved
    foreign = read_foreign(str(folder))
    assert foreign.towers == ("text",) and foreign.pixels is None
    assert foreign.tokenizer is None
    (folder / "tokenizer.json").write_text("{}")
    assert read_foreign(str(folder)).tokenizer["init_args"] == {"name": str(folder)}
    json.dumps(foreign.config)
    # RoBERTa's positions begin behind that of the padding, as published: 514 for 512 tokens.
    want = {"roberta": 12, "xlm-roberta": 12, "bert": 14}.get(model.config.model_type, 512)
    assert foreign.context_length == want
    with pytest.raises(ValueError, match=r"text tower alone, .* with init_from"):
        foreign.build()


def test_what_is_no_encoder_is_refused(tmp_path):
    save("bert", tmp_path / "whole")
    tensors = transformers.BertModel.from_pretrained(tmp_path / "whole").state_dict()
    lost = {n: v for n, v in tensors.items() if "layer.1.output.dense" not in n}
    transformers.BertConfig(**SIZES).save_pretrained(tmp_path / "part")
    torch.save(lost, tmp_path / "part" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"incomplete: of a BertModel it has no encoder\.layer\.1"):
        read_foreign(str(tmp_path / "part"))
    transformers.ViTConfig(**{**SIZES, "image_size": 32}).save_pretrained(tmp_path / "image")
    torch.save(tensors, tmp_path / "image" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a transformers model of type vit"):
        read_foreign(str(tmp_path / "image"))
    (tmp_path / "part" / "config.json").write_text('{"model_type": "none", "vocab_size": 9}')
    with pytest.raises(ValueError, match="holds no text encoder that can be read"):
        read_foreign(str(tmp_path / "part"))


def test_what_a_tower_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"takes 12 tokens, and context_length is 13"):
        HFTextTower({"model_type": "roberta"} | SIZES, 13)
    tower = HFTextTower({"model_type": "m2m_100"} | NLLB, 12, "pooler")
    with pytest.raises(ValueError, match="M2M100Encoder has no pooler of its own: set"):
        tower(*captions())


def test_layers_are_never_left_out():
    tower = HFTextTower({"model_type": "m2m_100"} | NLLB | {"encoder_layerdrop": 0.9}, 12).train()
    ids, lengths = captions()
    calls = []
    for layer in tower.layers():
        layer.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(8):
        tower(ids, lengths)
    assert len(calls) == 16


@torch.no_grad()
def test_rotated_positions_go_on_beyond_those_trained():
    """ModernBERT keeps no table of positions: far ones are computed, as in a longer model."""
    config = {"model_type": "modernbert"} | SIZES | ENDS
    torch.manual_seed(0)
    short = shaken(HFTextTower(config, 64, "first")).eval()
    longer = HFTextTower(config | {"max_position_embeddings": 4096}, 64, "first").eval()
    longer.load_state_dict(short.state_dict())
    ids, lengths = torch.randint(5, 50, (2, 64)), torch.tensor([64, 40])
    torch.testing.assert_close(short(ids, lengths), longer(ids, lengths))
    # Where a token stands matters there, too: two far ones change places.
    other = ids.clone()
    other[:, 30], other[:, 34] = ids[:, 34], ids[:, 30]
    assert (short(other, lengths) - short(ids, lengths)).abs().max() > 1e-4
