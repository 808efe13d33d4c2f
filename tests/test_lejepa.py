"""SIGReg and the LeJEPA loss against stored reference values and known expectations; two processes: test_ranks.py."""
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bonehisto.lejepa import directions_at, effective_rank, lejepa_loss, sigreg, sigreg_statistic

CASES = ["normal", "scaled3", "shift1", "zeros"]


@pytest.fixture(scope="module")
def vectors():
    from conftest import SHARED
    path = SHARED / "vectors" / "lejepa_vectors.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here: reference values are not part of the repository")
    return np.load(path)


@pytest.mark.parametrize("case", CASES)
def test_statistic_and_gradient_are_the_published_ones(vectors, case):
    """In float32, also inside bfloat16 autocast, and in float64; whatever the block, down to single directions."""
    directions = torch.from_numpy(vectors["directions"])
    np.testing.assert_allclose(sigreg_statistic(torch.from_numpy(vectors[f"x_{case}"]), directions), vectors[f"stat_{case}"], rtol=1e-4, atol=1e-5)
    for dtype, reduced, block in ((torch.float32, False, None), (torch.float32, True, 5), (torch.float64, True, 1), (torch.float64, False, 1000)):
        x = torch.from_numpy(vectors[f"x_{case}"]).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=reduced): value = sigreg(x, directions, block)
        value.backward()
        assert value.dtype == dtype and x.grad.dtype == dtype
        assert value.item() == pytest.approx(vectors[f"stat_{case}"].mean(), rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(x.grad, vectors[f"grad_{case}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_each_direction_of_the_fast_version_is_the_published_statistic(vectors, case):
    x, directions = torch.from_numpy(vectors[f"x_{case}"]), torch.from_numpy(vectors["directions"])
    each = [sigreg(x, directions[:, m:m + 1]) for m in range(directions.shape[1])]
    np.testing.assert_allclose(torch.stack(each), vectors[f"stat_{case}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_value_of_views_is_the_mean_of_their_values(vectors, case):
    x, a = torch.from_numpy(vectors[f"x_{case}"]), torch.from_numpy(vectors["directions"])
    normal = torch.from_numpy(vectors["x_normal"])
    both = sigreg(torch.stack([x, normal]), a)
    assert torch.isclose(both, (sigreg(x, a) + sigreg(normal, a)) / 2, rtol=1e-6)


@pytest.mark.parametrize("n, d", [(16, 4), (64, 32), (500, 8)])
def test_gaussian_expectation_does_not_hang_on_batch_or_width(n, d):
    g = torch.Generator().manual_seed(n)
    values = [sigreg(torch.randn(n, d, generator=g, dtype=torch.float64), directions_at(1, k, d, 64)) for k in range(200)]
    mean, error = torch.stack(values).mean(), torch.stack(values).std() / 200 ** .5
    assert abs(mean - 1.0525) < 4 * error and error < .05


@pytest.mark.parametrize("n", [1, 7, 300])
def test_points_at_the_origin_give_0_40205_n_and_exactly_no_gradient(n):
    z = torch.zeros(n, 16, requires_grad=True)
    value = sigreg(z, directions_at(0, 0, 16))
    value.backward()
    assert value.item() == pytest.approx(.40205 * n, rel=2e-5) and (z.grad == 0).all()


@pytest.mark.parametrize("block", [1, 7, 128, 1000])
def test_blocks_do_not_change_value_or_gradient(block):
    g = torch.Generator().manual_seed(5)
    x, a = torch.randn(3, 50, 12, dtype=torch.float64, generator=g).requires_grad_(), directions_at(0, 3, 12, 300)
    plain = torch.stack([sigreg_statistic(view, a).mean() for view in x]).mean()
    wanted, = torch.autograd.grad(plain, x)
    value = sigreg(x, a, block)
    torch.testing.assert_close(value, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(3 * value, x)[0], 3 * wanted, rtol=1e-10, atol=1e-14)


def test_bfloat16_projections_are_computed_in_float32():
    x, a = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_(), directions_at(0, 0, 16, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16): loss, parts = lejepa_loss(x, 1, a, .5)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.equal(parts["sigreg"], sigreg(x.detach().float(), a)) and x.grad.dtype == torch.bfloat16


class Largest(TorchDispatchMode):
    """Remembers the most elements that any result had, and all of those that autograd kept."""
    most = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor): self.most = max(self.most, x.numel())
        return out


def test_the_whole_array_of_directions_is_never_held():
    """No array of N x M x 17 elements arises, and the backward pass is given no more than one the size of the projections."""
    views, n, dim, m = 2, 96, 8, 1024
    z, kept = torch.randn(views, n, dim).requires_grad_(), []
    with Largest() as seen, torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        sigreg(z, directions_at(0, 0, dim, m)).backward()
    assert seen.most < n * m * 17 / 4 and sum(kept) <= views * n * dim


def test_gradient_is_the_derivative():
    z = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    a = directions_at(0, 0, 3, 5).double()
    assert torch.autograd.gradcheck(lambda z: lejepa_loss(z, 1, a, .3)[0], z)


def test_centre_is_the_mean_of_global_views_alone_and_carries_gradient():
    z = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    loss, parts = lejepa_loss(z, 2, directions_at(0, 0, 4, 8), 0.)
    mu = (z[0] + z[1]) / 2
    assert torch.isclose(loss, ((z - mu) ** 2).mean()) and torch.isclose(parts["invariance"], loss)
    loss.backward()
    expected = torch.autograd.grad(((z - (z[0] + z[1]) / 2) ** 2).mean(), z)[0]
    assert torch.allclose(z.grad, expected)


def test_directions_are_unit_and_follow_from_seed_and_step():
    a = directions_at(3, 11, 24, 100)
    assert a.shape == (24, 100) and torch.allclose(a.norm(dim=0), torch.ones(100), atol=1e-6)
    torch.manual_seed(9)  # whatever state the caller is in
    assert torch.equal(a, directions_at(3, 11, 24, 100))
    assert not torch.equal(a, directions_at(3, 12, 24, 100)) and not torch.equal(a, directions_at(4, 11, 24, 100))


def test_effective_rank_counts_dimensions():
    g = torch.Generator().manual_seed(0)
    round_cloud = torch.randn(4000, 10, generator=g)
    assert effective_rank(round_cloud) == pytest.approx(10, abs=.05)
    assert effective_rank(torch.randn(100, 1, generator=g) * torch.ones(1, 10)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(8, 4)) == 0
