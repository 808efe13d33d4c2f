"""A study on the annotator's desk: what comes next, with which help, and what becomes of it."""
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from bonehisto.annotate import annotate_study
from bonehisto.cli import app
from bonehisto.desk import Desk
from bonehisto.files import UserError, write_table
from bonehisto.images import UNLABELLED, read_image, read_mask, write_mask
from bonehisto.label_patches import patch_from, patches_between
from bonehisto.labelling_queue import queue_table, take_item
from bonehisto.manifest import load_manifest
from bonehisto.phantom import draw_study
from bonehisto.reader_agreement import report_readers, tables_of_readers
from bonehisto.sentinels import sentinel_result, with_planted
from bonehisto.study_labels import export_study, import_study

NONE = dict(reread=0, unassisted=0, sentinels=0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "A phantom with its true masks."
    return draw_study(tmp_path_factory.mktemp("drawn"), subjects=3, rois={"brightfield": 1, "fluorescence": 1}, size_px=128, seed=2)


def true_masks(drawn):
    study = load_manifest(drawn)
    return {r.id: read_mask(r.mask, study.class_table(r.modality)) for r in study.rois}


@pytest.fixture
def study(drawn, tmp_path):
    "The manifest of the same images without any mask."
    plain = yaml.safe_load(drawn.read_text())
    for r in plain["rois"]:
        r.pop("mask", None)
        r["image"] = str(drawn.parent / r["image"])
    plain.pop("truth", None)
    path = tmp_path / "data_manifest.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.fixture
def run(drawn, study, tmp_path):
    "A run folder as far as a desk looks at it: the model draws the truth, moved by a pixel."
    folder, rows = tmp_path / "run", []
    for roi, mask in true_masks(drawn).items():
        for tail, value in (("", np.roll(mask, 1, 0)), ("_confidence", np.full_like(mask, 240))): write_mask(folder / f"masks/{roi}{tail}.png", value, .5)
        rows.append({"roi": roi, "domain": "brightfield" if "_br_" in roi else "fluorescence", "state": "segmented", "tiles": 4, "blank": 0, "quality": ""})
    write_table(folder / "tables/roi_segmentation.csv", pd.DataFrame(rows))
    tiles = pd.DataFrame([{"roi": r["roi"], "x": x, "y": y, "kind": k, "blank": False, "focus": 1.} for r in rows for x, y, k in ((0, 0, "nw"), (64, 0, "ne"), (0, 64, "sw"), (64, 64, "se"), (32, 32, "centre"))])
    write_table(folder / "tables/segment_tiles.parquet", tiles)
    study_now = load_manifest(study)
    write_table(folder / "tables/rois.csv", pd.DataFrame([{"roi": r.id, "subject": r.subject, "group": "", "modality": r.modality, "split": "train", "image": str(r.image), "mask": "", "polygon": "", "annotations": "", "pixel_size_um": .5, "interval_days": 10} for r in study_now.rois]))
    return folder


def paint(desk, value=1, box=(10, 10, 20, 20)):
    y, x, h, w = box
    desk.work.record.add("paint", [patch_from(np.ones((h, w), bool), value, x, y)], cls=value, tool="brush")


def test_a_roi_left_undone_is_set_aside_and_goes_on_where_it_stopped(study):
    desk = Desk(study, None, "Ana", **NONE)
    first = desk.open().roi
    paint(desk)
    second = desk.open().roi
    assert second != first and desk.queue().set_index("roi").loc[first, "status"] == "skipped"
    again = Desk(study, None, "ANA", **NONE)  # another day, another spelling
    assert (again.open(first).record.map == 1).sum() == 400 and again.name == "Ana"


def test_what_is_done_becomes_the_mask_that_the_next_run_takes(study):
    desk = Desk(study, None, "Ana", **NONE)
    work = desk.open(); paint(desk)
    said = desk.finish()
    now = load_manifest(study)
    assert [r.id for r in now.labelled] == [work.roi] and work.roi in said
    assert (read_mask(now.labelled[0].mask, now.class_table(work.domain), unlabelled=True) == work.record.map).all()
    paint(desk, 0)  # corrected and done again
    desk.finish()
    assert not read_mask(now.labelled[0].mask, now.class_table(work.domain), unlabelled=True).any()


def test_nothing_waits_once_all_is_done_and_any_roi_can_be_opened_again(study):
    desk = Desk(study, None, "Ana", **NONE)
    seen = set()
    while desk.open():
        seen.add(desk.work.roi); desk.finish()
    assert len(seen) == 6 and desk.work is None
    assert desk.open(sorted(seen)[0]).record.finished


def test_the_model_s_map_is_offered_with_its_weights_and_taken_only_when_somebody_does(study, run, drawn):
    desk = Desk(study, run, "Ana", **NONE)
    work = desk.open()
    offered, facts = work.proposal()
    assert (offered == np.roll(true_masks(drawn)[work.roi], 1, 0)).all() and facts["model"].startswith("head of") and .9 < facts["confidence"] < 1
    assert not work.record.map.any()


def test_unassisted_rois_get_neither_proposal_nor_suggestions(study, run):
    asked = []
    desk = Desk(study, run, "Ana", help=lambda *a: asked.append(a) or {"suggest": print}, reread=0, unassisted=1, sentinels=0)
    work = desk.open()
    assert work.proposal is None and work.suggest is None and not asked
    other = Desk(study, run, "Ben", help=lambda *a: {"suggest": print}, **NONE)
    assert other.open().suggest is None  # drawn before: settings of a later desk do not change it
    assert "kind" not in desk.queue() and "proposal" not in desk.queue()  # nobody is told


def test_a_planted_error_never_reaches_the_mask(study, run, drawn):
    desk = Desk(study, run, "Ana", reread=0, unassisted=0, sentinels=1)
    work = desk.open()
    offered, _ = work.proposal()
    planted = queue_table(desk.labels).set_index("roi").loc[work.roi, "planted"]
    model = read_image(run / f"masks/{work.roi}.png").pixels[..., 0]
    assert planted["pixels"] > 0 and (offered == with_planted(model, planted)).all() and (offered != model).sum() == planted["pixels"]
    work.record.add("accept", patches_between(work.record.map, offered), source="model")
    desk.finish()
    assert not sentinel_result(work.record.map, planted)["caught"]
    written = read_mask(desk.labels / f"{work.roi}.png", work.record.classes, unlabelled=True)
    assert (written[offered != model] == UNLABELLED).all() and (written[offered == model] == offered[offered == model]).all()


def test_a_second_reader_is_blind_and_their_mask_takes_no_place(study, run):
    ana = Desk(study, run, "Ana", readers=2, unassisted=0, sentinels=0)
    roi = ana.open().roi; paint(ana); ana.finish()
    ben = Desk(study, run, "Ben", readers=2, unassisted=0, sentinels=0)
    work = ben.open(roi)
    assert not work.record.map.any() and not [c for c in ben.companions() if "Ana" in c]
    paint(ben, 0, (0, 0, 5, 5)); paint(ben, 1, (60, 60, 4, 4))
    said = ben.finish()
    assert "Another annotator" in said and (read_mask(ben.labels / f"{roi}.png", work.record.classes, unlabelled=True) == 1).sum() == 400
    shown = ben.companions()["labels of Ana"]()
    assert (shown.record.map == 1).sum() == 400 and shown.record.why


def test_a_given_mask_and_marks_are_where_the_work_begins_but_not_for_a_second_reader(drawn, tmp_path):
    plain = yaml.safe_load(drawn.read_text())
    for r in plain["rois"]: r |= {k: str(drawn.parent / r[k]) for k in ("image", "mask")}
    roi = plain["rois"][0]
    (tmp_path / "cells.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": {"type": "Point", "coordinates": [30.5, 40.5]}, "properties": {"classification": {"name": "osteoblast"}}}]}))
    roi["annotations"] = str(tmp_path / "cells.geojson"); plain.pop("truth", None)
    path = tmp_path / "data_manifest.yaml"; path.write_text(yaml.safe_dump(plain))
    desk = Desk(path, None, "Ana", **NONE)
    assert desk.open() is None  # everything has a mask
    name = load_manifest(path).rois[0].id
    record = desk.open(name).record
    assert (record.map == true_masks(drawn)[name]).all() and [(m["x"], m["y"]) for m in record.marks] == [(30.5, 40.5)]
    desk.finish()
    assert load_manifest(path).rois[0].annotations == desk.labels / f"{name}.geojson"


def test_boxes_of_tiles_are_labelled_and_the_rest_stays_open(study):
    desk = Desk(study, None, "Ana", **NONE)
    done = desk.open().roi; paint(desk); desk.finish()
    other = desk.open().roi; desk.leave()
    desk.label_boxes({other: [[0, 0, 40, 40], [100, 100, 64, 64]], done: [[0, 0, 8, 8]]}, 1)
    classes = load_manifest(study).class_table("brightfield")
    found = read_mask(desk.labels / f"{other}.png", load_manifest(study).class_table(desk.domain(desk.known(other))), unlabelled=True)
    assert (found[:40, :40] == 1).all() and (found == 1).sum() == 1600 + 28 * 28 and (found[found != 1] == UNLABELLED).all()
    assert (read_mask(desk.labels / f"{done}.png", classes + classes[:0], unlabelled=True) == 1).sum() == 400  # a finished reading stays what it is


def test_what_cannot_be_opened_is_said_and_the_way_goes_on(study, tmp_path):
    plain = yaml.safe_load(study.read_text())
    broken = tmp_path / "broken.png"; broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 50)
    plain["rois"][0]["image"] = str(broken); study.write_text(yaml.safe_dump(plain))
    desk = Desk(study, None, "Ana", **NONE)
    name = load_manifest(study).rois[0].id
    with pytest.raises(UserError, match="broken.png"): desk.open(name)
    assert desk.work is None and desk.open().roi != name
    with pytest.raises(UserError, match="there is no ROI"): desk.open("S99")
    for wrong in ("", "  ", "x\n\x00"):
        with pytest.raises(UserError, match="annotator"): Desk(study, None, wrong)
    with pytest.raises(UserError, match="no maps of a model"): Desk(study, tmp_path / "nowhere", "Ana")


def test_a_roi_that_is_open_elsewhere_is_not_given_out(study):
    Desk(study, None, "Ana", **NONE)
    code = f"import sys, time\nfrom bonehisto.desk import Desk\nd = Desk({str(study)!r}, None, 'Ben', reread=0, unassisted=0, sentinels=0)\nprint(d.open().roi, flush=True)\nsys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        taken = other.stdout.readline().strip()
        desk = Desk(study, None, "Ana", **NONE)
        assert desk.open().roi != taken
        with pytest.raises(UserError, match="another annotator"): desk.open(taken)
    finally:
        other.communicate()
    assert take_item(desk.labels, "Ben", taken)["roi"] == taken  # whose process ended: it goes on


@pytest.mark.parametrize("form", ["geojson", "coco", "imagej", "png", "tif"])
def test_labels_go_out_and_come_in_again_without_losing_a_pixel(study, tmp_path, form):
    desk = Desk(study, None, "Ana", **NONE)
    work = desk.open(); rng = np.random.default_rng(0)
    work.record.add("paint", patches_between(work.record.map, rng.integers(0, 3, (128, 128)).astype(np.uint8)))
    work.record.add("point", marks=[{"type": "point", "key": "a", "cls": "osteoblast", "x": 20.5, "y": 30.5}], cls="osteoblast")
    work.record.add("line", marks=[{"type": "line", "key": "b", "cls": "eroded surface", "points": [[1.5, 1.5], [30.5, 40.5]]}], cls="eroded surface")
    desk.finish(); desk.leave()
    said = export_study(study, tmp_path / "out", form)
    holds = form in ("geojson", "imagej")
    assert "1 ROIs" in said and ("left out" in said) is not holds
    import_study(study, sorted((tmp_path / "out").iterdir()), "Ben")
    again = Desk(study, None, "Ben", **NONE).open(work.roi).record
    assert (again.map == work.record.map).all()
    assert sorted((m["type"], m["cls"]) for m in again.marks) == ([("line", "eroded surface"), ("point", "osteoblast")] if holds else [])


def test_files_that_are_no_labels_are_refused_before_anything_is_taken(study, tmp_path):
    desk = Desk(study, None, "Ana", **NONE)
    roi = desk.open().roi; desk.leave()
    good, bad = tmp_path / f"{roi}.png", tmp_path / f"{roi}.geojson"
    write_mask(good, np.ones((64, 64), np.uint8)); bad.write_text("no json")
    said = import_study(study, [good, bad], "Ben")
    assert all(s.startswith("left out") for s in said) and any("128" in s for s in said) and not load_manifest(study).labelled
    with pytest.raises(UserError) as e: import_study(study, [tmp_path / "S99.png", tmp_path / f"{roi}.docx"], "Ben")
    assert len(e.value.problems) == 2
    with pytest.raises(UserError, match="nothing was written"): export_study(study, tmp_path / "out", annotator="Nobody")
    with pytest.raises(UserError, match="format"): export_study(study, tmp_path / "out", "docx")


def test_readers_and_model_are_held_against_each_other(study, run, drawn, tmp_path):
    for name, slip in (("Ana", 0), ("Ben", 2)):
        desk = Desk(study, run, name, readers=2, unassisted=0, sentinels=0)
        while desk.open():
            record = desk.work.record
            record.add("paint", patches_between(record.map, np.roll(true_masks(drawn)[desk.work.roi], slip, 1)))
            desk.finish()
    tables, notes = tables_of_readers(load_manifest(study), {r: m for r, m in true_masks(drawn).items()})
    pairs = tables["reader_maps"].query("`class` in ('bone', 'mineralised bone')").set_index(["first", "second", "domain"])["mean"]
    assert set(tables["reader_maps"][["first", "second"]].itertuples(index=False, name=None)) == {("Ana", "Ben"), ("Ana", "model"), ("Ben", "model")}
    assert (pairs.loc["Ana", "model"] == 1).all() and (pairs.loc["Ana", "Ben"] < 1).all() and (pairs.loc["Ana", "Ben"] > .8).all()
    assert tables["readers"].set_index("annotator")["done"].to_dict() == {"Ana": 6, "Ben": 6, "all": 12}
    assert "reader_maps.csv" in report_readers(study, tmp_path / "out", run)


def test_the_page_asks_for_a_name_and_tells_errors_instead_of_failing(study):
    page, told = annotate_study(study, **NONE), []
    page.list.send = lambda content, buffers=None: told.append(content)
    page.list.hear({"type": "open", "client": "a", "n": 1, "roi": "x"})
    assert "name" in told[0]["text"] and told[0]["level"] == "error"
    page.list.hear({"type": "name", "client": "a", "n": 2, "text": "Ana"})
    listed = [t for t in told if t["type"] == "list"][-1]
    assert listed["annotator"] == "Ana" and listed["current"] == page.desk.work.roi and [i["status"] for i in listed["items"]].count("waiting") == 5
    page.list.hear({"type": "open", "client": "a", "n": 3, "roi": "S99"})
    assert any("there is no ROI S99" in t.get("text", "") for t in told) and page.desk.work
    page.list.hear({"type": "picture", "client": "a", "n": 4, "roi": listed["items"][0]["roi"]})
    assert [t for t in told if t["type"] == "picture"]
    page.close()


@pytest.mark.parametrize("words, text", [
    (["annotate", "nowhere.yaml"], "no such file"), (["annotate", "STUDY", "--run", "nowhere"], "no maps of a model"), (["annotate", "STUDY", "--annotator", " "], "annotator"),
    (["readers", "STUDY", "--out", "out"], "holds no records"), (["labels", "export", "STUDY", "--out", "out"], "no ROI has a mask"), (["labels", "import", "S99.png", "--manifest", "STUDY", "--annotator", "Ana"], "no such file")])
def test_commands_say_what_is_wrong(study, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [str(study) if w == "STUDY" else w for w in words])
    assert isinstance(done.exception, UserError) and text in " ".join(done.exception.problems)
