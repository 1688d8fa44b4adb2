"""Encoders in parts: equal to one call, in values, gradients, dropout and kept tokens."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_run import replay
from tiny_tower import tiny_vit
from torch import nn

from counterpoint.models.chunks import (
    check_parts,
    rows_of_parts,
    stop_at,
    stops,
    trimmed,
)
from counterpoint.models.reducers.base import ImageReducer, Patches
from counterpoint.models.text.base import TextTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower

N, CONTEXT = 13, 32


def tiny(dropout=0.0, **parts):
    torch.manual_seed(0)
    image = tiny_vit(2, 16, dropout)
    text = ClipTextTower(16, 2, 2, CONTEXT, vocab_size=50, dropout=dropout)
    return TwoTower(image, text, embed_dim=8, **parts)


def batch(n=N, longest=CONTEXT):
    g = torch.Generator().manual_seed(1)
    length = torch.randint(2, longest + 1, (n,), generator=g)
    text = torch.randint(1, 48, (n, CONTEXT), generator=g)
    text[torch.arange(n), length - 1] = 49
    text[torch.arange(CONTEXT)[None] >= length[:, None]] = 0
    image = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=g)
    key = torch.randint(0, 1 << 62, (n,), generator=g)
    return {"image": image, "text": text, "text_length": length, "key": key}


def step(model, data, needs=("image", "text"), reduction=None):
    """Features, and the gradients of a loss in which every row meets every other."""
    model.zero_grad()
    features = model(data, needs, reduction)
    loss = (features["image"] @ features["text"].T * features["logit_scale"]).logsumexp(1).mean()
    loss.backward()
    return features, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_equal(got, want, tolerance):
    largest = max(value.abs().max().item() for value in want.values())
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=tolerance, atol=tolerance * largest, msg=name
        )


@pytest.mark.parametrize("chunks", [1, 2, 4, 8, 20])
@pytest.mark.parametrize("text_parts", [0, 1, 4])
def test_parts_change_neither_features_nor_gradients(chunks, text_parts):
    data = batch()
    data["image.strong_1"], data["text.other"] = data["image"].flip(0), data["text"].flip(0)
    data["text.other_length"] = data["text_length"].flip(0)
    needs = ("image", "text", "image.strong_1", "text.other")
    want, gradients = step(tiny(text_parts=0).double(), data, needs)
    got, others = step(tiny(chunks=chunks, text_parts=text_parts).double(), data, needs)
    for name in needs:
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-12)
    assert_equal(others, gradients, 1e-11)


class Inner:
    """Counts what a tower is called with, and how much it remembers."""

    def __init__(self, tower):
        self.shapes = []
        tower.register_forward_hook(lambda _, args, out: self.shapes.append(tuple(args[0].shape)))


@pytest.mark.parametrize(("n", "chunks"), [(13, 1), (13, 4), (16, 4), (3, 8)])
def test_the_number_of_calls_depends_on_the_number_of_rows_alone(n, chunks):
    calls = set()
    for longest in (2, CONTEXT):
        model = tiny(chunks=chunks)
        image, text = Inner(model.image), Inner(model.text)
        step(model, batch(n, longest))
        calls.add((len(image.shapes), len(text.shapes)))
        assert sum(shape[0] for shape in image.shapes) == n * (1 if chunks == 1 else 2)
    again = 1 if chunks == 1 else 2
    assert calls == {(min(chunks, n) * again, min(max(chunks, 4), n) * again)}


def test_without_gradients_a_tower_is_called_once_for_any_number_of_rows():
    model = tiny(chunks=4).eval()
    image, text = Inner(model.image), Inner(model.text)
    data = batch()
    with torch.no_grad():
        for n in (N, 1):
            model({name: rows[:n] for name, rows in data.items()})
    assert [shape[0] for shape in image.shapes] == [shape[0] for shape in text.shapes] == [N, 1]


def replayed(model, data):
    """The same loss with nothing recomputed."""
    image, text = replay(model, data, None)
    return (image @ text.T * model.logit_scale.exp()).logsumexp(1).mean()


@pytest.mark.parametrize("precision", ["double", "bf16"])
@pytest.mark.parametrize("chunks", [2, 4, 8])
def test_dropout_is_the_same_in_forward_and_recomputation(chunks, precision):
    data = batch()
    model = tiny(dropout=0.3, chunks=chunks).train()
    model = model.double() if precision == "double" else model
    # With its cache, autocast adds up the parts' gradients in bf16 where nothing is recomputed.
    autocast = torch.autocast(
        "cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )
    torch.manual_seed(5)
    with autocast:
        _, got = step(model, data)
        model.zero_grad()
        torch.manual_seed(5)
        replayed(model, data).backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert_equal(got, want, 1e-11 if precision == "double" else 1e-5)
    torch.manual_seed(6)
    other = step(model, data)[1]["text_projection.weight"]
    assert not torch.allclose(other, want["text_projection.weight"], rtol=1e-2)


class EveryOther(ImageReducer):
    """A reducer that keeps half of the patches, by the sample's key."""

    def __init__(self):
        self.asked = []

    def keep(self, grid, keys, view, reduction):
        self.asked.append((grid, view, len(keys)))
        drawn = (keys[:, None] * 7 + torch.arange(grid[0] * grid[1]) * (keys[:, None] % 5)) % 11
        order = drawn.argsort(dim=1, stable=True)
        return Patches(order[:, : grid[0] * grid[1] // 2].sort(dim=1).values)


class FirstHalf:
    """A reducer that cuts captions to half of the context."""

    def tokens(self, text, length, keys, view, reduction):
        return text[:, : CONTEXT // 2], length.clamp(max=CONTEXT // 2)


class PatchTower(nn.Module):
    """An image tower that takes kept patches."""

    image_size, width = 16, 16

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3 * 16, 16)

    def grid(self, image):
        return image.shape[2] // 4, image.shape[3] // 4

    def forward(self, image, keep=None):
        patches = image.to(self.embed.weight.dtype).unfold(2, 4, 4).unfold(3, 4, 4)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2) / 255
        if keep is not None:
            patches = patches[torch.arange(len(keep))[:, None], keep]
        return self.embed(patches).tanh().mean(1)


@pytest.mark.parametrize("chunks", [1, 2, 8])
def test_what_is_kept_does_not_depend_on_the_parts(chunks):
    data, results = batch(), []
    for parts in ({"text_parts": 0}, {"chunks": chunks}):
        torch.manual_seed(0)
        text = ClipTextTower(16, 2, 2, CONTEXT, vocab_size=50)
        model = TwoTower(PatchTower(), text, 8, **parts).double()
        reduction = SimpleNamespace(seed=0, step=3, image=EveryOther(), text=FirstHalf())
        results.append(step(model, data, reduction=reduction))
        assert reduction.image.asked == [((4, 4), "image", N)]
    assert_equal(results[1][1], results[0][1], 1e-11)
    whole, _ = step(model, data)
    for name in ("image", "text"):
        torch.testing.assert_close(results[1][0][name], results[0][0][name], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(whole[name], results[1][0][name])


class Mean(TextTower):
    """A text tower that attends to padding."""

    width, context_length = 16, CONTEXT

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)

    def forward(self, text, text_length):
        assert text.shape[1] == CONTEXT
        return self.embed(text).mean(1)


def test_a_tower_that_looks_at_padding_gets_all_of_it():
    data = batch()
    model = TwoTower(tiny().image, Mean(), 8, chunks=4)
    calls = Inner(model.text)
    want = model.text_projection(model.text.embed(data["text"]).mean(1))
    features = model(data)
    torch.testing.assert_close(features["text.raw"], want)
    assert len(calls.shapes) == 4
    assert features["tokens/computed"].item() == CONTEXT


@pytest.mark.parametrize("context", [6, 8, 12, 20, 32, 64, 77, 128, 256, 512])
def test_at_most_six_stops_hold_every_length(context):
    found = stops(context)
    assert len(found) <= 6 and found[-1] == context
    assert all(stop % 8 == 0 for stop in found[:-1])
    for length in range(1, context + 1):
        assert length <= stop_at(np.array([length]), context, context)[0] in found
        assert stop_at(np.array([length]), length, context).tolist() == [length]


def test_a_caption_longer_than_the_tower_takes_is_refused():
    with pytest.raises(ValueError, match=r"has 33 tokens, and the text tower takes 32"):
        stop_at(np.array([33, 2]), 40, 32)


def every_cut(num_rows, num_parts):
    """All ways to make so many parts of rows, none empty."""
    for cuts in itertools.combinations(range(1, num_rows), num_parts - 1):
        yield np.diff([0, *cuts, num_rows])


def positions(widths, rows):
    """Positions of each part: as wide as its last row."""
    return [count * widths[end - 1] for count, end in zip(rows, np.cumsum(rows), strict=True)]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5, 8, 20])
def test_parts_have_the_fewest_positions_of_all_cuts_that_need_no_more_memory(num_parts):
    g = np.random.default_rng(num_parts)
    num_best, num_tries = 0, 40
    for _ in range(num_tries):
        widths = np.sort(g.choice([8, 8, 8, 16, 16, 24, 32], g.integers(1, 13)))
        rows = rows_of_parts(widths, num_parts)
        made = min(num_parts, len(widths))
        assert len(rows) == made and min(rows) > 0 and sum(rows) == len(widths)
        equal = [len(piece) for piece in np.array_split(widths, made)]
        most = max(equal) * widths[-1]
        allowed = [
            found
            for cut in every_cut(len(widths), made)
            if max(found := positions(widths, cut)) <= most
        ]
        assert max(positions(widths, rows)) <= most
        assert sum(positions(widths, rows)) <= sum(positions(widths, equal))
        num_best += sum(positions(widths, rows)) == min(map(sum, allowed))
    assert num_best >= 0.9 * num_tries


def test_a_long_batch_with_one_short_caption_is_not_one_part():
    assert rows_of_parts(np.array([8] + [77] * 99), 2) == [50, 50]
    assert rows_of_parts(np.array([8] * 99 + [77]), 2) == [99, 1]
    # What is left over halves the largest part.
    assert rows_of_parts(np.array([8] * 99 + [77]), 4) == [33, 33, 33, 1]


def test_tokens_are_counted():
    data = batch()
    data["text_length"] = torch.tensor([2] * 4 + [9] * 4 + [14] * 3 + [20] * 2)[torch.randperm(N)]
    features = tiny(text_parts=4)(data)
    # Four captions in two parts.
    computed = (4 * 8 + 7 * 16 + 2 * 24) / N
    assert features["tokens/computed"].item() == pytest.approx(computed)
    assert features["tokens/real"].item() == pytest.approx(data["text_length"].float().mean())
    assert not features["tokens/computed"].requires_grad
    assert "tokens/real" not in tiny()(data, ("image",))


def test_lengths_known_on_the_host_are_enough():
    data = batch()
    model = tiny().double()
    want = model(data)["text"]
    data["text_length.host"] = data["text_length"].clamp(min=11).numpy()
    torch.testing.assert_close(model(data)["text"], want, rtol=1e-12, atol=1e-12)
    captions = trimmed(data["text"], data["text_length"], 4, CONTEXT, data["text_length.host"])
    assert [part[0].shape[1] for part in captions.parts] >= [16]


@pytest.mark.parametrize("parts", [{"chunks": 0}, {"text_parts": -1}])
def test_numbers_out_of_range(parts):
    with pytest.raises(ValueError, match=r"model\.chunks is .* and model\.text_parts is"):
        tiny(**parts)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_a_batch_norm_learns_from_no_part_of_a_batch(norm):
    model = nn.Sequential(nn.Linear(4, 4), norm(4))
    check_parts(model, 1)
    with pytest.raises(ValueError, match=rf"chunks is 2, and '1' is a {norm.__name__}: its"):
        check_parts(model, 2)
    model.eval()
    check_parts(model, 2)
