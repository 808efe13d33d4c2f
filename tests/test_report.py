"""The report is whole, stands alone, escapes what it quotes, and survives every missing or damaged file."""
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from synthetic_run import make_run

from bonehisto import page as page_parts
from bonehisto.files import read_json, read_table, write_json, write_table
from bonehisto.page import RunFolder
from bonehisto.overlays import overlay
from bonehisto.place_sections import places_section
from bonehisto.report import SECTIONS, run_warnings, write_report
from bonehisto.report_sections import pretraining_section, roi_pictures, run_verdict
from bonehisto.result_sections import measures_section


@pytest.fixture(scope="module", autouse=True)
def coarse():
    "Figures at few dots: these tests are about the page, not about ink."
    with pytest.MonkeyPatch.context() as patch: patch.setattr(page_parts, "DPI", 40); yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "synthetic", size=160, per_group=4, steps=40)
    write_report(folder)
    return folder


class Page(HTMLParser):
    "Balance of tags, addresses, text."
    def __init__(self):
        super().__init__(); self.open, self.addresses, self.ids, self.tags = [], [], set(), []
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs); self.tags.append(tag); self.addresses += [attrs[k] for k in ("src", "href") if k in attrs]
        if "id" in attrs: self.ids.add(attrs["id"])
        if tag not in ("meta", "img", "br", "link", "input"): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag


def parse(folder):
    page = Page(); page.feed((folder / "report.html").read_text(encoding="utf-8")); return page


def test_a_full_run_misses_nothing(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'class="missing"' not in page and page.count("<section") == len(SECTIONS)


def test_the_page_asks_nothing_of_the_network_and_runs_no_script(run):
    page = parse(run)
    assert page.open == [] and not {"script", "link", "iframe"} & set(page.tags)
    assert all(a.startswith(("data:image/", "#")) for a in page.addresses)
    assert "url(" not in (run / "report.html").read_text(encoding="utf-8")


def test_every_entry_of_the_contents_leads_to_a_section(run):
    page = parse(run)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= page.ids


def test_it_says_what_it_is_not_for_and_stays_small(run):
    assert "Research use, no diagnosis." in (run / "report.html").read_text(encoding="utf-8")
    assert (run / "report.html").stat().st_size < 15e6


def test_figures_lie_beside_the_page_too(run):
    assert {"pretraining.png", "umap.png", "router_confusion.png", "scores.png", "groups.png", "truth.png", "intervals.png", "agreement.png"} <= {p.name for p in (run / "figures").iterdir()}


def test_an_undefined_number_is_a_dash_with_its_reason(run):
    blocks = [b for b in measures_section(RunFolder(run))["blocks"] if b["kind"] == "table" and any(c["name"] == "MAR" for c in b["columns"])]
    column = [c["name"] for c in blocks[0]["columns"]].index("MAR")
    cell = next(r[column] for r in blocks[0]["rows"] if r[0]["text"] == "low-02")
    assert cell["text"] == "–" and cell["title"] == blocks[0]["reasons"][0] == "only single labels were seen"


def test_places_are_drawn_and_told_by_group_with_their_correlation(run):
    blocks = places_section(RunFolder(run))["blocks"]; columns = [c["name"] for c in blocks[-1]["columns"]]
    assert [b["kind"] for b in blocks] == ["text", "figure", "table"] and columns == ["quantity", "low", "normal", "high", "ρ with BFR/BS"] and len(blocks[-1]["rows"]) == 9
    assert "nothing is corrected" in blocks[-1]["caption"] and (run / "figures/places.png").exists()


def test_places_without_groups_labels_or_correlations_still_make_a_section(bare):
    t = read_table(bare / "tables/neighbourhood_subjects.csv")
    write_table(bare / "tables/neighbourhood_subjects.csv", t[t["quantity"] == "label depth (um)"].assign(group=np.nan, quantity="osteoblast to surface (um)"))
    for name in ("groups", "turnover"): (bare / f"tables/neighbourhood_{name}.csv").unlink()
    assert [b["kind"] for b in places_section(RunFolder(bare))["blocks"]] == ["text", "figure", "table"]
    write_table(bare / "tables/neighbourhood_subjects.csv", t.assign(value=np.nan, reason="no label was seen"))
    block = places_section(RunFolder(bare))["blocks"][0]; assert block["kind"] == "missing" and "no label was seen" in block["text"]


def test_every_ratio_stands_beside_tissue_area_and_bone_perimeter(run):
    tables = [b for b in measures_section(RunFolder(run))["blocks"] if b["kind"] == "table"]
    assert all({"T.Ar", "B.Pm"} <= {c["name"] for c in b["columns"]} for b in tables)


def test_the_main_parameters_bear_their_intervals_with_rough_ones_marked(run):
    block = next(b for b in measures_section(RunFolder(run))["blocks"] if b["kind"] == "table" and "intervals" in b["caption"])
    at = [c["name"] for c in block["columns"]]; rows = {r[0]["text"]: r for r in block["rows"]}
    value, low, high = map(float, re.fullmatch(r"([\d.]+) \(([\d.]+)–([\d.]+)\)\*", rows["low-01"][at.index("BV/TV")]["text"]).groups())
    assert low == pytest.approx(.8 * value, rel=.02) and high == pytest.approx(1.2 * value, rel=.02) and len(rows) == 12
    assert not rows["high-01"][at.index("BV/TV")]["text"].endswith("*")
    assert rows["low-02"][at.index("MAR")]["text"] == "–" and rows["low-02"][at.index("MAR")]["title"] == "only single labels were seen"


def test_a_run_without_interval_table_says_which_step_writes_it(bare):
    (bare / "tables/subject_intervals.csv").unlink()
    blocks = measures_section(RunFolder(bare))["blocks"]
    assert "There is no subject_intervals.csv: the step `summarise` writes it." in [b.get("text") for b in blocks] and any(b["kind"] == "table" for b in blocks)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    "A run folder that may be harmed; its figures are made but not rendered."
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: Image.new("RGB", (4, 4)).save(file, "PNG"))
    return make_run(tmp_path / "run", size=64, per_group=1, steps=10)


def test_each_missing_table_leaves_a_sentence_and_no_crash(bare):
    names = sorted(p.name for p in (bare / "tables").iterdir())
    for name in names: (bare / "tables" / name).rename(bare / name)
    page = write_report(bare).read_text(encoding="utf-8")
    for name in ("rois.csv", "pretrain_log.csv", "embeddings.parquet", "router_scores.csv", "router_confusion.csv", "hard_cases.csv", "heads_log.csv", "head_scores.csv", "roi_segmentation.csv", "truth_comparison.csv", "subject_parameters.csv", "roi_parameters.csv", "neighbourhood_subjects.csv"):
        assert f"There is no {name}: the step <code>" in page, name


def test_damaged_and_empty_files_are_named_and_the_rest_goes_on(bare):
    (bare / "tables/embeddings.parquet").write_bytes(b"PAR1 cut off")
    (bare / "tables/pretrain_log.csv").write_text("")
    write_table(bare / "tables/hard_cases.csv", pd.DataFrame(columns=["case", "right", "abstained", "wrong"]))
    (bare / "manifest.yaml").write_text("rois: [")
    (bare / "run.json").write_text("{")
    page = write_report(bare).read_text(encoding="utf-8")
    assert "embeddings.parquet could not be read" in page and "pretrain_log.csv could not be read" in page and "hard_cases.csv is empty" in page
    assert "not valid JSON" in page and "Router" in page


def test_a_healthy_pretraining_is_told_in_the_text_with_curves_and_tokens(run):
    blocks = pretraining_section(RunFolder(run))["blocks"]
    assert [b["kind"] for b in blocks] == ["text", "figure", "figure"] and "No sign of a collapse" in blocks[0]["text"] and "in 4 epochs" in blocks[0]["text"]
    assert (run / "figures/tokens.png").exists() and not any("ollapse" in w for w in run_warnings(RunFolder(run)))


def test_a_collapsed_encoder_stands_in_a_box_and_first_of_all(bare):
    log = pd.concat([read_table(bare / "tables/pretrain_log.csv")] * 4).assign(step=range(40), rank_projection=1.3, spread_projection=.02, learning_rate=1e-4)
    write_table(bare / "tables/pretrain_log.csv", log)
    block = pretraining_section(RunFolder(bare))["blocks"][0]
    assert block["kind"] == "warnings" and block["title"] == "The encoder has collapsed" and "effective rank of 1.3" in block["lines"][0]
    page = write_report(bare).read_text(encoding="utf-8")
    assert page.index("Read first") < page.index("Pretraining collapsed") < page.index("were analysed")


def test_batch_and_width_beside_the_weights_judge_a_log_without_spread(bare):
    log = pd.concat([read_table(bare / "tables/pretrain_log.csv")] * 4).assign(step=range(40), rank_projection=30., sigreg_ratio=5.8, invariance=.1, learning_rate=1e-4).drop(columns=["spread_projection", "spread_least"])
    write_table(bare / "tables/pretrain_log.csv", log)
    assert run_verdict(RunFolder(bare))[0] == "healthy"
    write_json(bare / "checkpoints/encoder.json", {"extra": {"batch": 16, "projector_out": 64}})  # 5.8 is nearly the 6.1 of a single point
    assert run_verdict(RunFolder(bare))[0] == "collapsed"
    (bare / "checkpoints/encoder.json").write_text("{")
    assert run_verdict(RunFolder(bare))[0] == "healthy"


def test_logs_and_folders_of_older_runs_still_make_the_section(bare):
    write_table(bare / "tables/pretrain_log.csv", read_table(bare / "tables/pretrain_log.csv").drop(columns=["epoch", "spread_projection", "spread_least"]))
    (bare / "features/pretrain_tokens.npz").unlink()
    assert [b["kind"] for b in pretraining_section(RunFolder(bare))["blocks"]] == ["text", "figure"]
    (bare / "features/pretrain_tokens.npz").write_bytes(b"PK cut off")
    assert "not readable token pictures" in pretraining_section(RunFolder(bare))["blocks"][-1]["text"]


def test_subjects_named_by_numbers_keep_their_group_beside_their_intervals(bare):
    for name in ("subject_parameters.csv", "subject_intervals.csv"):
        t = read_table(bare / "tables" / name); write_table(bare / "tables" / name, t.assign(subject=t["subject"].map({"low-01": 1, "normal-01": 2, "high-01": 3})))
    block = next(b for b in measures_section(RunFolder(bare))["blocks"] if b["kind"] == "table" and "intervals" in b["caption"])
    assert [[c["text"] for c in r[:2]] for r in block["rows"]] == [["1", "low"], ["2", "normal"], ["3", "high"]]


def test_images_that_have_moved_are_said_to_be_gone(bare):
    for p in (bare / "images").iterdir(): p.unlink()
    assert "no longer where the manifest says" in write_report(bare).read_text(encoding="utf-8")


def test_what_comes_from_files_is_never_read_as_html(bare):
    evil = "<script>alert(1)</script>"
    rois = read_table(bare / "tables/rois.csv"); rois.loc[0, "subject"] = evil; write_table(bare / "tables/rois.csv", rois)
    write_json(bare / "run.json", read_json(bare / "run.json") | {"name": evil, "commit": evil, "steps": {evil: {"state": "failed", "reason": evil, "seconds": 1.0}}})
    page = write_report(bare).read_text(encoding="utf-8")
    assert "<script" not in page and page.count("&lt;script&gt;") >= 4


def test_a_study_without_masks_sizes_or_groups_is_reported_with_warnings_first(bare):
    rois = read_table(bare / "tables/rois.csv").assign(mask=np.nan, pixel_size_um=np.nan, group=np.nan)
    write_table(bare / "tables/rois.csv", rois)
    write_table(bare / "tables/subject_parameters.csv", pd.DataFrame({"subject": ["a"], "group": [np.nan], "not measured": ["its pixel size is unknown"]}))
    said = " ".join(run_warnings(RunFolder(bare)))
    assert "6 of 6 ROIs have no mask" in said and "6 of 6 ROIs have an unknown pixel size" in said and "1 of 1 subjects were not measured: its pixel size is unknown" in said
    page = write_report(bare).read_text(encoding="utf-8")
    assert page.index("Read first") < page.index("were analysed") and "The manifest gives no groups" in page


def test_rois_without_a_map_are_counted_by_reason_and_abstained_tiles_told(bare):
    s = read_table(bare / "tables/roi_segmentation.csv", keep_default_na=False)
    s.loc[:1, ["state", "abstained"]] = ["abstained", 20]; s.loc[2, "note"] = "stated brightfield, but 9 of 20 accepted tiles look like fluorescence"
    write_table(bare / "tables/roi_segmentation.csv", s)
    said = " ".join(run_warnings(RunFolder(bare)))
    assert "2 of 6 ROIs have no class map: the router abstained from every tile" in said and "1 of 6 ROIs need a look: stated brightfield" in said and "abstained from 40 of 120 tiles, in 2 of 6 ROIs" in said


def test_steps_that_failed_or_were_skipped_are_told_with_their_reason(bare):
    record = read_json(bare / "run.json"); record["steps"] |= {"heads": {"state": "failed", "reason": "no masks"}, "segment": {"state": "skipped", "reason": "needs heads"}}
    write_json(bare / "run.json", record); (bare / "tables/head_scores.csv").unlink()
    page = write_report(bare).read_text(encoding="utf-8")
    assert "failed: no masks" in page and "skipped: needs heads" in page and re.search("There is no head_scores.csv.*was skipped in this run", page)


def test_classes_of_ones_own_are_drawn_in_their_colours(bare):
    (bare / "manifest.yaml").write_text("classes:\n  brightfield:\n  - {id: 0, name: background, colour: '#000000'}\n  - {id: 1, name: nucleus, colour: '#ff0000'}\n  - {id: 2, name: rim, colour: '#00ff00'}\n")
    run = RunFolder(bare); roi = next(r for r in run.table("rois.csv", "inventory").itertuples() if r.modality == "brightfield")
    pictures = roi_pictures(run, roi)
    drawn = overlay(pictures["image"], pictures["true"], pictures["classes"], fill=1.0)
    assert (drawn[pictures["true"] == 1] == (255, 0, 0)).all() and (drawn[pictures["true"] == 2] == (0, 255, 0)).all()


def test_the_same_run_gives_the_same_page(run):
    assert (run / "report.html").read_bytes() == write_report(run).read_bytes()
