"""The explorer in a headless Chromium, its browser half answered by its Python half."""
import math

import numpy as np
import pandas as pd
import pytest
import shapely

from bonehisto import map_widget
from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.explore import Explorer
from browser import browser, page, show  # noqa: F401: fixtures

ROOT, VIEW, SESSION = ("document.getElementById('a')" + p for p in ("", ".bonehisto.view", ".bonehisto.session"))


def study(n=300, seed=0):
    "Three clouds of tiles, the third of the other stain; features tell the clouds apart, each tile is flat in its own colour."
    rng = np.random.default_rng(seed)
    cloud = np.arange(n) * 3 // n
    xy = np.array([[0, 0], [10, 0], [5, 8]])[cloud] + rng.normal(0, 1, (n, 2)).clip(-2.5, 2.5)
    table = pd.DataFrame({"tile": [f"r{i // 5}:{i % 5}" for i in range(n)], "roi": [f"r{i // 5}" for i in range(n)], "subject": [f"s{i % 7}" for i in range(n)], "group": np.array(["low", "normal", "high"])[cloud],
                          "modality": np.where(cloud < 2, "brightfield", "fluorescence"), "x": np.arange(n) % 5 * 16, "y": 0, "tissue_fraction": rng.random(n), "umap_x": xy[:, 0], "umap_y": xy[:, 1]})
    tiles = np.stack([np.full((16, 16, 3), (i % 250, 180, 250 - i % 250), np.uint8) for i in range(n)])
    return table, tiles, np.eye(3)[cloud] * 9 + rng.normal(0, 1, (n, 3))


@pytest.fixture
def explorer(tmp_path):
    called = []
    made = Explorer(*study(), k=4, classes=DEFAULT_CLASSES, folder=tmp_path, on_open=lambda *a: called.append(a), on_queue=lambda ids: called.append(ids), on_label=lambda *a: called.append(a))
    made.called = called
    return made


def ready(page):
    page.wait_for_function(f"{ROOT}.bonehisto?.view.at")


def on_screen(page, x, y, view="a"):
    "Where a place of the map is in the window."
    return page.evaluate(f"(([x, y]) => {{ const v = document.getElementById('{view}').bonehisto.view, r = v.over.getBoundingClientRect(), {{ scale, ox, oy }} = v.at; return [r.left + ox + scale * x, r.top + oy - scale * y] }})", [float(x), float(y)])


def at_point(page, point, view="a"):
    "Where a point of the map is in the window."
    return on_screen(page, *page.evaluate(f"[...{SESSION}.xy.slice({2 * point}, {2 * point + 2})]"), view)


def lasso(page, corners, view="a"):
    "Draws round a polygon given in map coordinates, as far as the canvas reaches."
    r = page.locator(f"#{view} .bm-over").bounding_box()
    path = np.clip([on_screen(page, x, y, view) for x, y in corners], (r["x"] + 1, r["y"] + 1), (r["x"] + r["width"] - 1, r["y"] + r["height"] - 1)).tolist()
    page.mouse.move(*path[0]); page.mouse.down()
    for x, y in path[1:]: page.mouse.move(x, y)
    page.mouse.up()


def box(x, y, r=4):
    return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]


def lone(explorer):
    "The point that is farthest from its nearest other one: no other is under the pointer there."
    xy = explorer.table[["umap_x", "umap_y"]].to_numpy()
    d = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)); np.fill_diagonal(d, np.inf)
    return int(d.min(1).argmax())


def gallery(page, total):
    page.wait_for_function(f"{SESSION}.gallery?.total === {total}")
    return page.locator("#a .bm-gallery .bm-face").evaluate_all("faces => faces.map(f => +f.dataset.point)")


def ink(page):
    "How many pixels of the points' canvas are not white, by colour of `#rrggbb`, coarsely."
    return page.evaluate(f"""() => {{ const c = {VIEW}.canvas, d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, n = {{}}
        for (let i = 0; i < d.length; i += 4) {{ if (d[i] + d[i + 1] + d[i + 2] > 740) continue; const k = [0, 1, 2].map(j => d[i + j] >> 6).join(''); n[k] = (n[k] ?? 0) + 1 }} return n }}""")


def test_a_lasso_chooses_what_lies_inside_and_its_tiles_go_to_the_queue(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Lasso").first.click()
        corners = [(-1.5, -2), (1.5, -2.2), (2, 1), (.2, -.5), (-1, 2)]  # not convex
        lasso(page, corners)
        inside = np.flatnonzero(shapely.contains_xy(shapely.Polygon(corners), explorer.table["umap_x"], explorer.table["umap_y"]))
        xy = explorer.table[["umap_x", "umap_y"]].to_numpy()
        rim = shapely.distance(shapely.Polygon(corners).exterior, shapely.points(xy)) < .05  # the pointer moves by whole pixels
        shown = gallery(page, int(page.evaluate(f"{SESSION}.count")))
        chosen = set(explorer.selected.index)
        assert len(inside) > 20 and chosen ^ set(inside) <= set(np.flatnonzero(rim)) and shown == sorted(chosen)[:64]
        page.get_by_role("button", name="to queue").click()
        page.get_by_text("sent to the queue").wait_for()
        assert explorer.called == [explorer.selected["tile"].tolist()]


def test_shift_and_drag_is_a_lasso_too_and_ctrl_adds(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        page.keyboard.down("Shift"); lasso(page, box(0, 0)); page.keyboard.up("Shift")
        gallery(page, 100)
        page.keyboard.press("l"); page.keyboard.down("Control"); lasso(page, box(5, 8)); page.keyboard.up("Control")
        gallery(page, 200)
        assert sorted(explorer.selected.index) == [*range(100), *range(200, 300)]
        assert "64 of 200" in page.locator("#a .bm-shown").text_content()


def test_a_drag_moves_the_map_and_chooses_nothing(page, explorer):
    with show(page, explorer, "map") as sent:
        ready(page)
        before = page.evaluate(f"{{...{VIEW}.at}}".join("()"))
        x, y = at_point(page, 0)
        page.mouse.move(x, y); page.mouse.down(); page.mouse.move(x + 40, y + 25, steps=4); page.mouse.up()
        after = page.evaluate(f"({VIEW}.at)")
        assert (after["ox"] - before["ox"], after["oy"] - before["oy"]) == pytest.approx((40, 25)) and after["scale"] == before["scale"]
        assert not {"select", "focus"} & {m["type"] for m in sent}


def test_the_wheel_zooms_about_the_pointer(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        x, y = map(round, at_point(page, 40))
        where = f"(() => {{ const v = {VIEW}, r = v.over.getBoundingClientRect(); return v.toMap({{ clientX: {x}, clientY: {y} }}) }})()"
        before, scale = page.evaluate(where), page.evaluate(f"{VIEW}.at.scale")
        page.mouse.move(x, y); page.mouse.wheel(0, -300)
        page.wait_for_function(f"{VIEW}.at.scale > {scale}")
        assert page.evaluate(where) == pytest.approx(before)


def test_pointing_at_a_tile_shows_its_picture_and_asks_for_it_once(page, explorer):
    with show(page, explorer, "map") as sent:
        ready(page)
        point = lone(explorer)
        for _ in range(2):
            page.mouse.move(*at_point(page, point))
            card = page.locator("#a .bm-card")
            card.wait_for(state="visible")
            row = explorer.table.loc[point]
            assert all(v in card.text_content() for v in (row["tile"], row["roi"], row["subject"], row["group"], f"{row['x']}, 0"))
            page.mouse.move(*on_screen(page, 5, 3))
            card.wait_for(state="hidden")
        assert [m["point"] for m in sent if m["type"] == "look"] == [point]
        pixel = page.evaluate(f"""async point => {{ const i = new Image(); i.src = {SESSION}.pictures.get(point).url; await i.decode(); const c = new OffscreenCanvas(1, 1).getContext('2d'); c.drawImage(i, 0, 0); return [...c.getImageData(0, 0, 1, 1).data] }}""", point)
        assert np.abs(np.array(pixel[:3]) - explorer.tiles[point, 0, 0]).max() < 8


def test_a_click_opens_the_roi_at_the_tile_and_finds_its_nearest(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        point = lone(explorer)
        page.mouse.click(*at_point(page, point))
        page.locator("#a .bm-nearest .bm-face").nth(3).wait_for()
        row = explorer.table.loc[point]
        assert explorer.called == [(row["roi"], [int(row["x"]), 0, 16, 16])]
        page.locator("#a .bm-card").wait_for(state="hidden")  # what it told stands beside the map now, and the neighbours lie free
        page.get_by_label("other subjects only").check()
        page.wait_for_function(f"{SESSION}.focus.others")
        near = page.locator("#a .bm-nearest .bm-face").evaluate_all("faces => faces.map(f => +f.dataset.point)")
        assert len(near) == 4 and explorer.table["tile"][near].tolist() == explorer.near
        assert row["subject"] not in set(explorer.table["subject"][near]) and set(explorer.table["group"][near]) == {row["group"]}
        page.locator("#a .bm-nearest .bm-face").first.click()
        page.wait_for_function(f"{SESSION}.focus.point === {near[0]}")
        assert explorer.called[-1][0] == explorer.table["roi"][near[0]]


def test_the_legend_hides_a_category_from_sight_pointer_and_lasso(page, explorer):
    with show(page, explorer, "map") as sent:
        ready(page)
        page.select_option("#a .bm-bar select", "group")
        page.wait_for_function(f"{SESSION}.colouring.column === 'group'")
        legend = page.locator("#a .bm-key")
        assert legend.all_text_contents() == ["low100", "normal100", "high100"]
        blue = lambda: page.wait_for_function("() => new Promise(done => requestAnimationFrame(() => done(true)))") and {k: v for k, v in ink(page).items()}
        before = blue()
        legend.nth(0).click()
        assert sum(blue().values()) < .75 * sum(before.values())
        page.mouse.move(*at_point(page, 5))
        page.keyboard.press("l"); lasso(page, box(5, 3, 20))
        assert gallery(page, 200)[:1] == [100] and not [m for m in sent if m["type"] == "look" and m["point"] < 100]
        page.get_by_role("button", name="Show all").click()
        page.keyboard.press("Escape")
        page.wait_for_function(f"!{SESSION}.count")
        assert blue() == before
        legend.nth(2).dblclick()
        assert page.evaluate(f"[...{SESSION}.hidden]") == [0, 1]
        legend.nth(2).dblclick()
        assert page.evaluate(f"[...{SESSION}.hidden]") == []


def test_numbers_get_a_scale_with_its_ends_and_what_is_missing_its_own_entry(page):
    table, tiles, features = study()
    table["tissue_fraction"] = [np.nan, *np.linspace(.25, .75, 299)]
    with show(page, Explorer(table, tiles, features, colour="tissue_fraction"), "map"):
        ready(page)
        ends = page.locator("#a .bm-ends span").all_text_contents()
        assert ends == ["≤ 0.255", "≥ 0.745"] and page.locator("#a .bm-key").all_text_contents() == ["no value1"]


def test_chosen_points_stand_out(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        pixel = lambda p: page.evaluate(f"""() => new Promise(done => requestAnimationFrame(() => {{ const v = {VIEW}, [x, y] = v.toScreen({p}), s = v.density; done([...v.context.getImageData(Math.round(x * s), Math.round(y * s), 1, 1).data]) }}))""")
        a, b = lone(explorer), 250 if lone(explorer) < 200 else 5
        before = np.array([pixel(a), pixel(b)])
        explorer.select([explorer.names[a]])
        page.wait_for_function(f"{SESSION}.count === 1")
        after = np.array([pixel(a), pixel(b)])
        assert after[0].sum() <= before[0].sum() and after[1].sum() > before[1].sum() + 60  # the chosen one as strong as before, the other pale


def test_html_in_names_is_text(page):
    table, tiles, features = study(30)
    evil = "<img src=x onerror=document.title='owned'>"
    table["tile"] = [f"{evil}{i}" for i in range(30)]
    table["roi"] = table["subject"] = table["group"] = evil
    table[evil] = evil
    with show(page, Explorer(table, tiles, features, k=2, on_queue=lambda ids: evil), "map"):
        ready(page)
        page.select_option("#a .bm-bar select", evil)
        page.mouse.click(*at_point(page, 0))
        page.locator("#a .bm-nearest .bm-face").first.wait_for()
        page.mouse.move(*at_point(page, 1))
        page.locator("#a .bm-card").wait_for(state="visible")
        page.keyboard.press("l"); lasso(page, box(5, 3, 20)); gallery(page, 30)
        page.get_by_role("button", name="to queue").click()
        page.locator("#a .bm-message", has_text="onerror").wait_for()
        assert evil in page.locator("#a .bm-legend").text_content() and evil in page.locator("#a .bm-tile").text_content()
        assert page.title() != "owned" and page.locator("img[src=x]").count() == 0


def test_keys_work_on_the_map_and_do_not_reach_the_notebook(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        assert page.locator("#a .bm-map").get_attribute("data-lm-suppress-shortcuts") == "true"
        page.evaluate("window.got = []; document.addEventListener('keydown', e => window.got.push(e.key))")
        page.locator("#a .bm-map").focus()
        at = lambda: page.evaluate(f"({{...{VIEW}.at}})")
        start = at()
        page.keyboard.press("ArrowRight"); assert at()["ox"] < start["ox"]
        page.keyboard.press("ArrowDown"); assert at()["oy"] < start["oy"]
        page.keyboard.press("+"); assert at()["scale"] > start["scale"]
        page.keyboard.press("-"); page.keyboard.press("-"); assert at()["scale"] < start["scale"]
        page.keyboard.press("f"); assert at() == start
        for k in "ddabxyz": page.keyboard.press(k)
        assert page.evaluate("got") == []
        page.keyboard.press("Control+s")
        assert "s" in page.evaluate("got")  # the notebook's own


def test_escape_drops_the_lasso_under_way_and_then_clears_the_selection(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        page.keyboard.press("Tab"); page.keyboard.press("l")
        lasso(page, box(0, 0)); gallery(page, 100)
        page.mouse.move(*on_screen(page, 9, -3)); page.mouse.down(); page.mouse.move(*on_screen(page, 12, 3), steps=5)
        page.keyboard.press("Escape"); page.mouse.up()
        assert page.evaluate(f"{SESSION}.count") == 100
        page.keyboard.press("Escape")
        page.locator("#a .bm-gallery").wait_for(state="hidden")
        page.wait_for_function(f"{SESSION}.gallery.total === 0")
        assert len(explorer.selected) == 0


def test_two_views_of_one_explorer_show_one_selection_and_one_may_close(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        page.evaluate("() => { window.second = draw('b') }")
        page.wait_for_function("document.getElementById('b').bonehisto.view.at")
        page.locator("#b .bm-map").scroll_into_view_if_needed()
        page.locator("#b").get_by_role("button", name="Lasso").click()
        lasso(page, box(0, 0), "b"); gallery(page, 100)
        counts = lambda: page.locator(".bm-count").all_text_contents()
        assert counts() == ["100 of 300 tiles chosen"] * 2 and page.locator("#b .bm-gallery .bm-face").count() == 64
        page.locator("#a").get_by_role("button", name="Clear").click()
        assert counts() == ["300 tiles"] * 2
        page.evaluate("second()")
        page.locator("#a .bm-map").scroll_into_view_if_needed()
        page.keyboard.down("Shift"); lasso(page, box(0, 0)); page.keyboard.up("Shift")
        gallery(page, 100)
        assert counts() == ["100 of 300 tiles chosen"] and page.locator("#b .bm-map").count() == 0


def test_a_page_loaded_again_shows_what_was_chosen(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        explorer.select(explorer.names[:70]); explorer.go(explorer.names[3])
        gallery(page, 70)
        page.reload(); ready(page)
        assert len(gallery(page, 70)) == 64 and page.locator("#a .bm-count").text_content() == "70 of 300 tiles chosen"
        page.locator("#a .bm-tile .bm-name", has_text=explorer.names[3]).wait_for()


def test_a_tile_left_out_of_the_gallery_is_no_longer_chosen_and_the_rest_gets_its_label(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        explorer.select(explorer.names[:80]); gallery(page, 80)
        page.get_by_role("button", name="›").click()
        page.wait_for_function(f"{SESSION}.gallery.start === 64")
        cell = page.locator("#a .bm-cell").first
        cell.hover(); cell.locator(".bm-out").click()
        assert gallery(page, 79)[0] == 65 and page.evaluate(f"{SESSION}.gallery.start") == 64
        assert page.get_by_role("button", name="Label all 79").is_disabled()  # no class is given that nobody chose
        page.select_option("#a .bm-label select", label="osteoid")
        page.get_by_role("button", name="Label all 79").click()
        page.get_by_text("labelled as osteoid").wait_for()
        assert explorer.called == [([n for i, n in enumerate(explorer.names[:80]) if i != 64], 2)]


def test_exported_ids_are_in_the_file_that_is_named(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        explorer.select(explorer.names[:3]); gallery(page, 3)
        page.get_by_role("button", name="Export these ids").click()
        said = page.locator("#a .bm-message", has_text="written to"); said.wait_for()
        path = said.text_content().rpartition(" ")[2]
        assert pd.read_csv(path)["tile"].tolist() == list(explorer.names[:3])


def test_buttons_that_nobody_takes_up_are_not_shown(page):
    with show(page, Explorer(*study()), "map"):
        ready(page)
        page.keyboard.press("Tab"); page.keyboard.press("l"); lasso(page, box(0, 0)); gallery(page, 100)
        assert page.get_by_role("button", name="Draw at random").is_visible()
        for name in ("to queue", "Label all", "Export"): assert not page.get_by_role("button", name=name).is_visible()


def test_no_webgl_is_asked_for_and_none_is_needed(page, explorer):
    page.add_init_script("""window.asked = []; for (const C of [HTMLCanvasElement, OffscreenCanvas]) { const real = C.prototype.getContext
        C.prototype.getContext = function (kind, ...rest) { if (/webgl|webgpu/.test(kind)) { window.asked.push(kind); return null } return real.call(this, kind, ...rest) } }""")
    with show(page, explorer, "map"):
        ready(page)
        assert page.evaluate("asked") == [] and sum(ink(page).values()) > 300


def test_what_cannot_be_drawn_says_so_in_its_place(page, explorer):
    with show(page, explorer, "map"):
        ready(page)
        page.evaluate("() => { model.get = () => { throw new Error('no <b>height</b>') }; try { draw('b') } catch {} }")
        assert page.locator("#b .bm-error").text_content() == "The map could not be drawn: no <b>height</b>"
    page.errors.clear()


def test_silence_of_python_is_told_and_the_map_still_moves(page, explorer):
    page.clock.install()
    with show(page, explorer, "map"):
        ready(page)
        page.evaluate("() => { window.send = model.send; model.send = () => {} }")
        page.mouse.click(*at_point(page, lone(explorer)))
        page.clock.fast_forward(6000)  # each timer fires once
        page.get_by_text("Python does not answer").wait_for()
        page.keyboard.press("l"); lasso(page, box(0, 0))
        assert page.evaluate(f"{SESSION}.count") == 100
        scale = page.evaluate(f"{VIEW}.at.scale"); page.keyboard.press("+")
        assert page.evaluate(f"{VIEW}.at.scale") > scale
        page.evaluate(f"() => {{ model.send = send; for (const w of {SESSION}.link.waiting.values()) model.send(w.message, null, w.buffers) }}")  # Python comes to what lay there
        page.get_by_text("Python answers again").wait_for()
        assert len(explorer.selected) == 100


def test_a_hundred_thousand_points_come_in_pieces_and_are_found_as_numpy_finds_them(page, monkeypatch):
    monkeypatch.setattr(map_widget, "PIECE", 300_000)
    rng = np.random.default_rng(1)
    xy = rng.normal(0, 1, (100_000, 2)).astype(np.float32)
    table = pd.DataFrame({"group": rng.choice(["low", "high"], len(xy)), "umap_x": xy[:, 0], "umap_y": xy[:, 1]})
    with show(page, Explorer(table), "map"):
        ready(page)
        asked = rng.normal(0, 1.2, (200, 2))
        near = page.evaluate(f"asked => asked.map(([x, y]) => {SESSION}.grid.nearest(x, y, .05, () => true))", asked.tolist())
        for q, found in zip(asked, near):
            d = np.hypot(*(xy.astype(float) - q).T)
            assert found == -1 and d.min() > .05 or d[found] == d.min()
        ring = [(math.cos(a) * r, math.sin(a) * r) for a, r in zip(np.linspace(0, 2 * np.pi, 40, endpoint=False), rng.uniform(.4, 1.5, 40))]
        inside = page.evaluate(f"ring => {SESSION}.grid.inside(ring, () => true)", np.ravel(ring).tolist())
        assert sorted(inside) == np.flatnonzero(shapely.contains_xy(shapely.Polygon(ring), xy[:, 0], xy[:, 1])).tolist()
        assert page.locator("#a .bm-count").text_content() == "100,000 tiles"


def test_a_column_that_takes_long_comes_when_it_is_ready(page):
    table, tiles, features = study()
    with show(page, Explorer(table, tiles, features, later={"uncertainty": lambda: np.linspace(0, 1, len(table))}), "map"):
        ready(page)
        page.select_option("#a .bm-bar select", "uncertainty")
        page.locator("#a .bm-scale").wait_for()
        assert page.evaluate(f"[0, 299].map(i => {SESSION}.colouring.codes[i])") == [0, 255]


def test_one_tile_is_a_map(page):
    table, tiles, features = study(3)
    with show(page, Explorer(table[:1], tiles[:1], features[:1]), "map"):
        ready(page)
        page.mouse.click(*at_point(page, 0))
        page.get_by_text("There is none.").wait_for()
