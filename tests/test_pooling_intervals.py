"Intervals of pooled values: closed forms, what bears on a value, no interval where there can be none, and that they hold what they claim."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from bonehisto.files import UserError
from bonehisto.histomorphometry import LABEL_BASE, LABEL_SUMS, TISSUE_SUMS, derive_indices, pool_subject
from bonehisto.measure import pool_subjects
from bonehisto.pooling_coverage import KINDS, coverage, draw_rois, draw_subjects, group_coverage, indices, roi_rows
from bonehisto.pooling_intervals import INTERVALS, intervals_of_subject, is_share, jackknife_interval, needed_sums, subject_intervals

MIXED = ("BFR/BV (%/yr)", "BFR/TV (%/yr)", "Omt (d)", "Mlt (d)", "Aj.AR (um/d)", "MS/OS (%)")


def section(domain, rng, doubles=True, singles=True):
    "One ROI with consistent areas and lengths."
    total, bone, surface, cover = 0.4 * rng.lognormal(0, 0.3), 0.2 * rng.lognormal(0, 0.2), 15 * rng.lognormal(0, 0.2), 0.2 * rng.lognormal(0, 0.3)
    area = total * bone; perimeter = area * surface; seam = perimeter * cover; osteoid = seam * 0.01 * rng.lognormal(0, 0.2)
    row = {"domain": domain, "interval (d)": 15.0, "T.Ar (mm2)": total, "B.Ar (mm2)": area, "Md.Ar (mm2)": area - osteoid, "O.Ar (mm2)": osteoid, "Ma.Ar (mm2)": total - area,
           "B.Pm (mm)": perimeter, "O.Pm (mm)": seam, "Md.Pm (mm)": perimeter, "Q.Pm (mm)": perimeter - seam}
    double, single = doubles * perimeter * 0.08 * rng.lognormal(0, 0.3), singles * perimeter * 0.06 * rng.lognormal(0, 0.3)
    return row | ({"sL.Pm (mm)": single, "dL.Pm (mm)": double, "uL.Pm (mm)": 0.1 * double, "Ir.L.Ar (mm2)": double * 0.009 * rng.lognormal(0, 0.15)} if domain == "fluorescence" else {})


def subject(bright=4, fluor=5, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return [section("brightfield", rng) for _ in range(bright)] + [section("fluorescence", rng, **kwargs) for _ in range(fluor)]


def table(rows, **kwargs): return intervals_of_subject(rows, **kwargs).set_index("parameter")


def test_two_rois_of_equal_weight_give_students_t_at_one_degree():
    rows = [r | {"B.Pm (mm)": 5.0, "O.Pm (mm)": o} for r, o in zip(subject(2, 0), (0.9, 1.1))]
    left = np.log(np.array([0.22 / 0.78, 0.18 / 0.82]))  # odds of OS/BS without each
    half = 12.7062 * abs(left[0] - left[1]) / 2
    found = table(rows).loc["OS/BS (%)"]
    assert found["value"] == pytest.approx(20) and found["low"] == pytest.approx(100 / (1 + 4 * np.exp(half)), rel=1e-4) and found["high"] == pytest.approx(100 / (1 + 4 * np.exp(-half)), rel=1e-4)


def test_two_kinds_of_section_add_their_variances_with_satterthwaites_degrees():
    "Three ROIs a kind, by hand: 2 degrees each; together (a + b)2 / (a2/2 + b2/2)."
    bright, fluor = np.array([9.0, 10.0, 11.5]), np.array([8.0, 10.5, 11.0])
    a, b = (2 / 3 * ((np.log(x) - np.log(x).mean()) ** 2).sum() for x in (bright, fluor))
    half = stats.t.ppf(0.975, (a + b) ** 2 / (a ** 2 / 2 + b ** 2 / 2)) * np.sqrt(a + b)
    low, high = jackknife_interval(10.0, [bright, fluor])
    assert low == pytest.approx(10 * np.exp(-half)) and high == pytest.approx(10 * np.exp(half))


def test_many_like_rois_come_to_the_interval_of_a_mean():
    "Equal denominators: the relative half width is t s / (sqrt(n) mean) up to the curvature of the logarithm; ROIs of even spread keep n - 1 degrees."
    tops = np.tile([0.97, 1.03], 10); n = len(tops)
    low, high = jackknife_interval(1.0, [(tops.sum() - tops) / (n - 1)])
    assert np.log(high / low) / 2 == pytest.approx(stats.t.ppf(0.975, n - 1) * tops.std(ddof=1) / n ** 0.5, rel=1e-3)


def test_an_outlier_costs_degrees_of_freedom():
    left = np.exp(np.r_[0.3, np.full(9, -0.3 / 9)]); spread = np.sqrt(0.9 * (np.log(left) ** 2).sum())
    low, high = jackknife_interval(1.0, [left])
    assert np.log(high / low) / 2 > 2 * stats.t.ppf(0.975, 9) * spread


def test_every_derived_parameter_of_a_subject_has_a_row():
    rows = subject(7, 8); pooled = pool_subject(rows)
    found = table(rows)
    assert list(found.index) == list(derive_indices({k: pooled[k] for k in [*TISSUE_SUMS, *LABEL_SUMS, *LABEL_BASE]}, 15.0)[0])
    assert [found.loc[p, "value"] for p in found.index] == [pooled[p] for p in found.index]
    assert np.isfinite(found[["low", "high"]].to_numpy(float)).all() and not found["rough"].any() and (found["note"] == "").all()
    assert ((found["low"] < found["value"]) & (found["value"] < found["high"])).all() and set(MIXED) <= set(found.index)


def test_the_wall_thickness_adds_its_parameters():
    found = table(subject(), wall_thickness_um=33.0)
    assert found.loc["Ac.f (1/yr)", "low"] == pytest.approx(found.loc["BFR/BS (um3/um2/yr)", "low"] / 33) and found.loc["FP (d)", "high"] == pytest.approx(33 / found.loc["Aj.AR (um/d)", "low"])


def test_a_set_rate_has_no_interval():
    found = table(subject(doubles=False), imputed_mar_um_d=0.3)
    assert found.loc["MAR imputed (um/d)", "note"] == "set, not measured" and np.isnan(found.loc["MAR imputed (um/d)", "low"])


def test_rois_that_are_alike_give_no_width():
    a, b = subject(1, 1); found = table([a] * 3 + [b] * 4)
    some = found[found["note"] == ""]
    assert len(some) > 20 and some["low"].astype(float).to_numpy() == pytest.approx(some["value"].to_numpy(float), rel=1e-9) and some["high"].astype(float).to_numpy() == pytest.approx(some["value"].to_numpy(float), rel=1e-9)
    assert found.loc["Mlt (d)", ["brightfield ROIs", "fluorescence ROIs"]].tolist() == [3, 4]


def test_one_roi_of_a_kind_gives_no_interval_and_says_so():
    found = table(subject(1, 5))
    assert found.loc["BV/TV (%)", "note"] == found.loc["Mlt (d)", "note"] == "it rests on one brightfield ROI"
    assert np.isnan(found.loc[["BV/TV (%)", "Mlt (d)"], ["low", "high"]].to_numpy(float)).all() and np.isfinite(found.loc["MAR (um/d)", "low"]) and found.loc["BV/TV (%)", "rough"]
    assert (table(subject(1, 0))["low"].isna()).all()


def test_one_roi_that_alone_shows_double_labels_gives_mar_no_interval():
    rows = subject(6, 0) + subject(0, 1, seed=1) + subject(0, 6, seed=2, doubles=False)
    found = table(rows)
    assert found.loc["MAR (um/d)", "note"] == "it rests on one fluorescence ROI" and found.loc["MAR (um/d)", "fluorescence ROIs"] == 1
    assert "without one of its ROIs" in found.loc["BFR/BS (um3/um2/yr)", "note"] and np.isfinite(found.loc["MS/BS (%)", "low"]) and found.loc["MS/BS (%)", "fluorescence ROIs"] == 7


def test_no_label_anywhere_leaves_zero_without_interval_and_the_reason():
    found = table(subject(6, 6, doubles=False, singles=False))
    assert found.loc["MS/BS (%)", "value"] == found.loc["BFR/BS (um3/um2/yr)", "value"] == 0 and found.loc["MS/BS (%)", "note"] == "it is 0 in every ROI"
    assert found.loc["MAR (um/d)", "note"] == "no label was seen" and np.isnan(found.loc["MAR (um/d)", ["value", "low"]].astype(float)).all() and np.isfinite(found.loc["BV/TV (%)", "low"])


def test_rois_without_the_quantity_add_neither_degrees_nor_width():
    with_labels = subject(0, 4); blank = subject(0, 5, seed=3, doubles=False)
    a, b = table(with_labels).loc["MAR (um/d)"], table(with_labels + blank).loc["MAR (um/d)"]
    assert (a["low"], a["high"]) == pytest.approx((b["low"], b["high"])) and b["fluorescence ROIs"] == 4 and b["rough"]


def test_a_missing_kind_of_section_is_told():
    bright = table(subject(6, 0))
    assert np.isfinite(bright.loc["O.Th (um)", "low"]) and bright.loc["Mlt (d)", "note"] == "no fluorescence ROI with measured labels"
    fluor = table(subject(0, 6))
    assert fluor.loc["Mlt (d)", "fluorescence ROIs"] == 6 and fluor.loc["Mlt (d)", "brightfield ROIs"] == 0 and fluor.loc["Mlt (d)", "low"] > 0
    unknown = table([r | {"interval (d)": np.nan} for r in subject()])
    assert unknown.loc["MAR (um/d)", "note"] == "the interval between the labels is not known" and np.isfinite(unknown.loc["MS/BS (%)", "low"])


def test_sections_measured_together_are_left_out_together():
    "Labels and osteoid of one fluorescence ROI go at once: Mlt is O.Ar/B.Pm over BFR, against brute force."
    rows = subject(0, 6, seed=5)
    left = np.array([pool_subject(rows[:i] + rows[i + 1:])["Mlt (d)"] for i in range(6)])
    assert table(rows).loc["Mlt (d)", ["low", "high"]].tolist() == pytest.approx([float(x) for x in jackknife_interval(pool_subject(rows)["Mlt (d)"], [left])])


def test_two_kinds_are_left_out_apart_against_brute_force():
    rows = subject(4, 6, seed=6); value = pool_subject(rows)["Mlt (d)"]
    left = np.array([pool_subject(rows[:i] + rows[i + 1:])["Mlt (d)"] for i in range(10)])
    assert table(rows).loc["Mlt (d)", ["low", "high"]].tolist() == pytest.approx([float(x) for x in jackknife_interval(value, [left[:4], left[4:]])])


def test_which_sums_a_parameter_is_made_of():
    needed = needed_sums([*TISSUE_SUMS, *LABEL_SUMS, *LABEL_BASE], "iliac")
    assert needed["MAR (um/d)"] == ["dL.Pm (mm)", "Ir.L.Ar (mm2)"] and needed["O.Th (um)"] == ["O.Ar (mm2)", "O.Pm (mm)"] and needed["BV/TV (%)"] == ["T.Ar (mm2)", "B.Ar (mm2)"]
    assert needed["MS/BS (%)"] == ["sL.Pm (mm)", "dL.Pm (mm)", "uL.Pm (mm)", "B.Pm of label sections (mm)"]
    assert needed_sums([*TISSUE_SUMS, *LABEL_SUMS, *LABEL_BASE, "facing (mm)"])["MAR (um/d)"] == ["Ir.L.Ar (mm2)", "facing (mm)"]


@settings(deadline=None, max_examples=8)
@given(st.integers(2, 7), st.integers(2, 7), st.floats(0.1, 10), st.integers(0, 1000))
def test_larger_fields_of_the_same_bone_change_no_ratio_and_no_interval(bright, fluor, k, seed):
    rows = subject(bright, fluor, seed)
    big = [{c: v * k if c.endswith(("(mm)", "(mm2)")) else v for c, v in r.items()} for r in rows]  # as if the biopsy were k times longer
    assert np.allclose(table(rows)[["value", "low", "high"]].to_numpy(float), table(big)[["value", "low", "high"]].to_numpy(float), equal_nan=True)


@settings(deadline=None, max_examples=8)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 1000), st.randoms())
def test_bounds_enclose_the_value_stay_possible_and_know_no_order(bright, fluor, seed, random):
    rows = subject(bright, fluor, seed); found = table(rows, section="iliac")
    shuffled = list(rows); random.shuffle(shuffled)
    again = table(shuffled, section="iliac").loc[found.index]
    assert np.allclose(found[["low", "high"]].to_numpy(float), again[["low", "high"]].to_numpy(float), equal_nan=True)
    some = found[found["note"] == ""]
    assert (some["low"] > 0).all() and (some["low"] <= some["value"]).all() and (some["value"] <= some["high"]).all() and (some[[is_share(p) for p in some.index]]["high"] < 100).all()
    assert table(rows, section="iliac", level=0.5).loc[some.index, "high"].lt(some["high"]).all()


def test_osteoid_and_quiescent_surface_mirror_each_other():
    found = table(subject(8, 0))
    assert found.loc["QS/BS (%)", "low"] == pytest.approx(100 - found.loc["OS/BS (%)", "high"])


def study():
    rows = pd.concat([pd.DataFrame(subject(3, 3, seed=k)).assign(subject=s, group="low", split="test", **{"not measured": ""}) for k, s in enumerate(("S01", "S02", "S03"))], ignore_index=True)
    rows.loc[0, "not measured"] = "its pixel size is unknown"
    rows.loc[rows["subject"] == "S03", "interval (d)"] = [15.0, 15, 15, 15, 12, 12]
    return rows


def test_the_table_of_a_study_fits_the_table_of_its_subjects():
    rows = study(); found, pooled = subject_intervals(rows), pool_subjects(rows).set_index("subject")
    assert list(found) == INTERVALS and set(found["subject"]) == {"S01", "S02"} and "different intervals" in pooled.loc["S03", "not measured"]
    assert (found["brightfield ROIs"] <= found["subject"].map(pooled["brightfield ROIs"])).all() and found.query("subject == 'S01'")["brightfield ROIs"].max() == 2
    wide = found.pivot(index="subject", columns="parameter", values="value")
    for p in ("BV/TV (%)", "Mlt (d)", "BFR/TV (%/yr)"): assert wide[p].to_numpy(float) == pytest.approx(pooled.loc[wide.index, p].to_numpy(float))


def test_a_study_without_measured_rois_gives_an_empty_table():
    assert list(subject_intervals(study().assign(**{"not measured": "it has no class map"}))) == INTERVALS
    assert not len(subject_intervals(pd.DataFrame(columns=["roi", "subject", "group", "modality", "split", "not measured"])))


def test_rows_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="B.Pm"): intervals_of_subject([{k: v for k, v in r.items() if k != "B.Pm (mm)"} for r in subject()])
    with pytest.raises(UserError, match="different intervals"): intervals_of_subject([r | {"interval (d)": 10.0 + k} for k, r in enumerate(subject())])


def test_the_drawn_studies_obey_the_formulas_of_the_package():
    rng = np.random.default_rng(3); drawn = draw_subjects(3, rng); bright, fluor = draw_rois(drawn, 5, rng)
    fast = indices(bright.sum(1), fluor.sum(1))
    for k in range(3):
        pooled = pool_subject(roi_rows(bright[k], fluor[k]))
        for p in KINDS: assert pooled[p] == pytest.approx(fast[p][k]), p


def test_the_truth_of_drawn_studies_is_what_many_rois_come_to():
    rng = np.random.default_rng(4); drawn = draw_subjects(60, rng)
    large = indices(*(x.sum(1) for x in draw_rois(drawn, 8000, rng)))
    for p in KINDS: assert np.median(large[p] / drawn["truth"][p]) == pytest.approx(1, abs=0.006), p


@pytest.fixture(scope="module")
def covered():
    return coverage(studies=60, rois=(3, 6, 12), draws=99, seed=11).set_index(["method", "ROIs", "parameter"])["coverage (%)"]


@pytest.mark.parametrize("rois", [6, 12])
def test_from_six_rois_on_the_interval_holds_the_truth_as_often_as_it_claims(covered, rois):
    "360 subjects: a method that covers 95 % lies within 91 and 98.5 % in each of seven parameters; the mean over them is sharper."
    found = covered["jackknife"][rois]
    assert found.between(91, 98.5).all() and 93 < found.mean() < 97.5, found


def test_below_six_rois_it_still_holds_better_than_nine_in_ten(covered):
    assert covered["jackknife"][3].mean() > 92 and covered["jackknife"][3].min() > 89


def test_the_percentile_bootstrap_would_fail_these_bounds(covered):
    assert (covered["percentile bootstrap"][6] < 91).all() and covered["percentile bootstrap"][6].mean() < 87 and covered["percentile bootstrap"][12].mean() < 92


def test_mar_needs_the_degrees_of_those_rois_that_show_doubles(covered):
    assert covered["jackknife"][6]["MAR (um/d)"] > covered["textbook jackknife"][6]["MAR (um/d)"] + 1.5


def test_subjects_alone_carry_the_interval_of_a_group():
    found = group_coverage(studies=60, subjects=(6,), rois=(2,), draws=49, seed=5).set_index(["method", "parameter"])["coverage (%)"]
    assert found["jackknife"].between(91, 98.5).all() and 93 < found["jackknife"].mean() < 97.5
    assert found["percentile bootstrap, two levels"].mean() < 92
