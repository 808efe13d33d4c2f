"Classes of turnover, mineralisation and volume: the cuts as they stand, indeterminate exactly where an interval crosses one, bad tables named by line."
import io
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from matplotlib.figure import Figure

from bonehisto.files import UserError, write_table
from bonehisto.group_figures import plot_effects, plot_tmv
from bonehisto.group_sections import tmv_section
from bonehisto.group_tests import compare_groups
from bonehisto.page import RunFolder
from bonehisto.tmv import AXES, CUTS, TMV, class_boxes, classify_axis, classify_subjects, possible_classes, read_cuts

BFR, ACF, OTH, MLT, BV = "BFR/BS (um3/um2/yr)", "Ac.f (1/yr)", "O.Th (um)", "Mlt (d)", "BV/TV (%)"
SHIPPED = read_cuts()


def subjects(**columns):
    n = max((len(v) for v in columns.values() if isinstance(v, list)), default=1)
    table = pd.DataFrame({"subject": [f"S{i + 1}" for i in range(n)], "group": "x", BFR: 25.0, OTH: 9.0, MLT: 30.0, BV: 20.0, "reasons": "{}"})
    return table.assign(**{{"bfr": BFR, "acf": ACF, "oth": OTH, "mlt": MLT, "bv": BV}.get(k, k): v for k, v in columns.items()})


def interval(parameter, low, high, subject="S1"):
    return pd.DataFrame({"subject": [subject], "parameter": parameter, "value": (low + high) / 2, "low": low, "high": high})


# the table that ships

@pytest.mark.parametrize("column, axis, expected", [
    ("bfr", "turnover", {0: "low", 17.999: "low", 18: "normal", 38: "normal", 38.001: "high", 500: "high"}),
    ("bv", "volume", {0: "low", 16.79: "low", 16.8: "normal", 22.9: "normal", 22.91: "high"})])
def test_a_cut_itself_is_normal_and_what_lies_beyond_is_not(column, axis, expected):
    found = classify_subjects(subjects(**{column: [float(x) for x in expected]}), SHIPPED)
    assert found[axis].tolist() == list(expected.values())


@pytest.mark.parametrize("oth, mlt, expected", [
    (9, 30, "normal"), (9, 500, "normal"), (30, 50, "normal"), (20, 60, "normal"), (20.1, 50.1, "abnormal"), (12.5, 200, "normal"), (12.6, 100, "normal"), (12.6, 100.1, "osteomalacia"), (25, 120, "osteomalacia"), (25, 99, "abnormal")])
def test_mineralisation_needs_both_and_osteomalacia_comes_first(oth, mlt, expected):
    assert classify_subjects(subjects(oth=[float(oth)], mlt=[float(mlt)]), SHIPPED)["mineralisation"].tolist() == [expected]


def test_turnover_may_be_cut_by_activation_frequency():
    table = subjects(acf=[.48, .49, .72, .73])
    assert classify_subjects(table, SHIPPED, by={"turnover": "Ac.f"})["turnover"].tolist() == ["low", "normal", "normal", "high"]
    row = classify_subjects(table.drop(columns=ACF), SHIPPED, by={"turnover": "Ac.f"}).iloc[0]
    assert row["turnover"] == "" and "no such column" in json.loads(row["reasons"])["turnover"]
    with pytest.raises(UserError, match="turnover cannot be cut by 'Acf': did you mean `Ac.f`"): classify_subjects(table, SHIPPED, by={"turnover": "Acf"})


def test_every_shipped_cut_names_its_source_and_claims_no_more_than_is_known():
    assert (SHIPPED["source"].str.len() > 20).all() and set(SHIPPED["axis"]) == set(AXES)
    for source in SHIPPED["source"]: assert "customary default" in source or "KDIGO 2006" in source and "not checked" in source


def test_every_row_says_what_it_is_for_and_by_which_table():
    found = classify_subjects(subjects(), SHIPPED, name="ours.csv")
    assert list(found.columns) == TMV and (found["use"] == "research use").all() and (found["cuts"] == "ours.csv").all()


# intervals

@pytest.mark.parametrize("low, high, expected", [
    (18, 38, "normal"), (17.999999, 30, "indeterminate"), (20, 38.000001, "indeterminate"), (10, 17.9, "low"), (10, 18, "indeterminate"), (38, 60, "indeterminate"), (38.1, 60, "high"), (5, 60, "indeterminate"), (25, 25, "normal")])
def test_a_class_is_indeterminate_exactly_where_its_interval_crosses_a_cut(low, high, expected):
    value = np.clip(25.0, low, high)
    row = classify_subjects(subjects(bfr=[value]), SHIPPED, interval(BFR, low, high)).iloc[0]
    assert row["turnover"] == expected and row["turnover basis"] == "interval"
    why = json.loads(row["reasons"]).get("turnover", "")
    assert (("crosses" in why) and BFR in why) == (expected == "indeterminate")


def test_a_wide_interval_says_which_classes_and_cuts():
    row = classify_subjects(subjects(), SHIPPED, interval(BFR, 5.0, 60.0)).iloc[0]
    assert json.loads(row["reasons"])["turnover"] == f"low or high or normal: {BFR} 5 to 60 crosses 18, 38"


def test_a_crossing_that_cannot_change_the_class_does_not_matter():
    thin = classify_subjects(subjects(), SHIPPED, interval(MLT, 20.0, 300.0)).iloc[0]
    assert thin["mineralisation"] == "normal" and thin["mineralisation basis"] == f"no interval of {OTH}"
    thick = classify_subjects(subjects(oth=[13.0], mlt=[90.0]), SHIPPED, interval(MLT, 60.0, 130.0)).iloc[0]
    assert thick["mineralisation"] == "indeterminate" and "crosses 100" in json.loads(thick["reasons"])["mineralisation"]
    both = classify_subjects(subjects(oth=[13.0], mlt=[150.0]), SHIPPED, pd.concat([interval(MLT, 120.0, 200.0), interval(OTH, 12.4, 14.0)])).iloc[0]
    assert both["mineralisation"] == "indeterminate" and both["mineralisation basis"] == "interval"


def test_without_interval_the_value_alone_decides_and_says_so():
    found = classify_subjects(subjects(bfr=[17.9, 18.1]), SHIPPED, interval(BFR, 17.0, 19.0, "S2"))
    assert found["turnover"].tolist() == ["low", "indeterminate"] and found["turnover basis"].tolist() == ["no interval", "interval"]
    half = interval(BFR, 10.0, 30.0).assign(low=np.nan)
    assert classify_subjects(subjects(), SHIPPED, half)["turnover basis"].tolist() == ["no interval"]


def test_subjects_named_by_numbers_find_their_intervals():
    table = subjects(bfr=[25.0, 25.0]).assign(subject=[1, 2])
    assert classify_subjects(table, SHIPPED, interval(BFR, 10.0, 30.0, 2))["turnover"].tolist() == ["normal", "indeterminate"]


def test_a_table_of_intervals_without_rows_or_bounds_is_no_interval():
    empty = pd.read_csv(io.StringIO("subject,parameter,low,high"))
    assert empty["low"].dtype == object
    for table in (empty, interval(BFR, np.nan, np.nan).astype({"low": object, "high": object})):
        assert classify_subjects(subjects(), SHIPPED, table)["turnover basis"].tolist() == ["no interval"]


@pytest.mark.parametrize("change, says", [
    (lambda t: t.drop(columns="low"), "lacks column low"), (lambda t: t.assign(high="wide"), "texts in low or high"),
    (lambda t: t.assign(low=50.0), "BFR/BS .* of subject S1 has its low bound above"), (lambda t: pd.concat([t, t]), "stands there twice")])
def test_a_table_of_intervals_that_does_not_fit_is_named(change, says):
    with pytest.raises(UserError, match=says): classify_subjects(subjects(), SHIPPED, change(interval(BFR, 10.0, 30.0)))


# undefined

def test_an_undefined_value_gives_no_class_but_its_reason():
    table = subjects(bfr=[np.nan, 25.0, np.nan], mlt=[np.nan, np.nan, 40.0], oth=[9.0, 25.0, 9.0]).assign(reasons=[json.dumps({BFR: "no double label", MLT: "no double label"}), json.dumps({MLT: "no label was seen"}), np.nan])
    found = classify_subjects(table, SHIPPED); why = [json.loads(r) for r in found["reasons"]]
    assert found["turnover"].tolist() == ["", "normal", ""] and found["mineralisation"].tolist() == ["", "", "normal"] and (found["volume"] == "normal").all()
    assert why[0]["turnover"] == f"{BFR} is undefined: no double label" and why[0]["mineralisation"].endswith(f"(by {OTH} alone it would be normal)")
    assert "no label was seen" in why[1]["mineralisation"] and "may be osteomalacia or abnormal or normal" in why[1]["mineralisation"] and "no reason is given" in why[2]["turnover"]
    infinite = classify_subjects(subjects(mlt=[np.inf]), SHIPPED).iloc[0]
    assert infinite["mineralisation"] == ""


def test_a_subject_that_was_not_measured_says_so_on_every_axis():
    row = classify_subjects(pd.DataFrame({"subject": ["S1"], "group": ["x"], "not measured": ["its pixel size is unknown"]}), SHIPPED).iloc[0]
    assert [row[a] for a in AXES] == ["", "", ""] and all("its pixel size is unknown" in w for w in json.loads(row["reasons"]).values())


values = st.one_of(st.floats(0, 300), st.sampled_from([18.0, 38.0, 50.0, 100.0, 12.5, 20.0, 16.8, 22.9]), st.just(np.nan))


@settings(deadline=None, max_examples=40)
@given(values, values, values, values, st.floats(0, 30))
def test_every_class_is_known_or_has_its_reason_and_a_wider_interval_never_decides(bfr, oth, mlt, bv, half):
    table = subjects(bfr=[bfr], oth=[oth], mlt=[mlt], bv=[bv]); at = {BFR: bfr, OTH: oth, MLT: mlt, BV: bv}
    around = lambda h: pd.DataFrame([{"subject": "S1", "parameter": p, "low": v - h, "high": v + h} for p, v in at.items()])
    plain, narrow, wide = (classify_subjects(table, SHIPPED, i).iloc[0] for i in (None, around(half), around(2 * half)))
    for axis in AXES:
        for row in (plain, narrow, wide): assert row[axis] in ("low", "normal", "high", "abnormal", "osteomalacia") or axis in json.loads(row["reasons"])
        assert plain[axis] != "indeterminate" and narrow[axis] in (plain[axis], "indeterminate") and (narrow[axis] != "indeterminate" or wide[axis] == "indeterminate")


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 40), st.floats(0, 20), st.floats(0, 200), st.floats(0, 100))
def test_possible_classes_are_those_that_a_fine_grid_finds(o, wo, m, wm):
    boxes = class_boxes(SHIPPED[SHIPPED["axis"] == "mineralisation"])
    def plain(oth, mlt): return "osteomalacia" if oth > 12.5 and mlt > 100 else "abnormal" if oth > 20 and mlt > 50 else "normal"
    grid = {plain(x, y) for x in [*np.linspace(o, o + wo, 23), o, o + wo] for y in [*np.linspace(m, m + wm, 23), m, m + wm]}
    found = set(possible_classes(boxes, {OTH: (o, o + wo), MLT: (m, m + wm)}))
    assert grid <= found and (plain(o, m) in found)
    if found != grid: assert any(abs(c - e) < max(wo, wm) / 20 + 1e-9 for c in (12.5, 20, 50, 100) for e in (o, o + wo, m, m + wm))  # a corner finer than the grid


# tables of one's own

ROW = {"axis": "volume", "rule": "BV/TV", "class": "low", "parameter": BV, "above": "", "below": "15", "source": "our own controls, 2024"}


def table_of(tmp_path, *rows, drop=()):
    path = tmp_path / "cuts.csv"; pd.DataFrame([ROW | r for r in rows]).drop(columns=list(drop)).to_csv(path, index=False)
    return path


def test_a_table_of_ones_own_replaces_the_shipped_one(tmp_path):
    cuts = read_cuts(table_of(tmp_path, {}, {"class": "very high", "above": "40", "below": ""}, {"class": "high", "above": "30", "below": ""}))
    found = classify_subjects(subjects(bv=[14.0, 15.0, 31.0, 41.0]), cuts)
    assert found["volume"].tolist() == ["low", "normal", "high", "very high"] and (found["turnover"] == "").all()
    assert json.loads(found["reasons"].iloc[0])["turnover"] == "the table of cuts has no rule for it"


@pytest.mark.parametrize("rows, says", [
    ([{"axis": "volumen"}], r"cuts\.csv: line 2: axis is 'volumen': did you mean `volume`"),
    ([{}, {"class": "high", "parameter": "BV/TV"}], r"line 3: parameter is 'BV/TV': did you mean `BV/TV \(%\)`"),
    ([{"parameter": "colour (RGB)"}], "line 2: parameter is 'colour"),
    ([{"below": "15,5"}], "below is '15,5': give a number"), ([{"below": "inf"}], "below is 'inf': give a number"), ([{"below": "none"}], "below is 'none'"),
    ([{"below": ""}], "give a number either in above or in below"), ([{"above": "3"}], "give a number either in above or in below"),
    ([{"source": ""}], "line 2: source is empty"), ([{"rule": " "}], "rule is empty"), ([{"class": "normal"}], "class is 'normal'"), ([{"class": ""}], "class is ''"),
    ([{}, {"class": "high", "above": "12", "below": ""}], r"volume by BV/TV: classes low and high overlap: BV/TV \(%\) between 12 and 15 is both"),
    ([{}, {"class": "very low", "below": "10"}], "class very low is never reached, since low comes first"),
    ([{}, {"below": "10"}], "line 3: the class is cut twice on the same side"),
    ([{"class": "odd"}, {"class": "odd", "above": "20", "below": ""}], "class odd needs .* above 20 and below 15: no value is")])
def test_a_bad_table_of_cuts_is_named_by_file_and_line(tmp_path, rows, says):
    with pytest.raises(UserError, match=says): read_cuts(table_of(tmp_path, *rows))


def test_all_problems_come_together_and_empty_lines_do_not_shift_the_count(tmp_path):
    path = table_of(tmp_path, {}, {"axis": "x"}, {"below": "y"}); lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", *lines[1:]]))
    with pytest.raises(UserError) as e: read_cuts(path)
    assert len(e.value.problems) == 2 and "line 4" in e.value.problems[0] and "line 5" in e.value.problems[1]


def test_a_missing_column_file_or_row_is_named(tmp_path):
    with pytest.raises(UserError, match="column source is missing: the columns are axis, rule"): read_cuts(table_of(tmp_path, {}, drop=["source"]))
    (tmp_path / "german.csv").write_text("axis;rule;class;parameter;above;below;source\n")
    with pytest.raises(UserError, match="with commas between them"): read_cuts(tmp_path / "german.csv")
    (tmp_path / "none.csv").write_text(",".join(ROW) + "\n")
    with pytest.raises(UserError, match="no row"): read_cuts(tmp_path / "none.csv")
    with pytest.raises(UserError, match="no such table"): read_cuts(tmp_path / "nowhere.csv")


def test_nested_classes_are_in_order_and_touching_ones_do_not_overlap(tmp_path):
    read_cuts(table_of(tmp_path, {"class": "very low", "below": "10"}, {"class": "low"}, {"class": "high", "above": "15", "below": ""}))
    found = classify_subjects(subjects(bv=[9.0, 12.0, 15.0, 16.0]), read_cuts(tmp_path / "cuts.csv"))
    assert found["volume"].tolist() == ["very low", "low", "normal", "high"]


def test_the_table_lies_where_the_package_looks_for_it():
    assert CUTS.is_file() and CUTS.parent.parent.name == "bonehisto"


# figures and report

def drawn(subjects_, classes, cuts=SHIPPED):
    return plot_tmv(subjects_, classes, cuts, Figure().subplots())


def test_the_plane_draws_cuts_as_lines_and_the_indeterminate_hollow():
    table = subjects(bfr=[10.0, 25.0, 50.0], mlt=[30.0, 60.0, np.nan]); ax = drawn(table, classify_subjects(table, SHIPPED, interval(BFR, 10.0, 30.0, "S2")))
    lines = [(set(map(float, l.get_xdata())), set(map(float, l.get_ydata()))) for l in ax.lines if l.get_linestyle() == "--"]
    assert sum(x in ({50.0}, {100.0}) for x, _ in lines) == 2 and sum(y in ({18.0}, {38.0}) for _, y in lines) == 2
    points = {float(l.get_xdata()[0]): l.get_markerfacecolor() for l in ax.lines if l.get_marker() == "o"}
    assert set(points) == {30.0, 60.0} and points[60.0] == "white" and points[30.0] != "white"
    assert any("undefined: S3" in t.get_text() for t in ax.texts)


def test_figures_without_anything_to_draw_say_so():
    table = subjects(mlt=[np.nan])
    assert "undefined in every subject" in drawn(table, classify_subjects(table, SHIPPED)).texts[0].get_text()
    alone = compare_groups(pd.DataFrame({"subject": ["a", "b"], "group": ["x", "y"], BV: [1.0, 2]}))
    assert plot_effects(alone, Figure().subplots()).texts[0].get_text() == "no effect could be measured"


def test_an_effect_that_leaves_the_axis_ends_in_an_arrow():
    table = pd.DataFrame({"subject": range(8), "group": list("xxxxyyyy"), BV: [1.0, 1.1, .9, 1.05, 9, 9.1, 8.9, 9.05]})
    ax = plot_effects(compare_groups(table), Figure().subplots())
    assert ">" in [l.get_marker() for l in ax.lines] and ax.get_xlim()[1] == 8


def test_the_section_shows_classes_reasons_and_the_cuts_they_rest_on(tmp_path):
    table = subjects(bfr=[10.0, 25.0], mlt=[30.0, np.nan]).assign(reasons=["{}", json.dumps({MLT: "no label was seen"})])
    for name, made in {"subject_parameters": table, "tmv": classify_subjects(table, SHIPPED, interval(BFR, 10.0, 30.0)), "tmv_cuts": SHIPPED}.items(): write_table(tmp_path / f"tables/{name}.csv", made)
    blocks = tmv_section(RunFolder(tmp_path))["blocks"]; classes, why, cuts = (b for b in blocks if b["kind"] == "table")
    column = [c["name"] for c in classes["columns"]].index("mineralisation")
    assert classes["rows"][1][column]["text"] == "–" and "no label was seen" in classes["rows"][1][column]["title"]
    assert ["S1", "turnover", "low or normal"] == [cell["text"] for cell in why["rows"][0]][:3] and [c["name"] for c in cuts["columns"]][-1] == "source" and "0.49" in {cell["text"] for row in cuts["rows"] for cell in row}
    (tmp_path / "tables/tmv.csv").unlink()
    assert "the step `compare` writes it" in tmv_section(RunFolder(tmp_path))["blocks"][0]["text"]


def test_a_class_by_hand():
    assert classify_axis(class_boxes(SHIPPED[SHIPPED["axis"] == "volume"]), {BV: 16.0}, {BV: (15.0, 17.0)}, {}) == ("indeterminate", "interval", f"low or normal: {BV} 15 to 17 crosses 16.8")
