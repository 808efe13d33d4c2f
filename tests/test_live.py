"""Live curves never stop a training, take little of its time and leave nothing in the stored notebook."""
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

from bonehisto import live
from bonehisto.live import LivePlot, curve_svg, live_html, thinned, watched


@pytest.fixture
def log():
    return pd.DataFrame({"step": range(300), "loss": np.linspace(2, 1, 300), "rank_projection": [9. if i % 10 == 0 else np.nan for i in range(300)], "sigreg_ratio": 2.})


@pytest.fixture
def plot(monkeypatch):
    "A live plot without front end, whose clock stands still unless it is moved."
    clock = {"now": 0.}
    monkeypatch.setattr(live.time, "monotonic", lambda: clock["now"])
    made = LivePlot(show=True); made.clock, made.pages = clock, []
    made.draw = made.pages.append
    return made


def test_it_redraws_at_most_every_two_seconds_and_asks_for_no_log_between(plot, log):
    asked = []
    for now in np.arange(0, 10, .1): plot.clock["now"] = now; plot(lambda: asked.append(now) or log)
    assert len(plot.pages) == len(asked) == 5 and min(np.diff(asked)) >= 2


def test_a_dear_redraw_is_made_seldom(plot, log):
    def slow(page): plot.pages.append(page); plot.clock["now"] += 1
    plot.draw = slow
    for now in np.arange(0, 120, .5): plot.clock["now"] = max(now, plot.clock["now"]); plot(log)
    assert len(plot.pages) == 3  # at 0, 51 and 102 s


def test_no_error_leaves_it_and_the_first_ends_it(plot, log):
    for bad in ("nonsense", 5, lambda: 1 / 0):
        plot.failed, plot.due = None, 0.
        plot(bad); assert plot.failed is not None
    plot.due = 0.; plot(log); assert not plot.pages


def test_rows_with_columns_serve_as_a_log_and_an_empty_one_draws_nothing(plot):
    plot.columns = ("step", "loss")
    plot([]); assert not plot.pages and plot.failed is None
    plot.due = 0.; plot([[0, 2.], [1, 1.5]]); assert len(plot.pages) == 1 and plot.steps == 1


def test_outside_a_notebook_and_under_the_runner_it_stays_silent(log, monkeypatch, capsys):
    assert not watched()
    with LivePlot() as plot: plot(log)
    assert plot.drawn == 0 and capsys.readouterr().out == ""


def test_the_page_stays_small_however_long_the_run(log):
    long = pd.concat([log] * 200, ignore_index=True).assign(step=range(60_000))
    assert len(live_html(long)) < 30_000 and live_html(long).count("<polyline") == 3


def test_thinning_keeps_the_mean_and_drops_what_is_undefined():
    y = np.random.default_rng(0).normal(size=4000); y[::3] = np.nan
    a, b = thinned(np.arange(4000.), y)
    assert len(a) == 200 and np.isfinite(b).all() and abs(b.mean() - np.nanmean(y)) < .01


def test_nothing_but_markup_of_its_own_and_finite_numbers_enters_the_page():
    svg = curve_svg({"<script>": ([0, 1], [1., np.nan]), "b": ([], [])}, "<b>", 1.)
    assert "<script" not in svg and "nan" not in svg and "inf" not in svg


def test_an_executed_notebook_keeps_one_line_of_text():
    code = """import pandas as pd
from bonehisto.live import LivePlot
log = pd.DataFrame({"step": range(500), "loss": 1., "sigreg_ratio": 2., "rank_projection": 9.})
try:
    with LivePlot(every_s=0, share=1e9) as live:
        for n in range(50, 500, 50): live(log[:n])
        raise KeyboardInterrupt  # stopped by hand
except KeyboardInterrupt: print(live.drawn, live.failed)"""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    NotebookClient(nb, timeout=120).execute()
    outputs = nb.cells[0].outputs
    assert "".join(o.get("text", "") for o in outputs) == "9 None\n"
    shown = [o["data"] for o in outputs if "data" in o]
    assert len(shown) == 1 and "live curves: up to step 449" in str(shown[0]) and "widget" not in str(shown[0])
    assert len(nbformat.writes(nb)) < 10_000
