"""Rows that each rank keeps for good: runs, checkpoints and resumes are those of one process."""

import pytest
import torch
from small_run import B, batches, module, train

from counterpoint.losses.base import Term
from counterpoint.losses.components.heads import UnitMLP
from counterpoint.losses.distillation.cluster_discrimination import ArcMargin, ClusterDiscrimination
from counterpoint.losses.distillation.feature_regression import FeatureRegression
from counterpoint.losses.distillation.sharded_clusters import ShardedClusters
from counterpoint.losses.distributed.collectives import world
from counterpoint.losses.distributed.sharded_rows import RowShard, rows_of
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.scalars import Temperature
from counterpoint.train.grad_clip.fixed import Norm
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.optim.timm_optimizers import Timm

C, STEPS, CUT = 7, 4, 2
NAME = "objective.terms.clusters.prototypes"
# Below the gradient's norm at every step: updates depend on it.
LIMIT = 0.5


def data():
    """The batches, with clusters of which one has no sample, and samples without a cluster."""
    g = torch.Generator().manual_seed(8)
    return [
        batch | {"clusters.id": torch.randint(-1, C - 1, (B,), generator=g)}
        for batch in batches(STEPS)
    ]


def made(dtype=torch.float64):
    options = {"rate": 0.5, "scale": Temperature(8.0), "margin": ArcMargin()}
    torch.manual_seed(1)
    head = UnitMLP([8, 8])
    terms = {"infonce": InfoNCE(), "clusters": ShardedClusters(C, 8, **options)}
    terms["head"] = FeatureRegression("image", "text", head=head)
    built = module(STEPS, dtype, objective=Objective(terms))
    built.grad_clip = Norm(LIMIT)
    return built


def run(rank, world_size, name, folder, steps=None, ckpt_path=None):
    """Losses, norms and rows of a run; its checkpoint is `folder`/NAME-RANKS.ckpt."""
    run = made()
    trainer = train(run, world_size, name, data=steps or data(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(f"{folder}/{name}-{world_size}.ckpt", weights_only=False)
    prototypes = run.objective.terms["clusters"].prototypes
    return run.losses, run.norms, len(prototypes), trainer.optimizers[0].state[prototypes]


def saved(path):
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
    assert min(one[1]) > LIMIT
    for found in norms:
        assert found == pytest.approx(one[1], rel=1e-9)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process's course, and its checkpoint."""
    folder = tmp_path_factory.mktemp("one")
    return run(0, 1, "auto", folder), saved(folder / "auto-1.ckpt")


@pytest.mark.parametrize(
    ("name", "world_size"),
    [
        ("ddp", 2),
        ("fsdp2", 2),
        pytest.param("ddp", 3, marks=pytest.mark.soak),
        pytest.param("fsdp2", 3, marks=pytest.mark.soak),
    ],
)
def test_runs_are_those_of_one_process(gloo, tmp_path, one, name, world_size):
    results = gloo(world_size, run, name, tmp_path)
    assert_same_course(results, one[0])
    assert [r[2] for r in results] == {2: [4, 3], 3: [3, 2, 2]}[world_size]
    # Each rank has the optimiser's state of its own rows, after a checkpoint too.
    assert all(len(r[3]["exp_avg"]) == r[2] for r in results)
    assert_same(saved(tmp_path / f"{name}-{world_size}.ckpt"), one[1])


@pytest.mark.soak
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_run_goes_on_with_another_number_of_ranks(gloo, tmp_path, one, name):
    gloo(2, run, name, tmp_path, data()[:CUT])
    half = tmp_path / f"{name}-2.ckpt"
    for world_size, other in ((1, "auto"), (3, "fsdp2"), (3, "ddp")):
        to_come = data()[CUT:] + data()[:CUT]
        results = gloo(world_size, run, other, tmp_path, to_come, half)
        assert_same_course(results, [values[CUT:] for values in one[0][:2]])
        assert_same(saved(tmp_path / f"{other}-{world_size}.ckpt"), one[1])


def from_ordinary(rank, world_size, folder):
    """Prototypes and their moments after a resume from an ordinary parameter's checkpoint."""
    run = alone(ShardedClusters)
    path = f"{folder}/old.ckpt"
    trainer = train(run, world_size, "ddp", data=data()[:CUT], ckpt_path=path)
    prototypes = run.objective.terms["clusters"].prototypes
    return prototypes.detach(), trainer.optimizers[0].state[prototypes]["exp_avg"]


def alone(kind):
    terms = {"infonce": InfoNCE(), "clusters": kind(C, 8, scale=Temperature(8.0))}
    return module(CUT, torch.float64, objective=Objective(terms))


def test_a_checkpoint_of_an_ordinary_parameter_is_cut(gloo, tmp_path):
    trainer = train(alone(ClusterDiscrimination), 1, "auto", data=data()[:CUT])
    trainer.save_checkpoint(tmp_path / "old.ckpt", weights_only=False)
    weights, optimizer = saved(tmp_path / "old.ckpt")
    moments = [s["exp_avg"] for s in optimizer["state"].values() if s["exp_avg"].shape == (C, 8)]
    results = gloo(2, from_ordinary, tmp_path)
    assert [len(rows) for rows, _ in results] == [4, 3]
    assert torch.equal(torch.cat([rows for rows, _ in results]), weights[NAME])
    assert torch.equal(torch.cat([m for _, m in results]), moments[-1])


class Stored(Term):
    """A store that no gradient trains, whose rows each rank counts up by its own numbers."""

    needs = ("image", "logit_scale")

    def __init__(self):
        super().__init__()
        self.store = RowShard(torch.zeros(C, 2), requires_grad=False)

    def forward(self, features, batch):
        first = rows_of(C, *world()).start
        self.store += torch.arange(first, first + len(self.store))[:, None]
        return {"nothing": 0.0 * features["image"].sum()}


STORE = "objective.terms.stored.store"


def stored(rank, world_size, name, folder, ckpt_path=None):
    run = module(CUT, objective=Objective({"infonce": InfoNCE(), "stored": Stored()}))
    steps = data()[CUT:] + data()[:CUT] if ckpt_path else data()[:CUT]
    trainer = train(run, world_size, name, data=steps, ckpt_path=ckpt_path)
    trainer.save_checkpoint(f"{folder}/{name}-{world_size}.ckpt", weights_only=False)
    return len(run.objective.terms["stored"].store)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_store_without_gradient_is_cut_saved_whole_and_taken_up_again(gloo, tmp_path, name):
    assert gloo(2, stored, name, tmp_path) == [4, 3]
    path = tmp_path / f"{name}-2.ckpt"
    want = torch.arange(C)[:, None].expand(C, 2).float()
    assert torch.equal(saved(path)[0][STORE], CUT * want)
    assert gloo(3, stored, name, tmp_path, path) == [3, 2, 2]
    assert torch.equal(saved(tmp_path / f"{name}-3.ckpt")[0][STORE], 2 * CUT * want)


def refused(rank, world_size, name, optim, options, match):
    run = made(dtype=torch.float32)
    run.optim = optim
    with pytest.raises(ValueError, match=match) as error:
        train(run, world_size, name, data=data(), **options)
    return str(error.value)


def test_what_would_take_rows_for_the_whole_is_refused(gloo):
    (text,) = gloo(1, refused, "ddp", Timm("lamb"), {}, "needs whole tensors")
    assert text.startswith("optim names timm's lamb") and NAME in text


@pytest.mark.soak
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_zero_is_refused(gloo, name):
    for text in gloo(2, refused, name, AdamW(), {}, "would take for copies"):
        assert NAME in text and "trainer.strategy=ddp or fsdp2" in text
