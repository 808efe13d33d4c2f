"""The whole way through papermill on a small drawn study: it ends, resumes, re-runs what a change touches, and keeps what is finished."""
import re
import shutil
import subprocess
import time
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from small_study import SMALL, bonehisto, command, draw_small, small_run, states

from bonehisto.files import read_json
from bonehisto.manifest import load_manifest
from bonehisto.pipeline import plan_run, run_step, run_study
from bonehisto.recipe import STEPS, resolve_parameters


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return draw_small(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    ok, said = small_run(study, out)
    assert ok, said
    return out


def test_every_step_ends_well_and_leaves_what_it_promised(finished):
    record = read_json(finished / "run.json")["steps"]
    assert [s.name for s in STEPS] == list(record)
    for step in STEPS:
        assert record[step.name]["state"] == "done" and record[step.name]["outputs"], step.name
        assert (finished / "notebooks" / step.notebook).exists()
    assert (finished / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_map_is_as_large_as_its_image(finished):
    from bonehisto.images import image_size
    rois = pd.read_csv(finished / "tables/rois.csv")
    segmented = pd.read_csv(finished / "tables/roi_segmentation.csv")
    mapped = [r for r in rois.roi if (finished / f"masks/{r}.png").exists()]
    assert mapped and set(segmented.roi) == set(rois.roi)
    for roi in mapped:
        assert image_size(finished / f"masks/{roi}.png") == image_size(rois.set_index("roi").image[roi])


def test_every_measured_roi_has_its_picture_and_no_link_of_the_pages_is_dead(finished):
    rows, subjects = (pd.read_csv(finished / f"tables/{name}_parameters.csv", dtype={"not measured": str}, keep_default_na=False) for name in ("roi", "subject"))
    measured = set(rows.loc[rows["not measured"] == "", "roi"])
    assert {p.stem for p in (finished / "audit").glob("*.jpg")} == measured == {p.stem for p in (finished / "audit").glob("*.geojson")}
    pages = [finished / "report.html", *(finished / "audit").glob("*.html")]
    assert len(pages) == 1 + len(subjects)
    for page in pages:
        links = {unquote(a.partition("#")[0]) for a in re.findall(r'(?:href|src)="([^"#][^"]*)"', page.read_text()) if not a.startswith("data:image/")}
        assert links and all((page.parent / a).is_file() for a in links), page.name
    assert all(f'href="audit/{s}.html"' in pages[0].read_text() for s in subjects["subject"])


def test_the_same_command_again_does_nothing_and_says_so(study, finished):
    before = states(finished)
    ok, said = small_run(study, finished)
    assert ok and "Nothing to do" in said and states(finished) == before


def test_a_changed_parameter_reruns_its_step_and_those_after_it_and_an_experiment_comes_into_the_report(study, finished, tmp_path):
    run = tmp_path / "small"
    shutil.copytree(finished, run)
    assert 'id="experiments"' not in (run / "report.html").read_text()
    done = bonehisto("robustness", run, "-p", "robustness.rois=1", "-p", "robustness.size_um=128", "-p", "robustness.severities=[1.0]", "-p", "robustness.domains=[brightfield]")
    assert done.returncode == 0, done.stderr
    sheet, before = pd.read_csv(run / "tables/robustness_summary.csv"), states(run)
    assert {"plain", "fold", "pixel size x 2"} <= set(sheet["case"]) and (run / "figures/robustness.pdf").exists()
    manifest, parameters = load_manifest(study), resolve_parameters("demo", SMALL)
    assert [s.name for s, _, stands in plan_run(run, manifest, parameters) if not stands] == ["report"]  # for the experiment alone
    ok, said = small_run(study, run, "summarise.confidence=0.9")
    assert ok and {n for n, s in states(run).items() if s != before[n]} == {"summarise", "compare", "audit", "report"}, said
    assert 'id="experiments"' in (run / "report.html").read_text()


def test_a_missing_output_is_made_again(study, finished, tmp_path):
    run = tmp_path / "small"
    shutil.copytree(finished, run)
    (run / "tables/subject_parameters.csv").unlink()
    ok, said = small_run(study, run)
    assert ok and (run / "tables/subject_parameters.csv").exists()
    assert (run / "tables/subject_parameters.csv").read_text() == (finished / "tables/subject_parameters.csv").read_text()


TIMES = {"seconds", "images_per_s"}  # columns that differ from run to run


def tables(run):
    "What the tables of a run hold, but for the times it took."
    read = {".csv": lambda p: pd.read_csv(p, dtype=str, keep_default_na=False), ".parquet": pd.read_parquet, ".json": read_json}
    found = {p.name: read[p.suffix](p) for p in sorted((run / "tables").iterdir())}
    return {n: t.drop(columns=TIMES & set(t)).to_csv(index=False) if isinstance(t, pd.DataFrame) else str(t) for n, t in found.items()}


def kill_at_random(study, finished, out, rng):
    "Starts a run, kills its process at a random moment and leaves everything else to itself."
    spans = [s["seconds"] for s in read_json(finished / "run.json")["steps"].values()]
    process = subprocess.Popen(command(study, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try: process.wait(timeout=float(rng.uniform(2, .9 * sum(spans))))
    except subprocess.TimeoutExpired: process.kill()
    process.wait()


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_goes_on_to_the_same_tables(study, finished, tmp_path, kills):
    import numpy as np
    seed = int(time.time()); print("seed", seed)
    rng, run = np.random.default_rng(seed), tmp_path / "small"
    for _ in range(kills): kill_at_random(study, finished, run, rng)
    done = subprocess.run(command(study, run), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was cut off" in done.stdout or "Nothing to do" in done.stdout, done.stdout
    whole, again = tables(finished), tables(run)
    assert set(whole) == set(again) and [n for n in whole if whole[n] != again[n]] == []


def spoiled_during(name, image):
    "Runs steps; while the one of that name is at work, the image is cut short, as on a disk that fails."
    def execute(step, run, parameters, **more):
        if step.name != name: return run_step(step, run, parameters, **more)
        whole = image.read_bytes(); image.write_bytes(whole[:len(whole) // 2])
        try: return run_step(step, run, parameters, **more)
        finally: image.write_bytes(whole)
    return execute


def test_two_workers_give_the_tables_of_one(study, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("tiles.npy", "roi_segmentation.csv", "roi_parameters.csv"))
    monkeypatch.setenv("BONEHISTO_WORKERS", "2")
    ok, said = small_run(study, out, steps=["tile", "segment", "measure"])
    assert ok and "kept" not in said, said
    assert tables(out) == tables(finished)


@pytest.mark.parametrize("steps", [["segment", "measure", "report"], pytest.param(None, marks=pytest.mark.slow)])
def test_a_file_that_fails_costs_its_roi_and_the_same_command_mends_it(study, finished, tmp_path, monkeypatch, steps):
    run, rois = tmp_path / "small", pd.read_csv(finished / "tables/rois.csv").set_index("roi")
    roi, other = [r for r in rois.index if (finished / f"masks/{r}.png").exists()][:2]
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("roi_segmentation.csv", "roi_parameters.csv"))
    monkeypatch.setenv("BONEHISTO_WORKERS", "2")
    said = []
    assert not run_study(study, run, "demo", SMALL, steps, said.append, execute=spoiled_during("segment", Path(rois.image[roi])))
    record = read_json(run / "run.json")["steps"]
    assert "1 set aside" in "\n".join(said) and list(record["segment"]["set_aside"]) == [roi] and {s["state"] for s in record.values()} == {"done"}
    assert not (run / f"masks/{roi}.png").exists() and record["segment"]["set_aside"][roi].splitlines()[0] in unescape((run / "report.html").read_text())
    measured = pd.read_csv(run / "tables/roi_parameters.csv", dtype=str, keep_default_na=False).set_index("roi")
    assert measured["not measured"][roi] and not measured["not measured"][other]
    before = (run / f"masks/{other}.png").stat().st_mtime_ns
    ok, said = small_run(study, run, steps=steps and steps[:-1])  # whose tables count now, not the page
    assert ok and (run / f"masks/{other}.png").stat().st_mtime_ns == before, said
    whole, again = tables(finished), tables(run)
    assert set(whole) == set(again) and [n for n in whole if whole[n] != again[n]] in ([], ["segment_tiles.parquet"])
    pd.testing.assert_frame_equal(*(pd.read_parquet(r / "tables/segment_tiles.parquet") for r in (run, finished)), rtol=1e-12)  # a group is summed in another order than its ROIs alone
