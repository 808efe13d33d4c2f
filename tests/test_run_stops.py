"""Runs that stop half-way, that fail, that are called wrongly or begun twice: what is finished is kept, what is another's is left alone."""
import json
import os
import shutil
import signal
import subprocess
import time

import pandas as pd
import psutil
import pytest
from small_study import OPTIONS, bonehisto, command, draw_small, small_run, states

from bonehisto.files import read_json


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return draw_small(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def tiled(study, tmp_path_factory):
    "A run that stopped before pretraining."
    out = tmp_path_factory.mktemp("runs") / "small"
    ok, said = small_run(study, out, steps=["inventory", "tile"])
    assert ok, said
    return out


def test_two_runs_into_one_folder_the_second_refuses(study, tmp_path):
    run = tmp_path / "r"
    first = subprocess.Popen([*command(study, run), "--steps", "inventory"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 60
    while not (run / "log/holder.json").exists() and time.monotonic() < until: time.sleep(.01)
    second = bonehisto("run", study, "--out", run, "--steps", "inventory")
    assert second.returncode == 2 and f"process {first.pid}" in second.stderr.replace("\n", " ") and "another run is at work" in second.stderr.replace("\n", " "), second.stderr
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert "Nothing to do" in bonehisto("run", study, "--out", run, "--steps", "inventory", *OPTIONS).stdout


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


def test_a_step_whose_needs_are_missing_is_skipped_by_name(study, tmp_path):
    ok, said = small_run(study, tmp_path / "r", steps=["embed"])
    assert not ok and "needs tile, pretrain" in said


def test_a_run_cut_off_at_its_very_start_can_be_begun_again(study, tmp_path):
    (tmp_path / "r/log").mkdir(parents=True)
    ok, said = small_run(study, tmp_path / "r", steps=["inventory"])
    assert ok, said


def test_a_step_ends_when_its_runner_is_killed(study, tiled, tmp_path):
    shutil.copytree(tiled, tmp_path / "r")
    process = subprocess.Popen([*command(study, tmp_path / "r"), "-p", "pretrain.steps=100000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until, log = time.monotonic() + 200, tmp_path / "r/log/pretrain.progress"
    while not log.exists() and time.monotonic() < until and process.poll() is None: time.sleep(.1)
    those = psutil.Process(process.pid).children(recursive=True)
    process.kill(); process.wait()
    assert those and not psutil.wait_procs(those, timeout=30)[1]
    done = bonehisto("run", study, "--out", tmp_path / "r", "--steps", "inventory")
    assert done.returncode == 0 and "was cut off" in done.stdout, done.stdout + done.stderr


def test_ctrl_c_keeps_finished_steps_and_the_same_command_goes_on(study, tiled, tmp_path):
    run = tmp_path / "r"
    shutil.copytree(tiled, run)
    process = subprocess.Popen([*command(study, run), "-p", "pretrain.steps=100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
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


def test_a_failing_step_keeps_its_page_and_the_report_still_comes(study, tiled, tmp_path):
    shutil.copytree(tiled, tmp_path / "r")
    ok, said = small_run(study, tmp_path / "r", "pretrain.batch=100000")
    assert not ok and "pretrain" in said and "FAILED" in said
    record = read_json(tmp_path / "r/run.json")["steps"]
    assert record["pretrain"]["state"] == "failed" and "batch" in record["pretrain"]["reason"]
    assert record["embed"]["state"] == "skipped" and record["report"]["state"] == "done"
    assert json.loads((tmp_path / "r/notebooks/35_pretrain.ipynb").read_text())["cells"]


def test_a_run_is_made_again_from_its_record_and_what_differs_is_told(study, tmp_path):
    run, again = tmp_path / "r", tmp_path / "again"
    ok, said = small_run(study, run, "inventory.seed=3", steps=["inventory", "tile"])
    assert ok and set(states(run)) == {"inventory", "tile"}, said
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
