"""How quick labelling is, in a headless Chromium on this machine, by the app and in JupyterLab:
`python tests/measure_annotate.py STUDY RUN`, a study's data_manifest.yaml and a run of it with all steps done.

Large ROIs are mirrored from the study's own into a copy of it. Real pointer and key events go through the real server
to a real kernel. Prints a table of medians and 95th percentiles in milliseconds beside the targets."""
import os
import platform
import re
import secrets
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import nbformat
import numpy as np
import pandas as pd
import yaml
from PIL import Image
from playwright.sync_api import sync_playwright

from browser import FLAGS, find_browser
from bonehisto.app import App, free_port, write_app
from bonehisto.images import read_image
from bonehisto.manifest import load_manifest

SIZES = (1024, 2048, 4000)
TARGETS = {  # interaction -> (statistic, ms by size)
    "brush ink": [("p95", {1024: 16, 2048: 16, 4000: 16})], "wand": [("p95", {1024: 33, 2048: 33, 4000: 33})], "hover preview": [("p95", {1024: 50, 2048: 50, 4000: 100})],
    "click to suggestion": [("median", {1024: 100, 4000: 300}), ("p95", {1024: 250})], "accept, seen": [("p95", {s: 50 for s in SIZES})], "reject, seen": [("p95", {s: 50 for s in SIZES})], "undo, seen": [("p95", {s: 50 for s in SIZES})],
    "edit, on disk": [("p95", {s: 1000 for s in SIZES})], "whole ROI": [("median", {1024: 500, 4000: 2000})], "next ROI": [("median", {s: 1000 for s in SIZES})], "lasso to gallery": [("median", {0: 500})]}

LISTEN = """() => {
  const { session, view } = window.A = document.querySelector('.bh-annotator:not(.bh-compact)').parentElement.bonehisto, T = window.T = {}
  const note = (name, from, to = performance.now()) => (T[name] ??= []).push(to - from)
  const after = f => { const c = new MessageChannel(); c.port1.onmessage = f; c.port2.postMessage(0) }  // when all handlers of this event are through
  window.waits = {}
  window.addEventListener('pointermove', () => { if (window.moving) { const t = performance.now(); after(() => note(window.moving, t)) } }, true)
  for (const kind of ['pointerdown', 'pointerup', 'keydown']) window.addEventListener(kind, () => { window.pressed = performance.now() }, true)
  session.subscribe((what, box) => {
    const wanted = window.waits[what]
    if (!wanted) return
    delete window.waits[what]
    const t = window.pressed
    requestAnimationFrame(() => after(() => note(wanted, t)))
  })
  const answered = session.link.answered.bind(session.link)
  session.link.answered = n => { const sent = session.link.waiting.get(n); answered(n); if (sent && window.disk) note('edit, on disk', window.pressed) }
  view.viewer.addHandler('tile-drawn', () => { if (window.opening) { note('next ROI', window.opening); window.opening = 0 } })
}"""


def larger(study, folder):
    """A study of unlabelled ROIs of all SIZES, two a stain, made of the study's own: the path of its manifest."""
    manifest = load_manifest(study)
    rois = []
    for size in SIZES:
        for kind, k in ((kind, k) for kind in ("brightfield", "fluorescence") for k in (0, 1)):
            own = [r for r in manifest.rois if r.modality == kind][k]
            pixels = read_image(own.image).pixels
            reach = -(-size // min(pixels.shape[:2]))
            whole = np.concatenate([np.concatenate([pixels[:, ::(-1) ** k] for k in range(reach)], 1)[::(-1) ** j] for j in range(reach)])[:size, :size]
            path = Path(folder) / f"{kind}_{k}_{size}.png"
            Image.fromarray(whole).save(path, compress_level=1)
            rois.append({"id": path.stem, "image": str(path), "subject": own.subject, "modality": kind, "pixel_size_um": own.pixel_size_um})
    path = Path(folder) / "data_manifest.yaml"
    path.write_text(yaml.safe_dump({"subjects": [{"id": s.id, "group": s.group} for s in manifest.subjects], "rois": rois}))
    return path


@contextmanager
def in_app(call, folder):
    app = App(write_app(folder, **call))
    try:
        yield app.address, lambda page: None
    finally:
        app.close()


@contextmanager
def in_lab(call, folder):
    write_app(folder, **call)
    port, token = free_port(), secrets.token_urlsafe(16)
    process = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
                                "--ServerApp.log_level=40", "--LabApp.news_url=None"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    opener, until = build_opener(ProxyHandler({})), time.monotonic() + 90
    while time.monotonic() < until:
        try:
            opener.open(f"http://127.0.0.1:{port}/api?token={token}", timeout=2)
            break
        except (URLError, OSError):
            time.sleep(.3)

    def run(page):
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=90_000)
        page.get_by_text("| Idle").first.wait_for(timeout=90_000)  # a cell run before the kernel is there is not run at all
        page.locator(".jp-Notebook .jp-Cell .jp-InputArea-editor").first.click()
        page.keyboard.press("Shift+Enter")
    try:
        yield f"http://127.0.0.1:{port}/lab/tree/annotate.ipynb?token={token}", run
    finally:
        process.terminate()
        process.wait(20)


def measure_next(page):
    """Rows (interaction, size, ms) of the ROI that the queue gives next."""
    key = lambda k: (page.locator(".bh-annotator:not(.bh-compact)").focus(), page.keyboard.press(k))
    page.wait_for_timeout(2000)  # its picture is read meanwhile, as while anybody labels
    page.evaluate("() => { for (const k in T) delete T[k]; window.before = A.session.roi?.name; window.opening = performance.now() }")
    key("Space")
    page.wait_for_function("A.session.roi?.name !== before && !window.opening", timeout=60_000)
    page.wait_for_timeout(500)
    size = page.evaluate("A.session.roi.width")
    box = page.locator(".bh-annotator:not(.bh-compact) .bh-stage").bounding_box()
    cx, cy, side = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, min(box["width"], box["height"]) * .42
    rng, at = np.random.default_rng(size), lambda: (cx + side * rng.uniform(-1, 1), cy + side * rng.uniform(-1, 1))
    settle = lambda name, n: page.wait_for_function(f"(T['{name}'] ?? []).length >= {n}", timeout=60_000)
    quiet = lambda: page.wait_for_function("!A.session.link.waiting.size", timeout=30_000)

    key("Escape"); key("b"); key("1")
    for _ in range(4):
        x, y = at()
        page.mouse.move(x, y); page.mouse.down()
        page.evaluate("() => { window.moving = 'brush ink' }")
        for _ in range(30):
            x, y = np.clip([x + rng.normal(0, 14), y + rng.normal(0, 14)], [cx - side, cy - side], [cx + side, cy + side])
            page.mouse.move(x, y)
        page.evaluate("() => { window.moving = null; window.disk = true }")
        page.mouse.up(); quiet()
    key("w"); key("2")
    for k in range(10):
        x, y = at()
        page.evaluate("() => { waits.mask = 'wand' }")
        page.mouse.click(x, y); page.wait_for_timeout(150)
    page.evaluate("() => { delete waits.mask }"); quiet()
    for k in range(8):
        page.evaluate("() => { waits.history = 'undo, seen' }")
        key("z"); settle("undo, seen", k + 1); quiet()
    page.evaluate("() => { window.disk = false }")

    if page.evaluate("A.session.roi.offers.includes('tokens')"):
        page.wait_for_function("A.session.preview", timeout=600_000)
        key("d")
        page.mouse.move(*at())
        page.evaluate("() => { window.moving = 'hover preview' }")
        for _ in range(60): page.mouse.move(*at())
        page.evaluate("() => { window.moving = null }")
        key("d")
    if page.evaluate("A.session.roi.offers.includes('suggest')"):
        key("s")
        for k in range(12):
            key("12"[k % 2])
            page.evaluate("() => { waits.proposed = 'click to suggestion' }")
            page.mouse.click(*at()); settle("click to suggestion", k + 1)
            if page.evaluate("A.session.proposes"):
                name, button = ("accept, seen", "a") if k % 3 else ("reject, seen", "x")
                n = page.evaluate(f"(T['{name}'] ?? []).length")
                page.evaluate(f"() => {{ waits.proposal = '{name}'; window.disk = true }}")
                key(button); settle(name, n + 1); quiet(); page.evaluate("() => { window.disk = false }")
        for k in range(3):
            page.evaluate("() => { waits.proposed = 'whole ROI' }")
            key("u"); settle("whole ROI", k + 1)
            key("x"); quiet()
    return [(name, size, v) for name, values in page.evaluate("T").items() for v in values]


def measure_map(page):
    """Rows of the map of tiles: lasso released to gallery drawn."""
    page.evaluate("""() => {
      const { session, view } = window.M = document.querySelector('.bm-map').parentElement.bonehisto; window.G = []
      view.over.addEventListener('pointerup', () => { window.released = performance.now() }, true)
      session.subscribe(what => { if (what === 'gallery' && session.gallery.url) { const i = new Image(); i.onload = () => requestAnimationFrame(() => G.push(performance.now() - released)); i.src = session.gallery.url } })
    }""")
    page.locator(".bm-map").scroll_into_view_if_needed()
    box = page.locator(".bm-over").bounding_box()
    for k in range(8):
        page.keyboard.down("Shift")
        x0, y0, x1, y1 = (box["x"] + box["width"] * .02, box["y"] + box["height"] * .02, box["x"] + box["width"] * (.6 + k / 30), box["y"] + box["height"] * .95)
        page.mouse.move(x0, y0); page.mouse.down()
        for x, y in ((x1, y0), (x1, y1), (x0, y1), (x0, y0)): page.mouse.move(x, y, steps=3)
        page.mouse.up(); page.keyboard.up("Shift")
        page.wait_for_function(f"G.length >= {k + 1}", timeout=20_000)
    return [("lasso to gallery", 0, v) for v in page.evaluate("G")]


def measure(place, study, run):
    rows, outside = [], []
    with tempfile.TemporaryDirectory() as folder:
        manifest = larger(study, folder)
        call = {"manifest": str(manifest), "run": str(Path(run).absolute()), "annotator": "Ana", "unassisted": 0, "sentinels": 0, "reread": 0, "seed": 1}
        with place(call, folder) as (address, start), sync_playwright() as play:
            page = play.chromium.launch(executable_path=find_browser(), args=FLAGS).new_page(viewport={"width": 1366, "height": 900})
            page.on("request", lambda r: outside.append(r.url) if not re.match(r"(http|ws)://127\.0\.0\.1|data:|blob:", r.url) else None)
            page.goto(address)
            start(page)
            page.wait_for_selector(".bh-class", timeout=120_000)
            page.evaluate(LISTEN)
            for k in range(4 * len(SIZES) - 1):
                found = measure_next(page)
                rows += found if k else []  # once to warm up
                print(".", end="", flush=True, file=sys.stderr)
            rows += measure_map(page)
    if outside: print("asked outside:", *sorted(set(outside)), sep="\n")
    return pd.DataFrame(rows, columns=["interaction", "size", "ms"])


def table(found):
    """The rows as a markdown table, one row an interaction and size."""
    lines = ["| interaction | ROI (px) | target (ms) | " + " | ".join(f"{p}, median (p95)" for p in found) + " |", "| --- " * (3 + len(found)) + "|"]
    for name, targets in TARGETS.items():
        for size in SIZES if targets[0][1].keys() - {0} else (0,):
            wanted = ", ".join(f"{s} {by[size]}" for s, by in targets if size in by)
            cells = []
            for rows in found.values():
                v = rows.query("interaction == @name and size == @size")["ms"]
                cells.append(f"{v.median():.0f} ({v.quantile(.95):.0f})" if len(v) else "-")
            lines.append(f"| {name} | {size or ''} | {wanted} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 3: sys.exit(__doc__)
    found = {}
    for name, place in {"app": in_app, "JupyterLab": in_lab}.items():  # a table after each: the second may fail
        found[name] = measure(place, *sys.argv[1:])
        print(f"\n{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores\n\n{table(found)}", flush=True)
