"""The annotator's Python half, without a browser: what it answers, and what is in the record afterwards."""
import threading

import numpy as np
import pytest
from PIL import Image

from bonehisto.annotator import Annotator, Work, display_gain, read_out
from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.histomorphometry import measure_roi
from bonehisto.images import UNLABELLED
from bonehisto.label_patches import patch_from
from bonehisto.record import Record


def work(folder, name="S01", domain="brightfield", pixels=None, pixel_size_um=0.5, **more):
    pixels = np.full((60, 80, 3), 200, np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(folder / f"{name}.png")
    record = Record(folder / "labels", name, "Ana", folder / f"{name}.png", DEFAULT_CLASSES[domain], pixel_size_um)
    return Work(name, name, domain, pixels, record, pixel_size_um, **more)


class Page:
    "A page that speaks to the annotator as the browser does; `.heard` holds every answer."
    def __init__(self, annotator, client="a"):
        self.annotator, self.client, self.n, self.step, self.heard = annotator, client, 0, 0, []
        annotator.send = lambda content, buffers=None: self.heard.append(content | {"buffers": buffers or []})

    def send(self, type, buffers=(), **content):
        self.n += 1
        self.annotator.hear({"type": type, "client": self.client, "n": self.n, **content}, list(buffers))
        return self.n

    def paint(self, pixels, value=1, **more):
        patch, self.step = patch_from(pixels, value), self.step + 1
        return self.send("edit", [patch.bits], **{"kind": "paint", "tool": "brush", "cls": value, "patches": [patch.rectangle], "step": self.step, "opening": self.annotator.opening, "seconds": 1.0} | more)

    def back(self, way, here=True):
        self.step += 1
        return self.send(way, step=self.step, opening=self.annotator.opening, seconds=1.0, here=here)

    def of(self, type): return [m for m in self.heard if m["type"] == type]

    def wait(self):
        for worker in (self.annotator.worker, self.annotator.aside, self.annotator.meter): worker.submit(lambda: None).result(10)


@pytest.fixture
def annotator():
    made = Annotator()
    yield made
    if made.work: made.work.record.close()
    made.close()


def square(x, y, side=20, shape=(60, 80)):
    out = np.zeros(shape, bool); out[y:y + side, x:x + side] = True
    return out


def test_a_step_is_confirmed_once_it_is_on_the_disk_and_a_repeated_one_is_not_done_twice(tmp_path, annotator):
    page = Page(annotator); annotator.show(work(tmp_path))
    n = page.paint(square(3, 4))
    assert page.of("saved")[0]["n"] == n and page.of("saved")[0]["client"] == "a"
    page.step = 0
    page.paint(square(3, 4))
    on_disk = Record(tmp_path / "labels", "S01", "Ana", write=False)
    assert (on_disk.map == square(3, 4)).all() and len(on_disk.events()) == 2 and len(page.of("saved")) == 2


def test_a_step_before_which_one_is_lacking_is_refused_by_its_number(tmp_path, annotator):
    page = Page(annotator); annotator.show(work(tmp_path))
    page.step = 1
    n = page.paint(square(0, 0))
    assert [(m["n"], m["client"], "not saved yet" in m["text"]) for m in page.of("failed")] == [(n, "a", True)]
    assert not annotator.work.record.map.any()


def test_a_step_of_a_roi_that_was_left_is_dropped(tmp_path, annotator):
    page = Page(annotator); annotator.show(work(tmp_path))
    left = annotator.opening
    annotator.show(work(tmp_path, "S02"))
    page.paint(square(0, 0), opening=left)
    assert not annotator.work.record.map.any() and not page.of("saved") and not page.of("failed")


def test_what_cannot_be_saved_is_told_and_saved_when_it_comes_again(tmp_path, annotator, monkeypatch):
    page = Page(annotator); annotator.show(work(tmp_path))
    def full(*a, **k): raise OSError(28, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(type(annotator.work.record.log), "_write", full)
        n = page.paint(square(0, 0))
        assert "No space left" in page.of("failed")[0]["text"] and page.of("failed")[0]["n"] == n and not annotator.work.record.map.any()
    page.step = 0
    page.paint(square(0, 0))
    assert page.of("saved") and annotator.work.record.map.sum() == 400


@pytest.mark.parametrize("way", ["undo", "redo"])
def test_undo_of_nothing_is_confirmed_so_that_later_steps_are_not_held_up(tmp_path, annotator, way):
    page = Page(annotator); annotator.show(work(tmp_path))
    n = page.back(way, here=False)
    assert n in [m["n"] for m in page.of("saved")] and f"nothing to {way}" in page.of("say")[0]["text"] and not page.of("failed")
    page.paint(square(0, 0))
    assert annotator.work.record.map.any()


def test_undo_of_an_earlier_sitting_sends_the_map_without_the_picture(tmp_path, annotator):
    w = work(tmp_path); w.record.add("paint", [patch_from(square(0, 0), 1)])
    page = Page(annotator); annotator.show(w)
    assert page.of("roi")[0]["roi"]["earlier"] and len(page.of("roi")[0]["buffers"]) == 2
    page.back("undo", here=False)
    again = page.of("roi")[1]
    assert len(again["buffers"]) == 1 and again["roi"]["later"] and not again["roi"]["earlier"] and not annotator.work.record.map.any()
    page.paint(square(5, 5), 2)
    assert (annotator.work.record.map == 2 * square(5, 5)).all()


def test_every_question_is_acknowledged_at_once_to_its_page(tmp_path, annotator):
    page = Page(annotator); annotator.show(work(tmp_path, similar=lambda points: []))
    for kind, more in (("hello", {}), ("seen", {}), ("head", {}), ("suggest", {"marks": []}), ("whole", {}), ("similar", {"cls": "osteoclast"}), ("done", {}), ("next", {})):
        n = page.send(kind, **more)
        assert {"client": "a", "n": n, "to": "a"}.items() <= page.of("heard")[-1].items()
    assert not page.of("failed")


def test_a_message_nobody_knows_fails_by_its_number(tmp_path, annotator):
    page = Page(annotator); annotator.show(work(tmp_path))
    n = page.send("sing")
    assert page.of("failed")[0]["n"] == n and "'sing'" in page.of("failed")[0]["text"]


def test_the_read_out_is_that_of_the_map_with_unlabelled_pixels_as_background(tmp_path, annotator):
    drawn = np.zeros((60, 80), np.uint8)
    drawn[10:40, 10:60], drawn[40:44, 10:60], drawn[:, 70:] = 1, 2, UNLABELLED
    w = work(tmp_path); annotator.work = w
    for value in (1, 2, UNLABELLED): w.record.add("paint", [patch_from(drawn == value, value)])
    found = measure_roi(np.where(drawn == UNLABELLED, 0, drawn), "brightfield", 0.5)
    rows = dict(read_out(w))
    assert rows["B.Ar (mm2)"] == f"{found['B.Ar (mm2)']:.3g}" and rows["OS/BS (%)"] == f"{found['OS/BS (%)']:.3g}" and len(rows) >= 6


def test_lines_and_cells_are_read_out_in_their_short_names(tmp_path, annotator):
    w = work(tmp_path, measured=False); annotator.work = w
    w.record.add("line", marks=[{"type": "line", "key": "l", "cls": "osteoid surface", "points": [[0, 0], [30, 40]]}])
    for k in "ab": w.record.add("point", marks=[{"type": "point", "key": k, "cls": "osteoclast", "x": 1, "y": 1}])
    rows = dict(read_out(w))
    assert "0.025" in rows.values() and rows["N.Oc"] == "2"


def test_a_long_computation_of_tokens_does_not_hold_up_the_read_out(tmp_path, annotator):
    go = threading.Event()
    def tokens(): go.wait(20); return np.zeros((2, 2, 3), np.int8), 40
    page = Page(annotator); annotator.show(work(tmp_path, tokens=tokens))
    page.send("seen"); page.paint(square(10, 10))
    annotator.meter.submit(lambda: None).result(10)
    assert page.of("readout") and not page.of("tokens")
    go.set(); page.wait()
    assert page.of("tokens")[0]["rows"] == 2


def test_of_several_suggestions_asked_only_the_newest_is_computed_and_no_click_is_lost(tmp_path, annotator):
    go, done = threading.Event(), []
    def suggest(marks, label_map, earlier): go.wait(20); done.append((marks, earlier)); return [], {}
    page = Page(annotator); annotator.show(work(tmp_path, suggest=suggest))
    numbers = [page.send("suggest", marks=[k]) for k in range(4)]
    go.set(); page.wait()
    assert done in ([([3], [0, 1, 2])], [([0], []), ([3], [1, 2])]) and page.of("proposal")[-1]["asked"] == numbers[-1]


def test_the_whole_roi_takes_clicks_that_were_not_answered_and_another_roi_does_not(tmp_path, annotator):
    go, done = threading.Event(), []
    def suggest(marks, label_map, earlier): go.wait(20); return [], {}
    def whole(label_map, earlier): done.append(earlier); return [], {}
    page = Page(annotator); annotator.show(work(tmp_path, suggest=suggest, whole=whole))
    busy = annotator.worker.submit(go.wait, 20)
    for k in range(2): page.send("suggest", marks=[k])
    page.send("whole"); go.set(); busy.result(20); page.wait()
    assert done == [[0, 1]]
    go.clear(); annotator.worker.submit(go.wait, 20)
    page.send("suggest", marks=[2]); annotator.work.record.close()
    annotator.show(work(tmp_path, "S02", suggest=suggest, whole=whole)); page.send("whole"); go.set(); page.wait()
    assert done == [[0, 1], []]


def test_a_suggestion_that_fails_says_why(tmp_path, annotator):
    def suggest(marks, label_map, earlier): raise ValueError("no tokens")
    page = Page(annotator); annotator.show(work(tmp_path, suggest=suggest))
    page.send("suggest", marks=[]); page.wait()
    assert "no tokens" in page.of("say")[-1]["text"]


def test_dark_fluorescence_is_shown_brighter_within_bounds_and_brightfield_as_it_is(tmp_path, annotator):
    dark = np.zeros((60, 80, 3), np.uint8); dark[:, :40, 1] = 55; dark[:, :40, 0] = 20
    assert display_gain(dark) == 4 and display_gain(dark // 8) == 6 and display_gain(dark * 4) == 1
    assert abs(display_gain(np.repeat(np.repeat(dark, 30, 0), 30, 1)) - 4) < .01
    page = Page(annotator)
    for name, domain, gain in (("S01", "fluorescence", 4), ("S02", "brightfield", 1)):
        annotator.show(work(tmp_path, name, domain, dark))
        assert page.of("roi")[-1]["roi"]["gain"] == gain


def test_not_labelled_is_offered_after_the_classes_and_may_be_painted(tmp_path, annotator):
    page = Page(annotator); annotator.show(work(tmp_path))
    classes = page.of("roi")[0]["roi"]["classes"]
    assert [c["id"] for c in classes] == [0, 1, 2, UNLABELLED] and classes[-1]["name"] == "not labelled"
    page.paint(square(1, 1), UNLABELLED)
    assert (Record(tmp_path / "labels", "S01", "Ana", write=False).map == UNLABELLED * square(1, 1).astype(int)).all()


def test_done_is_in_the_log_and_tells_who_wants_to_know(tmp_path):
    called = []
    annotator = Annotator(on_done=lambda w: called.append(w.roi), on_next=lambda: called.append("next"))
    page = Page(annotator); annotator.show(work(tmp_path))
    page.send("done"); page.send("next")
    assert called == ["S01", "next"] and annotator.work.record.events()[-1]["kind"] == "done"
    annotator.work.record.close(); annotator.close()
