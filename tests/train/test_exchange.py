"""Whole steps in which images' features are sent ahead are those of one process."""

import pytest
import torch
from small_run import B, batches, module, train

from counterpoint.losses.distributed import ahead


def run(rank, world_size, strategy, parts):
    """Losses, norms and gradients of a run, and how many features were sent ahead."""
    made, sent, send = module(3, **parts), [], ahead.send
    made.objective.batch_rows = {"": B // world_size}  # as of a run file's data

    def counted(rows, ranks):
        sent.append(ranks)
        return send(rows, ranks)

    ahead.send = counted
    try:
        train(made, world_size, strategy, data=batches(3))
    finally:
        ahead.send = send
    return made.losses, made.norms, sent


@pytest.mark.parametrize("parts", [{}, {"chunks": 3}], ids=["whole", "chunks"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2"])
def test_steps_are_those_of_one_process(gloo, strategy, parts):
    losses, norms, sent = run(0, 1, "auto", parts)
    assert not sent
    ranks = gloo(2, run, strategy, parts)
    for _, found, sent in ranks:
        assert found == pytest.approx(norms, rel=2e-5)
        assert sent == [2] * 3
    means = torch.tensor([found for found, _, _ in ranks]).mean(0)
    assert means.tolist() == pytest.approx(losses, rel=1e-5)
