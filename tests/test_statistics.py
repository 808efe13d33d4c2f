"Intervals that cover what they claim, group tables, comparison with truth."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from bonehisto.files import UserError
from bonehisto.statistics import bca_interval, compare_with_truth, pair_with_truth, parameter_columns, ratio_interval, summarise_groups


@pytest.mark.parametrize("n", [4, 6, 10])
def test_the_interval_of_a_ratio_covers_as_often_as_it_claims(n):
    rng, hits, draws = np.random.default_rng(n), 0, 1500
    for _ in range(draws):
        b = rng.uniform(0.4, 1.6, n)
        _, low, high, _ = ratio_interval(b * rng.gamma(1 / 0.35 ** 2, 0.35 ** 2, n), b)
        hits += low <= 1 <= high
    assert 0.91 < hits / draws < 0.98


def test_bca_with_t_covers_a_skewed_mean_where_the_percentile_bootstrap_does_not():
    rng, hits, plain, draws = np.random.default_rng(0), 0, 0, 400
    for k in range(draws):
        v = rng.gamma(4, 0.25, 6)
        _, low, high, _ = bca_interval(v, np.mean, draws=600, seed=k)
        a, b = np.quantile(v[rng.integers(0, 6, (600, 6))].mean(1), [0.025, 0.975])
        hits += low <= 1 <= high; plain += a <= 1 <= b
    assert hits / draws > 0.90 and hits / draws > plain / draws + 0.03


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=2, max_size=12), st.floats(0.1, 100))
def test_a_ratio_lies_in_its_interval_and_scales(pairs, k):
    a, b = np.array(pairs).T
    ratio, low, high, n = ratio_interval(a, b)
    assert ratio == pytest.approx(a.sum() / b.sum()) and 0 < low <= ratio * (1 + 1e-9) and ratio <= high * (1 + 1e-9) and n == len(pairs)
    assert ratio_interval(k * a, b)[1:3] == pytest.approx((k * low, k * high), rel=1e-6)


def test_too_few_or_empty_rois_give_no_bounds():
    assert np.isnan(ratio_interval([1.0], [2.0])[1:3]).all() and ratio_interval([1.0], [2.0])[0] == 0.5
    assert np.isnan(ratio_interval([], [])[0]) and np.isnan(ratio_interval([0, 0], [0, 0])[0])
    assert ratio_interval([0.0, 0.0, 0.0], [1, 1, 1])[0] == 0 and np.isnan(ratio_interval([0.0, 0.0, 0.0], [1, 1, 1])[1])
    assert ratio_interval([1, np.nan, 3], [2, 2, 6])[3] == 2
    assert np.isnan(bca_interval([1.0, 2.0])[1]) and bca_interval([3.0, 3.0, 3.0])[:3] == (3, 3, 3)
    with pytest.raises(UserError): ratio_interval([1, 2], [1])


def test_the_same_seed_gives_the_same_interval():
    v = np.random.default_rng(1).normal(size=9)
    assert bca_interval(v, np.mean, seed=4) == bca_interval(v, np.mean, seed=4) != bca_interval(v, np.mean, seed=5)


def study():
    return pd.DataFrame({"subject": list("abcdefg"), "group": ["low"] * 3 + ["high"] * 3 + [None], "interval (d)": 15.0, "note": "x",
                         "MAR (um/d)": [0.4, 0.5, np.nan, 0.8, 0.9, 1.0, 0.6], "OS/BS (%)": [8.0, 9, 10, 30, 35, 40, 20]})


def test_groups_are_summarised_over_subjects_with_those_undefined_counted():
    table = summarise_groups(study()).set_index(["group", "parameter"])
    assert table.loc[("low", "MAR (um/d)"), "n"] == 2 and table.loc[("low", "MAR (um/d)"), "undefined"] == 1
    row = table.loc[("high", "OS/BS (%)")]
    left = np.log(np.array([37.5, 35, 32.5]) / np.array([62.5, 65, 67.5]))  # odds of the mean without each subject
    half = 4.3027 * np.sqrt(2 / 3 * ((left - left.mean()) ** 2).sum())
    assert row["mean"] == 35 and row["low"] == pytest.approx(100 / (1 + 65 / 35 * np.exp(half)), rel=1e-4) and row["high"] == pytest.approx(100 / (1 + 65 / 35 * np.exp(-half)), rel=1e-4) and row["rough"]
    assert row["note"] == "" and table.loc[("no group", "OS/BS (%)"), "note"] == "one subject"
    assert np.isnan(table.loc[("no group", "MAR (um/d)"), "low"]) and table.loc[("no group", "OS/BS (%)"), "n"] == 1
    assert parameter_columns(study()) == ["MAR (um/d)", "OS/BS (%)"]
    with pytest.raises(UserError, match="arm"): summarise_groups(study(), group="arm")


def test_a_group_mean_has_no_bound_below_zero_and_no_interval_that_one_subject_carries():
    table = summarise_groups(pd.DataFrame({"group": "adynamic", "MS/BS (%)": [0.0, 0.0, 0.0, 2.1], "MAR (um/d)": [0.2, 0.9, np.nan, np.nan], "dLS/BS (%)": 0.0, "Mlt (d)": np.nan})).set_index("parameter")
    assert table.loc["MAR (um/d)", "low"] > 0 and np.isnan(table.loc["MS/BS (%)", "low"]) and table.loc["MS/BS (%)", "mean"] == pytest.approx(0.525)
    assert table["note"].tolist() == ["only one subject differs from 0 or 100 %", "", "0 in every subject", "undefined in every subject"]


def tables():
    truth = pd.DataFrame({"subject": list("abcde"), "BV/TV (%)": [20.0, 22, 24, 26, 28], "MS/BS (%)": [0.0, 0.4, 8, 10, 12], "MAR (um/d)": [np.nan, 0.5, 0.6, 0.7, 0.8]})
    measured = truth.assign(**{"BV/TV (%)": truth["BV/TV (%)"] * [1.001, 0.998, 1.004, 1.0, 1.2], "MS/BS (%)": [0.2, 0.1, 8.8, 10.4, 12.1], "MAR (um/d)": [np.nan, 0.55, np.nan, 0.7, 0.8]})
    return measured.sample(frac=1, random_state=0), truth


def test_within_means_the_median_over_subjects_with_the_worst_beside_it():
    row = compare_with_truth(*tables()).set_index("parameter").loc["BV/TV (%)"]
    assert row["median error (%)"] == pytest.approx(0.2) and row["worst error (%)"] == pytest.approx(20) and row["within"] and row["n"] == 5


def test_near_nothing_an_error_below_the_floor_counts_as_none():
    row = compare_with_truth(*tables()).set_index("parameter").loc["MS/BS (%)"]
    assert row["median error (%)"] == 0 and row["worst error (%)"] == pytest.approx(10)
    strict = compare_with_truth(*tables(), floors={}).set_index("parameter").loc["MS/BS (%)"]
    assert strict["median error (%)"] == pytest.approx(10) and np.isinf(strict["worst error (%)"])


def test_a_value_missing_on_one_side_is_counted_and_not_compared():
    row = compare_with_truth(*tables()).set_index("parameter").loc["MAR (um/d)"]
    assert row["n"] == 3 and row["undefined in one"] == 1


def test_pairs_are_joined_by_name_whatever_the_order():
    pairs = pair_with_truth(*tables(), parameters=["BV/TV (%)"]).set_index("subject")
    assert pairs.loc["e", "measured"] == pytest.approx(33.6) and pairs.loc["e", "true"] == 28 and pairs.loc["e", "error (%)"] == pytest.approx(20)


def test_tables_that_do_not_fit_are_named():
    measured, truth = tables()
    with pytest.raises(UserError, match="twice"): pair_with_truth(pd.concat([measured, measured]), truth)
    with pytest.raises(UserError, match="roi"): pair_with_truth(measured, truth, on="roi")
    with pytest.raises(UserError, match="share no"): pair_with_truth(measured.assign(subject=[*"vwxyz"]), truth)
