"""A headless Chromium for tests of widgets: the system's, else Playwright's own; where there is none they skip and say so.

`page` is a fixture (import it into the test file); `show(page, widget, name)` draws a widget on a page of its own, its
messages answered by the widget itself, so that both halves are tested together."""
import base64
import functools
import shutil
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[1] / "bonehisto" / "static"
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage".split()

PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><link rel="stylesheet" href="NAME.css">
<body style="margin: 8px; font-family: sans-serif"><div id="a"></div><div id="b"></div>
<script type="module">
import widget from './NAME.js'
const listeners = [], state = await window.traits()
const bytes = text => { const raw = atob(text), out = new Uint8Array(raw.length); for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i); return new DataView(out.buffer) }
const text = buffer => { let raw = ''; for (const b of new Uint8Array(buffer.buffer ?? buffer)) raw += String.fromCharCode(b); return btoa(raw) }
const deliver = replies => { for (const [content, buffers] of replies) for (const f of [...listeners]) f(content, buffers.map(bytes)) }
const model = {
  get: name => state[name], set: (name, value) => { state[name] = value }, save_changes() {},
  on: (event, f) => { if (event === 'msg:custom') listeners.push(f) },
  off: (event, f) => { if (event === 'msg:custom' && listeners.includes(f)) listeners.splice(listeners.indexOf(f), 1) },
  send: async (content, _, buffers = []) => deliver(await window.python(content, buffers.map(text))),
}
const draw = id => widget.render({ model, el: document.getElementById(id) })
Object.assign(window, { model, listeners, deliver, draw, close: widget.initialize({ model }) })
draw('a')
setInterval(async () => deliver(await window.python(null, [])), 30)  // what Python says unasked
</script>"""


def find_browser():
    """The path of a Chromium, or None."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found:
        return found
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        own = Path(play.chromium.executable_path)
    return str(own) if own.exists() else None


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="no browser tests: Playwright is not installed (pip install playwright)")
    path = find_browser()
    if path is None:
        pytest.skip("no browser tests: no Chromium is found (apt install chromium, or playwright install chromium)")
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page of 1366 x 768 on which no script failed (`.errors`) and that asked nobody but 127.0.0.1 (`.outside`)."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    made = context.new_page()
    made.set_default_timeout(10_000)
    made.errors, made.outside = [], []

    def guard(route):
        if route.request.url.startswith("http://127.0.0.1:"):
            route.continue_()
        else:
            made.outside.append(route.request.url)
            route.abort()
    context.route("**/*", guard)
    made.on("pageerror", lambda e: made.errors.append(str(e)))
    yield made
    context.close()
    assert not made.errors, made.errors
    assert not made.outside, made.outside


class _Handler(SimpleHTTPRequestHandler):
    pages = {}

    def do_GET(self):
        text = self.pages.get(self.path)
        if text is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@contextmanager
def served(folder, pages):
    """The address of a server of a folder's files and of pages, a dict of path -> HTML."""
    handler = functools.partial(type("Handler", (_Handler,), {"pages": pages}), directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def show(page, widget, name):
    """Draws `widget`, whose browser half is `bonehisto/static/<name>.js`, into `#a`; yields the list of messages that the browser sends.

    `window.draw("b")` draws a second view, `window.model` is the model, `window.close()` ends it."""
    outbox, sent = [], []
    widget.send = lambda content, buffers=None: outbox.append((content, [base64.b64encode(bytes(b)).decode() for b in buffers or []]))

    def python(content, buffers):
        if content is not None:
            sent.append(content)
            widget._handle_custom_msg(content, [memoryview(base64.b64decode(b)) for b in buffers])
        out = outbox[:]
        del outbox[:len(out)]
        return out
    page.expose_function("python", python)
    page.expose_function("traits", lambda: {k: v for k, v in widget.get_state().items() if isinstance(v, (int, float, str, bool)) and not k.startswith("_")})
    with served(STATIC, {"/": PAGE.replace("NAME", name)}) as address:
        page.goto(address)
        yield sent
        page.goto("about:blank")
