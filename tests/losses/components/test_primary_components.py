"""Principal components of the batch: scikit-learn's, and gradients that stay finite."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional as F

from counterpoint.losses.components.primary_components import primary_components
from counterpoint.losses.primary_components import PrimaryComponents


def features(b, d):
    rows = torch.randn(b, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return F.normalize(rows, dim=1)


@pytest.mark.parametrize("kept", [1, 4, 6])
def test_values_are_those_of_scikit_learn(kept):
    rows = features(40, 6)
    pca = PCA(kept, svd_solver="full").fit(rows.numpy())
    wanted = torch.from_numpy(pca.inverse_transform(pca.transform(rows.numpy())))
    torch.testing.assert_close(primary_components(rows, kept), wanted)


def test_the_gradient_is_that_of_differences():
    rows = features(9, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: primary_components(x, 2), (rows,))


@pytest.mark.parametrize(("b", "d"), [(5, 8), (3, 3), (1, 4)])
def test_a_batch_with_fewer_samples_than_components_stays_as_it_is(b, d):
    rows = features(b, d).requires_grad_()
    found = primary_components(rows, 32)
    torch.testing.assert_close(found, rows)
    weights = features(b, d).flip(0)
    (grad,) = torch.autograd.grad((found * weights).sum(), rows)
    torch.testing.assert_close(grad, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_eigenvalues_tie(dtype):
    # Corners of an octahedron vary in all directions alike: which two stay is an accident.
    corners = torch.cat([torch.eye(3), -torch.eye(3)]).to(dtype).requires_grad_()
    found = primary_components(corners, 2)
    (grad,) = torch.autograd.grad((found * torch.arange(18.0).view(6, 3).to(dtype)).sum(), corners)
    assert grad.isfinite().all() and grad.abs().max() < 100


def test_ties_among_what_stays_do_not_disturb_the_gradient():
    def rows(scale):
        return torch.cat([torch.eye(3), -torch.eye(3)]).double() * torch.tensor([1.0, 1.0, scale])

    plane = rows(0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: primary_components(x, 2), (plane,))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="num_components=0"):
        PrimaryComponents(0)
    with pytest.raises(ValueError, match=r"smoothing=1\.5"):
        PrimaryComponents(smoothing=1.5)
