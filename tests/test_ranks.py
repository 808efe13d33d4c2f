"""Several processes train as one: loss, batch norm and gradients of two, a whole run of two, and a mistake in one of them."""
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from bonehisto.lejepa import directions_at, lejepa_loss
from bonehisto.ranks import RankBatchNorm, from_first, largest_over_ranks, share

DIRECTIONS = directions_at(0, 0, 5, 40)
WHOLE = torch.randn(3, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + torch.arange(6)  # (views, images, features)


def network(norm=RankBatchNorm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), norm(8), nn.Tanh(), nn.Linear(8, 5)).double()


def train_once(net, x):
    """Loss and its parts of views (V, n, 6); the norm runs over all views together."""
    loss, parts = lejepa_loss(net(x.flatten(0, 1)).view(*x.shape[:2], -1), 2, DIRECTIONS, .4)
    loss.backward()
    return {"loss": loss.detach(), **parts}


def one_of_two(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.set_num_threads(1)
    net = network()
    said = train_once(nn.parallel.DistributedDataParallel(net, broadcast_buffers=False), WHOLE[:, share(WHOLE.shape[1])])
    torch.save({**said, "gradients": [p.grad for p in net.parameters()], "norm": [net[1].running_mean, net[1].running_var],
                "largest": largest_over_ranks(10 + rank, torch.device("cpu")), "first": from_first(f"of rank {rank}")}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_of_two, (2, str(folder)), nprocs=2)
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(2)]


@pytest.fixture(scope="module")
def one():
    net = network(nn.BatchNorm1d)
    return {**train_once(net, WHOLE), "gradients": [p.grad for p in net.parameters()], "norm": [net[1].running_mean, net[1].running_var]}


@pytest.mark.parametrize("part", ["loss", "invariance", "sigreg", "sigreg_ratio"])
def test_every_process_gets_the_value_of_the_whole_batch(one, two, part):
    for got in two: assert got[part].item() == pytest.approx(one[part].item(), rel=1e-6)


def test_averaged_gradients_are_those_of_one_process(one, two):
    for got in two:
        for g, wanted in zip(got["gradients"], one["gradients"], strict=True): torch.testing.assert_close(g, wanted, rtol=1e-6, atol=1e-10)


def test_the_norm_sees_the_whole_batch(one, two):
    """Also what it remembers for evaluation is torch's own."""
    for got in two:
        for g, wanted in zip(got["norm"], one["norm"], strict=True): torch.testing.assert_close(g, wanted, rtol=1e-6, atol=1e-10)


def test_processes_agree_on_the_largest_and_hear_the_first(two):
    assert [g["largest"] for g in two] == [11, 11] and [g["first"] for g in two] == ["of rank 0"] * 2


SMALL = dict(steps=3, batch=16, n_local=2, global_px=32, local_px=16, projector_width=32, n_directions=32, checkpoint_every=2, rank_every=1, drop_path=0., augmentation={"noise_share": 0})


@pytest.fixture
def tiled(tmp_path):
    """A run folder as the tile step leaves it."""
    from bonehisto.files import write_table
    tiles = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    write_table(tmp_path / "tables/tiles.parquet", pd.DataFrame({"blank": False, "split": "train", "modality": ["brightfield", "fluorescence"] * 20, "subject": [f"s{i // 4}" for i in range(40)], "tissue_fraction": 1.}))
    (tmp_path / "tiles").mkdir(); np.save(tmp_path / "tiles/tiles.npy", tiles)
    return tmp_path


def test_a_run_of_two_processes_is_the_run_of_one(tiled, tmp_path_factory):
    """The views of a batch are drawn for all of it; each process takes its rows."""
    from bonehisto.pretrain_run import launch_ranks, pretrain_study
    said = []
    launch_ranks(tiled, SMALL, 2, said.append)
    assert "2 processes" in said[0]
    log = pd.read_csv(tiled / "tables/pretrain_log.csv")
    assert log["step"].tolist() == [0, 1, 2] and (tiled / "features/pretrain_tokens.npz").exists()
    (tiled / "checkpoints").rename(tiled / "of_two")
    _, alone = pretrain_study(tiled, **SMALL, device="cpu")
    for column in ("loss", "invariance", "sigreg_ratio", "grad_norm"): np.testing.assert_allclose(log[column], alone[column], rtol=2e-4, err_msg=column)
    assert json.loads((tiled / "of_two/encoder.json").read_text())["extra"]["step"] == 3


def test_processes_of_one_machine_listen_on_it_alone(tmp_path):
    """They meet through a file; torch's own launcher would listen on every network."""
    code = "import psutil, torch.distributed as dist; from bonehisto.ranks import join_ranks; assert join_ranks() == 2; print('at', *(c.laddr.ip for c in psutil.Process().net_connections() if c.status == 'LISTEN'), flush=True); dist.barrier()"
    env = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "BONEHISTO_MEETING": str(tmp_path / "meeting"), "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    ranks = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env | {"RANK": str(k), "LOCAL_RANK": str(k)}) for k in range(2)]
    said = [p.communicate()[0].split() for p in ranks]
    assert [p.returncode for p in ranks] == [0, 0] and all(s[0] == "at" and set(s[1:]) <= {"127.0.0.1"} for s in said), said


def test_a_mistake_in_a_launched_process_reaches_the_one_who_launched(tiled):
    from bonehisto.files import UserError
    from bonehisto.pretrain_run import launch_ranks
    with pytest.raises(UserError, match=r"pretrain\.batch is 400, and there are 40 tiles"):
        launch_ranks(tiled, {**SMALL, "batch": 400}, 1)


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    import bonehisto.pretrain as module
    monkeypatch.setattr(module, "world_size", lambda: 2)
    with pytest.raises(module.UserError, match=r"pretrain\.batch is 15, and 2 processes share it: make it a multiple of 2"):
        module.check_recipe(module.Recipe(batch=15), np.zeros((40, 32, 32, 3), np.uint8), np.arange(40))


def test_the_command_trains_under_a_launcher(tmp_path):
    """Inventory and tiles by the first process, pretraining by both; a later run keeps the encoder, and the same command trains nothing."""
    env = {**os.environ, "BONEHISTO_THREADS": "1", "OMP_NUM_THREADS": "1"}
    def call(*args):
        done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout
    call("-m", "bonehisto", "phantom", "study", "--subjects", 6, "--rois", 1, "--size-px", 224)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]  # what `accelerate launch` does on GPUs
    train = ["-m", "bonehisto", "pretrain", "study/data_manifest.yaml", "--out", "run", "-p", "pretrain.steps=2", "-p", "pretrain.batch=8"]
    said = call(*launch, *train)
    assert "2 processes" in said and len(pd.read_csv(tmp_path / "run/tables/pretrain_log.csv")) == 2
    record = json.loads((tmp_path / "run/run.json").read_text())["steps"]
    assert record["pretrain"]["state"] == "done" and record["pretrain"]["outputs"]
    assert "Nothing to do" in call(*launch, *train) and "Nothing to do" in call(*train)
