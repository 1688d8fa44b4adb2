"""Text towers of transformers' encoders train alike in one process, sharded and compiled."""

import pytest
import torch
from small_run import CONTEXT, module, train

from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.text.hf import HFTextTower
from counterpoint.models.text.siglip import SiglipTextTower
from counterpoint.models.text.windows import WindowTower
from counterpoint.train.callbacks.compile import Compile

STEPS = 3
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": CONTEXT + 2, "pad_token_id": 1}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def siglip():
    return SiglipTextTower(16, 2, 2, CONTEXT, vocab_size=50)


def roberta():
    return HFTextTower({"model_type": "xlm-roberta", **SIZES}, CONTEXT)


def bert():
    return HFTextTower({"model_type": "bert", **SIZES}, CONTEXT, "pooler")


def modernbert():
    ends = {"bos_token_id": 3, "cls_token_id": 3, "eos_token_id": 4, "sep_token_id": 4}
    return HFTextTower({"model_type": "modernbert", **SIZES, **ends}, CONTEXT)


def nllb():
    sizes = {"d_model": 16, "vocab_size": 50, "pad_token_id": 1, "dropout": 0.0}
    sizes |= {"attention_dropout": 0.0, "encoder_layerdrop": 0.5, "decoder_layers": 1}
    sizes |= {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    return HFTextTower({"model_type": "m2m_100", **sizes}, CONTEXT, "first")


def windows():
    return WindowTower(ClipTextTower(16, 2, 2, CONTEXT // 2, 50), CONTEXT, 1)


TEXTS = [siglip, roberta, bert, modernbert, nllb, windows]


def record(rank, world_size, name, text, chunks, compiled):
    """Losses and norms of a short run at a learning rate at which each step counts."""
    torch._dynamo.reset()
    made = module(STEPS, rate=1e-2, text=text, chunks=chunks, text_projection="affine")
    train(made, world_size, name, [Compile("aot_eager")] if compiled else [])
    return made.losses, made.norms


@pytest.mark.soak
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["fsdp2", "zero2"])
def test_two_processes_train_as_one(gloo, name, text):
    want = record(0, 1, "auto", text, 1, False)
    assert abs(want[0][-1] - want[0][0]) > 1e-2
    for chunks, compiled in ((1, False), (2, False), (1, True)):
        results = gloo(2, record, name, text, chunks, compiled)
        losses = [sum(step) / 2 for step in zip(*(losses for losses, _ in results), strict=True)]
        assert losses == pytest.approx(want[0], rel=1e-5), (chunks, compiled)
        for _, norms in results:
            assert norms == pytest.approx(want[1], rel=1e-4), (chunks, compiled)


@pytest.mark.soak
@pytest.mark.parametrize("text", TEXTS)
def test_compiled_is_eager(text):
    want, got = (record(0, 1, "auto", text, 2, compiled) for compiled in (False, True))
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    assert got[1] == pytest.approx(want[1], rel=1e-4)
