"""Rows that each rank keeps for good: runs, checkpoints and resumes are those of one process."""

import pytest
import torch
from small_run import B, batches, module, train

from counterpoint.losses.clusters import ArcMargin, ClusterDiscrimination
from counterpoint.losses.heads import UnitMLP
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.regression import Regression
from counterpoint.losses.scalars import Temperature
from counterpoint.losses.sharded_clusters import ShardedClusters
from counterpoint.losses.slices import rows_of
from counterpoint.train.optim_timm import Lamb

C, STEPS, CUT = 7, 4, 2
NAME = "objective.terms.clusters.prototypes"
# Below the gradient's norm at every step: updates depend on it.
CLIP = {"gradient_clip_val": 0.5}


def data():
    """The batches, with clusters of which one has no sample, and samples without a cluster."""
    g = torch.Generator().manual_seed(8)
    return [
        batch | {"clusters.id": torch.randint(-1, C - 1, (B,), generator=g)}
        for batch in batches(STEPS)
    ]


def made(kind=ShardedClusters, dtype=torch.float64, **choices):
    options = {"rate": 0.5, "scale": Temperature(8.0), "margin": ArcMargin()} | choices
    torch.manual_seed(1)
    head = UnitMLP([8, 8])
    terms = {"infonce": InfoNCE(), "clusters": kind(C, 8, **options)}
    terms["head"] = Regression("image", "text", head=head)
    return module(STEPS, dtype, objective=Objective(terms))


def run(rank, world_size, name, folder, ckpt_path=None, part=slice(None), kind=ShardedClusters):
    """Losses, norms and rows of a run; its checkpoint is `folder`/NAME-RANKS.ckpt."""
    run = made(kind)
    trainer = train(run, world_size, name, data=data()[part], ckpt_path=ckpt_path, **CLIP)
    trainer.save_checkpoint(f"{folder}/{name}-{world_size}.ckpt", weights_only=False)
    prototypes = run.objective.terms["clusters"].prototypes
    return run.losses, run.norms, len(prototypes), trainer.optimizers[0].state[prototypes]


def saved(folder, name, world_size):
    path = f"{folder}/{name}-{world_size}.ckpt"
    found = torch.load(path, weights_only=True)
    return found["state_dict"], found["optimizer_states"][0]


def assert_same(got, want):
    """Weights and optimiser states."""
    assert got[0].keys() == want[0].keys()
    assert want[0][NAME].shape == (C, 8)
    for key, value in want[0].items():
        torch.testing.assert_close(got[0][key], value, rtol=1e-7, atol=1e-9, msg=key)
    assert got[1]["param_groups"] == want[1]["param_groups"]
    assert got[1]["state"].keys() == want[1]["state"].keys()
    for number, values in want[1]["state"].items():
        for key, value in values.items():
            found = got[1]["state"][number][key]
            torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-12, msg=f"{number} {key}")


def assert_same_course(results, one):
    losses, norms, _, _ = zip(*results, strict=True)
    means = torch.tensor(losses, dtype=torch.float64).mean(0)
    assert means.tolist() == pytest.approx(one[0], rel=1e-9)
    assert min(one[1]) > CLIP["gradient_clip_val"]
    for found in norms:
        assert found == pytest.approx(one[1], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "world_size"),
    [
        ("ddp", 2),
        ("fsdp2", 2),
        pytest.param("ddp", 3, marks=pytest.mark.soak),
        pytest.param("fsdp2", 3, marks=pytest.mark.soak),
    ],
)
def test_runs_are_those_of_one_process(gloo, tmp_path, name, world_size):
    one = run(0, 1, "auto", tmp_path)
    results = gloo(world_size, run, name, tmp_path, timeout=240)
    assert_same_course(results, one)
    assert [r[2] for r in results] == [
        rows_of(C, r, world_size).stop - rows_of(C, r, world_size).start for r in range(world_size)
    ]
    # Each rank has the optimiser's state of its own rows, after a checkpoint too.
    assert all(len(r[3]["exp_avg"]) == r[2] for r in results)
    assert_same(saved(tmp_path, name, world_size), saved(tmp_path, "auto", 1))
