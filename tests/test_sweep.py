"""Sweeps and comparisons of runs: what varies is named, what does not is made once, differences are paired."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bonehisto.compare_runs import compare_runs, run_values
from bonehisto.files import UserError, read_json, read_table, write_json, write_table
from bonehisto.pipeline import run_study
from bonehisto.sweep import run_sweep
from synthetic_run import make_run
from written_study import write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


def pretend(step, run, parameters, show=None, kept=None):
    "A step that writes its parameters into every file that it promises."
    for path in step.writes: write_json(Path(run) / path.replace("*", "all"), parameters)
    write_json(Path(run) / "notebooks" / step.notebook, {})
    return {"ok": True, "error": "", "user_error": False}


def test_a_sweep_makes_a_run_for_every_combination_and_nothing_twice(study, tmp_path):
    grid, said, chosen = ["tile.region=448", "pretrain.steps=2,3", "embed.n_neighbours=5,6"], [], ["inventory", "tile", "pretrain", "embed"]
    def sweep(): return run_sweep(study, tmp_path / "sweep", "demo", grid, chosen, said.append, execute=pretend)
    ok, table = sweep()
    assert ok and table["run"].tolist() == [f"pretrain.steps-{s}_embed.n_neighbours-{n}" for s in (2, 3) for n in (5, 6)] and table["pretrain.steps"].tolist() == [2, 2, 3, 3] and (table["state"] == "done").all()
    assert [s.strip() for s in said if "taken over" in s] == ["taken over: inventory, tile, pretrain", "taken over: inventory, tile", "taken over: inventory, tile, pretrain"]
    first, second, third, last = (tmp_path / "sweep" / r for r in table["run"])
    assert (first / "tiles/tiles.npy").samefile(last / "tiles/tiles.npy") and not (first / "tables/tiles.parquet").samefile(last / "tables/tiles.parquet")
    assert read_json(last / "run.json")["steps"]["pretrain"]["from"] == third.name and read_json(last / "checkpoints/encoder.json")["steps"] == 3 and read_json(second / "tables/separation.csv")["n_neighbours"] == 6
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("tables/*")}
    ok, again = sweep()
    assert ok and again.equals(table) and before == {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("tables/*")}


def test_a_run_that_fails_is_told_and_the_others_go_on(study, tmp_path):
    def fails(step, run, parameters, **more):
        return {"ok": False, "error": "too many", "user_error": False} if parameters.get("steps") == 3 else pretend(step, run, parameters)
    ok, table = run_sweep(study, tmp_path / "sweep", "demo", ["pretrain.steps=3,2"], ["inventory", "tile", "pretrain"], lambda _: None, execute=fails)
    assert not ok and table["state"].tolist() == ["failed: pretrain", "done"]


def test_a_wrong_value_is_found_before_anything_runs(study, tmp_path):
    for grid, says in ((["pretrain.steps=2,many"], "pretrain.steps"), (["pretrain.stepz=2"], "did you mean"), (["nope=1"], "step.parameter")):
        with pytest.raises(UserError, match=says): run_sweep(study, tmp_path / "sweep", "demo", grid, say=lambda _: None)
    assert not (tmp_path / "sweep").exists()


def scored(folder, shift, seed=0):
    "A finished run, made up, whose brightfield Dice is higher by `shift`."
    make_run(folder, size=64); run = folder
    rng = np.random.default_rng(seed)
    write_table(run / "tables/head_scores_subjects.csv", pd.DataFrame([{"domain": "brightfield", "subject": f"S{k:02d}", "class": "tissue mean", "dice": .7 + .03 * k + shift + rng.normal(0, .001),
                                                                      **dict.fromkeys(("iou", "boundary_f1", "detection_f1", "object_f1", "width_px", "width_error_px"), .5)} for k in range(6)]))
    return run


def test_a_small_shift_shows_in_pairs_where_means_overlap(tmp_path):
    a, b = scored(tmp_path / "a", 0), scored(tmp_path / "b", .01, 1)
    values, settings = compare_runs([a, b])
    row = values[(values["run"] == "b") & (values["name"] == "dice, tissue mean")].iloc[0]
    assert row["low"] < values[values["name"] == "dice, tissue mean"]["mean"].iloc[0] < row["high"]  # the means' intervals overlap
    assert .008 < row["difference low"] < row["difference"] < row["difference high"] < .012 and row["pairs"] == 6
    assert (values.loc[(values["run"] == "b") & (values["kind"] == "parameter"), "difference"].abs() < 1e-9).all()
    record = read_json(b / "run.json"); record["parameters"]["heads"] = record["parameters"].get("heads", {}) | {"stem": False}
    write_json(b / "run.json", record)
    assert "stem" in compare_runs([a, b])[1]["parameter"].tolist()
    done = subprocess.run([sys.executable, "-m", "bonehisto", "compare", a, b, "--out", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0 and "0.01" in done.stdout and {p.name for p in (tmp_path / "out").iterdir()} == {"run_values.csv", "run_settings.csv", "run_scores.png", "run_parameters.png"}, done.stderr


def test_a_folder_without_results_cannot_be_compared(tmp_path):
    a = scored(tmp_path / "a", 0)
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="is no run folder"): compare_runs([a, tmp_path / "b"])
    write_json(tmp_path / "b/run.json", {"steps": {}})
    with pytest.raises(UserError, match="has no scores"): compare_runs([a, tmp_path / "b"])
    assert run_values(tmp_path / "b").empty


def test_an_roi_that_fails_is_set_aside_named_and_tried_again(study, tmp_path):
    """Here a step pretends; that its work sets ROIs aside is held in test_fan_out."""
    done, bad, said = [], {"tile": "S0_b: no good"}, []
    def execute(step, run, parameters, show=None, kept=None):
        done.append(step.name)
        if step.name in bad: write_json(Path(kept) / "tiling/S0_b.json", {"set_aside": bad[step.name]})
        else: (kept / "tiling/S0_b.json").unlink(missing_ok=True)
        return pretend(step, run, parameters)
    def run(): done.clear(); return run_study(study, tmp_path / "run", "demo", (), ["inventory", "tile", "pretrain"], said.append, execute=execute)
    assert not run() and "1 set aside" in "".join(said) and "no good" in "".join(said) and done == ["inventory", "tile", "pretrain"]
    assert read_json(tmp_path / "run/run.json")["steps"]["tile"]["set_aside"] == {"S0_b": "S0_b: no good"}
    assert not run() and done == ["tile"]  # the same ROI fails again: what rests on the others stands
    bad.clear()
    assert run() and done == ["tile", "pretrain"] and not list((tmp_path / "run/log/kept").glob("*"))  # another ROI more: what follows is made again
    assert run() and not done


def test_what_a_step_had_finished_stays_when_it_goes_on(study, tmp_path):
    """Maps of an attempt that set an ROI aside, or was killed, are older than the one that goes on, and no less good."""
    run, chosen, failing = tmp_path / "run", ["inventory", "tile", "pretrain", "embed", "route", "heads", "segment"], [True]
    def execute(step, run, parameters, show=None, kept=None):
        if step.name == "segment":
            a, b = (Path(kept) / f"segmenting/{roi}.json" for roi in "ab")
            if not a.exists(): write_json(run / "masks/a.png", {}); write_json(a, {"result": ""})
            write_json(b, {"set_aside": "no good"} if failing[0] else {"result": ""})
            if not failing[0]: write_json(run / "masks/b.png", {})
        return pretend(step, run, parameters)
    def go(): return run_study(study, run, "demo", (), chosen, lambda _: None, execute=execute)
    (run / "masks").mkdir(parents=True); write_json(run / "run.json", {"steps": {"segment": {"outputs": {"masks/old.png": 2}}}}); write_json(run / "masks/old.png", {})
    os.utime(run / "masks/old.png", (1e9, 1e9))
    assert not go() and (run / "masks/a.png").exists() and not (run / "masks/old.png").exists()
    for path in (run / "masks/a.png", *(run / "log/kept").rglob("*")): os.utime(path, ns=(path.stat().st_mtime_ns - 10**11,) * 2)
    failing[0] = False
    assert go() and (run / "masks/a.png").exists() and (run / "masks/b.png").exists()
