"""How quick the explorer is, in a headless Chromium on this machine: `python tests/measure_explore.py [POINTS ...]`.

Prints a table of medians and 95th percentiles in milliseconds. Tiles lie in a memory map on disk, as in a run; with
more than 20,000 points the map is measured alone."""
import math
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from playwright.sync_api import sync_playwright

from browser import FLAGS, find_browser, show
from bonehisto.explore import Explorer

LISTEN = """() => {
  const { session, view } = document.getElementById('a').bonehisto, T = window.T = { draw: [], frame: [], hover: [], card: [], chosen: [], gallery: [] }
  const timed = (object, name, list) => { const whole = object[name].bind(object); object[name] = (...a) => { const t = performance.now(), out = whole(...a); list.push(performance.now() - t); return out } }
  const draw = view.draw.bind(view); view.draw = now => { const t = performance.now(); draw(now); if (now) T.draw.push(performance.now() - t) }
  timed(view, 'find', T.hover)
  let last = 0; const tick = t => { if (window.moving && last) T.frame.push(t - last); last = window.moving ? t : 0; requestAnimationFrame(tick) }; requestAnimationFrame(tick)
  const look = session.look.bind(session); session.look = i => { if (i >= 0 && i !== session.hover) window.looked = performance.now(); look(i) }
  view.over.addEventListener('pointerup', () => { window.released = performance.now() }, { capture: true })
  const loaded = url => new Promise(done => { const i = new Image(); i.onload = done; i.src = url })
  session.subscribe(what => {
    if (what === 'look' && session.pictures.has(session.hover)) { T.card.push(performance.now() - window.looked) }
    if (what === 'chosen') requestAnimationFrame(() => T.chosen.push(performance.now() - window.released))
    if (what === 'gallery' && session.gallery.total && session.gallery.url) loaded(session.gallery.url).then(() => requestAnimationFrame(() => T.gallery.push(performance.now() - window.released)))
  })
}"""


def study(n, folder):
    "A table of n tiles in nine clouds, their features and, for a study of usual size, pictures in a memory map."
    rng = np.random.default_rng(0)
    kind, middle = rng.integers(0, 9, n), rng.normal(0, 6, (9, 2))
    xy = middle[kind] + rng.normal(0, 1, (n, 2))
    table = pd.DataFrame({"tile": [f"r{i // 25}:{i % 25}" for i in range(n)], "roi": [f"r{i // 25}" for i in range(n)], "subject": [f"s{i * 40 // n:02d}" for i in range(n)],
                          "modality": np.where(kind < 5, "brightfield", "fluorescence"), "tissue_fraction": rng.beta(4, 2, n), "x": 0, "y": 0, "umap_x": xy[:, 0], "umap_y": xy[:, 1]})
    if n > 20_000:
        return table, None, None
    tiles = np.lib.format.open_memmap(Path(folder) / "tiles.npy", "w+", np.uint8, (n, 224, 224, 3))
    patch = rng.integers(0, 256, (448, 448, 3), np.uint8)
    for i in range(n):
        y, x = rng.integers(0, 224, 2)
        tiles[i] = patch[y:y + 224, x:x + 224] // (kind[i] + 1)
    tiles.flush()
    return table, np.load(Path(folder) / "tiles.npy", mmap_mode="r"), np.eye(9, 192, dtype=np.float32)[kind] * 5 + rng.normal(0, 1, (n, 192)).astype(np.float32)


def measure(page, explorer):
    "A dict of name -> milliseconds."
    with show(page, explorer, "map"):
        opened = []
        for _ in range(5):
            page.reload(); page.wait_for_function("document.getElementById('a')?.bonehisto?.view.at")
            opened.append(page.evaluate("performance.now()"))
        page.evaluate(LISTEN)
        box = page.locator("#a .bm-over").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        def drag(path, moving="true"):
            page.mouse.move(*path[0]); page.mouse.down()
            page.evaluate(f"window.moving = {moving}")
            for p in path[1:]: page.mouse.move(*p)
            page.evaluate("window.moving = false"); page.mouse.up()
        circle = lambda r: [(x + r * math.cos(a / 20), y + r * math.sin(a / 20)) for a in range(126)]
        out = {"page opened to map drawn": opened}
        take = lambda name: page.evaluate(f"(() => {{ const got = T.{name}.slice(); for (const k in T) T[k].length = 0; return got }})()")

        drag(circle(120)); out["frame while panning"] = page.evaluate("T.frame.slice()"); out["drawing of a frame"] = take("draw")
        page.mouse.move(x, y); page.evaluate("window.moving = true")
        for k in range(60): page.mouse.wheel(0, -60 if k < 30 else 60)
        page.evaluate("window.moving = false"); out["frame while zooming"] = page.evaluate("T.frame.slice()"); take("draw")
        page.keyboard.press("f"); page.wait_for_timeout(100); take("hover")
        for k in range(150): page.mouse.move(x + 2.2 * (k - 75), y + 60 * math.sin(k / 9))
        out["finding the point under the pointer"] = take("hover")
        if explorer.tiles is not None:
            for k in range(40):
                page.mouse.move(*[a + b for a, b in zip((box["x"], box["y"]), page.evaluate(f"document.getElementById('a').bonehisto.view.toScreen({k * 37})"))]); page.wait_for_timeout(60)
            out["pointing to picture"] = take("card")
        page.keyboard.press("l")
        for k in range(20):
            drag(circle(60 + 6 * k), "false"); page.wait_for_timeout(350)
        out["lasso released to points marked"] = page.evaluate("T.chosen.slice()")
        if explorer.tiles is not None: out["lasso released to gallery of 64"] = page.evaluate("T.gallery.slice()")
        take("draw"); page.keyboard.press("v"); drag(circle(120)); out["drawing of a frame, many chosen"] = take("draw")
        return {name: [v for v in values if v is not None] for name, values in out.items()}


if __name__ == "__main__":
    print(f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=find_browser(), args=FLAGS)
        print(f"Chromium {browser.version}, window 1366 x 768")
        for n in map(int, sys.argv[1:] or (17_000, 100_000)):
            table, tiles, features = study(n, folder)
            page = browser.new_page(viewport={"width": 1366, "height": 768})
            print(f"\n{n:,} points{'' if tiles is not None else ', the map alone'}\n{'':38}{'median':>8}{'p95':>8}{'n':>6}")
            for name, values in measure(page, Explorer(table, tiles, features)).items():
                print(f"{name:38}{np.median(values):8.1f}{np.percentile(values, 95):8.1f}{len(values):6}" if values else f"{name:38}{'none':>8}")
            page.close()
        browser.close()
