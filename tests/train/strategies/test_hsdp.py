"""Shards within a node, copies across nodes: four processes as two nodes of two."""

import pytest
import torch
from lightning.pytorch import Callback
from small_run import batches, module, train
from torch.distributed.tensor import DTensor, Replicate, Shard

from counterpoint.train.ema import Ema, EmaConfig
from counterpoint.train.grad_clip.agc import AGC
from counterpoint.train.grad_clip.fixed import Norm
from counterpoint.train.strategies.fsdp2 import Fsdp2

STEPS = 4
CLIPPERS = {"norm": lambda: Norm(0.05), "agc": lambda: AGC(0.01)}


class SaveAt(Callback):
    """Saves after a step, while training."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def trained(rank, world_size, name, clipper, path=None, resumed=None, nodes=2):
    """Losses, norms, whole weights and average, and this rank's pieces, after some steps."""
    per_node = world_size // nodes
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", str(per_node))
        patch.setenv("LOCAL_RANK", str(rank % per_node))
        patch.setenv("GROUP_RANK", str(rank // per_node))
        made = module(STEPS, chunks=2)
        made.grad_clip = CLIPPERS[clipper]()
        made.ema = Ema(made.model, EmaConfig(decay=0.5))
        saving = [SaveAt(2, path)] if path else []
        options = {"devices": per_node, "num_nodes": nodes}
        data = batches(STEPS)
        data = data[2:] + data[:2] if resumed else data  # those to come first
        train(made, world_size, name, saving, data=data, ckpt_path=resumed, **options)
    values = {n: made.tensors.value(p).clone() for n, p in made.named_parameters()}
    pieces = {n: p.to_local().clone() for n, p in made.named_parameters() if isinstance(p, DTensor)}
    placed = {tuple(p.placements) for p in made.parameters() if isinstance(p, DTensor)}
    shapes = {p.device_mesh.shape for p in made.parameters() if isinstance(p, DTensor)}
    return made.losses, made.norms, values, pieces, placed, shapes


@pytest.mark.parametrize("clipper", ["norm", pytest.param("agc", marks=pytest.mark.soak)])
def test_weights_norms_and_average_are_those_of_ddp(gloo, clipper):
    want = gloo(4, trained, "ddp", clipper)
    got = gloo(4, trained, "hsdp", clipper)
    assert got[0][4:] == ({(Replicate(), Shard(0))}, {(2, 2)})
    for rank in range(4):
        assert got[rank][0] == pytest.approx(want[rank][0], rel=1e-5)
        assert got[rank][1] == got[0][1]  # else copies would be clipped differently
        assert got[rank][1] == pytest.approx(want[rank][1], rel=1e-5)
        for name, value in want[0][2].items():
            torch.testing.assert_close(got[rank][2][name], value, rtol=1e-4, atol=1e-5, msg=name)
    # A copy is cut over the two of a node, and both copies are the same.
    for name, piece in got[0][3].items():
        assert torch.equal(got[2][3][name], piece), name
        whole = got[0][2][name]
        assert torch.equal(torch.cat([piece, got[1][3][name]]), whole), name


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("hsdp", "hsdp"),
        pytest.param("hsdp", "ddp", marks=pytest.mark.soak),
        pytest.param("ddp", "hsdp", marks=pytest.mark.soak),
    ],
)
def test_a_run_goes_on(gloo, tmp_path, first, second):
    path = str(tmp_path / "step.ckpt")
    want = gloo(4, trained, first, "norm", path)
    got = gloo(4, trained, second, "norm", None, path)
    for name, value in want[0][2].items():
        if first == second:
            assert torch.equal(got[0][2][name], value), name
        torch.testing.assert_close(got[0][2][name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_one_node_has_one_copy(gloo):
    got = gloo(2, trained, "hsdp", "norm", None, None, 1)
    assert got[0][4:] == ({(Shard(0),)}, {(2,)})


def refused(rank, world_size, copy_on):
    with pytest.raises(ValueError, match=f"copy_on is {copy_on}, which does not divide 2"):
        train(module(1), world_size, Fsdp2(copy_on))


def test_unequal_groups_are_refused(gloo):
    gloo(2, refused, 3)
    gloo(2, refused, 0)
