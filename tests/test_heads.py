"Training, keeping and refusing heads."
import json

import numpy as np
import pandas as pd
import pytest
import torch

from bonehisto.encoder import create_encoder
from bonehisto.files import UserError
from bonehisto.heads import draw_probability, even_rows, head_loss, labelled_rows, train_head, validation_dice
from bonehisto.labelled_tiles import IGNORE, cut_masks, make_batch, tile_mask
from bonehisto.tiling import tile_roi
from bonehisto.trained_head import Head, check_head, encoder_digest, pick_head

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


@pytest.fixture(scope="module")
def trained(encoder, study, tmp_path_factory):
    out = tmp_path_factory.mktemp("head") / "head_fluorescence"
    tiles, masks, table = study
    head, log = train_head(encoder, tiles, masks, table, "fluorescence", CLASSES, out, steps=24, batch=2, eval_every=12, val_tiles=6, seed=3)
    return head, log, out


def test_a_head_learns_and_weights_of_good_validation_are_kept(trained):
    head, log, _ = trained
    kept = log.set_index("step")["val_dice"][head.facts["best_step"]]
    assert head.facts["val_dice"] == kept > log["val_dice"].max() - .01 and kept > .5
    assert head.facts["train_subjects"] == ["S0", "S1", "S2", "S3"] and head.facts["val_subjects"] == ["S4", "S5"]


def test_the_same_seed_gives_the_same_head(encoder, study, trained):
    tiles, masks, table = study
    again, log = train_head(encoder, tiles, masks, table, "fluorescence", CLASSES, steps=24, batch=2, eval_every=12, val_tiles=6, seed=3)
    a, b = trained[0].decoder.state_dict(), again.decoder.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a) and log.equals(trained[1]) and again.temperature == trained[0].temperature


def test_training_leaves_the_encoder_as_it_was(encoder, trained):
    assert encoder_digest(encoder) == encoder_digest(create_encoder("micro")) == trained[0].encoder_digest
    assert all(p.grad is None for p in encoder.parameters())


def test_test_subjects_are_not_looked_at(encoder, study, trained):
    tiles, masks, table = study
    extra = table[:5].assign(roi="X", subject="S9", split="test")
    head, _ = train_head(encoder, np.concatenate([tiles, tiles[:5] * 0]), masks, pd.concat([table, extra], ignore_index=True), "fluorescence", CLASSES, steps=24, batch=2, eval_every=12, val_tiles=6, seed=3)
    a, b = trained[0].decoder.state_dict(), head.decoder.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_stored_head_predicts_the_same(encoder, study, trained):
    head, _, out = trained
    x, _ = make_batch(study[0][:2], np.zeros((0,)), None)
    with torch.no_grad():
        tokens = encoder.tokens(x, head.decoder.shape.depths); again = Head.load(out)
        assert torch.equal(head.probabilities(x, tokens), again.probabilities(x, tokens))
    assert (again.domain, again.classes, again.temperature) == ("fluorescence", CLASSES, head.temperature)


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
def test_missing_labels_are_said_before_any_step(encoder, study, change, words):
    tiles, masks, table = study; table, masks, classes = change(table, masks, CLASSES)
    with pytest.raises(UserError, match=words): train_head(encoder, tiles, masks, table, "fluorescence", classes, steps=10**6)


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
        head, _ = train_head(encoder, tiles, few, table, "fluorescence", CLASSES[:n], steps=2, batch=2, val_tiles=2)
        assert head.decoder.classify.out_channels == n


def test_a_class_absent_from_validation_has_no_say_in_the_choice():
    truth = np.zeros((1, 8, 8), np.uint8); truth[:, :4] = 1
    logits = torch.zeros(1, 3, 8, 8); logits[:, 1, :4] = 1; logits[:, 0, 4:] = 1; logits[:, 2, 7, 7] = 9  # one stray pixel of class 2
    assert validation_dice([logits], truth, 3) == 1


def test_the_latest_of_equally_good_weights_are_kept(encoder, study, monkeypatch):
    from bonehisto import heads
    tiles, masks, table = study; given = iter([.5, .903, .91, .905, .7])
    monkeypatch.setattr(heads, "validation_dice", lambda *a: next(given))
    head, log = train_head(encoder, tiles, masks, table, "fluorescence", CLASSES, steps=5, batch=1, eval_every=1, val_tiles=1)
    assert head.facts["best_step"] == 4 and head.facts["val_dice"] == .905 and len(log) == 5
    given = iter([.9, .5, .5, .5, .95])
    head, log = train_head(encoder, tiles, masks, table, "fluorescence", CLASSES, steps=5, batch=1, eval_every=1, val_tiles=1, patience=3)
    assert head.facts["best_step"] == 1 and len(log) == 4
