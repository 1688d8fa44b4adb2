"""Cluster discrimination: parts of the clusters, samples without one, what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from counterpoint.losses.distillation.cluster_discrimination import ArcMargin, ClusterDiscrimination
from counterpoint.losses.distillation.sharded_clusters import ShardedClusters
from counterpoint.losses.scalars import Fixed


def batch_of(b=8, num_clusters=40):
    g = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(b, 5, generator=g), dim=1).requires_grad_()
    return {"image": rows}, {"clusters.id": torch.randint(num_clusters, (b,), generator=g)}


def slope_of(value, tensor):
    """Sizes of the derivatives."""
    return torch.autograd.grad(value, tensor)[0].abs()


def test_a_part_of_the_clusters_is_drawn_by_step_and_the_own_always_counts():
    torch.manual_seed(0)
    features, batch = batch_of()
    # At the usual 64 a sample may be so near to its own prototype that the slope is 0.
    term = ClusterDiscrimination(40, 5, rate=0.25, scale=Fixed(16.0))
    drawn = []
    for _ in range(3):
        value = term(features, batch)["clusters"]
        touched = set(torch.nonzero(slope_of(value, term.prototypes).sum(1))[:, 0].tolist())
        part = set(term._compared().tolist())
        assert len(part) == 10 and touched <= part | set(batch["clusters.id"].tolist())
        assert set(batch["clusters.id"].tolist()) <= touched
        logits = 16 * features["image"] @ F.normalize(term.prototypes, dim=1).T
        want = 0.0
        for row, own in zip(logits, batch["clusters.id"].tolist(), strict=True):
            kept = sorted({own} | part)
            want += F.cross_entropy(row[kept][None], torch.tensor([kept.index(own)])) / 8
        torch.testing.assert_close(value, want)
        drawn.append(part)
    assert drawn[0] != drawn[1] != drawn[2]
    again = ClusterDiscrimination(40, 5, rate=0.25, scale=Fixed(16.0))
    again.load_state_dict(term.state_dict())
    torch.testing.assert_close(
        again(features, batch)["clusters"], term(features, batch)["clusters"], rtol=0, atol=0
    )


def test_no_sample_with_a_cluster_and_no_sample_at_all():
    features, batch = batch_of()
    term = ClusterDiscrimination(40, 5)
    for f, b in (
        (features, {"clusters.id": torch.full((8,), -1)}),
        ({"image": features["image"][:0]}, {"clusters.id": batch["clusters.id"][:0]}),
    ):
        value = term(f, b)["clusters"]
        assert value == 0 and slope_of(value, term.prototypes).sum() == 0


def test_one_cluster_and_rows_on_their_prototype_are_finite():
    term = ClusterDiscrimination(3, 5, margin=ArcMargin())
    own = F.normalize(term.prototypes.detach(), dim=1)
    features = {"image": torch.cat([own, -own]).requires_grad_()}
    value = term(features, {"clusters.id": torch.tensor([0, 1, 2, 0, 1, 2])})["clusters"]
    assert value.isfinite() and slope_of(value, features["image"]).isfinite().all()
    alone = ClusterDiscrimination(1, 5)
    assert alone({"image": own}, {"clusters.id": torch.zeros(3)})["clusters"] == 0


@pytest.mark.parametrize("kind", [ClusterDiscrimination, ShardedClusters])
def test_prototypes_start_from_stored_centres_and_a_checkpoint_needs_none(tmp_path, kind):
    features, batch = batch_of()
    file = tmp_path / "centres.safetensors"
    centres = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    save_file({"centres": 3 * centres}, file)
    term = kind(40, 5, centres=str(file), scale=Fixed(16.0))
    want = centres / centres.norm(dim=1, keepdim=True)
    torch.testing.assert_close(term.prototypes.detach(), want)
    assert term.prototypes.requires_grad and type(term.prototypes) is type(kind(40, 5).prototypes)
    value = term(features, batch)["clusters"]
    own = F.cross_entropy(16 * features["image"] @ want.T, batch["clusters.id"])
    torch.testing.assert_close(value, own)
    with pytest.raises(ValueError, match=r"has 40 centres of 5 numbers, .* 40 of width 6: set"):
        kind(40, 6, centres=str(file))
    file.unlink()
    lost = kind(40, 5, centres=str(file), scale=Fixed(16.0))
    with pytest.raises(ValueError, match=r"are not there.*counterpoint cluster.*remove `centres`"):
        lost(features, batch)
    lost.load_state_dict(term.state_dict())
    torch.testing.assert_close(lost(features, batch)["clusters"], value)
    file.write_text("no tensors")
    with pytest.raises(ValueError, match="holds no centres of clusters"):
        kind(40, 5, centres=str(file))


def test_what_cannot_work_is_refused():
    features, batch = batch_of()
    with pytest.raises(
        ValueError, match=r"names cluster \d+, the first being 0, of num_clusters=3"
    ):
        ClusterDiscrimination(3, 5)(features, batch)
    for term in (ClusterDiscrimination(3, 7), ShardedClusters(3, 7)):
        with pytest.raises(ValueError, match=r"'image' has 5 numbers a sample .* width to 5"):
            term(features, {"clusters.id": batch["clusters.id"] % 3})
    with pytest.raises(ValueError, match="rate=0 above 0"):
        ClusterDiscrimination(3, 5, rate=0)


def sharded(rank, world_size):
    """What is said of too few clusters, and of rows that were not cut for these ranks."""
    term = ShardedClusters(7, 5)
    own = term.prototypes.detach().clone()
    features, batch = batch_of(num_clusters=7)
    with pytest.raises(ValueError, match=r"^1 rows cannot be cut over 2 ranks: .*\.ClusterDiscr"):
        ShardedClusters(1, 5)
    term.prototypes.data = torch.ones(7, 5)
    with pytest.raises(ValueError, match=r"7 of 7 rows are kept here, but rank \d of 2 has"):
        term(features, batch)
    return own


def test_prototypes_cut_over_ranks_are_those_of_one_process(gloo):
    torch.manual_seed(5)  # what was drawn before does not matter
    whole = ShardedClusters(7, 5).prototypes
    parts = gloo(2, sharded)
    assert [len(part) for part in parts] == [4, 3]
    assert torch.equal(torch.cat(parts), whole)


def test_a_cluster_that_no_rank_has_is_an_error_at_any_step():
    features, batch = batch_of(num_clusters=7)
    term = ShardedClusters(7, 5)
    assert term(features, batch)["clusters"] > 0
    with pytest.raises(RuntimeError, match="names a cluster that does not exist"):
        term(features, {"clusters.id": torch.full((8,), 7)})
