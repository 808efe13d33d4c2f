"""The check finds every unusable file of a study, names the field it stands in, and writes nothing."""
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from written_study import write_study

from bonehisto.files import UserError
from bonehisto.inventory import check_study, inventory, note_lines, read_rois, require_readable
from bonehisto.manifest import load_manifest


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def resave(change):
    return lambda path: Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


SPOILED = {
    "truncated image": ("images/S1_b.png", cut, "rois[2].image: ", "damaged or cut short"),
    "empty image": ("images/S1_b.png", lambda p: p.write_bytes(b""), "rois[2].image: ", "0 bytes"),
    "no image": ("images/S1_b.png", lambda p: p.write_text("words"), "rois[2].image: ", "not a PNG"),
    "truncated mask": ("masks/S1_b.png", lambda p: p.write_bytes(p.read_bytes()[:-60]), "rois[2].mask: ", "damaged or cut short"),
    "mask of another size": ("masks/S1_b.png", resave(lambda a: a[1:]), "rois[2].mask: ", "is 64 x 47 pixels, its image 64 x 48"),
    "ids outside the table": ("masks/S1_b.png", resave(lambda a: a + 5), "rois[2].mask: ", "ids outside the class table: 5 ("),
    "255 among three classes": ("masks/S1_b.png", resave(lambda a: (a > 0).astype(np.uint8) * 255), "rois[2].mask: ", "255 ("),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_file_is_named_with_its_field(tmp_path, case):
    file, spoil, field, words = SPOILED[case]
    path = write_study(tmp_path)
    spoil(tmp_path / file)
    with pytest.raises(UserError) as caught:
        check_study(path)
    assert len(caught.value.problems) == 1
    for text in ("data_manifest.yaml: " + field, str(tmp_path / file), words):
        assert text in str(caught.value)


def test_damage_in_the_middle_is_found_when_images_are_decoded(tmp_path):
    path = write_study(tmp_path)
    data = bytearray((tmp_path / "images/S0_b.png").read_bytes())
    data[3000:5000] = bytes(2000)
    (tmp_path / "images/S0_b.png").write_bytes(data)
    _, _, problems = inventory(load_manifest(path), deep=True)
    assert len(problems) == 1 and "rois[0].image" in problems[0]


def test_a_run_refuses_a_spoiled_study_and_leaves_no_folder(tmp_path):
    path = write_study(tmp_path / "study")
    cut(tmp_path / "study/images/S1_b.png")
    done = subprocess.run([sys.executable, "-m", "bonehisto", "run", path, "--out", tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 2 and "rois[2].image" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_was_converted_and_left_open_is_said(tmp_path):
    def change(study):
        study["rois"][0]["pixel_size_um"] = "unknown"
        del study["rois"][1]["modality"], study["rois"][2]["mask"]
        study["subjects"].append({"id": "S7"})
    path = write_study(tmp_path, change)
    resave(lambda a: a[..., 0])(tmp_path / "images/S2_b.png")
    rois, notes, problems = inventory(load_manifest(path))
    said = "\n".join(note_lines(notes))
    assert problems == []
    for text in ("greyscale, repeated to three channels (1 ROI, e.g. S2_b)", "1 ROIs of unknown pixel size", "1 ROIs of open modality", "1 of 12 ROIs have no mask",
                 "mask: not used", "1 subjects have no ROI and are left out: S7"):
        assert text in said
    assert np.isnan(rois["pixel_size_um"][0]) and rois["modality"][1] == "" and rois["mask"][2] == ""


def test_one_modality_passes_the_check_with_a_note(tmp_path):
    def change(study):
        study["rois"] = [r for r in study["rois"] if r["modality"] == "brightfield"]
    assert "only brightfield ROIs" in check_study(write_study(tmp_path, change))


def test_no_subject_left_in_a_split_ends_with_2_and_the_counts(tmp_path):
    def change(study):
        study["subjects"], study["rois"] = study["subjects"][:2], study["rois"][:4]
    done = subprocess.run([sys.executable, "-m", "bonehisto", "check", write_study(tmp_path, change)], capture_output=True, text=True)
    assert done.returncode == 2 and "no subject left in train (train 0, val 1, test 1; 2 subjects with ROIs)" in done.stderr


def test_the_table_is_read_back_with_names_as_text(tmp_path):
    path = write_study(tmp_path)
    path.write_text(path.read_text().replace("id: S0", "id: 007").replace("subject: S0", "subject: 007"))
    rois, _ = require_readable(load_manifest(path))
    (tmp_path / "tables").mkdir()
    rois.to_csv(tmp_path / "tables/rois.csv", index=False)
    assert read_rois(tmp_path)["subject"].tolist()[:2] == ["007", "007"]
    assert read_rois(tmp_path).equals(rois)


def test_a_mask_from_the_annotator_takes_the_place_of_the_given_one_and_may_leave_pixels_open(tmp_path):
    path = write_study(tmp_path)
    given = np.asarray(Image.open(tmp_path / "masks/S1_b.png")).copy()
    given[:12] = 255
    (tmp_path / "labels").mkdir()
    Image.fromarray(given).save(tmp_path / "labels/S1_b.png")
    manifest = load_manifest(path)
    assert [r.id for r in manifest.labelled] == ["S1_b"] and manifest.labelled[0].mask == tmp_path / "labels/S1_b.png"
    rois, notes, problems = inventory(manifest)
    lines = note_lines(notes)
    assert not problems and any("25.0 % of its pixels are not labelled" in n for n in lines) and any("masks of 1 ROIs were made in the annotator" in n for n in lines)
    Image.fromarray(given[1:]).save(tmp_path / "labels/S1_b.png")
    with pytest.raises(UserError, match="labels/S1_b.png: is 64 x 47 pixels"):
        require_readable(load_manifest(path))


def test_the_label_folder_may_lie_elsewhere(tmp_path):
    path = write_study(tmp_path / "study", lambda s: s.update(label_folder="../ours"))
    (tmp_path / "ours").mkdir()
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "ours/S0_f.png")
    assert [(r.id, r.mask.resolve()) for r in load_manifest(path).rois if r.mask.parent.name == "ours"] == [("S0_f", tmp_path / "ours/S0_f.png")]
