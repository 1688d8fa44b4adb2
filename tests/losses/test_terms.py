"""Every term against its formula in float64: values and all gradients, on any number of ranks.

The cases are collected from `cases/`, the terms from the package: a term without a case fails.
"""

import functools
import importlib
import inspect
import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from term_case import all_cases, normal

import counterpoint.losses
from counterpoint.losses.base import Term
from counterpoint.losses.distributed.collectives import equal_rows
from counterpoint.losses.distributed.exchange import AllGather, Local, NoGradGatherKeepLocal, Ring

CASES = all_cases()
EXCHANGES = {
    "all_gather": AllGather,
    "ring": Ring,
    "local": Local,
    "keep_local": NoGradGatherKeepLocal,
}
ROWS = 9
# How 9 samples lie on W ranks: evenly where that goes, unevenly, and with a rank that has none.
SPLITS = {1: [[9]], 2: [[5, 4], [9, 0]], 3: [[3, 3, 3], [0, 7, 2]], 4: [[3, 2, 2, 2], [4, 0, 5, 0]]}
TILES = [1, 3 * 4 * 8, 1 << 20]
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2}
# Where the dense formula itself loses digits in float32 (the most of some evaluations, whose
# features differ by less than their last digit), we may lose this many times as much.
DIGITS_LOST, EVALUATIONS = 10, 4


@dataclass(frozen=True)
class Job:
    """One computation of a term on all ranks."""

    case: str
    exchange: str
    splits: tuple[int, ...]
    tile_bytes: int
    dtype: torch.dtype


def inputs_of(case):
    return case.inputs(torch.Generator().manual_seed(5), ROWS)


def make(case, exchange, tile_bytes, dtype):
    torch.manual_seed(11)
    choices = {"exchange": EXCHANGES[exchange](), "tile_bytes": tile_bytes}
    term = case.make(**choices) if case.takes_exchange else case.make()
    return term.to(torch.float64 if dtype == torch.float64 else torch.float32)


def split(tensors, start, count):
    return {k: t[start : start + count] if len(t) == ROWS else t for k, t in tensors.items()}


def leaves_of(case, features, dtype):
    """Features in a dtype, scalars in full precision; all but constants require gradients."""
    leaves = {}
    for name, tensor in features.items():
        if not tensor.is_floating_point():  # indices
            leaves[name] = tensor
            continue
        kind = torch.float32 if dtype == torch.bfloat16 and len(tensor) == 1 else dtype
        leaves[name] = tensor.detach().to(kind)
        leaves[name].requires_grad_(name not in case.constants)
    return leaves


def gradients(value, leaves, term):
    """Gradients of all leaves and of the term's parameters, zero where there is none."""
    wanted = {k: t for k, t in leaves.items() if t.requires_grad}
    wanted |= {f"term.{k}": p for k, p in term.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
    zipped = zip(wanted.items(), found, strict=True)
    return {k: (torch.zeros_like(t) if g is None else g).double() for (k, t), g in zipped}


def ours(rank, world_size, jobs):
    """Value and gradients of this rank, for every job."""
    results = []
    for job in jobs:
        case = CASES[job.case]
        term = make(case, job.exchange, job.tile_bytes, job.dtype)
        features, batch = inputs_of(case)
        start, count = sum(job.splits[:rank]), job.splits[rank]
        leaves = leaves_of(case, split(features, start, count), job.dtype)
        with equal_rows(count if len(set(job.splits)) == 1 else None):
            values = term(leaves, split(batch, start, count))
        value = sum(values.values())
        results.append((value.item(), gradients(value, leaves, term)))
    return results


@functools.cache
def dense(name, exchange, splits, rounded_to, dtype=torch.float64, jitter=0):
    """Value and gradients of the formula for the global batch.

    `jitter` is the seed of changes below float32's last digit; 0: none.
    """
    case = CASES[name]
    term = make(case, "all_gather", 1, dtype)
    features, batch = inputs_of(case)
    # What half precision does to the features is not the term's error.
    indices = {k: t for k, t in features.items() if not t.is_floating_point()}
    numbers = {k: t for k, t in features.items() if k not in indices}
    numbers = {k: t.to(rounded_to).double() if len(t) > 1 else t for k, t in numbers.items()}
    if jitter:
        generator = torch.Generator().manual_seed(jitter)
        numbers = {k: t * (1 + 2**-24 * normal(generator, *t.shape)) for k, t in numbers.items()}
    features = numbers | indices
    leaves = leaves_of(case, features, dtype)
    batch = {k: t.to(dtype) if t.is_floating_point() else t for k, t in batch.items()}
    if exchange == "local":
        starts = [sum(splits[:r]) for r in range(len(splits))]
        value = sum(
            case.formula(split(leaves, start, n), split(batch, start, n), term) * (n / ROWS)
            for start, n in zip(starts, splits, strict=True)
            if n
        )
    else:
        value = case.formula(leaves, batch, term)
    found = gradients(value, leaves, term)
    if exchange == "keep_local":
        found = {
            k: g / len(splits) if k in leaves and len(leaves[k]) == ROWS else g
            for k, g in found.items()
        }
    return value.item(), found


def digits_lost(job):
    """What float32 may cost in value and gradients, by what it costs the dense formula."""
    which = job.case, job.exchange, job.splits, job.dtype
    value, wanted = dense(*which)
    found = [dense(*which, torch.float32, jitter) for jitter in range(EVALUATIONS)]
    lost = {k: max(float((g[k] - wanted[k]).abs().max()) for _, g in found) for k in wanted}
    lost_value = max(abs(v - value) for v, _ in found)
    return DIGITS_LOST * lost_value, {k: DIGITS_LOST * e for k, e in lost.items()}


def joined(ranks, name, is_split, num_rows):
    """A gradient as data-parallel averaging gives it, which leaves rows of one rank alone."""
    pieces = [grads[name] for _, grads in ranks]
    if is_split:
        return torch.cat(pieces) / len(ranks)
    if len(pieces[0]) < num_rows:
        return torch.cat(pieces)
    return sum(pieces) / len(ranks)


def compare(gloo, jobs):
    world_size = len(jobs[0].splits)
    results = gloo(world_size, ours, jobs)
    for number, job in enumerate(jobs):
        case, ranks = CASES[job.case], [result[number] for result in results]
        value, wanted = dense(job.case, job.exchange, job.splits, job.dtype)
        lost_value, lost = digits_lost(job) if job.dtype == torch.float32 else (0, {})
        rtol = TOLERANCES[job.dtype]
        got = sum(v for v, _ in ranks) / world_size
        assert abs(got - value) <= max(rtol * max(1, abs(value)), lost_value), (job, got, value)
        features = inputs_of(case)[0]
        for name, gradient in wanted.items():
            is_split = name in features and len(features[name]) == ROWS
            found = joined(ranks, name, is_split, len(gradient))
            atol = max(rtol * max(1e-3, float(gradient.abs().max())), lost.get(name, 0))
            error = float((found - gradient).abs().max())
            assert error <= atol, (job, name, error, atol)


def jobs_of(world_size, cases, dtypes, tiles=TILES):
    made = []
    for name in cases:
        case = CASES[name]
        # In one process nothing is exchanged.
        exchanges = EXCHANGES if case.takes_exchange and world_size > 1 else ["all_gather"]
        for exchange, splits, dtype in itertools.product(exchanges, SPLITS[world_size], dtypes):
            is_too_small = any(0 < n < case.min_rows for n in splits) or not case.is_mean
            if exchange == "local" and is_too_small:
                continue
            used = tiles if case.takes_exchange else tiles[:1]
            made += [Job(name, exchange, tuple(splits), tile, dtype) for tile in used]
    return made


@pytest.mark.parametrize("name", CASES)
def test_one_process(gloo, name):
    compare(gloo, jobs_of(1, [name], [torch.float64, torch.float32, torch.bfloat16]))


@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_nothing_but_heads(name):
    parts = make(CASES[name], "all_gather", TILES[1], torch.float32).modules()
    if any(isinstance(part, torch.nn.Linear) for part in parts):
        return
    found = []
    for enabled in (False, True):
        term = make(CASES[name], "all_gather", TILES[1], torch.float32)
        features, batch = inputs_of(CASES[name])
        leaves = leaves_of(CASES[name], features, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = sum(term(leaves, batch).values())
        found.append((value.item(), gradients(value, leaves, term)))
    (value, wanted), (under_autocast, gradients_found) = found
    assert under_autocast == value
    assert all(torch.equal(gradients_found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks(gloo, world_size):
    jobs = jobs_of(world_size, CASES, [torch.float64], TILES[1:2])
    if world_size > 2:  # what the rest of the matrix adds to two ranks: also equal rows
        even, uneven = map(tuple, SPLITS[world_size])
        wanted = {(even, "all_gather"), (uneven, "all_gather"), (uneven, "ring")}
        jobs = [job for job in jobs if (job.splits, job.exchange) in wanted]
    compare(gloo, jobs)


@pytest.mark.soak
@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_every_exchange_tile_and_precision(gloo, world_size, name):
    compare(gloo, jobs_of(world_size, [name], [torch.float64, torch.float32, torch.bfloat16]))


def terms_of_the_package():
    found = set()
    folder = Path(counterpoint.losses.__path__[0])
    for file in folder.rglob("*.py"):
        name = ".".join(file.relative_to(folder).with_suffix("").parts)
        module = importlib.import_module(f"counterpoint.losses.{name}")
        for _, kind in inspect.getmembers(module, inspect.isclass):
            is_own = kind.__module__ == module.__name__ and issubclass(kind, Term)
            if is_own and not inspect.isabstract(kind):
                found.add(kind)
    return found


def test_every_term_has_a_case():
    tested = {type(make(case, "all_gather", 1, torch.float32)) for case in CASES.values()}
    missing = sorted(kind.__name__ for kind in terms_of_the_package() - tested)
    assert not missing, f"add tests/losses/cases/ for {', '.join(missing)}"
