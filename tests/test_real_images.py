"""The whole way on real images that no generator made: nuclei in two domains, and pictures without any mask."""
import csv
import importlib.util
from pathlib import Path

import pytest
import yaml

from bonehisto.files import read_json, read_table
from bonehisto.pipeline import run_study

SHORT = ("pretrain.steps=4", "pretrain.batch=16", "heads.steps=6", "heads.batch=4")


@pytest.fixture
def nuclei(shared):
    data = shared / "data" / "dsb2018"
    if not data.is_dir():
        pytest.skip(f"{data} is not here: the real images are not part of the repository")
    return data


def write_manifest(data, out, keep=None):
    """The manifest of the data set; with `keep`, of that many images per domain and split."""
    spec = importlib.util.spec_from_file_location("dsb2018", Path(__file__).parent / "manifests" / "dsb2018.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = module.write_dsb2018(out, data)
    if keep:
        study, seen = yaml.safe_load(path.read_text()), {}
        study["rois"] = [r for r in study["rois"] if seen.setdefault((r["modality"], r["split"]), []).append(r) or len(seen[r["modality"], r["split"]]) <= keep]
        named = {r["subject"] for r in study["rois"]}
        study["subjects"] = [s for s in study["subjects"] if s["id"] in named]
        path.write_text(yaml.safe_dump(study))
    return path


def finish(manifest, out, *overrides):
    lines = []
    ok = run_study(manifest, out, "demo", overrides, say=lines.append)
    assert ok, "\n".join(lines)
    return out


def test_a_few_real_images_of_another_class_table_run_to_the_report(nuclei, tmp_path):
    run = finish(write_manifest(nuclei, tmp_path / "m.yaml", keep=6), tmp_path / "run", *SHORT)
    scores = read_table(run / "tables/head_scores.csv")
    assert set(scores["domain"]) == {"brightfield", "fluorescence"} and "nucleus" in set(scores["class"])
    rows = read_table(run / "tables/roi_parameters.csv", keep_default_na=False)
    assert rows["not measured"].str.contains("background, nucleus").all()  # nuclei are no bone: left out, with the reason
    assert (run / "report.html").exists()


def test_pictures_without_masks_run_and_the_heads_say_what_is_missing(nuclei, tmp_path):
    path = write_manifest(nuclei, tmp_path / "m.yaml", keep=6)
    study = yaml.safe_load(path.read_text())
    for roi in study["rois"]: roi.pop("mask")
    path.write_text(yaml.safe_dump(study))
    run = finish(path, tmp_path / "run", *SHORT)
    assert len(read_table(run / "tables/router_tiles.parquet")) and not list(run.glob("checkpoints/head_*"))
    page = Path(run / "notebooks/60_heads.ipynb").read_text()
    assert "has a mask, so no head is trained for it" in page
    assert "mask" in (run / "report.html").read_text()


@pytest.mark.slow
def test_the_whole_data_set_at_demo_sizes_reaches_its_bars(nuclei, tmp_path):
    run = finish(write_manifest(nuclei, tmp_path / "m.yaml"), tmp_path / "run")
    with open(nuclei / "index.csv") as f:
        published = {r["id"] for r in csv.DictReader(f) if r["split"] == "val"}
    rois = read_table(run / "tables/rois.csv", keep_default_na=False)
    assert set(rois.loc[rois["split"] == "test", "subject"]) == published
    router = read_table(run / "tables/router_scores.csv")
    assert router.query("domain == 'all' and score == 'right'")["mean"].item() >= 0.98
    scores = read_table(run / "tables/head_scores.csv")
    dice = scores[(scores["class"] == "nucleus") & (scores["score"] == "dice")].set_index("domain")["mean"]
    assert dice["fluorescence"] >= 0.82 and dice["brightfield"] >= 0.72
    assert read_json(run / "run.json")["profile"] == "demo"
