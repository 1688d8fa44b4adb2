"""Long captions in windows: the tower's own vectors, averaged, and nothing else."""

import pytest
import torch
from tiny_tower import tiny_vit

from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.text.hf import HFTextTower
from counterpoint.models.text.siglip import SiglipTextTower
from counterpoint.models.text.windows import WindowTower
from counterpoint.models.two_tower import TwoTower

START, END = 48, 49


def clip(length=8):
    return ClipTextTower(16, 2, 2, context_length=length, vocab_size=50)


def bert(length=8):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": length, "pad_token_id": 0}
    return HFTextTower({"model_type": "bert", **sizes}, length)


def siglip(length=8):
    return SiglipTextTower(16, 2, 2, context_length=length, vocab_size=50, pooling="last")


def captions(lengths, columns, prefix=1):
    """Rows of [start, words, end], filled with what no tower may read."""
    ids = torch.randint(2, START, (len(lengths), columns))
    for row, length in zip(ids, lengths, strict=True):
        row[:prefix], row[length - 1] = START, END
        row[length:] = 7
    return ids, torch.tensor(lengths)


def cut(words, room, stride):
    """By hand: windows until one ends the caption."""
    pieces, first = [words[:room]], 0
    while first + room < len(words):
        first += stride
        pieces.append(words[first : first + room])
    return pieces


@torch.no_grad()
@pytest.mark.parametrize(("tower", "prefix"), [(clip, 1), (bert, 1), (siglip, 0)])
@pytest.mark.parametrize("stride", [1, 4, 6])
def test_the_mean_of_the_windows_of_each_caption(tower, prefix, stride):
    torch.manual_seed(0)
    inner = tower().eval()
    made = WindowTower(inner, 30, stride, prefix)
    lengths = [2, 8, 9, 14, 15, 21, 30]
    ids, length = captions(lengths, 30, prefix)
    want = []
    for row, n in zip(ids.tolist(), lengths, strict=True):
        pieces = cut(row[prefix : n - 1], 7 - prefix, stride)
        rows = [[START] * prefix + piece + [END] for piece in pieces]
        vectors = [inner(torch.tensor([r]), torch.tensor([len(r)]))[0] for r in rows]
        want.append(torch.stack(vectors).double().mean(0))
    assert len(cut(list(range(28)), 6, 4)) == 7 and len(cut(list(range(12)), 6, 6)) == 2
    torch.testing.assert_close(made(ids, length).double(), torch.stack(want), rtol=0, atol=2e-6)
    # Fewer columns, which the model leaves out where they are padding alone.
    torch.testing.assert_close(made(ids[:5, :15], length[:5]), made(ids, length)[:5])
    # A batch of captions of one window each is the tower's own business.
    assert torch.equal(made(ids[:2, :8], length[:2]), inner(ids[:2, :8], length[:2]))


def test_the_papers_windows_of_raw_ids():
    """ClipMD: 77 tokens, 70 apart, as `Tensor.unfold` cuts them, and what is left at the end."""
    made = WindowTower(clip(77), 300, 70, prefix=0, suffix=0)
    ids, length = torch.randint(2, 48, (1, 300)), torch.tensor([290])
    rows, lengths, counts = made.windows(ids, length)
    whole = ids[0, :290].unfold(0, 77, 70)
    assert len(whole) == 4 and torch.equal(rows[0, :4], whole)
    assert counts.tolist() == [[True] * 5] and lengths.tolist() == [[77, 77, 77, 77, 10]]
    assert torch.equal(rows[0, 4, :10], ids[0, 280:290])


def test_every_rank_calls_the_tower_equally_often():
    torch.manual_seed(0)
    model = TwoTower(tiny_vit(1), WindowTower(clip(), 30, 4), 8, text_parts=4)
    calls = []
    model.text.tower.register_forward_hook(lambda *_: calls.append(1))
    for lengths in ([2, 3, 2, 4], [30, 29, 2, 17], [9] * 4):
        ids, length = captions(lengths, 30)
        model({"text": ids, "text_length": length}, ("text",))
    assert len(calls) == 12


def test_gradients_reach_the_tower_and_spare_windows_none():
    torch.manual_seed(0)
    made = WindowTower(clip(), 30, 4)
    ids, length = captions([3, 30], 30)
    made(ids, length)[0].sum().backward()
    grad = {n: p.grad.clone() for n, p in made.tower.named_parameters()}
    made.zero_grad()
    made.tower(ids[:1, :3], length[:1]).sum().backward()
    for name, p in made.tower.named_parameters():
        torch.testing.assert_close(grad[name], p.grad, rtol=1e-4, atol=1e-6)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="captions of 8 tokens fit into the tower's 8"):
        WindowTower(clip(), 8, 4)
    for stride in (0, 7):
        with pytest.raises(ValueError, match=f"room for 6 tokens .* stride is {stride}: give 1"):
            WindowTower(clip(), 30, stride)


def test_it_is_layers_width_and_padding_of_the_tower():
    inner = clip()
    made = WindowTower(inner, 30, 4)
    assert made.layers() == inner.layers() and made.width == 16 and made.ignores_padding
    assert not WindowTower(siglip(), 30, 4).ignores_padding
    with pytest.raises(ValueError, match="WindowTower does not show its tokens"):
        made.states(torch.zeros(1, 4), torch.ones(1))
