"Tests between groups, mixed models and power: against closed forms, scipy and statsmodels; degenerate studies say so."
import gc

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import example, given, settings, strategies as st
from scipy import optimize, stats
from statsmodels.stats.power import TTestIndPower

from bonehisto.files import UserError, write_table
from bonehisto.group_models import MIXED_MODELS, mixed_models, model_pairs, roi_values
from bonehisto.group_tests import GROUP_TESTS, cliffs_delta, compare_groups, compare_pair, compare_several, correct, epsilon_squared, hedges_g, why_not_compared
from bonehisto.group_sections import comparison_section
from bonehisto.page import RunFolder
from bonehisto.power import cv_spread, design_effect, named_parameter, parse_difference, plan_from_run, power_curve, power_plan, standard_difference, study_spread, subject_sd, subjects_needed

BV, MAR = "BV/TV (%)", "MAR (um/d)"
A, B, C = np.array([20.1, 22.3, 19.4, 24.0, 21.2]), np.array([17.0, 18.8, 16.1, 19.9]), np.array([25.0, 27.7, 24.1, 29.0, 30.2])


@pytest.fixture(scope="module", autouse=True)
def frozen():
    "Holm's correction in statsmodels collects garbage each time, which takes long where many modules are loaded: what is loaded now is left out of that."
    gc.freeze(); yield; gc.unfreeze()


def balanced(groups=2, subjects=5, rois=3, between=1.0, within=0.6, step=1.0, seed=0):
    "ROIs of a balanced study: subject, group, value."
    rng = np.random.default_rng(seed); who = np.repeat(np.arange(groups * subjects), rois); group = who // subjects
    return pd.DataFrame({"subject": [f"s{i}" for i in who], "group": [f"g{k}" for k in group], "value": 10 + step * group + rng.normal(0, between, groups * subjects)[who] + rng.normal(0, within, len(who))})


def study(rois, parameter=BV, domain="fluorescence"):
    return rois.rename(columns={"value": parameter}).assign(domain=domain)


# tests between subjects

def test_a_pair_is_tested_as_scipy_tests_it():
    found = compare_pair(A, B); welch = stats.ttest_ind(A, B, equal_var=False)
    assert found["p Welch"] == pytest.approx(welch.pvalue) and found["difference"] == pytest.approx(A.mean() - B.mean())
    v, w = A.var(ddof=1) / 5, B.var(ddof=1) / 4; df = (v + w) ** 2 / (v ** 2 / 4 + w ** 2 / 3)  # Welch and Satterthwaite by hand
    assert (found["low"], found["high"]) == pytest.approx(A.mean() - B.mean() + stats.t.ppf(.975, df) * np.sqrt(v + w) * np.array([-1, 1]))
    assert found["p rank"] == stats.mannwhitneyu(A, B).pvalue


def test_several_groups_are_tested_by_welchs_formula_and_by_ranks():
    found, groups = compare_several({"a": A, "b": B, "c": C}), (A, B, C)
    n, m, v = (np.array([f(g) for g in groups]) for f in (len, np.mean, lambda g: np.var(g, ddof=1)))
    w = n / v; k = 3; mean = (w * m).sum() / w.sum(); bend = ((1 - w / w.sum()) ** 2 / (n - 1)).sum()  # Welch 1951
    f = ((w * (m - mean) ** 2).sum() / (k - 1)) / (1 + 2 * (k - 2) / (k ** 2 - 1) * bend)
    assert found["p Welch"] == pytest.approx(stats.f.sf(f, k - 1, (k ** 2 - 1) / (3 * bend)))
    assert found["p rank"] == pytest.approx(stats.kruskal(*groups).pvalue)


def test_the_interval_of_g_solves_the_noncentral_t():
    g, low, high = hedges_g(A, B); df, root = 7, np.sqrt(1 / 5 + 1 / 4)
    pooled = np.sqrt((4 * A.var(ddof=1) + 3 * B.var(ddof=1)) / df); t = (A.mean() - B.mean()) / pooled / root
    small = 1 - 3 / (4 * df - 1)  # Hedges' approximation of the exact factor
    assert g == pytest.approx((A.mean() - B.mean()) / pooled * small, rel=2e-3)
    for bound, p in ((low, .975), (high, .025)):
        assert bound == pytest.approx(optimize.brentq(lambda x: stats.nct.cdf(t, df, x) - p, t - 12, t + 12) * root * small, rel=2e-3)
    assert hedges_g(B, A) == pytest.approx((-g, -high, -low))


def test_the_interval_of_g_covers_as_often_as_it_claims():
    rng = np.random.default_rng(1); found = [hedges_g(rng.normal(1.2, 1, 5), rng.normal(0, 1, 5)) for _ in range(1500)]
    assert 0.935 < np.mean([low <= 1.2 <= high for _, low, high in found]) < 0.975 and abs(np.mean([g for g, _, _ in found]) - 1.2) < 0.06


def test_the_interval_of_epsilon_squared_solves_the_noncentral_f():
    e, low, high = epsilon_squared([A, B, C]); f = stats.f_oneway(A, B, C).statistic; n = 14
    ss = sum(((g - g.mean()) ** 2).sum() for g in (A, B, C)); total = ((np.r_[A, B, C] - np.r_[A, B, C].mean()) ** 2).sum()
    assert e == pytest.approx((total - ss - 2 * ss / 11) / total)
    for bound, p in ((low, .975), (high, .025)):
        assert stats.ncf.cdf(f, 2, 11, bound * n / (1 - bound)) == pytest.approx(p, abs=1e-3)


@pytest.mark.parametrize("n, shift", [(4, 0), (4, 1.5), (8, 0), (8, 3)])
def test_the_interval_of_delta_covers_at_least_as_often_as_it_claims(n, shift):
    rng, true = np.random.default_rng(n), 2 * stats.norm.cdf(shift / 2 ** .5) - 1
    found = [cliffs_delta(rng.normal(shift, 1, n), rng.normal(0, 1, n)) for _ in range(1500)]
    assert np.mean([low <= true <= high for _, low, high in found]) > 0.94


def test_delta_counts_pairs_and_ties():
    assert cliffs_delta([2, 3], [1, 2])[0] == 0.75 and cliffs_delta([1, 2], [1, 2])[0] == 0
    delta, low, high = cliffs_delta([5, 6, 7, 8, 9], [1, 2, 3, 4]); z = stats.norm.ppf(.975) ** 2
    assert delta == high == 1 and low == pytest.approx((4 - z) / (4 + z))


# correction

def test_correction_by_hand_and_in_any_order():
    p = [.001, .04, .03, np.nan, .02]
    table = correct(pd.DataFrame({"p": p}), ["p"])
    assert table["p Holm"].tolist() == pytest.approx([.004, .06, .06, np.nan, .06], nan_ok=True)
    assert table["p BH"].tolist() == pytest.approx([.004, .04, .04, np.nan, .04], nan_ok=True)
    order = [2, 3, 0, 4, 1]
    shuffled = correct(pd.DataFrame({"p": [p[i] for i in order]}), ["p"])
    assert shuffled["p Holm"].tolist() == pytest.approx([table["p Holm"][i] for i in order], nan_ok=True)


def test_families_are_corrected_apart():
    table = correct(pd.DataFrame({"p": [.01, .02, .01], "kind": ["pair", "pair", "all groups"]}), ["p"], "kind")
    assert table["p Holm"].tolist() == pytest.approx([.02, .02, .01])
    found = compare_groups(pd.DataFrame({"subject": range(14), "group": ["a"] * 5 + ["b"] * 4 + ["c"] * 5, BV: np.r_[A, B, C]}))
    assert found.groupby("kind").size().to_dict() == {"all groups": 1, "pair": 3}
    assert found.loc[found["kind"] == "all groups", "p Welch Holm"].iloc[0] == found["p Welch"].iloc[0]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.floats(0, 1), st.just(np.nan)), min_size=1, max_size=12))
def test_corrected_p_keep_their_order_and_never_shrink(p):
    table = correct(pd.DataFrame({"p": p}, dtype=float), ["p"]).dropna()
    assert len(table) == np.isfinite(p).sum()
    for c in ("p Holm", "p BH"):
        assert (table[c] >= table["p"] - 1e-12).all() and (table[c] <= 1 + 1e-12).all() and (table.sort_values("p")[c].diff().dropna() >= -1e-12).all()
    assert (table["p Holm"] >= table["p BH"] - 1e-12).all()


# degenerate studies

def test_one_group_no_group_and_groups_of_one_are_told():
    one = pd.DataFrame({"subject": list("abc"), "group": "low", BV: [1.0, 2, 3]})
    assert "one group (low)" in why_not_compared(one) and "No groups are given" in why_not_compared(one.assign(group=np.nan))
    assert "one subject only" in why_not_compared(one.assign(group=list("xyz"))) and "Only the group x" in why_not_compared(one.assign(group=list("xxy")))
    assert list(compare_groups(one).columns) == GROUP_TESTS and len(compare_groups(one)) == 0
    assert list(mixed_models(one.assign(domain="brightfield")).columns) == MIXED_MODELS
    found = compare_groups(one.assign(group=list("xyz")))
    assert found["p Welch"].isna().all() and found["note"].str.contains("fewer than two").all()
    models = mixed_models(one.assign(group=list("xyz"), domain="brightfield"))
    assert models["p"].isna().all() and models["note"].str.contains("fewer than two subjects").all() and (models["model"] == "").all()


def test_a_group_of_one_is_left_out_of_the_others():
    rois = pd.concat([balanced(), pd.DataFrame({"subject": "s99", "group": "g9", "value": [50.0, 51, 52]})])
    found = model_pairs(rois, ["g0", "g1", "g9"]); alone = model_pairs(balanced(), ["g0", "g1"])[0]
    assert found[0]["model"] == alone["model"] and all(found[0][k] == pytest.approx(alone[k]) for k in ("difference", "low", "high", "p", "p overall", "ICC"))
    assert [f["model"] for f in found] == ["mixed model, REML", "", ""] and np.isnan(found[1].get("p", np.nan))
    several = compare_several({"a": A, "b": B, "c": [50.0]})
    assert several["p Welch"] == pytest.approx(stats.ttest_ind(A, B, equal_var=False).pvalue) and several["note"] == "left out, fewer than two subjects: c"


def test_values_without_spread_are_told_and_never_infinite():
    same, five, nine = np.full(4, 5.0), np.full(4, 5.0), np.full(4, 9.0)
    assert compare_pair(same, five)["note"].startswith("all values are equal") and "p rank" not in compare_pair(same, five)
    apart = compare_pair(nine, five)
    assert apart["difference"] == 4 and np.isnan([apart["p Welch"], apart["effect size"]]).all() and apart["delta"] == 1 and apart["p rank"] < .05 and "no spread" in apart["note"]
    several = compare_several({"a": A, "b": B, "c": nine})
    assert np.isnan(several["p Welch"]) and several["note"] == "no spread within c: no Welch test" and np.isfinite(several["p rank"])
    assert "all values are equal" in compare_several({"a": same, "b": five})["note"]


def test_undefined_subjects_are_left_out_and_counted():
    table = pd.DataFrame({"subject": range(9), "group": ["a"] * 5 + ["b"] * 4, MAR: np.r_[A, B] / 40}); gone = table.assign(**{MAR: table[MAR].where(table["subject"] != 0)})
    row = compare_groups(gone).iloc[0]
    assert row["note"] == "undefined in 1 of 5 a" and row["n"] == "a 4, b 4" and row["p Welch"] == pytest.approx(stats.ttest_ind(B, A[1:], equal_var=False).pvalue)
    nothing = compare_groups(table.assign(**{MAR: np.nan})).iloc[0]
    assert np.isnan(nothing["p Welch"]) and "fewer than two" in nothing["note"] and "5 of 5 a" in nothing["note"]


def test_an_unknown_parameter_or_column_is_named():
    table = pd.DataFrame({"subject": range(9), "group": ["a"] * 5 + ["b"] * 4, BV: np.r_[A, B], "word (d)": "x"})
    with pytest.raises(UserError, match=r"'BV/TV' is no column of the table: did you mean `BV/TV \(%\)`"): compare_groups(table, ["BV/TV"])
    with pytest.raises(UserError, match="holds texts"): compare_groups(table, ["word (d)"])
    with pytest.raises(UserError, match="no column 'group'"): compare_groups(table.drop(columns="group"))


numbers = st.one_of(st.floats(-1e3, 1e3, allow_subnormal=False), st.sampled_from([0.0, 1.0, 5.0]), st.just(np.nan))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", ""]), numbers), min_size=1, max_size=14))
@example([("a", 1.0), ("a", 1.0), ("b", 0.0), ("b", 1.6440691683703587e-29)])  # spread far below the rounding of what it is compared with
def test_every_number_is_finite_or_its_absence_is_explained(pairs):
    table = pd.DataFrame(pairs, columns=["group", BV]).assign(subject=range(len(pairs)))
    found = compare_groups(table)
    values = found[["difference", "low", "high", "p Welch", "p rank", "effect size", "effect low", "effect high", "delta", "delta low", "delta high"]].astype(float)
    assert not np.isinf(values).any().any() and found.loc[found["kind"] == "pair", "note"][values.loc[found["kind"] == "pair"].isna().any(axis=1)].str.len().gt(0).all()
    known = values["effect size"].notna(); slack = 1e-6 * (1 + values["effect size"].abs())
    assert (values["effect low"] <= values["effect size"] + slack)[known].all() and (values["effect size"] <= values["effect high"] + slack)[known].all()
    assert values[["p Welch", "p rank"]].stack().dropna().between(0, 1).all()


# mixed models

@pytest.mark.parametrize("groups, subjects, rois, between", [(2, 4, 2, 1.0), (3, 4, 2, 2.0), (2, 8, 5, 0.6), (3, 3, 4, 5.0)])
def test_a_balanced_study_gives_the_closed_form(groups, subjects, rois, between):
    data = balanced(groups, subjects, rois, between)
    means = data.groupby(["group", "subject"])["value"].mean(); by = [means[g].to_numpy() for g in sorted(set(data["group"]))]
    ms_between = rois * sum(((m - m.mean()) ** 2).sum() for m in by) / (groups * (subjects - 1))
    ms_within = ((data["value"] - data.groupby("subject")["value"].transform("mean")) ** 2).sum() / (groups * subjects * (rois - 1))
    assert ms_between > 1.1 * ms_within  # else the closed form is another
    found = model_pairs(data, sorted(set(data["group"])))
    assert found[0]["variance within"] == pytest.approx(ms_within, rel=1e-4) and found[0]["variance between"] == pytest.approx((ms_between - ms_within) / rois, rel=1e-3)
    assert found[0]["ICC"] == pytest.approx((ms_between - ms_within) / (ms_between + (rois - 1) * ms_within), rel=1e-3)
    se, df = np.sqrt(2 * ms_between / rois / subjects), groups * (subjects - 1)
    assert found[0]["difference"] == pytest.approx(by[1].mean() - by[0].mean()) and found[0]["high"] - found[0]["low"] == pytest.approx(2 * stats.t.ppf(.975, df) * se, rel=1e-4)
    assert found[0]["p overall"] == pytest.approx(stats.f_oneway(*by).pvalue, rel=1e-3)
    if groups == 2: assert found[0]["p"] == pytest.approx(stats.ttest_ind(*by).pvalue, rel=1e-3)


def test_an_unbalanced_study_agrees_with_statsmodels_fitted_directly():
    data = balanced(2, 6, 4, 1.0, 0.8, seed=3).drop(index=[0, 1, 2, 9, 20, 21, 33, 46]).reset_index(drop=True)
    direct = sm.MixedLM.from_formula("value ~ group", data, groups="subject").fit(reml=True, method="powell")
    found = model_pairs(data, ["g0", "g1"])[0]
    assert found["difference"] == pytest.approx(direct.params["group[T.g1]"], rel=1e-3)
    assert found["variance between"] == pytest.approx(float(direct.cov_re.iloc[0, 0]), rel=1e-2) and found["variance within"] == pytest.approx(direct.scale, rel=1e-3)
    assert found["high"] - found["low"] == pytest.approx(2 * stats.t.ppf(.975, 10) * direct.bse["group[T.g1]"], rel=1e-3)


def test_no_difference_is_found_five_times_in_a_hundred():
    p = [model_pairs(balanced(2, 4, 3, 1.0, 0.8, step=0, seed=s), ["g0", "g1"])[0]["p"] for s in range(60)]
    assert np.isfinite(p).all() and 0 <= np.mean(np.array(p) < .05) < 0.15 and stats.kstest(p, "uniform").pvalue > 1e-3


def test_counting_rois_as_witnesses_would_find_far_more():
    data = [balanced(2, 4, 6, 1.0, 0.3, step=0, seed=s) for s in range(40)]
    naive = [stats.ttest_ind(*(d.loc[d["group"] == g, "value"] for g in ("g0", "g1"))).pvalue < .05 for d in data]
    assert np.mean(naive) > 0.3 > 2 * np.mean([model_pairs(d, ["g0", "g1"])[0]["p"] < .05 for d in data])


def test_a_known_effect_is_found_on_the_log_scale():
    rng = np.random.default_rng(5); who = np.repeat(np.arange(20), 4); group = np.where(who < 10, "low", "high")
    mar = np.where(who < 10, .5, .75) * np.exp(rng.normal(0, .12, 20)[who] + rng.normal(0, .1, 80))
    row = mixed_models(pd.DataFrame({"subject": who.astype(str), "group": group, "domain": "fluorescence", MAR: mar})).iloc[0]
    assert (row["group"], row["against"], row["scale"]) == ("low", "high", "relative (%)") and row["low"] < -100 / 3 < row["high"] < 0
    assert row["variance between"] == pytest.approx(.12 ** 2, rel=.7) and row["variance within"] == pytest.approx(.1 ** 2, rel=.4)


@pytest.mark.parametrize("change, why", [
    (lambda d: d.assign(value=3.0), "all values are equal"),
    (lambda d: d.assign(value=d.groupby("subject")["value"].transform("mean")), "ROIs of a subject do not differ"),
    (lambda d: d.groupby("subject").head(1), "one ROI a subject"),
    (lambda d: d.assign(value=np.tile([1.0, 2, 3], 10) + .01 * d["value"]), "singular fit")])
def test_a_model_that_cannot_be_had_says_why_and_subject_means_stand_in(change, why):
    data = change(balanced()); found = model_pairs(data, ["g0", "g1"])[0]
    assert why in found["note"] and np.isnan(found["p overall"])
    means = data.groupby(["group", "subject"])["value"].mean()
    if why == "all values are equal": assert found["model"] == "" and np.isnan(found["p"])
    else: assert found["model"] == "subject means, Welch" and found["p"] == pytest.approx(stats.ttest_ind(means["g1"], means["g0"], equal_var=False).pvalue)


def test_a_fit_that_does_not_converge_is_no_silent_number(monkeypatch):
    import bonehisto.group_models as module
    class Lost(module.MixedLM):
        def fit(self, **kwargs):
            found = super().fit(**kwargs); found.converged = False; return found
    monkeypatch.setattr(module, "MixedLM", Lost)
    found = model_pairs(balanced(), ["g0", "g1"])[0]
    assert found["note"] == "the mixed model did not converge: Welch's t on subject means" and found["model"] == "subject means, Welch" and np.isnan(found["ICC"])
    class Broken(module.MixedLM):
        def fit(self, **kwargs): raise np.linalg.LinAlgError("Singular matrix")
    monkeypatch.setattr(module, "MixedLM", Broken)
    assert "the mixed model failed (Singular matrix)" in model_pairs(balanced(), ["g0", "g1"])[0]["note"]


def test_units_change_no_p_and_no_share():
    data = balanced(seed=8); fit = model_pairs(data, ["g0", "g1"])[0]
    for k in (1e-6, 1e6):
        other = model_pairs(data.assign(value=k * data["value"]), ["g0", "g1"])[0]
        assert other["p"] == pytest.approx(fit["p"], rel=1e-5) and other["ICC"] == pytest.approx(fit["ICC"], rel=1e-4) and other["difference"] == pytest.approx(k * fit["difference"])


def test_structure_comes_from_brightfield_where_a_subject_has_it_and_labels_from_fluorescence():
    rows = pd.DataFrame({"subject": ["a", "a", "b", "c"], "group": "x", "domain": ["brightfield", "fluorescence", "fluorescence", "brightfield"], BV: [20.0, 30, 25, np.nan], MAR: [np.nan, .5, .6, np.nan]})
    assert roi_values(rows, BV)["value"].tolist() == [20, 25] and roi_values(rows, MAR)["value"].tolist() == [.5, .6]
    assert roi_values(rows.rename(columns={"domain": "modality"}), BV)["subject"].tolist() == ["a", "b"]


def test_values_at_zero_leave_the_log_scale_and_are_counted():
    data = study(balanced(seed=2), MAR); data.loc[0, MAR] = 0.0
    row = mixed_models(data).iloc[0]
    assert "1 ROIs at or below zero left out" in row["note"] and np.isfinite(row["p"])
    assert "undefined in 5 of 5 g0" in mixed_models(data.assign(**{MAR: data[MAR].where(data["group"] != "g0")})).iloc[0]["note"]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.floats(0, 50), st.just(np.nan), st.just(7.0))), min_size=1, max_size=18))
def test_a_model_of_any_study_is_finite_or_says_why(pairs):
    rows = pd.DataFrame({"subject": [f"s{k}" for k, _ in pairs], "group": ["ab"[k % 2] for k, _ in pairs], "domain": "fluorescence", BV: [v for _, v in pairs]})
    for row in mixed_models(rows, [BV]).to_dict("records"):
        if np.isfinite(row["p"]): assert np.isfinite([row["difference"], row["low"], row["high"]]).all() and row["low"] <= row["difference"] <= row["high"] and 0 <= row["p"] <= 1 and row["model"]
        else: assert row["note"] and row["model"] == ""


# power

def test_subjects_needed_are_the_first_that_reach_the_power():
    for d in (.3, .5, .8, 1.2, 2.5):
        exact = TTestIndPower().solve_power(d, power=.9, alpha=.01, ratio=1)
        assert subjects_needed(d, .01, .9) == int(np.ceil(exact))
    assert subjects_needed(.5) == 64 and subjects_needed(.8) == 26  # Cohen 1988, table 2.4.1
    assert subjects_needed(100) == 2 and np.isnan(subjects_needed(1e-5))


def test_the_power_of_a_plan_is_what_a_simulation_finds():
    spread = {"between": .5, "within": .8, "mean": 10.0, "rois": 4, "subjects": 20, "df": 18, "log": False, "note": ""}
    plan, rng = power_plan(spread, "0.9", rois=4), np.random.default_rng(0)
    draw = lambda shift: shift + rng.normal(0, .5, (3000, plan["subjects"])) + rng.normal(0, .8, (3000, plan["subjects"], 4)).mean(2)
    power = (stats.ttest_ind(draw(.9), draw(0), axis=1).pvalue < .05).mean()
    assert .78 < power < .9 and plan["careful"] > plan["subjects"]


def test_the_design_effect_is_the_variance_of_a_mean_of_rois():
    spread = {"between": 2.0, "within": 3.0, "rois": 3}; icc = 4 / 13
    assert design_effect(3, icc) == pytest.approx(1 + 2 * icc) and subject_sd(spread, 3) ** 2 == pytest.approx(4 + 9 / 3)
    assert subject_sd(spread, 10 ** 6) == pytest.approx(2, rel=1e-5)


def test_a_spread_not_told_apart_promises_nothing_for_more_rois_and_charges_for_fewer():
    spread = {"between": 2.0, "within": np.nan, "rois": 4}
    assert [subject_sd(spread, m) for m in (1, 2, 4, 40)] == pytest.approx([4, 2 * 2 ** .5, 2, 2])


@settings(deadline=None, max_examples=25)
@given(st.floats(.02, 2), st.floats(0, 2), st.floats(.05, 3), st.integers(1, 12))
def test_more_rois_and_larger_differences_never_need_more_subjects(cv, within, difference, rois):
    spread = cv_spread(cv, within); need = lambda d, m: np.nan_to_num(power_plan(spread, f"{100 * d}%", m)["subjects"], nan=1e9)
    assert need(difference, rois + 1) <= need(difference, rois) and need(2 * difference, rois) <= need(difference, rois)
    curve = power_curve(spread, f"{100 * difference}%"); assert ((curve >= 0) & (curve <= 1 + 1e-12)).all().all()


def test_the_spread_of_a_study_leaves_the_groups_out():
    data = study(balanced(2, 12, 4, 1.0, .6, step=20.0, seed=4))
    spread = study_spread(data, BV)
    assert spread["between"] == pytest.approx(1, rel=.4) and spread["within"] == pytest.approx(.6, rel=.2) and spread["subjects"] == 24 and spread["df"] == 22
    assert not spread["log"] and spread["mean"] == pytest.approx(data[BV].mean()) and standard_difference(spread, "10%", 4) == pytest.approx(.1 * spread["mean"] / subject_sd(spread, 4))
    log = study_spread(study(balanced(seed=4), MAR), MAR)
    assert standard_difference(log, "20%", 2) == pytest.approx(np.log(1.2) / subject_sd(log, 2))


@pytest.mark.parametrize("rows, says", [
    (balanced(subjects=1, rois=4), "no group has two subjects"),
    (balanced().assign(value=4.0), "subjects of a group do not differ")])
def test_a_study_without_spread_cannot_plan(rows, says):
    with pytest.raises(UserError, match=says): study_spread(study(rows), BV)


@pytest.mark.parametrize("text", ["much", "0", "0%", "nan", "-100%", ""])
def test_a_difference_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="the difference is"): parse_difference(text)


def test_other_mistakes_of_a_plan_are_named(tmp_path):
    write_table(tmp_path / "tables/roi_parameters.csv", study(balanced(), MAR).assign(modality="fluorescence"))
    assert "To see MAR (um/d) differ by 20%" in plan_from_run(tmp_path, "MAR", "20%")
    for call, says in ((lambda: plan_from_run(tmp_path, "MAT", "20%"), "did you mean `MAR`"), (lambda: plan_from_run(tmp_path, "MAR", "-50"), "nothing would be left"), (lambda: plan_from_run(None, "MAR", "20%"), "either a run folder"),
                       (lambda: plan_from_run(None, "MAR", "20%", cv="x"), "coefficient of variation is x"), (lambda: plan_from_run(None, "MAR", "20%", cv="-5%"), "positive"), (lambda: plan_from_run(None, "MAR", "3", cv="20%"), "give a percentage"),
                       (lambda: plan_from_run(tmp_path, "MAR", "20%", power=1.0), "power is 1"), (lambda: plan_from_run(tmp_path / "none", "MAR", "20%"), "roi_parameters.csv: no such table")):
        with pytest.raises(UserError, match=says): call()
    assert named_parameter("MAR (um/d)", pd.DataFrame({MAR: [1.0]})) == MAR


# report

def test_the_section_says_why_groups_are_not_compared(tmp_path):
    write_table(tmp_path / "tables/subject_parameters.csv", pd.DataFrame({"subject": list("abc"), "group": "low", BV: [1.0, 2, 3]}))
    made = comparison_section(RunFolder(tmp_path))
    assert [b["kind"] for b in made["blocks"]] == ["missing"] and "one group (low)" in made["blocks"][0]["text"]


def test_the_section_says_which_step_is_missing(tmp_path):
    write_table(tmp_path / "tables/subject_parameters.csv", pd.DataFrame({"subject": list("abcd"), "group": list("xxyy"), BV: [1.0, 2, 3, 4]}))
    made = comparison_section(RunFolder(tmp_path))
    assert [b["kind"] for b in made["blocks"]] == ["missing", "missing"] and "the step `compare` writes it" in made["blocks"][0]["text"]
