"""P1 in every strategy: gradients, norms and losses are those of one process, for any chunks."""

import pytest
import torch
from small_run import Recorded, module, replay, train

from counterpoint.models.reducers.image import RandomPatches
from counterpoint.train.module import step_seed

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
CHUNKS = (1, 2, 4, 8)
STEPS = 2
# ZeRO takes float32 only.
EXACTNESS = dict.fromkeys(("zero1", "zero2", "zero3"), (torch.float32, 2e-5))


def record(rank, world_size, name, dtype, dropout, all_chunks, kind=Recorded):
    """Losses, norms and pieces of gradients of short runs, one for each number of chunks."""
    found = {}
    for chunks in all_chunks:
        made = module(STEPS, dtype, dropout, RandomPatches(0.5), kind=kind, chunks=chunks)
        train(made, world_size, name)
        found[chunks] = made.losses, made.norms, made.pieces
    return found


class Replayed(Recorded):
    """One process that plays two: the dropout of each rank, and nothing is recomputed."""

    def forward_loss(self, batch):
        features = []
        reduction = self.phases.reduction(self.global_step, self.seed)
        for rank in range(2):
            torch.manual_seed(step_seed(self.seed, self.global_step, rank))
            rows = {key: value.tensor_split(2)[rank] for key, value in batch.items()}
            features.append(replay(self.model, rows, reduction))
        image, text = (torch.cat(sides) for sides in zip(*features, strict=True))
        scale = self.model.logit_scale.exp()
        return self.objective({"image": image, "text": text, "logit_scale": scale}, batch)[0]


def joined(name, pieces, like):
    """Whole gradients from every rank's pieces: copies, rows, or slices with padding at the end."""
    if name == "ddp":
        assert all(torch.equal(pieces[0][key], pieces[1][key]) for key in like)
        return pieces[0]
    whole = {}
    for key, parameter in like.items():
        flat = torch.cat([piece[key].flatten() for piece in pieces if key in piece])
        whole[key] = flat[: parameter.numel()].view_as(parameter)
    return whole


def assert_equal(got, want, tolerance):
    # The gradient of the keys' biases is zero but for rounding: compare against the largest one.
    scale = max(value.abs().max().item() for value in want.values())
    for name, value in want.items():
        atol = tolerance * scale
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=atol, msg=name)


SOME = [pytest.param((1, 4), id="sample"), pytest.param(CHUNKS, id="all", marks=pytest.mark.soak)]


def compare(name, one, results, chunks, exactness):
    """One process's losses, norms and gradients against those of two."""
    losses, norms, pieces = zip(*(result[chunks] for result in results), strict=True)
    means = torch.tensor(losses, dtype=torch.float64).mean(0)
    assert means.tolist() == pytest.approx(one[0], rel=exactness)
    assert norms[0] == norms[1]
    assert norms[0] == pytest.approx(one[1], rel=exactness)
    like = dict(module(1).named_parameters())
    for step in range(STEPS):
        whole = joined(name, [piece[step] for piece in pieces], like)
        # Adam's first steps magnify what rounding did to the smallest gradients.
        assert_equal(whole, one[2][step], exactness * 10**step)


@pytest.mark.parametrize("all_chunks", SOME)
@pytest.mark.parametrize("name", STRATEGIES)
def test_gradients_losses_and_norms_are_those_of_one_process(gloo, name, all_chunks):
    dtype, exactness = EXACTNESS.get(name, (torch.float64, 1e-10))
    one = record(0, 1, "auto", dtype, 0.0, (1,))[1]
    results = gloo(2, record, name, dtype, 0.0, all_chunks, timeout=240)
    for chunks in all_chunks:
        compare(name, one, results, chunks, exactness)


@pytest.mark.parametrize("all_chunks", SOME)
@pytest.mark.parametrize("name", STRATEGIES)
def test_dropout_is_that_of_each_chunk_in_forward_and_recomputation(gloo, name, all_chunks):
    dtype, exactness = EXACTNESS.get(name, (torch.float64, 1e-10))
    results = gloo(2, record, name, dtype, 0.2, all_chunks, timeout=240)
    for chunks in all_chunks:
        one = record(0, 1, "auto", dtype, 0.2, (chunks,), Replayed)[chunks]
        compare(name, one, results, chunks, exactness)
