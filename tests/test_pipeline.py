"""The whole way through papermill on a small drawn study: it ends, resumes, re-runs what a change touches, and keeps what is finished."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from bonehisto.files import read_json
from bonehisto.pipeline import run_step, run_study
from bonehisto.recipe import STEPS

SMALL = ("uncertainty.draws=2", "pretrain.steps=4", "pretrain.batch=16", "heads.steps=6", "heads.batch=4", "embed.n_neighbours=5")


def bonehisto(*args, **kwargs):
    return subprocess.run([sys.executable, "-m", "bonehisto", *map(str, args)], capture_output=True, text=True, **kwargs)


def small_run(manifest, out, *more, steps=None):
    lines = []
    ok = run_study(manifest, out, "demo", SMALL + more, steps=steps, say=lines.append)
    return ok, "\n".join(lines)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    done = bonehisto("phantom", out, "--subjects", 6, "--rois", 1, "--size-px", 448)
    assert done.returncode == 0, done.stderr
    return out / "data_manifest.yaml"


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    ok, said = small_run(study, out)
    assert ok, said
    return out


def states(run):
    return {name: (s["state"], s.get("started")) for name, s in read_json(run / "run.json")["steps"].items()}


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


def test_a_changed_parameter_reruns_its_step_and_those_after_it(study, finished, tmp_path):
    run = tmp_path / "small"
    shutil.copytree(finished, run)
    before = states(run)
    ok, said = small_run(study, run, "summarise.confidence=0.9")
    assert ok, said
    changed = {n for n, s in states(run).items() if s != before[n]}
    assert changed == {"summarise", "compare", "audit", "report"}


def test_an_experiment_in_the_run_folder_comes_into_its_report(study, finished, tmp_path):
    run = tmp_path / "small"
    shutil.copytree(finished, run)
    assert 'id="experiments"' not in (run / "report.html").read_text()
    done = bonehisto("robustness", run, "-p", "robustness.rois=1", "-p", "robustness.size_um=128", "-p", "robustness.severities=[1.0]", "-p", "robustness.domains=[brightfield]")
    assert done.returncode == 0, done.stderr
    sheet, before = pd.read_csv(run / "tables/robustness_summary.csv"), states(run)
    assert {"plain", "fold", "pixel size x 2"} <= set(sheet["case"]) and (run / "figures/robustness.pdf").exists()
    ok, said = small_run(study, run)
    assert ok and {n for n, s in states(run).items() if s != before[n]} == {"report"}
    assert 'id="experiments"' in (run / "report.html").read_text()


def test_a_missing_output_is_made_again(study, finished, tmp_path):
    run = tmp_path / "small"
    shutil.copytree(finished, run)
    (run / "tables/subject_parameters.csv").unlink()
    ok, said = small_run(study, run)
    assert ok and (run / "tables/subject_parameters.csv").exists()
    assert (run / "tables/subject_parameters.csv").read_text() == (finished / "tables/subject_parameters.csv").read_text()


def test_chosen_steps_alone_run(study, tmp_path):
    ok, said = small_run(study, tmp_path / "r", steps=["inventory", "tile"])
    assert ok and set(states(tmp_path / "r")) == {"inventory", "tile"}


def test_a_step_whose_needs_are_missing_is_skipped_by_name(study, tmp_path):
    ok, said = small_run(study, tmp_path / "r", steps=["embed"])
    assert not ok and "needs tile, pretrain" in said


TIMES = {"seconds", "images_per_s"}  # columns that differ from run to run


def tables(run):
    "What the tables of a run hold, but for the times it took."
    read = {".csv": lambda p: pd.read_csv(p, dtype=str, keep_default_na=False), ".parquet": pd.read_parquet, ".json": read_json}
    found = {p.name: read[p.suffix](p) for p in sorted((run / "tables").iterdir())}
    return {n: t.drop(columns=TIMES & set(t)).to_csv(index=False) if isinstance(t, pd.DataFrame) else str(t) for n, t in found.items()}


def command(study, out):
    return [sys.executable, "-m", "bonehisto", "run", str(study), "--out", str(out), *(a for p in SMALL for a in ("-p", p))]


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


def test_two_runs_into_one_folder_the_second_refuses(study, tmp_path):
    run = tmp_path / "r"
    first = subprocess.Popen([*command(study, run), "--steps", "inventory"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 60
    while not (run / "log/holder.json").exists() and time.monotonic() < until: time.sleep(.01)
    second = bonehisto("run", study, "--out", run, "--steps", "inventory")
    assert second.returncode == 2 and f"process {first.pid}" in second.stderr.replace("\n", " ") and "another run is at work" in second.stderr.replace("\n", " "), second.stderr
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert "Nothing to do" in bonehisto("run", study, "--out", run, "--steps", "inventory", *(a for p in SMALL for a in ("-p", p))).stdout


def test_a_step_ends_when_its_runner_is_killed(study, tmp_path):
    import psutil
    process = subprocess.Popen([*command(study, tmp_path / "r"), "-p", "pretrain.steps=100000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until, log = time.monotonic() + 200, tmp_path / "r/log/pretrain.progress"
    while not log.exists() and time.monotonic() < until and process.poll() is None: time.sleep(.1)
    those = psutil.Process(process.pid).children(recursive=True)
    process.kill(); process.wait()
    assert those and not psutil.wait_procs(those, timeout=30)[1]
    done = bonehisto("run", study, "--out", tmp_path / "r", "--steps", "inventory")
    assert done.returncode == 0 and "was cut off" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("args, says", [
    (("-p", "pretrain.stepz=3"), "pretrain has no parameter `stepz`: did you mean `steps`?"),
    (("-p", "pretrian.steps=3"), "did you mean `pretrain`?"),
    (("-p", "pretrain.steps=many"), "expected int"),
    (("-p", "steps=3"), "step.parameter=value"),
    (("--profile", "demmo"), "did you mean `demo`?"),
    (("--steps", "segmnt"), "did you mean `segment`?"),
])
def test_a_mistyped_option_ends_with_code_2_and_writes_nothing(study, tmp_path, args, says):
    done = bonehisto("run", study, "--out", tmp_path / "r", *args)
    assert done.returncode == 2 and says in done.stderr.replace("\n", " "), done.stderr
    assert not (tmp_path / "r").exists()


def test_a_folder_that_is_no_run_is_left_alone(study, tmp_path):
    (tmp_path / "thesis.docx").write_text("mine")
    done = bonehisto("run", study, "--out", tmp_path)
    assert done.returncode == 2 and "is not a run folder" in done.stderr.replace("\n", " ")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


def test_ctrl_c_keeps_finished_steps_and_the_same_command_goes_on(study, tmp_path):
    run = tmp_path / "r"
    options = [x for p in SMALL for x in ("-p", p)]
    process = subprocess.Popen([sys.executable, "-m", "bonehisto", "run", str(study), "--out", str(run), *options, "-p", "pretrain.steps=100000"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(600):
        if (run / "run.json").exists() and states(run).get("pretrain", ("",))[0] == "running": break
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Stopped" in err, (out, err)
    assert states(run)["pretrain"][0] == "stopped" and states(run)["tile"][0] == "done"
    assert not list(run.rglob("*.tmp*"))
    ok, said = small_run(study, run, steps=["inventory", "tile"])
    assert ok and "Nothing to do" in said


def test_a_failing_step_keeps_its_page_and_the_report_still_comes(study, tmp_path):
    ok, said = small_run(study, tmp_path / "r", "pretrain.batch=100000")
    assert not ok and "pretrain" in said and "FAILED" in said
    record = read_json(tmp_path / "r/run.json")["steps"]
    assert record["pretrain"]["state"] == "failed" and "batch" in record["pretrain"]["reason"]
    assert record["embed"]["state"] == "skipped" and record["report"]["state"] == "done"
    assert json.loads((tmp_path / "r/notebooks/35_pretrain.ipynb").read_text())["cells"]


def test_a_run_is_made_again_from_its_record_and_what_differs_is_told(study, tmp_path):
    run, again = tmp_path / "r", tmp_path / "again"
    ok, said = small_run(study, run, "inventory.seed=3", steps=["inventory", "tile"]); assert ok, said
    (run / "notebooks/10_inventory.ipynb").write_text("raise SystemExit('a notebook of the folder was executed')")
    done = bonehisto("rerun", run, "--out", again)
    assert done.returncode == 0 and "Nothing differs" in done.stdout, done.stdout + done.stderr
    record = read_json(again / "run.json")
    assert set(states(again)) == {"inventory", "tile"} and record["parameters"]["inventory"]["seed"] == 3
    table = pd.read_csv(run / "tables/rois.csv"); table.loc[1, "width"] += 7; table.to_csv(run / "tables/rois.csv", index=False)
    (run / "tables/notes.csv").unlink()
    done = bonehisto("rerun", run, "--out", again)
    told = " ".join(done.stdout.split())
    assert done.returncode == 1 and "tables/rois.csv width 1 7" in told and "tables/notes.csv (only in " in told, done.stdout
    record = read_json(run / "run.json"); record["parameters"]["tile"]["regoin"] = 5; (run / "run.json").write_text(json.dumps(record))
    done = bonehisto("rerun", run, "--out", tmp_path / "third")
    assert done.returncode == 2 and "did you mean `region`" in done.stderr.replace("\n", " ") and not (tmp_path / "third/run.json").exists()


@pytest.mark.parametrize("make, says", [(lambda d: None, "holds no run.json"), (lambda d: (d / "run.json").write_text('{"steps": {}}'), "holds no run.json with parameters")])
def test_a_folder_that_is_no_run_cannot_be_made_again(tmp_path, make, says):
    make(tmp_path)
    done = bonehisto("rerun", tmp_path)
    assert done.returncode == 2 and says in done.stderr.replace("\n", " ") and not list(tmp_path.parent.glob(f"{tmp_path.name}_again"))


def test_a_run_cut_off_at_its_very_start_can_be_begun_again(study, tmp_path):
    (tmp_path / "r/log").mkdir(parents=True)
    ok, said = small_run(study, tmp_path / "r", steps=["inventory"])
    assert ok, said


def spoiled_during(name, image):
    "Runs steps; while the one of that name is at work, the image is cut short, as on a disk that fails."
    def execute(step, run, parameters, **more):
        if step.name != name: return run_step(step, run, parameters, **more)
        whole = image.read_bytes(); image.write_bytes(whole[:len(whole) // 2])
        try: return run_step(step, run, parameters, **more)
        finally: image.write_bytes(whole)
    return execute


@pytest.mark.parametrize("steps", [["tile", "segment", "measure", "report"], pytest.param(None, marks=pytest.mark.slow)])
def test_two_workers_give_the_tables_of_one_and_a_file_that_fails_costs_its_roi(study, finished, tmp_path, monkeypatch, steps):
    run, rois = tmp_path / "small", pd.read_csv(finished / "tables/rois.csv").set_index("roi")
    roi, other = [r for r in rois.index if (finished / f"masks/{r}.png").exists()][:2]
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("tiles.npy", "roi_segmentation.csv", "roi_parameters.csv"))
    monkeypatch.setenv("BONEHISTO_WORKERS", "2")
    said = []
    assert not run_study(study, run, "demo", SMALL, steps, said.append, execute=spoiled_during("segment", Path(rois.image[roi])))
    record = read_json(run / "run.json")["steps"]
    assert "1 set aside" in "\n".join(said) and list(record["segment"]["set_aside"]) == [roi] and {s["state"] for s in record.values()} == {"done"}
    assert not (run / f"masks/{roi}.png").exists() and record["segment"]["set_aside"][roi].splitlines()[0] in unescape((run / "report.html").read_text())
    measured = pd.read_csv(run / "tables/roi_parameters.csv", dtype=str, keep_default_na=False).set_index("roi")
    assert measured["not measured"][roi] and not measured["not measured"][other]
    before = (run / f"masks/{other}.png").stat().st_mtime_ns
    ok, said = small_run(study, run, steps=steps)
    assert ok and (run / f"masks/{other}.png").stat().st_mtime_ns == before and tables(run) == tables(finished), said
