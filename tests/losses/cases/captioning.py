"""Captioning: half of the captions in parallel, all token by token, with weights."""

import torch
from term_case import Case, normal
from torch.nn import functional as F

from counterpoint.losses.captioning.captioning import Captioning
from counterpoint.losses.captioning.decoder import CaptionDecoder

LENGTHS = torch.tensor([4, 7, 1, 2, 7, 3, 5, 6, 2])
HEADS = 2


def make(image_width=6, **choices):
    decoder = CaptionDecoder(image_width, 11, 7, width=8, depth=2, num_heads=HEADS)
    # Outputs start from zero, where nothing but them has a gradient.
    torch.nn.init.normal_(decoder.outputs)
    return Captioning(decoder, tile_bytes=96, **choices)


def inputs(generator, b, width=6, weighted=False):
    text = torch.randint(0, 11, (b, 7), generator=generator)
    batch = {"text": text, "text_length": LENGTHS[:b], "key": 1 + 7919 * torch.arange(b)}
    if weighted:
        batch["weight"] = torch.tensor([0.5, 1, 2, 0, 1, 3, 0.25, 1, 1], dtype=torch.float64)[:b]
    return {"image.tokens": normal(generator, b, 5, width)}, batch


def attention(module, rows, others, unseen=None):
    """Multi-head attention of one sequence, written out."""
    q, k, v = (
        rows @ module.query.weight.T,
        others @ module.key.weight.T,
        others @ module.value.weight.T,
    )
    width, made = q.shape[1] // HEADS, []
    for head in range(HEADS):
        one = slice(head * width, (head + 1) * width)
        scores = q[:, one] @ k[:, one].T / width**0.5
        if unseen is not None:
            scores = scores.masked_fill(unseen, -torch.inf)
        made.append(scores.softmax(1) @ v[:, one])
    return torch.cat(made, 1) @ module.out.weight.T


def norm(module, x):
    centred = x - x.mean(1, keepdim=True)
    unit = centred / (centred.square().mean(1, keepdim=True) + module.eps).sqrt()
    return unit * module.weight + module.bias


def states(decoder, image, ids, parallel):
    before = [decoder.prompt, *decoder.tokens.weight[ids[:-1]]]
    x = torch.stack([decoder.mask] * len(ids) if parallel else before) + decoder.positions
    later = torch.ones(len(ids), len(ids)).triu(1).bool() & (not parallel)
    for layer in decoder.layers:
        y = norm(layer.norm_self, x)
        x = x + attention(layer.self_attention, y, y, later)
        x = x + attention(layer.cross_attention, norm(layer.norm_cross, x), image)
        x = x + layer.mlp[2](F.gelu(layer.mlp[0](norm(layer.norm_mlp, x))))
    return norm(decoder.norm, x)


def formula(features, batch, term):
    term.steps += 1
    parallel = term._chosen(batch["key"]).tolist()
    if term.parallel == 0.5:
        assert {True, False} == set(parallel)
    sums, decoder = [], term.decoder
    for image, ids, n, p in zip(
        features["image.tokens"], batch["text"], LENGTHS.tolist(), parallel, strict=True
    ):
        logits = states(decoder, image, ids, p) @ decoder.outputs.T
        own = -logits.log_softmax(1)[torch.arange(len(ids)), ids]
        sums.append(own[term.skip : n].sum() / max(1, n - term.skip))
    weights = batch.get("weight", torch.ones(len(sums), dtype=torch.float64))
    return (torch.stack(sums) * weights).sum() / weights.sum()


def case(width=6, weighted=False, **choices):
    return Case(
        lambda: make(width, **choices),
        formula,
        lambda generator, b: inputs(generator, b, width, weighted),
        takes_exchange=False,
        is_mean=False,
    )


CASES = {
    "half_parallel": case(),
    "in_order": case(8, parallel=0.0, skip=1),
    "weighted": case(weighted=True),
}
