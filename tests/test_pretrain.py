"""Pretraining resumes bit for bit, refuses what cannot work, and never loses its last good checkpoint."""

import numpy as np
import pandas as pd
import pytest
import torch

import bonehisto.pretrain as module
import bonehisto.train_step as step_module
from bonehisto.collapse import pretraining_verdict
from bonehisto.device import has_bfloat16
from bonehisto.encoder import create_encoder, load_encoder
from bonehisto.files import UserError
from bonehisto.pretrain import pretrain
from bonehisto.tile_store import pretraining_rows
from bonehisto.training import checkpoint_settings
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
    for column in ("rank_projection", "rank_backbone", "spread_projection", "spread_least"):
        assert table[column].notna().tolist() == [True, False] * 3 + [True, True] and (table[column].dropna() > 0).all(), column
    assert table["epoch"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]  # three batches of 6 are in 20 tiles
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
    loss = step_module.lejepa_loss
    calls = []
    def spoiled(*args):
        value, parts = loss(*args)
        calls.append(1)
        return (value * bad, parts) if len(calls) == 6 else (value, parts)
    monkeypatch.setattr(step_module, "lejepa_loss", spoiled)
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
    (dict(batch="some"), r"pretrain\.batch is .some.: expected a number of images, or auto"),
    (dict(accumulate=0), r"pretrain\.accumulate is 0: give at least 1"),
    (dict(global_scale=(.5, 1.5)), r"pretrain\.global_scale is \[0\.5, 1\.5\]"),
    (dict(augmentation={"heu": .1}), r"pretrain\.augmentation has no `heu`: did you mean `hue`"),
    (dict(augmentation={"hue": "little"}), r"pretrain\.augmentation\.hue is .little.: expected a number"),
    (dict(precision="bfloat"), r"pretrain\.precision is `bfloat`: did you mean `bfloat16`"),
    (dict(freeze=7), r"pretrain\.freeze is 7: encoder `micro` has 6 blocks"),
    (dict(freeze=["block.0"]), r"pretrain\.freeze names `block\.0`.*did you mean `blocks\.0`"),
    (dict(weights="bonehisto", preset="small", global_px=28, local_px=14), r"no weights ship for encoder `small`"),
    (dict(weights="dinov2"), r"weights dinov2 have the shape of encoder `small`, not `micro`"),
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


def test_accumulated_gradients_do_not_enlarge_what_sigreg_sees(tiles, tmp_path, capsys):
    """Two batches an update: twice the images are read, lambda stays that of one batch, and the log says so."""
    _, log = pretrain(tiles, tmp_path, **{**SMALL, "accumulate": 2, "steps": 3, "batch": 4})
    assert "lambda 0.5 (lambda N = 2)" in (said := capsys.readouterr().out) and "gradients of 2 batches an update (SIGReg's N stays 4)" in said
    assert log["epoch"].tolist() == [0, 0, 0] and len(log) == 3  # five batches of 4 in an epoch


def test_accumulated_steps_resume_bit_for_bit(tiles, tmp_path):
    """Stopped after step 2 of 4 (by `minutes`), then finished."""
    settings = {**SMALL, "accumulate": 2, "steps": 4, "batch": 4, "checkpoint_every": 2}
    whole, _ = pretrain(tiles, tmp_path / "whole", **settings)
    _, part = pretrain(tiles, tmp_path / "cut", **settings, minutes=0)
    assert len(part) == 1
    again, log = pretrain(tiles, tmp_path / "cut", **settings)
    assert len(log) == 4 and all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())


def test_batch_auto_fits_memory_and_data_and_is_kept_on_resuming(tiles, tmp_path, monkeypatch):
    auto = {**SMALL, "batch": "auto", "steps": 2}
    pretrain(tiles, tmp_path / "roomy", **auto)
    assert checkpoint_settings(tmp_path / "roomy/checkpoints/pretrain_state.safetensors")["batch"] == 16  # the largest that 20 tiles give
    each, fixed = step_module.step_memory(module.begin_training(module.Recipe(**{k: v for k, v in SMALL.items() if k in module.Recipe.__dataclass_fields__}), 16, torch.device("cpu")), module.Recipe(n_local=2, global_px=32, local_px=16).views(), side=64)
    monkeypatch.setattr(step_module, "free_memory", lambda device: (7 * each + fixed) / .6)
    pretrain(tiles, tmp_path / "tight", **auto)
    assert checkpoint_settings(tmp_path / "tight/checkpoints/pretrain_state.safetensors")["batch"] == 6
    _, log = pretrain(tiles, tmp_path / "roomy", **auto)
    assert checkpoint_settings(tmp_path / "roomy/checkpoints/pretrain_state.safetensors")["batch"] == 16 and len(log) == 2, "less memory later is no reason to begin anew"
    monkeypatch.setattr(step_module, "free_memory", lambda device: fixed)
    with pytest.raises(UserError, match="not even two images fit"): pretrain(tiles, tmp_path / "none", **auto)


def test_memory_that_runs_out_names_a_batch_that_would_fit(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 2**28)
    def full(*args, **kwargs): raise torch.OutOfMemoryError("out of memory")
    monkeypatch.setattr(module, "train_step", full)
    with pytest.raises(UserError, match=r"out of memory with pretrain\.batch 20: 0\.2 GiB were free, an image takes about \d+ MiB: (a batch of \d+ would fit|make the views smaller)"):
        pretrain(tiles, tmp_path, **{**SMALL, "batch": 20})


def test_bfloat16_where_there_is_none_falls_back_and_says_so(tiles, tmp_path, capsys):
    pretrain(tiles, tmp_path, **{**SMALL, "steps": 1, "precision": "bfloat16"})
    said = capsys.readouterr().out
    assert ("bfloat16 was asked for, and this cpu has none: goes on in float32" in said) != has_bfloat16(torch.device("cpu"))


def test_frozen_parts_stand_still(tiles, tmp_path):
    begun = weights(create_encoder("micro"))
    encoder, _ = pretrain(tiles, tmp_path, **{**SMALL, "steps": 2, "freeze": 2, "lr": 1e-2})
    moved = {k for k, v in weights(encoder).items() if not torch.equal(v, begun[k])}
    still = ("patch_embed", "pos_embed", "cls_token", "reg_token", "blocks.0.", "blocks.1.")
    assert moved and not any(k.startswith(still) for k in moved) and any(k.startswith("blocks.2.") for k in moved)


def test_adapters_train_attention_alone_resume_and_end_up_in_the_weights(tiles, tmp_path):
    pytest.importorskip("peft", reason="the package peft is an optional extra: pip install 'bonehisto[lora]'")
    begun, settings = weights(create_encoder("micro")), {**SMALL, "steps": 4, "lora_rank": 2, "lr": 1e-2, "checkpoint_every": 2}
    whole, _ = pretrain(tiles, tmp_path / "whole", **settings)
    moved = {k for k, v in weights(whole).items() if not torch.equal(v, begun[k])}
    assert moved and all(k.endswith(("attn.qkv.weight", "attn.proj.weight")) for k in moved)
    pretrain(tiles, tmp_path / "cut", **settings, minutes=0)
    again, _ = pretrain(tiles, tmp_path / "cut", **settings)
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())
    stored = load_encoder(tmp_path / "whole/checkpoints/encoder.safetensors")  # as any encoder
    assert all(torch.equal(v, weights(whole)[k]) for k, v in weights(stored).items())


def test_a_collapse_is_said_in_words(tiles, tmp_path):
    """Without SIGReg the projections shrink to a point; with it they do not."""
    settings = {**SMALL, "steps": 60, "lr": 2e-3, "batch": 16, "n_local": 1, "checkpoint_every": 60}
    (bad, words), (good, _) = (pretraining_verdict(pretrain(tiles, tmp_path / str(lam), **{**settings, "lam": lam})[1], 64, 16) for lam in (0., .4))
    assert bad == "collapsed" and good != "collapsed" and words


def test_epochs_are_told_from_the_first_weights_to_the_last(tiles, tmp_path):
    seen, steps = [], []
    pretrain(tiles, tmp_path, **SMALL, on_epoch=lambda encoder, epoch: seen.append(epoch), on_step=lambda log: steps.append(len(log())))
    assert seen == [0, 1, 2, 3] and steps == list(range(1, 9))


def test_a_batch_is_drawn_whole_whoever_renders_it():
    """The rows of a batch that one process renders are those of the whole batch."""
    tile = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    quiet = dict(n_global=2, n_local=1, global_px=32, local_px=16, aug=Augmentation(noise_share=0))
    whole = make_views(tile, view_generator(0, 3), **quiet)
    for part in (slice(0, 4), slice(4, 8)):
        for a, b in zip(whole, make_views(tile[part], view_generator(0, 3), batch=8, part=part, **quiet)): torch.testing.assert_close(a[:, part], b)


def test_limits_draw_tiles_of_a_modality_by_seed():
    table = pd.DataFrame({"blank": False, "modality": ["brightfield"] * 30 + ["fluorescence"] * 10 + [""] * 5})
    rows = pretraining_rows(table, None, {"brightfield": 8, "fluorescence": 2})
    assert [(rows < 30).sum(), ((rows >= 30) & (rows < 40)).sum(), (rows >= 40).sum()] == [8, 2, 5]
    assert rows.tolist() == pretraining_rows(table, None, {"brightfield": 8, "fluorescence": 2}).tolist() != pretraining_rows(table, None, {"brightfield": 8, "fluorescence": 2}, seed=1).tolist()
    with pytest.raises(UserError, match=r"pretrain\.limit asks for 11 tiles of fluorescence, and 10 are there"): pretraining_rows(table, None, {"fluorescence": 11})
