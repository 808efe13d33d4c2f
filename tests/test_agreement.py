"""Agreement of two observers: published examples, formulas by other ways, intervals that cover, and what cannot be compared."""
import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy import ndimage, stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.inter_rater import cohens_kappa
from typer.testing import CliRunner

from bonehisto import measure
from bonehisto.agreement import BANDS, agree, agreement_table, ccc, icc, kappa, limits, map_agreement, pair_cv, pair_tables
from bonehisto.agreement_figures import agreement_grid, plot_agreement
from bonehisto.agreement_sections import SOURCES, agreement_section
from bonehisto.cli import app
from bonehisto.files import UserError, read_table, write_table
from bonehisto.images import read_mask, write_mask
from bonehisto.manifest import load_manifest
from bonehisto.measure import measure_rois, read_rows
from bonehisto.observers import agree_on_rows, compare_files, compare_observers, mask_files, worded
from bonehisto.page import RunFolder
from bonehisto.phantom import draw_study

matplotlib.use("Agg")
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])  # Shrout & Fleiss 1979, table 2
LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]  # l/min, Bland & Altman 1986, table 1
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def readings(n=12, seed=0, habit=.3, noise=.4):
    rng = np.random.default_rng(seed); true = rng.normal(20, 2, n)
    return true + habit + rng.normal(0, noise, n), 1.05 * true + rng.normal(0, noise, n)


def test_icc_of_the_six_targets_and_four_judges_is_the_published_one():
    value, low, high = icc(JUDGES)
    assert round(value, 2) == .29 and (round(low, 3), round(high, 3)) == (.019, .761)


@pytest.mark.parametrize("n, k, seed", [(5, 2, 0), (12, 2, 1), (8, 4, 2)])
def test_icc_follows_from_an_analysis_of_variance_done_elsewhere(n, k, seed):
    rng = np.random.default_rng(seed); x = rng.normal(0, 1, (n, 1)) + rng.normal(0, .3, k) + rng.normal(0, .5, (n, k))
    long = pd.DataFrame({"y": x.ravel(), "row": np.repeat(range(n), k), "column": np.tile(range(k), n)})
    R, C, E = anova_lm(ols("y ~ C(row) + C(column)", long).fit())["sum_sq"] / anova_lm(ols("y ~ C(row) + C(column)", long).fit())["df"]
    value, low, high = icc(x); p = (R - E) / (R + (k - 1) * E + k * (C - E) / n)
    part = n * (1 + (k - 1) * p) - k * p; freedom = (k - 1) * (n - 1) * (k * p * C / E + part) ** 2 / ((n - 1) * (k * p * C / E) ** 2 + part ** 2)  # Shrout & Fleiss 1979
    F = stats.f.ppf(.975, n - 1, freedom)
    assert value == pytest.approx(p) and low == pytest.approx(n * (R - F * E) / (F * (k * C + (k * n - k - n) * E) + n * R))
    assert low < value < high


def test_bland_and_altmans_peak_flow_meters():
    bias, lower, upper = limits(np.subtract(LARGE, MINI))
    assert bias == pytest.approx([-2.1, -22.0, 17.8], abs=.06)
    assert lower[0] == pytest.approx(-2.12 - 1.96 * 38.77, abs=.05) and upper[0] == pytest.approx(-2.12 + 1.96 * 38.77, abs=.05)


def test_intervals_of_limits_become_those_of_1986_with_many_pairs():
    d = np.random.default_rng(1).normal(3, 2, 4000); s = d.std(ddof=1)
    for (value, low, high), side in zip(limits(d)[1:], (-1, 1)):
        half = 1.96 * s * np.sqrt(1 / 4000 + 1.96 ** 2 / 2 / 3999)
        assert value == pytest.approx(d.mean() + side * 1.96 * s, abs=1e-3) and (low, high) == pytest.approx((value - half, value + half), abs=.01)


def test_ccc_is_one_minus_the_squared_distance_over_that_of_strangers():
    x, y = readings()
    assert ccc(x, y)[0] == pytest.approx(1 - np.mean((x - y) ** 2) / np.mean(np.subtract.outer(x, y) ** 2))


@pytest.mark.parametrize("seed", range(4))
def test_lins_corrected_variance_is_that_of_the_delta_method(seed):
    x, y = readings(15, seed, habit=seed * .7, noise=.3 + seed); n = len(x)
    S = np.cov(x, y, ddof=0); moments = np.array([x.mean(), y.mean(), S[0, 0], S[1, 1], S[0, 1]]); at = [(0, 0), (1, 1), (0, 1)]
    spread = np.zeros((5, 5)); spread[:2, :2] = S  # of normal moments, times n
    spread[2:, 2:] = [[S[i, k] * S[j, l] + S[i, l] * S[j, k] for k, l in at] for i, j in at]
    of = lambda m: np.arctanh(2 * m[4] / (m[2] + m[3] + (m[0] - m[1]) ** 2))
    slope = np.array([(of(moments + h) - of(moments - h)) / 2e-5 for h in 1e-5 * np.eye(5)])
    value, low, high = ccc(x, y)
    assert np.tanh(of(moments)) == pytest.approx(value)
    assert (np.arctanh(high) - np.arctanh(low)) / 2 / stats.t.ppf(.975, n - 1) == pytest.approx(np.sqrt(slope @ spread @ slope / (n - 2)), rel=1e-4)


@pytest.mark.parametrize("n", [4, 10])
def test_intervals_cover_as_often_as_they_claim(n):
    rng, draws, habit, noise = np.random.default_rng(n), 500, .1, .25; hits = np.zeros(3)
    for _ in range(draws):
        subject, reading = rng.normal(size=(n, 1)), rng.normal(0, noise, (n, 2))
        _, low, high = icc(subject + rng.normal(0, habit, 2) + reading); hits[0] += low <= 1 / (1 + habit ** 2 + noise ** 2) <= high
        x, y = (subject + [habit, 0] + reading).T
        _, low, high = ccc(x, y); hits[1] += low <= 2 / (2 + 2 * noise ** 2 + habit ** 2) <= high
        _, low, high = limits(x - y)[2]; hits[2] += low <= habit + 1.96 * noise * 2 ** .5 <= high
    assert ((hits / draws > .92) & (hits / draws < .99)).all(), hits / draws


values = st.lists(st.tuples(st.floats(1, 50), st.floats(1, 50)), min_size=4, max_size=12)


def spread_out(pairs):
    a, b = np.array(pairs).T
    assume(np.ptp(a) > .1 and np.ptp(b) > .1 and np.ptp(a - b) > .1)
    return a, b


@settings(deadline=None, max_examples=60)
@given(values, st.randoms(use_true_random=False), st.floats(.1, 10), st.booleans())
def test_order_units_and_who_comes_first_change_nothing_they_should_not(pairs, random, k, log):
    a, b = spread_out(pairs); order = list(range(len(a))); random.shuffle(order)
    one, shuffled, scaled, swapped = (agree(x, y, log) for x, y in ((a, b), (a[order], b[order]), (k * a, k * b), (b, a)))
    alike = ["ICC", "ICC low", "ICC high", "CCC", "CCC low", "CCC high", "CV (%)"]
    for other in (shuffled, scaled, swapped): assert [other[c] for c in alike] == pytest.approx([one[c] for c in alike], rel=1e-6, abs=1e-8)
    for band in BANDS: assert scaled[band] == pytest.approx(one[band] * (1 if log else k), rel=1e-6, abs=1e-8)
    turned = (1 / one["lower limit low"]) if log else -one["lower limit low"]
    assert swapped["upper limit high"] == pytest.approx(turned, rel=1e-6, abs=1e-8)


@settings(deadline=None, max_examples=60)
@given(values, st.booleans())
def test_every_value_lies_in_its_interval(pairs, log):
    found = agree(*spread_out(pairs), log)
    for name in ("ICC", "CCC", *BANDS): assert found[f"{name} low"] <= found[name] + 1e-9 and found[name] <= found[f"{name} high"] + 1e-9, name
    assert found["lower limit"] <= found["bias"] <= found["upper limit"] and abs(found["CCC"]) <= 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(1, 50), min_size=4, max_size=12, unique=True), st.floats(1.01, 3))
def test_the_same_readings_agree_and_a_constant_ratio_is_bias_alone(a, k):
    a = np.array(a); assume(np.ptp(a) > .1)
    same, ratio = agree(a, a), agree(k * a, a, log=True)
    assert (same["ICC"], same["CCC"], same["bias"], same["upper limit"], same["CV (%)"]) == pytest.approx((1, 1, 0, 0, 0), abs=1e-9)
    assert [ratio[c] for c in BANDS] == pytest.approx([k] * 3) and ratio["CCC"] < 1
    assert ratio["CV (%)"] == pytest.approx(100 * 2 ** .5 * (k - 1) / (k + 1))


def test_the_within_pair_cv_is_a_root_mean_square_of_pairs():
    a, b = readings()
    assert pair_cv(a, b) == pytest.approx(100 * np.sqrt(np.mean([(np.std(p, ddof=1) / np.mean(p)) ** 2 for p in zip(a, b)])))


def tables(n=8):
    a, b = readings(n)
    first = pd.DataFrame({"subject": [f"S{i}" for i in range(n)], "BV/TV (%)": a, "MS/BS (%)": a / 3, "MAR (um/d)": np.nan, "note": "x"})
    return first, first.assign(**{"BV/TV (%)": b, "MS/BS (%)": b / 3, "MAR (um/d)": .5})


def test_a_table_has_one_row_per_parameter_matched_by_name():
    a, b = tables(); t = agreement_table(a.sample(frac=1, random_state=1), b).set_index("parameter")
    assert t.index.tolist() == ["BV/TV (%)", "MAR (um/d)", "MS/BS (%)"] and t["scale"].tolist() == ["linear", "linear", "log"]
    x, y = a["BV/TV (%)"], b["BV/TV (%)"]
    assert t.loc["BV/TV (%)", ["CCC", "CCC low", "CCC high"]].tolist() == pytest.approx(ccc(x, y)) and t.loc["BV/TV (%)", "bias"] == pytest.approx((x - y).mean())
    assert t.loc["MS/BS (%)", "bias"] == pytest.approx(stats.gmean(x / y)) and t.loc["MS/BS (%)", "note"] == ""
    assert agreement_table(a, b, log=()).set_index("parameter").loc["MS/BS (%)", "bias"] == pytest.approx((x - y).mean() / 3)


def test_names_that_one_table_holds_as_numbers_are_still_the_same_names():
    a, b = tables()
    assert agreement_table(a.assign(subject=range(8)), b.assign(subject=[str(i) for i in range(8)]))["n"].iloc[0] == 8


@pytest.mark.parametrize("a, b, log, empty, says", [
    ([1, 2, np.nan, 3], [1, 2, 3, np.nan], False, ["ICC", "CCC", "bias", "CV (%)"], "2 pairs: at least 3 are needed; undefined in A alone: 1; undefined in B alone: 1"),
    ([np.nan], [1.0], False, ["mean A", "ICC", "bias"], "0 pairs: at least 3 are needed"),
    ([5, 5, 5, 5.], [4, 5, 6, 7.], False, ["ICC", "CCC"], "ICC and CCC undefined: A reads the same everywhere"),
    ([0, 0, 0.], [0, 0, 0.], False, ["ICC", "CCC", "CV (%)"], "A and B read the same everywhere; CV undefined: no pair has a mean above 0"),
    ([0, 2, 3, 4.], [1, 2, 3, 5.], True, ["bias", "upper limit high"], "bias and limits undefined: 1 of 4 pairs hold a zero"),
    ([0, 2, 3, 4.], [0, 2, 3, 5.], False, [], "pairs of mean 0 left out of the CV: 1"),
    ([1, 2, 3, 4.], [1, 2, 3, 5.], False, [], "fewer than 6 pairs: intervals are rough"),
])
def test_what_is_undefined_is_empty_and_says_why(a, b, log, empty, says):
    found = agree(np.array(a, float), np.array(b, float), log)
    assert all(np.isnan(found[c]) for c in empty) and says in found["note"]
    assert not any(np.isinf(v) for v in found.values() if isinstance(v, float))
    if len(a) > 3 and not empty: assert all(np.isfinite(found[c]) for c in ("ICC low", "CCC high", *BANDS))


@pytest.mark.parametrize("change, says", [
    (lambda t: t.rename(columns={"subject": "who"}), "table B has no column 'subject': its columns are who"),
    (lambda t: pd.concat([t, t[:1]]), "table B names 'S0' twice"),
    (lambda t: t.assign(subject=t["subject"] + "x"), "the tables share no subject: A names S0, S1, S2, S3, S4 ..., B S0x"),
    (lambda t: t.assign(**{"BV/TV (%)": "n/a"}), "table B holds a text where a number should be"),
])
def test_tables_that_do_not_fit_are_named(change, says):
    a, b = tables()
    with pytest.raises(UserError) as e: agreement_table(a, change(b))
    assert says in str(e.value)


def test_wrong_calls_are_named():
    a, b = tables()
    with pytest.raises(UserError, match="no parameter 'BV/TV': did you mean `BV/TV"): pair_tables(a, b, parameters=["BV/TV"])
    with pytest.raises(UserError, match=r"shapes \(2,\) and \(3,\)"): ccc([1, 2], [1, 2, 3])
    with pytest.raises(UserError, match="two or more"): icc([[1], [2]])


def test_kappa_is_that_of_statsmodels_and_undefined_for_one_class():
    counts = np.random.default_rng(0).integers(1, 50, (4, 4)) + np.diag([200, 90, 30, 10])
    assert kappa(counts) == pytest.approx(cohens_kappa(counts, return_results=False))
    assert np.isnan(kappa([[7, 0], [0, 0]])) and np.isnan(kappa(np.zeros((2, 2)))) and kappa([[0, 5], [5, 0]]) == -1


def test_maps_are_judged_by_subject_with_a_t_interval_over_them():
    rng = np.random.default_rng(2); rois = [(s, rng.integers(1, 30, (3, 3)) + np.diag([90, 40, 0])) for s in "aabbc"]
    t = map_agreement(rois, ["background", "bone", "osteoid"]).set_index("class")
    summed = [rois[0][1] + rois[1][1], rois[2][1] + rois[3][1], rois[4][1]]
    dice = [2 * c[1, 1] / (c[1].sum() + c[:, 1].sum()) for c in summed]
    half = stats.t.ppf(.975, 2) * np.std(dice, ddof=1) / 3 ** .5
    assert t.loc["bone", ["mean", "low", "high"]].tolist() == pytest.approx([np.mean(dice), np.mean(dice) - half, min(1, np.mean(dice) + half)])
    assert t.loc["all classes", "mean"] == pytest.approx(np.mean([cohens_kappa(c, return_results=False) for c in summed])) and (t["rois"] == 5).all()
    alone = map_agreement([("a", np.diag([9, 4, 0]))], ["background", "bone", "osteoid"]).set_index("class")
    assert alone.loc["bone", "note"] == "one subject: no interval" and np.isnan(alone.loc["osteoid", "mean"]) and alone.loc["osteoid", "note"] == "no pixel of it in any map"


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    "ROIs are measured in this process: starting others takes longer than these small masks."
    monkeypatch.setenv("BONEHISTO_WORKERS", "1")


MANIFEST = "labels: {dosing_days: [[1, 2, 3], [16, 17, 18]]}\nsubjects: [{id: S1}, {id: S2}, {id: S3}, {id: S4}]\nrois:\n"
ROIS = [(f"S{i}_{d}", f"S{i}", f"{d}") for i in (1, 2, 3, 4) for d in ("brightfield", "fluorescence")]


def plate(domain, i, wider=0):
    "A plate of bone with a seam above and, in fluorescence, two lines in it."
    mask = np.zeros((96, 128), np.uint8); mask[30 - wider:60 + 6 * i + wider] = 1; mask[30 - wider:36 + i, :90] = 2
    if domain == "fluorescence": mask[38 + i:41 + i, :80 - 6 * i] = 3; mask[50 + 2 * i:53 + 2 * i, :80 - 6 * i] = 3
    return mask


@pytest.fixture
def study(tmp_path):
    "A manifest with masks of one observer under a/, one without any (plain), and a second observer's masks under b/, who draws a pixel wider."
    lines = [f"- {{id: {r}, image: images/{r}.png, subject: {s}, modality: {d}, pixel_size_um: 0.5, mask: a/{r}.png}}\n" for r, s, d in ROIS]
    (tmp_path / "m.yaml").write_text(MANIFEST + "".join(lines))
    (tmp_path / "plain.yaml").write_text(MANIFEST + "".join(l.split(", mask")[0] + "}\n" for l in lines))
    for r, s, d in ROIS:
        for folder, wider in (("images", 0), ("a", 0), ("b", 1)): write_mask(tmp_path / folder / f"{r}.png", plate(d, int(s[1]), wider))
    return tmp_path


def test_an_observer_agrees_with_himself_and_differs_from_one_who_draws_wider(study):
    same, _ = compare_observers(study / "m.yaml", study / "a", workers=1)
    assert (same["agreement_maps"]["mean"] == 1).all() and (same["agreement_subjects"][["ICC", "CCC"]].dropna() == 1).all(axis=None) and (same["agreement_subjects"]["n"] == 4).all()
    wide, notes = compare_observers(study / "a", study / "b", study / "m.yaml", workers=1); s = wide["agreement_subjects"].set_index("parameter")
    assert notes == [] and s.loc["BV/TV (%)", "bias"] == pytest.approx(-100 * 2 / 96, rel=1e-6) and s.loc["O.Th (um)", "bias"] == pytest.approx(-.5, abs=.05)
    assert s.loc["MS/BS (%)", "bias"] == pytest.approx(1, abs=.05) and s.loc["MAR (um/d)", "n"] == 4
    rois = wide["agreement_rois"]; assert set(rois["domain"]) == {"brightfield", "fluorescence"} and (rois["n"] == 4).all() and (rois["subjects"] == 4).all()
    bone = wide["agreement_maps"].query("domain == 'brightfield' and `class` == 'mineralised bone'").iloc[0]
    dice = [2 * (x == 1)[y == 1].sum() / ((x == 1).sum() + (y == 1).sum()) for i in (1, 2, 3, 4) for x, y in [(plate("brightfield", i), plate("brightfield", i, 1))]]
    assert bone["mean"] == pytest.approx(np.mean(dice))


def test_two_manifests_of_one_study_are_compared(study):
    (study / "n.yaml").write_text((study / "m.yaml").read_text().replace("mask: a/", "mask: b/"))
    tables, _ = compare_observers(study / "m.yaml", study / "n.yaml", workers=1)
    assert tables["agreement_subjects"].set_index("parameter").loc["BV/TV (%)", "bias"] < 0


def test_only_what_both_drew_is_pooled_and_the_rest_is_listed(study):
    (study / "b/S1_brightfield.png").unlink(); (study / "a/S4_brightfield.png").unlink()
    tables, notes = compare_observers(study / "a", study / "b", study / "plain.yaml", workers=1)
    assert notes == ["drawn in A alone, left out: S1_brightfield", "drawn in B alone, left out: S4_brightfield"]
    pairs = tables["agreement_pairs"].query("unit == 'subject' and parameter == 'BV/TV (%)'").set_index("name")
    assert pairs.loc["S1", "A"] == pytest.approx(100 * (plate("fluorescence", 1) > 0).mean())  # structure from the fluorescence ROI on both sides
    assert set(tables["agreement_pairs"].query("unit == 'roi'")["name"]) == {r for r, *_ in ROIS} - {"S1_brightfield", "S4_brightfield"}


def test_what_a_run_lays_beside_its_maps_is_no_mask(study):
    for name in ("S1_brightfield_confidence", "S1_fluorescence_interlabel"): write_mask(study / "a" / f"{name}.png", np.zeros((96, 128), np.uint8))
    (study / "a/notes.csv").write_text("x")
    assert [p.stem for p in mask_files(study / "a")] == sorted(r for r, *_ in ROIS)


def test_pixels_outside_the_polygon_do_not_count(study):
    (study / "p.geojson").write_text('{"type": "Polygon", "coordinates": [[[0, 0], [64, 0], [64, 96], [0, 96], [0, 0]]]}')
    (study / "m.yaml").write_text((study / "m.yaml").read_text().replace("mask: a/S1_brightfield.png", "mask: a/S1_brightfield.png, polygon: p.geojson"))
    mask = plate("brightfield", 1); mask[:, 64:] = 0; write_mask(study / "b/S1_brightfield.png", mask)
    for r, *_ in ROIS[1:]: (study / f"b/{r}.png").unlink()
    tables, _ = compare_observers(study / "m.yaml", study / "b", workers=1)
    assert len(tables["agreement_maps"]) == 4 and np.allclose(tables["agreement_maps"]["mean"], 1)


def test_without_a_pixel_size_maps_are_compared_and_nothing_is_measured(study):
    (study / "m.yaml").write_text((study / "m.yaml").read_text().replace("pixel_size_um: 0.5", "pixel_size_um: unknown"))
    said = compare_files(study / "a", study / "b", study / "m.yaml", study / "out")
    assert "no ROI was measured in both" in said and "S1_brightfield was not measured: its pixel size is unknown" in said
    assert len(read_table(study / "out/agreement_maps.csv")) == 9 and len(read_table(study / "out/agreement_subjects.csv")) == 0


def broken(study, how):
    "Harm the study in one way; what to compare."
    a, b, m = study / "a", study / "b", study / "m.yaml"; text = m.read_text(); other = study / "n.yaml"
    if how == "strange name": (b / "S1_brightfield.png").rename(b / "S1_brightfeld.png")
    if how == "nothing shared":
        for r, *_ in ROIS: (a / f"{r}.png" if r.startswith(("S1", "S2")) else b / f"{r}.png").unlink()
        return a, b, study / "plain.yaml"
    if how == "size":
        for r in ("S1_brightfield", "S2_brightfield"): (study / f"images/{r}.png").unlink(); write_mask(b / f"{r}.png", np.zeros((96, 100), np.uint8))
        other.write_text(text.replace("image: images/S1_brightfield", "image: b/S1_brightfield").replace("image: images/S2_brightfield", "image: b/S2_brightfield").replace("mask: a/", "mask: b/"))
        m.write_text(text.replace("image: images/S1_brightfield", "image: a/S1_brightfield").replace("image: images/S2_brightfield", "image: a/S2_brightfield")); return m, other, None
    if how == "size of image": write_mask(b / "S1_brightfield.png", np.zeros((96, 100), np.uint8))
    if how == "ids": write_mask(b / "S1_brightfield.png", np.full((96, 128), 7, np.uint8))
    if how == "pixel size": other.write_text(text.replace("S2, modality: fluorescence, pixel_size_um: 0.5", "S2, modality: fluorescence, pixel_size_um: 0.25")); return m, other, None
    if how == "days": other.write_text(text.replace("[16, 17, 18]", "[14, 15, 16]")); return m, other, None
    if how == "section": other.write_text("section: iliac\n" + text); return a, other, m
    if how == "classes": other.write_text("classes: {brightfield: [{id: 0, name: background, colour: '#000000'}, {id: 1, name: bone, colour: '#3b6fb6'}, {id: 2, name: osteoid, colour: '#e07b39'}]}\n" + text); return m, other, None
    if how == "no manifest": return a, b, None
    if how == "no masks": return study, b, m
    if how == "no such": return study / "c", b, m
    if how == "neither": return a / "S1_brightfield.png", b, m
    if how == "no mask named": return study / "plain.yaml", b, m
    if how == "no domain": other.write_text(text.replace("modality: brightfield, ", "")); return other, b, m
    return a, b, m


@pytest.mark.parametrize("how, says", [
    ("strange name", "no ROI of m.yaml is called S1_brightfeld: did you mean `S1_brightfield`?"),
    ("nothing shared", "no ROI was drawn by both: A/a holds S3_brightfield, S3_fluorescence, S4_brightfield, S4_fluorescence; A/b holds S1_brightfield"),
    ("size", "ROI S2_brightfield: A/a/S2_brightfield.png is 128 x 96 pixels, A/b/S2_brightfield.png 100 x 96: draw both at the size of the image"),
    ("size of image", "is 100 x 96 pixels, the image of ROI S1_brightfield 128 x 96"),
    ("ids", "A/b/S1_brightfield.png: holds ids outside the class table: 7"),
    ("pixel size", "ROI S2_fluorescence: its pixel_size_um is 0.5 in A/m.yaml and 0.25 in A/n.yaml"),
    ("days", "ROI S1_brightfield: its interval between the labels (d) is 15 in A/m.yaml and 13 in A/n.yaml"),
    ("section", "section is none in A/m.yaml and iliac in A/n.yaml"),
    ("classes", "classes.brightfield are 0 background, 1 mineralised bone, 2 osteoid in A/m.yaml and 0 background, 1 bone, 2 osteoid in A/n.yaml"),
    ("no manifest", "A/a: is a folder of masks: name with --manifest the manifest"),
    ("no masks", "A: holds no mask (PNG, TIFF or BMP): give a folder"),
    ("no such", "A/c: no such file or folder"),
    ("neither", "is neither a folder of masks nor a manifest"),
    ("no mask named", "plain.yaml: no ROI has a mask"),
    ("no domain", "n.yaml: ROI S1_brightfield has a mask and no modality"),
])
def test_what_cannot_be_compared_is_named(study, how, says):
    with pytest.raises(UserError) as e: compare_files(*broken(study, how), study / "out")
    assert says in str(e.value).replace(str(study), "A") and not (study / "out").exists()


def test_both_wrong_sizes_come_together(study):
    with pytest.raises(UserError) as e: compare_files(*broken(study, "size"), study / "out")
    assert len(e.value.problems) == 2


def test_tables_are_not_written_among_the_masks(study):
    with pytest.raises(UserError, match="holds the masks of an observer"): compare_files(study / "a", study / "b", study / "m.yaml", study / "b")
    with pytest.raises(UserError, match="is a file"): compare_files(study / "a", study / "b", study / "m.yaml", study / "m.yaml")


def test_words_show_the_interval_the_scale_and_no_number_that_is_not_there():
    a, b = tables(); t = worded(agreement_table(a, b)).set_index("parameter")
    assert t.loc["BV/TV (%)", "bias"].startswith("A - B -") and t.loc["MS/BS (%)", "bias"].startswith("A / B 0.9") and t.loc["MAR (um/d)", "bias"] == "-"
    assert not t.map(str).apply(lambda c: c.str.contains("nan")).any(axis=None)


def test_a_panel_draws_bias_and_limits_where_the_table_has_them():
    a, b = tables(); pairs, t = pair_tables(a, b), agreement_table(a, b)
    fig = agreement_grid(pairs, t, ("reader", "map")); panels = dict(zip(t["parameter"], fig.axes)); rows = t.set_index("parameter")
    for p, rest in (("BV/TV (%)", 0), ("MS/BS (%)", 1)):
        assert [line.get_ydata()[0] for line in panels[p].lines] == pytest.approx([rest, *rows.loc[p, list(BANDS)]])
    assert panels["MS/BS (%)"].get_yscale() == "log" and panels["MS/BS (%)"].get_ylabel() == "reader / map" and panels["BV/TV (%)"].get_ylabel() == "reader − map (%)"
    x, y = a["MS/BS (%)"], b["MS/BS (%)"]
    assert np.allclose(panels["MS/BS (%)"].collections[-1].get_offsets(), np.c_[np.sqrt(x * y), x / y])
    assert "no pair" in panels["MAR (um/d)"].texts[0].get_text()


def test_a_panel_without_limits_says_so_and_counts_what_it_shows():
    pairs = pd.DataFrame({"A": [0, 2., 3, 4], "B": [0, 2.2, 3, 5]})
    ax = plot_agreement(pairs, {"parameter": "MS/BS (%)"} | agree(pairs["A"].to_numpy(), pairs["B"].to_numpy(), True), matplotlib.figure.Figure().subplots())
    assert [t.get_text() for t in ax.texts][0] == "no limits" and ax.texts[1].get_text().startswith("n = 3 of 4") and len(ax.collections[-1].get_offsets()) == 3


@pytest.fixture
def run(study):
    "A run folder with the two tables of `measure`: maps a pixel wider than the masks, S4 in training."
    manifest = load_manifest(study / "m.yaml")
    for name, folder in zip(SOURCES, ("b", "a")):
        jobs = pd.DataFrame([{"roi": r, "subject": s, "group": "all", "modality": d, "split": "train" if s == "S4" else "test", "mask": str(study / folder / f"{r}.png"), "polygon": "", "pixel_size_um": .5, "interval_days": 15.} for r, s, d in ROIS])
        write_table(study / "run/tables" / name, measure_rois(jobs, manifest, workers=1)[0])
    return study / "run"


def test_the_report_judges_test_subjects_alone(run):
    made = agreement_section(RunFolder(run))
    assert [b["kind"] for b in made["blocks"]] == ["text", "figure", "table"] and (run / "figures/agreement.png").exists()
    rows = {r[0]["text"]: [c["text"] for c in r] for r in made["blocks"][2]["rows"]}
    test = [read_rows(run / "tables" / n).query("split == 'test'") for n in SOURCES]
    assert rows["BV/TV (%)"][1] == "3" and rows["BV/TV (%)"][4].startswith("2.08 (") and rows["MS/BS (%)"][4].startswith("× ")
    assert agree_on_rows(*test)["agreement_pairs"].query("unit == 'subject'")["name"].nunique() == 3


def test_a_roi_measured_on_one_side_alone_is_pooled_on_neither(run):
    maps, masks = (read_rows(run / "tables" / n) for n in SOURCES)
    maps.loc[maps["roi"] == "S2_brightfield", "O.Ar (mm2)"] *= 2
    masks = masks[masks["roi"] != "S1_fluorescence"].copy(); masks.loc[masks["roi"] == "S2_brightfield", "not measured"] = "it has no class map"
    pairs = agree_on_rows(maps, masks)["agreement_pairs"].query("unit == 'subject'").set_index(["name", "parameter"])
    assert pairs.loc[("S1", "MAR (um/d)"), ["A", "B"]].isna().all() and np.isfinite(pairs.loc[("S3", "MAR (um/d)"), "A"])
    assert pairs.loc[("S2", "O.Th (um)"), "A"] == pytest.approx(4.5, rel=.01)  # of the fluorescence ROI, which both sides have


@pytest.mark.parametrize("left, says", [(2, "2 subjects of the test split could be measured"), (0, "No subjects of the test split")])
def test_the_report_says_when_test_subjects_are_too_few(run, left, says):
    for name in SOURCES:
        rows = read_rows(run / "tables" / name); write_table(run / "tables" / name, rows.assign(split=["test" if s in ("S1", "S2")[:left] else "train" for s in rows["subject"]]))
    blocks = agreement_section(RunFolder(run))["blocks"]
    assert [b["kind"] for b in blocks] == ["missing"] and says in blocks[0]["text"]


def test_the_report_survives_a_damaged_table(run):
    (run / "tables/roi_parameters_masks.csv").write_text("roi,subject\na,b\n")
    assert "has no column group, modality" in agreement_section(RunFolder(run))["blocks"][0]["text"]


def test_the_command_compares_a_drawn_study_with_a_second_observer(tmp_path):
    command = lambda *args: CliRunner().invoke(app, list(map(str, args)), catch_exceptions=False)
    draw_study(tmp_path / "study", subjects=3, rois=1, size_px=256, workers=1)
    study = load_manifest(tmp_path / "study")
    for roi in study.rois:
        mask = read_mask(roi.mask, study.class_table(roi.modality)); grown = ndimage.grey_dilation(mask > 0, (3, 3)) & (mask == 0)
        write_mask(tmp_path / "second" / f"{roi.id}.png", np.where(grown, ndimage.grey_dilation(mask, (3, 3)), mask).astype(np.uint8))
    done = command("agreement", tmp_path / "study", tmp_path / "second", "--out", tmp_path / "out", "--linear")
    assert done.exit_code == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*(f"agreement_{t}.csv" for t in ("rois", "subjects", "maps", "pairs")), "agreement.png", "agreement.pdf"}
    t = read_table(tmp_path / "out/agreement_subjects.csv").set_index("parameter")
    assert t.loc["BV/TV (%)", "n"] == 3 and t.loc["BV/TV (%)", "upper limit"] < 0 and (t["scale"] == "linear").all()
    assert "BV/TV (%)" in done.stdout and "A - B" in done.stdout and "kappa" in done.stdout and "wrote tables of 6 ROIs and 3 subjects" in done.stdout


def test_the_command_passes_a_mistake_on_before_it_writes(study):
    (study / "b/strange.png").write_bytes((study / "b/S1_brightfield.png").read_bytes())
    done = CliRunner().invoke(app, ["agreement", str(study / "a"), str(study / "b"), "--manifest", str(study / "m.yaml"), "--out", str(study / "out")])
    assert isinstance(done.exception, UserError) and "is called strange" in str(done.exception) and not (study / "out").exists()
