"""Pretraining resumes bit for bit, refuses what cannot work, and never loses its last good checkpoint."""

import numpy as np
import pandas as pd
import pytest
import torch

import bonehisto.pretrain as module
from bonehisto.encoder import create_encoder, load_encoder
from bonehisto.files import UserError
from bonehisto.pretrain import checkpoint_settings, pretrain, pretraining_rows
from bonehisto.views import Augmentation, make_views, view_generator

SMALL = dict(steps=8, batch=6, n_local=2, global_px=32, local_px=16, projector_width=32, n_directions=32, checkpoint_every=3, rank_every=2, device="cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiles():
    yy, xx = np.mgrid[:64, :64]
    waves = [128 + 100 * np.sin((xx * np.cos(a) + yy * np.sin(a)) / (2 + k % 5)) for k, a in enumerate(np.linspace(0, 3, 20))]
    return np.stack([np.stack([w, w[::-1], 20 * (k % 9) + 0 * w], -1) for k, w in enumerate(waves)]).astype(np.uint8)


def weights(encoder):
    return {k: v.clone() for k, v in encoder.vit.state_dict().items()}


class Killed(BaseException):
    """Stands for the process being stopped from outside."""


def test_a_stopped_run_goes_on_as_if_undisturbed(tiles, tmp_path, monkeypatch):
    """Killed in step 5, after the checkpoint of step 3: weights, log and projector end up the same, bit for bit."""
    whole, whole_log = pretrain(tiles, tmp_path / "whole", **SMALL)

    step = module.train_step
    def killed(training, images, k, *args, **kwargs):
        if k == 5:
            raise Killed
        return step(training, images, k, *args, **kwargs)
    monkeypatch.setattr(module, "train_step", killed)
    with pytest.raises(Killed):
        pretrain(tiles, tmp_path / "cut", **SMALL)
    monkeypatch.setattr(module, "train_step", step)
    torch.manual_seed(12345)  # whatever state the new process is in
    seen = []
    monkeypatch.setattr(module, "train_step", lambda t, i, k, *a, **kw: (seen.append(k), step(t, i, k, *a, **kw))[1])
    again, again_log = pretrain(tiles, tmp_path / "cut", **SMALL)

    assert seen == [3, 4, 5, 6, 7]
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())
    timeless = [c for c in whole_log if c != "images_per_s"]
    pd.testing.assert_frame_equal(whole_log[timeless], again_log[timeless], check_exact=True)
    from safetensors.torch import load_file
    a, b = (load_file(tmp_path / n / "checkpoints" / "pretrain_state.safetensors") for n in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if k != "log")


def test_files_of_a_finished_run_are_complete(tiles, tmp_path, capsys):
    encoder, log = pretrain(tiles, tmp_path, **SMALL)
    assert "lambda 0.5" in capsys.readouterr().out  # auto = min(0.5, 10 / 6)
    stored = load_encoder(tmp_path / "checkpoints" / "encoder.safetensors")
    assert all(torch.equal(v, weights(stored)[k]) for k, v in weights(encoder).items())
    assert stored.extra["step"] == 8 and stored.extra["lam"] == .5 and stored.extra["seed"] == 0
    table = pd.read_csv(tmp_path / "tables" / "pretrain_log.csv")
    assert table["step"].tolist() == list(range(8))
    for column in ("loss", "invariance", "sigreg_ratio", "grad_norm", "learning_rate", "images_per_s"):
        assert np.isfinite(table[column]).all() and (table[column] > 0).all(), column
    assert table["rank_backbone"].notna().tolist() == [True, False] * 3 + [True, True]
    assert not any(p.name.startswith(".") for p in tmp_path.rglob("*"))


def test_a_finished_run_is_not_trained_again_and_other_settings_begin_anew(tiles, tmp_path, capsys, monkeypatch):
    first, _ = pretrain(tiles, tmp_path, **SMALL)
    step, seen = module.train_step, []
    monkeypatch.setattr(module, "train_step", lambda t, i, k, *a, **kw: (seen.append(k), step(t, i, k, *a, **kw))[1])
    pretrain(tiles, tmp_path, **SMALL)
    assert seen == []
    pretrain(tiles, tmp_path, **{**SMALL, "lr": 1e-4})
    assert seen == list(range(8)) and "(lr): begins anew" in capsys.readouterr().out
    del seen[:]
    pretrain(tiles[::-1], tmp_path, **{**SMALL, "lr": 1e-4})
    assert seen == list(range(8)), "other tiles under the same settings are another run"


def test_seed_decides_everything(tiles, tmp_path):
    a, _ = pretrain(tiles, tmp_path / "a", **{**SMALL, "steps": 2})
    torch.manual_seed(77)
    b, _ = pretrain(tiles, tmp_path / "b", **{**SMALL, "steps": 2})
    c, _ = pretrain(tiles, tmp_path / "c", **{**SMALL, "steps": 2, "seed": 1})
    assert all(torch.equal(v, weights(b)[k]) for k, v in weights(a).items())
    assert not torch.equal(weights(a)["patch_embed.proj.weight"], weights(c)["patch_embed.proj.weight"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tiles, tmp_path, monkeypatch, bad):
    loss = module.lejepa_loss
    calls = []
    def spoiled(*args):
        value, parts = loss(*args)
        calls.append(1)
        return (value * bad, parts) if len(calls) == 6 else (value, parts)
    monkeypatch.setattr(module, "lejepa_loss", spoiled)
    with pytest.raises(UserError, match=r"stopped at step 5: loss (nan|inf).*lower pretrain\.lr.*checkpoint of step 3 is kept"):
        pretrain(tiles, tmp_path, **SMALL)
    kept = load_encoder(tmp_path / "checkpoints" / "encoder.safetensors")
    assert kept.extra["step"] == 3 and all(v.isfinite().all() for v in weights(kept).values())


def test_training_learns(tiles, tmp_path):
    """The loss falls, and the encoder is not the one it began with."""
    encoder, log = pretrain(tiles, tmp_path, **{**SMALL, "steps": 40, "lr": 1e-3, "checkpoint_every": 40})
    assert log["loss"].tail(8).mean() < .8 * log["loss"].head(4).mean()
    assert not torch.equal(weights(encoder)["blocks.0.mlp.fc1.weight"], weights(create_encoder("micro"))["blocks.0.mlp.fc1.weight"])


def test_only_chosen_rows_are_read(tiles, tmp_path):
    class Watched(np.ndarray):
        read = set()
        def __getitem__(self, k):
            Watched.read |= set(np.ravel(k).tolist())
            return np.asarray(super().__getitem__(k))
    rows = np.arange(2, 20, 2)
    pretrain(tiles.view(Watched), tmp_path, rows=rows, **{**SMALL, "steps": 4})
    assert Watched.read <= set(rows.tolist())


@pytest.mark.parametrize("change, message", [
    (dict(batch=21), r"pretrain\.batch is 21, and there are 20 tiles"),
    (dict(batch=1), r"pretrain\.batch is 1"),
    (dict(global_px=40), r"pretrain\.global_px is 40: the 16 px patch of `micro` does not divide it"),
    (dict(local_px=96, preset="small"), r"pretrain\.local_px is 96: the 14 px patch of `small`.* 98 would do"),
    (dict(n_global=1, n_local=0), "two views in all"),
    (dict(steps=0), r"pretrain\.steps is 0"),
    (dict(lam="much"), r"pretrain\.lam is .much.: expected auto"),
    (dict(preset="tini"), "did you mean `tiny`"),
    (dict(rows=[]), "no tile to pretrain on"),
])
def test_settings_that_cannot_work_are_named_before_anything_is_written(tiles, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        pretrain(tiles, tmp_path / "run", **{**SMALL, **change})
    assert not (tmp_path / "run").exists()


def test_a_damaged_state_is_no_obstacle(tiles, tmp_path):
    pretrain(tiles, tmp_path, **{**SMALL, "steps": 3})
    state = tmp_path / "checkpoints" / "pretrain_state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    assert checkpoint_settings(state) is None
    _, log = pretrain(tiles, tmp_path, **{**SMALL, "steps": 3})
    assert len(log) == 3 and checkpoint_settings(state)["steps"] == 3


def test_blank_tiles_and_test_subjects_stay_out():
    table = pd.DataFrame({"blank": [False, True, False, False], "split": ["train", "train", "test", "val"]})
    assert pretraining_rows(table).tolist() == [0, 3]
    with pytest.raises(UserError, match="no tile to pretrain on: 4 tiles, 1 of them blank"):
        pretraining_rows(table, ["holdout"])


def test_views_keep_colour_order_and_never_leave_the_range():
    """Osteoid redder than bone stays redder: hue moves too little to swap channels; flips and turns move pixels only."""
    tile = torch.zeros(40, 64, 64, 3, dtype=torch.uint8)
    tile[..., 0], tile[..., 1], tile[..., 2] = 200, 120, 60
    big, small = make_views(tile, view_generator(0, 0), 2, 3, 32, 16, aug=Augmentation())
    for views in (big, small):
        means = views.mean((-1, -2))
        assert 0 <= views.min() and views.max() <= 1
        assert (means[:, :, 0] > means[:, :, 1] + .1).all() and (means[:, :, 1] > means[:, :, 2] + .05).all()
