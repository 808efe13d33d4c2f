"""A manifest is refused for every mistake it can hold, with the file, the field and what to do; what is right loads from anywhere."""
import os
import subprocess
import sys

import pytest
from conftest import REPO
from written_study import STUDY, write_study

from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.files import UserError
from bonehisto.manifest import load_manifest, save_manifest


def problems(path):
    with pytest.raises(UserError) as caught:
        load_manifest(path)
    return caught.value.problems


def at(*keys, value):
    """A change that puts `value` at a place of the study; `...` removes the key."""
    def change(study):
        place = study
        for key in keys[:-1]:
            place = place[key]
        if value is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
    return change


PIXEL = "give the micrometres per pixel"
TWO = [{"id": 0, "name": "background", "colour": "#000000"}, {"id": 1, "name": "nucleus", "colour": "#e07b39"}]
MISTAKES = {
    "pixel size zero": (at("rois", 3, "pixel_size_um", value=0), ["data_manifest.yaml: rois[3].pixel_size_um is 0: " + PIXEL]),
    "pixel size missing": (at("rois", 3, "pixel_size_um", value=...), ["rois[3].pixel_size_um is missing: " + PIXEL]),
    "pixel size empty": (at("rois", 3, "pixel_size_um", value=None), ["rois[3].pixel_size_um is empty: " + PIXEL]),
    "pixel size negative": (at("rois", 3, "pixel_size_um", value=-0.5), ["rois[3].pixel_size_um is -0.5: " + PIXEL]),
    "pixel size absurd": (at("rois", 3, "pixel_size_um", value=500), ["rois[3].pixel_size_um is 500: outside 0.01 to 20", PIXEL]),
    "pixel size no number": (at("rois", 3, "pixel_size_um", value="half"), ["rois[3].pixel_size_um is half: " + PIXEL]),
    "pixel size infinite": (at("rois", 3, "pixel_size_um", value=float("inf")), ["rois[3].pixel_size_um is inf: " + PIXEL]),
    "pixel size a list": (at("rois", 3, "pixel_size_um", value=[0.5, 0.5]), ["rois[3].pixel_size_um: one size is needed for rows and columns: where pixels are not square, resample the image"]),
    "id a list": (at("rois", 3, "id", value=["a"]), ["rois[3].id is not right: give a name"]),
    "pixel size true": (at("rois", 3, "pixel_size_um", value=True), ["rois[3].pixel_size_um is True: " + PIXEL]),
    "image missing": (at("rois", 0, "image", value="images/none.png"), ["rois[0].image is images/none.png: no such file"]),
    "mask missing": (at("rois", 0, "mask", value="masks/none.png"), ["rois[0].mask is masks/none.png: no such file"]),
    "pattern without match": (at("rois", 0, "image", value="images/*.jpg"), ["rois[0].image is images/*.jpg: no file in", "matches"]),
    "unknown key of an ROI": (at("rois", 1, "pixelsize_um", value=1), ["rois[1].pixelsize_um is not a known key: did you mean `pixel_size_um`?"]),
    "unknown key of a subject": (at("subjects", 1, "gruop", value="low"), ["subjects[1].gruop is not a known key: did you mean `group`?"]),
    "unknown key on top": (at("roi", value=[]), ["data_manifest.yaml: roi is not a known key: did you mean `rois`?"]),
    "unknown modality": (at("rois", 1, "modality", value="fluorescent"), ["rois[1].modality is fluorescent: give brightfield or fluorescence"]),
    "unknown split": (at("rois", 1, "split", value="validation"), ["rois[1].split is validation: give train, val or test"]),
    "duplicate id": (at("rois", 1, "id", value="S0_b"), ["rois[1].id is S0_b, as in rois[0]"]),
    "same image twice": (lambda s: s["rois"][1].update(id="other", image="images/../images/S0_b.png"), ["rois[1].image is S0_b.png, the same file as in rois[0]"]),
    "unlisted subject": (at("rois", 1, "subject", value="S9"), ["rois[1].subject is S9: no such subject is listed"]),
    "subject listed twice": (lambda s: s["subjects"].append({"id": "S0"}), ["subjects: S0 is listed twice"]),
    "id that is a path": (at("rois", 1, "id", value="../a"), ["rois[1].id is ../a: give a name without /"]),
    "id that hides a result": (at("rois", 1, "id", value="S0_b_confidence"), ["rois[1].id is S0_b_confidence: results are saved under this ending"]),
    "no ROI": (at("rois", value=[]), ["rois is empty"]),
    "rois forgotten": (at("rois", value=...), ["rois is missing"]),
    "CSV missing": (at("rois", value="rois.csv"), ["rois is rois.csv: no such CSV file"]),
    "an ROI that is a word": (at("rois", 2, value="images/a.png"), ["rois[2] is images/a.png: give `key: value` pairs"]),
    "days in disorder": (at("labels", "dosing_days", value=[[16, 17], [1, 2]]), ["labels.dosing_days: the days must increase", "[[1, 2, 3], [16, 17, 18]]"]),
    "one course of days": (at("labels", "dosing_days", value=[[1, 2, 3]]), ["labels.dosing_days is not right: give two lists of days"]),
    "section": (at("section", value="illiac"), ["section is illiac: give none, isotropic or iliac"]),
    "instances with three classes": (lambda s: s.update(masks="instances", classes={"fluorescence": TWO}), ["masks is instances, but classes.brightfield has 3 classes"]),
    "gap in class ids": (at("classes", value={"brightfield": [{"id": 0, "name": "a", "colour": "#000000"}, {"id": 2, "name": "b", "colour": "#111111"}]}),
                         ["classes.brightfield: the ids are 0, 2"]),
    "colour twice": (at("classes", value={"brightfield": [{"id": 0, "name": "a", "colour": "#000000"}, {"id": 1, "name": "b", "colour": "000000"}]}),
                     ["classes.brightfield: the colour #000000 is given twice"]),
    "colour that is none": (at("classes", value={"brightfield": [{"id": 0, "name": "a", "colour": "black"}, {"id": 1, "name": "b", "colour": "#111111"}]}),
                            ["classes.brightfield[0].colour is black: give six hexadecimal digits"]),
    "domain of classes": (at("classes", value={"brightfeld": []}), ["classes.brightfeld is not a domain: did you mean `brightfield`?"]),
    "data folder": (at("data_root", value="elsewhere"), ["data_root is elsewhere: no such folder"]),
    "phantom not drawn": (at("data_root", value="data/phantom"), ["data_root is data/phantom: no such folder", "`make demo` or `bonehisto phantom data/phantom`"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named_with_its_field_and_what_to_do(tmp_path, mistake):
    change, expected = MISTAKES[mistake]
    found = problems(write_study(tmp_path, change))
    assert len(found) == 1, found
    for text in expected:
        assert text in found[0]


def test_a_subject_in_two_splits_is_refused_naming_both_places(tmp_path):
    def change(study):
        study["rois"][0]["split"], study["rois"][1]["split"] = "train", "test"
    assert "rois[1].split is test, but subject S0 is in train (rois[0])" in problems(write_study(tmp_path, change))[0]


def test_all_problems_come_together_with_their_lines(tmp_path):
    def change(study):
        study["sectoin"] = "iliac"
        study["rois"][0]["pixel_size_um"] = 0
        study["rois"][4] |= {"image": "images/none.png", "modality": "dark"}
        study["rois"][5]["subject"] = "S9"
    path = write_study(tmp_path, change)
    found = problems(path)
    assert len(found) == 5
    lines = path.read_text().splitlines()
    for problem in found:
        number = int(problem.rsplit("(line ", 1)[1].rstrip(")"))
        field = problem.split(": ")[1].split(" ")[0].rsplit(".", 1)[-1]
        assert field in lines[number - 1], problem


def test_hundreds_of_problems_are_counted_not_poured_out(tmp_path):
    def change(study):
        study["rois"] = [dict(study["rois"][0], id=f"r{i}", image=f"images/none{i}.png") for i in range(523)]
    found = problems(write_study(tmp_path, change))
    assert len(found) < 50 and "more problems" in found[-1]


@pytest.mark.parametrize("text, message", [
    ("rois: [\n", "not valid YAML"), ("", "no `key: value`"), ("\xff", "not UTF-8"), ("name: a\nname: b\n", "`name` is given twice"),
    ("a: &a [*a]\n", "unfold"), ("x: !!python/name:os.system\n", "not valid YAML")])
def test_text_that_is_no_manifest_is_refused(tmp_path, text, message):
    path = tmp_path / "data_manifest.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert message in problems(path)[0] and "data_manifest.yaml" in problems(path)[0]


def test_the_command_line_prints_the_message_and_ends_with_2(tmp_path):
    path = write_study(tmp_path, at("rois", 3, "pixel_size_um", value=0))
    done = subprocess.run([sys.executable, "-m", "bonehisto", "check", path], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "data_manifest.yaml: rois[3].pixel_size_um is 0" in done.stderr


def test_names_are_kept_as_they_were_typed(tmp_path):
    path = write_study(tmp_path)
    text = path.read_text().replace("id: S0", "id: 007").replace("subject: S0", "subject: 007").replace("group: low", "group: no")
    path.write_text(text)
    study = load_manifest(path)
    assert study.subjects[0].id == "007" and study.subjects[0].group == "no"


def test_a_csv_says_the_same_as_a_list(tmp_path):
    import pandas as pd
    path = write_study(tmp_path)
    listed = load_manifest(path)
    pd.DataFrame(STUDY["rois"]).to_csv(tmp_path / "rois.csv", index=False)
    write_study(tmp_path, at("rois", value="rois.csv"))
    assert [r.model_dump() for r in load_manifest(path).rois] == [r.model_dump() for r in listed.rois]
    table = pd.DataFrame(STUDY["rois"]).astype({"pixel_size_um": object})
    table.loc[2, "pixel_size_um"] = 0
    table.to_csv(tmp_path / "rois.csv", index=False)
    assert problems(path)[0].startswith("rois.csv: line 4: pixel_size_um is 0: ")


def test_patterns_say_the_same_as_a_list(tmp_path):
    path = write_study(tmp_path)
    listed = {r.id: r.model_dump() for r in load_manifest(path).rois}
    write_study(tmp_path, at("rois", value=[
        {"image": f"images/{{subject}}_{m[0]}.png", "mask": "masks/{stem}.png", "modality": m, "pixel_size_um": 0.5} for m in ("brightfield", "fluorescence")]))
    assert {r.id: r.model_dump() for r in load_manifest(path).rois} == listed


def test_the_saved_copy_loads_from_another_folder_and_names_its_origin(tmp_path, monkeypatch):
    def change(study):
        study["rois"][0] |= {"pixel_size_um": "unknown", "split": "test"}
        study["subjects"][1] |= {"dosing_days": "none", "covariates": {"age": 61}}
        study["subjects"][2]["dosing_days"] = [[1], [11]]
    monkeypatch.chdir(tmp_path)
    study = load_manifest(os.path.relpath(write_study(tmp_path / "study", change)))
    saved = save_manifest(study, tmp_path / "run" / "manifest.yaml")
    monkeypatch.chdir("/")
    copy = load_manifest(saved)
    alike = {"root", "path", "origin"}
    assert copy.model_dump(exclude=alike) == study.model_dump(exclude=alike)
    assert copy.origin == study.path
    assert [copy.interval_days(s) for s in copy.subjects[:3]] == [15, None, 10]
    assert save_manifest(copy, tmp_path / "again.yaml").read_text() == saved.read_text()


def test_classes_of_the_manifest_stand_before_the_defaults(tmp_path):
    path = write_study(tmp_path, at("classes", value={"brightfield": [{"id": 1, "name": "nucleus", "colour": "#FF0000"}, {"id": 0, "name": "background", "colour": "000000"}]}))
    study = load_manifest(path)
    assert [(c.id, c.name, c.colour) for c in study.class_table("brightfield")] == [(0, "background", "#000000"), (1, "nucleus", "#ff0000")]
    assert [c.name for c in study.class_table("fluorescence")] == ["background", "bone", "osteoid", "label"]


def test_the_example_manifest_asks_for_its_images_to_be_drawn(tmp_path):
    (tmp_path / "data_manifest.yaml").write_text((REPO / "data_manifest.yaml").read_text())
    assert "bonehisto phantom data/phantom" in problems(tmp_path)[0]


def test_the_example_manifest_describes_the_study_that_is_drawn_by_default(tmp_path):
    """Same subjects, ROIs and fields as the manifest that `bonehisto phantom` writes beside its images."""
    from bonehisto.phantom import DOSING_DAYS, plan_study
    people, jobs = plan_study(12, 2, 0, 0.5)
    for folder in ("images", "masks"):
        (tmp_path / "data/phantom" / folder).mkdir(parents=True)
        for job in jobs:
            (tmp_path / "data/phantom" / folder / f"{job['roi']}.png").touch()
    (tmp_path / "data/phantom/truth_subjects.csv").touch()
    (tmp_path / "data_manifest.yaml").write_text((REPO / "data_manifest.yaml").read_text())
    study = load_manifest(tmp_path)
    assert [s.model_dump(exclude={"dosing_days"}) for s in study.subjects] == people
    assert study.labels.dosing_days == DOSING_DAYS and study.classes == DEFAULT_CLASSES
    found = {r.id: (r.subject, r.modality, r.pixel_size_um, r.image.name, r.mask.name) for r in study.rois}
    assert found == {j["roi"]: (j["subject"], j["modality"], j["pixel_size_um"], f"{j['roi']}.png", f"{j['roi']}.png") for j in jobs}


def test_the_real_study_has_two_domains_and_its_test_split_is_the_published_val(shared, tmp_path):
    import csv
    import importlib.util
    if not (shared / "data/dsb2018").is_dir():
        pytest.skip("shared/data/dsb2018 is not here: the real images are not part of the repository")
    spec = importlib.util.spec_from_file_location("dsb2018", REPO / "tests/manifests/dsb2018.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study = load_manifest(module.write_dsb2018(tmp_path / "dsb2018.yaml"))
    with open(shared / "data/dsb2018/index.csv", newline="") as f:
        published = {r["id"] for r in csv.DictReader(f) if r["split"] == "val"}
    assert {r.id for r in study.rois if r.split == "test"} == published and len(study.rois) == 479
    for domain in ("brightfield", "fluorescence"):
        assert {r.split for r in study.rois if r.modality == domain} == {"train", "val", "test"}
        assert [c.name for c in study.class_table(domain)] == ["background", "nucleus"]
    assert study.masks == "instances" and all(r.pixel_size_um is None for r in study.rois)


def test_wall_thickness_and_an_imputed_rate_reach_the_derived_indices(tmp_path):
    study = load_manifest(write_study(tmp_path, lambda s: s.update(wall_thickness_um=33, imputed_mar_um_d=.3)))
    assert study.index_settings == {"wall_thickness_um": 33, "imputed_mar_um_d": .3}
    assert load_manifest(write_study(tmp_path, lambda s: None)).index_settings == {}
    assert any("wall_thickness_um is -1: give the mean wall thickness in um" in p for p in problems(write_study(tmp_path, lambda s: s.update(wall_thickness_um=-1))))
