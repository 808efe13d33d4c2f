"""SIGReg and the LeJEPA loss against stored reference values, known expectations, and two processes."""
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

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
    x = torch.from_numpy(vectors[f"x_{case}"]).requires_grad_()
    stat = sigreg_statistic(x, torch.from_numpy(vectors["directions"]))
    np.testing.assert_allclose(stat.detach().numpy(), vectors[f"stat_{case}"], rtol=1e-4, atol=1e-5)
    stat.mean().backward()
    np.testing.assert_allclose(x.grad.numpy(), vectors[f"grad_{case}"], rtol=0, atol=1e-6)


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


def test_blocks_do_not_change_the_result():
    x, a = torch.randn(50, 12, dtype=torch.float64), directions_at(0, 3, 12, 300)
    assert torch.allclose(sigreg_statistic(x, a), sigreg_statistic(x, a, block=1000), rtol=1e-12)


def test_reduced_precision_around_it_changes_nothing():
    """Under bfloat16 autocast the statistic is the float32 one."""
    x, a = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)), directions_at(0, 0, 16, 64)
    plain = sigreg_statistic(x, a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sigreg_statistic(x, a)
        half, _ = lejepa_loss(x.bfloat16()[None], 1, a, .5)
    assert inside.dtype == half.dtype == torch.float32 and torch.equal(inside, plain)
    assert sigreg_statistic(x.double(), a).dtype == torch.float64


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


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()


def _rank(rank, world, x, a, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.set_num_threads(1)
    net = nn.parallel.DistributedDataParallel(_net())
    own = x.chunk(world, dim=1)[rank]
    loss, parts = lejepa_loss(net(own), 2, a, .4)
    loss.backward()
    torch.save({"sigreg": parts["sigreg"], "grads": [p.grad for p in net.parameters()]}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    """Value in every process and parameter gradients after averaging equal those of one process with the whole batch."""
    x = torch.randn(3, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a = directions_at(0, 0, 5, 40)
    mp.spawn(_rank, (2, x, a, str(tmp_path)), nprocs=2)
    net = _net()
    loss, parts = lejepa_loss(net(x), 2, a, .4)
    loss.backward()
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert got["sigreg"].item() == pytest.approx(parts["sigreg"].item(), rel=1e-6)
        for g, p in zip(got["grads"], net.parameters()):
            torch.testing.assert_close(g, p.grad, rtol=1e-6, atol=1e-10)
