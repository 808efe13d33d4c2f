"""The list of the queue in a headless Chromium, answered by its Python half."""
import numpy as np
import pandas as pd
import pytest

from bonehisto.annotate import RoiList
from bonehisto.transport import jpeg
from browser import browser, page, show  # noqa: F401: fixtures

EVIL = "<img src=x onerror='window.evil=1'>"
ROWS = [("r1", "P1", "brightfield", "doubtful", "waiting", .8), ("r2", "P1", "fluorescence", "unlike the rest", "waiting", .4), ("r3", "P2", "brightfield", "", "done", np.nan),
        ("r4", "P3", "brightfield", "has a mask", "none", np.nan), (EVIL, "P4", "brightfield", EVIL, "skipped", np.nan)]


def table(rows=ROWS): return pd.DataFrame(rows, columns=["roi", "subject", "domain", "reason", "status", "score"])


@pytest.fixture
def listed(page):
    opened, names, asked = [], [], []
    def picture(roi): asked.append(roi); return jpeg(np.full((8, 8, 3), 90, np.uint8)) if roi != "r2" else None
    made = RoiList(opened.append, names.append, picture)
    made.opened, made.names, made.asked = opened, names, asked
    with show(page, made, "queue"):
        page.wait_for_selector("#a .bq-list")
        yield made
    made.close()


def test_before_a_name_is_given_there_is_only_the_form_and_the_name_goes_to_python(page, listed):
    assert page.locator("#a .bq-item").count() == 0 and page.locator("#a [type=search]").is_hidden() and page.locator("#a .bq-name button").inner_text() == "Begin"
    page.locator("#a .bq-name input").fill("Zoë O'Hara"); page.locator("#a .bq-name button").click()
    page.wait_for_timeout(200)
    assert listed.names == ["Zoë O'Hara"]


def test_rois_stand_in_groups_with_their_worth_and_pictures_and_open_by_a_click(page, listed):
    listed.show(table(), "r4", "Ana")
    page.wait_for_selector("#a .bq-item")
    assert page.locator("#a h4").all_inner_texts() == ["Next (2)", "Set aside (1)", "Done (1)", "Not in the queue (1)"] and page.locator("#a .bq-progress").inner_text() == "1 done, 2 waiting"
    assert page.locator("#a .bq-on b").inner_text() == "r4" and page.locator("#a .bq-name button").inner_text() == "Change"
    heights = [page.locator(f"#a [data-roi=r{k}] .bq-doubt i").evaluate("e => e.style.height") for k in (1, 2)]
    assert heights == ["100%", "50%"] and page.locator("#a [data-roi=r3] .bq-doubt").count() == 0
    page.wait_for_function("document.querySelector('#a [data-roi=r1] img').naturalWidth === 8")
    assert page.locator("#a [data-roi=r2] img").evaluate("e => e.getAttribute('src')") is None
    page.locator("#a [data-roi=r2]").click(); page.wait_for_timeout(200)
    assert listed.opened == ["r2"] and listed.asked.count("r1") == 1


def test_the_list_is_searched_by_name_subject_and_stain(page, listed):
    listed.show(table(), None, "Ana"); page.wait_for_selector("#a .bq-item")
    for text, left in (("p1", ["r1", "r2"]), ("FLUO", ["r2"]), ("r3", ["r3"]), ("nothing", [])):
        page.locator("#a [type=search]").fill(text)
        assert page.locator("#a .bq-item b").all_inner_texts() == left
    assert "No ROI of this name" in page.locator("#a .bq-items").inner_text()
    page.locator("#a [type=search]").fill("")
    listed.show(table([(*r[:4], "done", r[5]) for r in ROWS]), None, "Ana")
    page.locator("#a h4", has_text="Done (5)").wait_for()


def test_names_are_texts_never_markup(page, listed):
    listed.show(table(), None, EVIL); page.wait_for_selector("#a .bq-item"); page.wait_for_timeout(200)
    assert page.evaluate("window.evil") is None and EVIL in page.locator("#a .bq-item b").all_inner_texts()


def test_pictures_are_asked_for_when_they_come_into_sight(page, listed):
    listed.show(table([(f"r{k:03}", "P", "brightfield", "", "waiting", 1.) for k in range(200)]), None, "Ana")
    page.wait_for_selector("#a .bq-item"); page.wait_for_timeout(400)
    first = set(listed.asked)
    assert "r000" in first and "r199" not in first
    page.locator("#a [data-roi=r199]").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#a [data-roi=r199] img').naturalWidth === 8")
    assert len(listed.asked) == len(set(listed.asked)) < 200
