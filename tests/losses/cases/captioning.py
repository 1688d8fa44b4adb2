"""Captioning: half of the captions in parallel, all token by token, with weights.

LocCa beside it: boxes for phrases and phrases for boxes, where not every sample has a region.
"""

import torch
from term_case import Case, normal
from torch.nn import functional as F

from counterpoint.losses.captioning.captioning import Captioning
from counterpoint.losses.captioning.decoder import CaptionDecoder
from counterpoint.losses.captioning.locca import LocCa, Task

LENGTHS = torch.tensor([4, 7, 1, 2, 7, 3, 5, 6, 2])
HEADS = 2


def make(image_width=6, kind=Captioning, **choices):
    decoder = CaptionDecoder(image_width, 11, 7, width=8, depth=2, num_heads=HEADS)
    # Outputs start from zero, where nothing but them has a gradient.
    torch.nn.init.normal_(decoder.outputs)
    return kind(decoder, tile_bytes=96, **choices)


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


def states(decoder, image, ids, parallel, prompt=None):
    before = [decoder.prompt if prompt is None else prompt, *decoder.tokens.weight[ids[:-1]]]
    inputs = torch.stack([decoder.mask] * len(ids) if parallel else before)
    x = inputs + decoder.positions[: len(ids)]
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


PHRASES, BOXES = torch.tensor([3, 1, 2, 3, 1, 2, 3, 2, 1]), torch.full((9,), 4)
# One phrase without its box; of two splits, a rank has no region at all.
HAS_PHRASE = torch.tensor([0, 0, 0, 1, 1, 0, 1, 0, 1], dtype=torch.bool)
HAS_BOX = torch.tensor([0, 0, 0, 1, 1, 0, 1, 0, 0], dtype=torch.bool)
# LocCa's own grounded captioning writes both; in SigLIP 2's words the box is read.
TASKS = {
    "aref": Task(read=("text.phrase",), write=("text.box",)),
    "gcap": Task(read=("text.box",), write=("text.phrase",)),
    "both": Task(write=("text.box", "text.phrase")),
}


def regions(generator, b, weighted):
    features, batch = inputs(generator, b, 6, weighted)
    for name, width, lengths, present in (
        ("phrase", 3, PHRASES, HAS_PHRASE),
        ("box", 4, BOXES, HAS_BOX),
    ):
        batch[f"text.{name}"] = torch.randint(0, 11, (b, width), generator=generator)
        batch |= {f"text.{name}_length": lengths[:b], f"text.{name}.present": present[:b]}
    return features, batch


def located(features, batch, term):
    """Of each sample that has a region by itself: what it reads, then what it writes."""
    total, decoder = formula(features, batch, term), term.decoder
    weights = batch.get("weight", torch.ones(9, dtype=torch.float64))
    for name, task in term.tasks.items():
        losses, kept = [], [i for i in range(9) if HAS_PHRASE[i] and HAS_BOX[i]]
        for i in kept:
            texts = {
                "text.phrase": batch["text.phrase"][i, : PHRASES[i]],
                "text.box": batch["text.box"][i],
            }
            ids = torch.cat([texts[entry] for entry in (*task.read, *task.write)])
            made = states(decoder, features["image.tokens"][i], ids, False, term.prompts[name])
            own = -(made @ decoder.outputs.T).log_softmax(1)[torch.arange(len(ids)), ids]
            wanted, start = [], sum(len(texts[entry]) for entry in task.read)
            for entry in task.write:
                wanted += [*range(start + term.skip, start + len(texts[entry]))]
                start += len(texts[entry])
            losses.append(own[wanted].sum() / max(1, len(wanted)))
        total = total + (torch.stack(losses) * weights[kept]).sum() / weights[kept].sum()
    return total


def case(width=6, weighted=False, **choices):
    return Case(
        lambda: make(width, **choices),
        formula,
        lambda generator, b: inputs(generator, b, width, weighted),
        takes_exchange=False,
        is_mean=False,
    )


def locca(weighted=False, **choices):
    return Case(
        lambda: make(kind=LocCa, tasks=TASKS, **choices),
        located,
        lambda generator, b: regions(generator, b, weighted),
        takes_exchange=False,
        is_mean=False,
    )


CASES = {
    "half_parallel": case(),
    "in_order": case(8, parallel=0.0, skip=1),
    "weighted": case(weighted=True),
    "locca": locca(),
    "locca_weighted": locca(weighted=True, skip=1),
}
