"Where labels and cells lie, against drawn sections whose distances are written down and against brute force."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from test_cells import COLS, ROWS, arc, away, disc, marks, polar, surface_of

from bonehisto.association import TURNOVER, associate, group_effect, rank_correlation, wide_places
from bonehisto.histomorphometry import measure_in_full
from bonehisto.labels import trace_labels
from bonehisto.neighbourhood import (LABELLED, against_chance, chance_interval, label_beneath, place_cells, place_labels, place_table, pool_places, random_middles,
                                     to_nearest, to_osteoid)

PX = 0.5


def section(seam, labels, width=14):
    "A disc with osteoid where `seam(angle)` holds and label lines 4 px wide, `(radius, where)` each."
    classes = disc(seam, width=width); radius, angle = polar()
    for r, where in labels: classes[(np.abs(radius - r) < 2) & where(angle)] = 3
    return classes


def values(classes, **kwargs): return {k: q["value"] for k, q in measure_in_full(classes, "fluorescence", PX, interval_days=15, **kwargs).places.items()}


@settings(deadline=None, max_examples=10)
@given(st.floats(0, 6.28))
def test_a_ring_of_seams_and_labels_gives_its_shares_and_depths_at_any_turn(turn):
    "Seam over 2 rad; label beneath 1.2 rad of it at 10 um; a label of 0.8 rad on the far side at 8 um without a seam."
    v = values(section(away(turn, 1.0), [(90, away(turn, 0.6)), (94, away(turn + np.pi, 0.4))]))
    assert v["labelled OS/OS (%)"] == pytest.approx(60, abs=3) and v["bare LS/LS (%)"] == pytest.approx(40, abs=2) and v["seams with a label (%)"] == 100
    assert v["O.Th labelled (um)"] == pytest.approx(7, abs=0.25) and v["O.Th unlabelled (um)"] == pytest.approx(7, abs=0.25)
    ends = [1.2 * 90, 0.8 * 94]
    assert v["label depth (um)"] == pytest.approx(np.average([10, 8], weights=ends), abs=0.2)
    assert v["label to label (um)"] == pytest.approx((90 + 94) * PX, abs=3)  # across the disc, middle to middle
    bare = 94 * np.exp(1j * np.linspace(np.pi - 0.4, np.pi + 0.4, 99)); face = np.array([110, 96])[:, None] * np.exp(1j * np.linspace(-1, 1, 99))
    far = np.abs(bare[:, None] - face.ravel()[None]).min(1).mean() * PX  # 3 um from the one label to the seam over it, this from the other
    assert v["label to osteoid (um)"] == pytest.approx(np.average([3, far], weights=ends), rel=0.03)


def test_of_two_seams_the_one_over_a_label_is_known_and_its_width_kept_apart():
    radius, angle = polar()
    classes = section(away(0, 0.6), [(86, away(0, 0.5))], width=20)
    classes[(radius <= 110) & (radius > 100) & away(np.pi, 0.6)(angle)] = 2
    v = values(classes)
    assert v["seams with a label (%)"] == 50 and v["labelled OS/OS (%)"] == pytest.approx(100 * 1.0 / 2.4, abs=2)
    assert v["O.Th labelled (um)"] == pytest.approx(10, abs=0.3) and v["O.Th unlabelled (um)"] == pytest.approx((0.2 * 10 + 1.2 * 5) / 1.4, abs=0.3)


@pytest.mark.parametrize("angle", np.radians([0, 25, 45, 90]))
def test_a_label_belongs_to_the_side_of_a_trabecula_that_it_is_near(angle):
    "A band 30 um thick with a label 8 um below one side: the other side, 22 um away and within reach, has none."
    across = (COLS - 180) * np.sin(angle) + (ROWS - 180) * np.cos(angle)
    classes = (np.abs(across) < 30).astype(np.uint8); classes[np.abs(across - 14) < 2] = 3
    surface = surface_of(classes); out = np.array([np.cos(angle), np.sin(angle)])
    side = ((surface.middle - 180) * out).sum(1) > 0
    flags = label_beneath(surface, trace_labels(classes, PX))
    assert surface.length_um[flags & side].sum() == pytest.approx(surface.length_um[side].sum(), rel=0.03) and not flags[~side].any()


def test_a_label_deeper_than_the_reach_lies_under_no_seam():
    classes = section(away(0, 1.0), [(70, away(0, 0.8))])  # 20 um deep
    assert label_beneath(surface_of(classes), trace_labels(classes, PX), reach_um=25).any() and not label_beneath(surface_of(classes), trace_labels(classes, PX), reach_um=18).any()
    assert values(classes, label_reach_um=18.0)["labelled OS/OS (%)"] == 0


def test_of_a_double_label_the_depth_is_that_of_the_line_nearer_the_marrow():
    m = measure_in_full(section(None, [(94, away(1, 0.7)), (78, away(1, 0.7))]), "fluorescence", PX, interval_days=15)
    assert m.stretches["kind"].tolist() == ["double"] and m.stretches["surface_um"][0] == pytest.approx(8, abs=0.2) and m.stretches["surface_sd_um"][0] < 0.3
    assert m.places["label depth (um)"]["value"] == pytest.approx(8, abs=0.2) and m.places["label depth (um)"]["basis"] == pytest.approx(1.4 * 94 * PX / 1e3, rel=0.05)


def test_depth_of_a_slanting_label_has_the_mean_and_spread_of_the_slant():
    depth = 20 + (COLS - 180) / 12  # px below a flat surface at row 100, from 5 to 35
    classes = (ROWS >= 100).astype(np.uint8); classes[(np.abs(ROWS - 99.5 - depth) < 2) & (np.abs(COLS - 180) < 150)] = 3
    q = measure_in_full(classes, "fluorescence", PX, interval_days=15).places["label depth (um)"]
    assert q["value"] == pytest.approx(10, abs=0.3) and q["sd"] == pytest.approx(25 / np.sqrt(12) * PX, rel=0.05)


def test_where_the_frame_is_nearer_than_the_surface_a_depth_is_not_known():
    classes = (ROWS >= 100).astype(np.uint8); classes[np.abs(ROWS - 340) < 2] = 3  # 120 um deep, 10 um above the frame
    m = measure_in_full(classes, "fluorescence", PX, interval_days=15)
    assert np.isnan(m.stretches["surface_um"][0]) and m.stretches["edge_um"][0] < 10
    q = m.places["label depth (um)"]; assert np.isnan(q["value"]) and q["basis"] == 0 and q["reason"]


def test_the_section_factor_goes_into_thickness_and_into_no_distance():
    classes = section(away(0, 1.0), [(90, away(0, 0.6))])
    plain, iliac = values(classes), values(classes, section="iliac")
    assert iliac["O.Th labelled (um)"] * 1.199 == pytest.approx(plain["O.Th labelled (um)"]) and iliac["label depth (um)"] == plain["label depth (um)"]


def test_labels_given_and_none_seen_is_zero_labels_never_given_undefined_brightfield_silent():
    seam = disc(away(0, 1.0))
    seen, never, bright = (measure_in_full(seam, domain, PX, interval_days=days).places for domain, days in (("fluorescence", 15), ("fluorescence", None), ("brightfield", None)))
    assert seen["labelled OS/OS (%)"]["value"] == 0 and seen["label depth (um)"]["reason"] == "no label was seen" and seen["O.Th labelled (um)"]["reason"] == "no labelled osteoid"
    assert set(never) == set(LABELLED) and all(np.isnan(q["value"]) and "no label was seen" in q["reason"] for q in never.values()) and bright == {}


def test_every_undefined_quantity_has_its_reason_and_every_defined_one_a_basis():
    for classes in (disc(), disc(away(0, 1)), section(None, [(90, away(0, 0.6))]), np.zeros((80, 80), np.uint8), section(away(0, 1), [(90, away(0, 0.6))])):
        places = measure_in_full(classes, "fluorescence", PX, interval_days=15, annotations=marks(points={"osteoblast": np.array([[20.0, 20]]), "osteocyte": np.array([[20.0, 30]])})).places
        for name, q in places.items(): assert (q["basis"] > 0 and q["reason"] == "") if np.isfinite(q["value"]) else (q["basis"] == 0 and q["reason"]), (name, q)


# cells

@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10 ** 6))
def test_distances_of_cells_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed); classes = section(away(rng.uniform(0, 6), 0.8), [(90, away(rng.uniform(0, 6), 0.6))])
    surface, stretches = surface_of(classes), trace_labels(classes, PX)
    at = {"osteoblast": rng.uniform(20, 340, (12, 2)), "osteoclast": rng.uniform(20, 340, (5, 2))}
    _, table = place_cells(surface, marks(points=at), stretches)
    points = table[["row_px", "col_px"]].to_numpy(); ob, oc = (points[table["cell"] == k] for k in at)  # each cell once
    expected, seen = np.abs(np.hypot(*(points - 180).T) - 110) * PX, table["surface_um"].notna()
    np.testing.assert_allclose(table["surface_um"][seen], expected[seen], atol=0.35)
    assert (expected[~seen] > table["edge_um"][~seen] - 0.35).all()
    lines = np.concatenate([s for x in stretches for s in (x.near, x.far) if s is not None])
    gap = lambda a, b: np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)) * PX
    np.testing.assert_allclose(table["label_um"], gap(points, lines).min(1))
    own = gap(ob, ob); np.fill_diagonal(own, np.inf); here = table["cell"] == "osteoblast"
    np.testing.assert_allclose(table["osteoblast_um"][here], own.min(1)); np.testing.assert_allclose(table["osteoclast_um"][here], gap(ob, oc).min(1))


def test_distance_to_osteoid_is_that_of_its_nearest_face_and_nothing_inside():
    surface = surface_of(disc(lambda a: np.abs(a) < 4))  # a seam all round, 7 um wide
    points = np.array([[180.0, 180 + r] for r in (0, 60, 95.5, 97, 105, 110.5, 130)])
    np.testing.assert_allclose(to_osteoid(surface, points), [48, 18, 0.25, 0, 0, 0.25, 10], atol=0.3)
    assert np.isinf(to_osteoid(surface_of(disc()), points)).all()


def test_the_share_on_osteoid_counts_cells_on_the_surface_only():
    at = np.concatenate([arc(-0.5, 0.5, 120, 3), arc(2, 3, 120, 5), arc(-0.5, 0.5, 170, 4)])
    q, _ = place_cells(surface_of(disc(away(0, 0.8))), marks(points={"osteoblast": at}))
    assert q["osteoblasts on osteoid (%)"]["value"] == pytest.approx(100 * 3 / 8) and q["osteoblasts on osteoid (%)"]["basis"] == 8 and not any("label" in k for k in q)


def test_one_cell_has_no_like_and_no_cell_no_row():
    q, table = place_cells(surface_of(disc()), marks(points={"osteoclast": np.array([[180.0, 300]]), "osteoblast": np.empty((0, 2))}))
    assert q["osteoclast to osteoclast (um)"]["reason"] == "only one osteoclast" and len(table) == 1 and not any(k.startswith("osteoblast") for k in q)
    assert q["osteoclast to osteoid (um)"]["reason"] == "no osteoid surface" and to_nearest(np.empty((0, 2)), np.zeros((3, 2)), 1).shape == (0,)
    assert not len(place_cells(surface_of(disc()), marks())[1])


def test_osteocytes_are_compared_with_no_surface_and_no_cell_on_it():
    q, table = place_cells(surface_of(disc()), marks(points={"osteocyte": np.array([[180.0, 180], [180, 200]]), "osteoblast": arc(0, 5, 120, 4)}))
    assert {k for k in q if k.startswith("osteocyte")} == {"osteocyte to surface (um)", "osteocyte to osteoid (um)", "osteocyte to osteocyte (um)"}
    assert table.loc[table["cell"] == "osteocyte", "osteocyte_um"].tolist() == [10, 10]


# chance

@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 30), min_size=1, max_size=12), st.integers(0, 10 ** 6))
def test_arcs_laid_at_random_never_overlap_and_lie_anywhere(lengths, seed):
    lengths = np.array(lengths); total = lengths.sum() / 0.8 + 1
    middles = random_middles(lengths, total, 20, np.random.default_rng(seed))
    assert middles.shape == (20, len(lengths)) and ((0 <= middles) & (middles < total)).all()
    if len(set(lengths)) == 1 and len(lengths) > 1:  # of one length, middles keep at least that apart, round the circle too
        m = np.sort(middles, 1); gaps = np.diff(np.c_[m, m[:, :1] + total], axis=1)
        assert gaps.min() > lengths[0] - 1e-6


def test_the_middles_of_a_long_and_a_short_arc_keep_half_of_both_apart():
    middles = random_middles(np.array([30.0, 2.0]), 50.0, 3000, np.random.default_rng(0)); apart = np.abs(middles[:, 0] - middles[:, 1])
    apart = np.minimum(apart, 50 - apart)
    assert 16 <= apart.min() < 16.1 and 24.9 < apart.max() <= 25


def test_points_laid_at_random_are_uniform_round_the_circle():
    middles = random_middles(np.zeros(5), 7.0, 2000, np.random.default_rng(0))
    assert stats.kstest(middles[:, 2] / 7, "uniform").pvalue > 1e-3 and stats.kstest(np.ravel(middles) / 7, "uniform").pvalue > 1e-3


def test_the_interval_of_a_random_picture_holds_one_nineteen_times_in_twenty():
    surface = surface_of(disc()); rng = np.random.default_rng(3); held = 0
    chance = rng.choice(len(surface.length_um), (200, 10), p=surface.length_um / surface.length_um.sum())
    for foot in chance:
        q = against_chance(surface, foot, np.zeros(10), draws=99)
        low, high = chance_interval(q["value"], q["sd"]); held += low <= 1 <= (high if np.isfinite(high) else np.inf)
    assert 180 <= held <= 198


def test_expected_neighbour_distance_on_a_circle_is_the_known_one():
    "n points at random on a circle of circumference L: mean arc to the nearest neighbour is L / 2n, when n is large enough for arcs to be chords."
    surface = surface_of(disc()); n = 60
    q = against_chance(surface, np.arange(n) * 10, np.zeros(n), draws=300)
    assert q["basis"] / n == pytest.approx(surface.length_um.sum() / (2 * n), rel=0.03)


def test_labels_that_fill_the_surface_and_too_few_have_no_comparison_and_seeds_repeat():
    surface = surface_of(disc()); total = surface.length_um.sum()
    assert "fill the surface" in against_chance(surface, np.array([0, 100, 200]), np.full(3, total / 3.1))["reason"]
    assert "fewer than 3" in against_chance(surface, np.array([0, 100]), np.zeros(2))["reason"]
    one, same, other = (against_chance(surface, np.array([0, 100, 300]), np.zeros(3), seed=s)["value"] for s in (0, 0, 1))
    assert one == same != other


# pooling and association

def rows(subject, *quantities, group="a", name="label depth (um)"): return pd.concat([place_table({name: q}).assign(subject=subject, group=group, split="") for q in quantities], ignore_index=True)
def q(value, basis, sd=0.0): return {"value": value, "sd": sd, "basis": basis, "of": "mm of label", "reason": "" if basis else "no label was seen"}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(1, 30)), min_size=1, max_size=6), st.integers(0, 10 ** 6))
def test_pooled_mean_and_spread_are_those_of_all_the_pieces_together(rois, seed):
    rng = np.random.default_rng(seed); pieces = [rng.normal(m, 2, n) for n, m in rois]
    pooled = pool_places(rows("s", *[q(p.mean(), float(len(p)), p.std()) for p in pieces], q(np.nan, 0.0, np.nan))).iloc[0]
    everything = np.concatenate(pieces)
    assert pooled["value"] == pytest.approx(everything.mean()) and pooled["sd"] == pytest.approx(everything.std(), abs=1e-9) and pooled["basis"] == len(everything) and pooled["ROIs"] == len(rois)


def test_comparisons_with_chance_are_pooled_by_observed_over_expected():
    pooled = pool_places(rows("s", q(0.5, 100.0, 0.2), q(1.0, 300.0, 0.1), name="label to label / chance")).iloc[0]
    assert pooled["value"] == pytest.approx((50 + 300) / 400) and pooled["sd"] == pytest.approx(np.hypot(20, 30) / 400)
    assert (pooled["low"], pooled["high"]) == pytest.approx(chance_interval(pooled["value"], pooled["sd"])) and pooled["low"] < pooled["value"] < pooled["high"]


def test_a_subject_without_any_value_keeps_its_reason():
    pooled = pool_places(rows("s", q(np.nan, 0.0, np.nan), q(np.nan, 0.0, np.nan))).iloc[0]
    assert np.isnan(pooled["value"]) and pooled["ROIs"] == 0 and pooled["reason"] == "no label was seen"


def test_rank_correlation_is_scipys_and_its_interval_the_published_one():
    x, y = np.random.default_rng(5).normal(size=(2, 15)); y = y + x; y[3] = np.nan
    rho, low, high, n = rank_correlation(x, y); known = np.isfinite(y)
    assert rho == pytest.approx(stats.spearmanr(x[known], y[known])[0]) and n == 14
    se = np.sqrt((1 + rho ** 2 / 2) / 11)  # Bonett and Wright 2000
    assert (np.arctanh(low), np.arctanh(high)) == pytest.approx((np.arctanh(rho) - 1.959964 * se, np.arctanh(rho) + 1.959964 * se), abs=1e-5)


@pytest.mark.parametrize("x, y", [([1, 2], [1, 2]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([np.nan] * 5, range(5)), ([], [])])
def test_too_few_or_constant_values_have_no_correlation(x, y): assert np.isnan(rank_correlation(x, y)[:3]).all()


def test_three_subjects_and_a_perfect_order_have_no_interval():
    assert rank_correlation([1, 2, 3], [1, 2, 4])[0] == pytest.approx(1) and np.isnan(rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])[1:3]).all()


def test_hedges_g_of_a_worked_example():
    "Borenstein et al. 2009, chapter 4: means 103 and 100, sd 5.5 and 4.5, 50 a group: g 0.5924, variance 0.0411."
    grid = stats.norm.ppf((np.arange(50) + 0.5) / 50); grid = (grid - grid.mean()) / grid.std(ddof=1)
    g, low, high, n = group_effect(103 + 5.5 * grid, 100 + 4.5 * grid)
    assert g == pytest.approx(0.5924, abs=2e-4) and n == 100 and (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 98) * np.sqrt(0.0411), rel=0.015)  # two usual forms of the variance differ by 1 %


def test_groups_are_compared_in_the_order_of_their_turnover_and_few_subjects_said():
    people = [(g, k) for g in ("high", "low", "middle") for k in range(7)]
    rate = {"low": 10, "middle": 30, "high": 80}
    subjects = pd.DataFrame([{"subject": f"{g}{k}", TURNOVER: rate[g] + k} for g, k in people])
    places = pd.concat([pool_places(rows(f"{g}{k}", q(5 + rate[g] / 10 + 0.1 * (k % 3), 1.0), group=g)) for g, k in people], ignore_index=True)
    table = associate(places, subjects)
    assert table["comparison"].tolist() == ["with BFR/BS", "middle - low", "high - low", "high - middle"] and (table["estimate"] > 0).all() and not table["rough"].any()
    few = associate(places[places["subject"].str[-1].astype(int) < 3], subjects)
    assert few["rough"].all()


def test_a_study_without_a_rate_or_with_one_group_is_still_answered():
    places = pd.concat([pool_places(rows(f"S{k}", q(float(k), 1.0), group="all")) for k in range(5)], ignore_index=True)
    table = associate(places, places[["subject"]])
    assert len(table) == 1 and np.isnan(table["estimate"][0]) and table["n"][0] == 0
    assert wide_places(places)["label depth (um)"].tolist() == [0, 1, 2, 3, 4]
