"""The record of an annotation: what was confirmed is never lost, whatever happens, and the map is what the events say."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from bonehisto import label_log, record as record_module
from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.files import UserError
from bonehisto.label_patches import Patch, apply_patches, patch_from, patches_between, patches_from_buffers, patches_to_buffers, patch_from_json, patch_to_json, region_patch
from bonehisto.record import Record, annotated_rois, annotators, conflicts, source_map, summarise_record

SHAPE = 23, 31
CLASSES = DEFAULT_CLASSES["fluorescence"]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "S01_f.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), dtype=np.uint8)).save(path)
    return path


def opened(image, annotator="Ana", roi="S01_f", **more):
    return Record(image.parent / "labels", roi, annotator, image, CLASSES, 0.5, **more)


def blob(rng, value, label_map):
    h, w = rng.integers(1, 9, 2)
    region = np.zeros(SHAPE, bool)
    y, x = rng.integers(0, SHAPE[0]), rng.integers(0, SHAPE[1])
    region[y:y + h, x:x + w] = rng.random(region[y:y + h, x:x + w].shape) < .7
    return region_patch(label_map, region, value)


# patches

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_patches_turn_one_map_into_another_and_back_also_through_json_and_buffers(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 20, 2))
    a, b = (rng.choice([0, 1, 2, 3, 255], shape).astype(np.uint8) for _ in range(2))
    patches = patches_between(a, b)
    for sent in (patches, [patch_from_json(json.loads(json.dumps(patch_to_json(p)))) for p in patches], patches_from_buffers(*patches_to_buffers(patches))):
        c = a.copy()
        back = apply_patches(c, sent)
        assert (c == b).all()
        apply_patches(c, back)
        assert (c == a).all()


def test_a_locked_class_keeps_its_pixels():
    label_map = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    patch = region_patch(label_map, np.ones((2, 3), bool), 3, locked={2})
    apply_patches(label_map, [patch])
    assert label_map.tolist() == [[3, 3, 2], [2, 3, 3]]
    assert region_patch(label_map, np.ones((2, 3), bool), 3, locked={2}) is None


# the map is what the events say

def random_session(image, n, seed, reopen=.05, **more):
    """Random steps against a list of maps; the record and the map that must come out."""
    rng = np.random.default_rng(seed)
    record, maps, undone = opened(image, **more), [np.zeros(SHAPE, np.uint8)], []
    for _ in range(n):
        what = rng.random()
        if what < .2 and len(maps) > 1: record.undo(); undone.append(maps.pop())
        elif what < .32 and undone: record.redo(); maps.append(undone.pop())
        elif what < .37: record.add("reject", pixels=5, source="model")
        elif what < .37 + reopen: record.close(); record = opened(image, **more)
        elif what < .45: record.snapshot()
        else:
            patch = blob(rng, int(rng.integers(0, 4)), maps[-1])
            if patch is None: continue
            after = maps[-1].copy()
            apply_patches(after, [patch])
            record.add("paint", [patch], tool="brush")
            maps.append(after); undone = []
        assert (record.map == maps[-1]).all()
    return record, maps[-1]


@pytest.mark.parametrize("seed", range(4))
def test_five_hundred_random_steps_give_the_map_of_a_plain_list_of_maps(image, seed):
    record, expected = random_session(image, 500, seed, every=40)
    record.close()
    assert (opened(image).map == expected).all()
    for name in (".snapshot.json", ".png"): Path(f"{record.base}{name}").unlink()
    assert (opened(image).map == expected).all()


def test_steps_older_than_those_in_memory_can_be_undone_and_redone(image, monkeypatch):
    monkeypatch.setattr("bonehisto.label_state.KEPT", 3)
    rng, record = np.random.default_rng(1), opened(image)
    maps = [record.map.copy()]
    while len(maps) < 12:
        if (patch := blob(rng, int(rng.integers(1, 4)), maps[-1])) is None: continue
        record.add("paint", [patch]); maps.append(record.map.copy())
    for expected in maps[-2::-1]: record.undo(); assert (record.map == expected).all()
    for expected in maps[1:]: record.redo(); assert (record.map == expected).all()


def test_a_new_step_after_an_undo_drops_what_could_be_redone(image):
    record = opened(image)
    one, two = (patch_from(np.ones((2, 2), bool), v, x=3 * v) for v in (1, 2))
    record.add("paint", [one]); record.undo(); record.add("paint", [two])
    with pytest.raises(UserError, match="nothing to redo"): record.redo()
    record.close()
    assert set(np.unique(opened(image).map)) == {0, 2}


def test_points_and_lines_are_part_of_the_state(image):
    record = opened(image)
    cell = {"type": "point", "key": "a-1", "cls": "osteoclast", "x": 4.5, "y": 7.25}
    front = {"type": "line", "key": "a-2", "cls": "eroded surface", "points": [[0, 0], [5.5, 3]]}
    record.add("point", marks=[cell]); record.add("line", marks=[front]); record.add("remove", marks=[cell])
    assert [m["key"] for m in record.marks] == ["a-2"]
    record.undo()
    record.close()
    assert sorted(opened(image).marks, key=lambda m: m["key"]) == [cell, front]


@pytest.mark.parametrize("bad, says", [
    (dict(patches=[Patch(30, 0, 2, 1, 1, b"\xc0")]), "outside the image"), (dict(patches=[Patch(0, 0, 1, 1, 9, b"\x80")]), "class 9"),
    (dict(marks=[{"type": "point", "key": "k", "cls": "osteoblast", "x": 99, "y": 1}]), "outside the image"), (dict(marks=[{"type": "point", "key": "k", "cls": "x", "x": float("nan"), "y": 1}]), "no point")])
def test_a_step_that_is_not_sound_changes_nothing(image, bad, says):
    record = opened(image)
    with pytest.raises(UserError, match=says): record.add("paint", **bad)
    assert record.map.max() == 0 and not record.marks and len(record.events()) == 1


# faults

def painted(image, n=3):
    record = opened(image)
    for v in range(1, n + 1): record.add("paint", [patch_from(np.ones((2, 3), bool), v, x=4 * v)], tool="brush", cls=v)
    return record


def test_a_line_torn_at_any_byte_is_set_aside_and_the_rest_holds(image):
    record = painted(image)
    before = record.map.copy(); record.undo(); record.redo()
    whole = record.log.path.read_bytes(); record.log.close()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start, len(whole) - 1):
        record.log.path.write_bytes(whole[:cut])
        again = opened(image)
        assert not again.why and len(again.events()) == 5 and again.map.max() == 2
        kept = sorted(record.log.path.parent.glob("*.torn-*"))
        assert len(kept) == (cut > start) and (cut == start or kept[0].read_bytes() == whole[start:cut] and kept[0].name in again.notes[0])
        again.redo(); assert (again.map == before).all()
        again.log.close()
        for p in kept: p.unlink()


def test_a_line_whose_newline_alone_is_missing_counts(image):
    record = painted(image); record.log.close()
    record.log.path.write_bytes(record.log.path.read_bytes()[:-1])
    again = opened(image)
    assert again.map.max() == 3 and not again.notes
    again.undo(); again.log.close()
    assert opened(image).map.max() == 2


def test_damage_in_the_middle_is_named_by_line_and_nothing_is_written(image):
    record = painted(image); record.log.close()
    lines = record.log.path.read_bytes().splitlines(True)
    lines[2] = lines[2].replace(b"patches", b"pat\x00hes")
    record.log.path.write_bytes(b"".join(lines))
    again = opened(image)
    assert again.map.max() == 1 and "line 3" in again.why and "line 3" in again.notes[0]
    with pytest.raises(UserError, match="damaged"): again.add("done")
    assert record.log.path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("spoil, says", [(lambda p: p.unlink(), "is gone"), (lambda p: Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(p), "has changed")])
def test_an_image_gone_or_changed_opens_read_only_and_says_so(image, spoil, says):
    painted(image).close()
    spoil(image)
    record = opened(image)
    assert says in record.why and record.map.max() == 3
    with pytest.raises(UserError, match=says): record.undo()


def test_a_full_disk_is_told_changes_nothing_and_the_next_write_starts_on_a_clean_line(image, monkeypatch):
    record = painted(image)
    before, write, full = record.map.copy(), label_log.EventLog._write, True
    def failing(self, data):
        if not full: return write(self, data)
        write(self, data[:7]); raise OSError(28, "No space left on device")
    monkeypatch.setattr(label_log.EventLog, "_write", failing)
    patch = patch_from(np.ones((5, 5), bool), 1, y=10)
    with pytest.raises(UserError, match="is not saved .*No space left"): record.add("paint", [patch])
    assert (record.map == before).all()
    full = False
    record.add("paint", [patch])
    record.log.close()
    again = opened(image)
    assert not again.notes and len(again.events()) == 5 and (again.map[10:15, :5] == 1).all()


def test_a_snapshot_that_does_not_fit_is_not_believed(image):
    record = painted(image); record.close()
    expected = record.map.copy()
    Image.fromarray(np.full(SHAPE, 3, np.uint8)).save(f"{record.base}.png")
    assert (opened(image).map == expected).all()
    kept = json.loads(Path(f"{record.base}.snapshot.json").read_text())
    Path(f"{record.base}.snapshot.json").write_text(json.dumps(kept | {"bytes": 10}))
    assert (opened(image).map == expected).all()


def test_a_log_that_another_process_writes_opens_read_only_and_a_dead_ones_lock_does_not_matter(image):
    code = "import sys, numpy as np; from bonehisto.record import Record; from bonehisto.entries import DEFAULT_CLASSES; r = Record(sys.argv[1], 'S01_f', 'Ana', sys.argv[2], DEFAULT_CLASSES['fluorescence'], 0.5); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, str(image.parent / "labels"), str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        record = opened(image)
        assert f"process {other.pid}" in record.why
        record.close(); other.kill()
    record = opened(image)
    assert not record.why
    record.add("paint", [patch_from(np.ones((2, 2), bool), 1)])


def test_opening_a_roi_again_in_one_process_takes_it_over(image):
    first = painted(image)
    second = opened(image)
    assert "opened again" in first.why and not second.why and (second.map == first.map).all()


# names and readers

@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs", "a/b\\c", "..", "CON", "x" * 400, "<b>Ana</b>", "Änne:Ö"])
def test_no_name_leaves_the_label_folder(image, name):
    labels = image.parent / "labels"
    record = opened(image, annotator=name, roi=name)
    record.add("done")
    record.close()
    made = [p for p in image.parent.rglob("*") if p.is_file() and p != image]
    assert made and all(p.resolve().is_relative_to(labels.resolve()) and len(p.relative_to(labels).parts) == 2 for p in made)
    if len(name) < 100: assert annotators(labels, name) == [name] and annotated_rois(labels) == [name]


def test_a_name_that_is_empty_or_differs_by_capitals_alone_is_refused(image):
    with pytest.raises(UserError, match="no name"): opened(image, annotator=" ")
    painted(image).close()
    with pytest.raises(UserError, match="Ana has labels here"): opened(image, annotator="ANA")
    assert annotators(image.parent / "labels", "S01_f") == ["Ana"]


def test_nothing_to_look_at_is_said_and_leaves_no_file(image):
    with pytest.raises(UserError, match="no labels of Bo"): Record(image.parent / "labels", "S01_f", "Bo", write=False)
    with pytest.raises(UserError, match="no such image"): Record(image.parent / "labels", "S01_f", "Bo", image.parent / "none.png", CLASSES)
    assert not list((image.parent / "labels").rglob("*.jsonl")) if (image.parent / "labels").exists() else True


def test_two_readers_are_both_kept_and_their_differences_counted(image):
    a, b = painted(image), opened(image, "Bo")
    b.add("paint", [patch_from(np.ones((2, 3), bool), 3, x=4)])
    table, where = conflicts([a, b])
    assert where.sum() == (a.map != b.map).sum() == table["pixels"].sum()
    assert table.set_index(["class", "other class"]).loc[("bone", "label"), "pixels"] == 6
    assert np.isclose(table["area (mm2)"].sum(), where.sum() * .25e-6)


def test_the_summary_counts_what_came_from_whom(image):
    record = opened(image)
    record.add("accept", [patch_from(np.ones((4, 5), bool), 1)], source="model", pixels=20)
    record.add("paint", [patch_from(np.ones((2, 5), bool), 2)], tool="brush")
    record.add("paint", [patch_from(np.ones((3, 5), bool), 2, y=10)], tool="brush")
    record.add("reject", source="model", pixels=7)
    record.add("paint", [patch_from(np.ones((9, 9), bool), 3, y=12, x=12)]); record.undo()
    found = summarise_record(record)
    assert (found["accepted"], found["rejected"], found["rejected px"], found["undone"], found["corrected px"]) == (1, 1, 7, 1, 10)
    assert np.isclose([found["by human (%)"], found["by model (%)"], found["by human after model (%)"]], [100 * 15 / 35, 100 * 10 / 35, 100 * 10 / 35]).all()
    assert set(np.unique(source_map(record))) == {0, 1, 2, 3} and not found["finished"]
    record.add("done")
    assert summarise_record(record)["finished"]
