"The sheet of faults: one thing wrong at a time over the same tissue, scored, kept, and held against the plain case."
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from bonehisto import robustness
from bonehisto.encoder import create_encoder
from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.files import UserError
from bonehisto.labelled_tiles import plain_classes
from bonehisto.phantom_artefacts import ARTEFACTS, LABEL_ARTEFACTS
from bonehisto.robustness import Case, check_phantom_heads, draw_case, head_without, plan_cases, run_cases, summarise_cases
from bonehisto.robustness_figures import plot_robustness
from bonehisto.tiling import tile_roi


def head(domain, digest="a"): return SimpleNamespace(domain=domain, classes=plain_classes(DEFAULT_CLASSES[domain]), digest=lambda: digest)


def test_every_artefact_stands_in_the_plan_at_every_severity():
    cases = plan_cases("fluorescence", (.3, .9)) + plan_cases("brightfield", (.3, .9), unseen_stain="goldner")
    tried = {(c.domain, c.name, s) for c in cases for s in c.draw.get("artefacts", {}).values()}
    assert tried == {(d, a, s) for d in ("fluorescence", "brightfield") for a in ARTEFACTS if a != "blank_field" for s in (.3, .9) if d == "fluorescence" or a not in LABEL_ARTEFACTS}
    goldner = [c for c in cases if c.draw.get("stain") == "goldner"]
    assert {c.head for c in goldner} == {"own", "unseen"} and {c.pixel_size_um for c in cases} == {.25, .5, 1.}
    assert not [c for c in plan_cases("brightfield") if c.head == "unseen"]


@pytest.mark.parametrize("domain,change", [("brightfield", {"draw": {"stain": "goldner"}}), ("brightfield", {"draw": {"artefacts": {"fold": 1.}}}), ("fluorescence", {"draw": {"artefacts": {"defocus": .5}}})])
def test_the_tissue_is_the_same_under_every_fault(domain, change):
    plain, other = (draw_case(c, 1, 96) for c in (Case(domain, "plain"), Case(domain, "x", **change)))
    assert (plain.class_map == other.class_map).all() and not (plain.image == other.image).all()


def test_another_pixel_size_shows_the_same_field():
    fine, coarse = (draw_case(Case("brightfield", "plain", pixel_size_um=p), 0, 96).class_map for p in (.5, 1.))
    assert fine.shape == (192, 192) and coarse.shape == (96, 96) and (fine[::2, ::2] == coarse).mean() > .95


@pytest.fixture
def fake(monkeypatch):
    "Models whose maps are the truth, but for osteoid under a fold, which is lost; the calls they got."
    calls = []
    def segment_roi(image, model, domain, device, pixel_size_um):
        found = truth.pop(); calls.append(domain)
        return SimpleNamespace(class_map=np.where(found[1] & (found[0] == 2), 0, found[0]), quality="unlike training" if found[1] else "good", summary=lambda: {"tiles": 5, "blank": 1, "abstained": 2})
    def draw(case, k, size_um, seed=0):
        m = np.zeros((40, 40), np.uint8); m[:20] = 1; m[20:30 - k] = 2; truth.append((m, case.name == "fold"))
        return SimpleNamespace(image=m, class_map=m)
    truth = []
    monkeypatch.setattr(robustness, "segment_roi", segment_roi); monkeypatch.setattr(robustness, "draw_case", draw)
    return calls


CASES = [Case("brightfield", "plain"), Case("brightfield", "fold", .5)]


def test_what_a_fault_costs_is_told_per_class_with_its_warning(fake, tmp_path):
    rows = run_cases({"own": SimpleNamespace(heads={"brightfield": head("brightfield")})}, CASES, tmp_path, rois=3)
    s = summarise_cases(rows).set_index(["case", "class"])
    assert s.loc[("plain", "tissue mean"), "dice"] == 1 and np.isnan(s.loc[("plain", "tissue mean"), "loss"])
    assert s.loc[("fold", "osteoid"), "loss"] == 1 and s.loc[("fold", "mineralised bone"), "loss"] == 0 and s.loc[("fold", "tissue mean"), "loss"] == .5
    assert (s.loc["fold", "flagged"] == 1).all() and (s.loc["plain", "flagged"] == 0).all() and s.loc[("fold", "osteoid"), "abstained"] == .5
    written = pd.read_csv(tmp_path / "tables/robustness.csv")
    assert len(written) == len(rows) == 2 * 3 * 4
    ax = plot_robustness(s.reset_index(), plt.figure().gca(), "brightfield")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["plain", "fold"]
    plt.close("all")


def test_an_roi_that_was_abstained_from_has_no_score_and_is_counted(fake, tmp_path, monkeypatch):
    real = robustness.segment_roi
    monkeypatch.setattr(robustness, "segment_roi", lambda *a, **k: (lambda f: f if f.quality == "good" else SimpleNamespace(class_map=None, quality="unlike training", summary=lambda: {"tiles": 5, "blank": 1, "abstained": 4}))(real(*a, **k)))
    s = summarise_cases(run_cases({"own": SimpleNamespace(heads={"brightfield": head("brightfield")})}, CASES, tmp_path, rois=3)).set_index(["case", "class"])
    assert np.isnan(s.loc[("fold", "tissue mean"), "dice"]) and s.loc[("fold", "tissue mean"), "rois"] == 0 and s.loc[("fold", "tissue mean"), "abstained"] == 1
    plot_robustness(s.reset_index(), plt.figure().gca(), "brightfield"); plt.close("all")


def test_a_sheet_goes_on_and_begins_anew_for_another_head(fake, tmp_path):
    models = {"own": SimpleNamespace(heads={"brightfield": head("brightfield")})}
    first = run_cases(models, CASES[:1], tmp_path, rois=2); assert len(fake) == 2
    both = run_cases(models, CASES, tmp_path, rois=2); assert len(fake) == 4 and both[:len(first)].equals(first)
    run_cases({"own": SimpleNamespace(heads={"brightfield": head("brightfield", "b")})}, CASES, tmp_path, rois=2); assert len(fake) == 8


def test_heads_of_other_classes_are_refused_with_both_tables():
    model = SimpleNamespace(heads={"brightfield": head("brightfield")})
    assert check_phantom_heads(model, []) == ["brightfield"]
    with pytest.raises(UserError, match="names fluorescence: heads exist for brightfield"): check_phantom_heads(model, ["fluorescence"])
    model.heads["brightfield"].classes = [{"id": 0, "name": "background", "colour": ""}, {"id": 1, "name": "nucleus", "colour": ""}]
    with pytest.raises(UserError, match="1 nucleus.*1 mineralised bone"): check_phantom_heads(model, [])
    with pytest.raises(UserError, match="no head was trained"): check_phantom_heads(SimpleNamespace(heads={}), [])


def test_a_head_without_a_stain_sees_none_of_its_subjects_and_is_kept(tmp_path):
    rng, tiles, tables, masks = np.random.default_rng(0), [], [], {}
    for subject, split in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "test")):
        m = np.zeros((224, 224), np.uint8); m[:100] = 1; m[100:140] = 2
        t, table = tile_roi(np.array([[60, 60, 70], [40, 120, 60], [220, 230, 40]], np.uint8)[m] + rng.integers(0, 15, (224, 224, 3), dtype=np.uint8))
        masks[subject] = m; tiles.append(t); tables.append(table.assign(roi=subject, subject=subject, modality="brightfield", split=split))
    encoder = create_encoder("micro").eval()
    train = lambda subjects, **k: head_without(encoder, np.concatenate(tiles), pd.concat(tables, ignore_index=True), masks, "brightfield", DEFAULT_CLASSES["brightfield"], .5, subjects, tmp_path / "head", **{"steps": 2, "batch": 1, "looks": 1} | k)
    made = train(["b"]); assert made.facts["train_subjects"] == ["a"] and made.facts["pixel_size_um"] == .5
    when = (tmp_path / "head.safetensors").stat().st_mtime_ns
    assert train(["b"]).digest() == made.digest() and (tmp_path / "head.safetensors").stat().st_mtime_ns == when
    assert train(["a"]).facts["train_subjects"] == ["b"] and train(["a"], steps=3).facts["steps"] == 3
    with pytest.raises(UserError, match="without a, b: brightfield"): train(["a", "b"])
