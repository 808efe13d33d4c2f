"""A number leads to its picture: what is drawn is what was summed, and every page says what it cannot show."""
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import shapely
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from synthetic_run import make_run

from bonehisto.audit import LEAST, LONGEST, PANEL, audit_figure, panel_lines, read_small, write_picture
from bonehisto.audit_pages import disagreement, draw_rois, write_pages
from bonehisto.files import UserError, read_json, read_table, write_json, write_table
from bonehisto.histomorphometry import measure_in_full
from bonehisto.images import write_mask
from bonehisto.manifest import load_manifest
from bonehisto.measure import measure_rois, pool_subjects
from bonehisto.page import RunFolder, subject_page
from bonehisto.report import write_report
from bonehisto.report_sections import inventory_section
from bonehisto.result_sections import measures_section
from bonehisto.traces import KINDS, TICK_UM, drawn_lengths, marks_of, read_marks, write_marks

ROWS, COLS = np.mgrid[:260, :340].astype(float)


def tissue(seed=0, domain="fluorescence"):
    "Wavy bone that runs out of the frame, an island, a seam, crumbs, holes; in fluorescence single, double and merged labels."
    rng = np.random.default_rng(seed); wave = 18 * np.sin(COLS / rng.uniform(40, 60) + rng.uniform(0, 6))
    depth = ROWS - 70 - wave
    classes = (depth > 0).astype(np.uint8)
    classes[(depth > 0) & (depth < 15) & (COLS > 110)] = 2
    if domain == "fluorescence":
        for at, half, first, past in ((28, 2.5, 150, 300), (48, 2.5, 152, 298), (30, 2.5, 12, 70), (80, 6, 180, 300)):
            classes[(np.abs(depth - at) <= half) & (COLS > first) & (COLS < past)] = 3
    for r, c in rng.integers((120, 20), (250, 320), (6, 2)): classes[r:r + 3, c:c + 4] *= 0
    classes[np.hypot(ROWS - 18, COLS - 300) < 5] = 1
    classes[np.hypot(ROWS - 14, COLS - 40) < 26] = 1
    return classes


def full(classes, domain="fluorescence", px=0.5, **more):
    return measure_in_full(classes, domain, px, interval_days=15, **more)


def coloured(classes, domain):
    ink = [[212, 160, 142], [22, 92, 165], [182, 59, 53], [0, 0, 0]] if domain == "brightfield" else [[8, 9, 8], [20, 60, 50], [6, 12, 10], [200, 210, 40]]
    return np.array(ink, np.uint8)[classes]


def lengths_in_file(path):
    "Lengths by class straight from the JSON text, with nothing of the library."
    found, out = json.loads(Path(path).read_text()), {}
    for f in found["features"]:
        if f["geometry"]["type"] != "MultiLineString": continue
        um = sum(np.hypot(*np.diff(np.array(line), axis=0).T).sum() for line in f["geometry"]["coordinates"]) * found["pixel_size_um"]
        kind = f["properties"]["classification"]["name"]; out[kind] = out.get(kind, 0) + um / 1e3
    return out


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("domain", ["brightfield", "fluorescence"])
def test_lengths_drawn_are_the_lengths_in_the_table(tmp_path, seed, domain):
    roi = np.hypot((ROWS - 130) / 120, (COLS - 170) / 160) < 1 if seed % 2 else None
    result, *_, traces = full(tissue(seed, domain), domain, px=(0.5, 0.37)[seed // 2], roi=roi)
    drawn = lengths_in_file(write_marks(tmp_path / "roi.geojson", traces, "roi")); length = lambda *kinds: sum(drawn.get(k, 0) for k in kinds)
    same = lambda value: pytest.approx(value, rel=1e-12, abs=1e-15)
    assert length("bare surface", "osteoid surface") == same(result["B.Pm (mm)"]) and 0 < length("osteoid surface") == same(result["O.Pm (mm)"])
    assert length("mineralised bone") == same(result["Md.Pm (mm)"]) and length("bare surface") == pytest.approx(result["Q.Pm (mm)"], rel=1e-11)
    if domain == "brightfield": assert not any("label" in k for k in drawn); return
    assert length("single label") == same(result["sL.Pm (mm)"]) and length("unresolved label") == same(result["uL.Pm (mm)"])
    assert 0 < length("double label, later", "double label, earlier") / 2 == same(result["dL.Pm (mm)"])
    assert drawn_lengths(*read_marks(tmp_path / "roi.geojson")[:2]) == {k: same(result[k]) for k in drawn_lengths([], 1.0)}


def test_every_kind_of_label_occurs_in_the_maps_these_tests_draw():
    kinds = set(full(tissue(0))[1]["kind"]) | set(full(tissue(2))[1]["kind"])
    assert kinds == {"single", "double", "unresolved"}


def test_what_was_set_aside_is_outlined_with_its_area():
    result, *_, traces = full(tissue(0)); area = {m.kind: m.geometry.area * 0.25 for m in marks_of(traces)}
    assert result["fragments"] == 1 and area["left out"] == pytest.approx(result["fragments_um2"]) and area["filled"] == pytest.approx(result["holes_um2"]) and result["holes"] > 2


def test_label_distances_are_drawn_at_equal_steps_and_as_long_as_they_were_measured():
    "Concentric arcs: equal steps of arc length are equal steps of angle."
    radius, angle = np.hypot(ROWS - 250, COLS - 170), np.arctan2(COLS - 170, 250 - ROWS)
    classes = (radius < 220).astype(np.uint8)
    for at in (200, 170): classes[(np.abs(radius - at) < 3) & (np.abs(angle) < .6)] = 3
    _, table, *_, traces = full(classes); (stretch,) = traces.stretches
    (mark,) = [m for m in marks_of(traces) if m.kind == "label distance"]; ticks = shapely.get_coordinates(mark.geometry).reshape(-1, 2, 2)
    turn = np.sort(np.arctan2(ticks.mean(1)[:, 0] - 170.5, 250.5 - ticks.mean(1)[:, 1]))
    assert len(ticks) >= 15 and np.abs(np.diff(turn) * 185 - TICK_UM / 0.5).max() < 1.5
    pairs = np.stack([stretch.near, stretch.far], 1)[slice(*stretch.facing), :, ::-1] + .5  # all that were measured
    nearest = np.abs(pairs[None] - ticks[:, None]).max((2, 3)).min(1)
    assert nearest.max() < 1e-9  # a tick is one of them, not a mean of two
    piece = np.mean([np.hypot(*np.diff(pairs[:, side], axis=0).T) for side in (0, 1)], axis=0); weight = (np.r_[piece, 0] + np.r_[0, piece]) / 2
    apart = np.hypot(*(pairs[:, 0] - pairs[:, 1]).T) * 0.5
    assert table["distance_um"][0] == pytest.approx(np.average(apart, weights=weight), abs=1e-3) and table["distance_um"][0] == pytest.approx(15, abs=.2)


def test_where_no_distance_was_measured_none_is_drawn():
    "A break in one line of a double is bridged in its length; there is nothing to measure across it."
    classes = np.ones((120, 300), np.uint8)
    for at in (40, 64): classes[at - 3:at + 3, 20:280] = 3
    classes[30:50, 140:152] = 1
    _, table, *_, traces = full(classes); assert table["kind"].tolist() == ["double"]
    ticks = np.concatenate([shapely.get_coordinates(m.geometry) for m in marks_of(traces) if m.kind == "label distance"])[:, 0]
    stretch = traces.stretches[0]; measured = stretch.near[slice(*stretch.facing), 1] + .5
    assert all(np.abs(measured - x).min() < 1 for x in ticks) and len(ticks) > 30


def test_widths_of_osteoid_begin_at_the_surface_and_end_where_the_osteoid_does():
    classes = tissue(0, "brightfield"); marks = {m.kind: m for m in marks_of(full(classes, "brightfield").traces)}
    ticks = shapely.get_parts(marks["osteoid width"].geometry); assert len(ticks) > 20
    place = [marks["osteoid surface"].geometry.distance(shapely.Point(t.coords[0])) for t in ticks]; assert max(place) < .01
    at = lambda t, share: classes[tuple(np.floor(t.interpolate(share, normalized=True).coords[0]).astype(int)[::-1])]
    inside = [t for t in ticks if 3 < t.bounds[0] and t.bounds[2] < 336]
    assert all(at(t, .5) == 2 for t in inside) and np.mean([at(t, .9) == 2 for t in inside]) > .95
    beyond = [t.interpolate(t.length + 0) for t in inside]; way = [np.diff(t.coords, axis=0)[0] / t.length for t in inside]
    assert np.mean([classes[tuple(np.floor(np.array(p.coords[0]) + 1.5 * w).astype(int)[::-1])] == 1 for p, w in zip(beyond, way)]) > .95


def test_neither_frame_nor_edge_of_the_analysed_part_is_drawn_as_surface():
    whole = marks_of(full(np.ones((80, 90), np.uint8), "brightfield").traces)
    assert {m.kind for m in whole} == {"analysed part"}
    roi = np.zeros((260, 340), bool); roi[30:200, 60:300] = True
    marks = marks_of(full(tissue(1), roi=roi).traces); part = next(m for m in marks if m.kind == "analysed part").geometry
    assert part.bounds == (60, 30, 300, 200)
    for m in marks:
        if m.kind in ("bare surface", "osteoid surface", "mineralised bone"): assert m.geometry.intersection(part.boundary.buffer(.8)).length < 12 and part.buffer(1).covers(m.geometry)


def picture_of(tmp_path, classes, domain, **row):
    result, *_, traces = full(classes, domain); write_marks(tmp_path / "r.geojson", traces); marks, px, shape = read_marks(tmp_path / "r.geojson")
    fig = audit_figure(coloured(classes, domain), marks, result | {"roi": "r", "subject": "s"} | row, shape)
    write_picture(tmp_path / "r.jpg", fig, tmp_path / "small.jpg"); return marks, np.asarray(Image.open(tmp_path / "r.jpg")).astype(int)


@pytest.mark.parametrize("domain", ["brightfield", "fluorescence"])
def test_each_line_has_its_colour_in_the_picture_and_the_rest_is_the_image(tmp_path, domain):
    classes = tissue(2, domain); marks, picture = picture_of(tmp_path, classes, domain); zoom = 4
    assert picture.shape == (max(260 * zoom, LEAST), 340 * zoom + PANEL, 3)
    seen = set()
    for m in marks:
        if m.kind not in ("bare surface", "osteoid surface", "double label, later", "double label, earlier", "single label"): continue
        line = max(shapely.get_parts(m.geometry), key=lambda p: p.length)
        at = np.array([line.interpolate(s, normalized=True).coords[0] for s in np.linspace(.1, .9, 60)])
        dots = np.stack([picture[int(y * zoom) - 1:int(y * zoom) + 2, int(x * zoom) - 1:int(x * zoom) + 2].reshape(-1, 3) for x, y in at])
        near = np.abs(dots - 255 * np.array(to_rgb(KINDS[m.kind]))).max(2).min(1)
        assert np.mean(near < 70) > .8, m.kind
        seen.add(m.kind)
    assert {"bare surface", "osteoid surface"} <= seen and (domain == "brightfield") == ("single label" not in seen)
    lines = shapely.union_all([m.geometry for m in marks if m.kind != "analysed part"])
    far = [(r, c) for r in range(8, 230, 9) for c in range(8, 330, 9) if lines.distance(shapely.Point(c + .5, r + .5)) > 12]
    error = [np.abs(picture[r * zoom + 2, c * zoom + 2] - coloured(classes, domain)[r, c]).max() for r, c in far]
    assert len(far) > 50 and np.mean(np.array(error) < 30) > .97  # the rest: numbers at the ends of labels


def test_no_two_kinds_of_label_share_a_colour_and_all_colours_are_those_of_okabe_and_ito():
    labels = [KINDS[k] for k in ("double label, later", "double label, earlier", "single label", "unresolved label", "osteoid surface", "bare surface")]
    assert len(set(labels)) == 6 and set(KINDS.values()) <= {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF", "#DDDDDD"}


def test_outside_the_analysed_part_the_picture_is_darker(tmp_path):
    classes = np.zeros((200, 200), np.uint8); roi = np.zeros((200, 200), bool); roi[:, :100] = True
    result, *_, traces = full(classes, "brightfield", roi=roi); image = np.full((200, 200, 3), 200, np.uint8)
    write_picture(tmp_path / "r.jpg", audit_figure(image, marks_of(traces), result | {"roi": "r"}, (200, 200)))
    picture = np.asarray(Image.open(tmp_path / "r.jpg")).astype(int)
    assert abs(picture[100, 200] - 200).max() < 4 and abs(picture[100, 600] - 90).max() < 4


def test_a_large_roi_is_drawn_smaller_and_says_by_how_much(tmp_path):
    image = np.zeros((90, 5000, 3), np.uint8); image[:, 2500:] = 200; Image.fromarray(image).save(tmp_path / "a.png")
    small, factor = read_small(tmp_path / "a.png")
    assert factor == 3 and small.shape == (30, 1666, 3) and small[:, :833].max() == 0 and small[:, 834:].min() == 200
    classes = np.zeros((90, 5000), np.uint8); classes[30:70] = 1; classes[30:42, 1000:4000] = 2
    result, *_, traces = full(classes, "brightfield"); marks = marks_of(traces)
    picture = Image.open(write_picture(tmp_path / "a.jpg", audit_figure(small, marks, result | {"roi": "a"}, (90, 5000), factor)))
    assert picture.size == (1666 + PANEL, LEAST) and picture.width <= LONGEST + PANEL
    said = [words for _, words, _ in panel_lines(marks, result | {"roi": "a"}, (90, 5000), factor, 5)]
    assert "one dot is 3 × 3 px" in said and "5000 × 90 px of 0.5 µm" in said and "width of osteoid, each 25 µm" in said


def test_the_panel_takes_a_name_as_it_is(tmp_path):
    picture_of(tmp_path, tissue(0), "fluorescence", roi="$\\frac{1}{$ _x^ " + "w" * 90)


@pytest.mark.parametrize("text, words", [("{", "not valid JSON"), ("[]", "holds no lines"), ('{"features": [{"properties": {}}]}', "holds no lines"), ('{"features": []}', "holds no lines")])
def test_a_damaged_file_of_lines_is_named(tmp_path, text, words):
    (tmp_path / "r.geojson").write_text(text)
    with pytest.raises(UserError, match=words) as e: read_marks(tmp_path / "r.geojson")
    assert "r.geojson" in str(e.value)
    with pytest.raises(UserError, match="s.geojson: cannot be read"): read_marks(tmp_path / "s.geojson")


EVIL = '<b>&"x'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A measured run of two subjects: one with a name that looks like HTML; a moved image, a ROI without a map, an open modality, a polygon."
    folder = tmp_path_factory.mktemp("runs") / "a b"; (folder / "masks").mkdir(parents=True); (folder / "images").mkdir()
    rois = []
    for i, (subject, roi, domain) in enumerate([(EVIL, "e #1", "brightfield"), (EVIL, "e%2", "fluorescence"), ("007", "moved", "fluorescence"), ("007", "open", "brightfield"), ("007", "bare", "brightfield"), ("lost", "no-scale", "brightfield")]):
        classes = tissue(i, domain); Image.fromarray(coloured(classes, domain)).save(folder / f"images/{roi}.png")
        if roi != "bare": write_mask(folder / f"masks/{roi}.png", classes)
        rois.append({"roi": roi, "subject": subject, "group": "low", "modality": "" if roi == "open" else domain, "split": "test", "image": str(folder / f"images/{roi}.png"), "mask": "",
                     "polygon": str(folder / "p.json") if roi == "e #1" else "", "pixel_size_um": np.nan if roi == "no-scale" else .5, "height": 260, "width": 340, "interval_days": 15.0})
    write_json(folder / "p.json", {"type": "Polygon", "coordinates": [[[20, 10], [320, 10], [320, 240], [20, 240], [20, 10]]]})
    (folder / "manifest.yaml").write_text("name: n\nsubjects: [{id: a}]\nrois: [{id: a, image: images/moved.png, subject: a, modality: fluorescence, pixel_size_um: 0.5}]\n")
    manifest = load_manifest(folder / "manifest.yaml"); rois = pd.DataFrame(rois)
    maps = rois.assign(mask=[str(folder / f"masks/{r}.png") if r != "bare" else "" for r in rois["roi"]], modality=rois["modality"].replace("", "brightfield"))
    rows, stretches, *_ = measure_rois(maps, manifest, marks=folder / "audit", kind="classes", workers=1)
    for name, table in {"rois": rois, "roi_parameters": rows, "label_stretches": stretches, "subject_parameters": pool_subjects(rows)}.items(): write_table(folder / f"tables/{name}.csv", table)
    (folder / "images/moved.png").unlink()
    return folder


def not_rendered(self, file, **_): Image.new("RGB", (4, 4)).save(file, "PNG")  # the report's figures are no matter here


@pytest.fixture(scope="module")
def drawn(run):
    notes = draw_rois(run, workers=1)
    pages = write_pages(run, notes)
    with pytest.MonkeyPatch.context() as patch: patch.setattr(Figure, "savefig", not_rendered); write_report(run)
    return run, notes, pages


class Links(HTMLParser):
    "Addresses, balance of tags, and the text of a page."
    def __init__(self, path): super().__init__(); self.found, self.words, self.open = [], "", []; self.feed(path.read_text(encoding="utf-8"))
    def handle_starttag(self, tag, attrs):
        self.found += [v for k, v in attrs if k in ("href", "src")]
        if tag not in ("meta", "img", "br"): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.words += data


def dead(path):
    "Links of a page that lead nowhere, or out of the run folder."
    targets = [unquote(a.partition("#")[0]) for a in Links(path).found if not a.startswith(("data:image/", "#"))]
    return [t for t in targets if re.match(r"\w+:|/", t) or not (path.parent / t).is_file()]


def test_report_leads_to_subjects_subjects_to_pictures_and_no_link_is_dead(drawn):
    run, _, pages = drawn; report = Links(run / "report.html")
    to = {unquote(a) for a in report.found if a.startswith("audit/")}
    assert {f"audit/{p.name}" for p in pages.values()} <= to and {"audit/e #1.jpg", "audit/e%2.jpg", "audit/open.jpg"} <= to
    assert not dead(run / "report.html") and not any(dead(p) for p in pages.values())
    assert "../report.html#histomorphometry" in Links(pages["007"]).found and "open.jpg" in Links(pages["007"]).found and "small/open.jpg" in Links(pages["007"]).found
    assert (run / "audit/open.jpg").is_file() and Image.open(run / "audit/small/open.jpg").size == (480, 367)


def test_a_roi_without_image_or_without_numbers_stands_on_its_page_with_the_reason(drawn):
    run, notes, pages = drawn; page = Links(pages["007"])
    assert list(notes) == ["moved"] and "moved was measured and has no picture" in page.words and "images/moved.png" in page.words
    assert "moved.jpg" not in page.found and "it has no class map" in page.words and not (run / "audit/moved.jpg").exists()
    assert "its pixel size is unknown" in Links(pages["lost"]).words


def test_names_are_text_on_the_page_and_a_safe_file_beside_it(drawn):
    run, _, pages = drawn; page = pages[EVIL]
    assert page.parent == run / "audit" and re.fullmatch(r"[\w-]+\.html", page.name) and page.name == subject_page(EVIL) != subject_page("b_x")
    raw = page.read_text(encoding="utf-8"); assert "<b>&" not in raw and "&lt;b&gt;&amp;&#34;x" in raw and EVIL in Links(page).words and Links(page).open == []
    assert "<b>&" not in (run / "report.html").read_text(encoding="utf-8")


def test_rows_of_a_subject_add_up_to_its_row(drawn):
    run, _, pages = drawn; rows, subjects = (read_table(run / f"tables/{n}_parameters.csv", dtype={"subject": str}) for n in ("roi", "subject"))
    own = rows[(rows["subject"] == EVIL) & (rows["domain"] == "fluorescence")]; one = subjects.set_index("subject").loc[EVIL]
    assert one["structure from"] == "brightfield" and one["dL.Pm (mm)"] == pytest.approx(own["dL.Pm (mm)"].sum())
    words = Links(pages[EVIL]).words; assert "all, pooled" in words and "taken from the brightfield sections" in words and f"{one['MAR (um/d)']:.3f}" in words


def test_lines_of_another_measurement_are_not_drawn(drawn):
    run, _, _ = drawn; marks, px, _ = read_marks(run / "audit/open.geojson"); row = read_table(run / "tables/roi_parameters.csv").set_index("roi").loc["open"].to_dict()
    assert disagreement(marks, row) == "" and "B.Pm (mm) is" in disagreement(marks, row | {"B.Pm (mm)": row["B.Pm (mm)"] * 1.0001}) and "run the step `measure` again" in disagreement(marks[:-1], row)


def test_without_the_step_or_with_an_older_one_the_report_has_no_links(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", not_rendered); folder = make_run(tmp_path / "run", size=64, per_group=1, steps=10)
    links = lambda: [cell["href"] for section in (measures_section, inventory_section) for b in section(RunFolder(folder))["blocks"] if b["kind"] == "table" for row in b["rows"] for cell in row if "href" in cell]
    assert links() == []
    for name in ("low-01.html", "low-01_br1.jpg"): (folder / "audit").mkdir(exist_ok=True); (folder / "audit" / name).write_text("")
    assert set(links()) == {"audit/low-01.html", "audit/low-01_br1.jpg"}
    def record(**audit): write_json(folder / "run.json", read_json(folder / "run.json") | {"steps": {"measure": {"state": "done", "started": "2026-02-01T00:00:00+00:00"}, "audit": audit}})
    for state, started in (("failed", "2026-03"), ("skipped", "2026-03"), ("done", "2026-01")):
        record(state=state, started=started); assert RunFolder(folder).audit("low-01.html") is None
    record(state="done", started="2026-03"); assert RunFolder(folder).audit("low-01.html") == "audit/low-01.html"
