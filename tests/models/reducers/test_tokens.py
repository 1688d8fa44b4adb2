"""Text reducers against the same choices made caption by caption."""

from collections import Counter

import pytest
import torch

from counterpoint.models.reducers.base import Reduction, TextReducer
from counterpoint.models.reducers.tokens import RandomTokens, TokenBlock, Truncate
from counterpoint.models.text.clip import ClipTextTower

START, END = 98, 99
STEP = Reduction(seed=1, step=5)


def captions(lengths, width=12):
    """Words are 1, 2, 3, ... so that a token tells where it came from."""
    text = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in zip(text, lengths, strict=True):
        row[:length] = torch.arange(length)
        row[0], row[length - 1] = START, END
    return text, torch.tensor(lengths)


def shortened(reducer, lengths, keys=None, view="text", reduction=STEP):
    text, length = captions(lengths)
    keys = torch.arange(len(lengths)) if keys is None else keys
    got, got_length = reducer.tokens(text, length, keys, view, reduction)
    rows = [row[:n].tolist() for row, n in zip(got, got_length.tolist(), strict=True)]
    assert all(not row[n:].any() for row, n in zip(got, got_length.tolist(), strict=True))
    return rows, got


REDUCERS = [Truncate(5), RandomTokens(5), TokenBlock(5)]


@pytest.mark.parametrize("reducer", REDUCERS)
def test_start_end_and_order_stay_and_short_captions_are_whole(reducer):
    lengths = [2, 3, 4, 5, 6, 9, 12] * 20
    rows, got = shortened(reducer, lengths)
    assert got.shape[1] == 5
    for row, length in zip(rows, lengths, strict=True):
        assert row[0] == START and row[-1] == END and len(row) == min(length, 5)
        words = row[1:-1]
        assert words == sorted(set(words)) and all(0 < word < length - 1 for word in words)
        if length <= 5:
            assert words == list(range(1, length - 1))
        elif isinstance(reducer, Truncate):
            assert words == [1, 2, 3]
        elif isinstance(reducer, TokenBlock):
            assert words == list(range(words[0], words[0] + 3))


def test_narrow_batches_are_left_alone():
    text, length = captions([4, 2], width=5)
    assert Truncate(5).tokens(text, length, length, "text", STEP) == (text, length)
    assert TextReducer().tokens(text, length, length, "text", STEP) == (text, length)


def test_every_choice_of_tokens_is_alike_likely():
    rows, _ = shortened(RandomTokens(5), [7] * 10000)
    counts = Counter(tuple(row[1:-1]) for row in rows)
    assert len(counts) == 10  # 3 of 5 words
    assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 27.9  # once in a thousand
    rows, _ = shortened(TokenBlock(5), [9] * 10000)
    counts = Counter(row[1] for row in rows)
    assert sorted(counts) == [1, 2, 3, 4, 5]
    assert sum((n - 2000) ** 2 / 2000 for n in counts.values()) < 18.5


@pytest.mark.parametrize("reducer", REDUCERS[1:])
def test_a_choice_depends_on_seed_step_view_and_key_alone(reducer):
    keys = torch.arange(60) * 31
    text, length = captions([12, 10, 7] * 20)
    whole, _ = reducer.tokens(text, length, keys, "text", STEP)
    parts = [slice(0, 11), slice(11, 50), slice(50, 60)]
    cut = [reducer.tokens(text[p], length[p], keys[p], "text", STEP)[0] for p in parts]
    assert torch.equal(torch.cat(cut), whole)
    order = torch.arange(60).flip(0)
    assert torch.equal(
        reducer.tokens(text[order], length[order], keys[order], "text", STEP)[0], whole[order]
    )
    for other in (
        reducer.tokens(text, length, keys, "text.second", STEP),
        reducer.tokens(text, length, keys, "text", Reduction(1, 6)),
        reducer.tokens(text, length, keys, "text", Reduction(2, 5)),
    ):
        assert (other[0] != whole).any(dim=1).float().mean() > 0.5


@pytest.mark.parametrize("reducer", REDUCERS)
def test_padding_does_not_change_the_choice(reducer):
    keys = torch.arange(60) * 31
    text, length = captions([8, 7, 6] * 20)
    whole, lengths = reducer.tokens(text, length, keys, "text", STEP)
    trimmed, same = reducer.tokens(text[:, :8], length, keys, "text", STEP)
    assert torch.equal(trimmed, whole) and torch.equal(same, lengths)


def test_the_tower_pools_the_end_of_the_shortened_caption():
    torch.manual_seed(0)
    tower = ClipTextTower(16, 2, 2, context_length=12, vocab_size=100).double()
    text, length = captions([12, 4, 9])
    short = RandomTokens(5).tokens(text, length, length, "text", STEP)
    want = tower.trunk(input_ids=short[0]).pooler_output
    torch.testing.assert_close(tower(*short), want, rtol=1e-12, atol=1e-12)


def test_no_room_for_a_word_is_refused():
    with pytest.raises(ValueError, match="TokenBlock has num_tokens=2"):
        TokenBlock(2)


def test_the_tower_compiles_without_a_graph_break():
    torch._dynamo.reset()
    torch.manual_seed(0)
    tower = ClipTextTower(16, 1, 2, context_length=12, vocab_size=100).double()
    compiled = torch.compile(tower, backend="aot_eager", fullgraph=True)
    text, length = captions([12, 4, 9])
    compiled(text, length).sum().backward()
    got = {name: p.grad.clone() for name, p in tower.named_parameters()}
    tower.zero_grad()
    tower(text, length).sum().backward()
    for name, parameter in tower.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-10, atol=1e-10)
