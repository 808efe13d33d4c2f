"""The annotator in a headless Chromium, its browser half answered by its Python half over a record on the disk."""
import base64
import json
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from bonehisto.annotator import Annotator, Work
from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.histomorphometry import measure_roi
from bonehisto.images import UNLABELLED
from bonehisto.label_patches import patch_from, patches_between
from bonehisto.record import Record
from browser import browser, page, show  # noqa: F401: fixtures

A = "document.getElementById('a').bonehisto"
PAPER, BLUE = (230, 220, 225), (60, 90, 200)


def picture(height=160, width=240):
    "Two blue squares on paper: (32, 40) to (80, 88) and (128, 40) to (176, 88); on the blocks of 8 of a JPEG, so that they are seen as they are."
    pixels = np.full((height, width, 3), PAPER, np.uint8)
    pixels[40:88, 32:80] = pixels[40:88, 128:176] = BLUE
    return pixels


def squares(height=160, width=240):
    left, right = np.zeros((2, height, width), bool)
    left[40:88, 32:80] = right[40:88, 128:176] = True
    return left, right


def work(folder, name="S01", domain="brightfield", pixels=None, annotator="Ana", pixel_size_um=0.5, classes=None, **more):
    pixels = picture() if pixels is None else pixels
    if not (folder / f"{name}.png").exists(): Image.fromarray(pixels).save(folder / f"{name}.png")
    record = Record(folder / "labels", name, annotator, folder / f"{name}.png", classes or DEFAULT_CLASSES[domain], pixel_size_um)
    return Work(name, name, domain, pixels, record, pixel_size_um, **more)


@contextmanager
def opened(page, made, annotator=None):
    "A page with a ROI open; gives the annotator, and `.sent`, what the browser sent."
    annotator = annotator or Annotator()
    annotator.show(made)
    with show(page, annotator, "annotator") as sent:
        annotator.sent = sent
        ready(page)
        yield annotator
    annotator.work.record.close(); annotator.close()


def ready(page, view="a"):
    page.wait_for_function(f"(v => v?.session.ready && v.view.frame() && v.view.viewer.world.getItemAt(0).getFullyLoaded())(document.getElementById('{view}').bonehisto)")
    page.locator(f"#{view} .bh-annotator").focus()


def on_screen(page, x, y, view="a"):
    "The window's pixel nearest to a place of the image."
    return page.evaluate(f"([x, y]) => {{ const v = document.getElementById('{view}').bonehisto.view, f = v.frame(), r = v.viewer.canvas.getBoundingClientRect(); return [r.left + f.ox + x * f.factor, r.top + f.oy + y * f.factor].map(Math.round) }}", [x, y])


def in_image(page, place):
    "The place of the image, (x, y), under a pixel of the window."
    return np.array(page.evaluate(f"([clientX, clientY]) => {A}.view.toImage({{ clientX, clientY }})", list(place)))


def stroke(page, *places, view="a"):
    "Drags over places of the image; returns where exactly it went."
    path = [on_screen(page, *p, view) for p in places]
    page.mouse.move(*path[0]); page.mouse.down()
    for p in path[1:]: page.mouse.move(*p)
    page.mouse.up()
    return [in_image(page, p) for p in path]


def click(page, x, y, **how):
    place = on_screen(page, x, y)
    page.mouse.move(*place); page.mouse.click(*place, **how)
    return in_image(page, place)


def factor(page): return page.evaluate(f"{A}.view.frame().factor")


def saved(page): page.wait_for_function(f"!{A}.session.link.waiting.size && !{A}.session.stepping")


def mask(page, view="a"):
    "The browser's label map."
    text, height, width = page.evaluate(f"(s => {{ let raw = ''; for (let k = 0; k < s.mask.data.length; k += 32768) raw += String.fromCharCode(...s.mask.data.subarray(k, k + 32768)); return [btoa(raw), s.mask.height, s.mask.width] }})(document.getElementById('{view}').bonehisto.session)")
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width)


def on_disk(annotator, name="S01", reader="Ana"):
    "The map and events that the log alone gives."
    base = annotator.work.record.base
    found = Record(base.parents[1], name, reader, write=False)
    return found.map, found.events()


def agreed(page, annotator):
    "The map, which is one and the same in the browser, in Python and in the log."
    saved(page)
    here, (there, events) = mask(page), on_disk(annotator, annotator.work.roi, annotator.work.record.facts["annotator"])
    assert (here == annotator.work.record.map).all() and (here == there).all()
    return here, events


def capsule(shape, a, b, radius):
    "Pixels whose centre is within a radius of the line from a to b."
    y, x = np.mgrid[:shape[0], :shape[1]] + .5
    d = b - a
    t = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / max(d @ d, 1e-12), 0, 1)
    return np.hypot(x - a[0] - t * d[0], y - a[1] - t * d[1]) <= radius


def text(page, words): page.locator("#a .bh-message", has_text=words).wait_for()


def halves(shape=(160, 240)):
    "A map: class 1 in the left third, 2 in the middle, 0 right."
    out = np.zeros(shape, np.uint8); out[:, :80], out[:, 80:160] = 1, 2
    return out


# Drawing

def test_a_brush_stroke_paints_the_pixels_under_it_and_is_on_the_disk(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        page.keyboard.press("2")
        a, b = stroke(page, (40, 30), (120, 100))
        found, events = agreed(page, annotator)
        assert (found == 2 * capsule(found.shape, a, b, 12 / factor(page))).all() and found.any()
        last = events[-1]
        assert (last["kind"], last["tool"], last["class"], last["source"]) == ("paint", "brush", 2, "human") and last["seconds"] > 0


def test_the_eraser_gives_the_background_back(page, tmp_path):
    w = work(tmp_path); w.record.add("paint", [patch_from(np.ones((160, 240), bool), 1)])
    with opened(page, w) as annotator:
        page.keyboard.press("e")
        a, b = stroke(page, (10, 10), (60, 150))
        found, events = agreed(page, annotator)
        assert ((found == 0) == capsule(found.shape, a, b, 12 / factor(page))).all() and events[-1]["class"] == 0


def test_the_wand_fills_the_piece_under_the_cursor_to_the_pixel_and_no_other(page, tmp_path):
    with opened(page, work(tmp_path, pixels=picture(320, 480))) as annotator:
        page.keyboard.press("w")
        click(page, 56, 64)
        found, events = agreed(page, annotator)
        assert (found == squares(320, 480)[0]).all() and events[-1]["tool"] == "wand"
        page.mouse.move(*on_screen(page, 150, 65))
        for _ in range(8): page.mouse.wheel(0, -200); page.wait_for_timeout(60)
        page.wait_for_function(f"!{A}.view.viewer.isAnimating?.() && {A}.view.frame().factor > 4")
        page.wait_for_function(f"(f => new Promise(done => setTimeout(() => done({A}.view.frame().factor === f), 60)))({A}.view.frame().factor)")
        page.keyboard.press("2"); click(page, 140, 70)
        piece = agreed(page, annotator)[0] == 2
        assert piece[70, 140] and not (piece & ~squares(320, 480)[1]).any()


def test_a_polygon_has_a_hole_and_escape_drops_the_one_under_way(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        page.keyboard.press("p")
        outer = [click(page, *p) for p in ((20, 20), (120, 25), (110, 120), (30, 110))]
        page.keyboard.down("Shift"); inner = [click(page, 50, 50)]; page.keyboard.up("Shift")
        inner += [click(page, *p) for p in ((90, 55), (70, 90))]
        page.keyboard.press("Enter")
        found, events = agreed(page, annotator)
        from skimage.measure import points_in_poly
        y, x = np.mgrid[:160, :240] + .5
        inside = lambda ring: points_in_poly(np.stack([x.ravel(), y.ravel()], 1), np.array(ring)).reshape(x.shape)
        assert (found.astype(bool) == inside(outer) & ~inside(inner)).all() and found[70, 70] == 0 and found[40, 40] == 1
        assert len(events) == 2 and events[-1]["tool"] == "polygon"
        for p in ((150, 20), (200, 20), (200, 90)): click(page, *p)
        page.keyboard.press("Escape"); page.keyboard.press("Enter")
        assert (agreed(page, annotator)[0] == found).all() and page.evaluate(f"{A}.view.draft") is None


def test_a_polygon_that_crosses_itself_keeps_to_even_and_odd_and_a_double_click_ends_it(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        page.keyboard.press("p")
        for p in ((20, 20), (100, 100), (100, 20)): click(page, *p)
        page.mouse.dblclick(*on_screen(page, 20, 100))
        found, _ = agreed(page, annotator)
        assert found[60, 30] and found[60, 90] and not found[30, 60] and not found[95, 60]


def test_points_and_lines_are_recorded_and_a_point_clicked_again_is_removed(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        page.keyboard.press("o")
        page.locator("#a").get_by_title("Which cell a click marks").select_option("osteoclast")
        page.locator("#a .bh-annotator").focus()
        at = click(page, 60, 70); click(page, 100, 30)
        page.keyboard.press("l")
        path = [click(page, 20, 150), click(page, 200, 140)]
        page.keyboard.press("Enter"); saved(page)
        kinds = {m["type"]: m for m in annotator.work.record.marks}
        points = [m for m in annotator.work.record.marks if m["type"] == "point"]
        assert len(points) == 2 and [points[0]["x"], points[0]["y"]] == pytest.approx(at) and points[0]["cls"] == "osteoclast"
        assert np.allclose(kinds["line"]["points"], path) and page.locator("#a .bh-marks circle").count() == 2
        page.locator("#a .bh-readout", has_text="N.Oc").wait_for()
        legend = page.locator("#a .bh-mark")
        assert [t.split() for t in legend.all_inner_texts()] == [["osteoclast", "2"], ["eroded", "surface", "1"]]
        assert legend.first.locator(".bh-swatch").evaluate("e => getComputedStyle(e).backgroundColor") == page.locator("#a .bh-marks circle").first.evaluate("e => getComputedStyle(e).fill")
        page.keyboard.press("o"); click(page, 60, 70); saved(page)
        assert len([m for m in annotator.work.record.marks if m["type"] == "point"]) == 1
        page.keyboard.press("z"); page.keyboard.press("z"); saved(page)
        assert [m["type"] for m in annotator.work.record.marks] == ["point", "point"] and page.locator("#a .bh-marks polyline").count() == 0


def test_a_locked_class_is_never_painted_over(page, tmp_path):
    w = work(tmp_path, proposal=lambda: (halves(), {"model": "m"})); left, right = squares()
    w.record.add("paint", [patch_from(left, 1)])
    with opened(page, w) as annotator:
        page.get_by_title("Lock mineralised bone").check()
        page.keyboard.press("2"); stroke(page, (10, 65), (100, 65))
        found, _ = agreed(page, annotator)
        assert (found[left] == 1).all() and (found == 2).any()
        page.keyboard.press("e"); stroke(page, (10, 65), (100, 65))
        page.keyboard.press("w"); click(page, 50, 60)
        page.keyboard.press("m"); page.wait_for_function(f"{A}.session.proposes"); page.keyboard.press("a")
        assert (agreed(page, annotator)[0][left] == 1).all()
        page.get_by_title("Lock mineralised bone").uncheck()
        page.keyboard.press("e"); stroke(page, (10, 65), (100, 65))
        assert not (agreed(page, annotator)[0][left] == 1).all()


def test_undo_takes_back_a_stroke_and_redo_does_it_again(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        states = [agreed(page, annotator)[0]]
        for y in (30, 60, 90):
            stroke(page, (20, y), (200, y + 30)); states.append(agreed(page, annotator)[0])
        for k in (2, 1, 0):
            page.keyboard.press("z"); assert (agreed(page, annotator)[0] == states[k]).all()
        assert page.get_by_role("button", name="Undo").is_disabled()
        for k in (1, 2): page.keyboard.press("Shift+Z"); assert (agreed(page, annotator)[0] == states[k]).all()
        page.keyboard.press("2"); stroke(page, (20, 140), (40, 140))
        assert page.get_by_role("button", name="Redo").is_disabled()
        assert [e["kind"] for e in agreed(page, annotator)[1]][-6:] == ["undo", "undo", "undo", "redo", "redo", "paint"]


def test_steps_of_an_earlier_sitting_are_undone_too_and_what_is_drawn_after_is_kept(page, tmp_path):
    w = work(tmp_path); left, right = squares()
    for region in (left, right): w.record.add("paint", [patch_from(region, 1)])
    w.record.close()
    with opened(page, work(tmp_path)) as annotator:
        stroke(page, (20, 130), (60, 130)); saved(page)
        page.keyboard.press("z"); saved(page)
        page.keyboard.press("z"); page.wait_for_function(f"!{A}.session.mask.counts[1] || {A}.session.mask.counts[1] === 2304")
        assert (agreed(page, annotator)[0] == left).all()
        page.keyboard.press("2"); a, b = stroke(page, (20, 130), (60, 130))
        found, events = agreed(page, annotator)
        assert (found == left + 2 * capsule(left.shape, a, b, 12 / factor(page))).all() and events[-1]["kind"] == "paint"
        page.keyboard.press("Shift+Z"); text(page, "Nothing to redo")
        page.keyboard.press("z"); page.keyboard.press("z"); page.wait_for_function(f"!{A}.session.mask.counts[1]"); saved(page)
        page.keyboard.press("Shift+Z"); page.wait_for_function(f"{A}.session.mask.counts[1] === 2304")
        assert (agreed(page, annotator)[0] == left).all()


def test_not_labelled_is_painted_and_counted_like_a_class(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        rows = page.locator("#a .bh-class")
        assert rows.nth(3).inner_text().split() == ["N", "not", "labelled", "0.0", "%"]
        page.keyboard.press("n"); stroke(page, (60, 80), (180, 80))
        found, events = agreed(page, annotator)
        share = (found == UNLABELLED).mean()
        assert share > 0 and set(np.unique(found)) == {0, UNLABELLED} and events[-1]["class"] == UNLABELLED
        assert f"{100 * share:.1f} %" in rows.nth(3).inner_text()
        inked = page.evaluate(f"(([x, y]) => {{ const c = {A}.view.classes.context, n = new Set(); for (let k = 0; k < 8; k++) n.add(c.getImageData(x + k, y, 1, 1).data.join()); return n.size }})([120, 80])")
        assert inked == 2  # a hatch of two tones


# Proposals

@contextmanager
def proposing(page, tmp_path, **more):
    facts = {"model": "stand-in", "weights": "ab" * 32, "confidence": 0.75}
    def suggest(marks, label_map, earlier):
        asked.append(marks)
        found = np.where(squares()[0] | squares()[1], marks[0]["cls"], label_map).astype(np.uint8)
        return patches_between(label_map, found), facts
    asked = []
    with opened(page, work(tmp_path, suggest=suggest, proposal=lambda: (halves(), facts | {"model": "head"}), **more)) as annotator:
        annotator.asked, annotator.facts = asked, facts
        yield annotator


def proposed(page, pixels=None): page.wait_for_function(f"{A}.session.proposes" + (f" && {A}.session.proposal.data.length - {A}.session.proposal.counts[254] === {pixels}" if pixels else ""))


def hatched(page, x, y):
    "Whether a proposal is drawn about a pixel."
    return page.evaluate(f"([x, y]) => {A}.view.proposal.context.getImageData(x, y, 8, 1).data.some(v => v)", [x, y])


def test_a_click_shows_a_proposal_that_is_no_label_before_it_is_accepted(page, tmp_path):
    with proposing(page, tmp_path) as annotator:
        page.keyboard.press("2"); page.keyboard.press("s")
        at = click(page, 50, 60); proposed(page, 4608)
        assert annotator.asked == [[{"x": int(at[0]), "y": int(at[1]), "cls": 2}]]
        assert hatched(page, 50, 60) and hatched(page, 150, 60) and not hatched(page, 100, 60) and not agreed(page, annotator)[0].any()
        page.keyboard.press("a")
        found, events = agreed(page, annotator)
        assert (found == 2 * (squares()[0] | squares()[1])).all() and not hatched(page, 50, 60)
        last = events[-1]
        assert (last["kind"], last["tool"], last["source"], last["pixels"], last["whole"]) == ("accept", "suggest", "model", 4608, True) and annotator.facts.items() <= last.items()
        page.keyboard.press("z"); proposed(page, 4608)
        assert not agreed(page, annotator)[0].any() and hatched(page, 50, 60)


def test_one_piece_is_accepted_one_refused_and_the_log_says_so(page, tmp_path):
    with proposing(page, tmp_path) as annotator:
        page.keyboard.press("s"); click(page, 50, 60); proposed(page, 4608)
        page.keyboard.press("t"); click(page, 150, 60)
        assert (agreed(page, annotator)[0] == squares()[1]).all(); proposed(page, 2304)
        page.keyboard.press("r"); click(page, 100, 60); text(page, "no proposal here")
        click(page, 50, 60); page.wait_for_function(f"!{A}.session.proposes")
        found, events = agreed(page, annotator)
        assert (found == squares()[1]).all()
        assert [(e["kind"], e["pixels"], e["whole"], e["box"], e["model"]) for e in events[-2:]] == [("accept", 2304, False, [128, 40, 48, 48], "stand-in"), ("reject", 2304, False, [32, 40, 48, 48], "stand-in")]


def test_a_scribble_suggests_from_all_its_places_and_all_is_refused_at_once(page, tmp_path):
    with proposing(page, tmp_path) as annotator:
        page.keyboard.press("s"); stroke(page, (40, 50), (50, 60), (60, 70), (70, 80)); proposed(page, 4608)
        assert len(annotator.asked[0]) == 4 and {m["cls"] for m in annotator.asked[0]} == {1}
        page.keyboard.press("x"); page.wait_for_function(f"!{A}.session.proposes")
        found, events = agreed(page, annotator)
        assert not found.any() and (events[-1]["kind"], events[-1]["pixels"], events[-1]["whole"]) == ("reject", 4608, True)
        page.keyboard.press("x"); text(page, "no proposal to reject")
        page.keyboard.press("z"); text(page, "Nothing to undo")  # refusing is no edit


def test_the_heads_proposal_has_all_classes_and_what_is_drawn_over_it_is_decided(page, tmp_path):
    with proposing(page, tmp_path) as annotator:
        page.get_by_role("button", name="From model").click(); proposed(page)
        text(page, "A takes it all")
        a, b = stroke(page, (40, 80), (120, 80))
        band = capsule((160, 240), a, b, 12 / factor(page)); saved(page)
        page.get_by_role("button", name="Accept all").click()
        found, events = agreed(page, annotator)
        assert (found == np.where(band, 1, halves())).all()
        assert events[-1]["tool"] == "proposal" and events[-1]["model"] == "head" and len(events[-1]["patches"]) == 2
        page.keyboard.press("m"); proposed(page)
        page.keyboard.press("Escape"); page.wait_for_function(f"!{A}.session.proposes")
        assert (agreed(page, annotator)[0] == found).all()


def test_an_answer_to_an_older_click_is_dropped(page, tmp_path):
    with proposing(page, tmp_path) as annotator:
        page.evaluate(f"{A}.session.asked = 99")
        page.evaluate(f"({A}).session.propose([{{ x: 0, y: 0, width: 8, height: 1, value: 1, bits: new Uint8Array([255]) }}], {{ asked: 98 }})")
        assert not page.evaluate(f"{A}.session.proposes")


# Seeing

def ink(page, x, y):
    "The overlay's colour at a place of the image: r, g, b, a."
    return page.evaluate(f"([x, y]) => {{ const v = {A}.view, f = v.frame(), d = devicePixelRatio; return [...v.context.getImageData((f.ox + x * f.factor) * d, (f.oy + y * f.factor) * d, 1, 1).data] }}", [x, y])


def test_classes_are_hidden_while_the_key_is_held(page, tmp_path):
    w = work(tmp_path); w.record.add("paint", [patch_from(squares()[0], 1)])
    with opened(page, w):
        assert ink(page, 50, 60)[3] > 90
        page.keyboard.down("h"); assert ink(page, 50, 60)[3] == 0
        page.keyboard.up("h"); assert ink(page, 50, 60)[3] > 90
        page.keyboard.down("h"); page.evaluate("document.activeElement.blur()"); assert ink(page, 50, 60)[3] > 90
        page.keyboard.up("h")
        page.get_by_role("button", name="Hide").click(); assert ink(page, 50, 60)[3] == 0
        page.get_by_role("button", name="Hide").click(); assert ink(page, 50, 60)[3] > 90


def test_the_brush_is_measured_in_pixels_of_the_screen(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        page.mouse.move(*on_screen(page, 100, 80))
        width = lambda: page.evaluate(f"{A}.view.ring.getBoundingClientRect().width")
        assert width() == 24
        page.keyboard.press("]"); page.keyboard.press("]"); assert width() == 32
        page.keyboard.press("["); assert width() == 28
        at = click(page, 100, 80)
        assert (agreed(page, annotator)[0] == capsule((160, 240), at, at, 14 / factor(page))).all()
        before = factor(page)
        page.keyboard.press("+"); page.wait_for_function(f"Math.abs({A}.view.frame().factor / {before} - 1.4) < 1e-6")
        assert width() == 28
        page.keyboard.press("2"); at = click(page, 130, 80)
        assert ((agreed(page, annotator)[0] == 2) == capsule((160, 240), at, at, 14 / factor(page))).all()


@pytest.mark.parametrize("compact", [False, True])
def test_light_starts_as_python_says_and_changes_the_display_alone(page, tmp_path, compact):
    dark = picture(320, 480) // 4
    with opened(page, work(tmp_path, domain="fluorescence", pixels=dark), Annotator(compact=compact)) as annotator:
        state = "(f => [f.map(e => +e.getAttribute('amplitude')), f.map(e => +e.getAttribute('exponent'))])([...document.querySelectorAll('#a feComponentTransfer > *')])"
        gain = 220 / np.percentile(dark, 99.5, axis=(0, 1)).max()
        assert np.allclose(page.evaluate(state), [[gain] * 3, [1] * 3], atol=.03)
        assert page.evaluate(f"getComputedStyle({A}.view.viewer.drawer.canvas).filter").startswith("url(")
        if compact: return
        before = len(annotator.sent)
        page.get_by_text("Light (display only)").click()
        page.evaluate("e => { e.value = 2; e.dispatchEvent(new Event('input')) }", page.get_by_title("Gamma of green").locator("input").element_handle())
        page.get_by_title("Show red").uncheck()
        (r, g, b), exponents = page.evaluate(state)
        assert r == 0 and g == pytest.approx(gain ** .5, abs=.02) and exponents == [1, .5, 1] and len(annotator.sent) == before
        page.locator("#a .bh-annotator").focus(); page.keyboard.press("w"); click(page, 56, 64)
        assert (agreed(page, annotator)[0] == squares(320, 480)[0]).all()  # the wand sees the picture as it is
        annotator.show(work(tmp_path, "S02"))  # brightfield
        page.wait_for_function(f"{A}.session.roi.name === 'S02'")
        assert page.evaluate(f"{A}.view.viewer.drawer.canvas.style.filter") == "" and not page.get_by_text("Light (display only)").is_visible()


def test_wheel_zooms_about_the_pointer_and_right_button_and_alt_pan(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        start = page.evaluate(f"{A}.view.frame()")
        still = f"(() => {{ const z = {A}.view.viewer.viewport; return Math.abs(z.getZoom() - z.getZoom(true)) < 1e-9 && z.getCenter().minus(z.getCenter(true)).y === 0 }})()"
        place = on_screen(page, 60, 50); under = in_image(page, place)
        page.mouse.move(*place); page.mouse.wheel(0, -200)
        page.wait_for_function(f"{A}.view.frame().factor > {start['factor']} && {still}")
        assert in_image(page, place) == pytest.approx(under, abs=.2)
        for button, key in (("right", None), ("middle", None), ("left", "Alt")):
            before = page.evaluate(f"{A}.view.frame()")
            if key: page.keyboard.down(key)
            page.mouse.move(600, 300); page.mouse.down(button=button); page.mouse.move(580, 290); page.mouse.up(button=button)
            if key: page.keyboard.up(key)
            page.wait_for_function(f"(f => Math.abs(f.ox - {before['ox']} + 20) < .5 && Math.abs(f.oy - {before['oy']} + 10) < .5)({A}.view.frame())")
        assert not agreed(page, annotator)[0].any()
        page.keyboard.press("v"); before = page.evaluate(f"{A}.view.frame()")
        page.mouse.move(600, 300); page.mouse.down(); page.mouse.move(610, 310); page.mouse.move(630, 320); page.mouse.up()
        page.wait_for_function(f"{A}.view.frame().ox > {before['ox']} + 15")
        page.keyboard.press("f"); page.wait_for_function(f"Math.abs({A}.view.frame().ox - {start['ox']}) < 1e-6 && {A}.view.frame().factor === {start['factor']}")
        before = page.evaluate(f"{A}.view.frame().ox")
        page.keyboard.press("ArrowRight"); page.wait_for_function(f"{A}.view.frame().ox < {before}")


def test_the_scale_bar_is_as_long_as_it_says_also_on_the_next_roi(page, tmp_path):
    def right(um):
        label, width = page.evaluate("(e => [e.textContent, parseFloat(getComputedStyle(e).width)])(document.querySelector('#a .bh-scale'))")
        number, unit = label.split()
        assert width == pytest.approx(float(number) * {"µm": 1, "mm": 1000}[unit] / um * factor(page), rel=1e-3) and 40 < width <= 140
    with opened(page, work(tmp_path)) as annotator:
        right(0.5)
        page.keyboard.press("-"); page.wait_for_function(f"(v => Math.abs(v.getZoom() - v.getZoom(true)) < 1e-9)({A}.view.viewer.viewport)"); right(0.5)
        annotator.show(work(tmp_path, "S02", pixel_size_um=7.0)); page.wait_for_function(f"{A}.view.shown === 'S02/S02' && {A}.view.viewer.world.getItemCount() && {A}.view.last"); right(7.0)
        annotator.show(work(tmp_path, "S03", pixel_size_um=None)); page.wait_for_function(f"{A}.view.shown === 'S03/S03' && {A}.view.viewer.world.getItemCount() && {A}.view.last")
        assert not page.locator("#a .bh-scale").is_visible()


def test_marks_of_the_roi_before_are_gone_from_the_next_of_the_same_size(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        page.keyboard.press("o"); click(page, 50, 50); saved(page)
        annotator.show(work(tmp_path, "S02")); page.wait_for_function(f"{A}.view.shown === 'S02/S02' && {A}.view.viewer.world.getItemCount() && {A}.view.last")
        assert page.locator("#a .bh-marks circle").count() == 0 and annotator.work.record.marks == []


def test_the_live_read_out_is_what_the_measures_of_the_map_are(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        page.keyboard.press("w"); click(page, 50, 60); click(page, 150, 60)
        page.keyboard.press("2"); page.keyboard.press("b"); stroke(page, (30, 95), (80, 95))
        page.keyboard.press("n"); stroke(page, (150, 10), (220, 150))
        found, _ = agreed(page, annotator)
        assert set(np.unique(found)) == {0, 1, 2, UNLABELLED}
        measures = measure_roi(np.where(found == UNLABELLED, 0, found), "brightfield", 0.5)
        for name in ("B.Ar (mm2)", "B.Pm (mm)", "OS/BS (%)"):
            page.wait_for_function(f"({A}.session.readout ?? []).some(r => r[0] === {json.dumps(name)} && r[1] === {json.dumps(f'{measures[name]:.3g}')})")
            page.locator("#a .bh-readout tr", has_text=name).wait_for()
        shares = [100 * (found == v).mean() for v in (0, 1, 2, UNLABELLED)]
        assert page.locator("#a .bh-area").all_text_contents() == [f"{s:.1f} %" for s in shares]


# Keys

def test_every_key_of_the_design_does_its_work_and_none_reaches_the_notebook(page, tmp_path):
    called = []
    with opened(page, work(tmp_path, domain="fluorescence", pixels=picture()), Annotator(on_next=lambda: called.append("next"), on_done=lambda w: called.append(w.roi))) as annotator:
        assert page.locator("#a .bh-annotator").get_attribute("data-lm-suppress-shortcuts") == "true"
        page.evaluate("window.got = []; document.addEventListener('keydown', e => window.got.push(e.key))")
        for key, tool in zip("vbewpstrol", ("pan", "brush", "erase", "wand", "polygon", "suggest", "accept", "reject", "point", "line")):
            page.keyboard.press(key)
            assert page.evaluate(f"{A}.session.tool") == tool and page.locator("#a .bh-group .bh-on").count() == 1
        for key, cls in (*((str(c), c) for c in range(4)), ("9", 3), ("n", UNLABELLED)):
            page.keyboard.press(key); assert page.evaluate(f"{A}.session.cls") == cls
        for key in ("a", "x", "m", "u", "g", "d", "f", "z", "Shift+Z", "h", "+", "-", "[", "]", "y", "c", "i", "q", "0", "ArrowUp", "Escape", "Enter"): page.keyboard.press(key)
        for key, kind in (("m", "head"), ("u", "whole"), ("g", "similar")): assert kind in [m["type"] for m in annotator.sent]
        page.keyboard.press(" "); saved(page)
        page.get_by_role("button", name="Done").focus(); page.keyboard.press("Enter"); saved(page)  # a button's keys are its own
        page.get_by_role("button", name="Next ROI").focus(); page.keyboard.press(" "); saved(page)
        assert called == ["next", "S01", "next"] and page.evaluate("got") == []
        page.locator("#a .bh-annotator").focus()
        page.keyboard.press("Control+s"); page.keyboard.press("Alt+b")
        assert {"s", "b"} <= set(page.evaluate("got"))
        page.evaluate("window.got = []"); page.keyboard.press("Control+z"); assert "z" not in page.evaluate("got")


def test_sliders_keep_their_arrows_and_a_stroke_under_way_keeps_to_itself(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        page.get_by_title("Of the classes over the picture").locator("input").focus()
        before, place = page.evaluate(f"{A}.session.opacity"), page.evaluate(f"{A}.view.frame().ox")
        page.keyboard.press("ArrowRight")
        assert page.evaluate(f"{A}.session.opacity") == pytest.approx(before + .05) and page.evaluate(f"{A}.view.frame().ox") == place
        page.locator("#a .bh-annotator").focus()
        page.mouse.move(*on_screen(page, 50, 50)); page.mouse.down()
        for key in "2xw": page.keyboard.press(key)
        page.mouse.move(*on_screen(page, 90, 90)); page.mouse.up()
        assert set(np.unique(agreed(page, annotator)[0])) == {0, 1}
        page.mouse.move(*on_screen(page, 150, 50)); page.mouse.down(); page.mouse.move(*on_screen(page, 200, 50)); page.keyboard.press("Escape"); page.mouse.up()
        assert not agreed(page, annotator)[0][50, 150:].any() and ink(page, 180, 50)[3] == 0


# Views

def test_two_views_of_one_widget_show_one_state_and_one_may_go(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        page.evaluate("document.getElementById('a').bonehisto.view.stage.style.height = '250px'; window.second = draw('b'); document.getElementById('b').bonehisto.view.stage.style.height = '250px'")
        page.locator("#b .bh-annotator").scroll_into_view_if_needed(); ready(page, "b")
        seen = "(([id, x, y]) => { const v = document.getElementById(id).bonehisto.view; return v.classes.context.getImageData(x, y, 1, 1).data[3] })"
        page.keyboard.press("2")
        stroke(page, (60, 60), (100, 60), view="b"); saved(page)
        assert page.evaluate(seen, ["a", 80, 60]) == page.evaluate(seen, ["b", 80, 60]) == 255
        page.keyboard.press("e")
        assert page.evaluate("['a', 'b'].map(i => document.querySelector(`#${i} .bh-group .bh-on`).textContent)") == ["Erase"] * 2
        assert page.evaluate("['a', 'b'].map(i => document.querySelector(`#${i} .bh-class.bh-on .bh-name`).textContent)") == ["osteoid"] * 2
        page.evaluate("second()"); assert page.locator("#b .bh-annotator").count() == 0
        page.locator("#a .bh-annotator").focus(); page.keyboard.press("z"); saved(page)
        assert page.evaluate(seen, ["a", 80, 60]) == 0 and not agreed(page, annotator)[0].any()


def test_what_another_page_of_the_same_kernel_does_is_shown_here(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        patch = patch_from(squares()[0], 1)
        base = {"client": "other", "opening": annotator.opening, "seconds": 1.0}
        annotator.hear({**base, "type": "edit", "kind": "paint", "n": 1, "step": 1, "cls": 1, "patches": [patch.rectangle]}, [patch.bits])
        page.wait_for_function(f"{A}.session.mask.counts[1] === 2304")
        annotator.hear({**base, "type": "edit", "kind": "reject", "n": 2, "step": 2, "patches": [], "pixels": 4}, [])
        annotator.hear({**base, "type": "undo", "n": 3, "step": 3, "here": True}, [])
        page.wait_for_function(f"!{A}.session.mask.counts[1]"); agreed(page, annotator)
        page.reload(); ready(page)
        annotator.hear({**base, "type": "redo", "n": 4, "step": 4, "here": True}, [])  # a step this page never saw
        page.wait_for_function(f"{A}.session.mask.counts[1] === 2304"); agreed(page, annotator)


def test_removing_the_widget_leaves_nothing_behind(page, tmp_path):
    page.add_init_script("""window.held = new Map(); window.clocks = new Set()
        for (const [name, target] of [['window', window], ['document', document]]) for (const way of ['addEventListener', 'removeEventListener']) { const real = target[way].bind(target); target[way] = (type, f, o) => { if (new Error().stack.includes('annotator.js')) { const k = name + ' ' + type; held.set(k, (held.get(k) ?? 0) + (way[0] === 'a' ? 1 : -1)) } real(type, f, o) } }
        const set = setInterval, clear = clearInterval; window.setInterval = (...a) => { const n = set(...a); clocks.add(n); return n }; window.clearInterval = n => { clocks.delete(n); clear(n) }""")
    with opened(page, work(tmp_path)):
        page.evaluate("window.ends = draw('b'); 0"); page.locator("#b .bh-annotator").scroll_into_view_if_needed(); ready(page, "b")
        many = page.evaluate("[clocks.size, listeners.length]")
        page.evaluate("ends()"); assert page.locator("#b .bh-annotator").count() == 0 and page.evaluate(f"{A}.session.listeners.size") == 1
        page.evaluate(f"{A}.view.close(); window.close()")
        assert page.evaluate("[clocks.size, listeners.length]") == [many[0] - 1, many[1] - 1] and page.evaluate("listeners.length") == 0
        held = page.evaluate("Object.fromEntries(held)")
        assert held and not {k: n for k, n in held.items() if n > 0}


# Faults

def test_a_torn_log_opens_with_all_finished_strokes(page, tmp_path):
    w = work(tmp_path); w.record.add("paint", [patch_from(squares()[0], 1)]); w.record.add("paint", [patch_from(squares()[1], 2)])
    path = w.record.log.path; w.record.log.close("killed"); del w
    for p in path.parent.glob("Ana.snapshot*"): p.unlink()
    path.write_bytes(path.read_bytes() + b'{"id": 4, "kind": "paint", "patches": [{"x": 3,')
    with opened(page, work(tmp_path)) as annotator:
        assert (agreed(page, annotator)[0] == squares()[0] + 2 * squares()[1]).all() and "torn" in annotator.work.record.notes[0]
        stroke(page, (20, 130), (60, 130)); assert len(agreed(page, annotator)[1]) == 4


def test_a_second_writer_sees_everything_and_why_nothing_can_be_changed(page, tmp_path):
    import subprocess, sys
    w = work(tmp_path); w.record.add("paint", [patch_from(squares()[0], 1)]); w.record.close()
    hold = subprocess.Popen([sys.executable, "-c", "import sys; from pathlib import Path; from bonehisto.label_log import EventLog; log = EventLog(sys.argv[1]); print('open', log.why, flush=True); sys.stdin.read()", str(w.record.base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert hold.stdout.readline().strip() == "open"
        with opened(page, work(tmp_path)) as annotator:
            text(page, "is being written by"); assert "read only" in page.locator("#a .bh-state").text_content()
            page.evaluate(f"{A}.panel.say('')"); stroke(page, (20, 130), (60, 130)); text(page, "is being written by")
            for key in ("z", "a", "x"): page.keyboard.press(key)
            assert (agreed(page, annotator)[0] == squares()[0]).all() and len(annotator.work.record.events()) == 2
    finally: hold.communicate("")


def test_a_picture_beside_is_not_warned_about(page, tmp_path):
    w = work(tmp_path); w.record.log.close("only to look at")
    with opened(page, w, Annotator(compact=True)):
        assert page.locator("#a .bh-message").text_content() == "" and not page.locator("#a .bh-side").is_visible()
        assert page.locator("#a .bh-bar button:visible").all_text_contents() == ["Fit", "+", "−"]


def test_opening_a_roi_clears_the_message_and_an_empty_one_has_no_colour(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        annotator.say("careful", "warn"); text(page, "careful")
        assert page.locator("#a .bh-warn").count() == 1
        annotator.show(work(tmp_path, "S02")); page.wait_for_function(f"{A}.session.roi.name === 'S02'")
        assert page.locator("#a .bh-message").text_content() == "" and page.locator("#a .bh-warn").count() == 0
        annotator.say("", "error"); annotator.say("x"); text(page, "x"); annotator.say("", "error")
        page.wait_for_function("document.querySelector('#a .bh-message').textContent === ''"); assert page.locator("#a .bh-error").count() == 0


@pytest.mark.parametrize("way", ["() => { throw new Error('comm is closed') }", "() => {}", "async () => { throw new Error('gone') }"])
def test_a_kernel_that_is_gone_is_told_and_its_steps_are_kept_and_sent_again_in_order(page, tmp_path, way):
    page.clock.install()
    called = []
    with opened(page, work(tmp_path), Annotator(on_next=lambda: called.append(1))) as annotator:
        page.clock.run_for(500)
        stroke(page, (20, 20), (60, 20)); page.wait_for_function(f"{A}.session.link.unsaved === 0")
        page.evaluate(f"window.real = model.send; model.send = {way}; 0")
        for y in (50, 80, 110): stroke(page, (20, y), (100, y))
        page.keyboard.press("z"); stroke(page, (20, 140), (100, 140))
        page.clock.run_for(6000)
        text(page, "Not saved: 5 steps wait for Python")
        drawn = mask(page)
        assert drawn[140, 50] and len(on_disk(annotator)[1]) == 2
        page.keyboard.press(" "); page.evaluate("model.send = window.real; 0")
        page.get_by_role("button", name="Send again").click()
        page.wait_for_function(f"{A}.session.link.waiting.size === 0"); text(page, "Python answers again")
        found, events = agreed(page, annotator)
        assert (found == drawn).all() and [e["kind"] for e in events] == ["open", *["paint"] * 4, "undo", "paint"] and not called


def test_silence_before_anything_was_opened_is_told(page):
    page.clock.install()
    page.add_init_script("window.python = async () => []")
    annotator = Annotator()
    with show(page, annotator, "annotator"):
        page.wait_for_function(A)
        page.evaluate("model.send = () => {}; 0"); page.evaluate(f"{A}.session.ask('hello')")
        page.clock.run_for(6000); text(page, "Python does not answer")
    annotator.close()


def test_a_step_the_disk_refuses_is_told_at_once_and_can_be_sent_again(page, tmp_path, monkeypatch):
    with opened(page, work(tmp_path)) as annotator:
        def full(*a, **k): raise OSError(28, "No space left on device")
        with monkeypatch.context() as m:
            m.setattr(type(annotator.work.record.log), "_write", full)
            stroke(page, (20, 20), (60, 20)); stroke(page, (20, 60), (60, 60))
            text(page, "No space left on device"); text(page, "2 steps wait")
            page.keyboard.press(" "); text(page, "2 steps wait")
        page.get_by_role("button", name="Send again").click()
        assert len(agreed(page, annotator)[1]) == 3; text(page, "All that you drew is saved")


def test_steps_that_could_not_be_saved_before_another_roi_came_are_told(page, tmp_path):
    with opened(page, work(tmp_path)) as annotator:
        page.evaluate("window.real = model.send; model.send = () => {}; 0")
        stroke(page, (20, 20), (60, 20)); page.evaluate("model.send = window.real; 0")
        annotator.show(work(tmp_path, "S02")); text(page, "1 step on S01 could not be saved")
        stroke(page, (20, 20), (60, 20)); assert agreed(page, annotator)[0].any()


def test_names_with_html_are_text(page, tmp_path):
    evil = "<img src=x onerror=\"document.title='owned'\">"
    classes = [c.model_copy(update={"name": evil + str(c.id)}) if c.id else c for c in DEFAULT_CLASSES["brightfield"]]
    w = work(tmp_path, classes=classes); w.subject = w.roi = evil
    with opened(page, w) as annotator:
        annotator.say(evil, "warn"); text(page, evil)
        annotator.tell("readout", rows=[[evil, evil]]); page.locator("#a .bh-readout", has_text="onerror").wait_for()
        assert evil in page.locator("#a .bh-state").text_content() and page.locator("#a .bh-name").all_text_contents()[1] == evil + "1"
        assert page.locator("#a img").count() == 0 and page.title() != "owned"


def test_what_cannot_be_drawn_says_so_in_its_place(page, tmp_path):
    with opened(page, work(tmp_path)):
        page.evaluate("() => { model.get = () => { throw new Error('no <b>height</b>') }; try { draw('b') } catch {} }")
        assert page.locator("#b").inner_text() == "The annotator could not be drawn: no <b>height</b>"
    page.errors.clear()


# Size

def test_an_image_of_3000_x_2600_comes_by_tiles_and_a_step_over_4_mib_in_chunks(page, tmp_path):
    pixels = np.full((2600, 3000, 3), PAPER, np.uint8); pixels[1000:1600, 1200:1800] = BLUE
    with opened(page, work(tmp_path, domain="fluorescence", pixels=pixels)) as annotator:
        assert {m["type"] for m in annotator.sent} >= {"hello", "tile"} and not page.evaluate(f"{A}.session.picture")
        colour = f"""([x, y]) => {{ const v = {A}.view, c = v.viewer.drawer.canvas, f = v.frame(), d = c.width / v.viewer.canvas.clientWidth; return [...c.getContext('2d').getImageData((f.ox + x * f.factor) * d, (f.oy + y * f.factor) * d, 1, 1).data].slice(0, 3) }}"""
        for x, y, wanted in ((1500, 1300, BLUE), (300, 300, PAPER), (2900, 2304, PAPER)): assert np.abs(np.array(page.evaluate(colour, [x, y])) - wanted).max() < 6
        page.evaluate(f"window.levels = new Set(); (s => {{ const real = s.tile.bind(s); s.tile = (level, ...at) => real(level, ...at).then(t => {{ levels.add(level); return t }}) }})({A}.session)")
        page.evaluate(f"{A}.view.goTo({{ x: 1400, y: 1200, width: 200, height: 200 }})")
        page.wait_for_function(f"{A}.view.frame().factor > 1 && levels.has({annotator.pyramid.top}) && {A}.view.viewer.world.getItemAt(0).getFullyLoaded()")
        assert np.abs(np.array(page.evaluate(colour, [1500, 1300])) - BLUE).max() < 6
        stroke(page, (1450, 1300), (1550, 1300))
        found, _ = agreed(page, annotator); assert found[1300, 1500] == 1 and not found[:1200].any()


def test_a_step_over_4_mib_comes_in_chunks_and_a_damaged_one_is_sent_again(page, tmp_path):
    with opened(page, work(tmp_path, pixels=picture(600, 800), measured=False)) as annotator:
        page.evaluate("""let seen = 0; window.real = model.send; model.send = (message, c, buffers) => {
            if (message?.type === 'chunk' && message.i === 1 && !seen++) { const bad = buffers[0].slice(0); new Uint8Array(bad)[7] ^= 1; buffers = [bad] }
            return window.real(message, c, buffers) }; 0""")
        page.evaluate(f"""(s => s.edit({{ kind: 'accept', tool: 'test', source: 'model', patches: Array.from({{ length: 71 }}, (_, v) => {{
            const bits = new Uint8Array(60000); for (let k = 0; k < bits.length; k++) bits[k] = k * 31 + v * 77
            return {{ x: 0, y: 0, width: 800, height: 600, value: v % 3, bits }} }}) }}))({A}.session)""")
        text(page, "arrived damaged"); assert not annotator.work.record.map.any()
        page.get_by_role("button", name="Send again").click()
        assert len(np.unique(agreed(page, annotator)[0])) == 3 and sum(m["type"] == "chunk" for m in annotator.sent) == 4


def test_after_300_random_steps_browser_record_and_log_have_the_same_map(page, tmp_path):
    with proposing(page, tmp_path, measured=False) as annotator:
        rng, (ox, oy), scale = np.random.default_rng(7), on_screen(page, 0, 0), factor(page)
        def go(*places):
            (x, y), *rest = [(round(ox + x * scale), round(oy + y * scale)) for x, y in places]
            page.mouse.move(x, y); page.mouse.down()
            for p in rest: page.mouse.move(*p)
            page.mouse.up()
        held = {}
        def choose(cls, tool):
            for kind, key in (("cls", str(cls)), ("tool", str(tool))):
                if tool == "m" or held.get(kind) != key: page.keyboard.press(key); held[kind] = key
        for k in range(300):
            what = rng.choice(["b", "b", "b", "e", "w", "z", "z", "redo", "s", "m", "lock"])
            x, y, x2, y2 = (int(v) for v in rng.integers(2, [238, 158, 238, 158]))
            if what in "bew":
                choose(rng.choice(["1", "2", "n"]), what)
                go((x, y), (x2, y2)) if what != "w" else go((x, y))
            elif what == "z": page.keyboard.press("z")
            elif what == "redo": page.keyboard.press("Shift+Z")
            elif what == "lock": page.locator("#a .bh-lock").nth(int(rng.integers(1, 3))).click()
            else:
                choose(rng.choice(["1", "2"]), what)
                if what == "s": go((x, y))
                page.wait_for_function(f"{A}.session.proposed")
                if rng.random() < .5: choose(held["cls"], "t"); go((int(rng.choice([50, 150])), 60)); page.keyboard.press("Escape")
                else: page.keyboard.press(str(rng.choice(["a", "x"])))
        found, events = agreed(page, annotator)
        kinds = {e["kind"] for e in events}
        assert kinds >= {"paint", "accept", "reject", "undo", "redo"} and len(events) > 150 and len(np.unique(found)) >= 3
        annotator.work.record.close()
        for p in annotator.work.record.base.parent.glob("*.snapshot.json"): p.unlink()
        assert (on_disk(annotator)[0] == found).all()  # the log alone
