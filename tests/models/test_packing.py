"""Packed captions against padded ones, through a plain attention in float64."""

import numpy as np
import pytest
import torch
from tiny_tower import tiny_vit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from counterpoint.models import packing
from counterpoint.models.packing import can_attend, pack
from counterpoint.models.reducers.base import Reduction
from counterpoint.models.reducers.tokens import RandomTokens
from counterpoint.models.text.base import TextTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.callbacks.flops import FlopMeter

N, CONTEXT = 9, 24
NEEDS = ("image", "text", "text.tokens")


def attend(query, key, value, starts, longest, dropout=0.0):
    """Softmax of all products, caption by caption."""
    results = []
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        assert end - begin <= longest
        q, k, v = (x[begin:end].transpose(0, 1) for x in (query, key, value))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        future = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
        results.append((logits.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(results)


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(packing, "attend", attend)


def tiny(as_if=("cuda", torch.bfloat16), **parts):
    torch.manual_seed(0)
    text = ClipTextTower(16, 2, 2, CONTEXT, vocab_size=50)
    model = TwoTower(tiny_vit(1, 16), text, embed_dim=8, **parts).double()
    model.computes_on = as_if
    return model


def batch():
    g = torch.Generator().manual_seed(1)
    length = torch.tensor([2, 24, 3, 7, 7, 13, 2, 20, 5])
    text = torch.randint(1, 48, (N, CONTEXT), generator=g)
    text[torch.arange(N), length - 1] = 49
    text[torch.arange(CONTEXT)[None] >= length[:, None]] = 0
    image = torch.randint(0, 256, (N, 3, 16, 16), dtype=torch.uint8, generator=g)
    key = torch.randint(0, 1 << 62, (N,), generator=g)
    return {"image": image, "text": text, "text_length": length, "key": key}


def step(model, data, needs=NEEDS, reduction=None):
    model.zero_grad()
    features = model(data, needs, reduction)
    loss = (features["image"] @ features["text"].T * features["logit_scale"]).logsumexp(1).mean()
    if "text.tokens" in features:
        real = torch.arange(CONTEXT) < data["text_length"][:, None]
        features["text.tokens"] = features["text.tokens"] * real[:, :, None]
        loss = loss + features["text.tokens"].tanh().sum()
    loss.backward()
    return features, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(got, want):
    for name, value in want.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(got[name], value, rtol=1e-11, atol=1e-11 * scale, msg=name)


@pytest.mark.parametrize("chunks", [1, 2, 4, 20])
def test_packed_captions_have_the_features_and_gradients_of_padded_ones(plain, chunks):
    data = batch()
    want, gradients = step(tiny(None, text_parts=0), data)
    model, calls = tiny(chunks=chunks), []
    model.text.register_forward_hook(lambda _, args, out: calls.append(len(args[0])))
    # Lengths known before may be larger.
    data["text_length.host"] = data["text_length"].clamp(min=4).numpy()
    got, others = step(model, data)
    assert_same({name: got[name] for name in NEEDS}, {name: want[name] for name in NEEDS})
    assert_same(others, gradients)
    assert got["tokens/computed"].item() == pytest.approx(data["text_length.host"].mean())
    # (With `text.tokens` the tower shows its states, and hooks of its forward see nothing.)
    step(model, data, ("image", "text"))
    assert len(calls) == min(chunks, N) * (1 if chunks == 1 else 2)
    assert sum(calls) == N * (1 if chunks == 1 else 2)
    with torch.no_grad():
        features = model.eval()(data, NEEDS)
    torch.testing.assert_close(features["text"], want["text"], rtol=1e-11, atol=1e-11)


def test_reducers_shorten_packed_captions(plain):
    reduction = Reduction(0, 3, None, RandomTokens(6))
    want, gradients = step(tiny(None), batch(), ("image", "text"), reduction)
    data = batch()
    data["text_length.host"] = data["text_length"].numpy()
    got, others = step(tiny(), data, ("image", "text"), reduction)
    torch.testing.assert_close(got["text"], want["text"], rtol=1e-11, atol=1e-11)
    assert_same(others, gradients)
    assert got["tokens/computed"].item() == pytest.approx(
        batch()["text_length"].clamp(max=6).float().mean()
    )


def test_captions_lie_one_behind_the_other():
    text = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 9]])
    first, second = pack(text, torch.tensor([3, 2, 4]), 2, np.array([3, 2, 4]))
    assert first.ids.tolist() == [1, 2, 3, 4, 5] and second.ids.tolist() == [6, 7, 8, 9]
    assert first.positions.tolist() == [0, 1, 2, 0, 1]
    assert first.starts.tolist() == [0, 3, 5] and first.starts.dtype == torch.int32
    assert first.ends.tolist() == [2, 4] and second.ends.tolist() == [3]
    assert (
        first.longest == 3
        and len(first) == 2
        and len(pack(text, torch.ones(3, dtype=torch.int64), 9)) == 3
    )
    states = first.ids[:, None].float()
    assert first.padded(states, 4)[:, :, 0].tolist() == [[1, 2, 3, 0], [4, 5, 0, 0]]


def test_packed_tokens_count_as_captions_of_their_length():
    model, data = tiny(chunks=2).float(), batch()
    meter = FlopMeter([model])
    meter.listening = True
    with sdpa_kernel(SDPBackend.MATH), pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "attend", attend)
        step(model, data, ("image", "text"))
    model_flops, hardware = meter.take()
    alone = tiny(None).float()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        alone.project_image(data["image"]).sum().backward()
        for ids, length in zip(data["text"], data["text_length"], strict=True):
            alone.project_text(ids[None, :length], length[None]).sum().backward()
    assert model_flops == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert hardware == pytest.approx(4 / 3 * model_flops, rel=0.02)
    assert meter.take() == (0, 0)


@pytest.mark.parametrize(
    ("device", "dtype", "width", "fits"),
    [
        ("cuda", torch.bfloat16, 64, True),
        ("cuda", torch.float16, 256, True),
        ("cuda", torch.float32, 64, False),
        ("cuda", torch.bfloat16, 60, False),
        ("cuda", torch.bfloat16, 512, False),
        ("cpu", torch.bfloat16, 64, False),
    ],
)
def test_where_captions_are_packed(monkeypatch, device, dtype, width, fits):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert can_attend(device, dtype, width) == fits
    tower = ClipTextTower(width, 1, 1, 8, vocab_size=50)
    assert tower.takes_packed(device, dtype) == fits
    assert not TextTower().takes_packed(device, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_on_a_gpu(dtype):
    """The kernel against the plain attention, values and gradients."""
    lengths = torch.tensor([1, 5, 77, 12, 30])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(int(starts[-1]), 4, 64, generator=g).to(dtype) for _ in range(4)]
    results = []
    for function, device, kind in ((packing.attend, "cuda", dtype), (attend, "cpu", torch.float64)):
        inputs = [x.to(device, kind).requires_grad_() for x in given[:3]]
        out = function(*inputs, starts.to(device), 77)
        out.backward(given[3].to(device, kind))
        results.append([x.double().cpu() for x in (out.detach(), *(x.grad for x in inputs))])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0.02, atol=0.02 * want.abs().max().item())
