"Training, keeping and refusing heads."
import json

import numpy as np
import pandas as pd
import pytest
import torch

from bonehisto.encoder import create_encoder
from bonehisto.files import UserError
from bonehisto.fitting import Phase, fit_network, head_loss, near_borders, validation_dice
from bonehisto.heads import train_head
from bonehisto.labelled_tiles import IGNORE, cut_masks, cut_windows, draw_corners, draw_probability, even_rows, gather_labels, labelled_rows, make_batch, tile_mask
from bonehisto.tiling import tile_roi
from bonehisto.trained_head import Head, HeadNetwork, check_head, encoder_digest, pick_head

CLASSES = [{"id": i, "name": n, "colour": c} for i, (n, c) in enumerate((("ground", "#000000"), ("bone", "#00ff00"), ("label", "#ffff00")))]
COLOURS = np.array([[60, 60, 70], [40, 120, 60], [220, 230, 40]], np.uint8)


@pytest.fixture(scope="module")
def encoder(): return create_encoder("micro").eval()


@pytest.fixture(scope="module")
def study():
    "Six ROIs of six subjects, 240 x 300 px: stripes with a thin label, two of them for validation."
    rng, tiles, tables, masks = np.random.default_rng(0), [], [], {}
    for i in range(6):
        m = np.zeros((240, 300), np.uint8); m[30 + 12 * i:130 + 12 * i] = 1; m[130 + 12 * i:134 + 12 * i, 20:280] = 2
        image = COLOURS[m] + rng.integers(0, 15, (240, 300, 3), dtype=np.uint8)
        t, table = tile_roi(image)
        masks[f"R{i}"] = m; tiles.append(t)
        tables.append(table.assign(roi=f"R{i}", subject=f"S{i}", modality="fluorescence", split="train" if i < 4 else "val"))
    return np.concatenate(tiles), masks, pd.concat(tables, ignore_index=True)


SHORT = dict(steps=32, tune=.25, batch=2, looks=2, seed=3)


@pytest.fixture(scope="module")
def data(study): return gather_labels(*study, "fluorescence", CLASSES, val_tiles=6)


@pytest.fixture(scope="module")
def trained(encoder, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("head") / "head_fluorescence"
    head, log = train_head(encoder, data, out, **SHORT)
    return head, log, out


def weights(head): return {f"{k}.{n}": v for k in ("decoder", "tail") if getattr(head, k) is not None for n, v in getattr(head, k).state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_head_learns_and_weights_of_good_validation_are_kept(trained):
    head, log, _ = trained
    kept = log.set_index("step")["val_dice"][head.facts["best_step"]]
    assert head.facts["val_dice"] == kept > log["val_dice"].max() - .01 and kept > .5
    assert len(head.least_px) == 3 and head.least_px[2] == 100  # no label piece is smaller than a line
    assert head.facts["train_subjects"] == ["S0", "S1", "S2", "S3"] and head.facts["val_subjects"] == ["S4", "S5"]


def test_the_same_seed_gives_the_same_head(encoder, data, trained):
    again, log = train_head(encoder, data, **SHORT)
    assert same(weights(trained[0]), weights(again)) and log.equals(trained[1]) and again.temperature == trained[0].temperature


def test_training_leaves_the_encoder_as_it_was(encoder, trained):
    assert encoder_digest(encoder) == encoder_digest(create_encoder("micro")) == trained[0].encoder_digest
    assert all(p.grad is None for p in encoder.parameters())


def test_tuning_for_one_domain_changes_nothing_for_the_other(encoder, data):
    "Another domain's head, and what the router reads, are the same to the bit before and after."
    other, _ = train_head(encoder, data, **SHORT | {"seed": 8, "tune": 0})
    x, _ = make_batch(data.val[:2], np.zeros((0,)), None)
    with torch.no_grad(): shared = encoder.share(x); before = other.probabilities(x, encoder, shared)
    tuned, _ = train_head(encoder, data, **SHORT | {"tune": .5, "tolerance": 1})  # any Dice is as good: the latest weights are kept
    with torch.no_grad(): again = encoder.share(x); after = other.probabilities(x, encoder, again)
    assert torch.equal(before, after) and torch.equal(shared.state, again.state)
    own, given = tuned.tail.state_dict(), encoder.tail().state_dict()
    assert tuned.facts["phase"] == "blocks" and own.keys() == given.keys() and sum(not torch.equal(own[k], given[k]) for k in own) > len(own) // 2


def test_phases_are_told_apart_and_the_first_moves_the_decoder_alone(encoder, data, trained):
    head, log, _ = trained
    assert log["phase"].tolist() == ["decoder"] * 2 + ["blocks"] * 2 and log["step"].tolist() == [12, 24, 28, 32]
    best = log.groupby("phase")["val_dice"].max()
    assert all(head.facts[f"val_dice_{p}"] == best[p] for p in best.index)
    first, _ = train_head(encoder, data, **SHORT | {"tune": 0})
    assert first.tail is None and first.facts["phase"] == "decoder" and np.isnan(first.facts["val_dice_blocks"])


def test_test_subjects_are_not_looked_at(encoder, study, trained):
    tiles, masks, table = study
    extra = table[:5].assign(roi="X", subject="S9", split="test")
    wider = gather_labels(np.concatenate([tiles, tiles[:5] * 0]), masks, pd.concat([table, extra], ignore_index=True), "fluorescence", CLASSES, val_tiles=6)
    assert same(weights(trained[0]), weights(train_head(encoder, wider, **SHORT)[0]))


def test_a_stored_head_predicts_the_same(encoder, data, trained, tmp_path):
    x, _ = make_batch(data.val[:2], np.zeros((0,)), None)
    for tail in (None, trained[0].tail or encoder.tail()):
        head = Head(trained[0].decoder, "fluorescence", CLASSES, "micro", encoder_digest(encoder), 1.7, {"seed": 3}, tail)
        with torch.no_grad():
            shared = encoder.share(x); again = Head.load(head.save(tmp_path / "head"))
            assert torch.equal(head.probabilities(x, encoder, shared), again.probabilities(x, encoder, shared))
        assert (again.domain, again.classes, again.temperature, again.tail is None) == ("fluorescence", CLASSES, 1.7, tail is None)


def test_a_stored_head_is_not_pickled_and_its_json_is_plain(trained):
    stored = json.loads(trained[2].with_suffix(".json").read_text())
    assert stored["facts"]["seed"] == 3 and stored["encoder"] == "micro" and trained[2].with_suffix(".safetensors").read_bytes()[8:9] == b"{"


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", ["cut", "missing", "other"])
def test_a_damaged_head_is_refused_by_name(trained, tmp_path, suffix, damage):
    for s in (".safetensors", ".json"): (tmp_path / f"head{s}").write_bytes(trained[2].with_suffix(s).read_bytes())
    broken = tmp_path / f"head{suffix}"
    if damage == "missing": broken.unlink()
    else: broken.write_bytes(broken.read_bytes()[:200] if damage == "cut" else b"{}")
    with pytest.raises(UserError, match="head"): Head.load(tmp_path / "head")


def test_a_head_whose_weights_are_of_another_shape_is_refused(trained, tmp_path):
    for s in (".safetensors", ".json"): (tmp_path / f"head{s}").write_bytes(trained[2].with_suffix(s).read_bytes())
    stored = json.loads((tmp_path / "head.json").read_text()); stored["decoder"]["classes"] = 5
    (tmp_path / "head.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="run the heads step again"): Head.load(tmp_path / "head")


def test_refusals_name_both_sides(encoder, trained):
    head = trained[0]; other = create_encoder("micro", seed=4)
    with pytest.raises(UserError, match=f"{encoder_digest(encoder)[:8]}.*{encoder_digest(other)[:8]}"): check_head(head, other)
    with pytest.raises(UserError, match="2 label.*2 osteoid"): check_head(head, encoder, [*CLASSES[:2], {"id": 2, "name": "osteoid", "colour": "#fff"}])
    with pytest.raises(UserError, match="no head for brightfield.*fluorescence"): pick_head({"fluorescence": head}, "brightfield")
    assert check_head(head, encoder, CLASSES) is head


@pytest.mark.parametrize("change,words", [
    (lambda t, m, c: (t.assign(split="train"), m, c), "no ROI in split val"),
    (lambda t, m, c: (t, {"R0": m["R0"]}, c), "no labelled ROI in split val"),
    (lambda t, m, c: (t, {"R5": m["R5"]}, c), "no labelled ROI in split train"),
    (lambda t, m, c: (t, m, [*c, {"id": 3, "name": "osteoid", "colour": "#fff"}]), "class 3 osteoid occurs in no mask"),
    (lambda t, m, c: (t.assign(modality="brightfield"), m, c), "no ROI in split train"),
])
def test_missing_labels_are_said_before_any_step(study, change, words):
    tiles, masks, table = study; table, masks, classes = change(table, masks, CLASSES)
    with pytest.raises(UserError, match=words): gather_labels(tiles, masks, table, "fluorescence", classes)


def test_a_mask_lies_exactly_under_its_tile():
    rng = np.random.default_rng(1); mask = rng.integers(0, 3, (500, 470), dtype=np.uint8)
    tiles, table = tile_roi(np.repeat(mask[..., None], 3, 2))
    for row, tile in zip(table.itertuples(), tiles):
        under = tile_mask(mask, row, 224); inside = under != IGNORE
        assert np.array_equal(under[inside], tile[..., 0][inside]) and inside.sum() == max(224 - row.pad_right, 0) * max(224 - row.pad_bottom, 0)
    masks, counts = cut_masks(table.assign(roi="A"), {"A": mask}.get, 3)
    assert counts.sum() == (masks != IGNORE).sum()


def test_padding_has_no_part_in_the_loss():
    torch.manual_seed(0); logits = torch.randn(2, 3, 8, 8, requires_grad=True); y = torch.randint(0, 3, (2, 8, 8)); y[:, :, 5:] = IGNORE
    loss = head_loss(logits, y, torch.ones(3)); loss.backward()
    assert (logits.grad[..., 5:] == 0).all() and (logits.grad[..., :5] != 0).all()
    torch.testing.assert_close(loss, head_loss(logits[..., :5], y[..., :5], torch.ones(3)))


def test_image_and_mask_turn_together():
    rng = np.random.default_rng(0); masks = rng.integers(0, 3, (16, 32, 32), dtype=np.uint8)
    x, y = make_batch(COLOURS[masks], masks, np.random.default_rng(7), strength=0)
    torch.testing.assert_close(x, torch.from_numpy(COLOURS)[y].permute(0, 3, 1, 2) / 255)
    assert len({tuple(v.flatten().tolist()) for v in y}) == 16 and not np.array_equal(y.numpy(), masks)


def test_a_rare_class_is_drawn_often():
    counts = np.zeros((200, 3)); counts[:, 0] = 1000; counts[:100, 1] = 300; counts[3, 2] = 5
    p = draw_probability(counts)
    assert p.sum() == pytest.approx(1) and p[3] > .33 and p[150] > 0


def test_validation_tiles_come_from_every_subject():
    table = pd.DataFrame({"subject": np.repeat(list("abcdef"), [50, 3, 9, 80, 1, 20])})
    rows = even_rows(table, 18)
    assert len(rows) <= 18 and set(rows["subject"]) == set("abcdef") and rows.index.is_monotonic_increasing


def test_tiles_that_are_all_padding_are_not_learnt_from(study):
    _, masks, table = study
    rows = labelled_rows(table, "fluorescence", masks, "train")
    assert ((rows["pad_right"] < 224) & (rows["pad_bottom"] < 224)).all() and len(rows) < (table["split"] == "train").sum() or (table["pad_bottom"] < 224).all()


def test_two_classes_and_three_both_train_with_nothing_wired_in(encoder, study):
    tiles, masks, table = study
    for n in (2, 3):
        few = {k: np.minimum(v, n - 1) for k, v in masks.items()}
        head, _ = train_head(encoder, gather_labels(tiles, few, table, "fluorescence", CLASSES[:n], val_tiles=2), steps=2, tune=.5, batch=2)
        assert head.decoder.classify.out_channels == n


def test_a_class_absent_from_validation_has_no_say_in_the_choice():
    truth = np.zeros((1, 8, 8), np.uint8); truth[:, :4] = 1
    logits = torch.zeros(1, 3, 8, 8); logits[:, 1, :4] = 1; logits[:, 0, 4:] = 1; logits[:, 2, 7, 7] = 9  # one stray pixel of class 2
    assert validation_dice([logits], truth, 3) == 1


def test_the_latest_of_equally_good_weights_are_kept(data, monkeypatch):
    from bonehisto import fitting
    def fit(scores, **settings):
        given, net = iter(scores), torch.nn.Conv2d(3, 3, 1)
        monkeypatch.setattr(fitting, "validation_dice", lambda *a: next(given))
        return fit_network(net, data, [Phase("all", len(scores), [(list(net.parameters()), .1)])], batch=1, looks=len(scores), **settings)
    fit_ = fit([.5, .903, .91, .905, .7])
    assert fit_.step == 4 and fit_.val_dice == .905 and len(fit_.log) == 5
    fit_ = fit([.9, .5, .5, .5, .95], patience=3)
    assert fit_.step == 1 and len(fit_.log) == 4 and fit_.steps == 4


def test_a_training_ends_when_its_seconds_are_spent(data, monkeypatch):
    from bonehisto import fitting
    monkeypatch.setattr(fitting.StopWatch, "seconds", lambda self: 1)  # a step takes one second
    net = torch.nn.Conv2d(3, 3, 1)
    found = fit_network(net, data, [Phase("a", 3000, [([net.bias], .1)]), Phase("b", 1000, [([net.weight], .1)])], batch=1, seconds=40, patience=99)
    assert found.log.groupby("phase")["step"].max().to_dict() == {"a": 30, "b": 40} and found.seconds == 40 and len(found.log) == 20


def test_batch_norm_of_a_kept_network_is_the_latest(data):
    "A network with buffers (the U-Net it is compared with) keeps them with its averaged weights."
    torch.manual_seed(0); net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 1))
    found = fit_network(net, data, [Phase("all", 40, [(list(net.parameters()), .05)])], batch=4)
    assert not net.training and net[1].num_batches_tracked == found.step and found.val_dice > .4


def test_windows_lie_on_the_patch_grid_over_what_is_rare(data):
    rng, _, y = np.random.default_rng(0), *make_batch(data.tiles[data.index], data.masks, None)
    there = [(m == 2).any() for m in data.masks]
    hit, n = 0, 0
    for _ in range(20):
        corners = draw_corners(y, rng, 112, 16); cut = cut_windows(y, corners * 16, 112)
        assert corners.min() >= 0 and corners.max() <= 7 and cut.shape == (len(y), 112, 112)
        assert all(torch.equal(c, v[16 * i:16 * i + 112, 16 * j:16 * j + 112]) for c, v, (i, j) in zip(cut, y, corners))
        hit += sum((c == 2).any() for c, t in zip(cut, there) if t); n += sum(there)
        assert all((c != IGNORE).any() for c in cut)  # never padding alone
    assert hit / n > .5


def test_a_window_is_decoded_as_in_the_whole_tile(encoder, data):
    "But for a rim where the decoder's convolutions miss their surroundings."
    from bonehisto.decoder import create_decoder
    net = HeadNetwork(encoder, create_decoder(encoder, 3).eval(), window=128); x, _ = make_batch(data.val[:2], np.zeros((0,)), None)
    with torch.no_grad(): whole, part = net(x), net(x, np.array([[0, 0], [4, 6]]))
    for w, p, (r, c) in zip(whole, part, ((0, 0), (64, 96))):
        assert torch.allclose(w[:, r + 40:r + 88, c + 40:c + 88], p[:, 40:88, 40:88], atol=.05)


def test_borders_are_what_lies_next_to_another_class():
    y = torch.zeros(1, 12, 12, dtype=torch.long); y[:, 6:] = 2
    assert near_borders(y)[0, :, 3].tolist() == [False] * 4 + [True] * 4 + [False] * 4 and not near_borders(y * 0).any()
    right = torch.nn.functional.one_hot(y, 3).permute(0, 3, 1, 2) * 6.; near, far = right.clone(), right.clone()
    near[:, :, 5] = near[:, :, 5].flip(1); far[:, :, 1] = far[:, :, 1].flip(1)
    loss = lambda logits, edge: head_loss(logits, y, torch.ones(3), edge).item()
    assert loss(near, 0) == pytest.approx(loss(far, 0)) and loss(near, 3) > 1.5 * loss(far, 3)
