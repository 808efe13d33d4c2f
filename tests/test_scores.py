"Scores against independent counts, and what must not change them."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage, stats
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from bonehisto.intervals import mean_interval
from bonehisto.scores import SHARES, confusion, count_roi, detection_counts, dice, f1, iou, object_counts, pieces, present, score_table, subject_scores, tissue_mean
from bonehisto.sharpness import border_counts, border_f1, midline_widths

maps = arrays(np.uint8, (9, 11), elements=st.integers(0, 3))


@settings(deadline=None, max_examples=60)
@given(maps, maps)
def test_overlap_equals_scikit_learn(truth, guess):
    counts = confusion(truth, guess, 4)
    assert np.array_equal(counts, confusion_matrix(truth.ravel(), guess.ravel(), labels=range(4)))
    for c in range(4):
        t, g = (truth == c).ravel(), (guess == c).ravel()
        if t.any() or g.any():
            assert dice(counts)[c] == pytest.approx(f1_score(t, g)) and iou(counts)[c] == pytest.approx(jaccard_score(t, g))
        else: assert np.isnan(dice(counts)[c]) and np.isnan(iou(counts)[c])


@settings(deadline=None, max_examples=30)
@given(maps, maps, st.integers(0, 10))
def test_pooling_pixels_is_adding_counts(truth, guess, cut):
    assert np.array_equal(confusion(truth, guess, 4), confusion(truth[:, :cut], guess[:, :cut], 4) + confusion(truth[:, cut:], guess[:, cut:], 4))


def test_pixels_that_do_not_count_may_hold_anything():
    truth, valid = np.full((4, 4), 255, np.uint8), np.zeros((4, 4), bool); truth[:2] = 1; valid[:2] = True
    assert confusion(truth, np.ones_like(truth), 2, valid).tolist() == [[0, 0], [0, 8]]
    with pytest.raises(ValueError): confusion(truth, np.ones_like(truth), 2)


def test_a_class_absent_from_both_is_left_out_of_the_mean_and_one_absent_from_one_counts_zero():
    truth = np.array([0, 0, 1, 1]); assert tissue_mean(dice(confusion(truth, truth, 3))) == 1
    assert tissue_mean(dice(confusion(truth, np.array([0, 2, 1, 1]), 3))) == .5


@settings(deadline=None, max_examples=40)
@given(arrays(bool, (14, 14)), arrays(bool, (14, 14)))
def test_objects_are_matched_as_by_brute_force(a, b):
    ta, tb = pieces(a, 1), pieces(b, 1)
    pairs = sum(((ta == i) & (tb == j)).sum() / ((ta == i) | (tb == j)).sum() > .5 for i in range(1, ta.max() + 1) for j in range(1, tb.max() + 1))
    found, alarms, missed = object_counts(ta, tb, .5 + 1e-9)
    assert found == pairs and found + missed == ta.max() and found + alarms == tb.max()


def test_pieces_agree_with_a_labelling_and_small_ones_go():
    rng = np.random.default_rng(3); mask = ndimage.gaussian_filter(rng.normal(size=(80, 80)), 2) > .05
    ids, n = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(ids.ravel())[1:]
    assert pieces(mask, 1).max() == n and pieces(mask, 30).max() == (sizes >= 30).sum()


def test_touching_instances_stay_apart_where_ids_are_given():
    ids = np.zeros((10, 20), np.uint16); ids[2:8, 2:8] = 700; ids[2:8, 8:14] = 9
    assert pieces(ids).max() == 2 and pieces(ids > 0).max() == 1
    assert sorted(np.unique(pieces(np.full((4, 4), 7), 1))) == [1]


def test_presence_has_one_threshold_for_truth_and_prediction():
    tile, fewer = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.uint8); tile[0, :10] = 1; fewer[0, :9] = 1
    assert present(tile, 2)[1] and not present(fewer, 2)[1]
    assert detection_counts([tile, fewer], [fewer, tile], 2)[:, 1].tolist() == [0, 1, 1]
    assert present(tile, 2, .0011)[1] == False and present(tile, 2, valid=np.arange(100)[:, None] * np.ones(100) < 1)[1]


def test_f1_of_counts_equals_scikit_learn():
    rng = np.random.default_rng(0); t, g = rng.random(200) < .3, rng.random(200) < .4
    assert f1((t & g).sum(), (~t & g).sum(), (t & ~g).sum()) == pytest.approx(f1_score(t, g))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_intervals_equal_scipys_t(values):
    mean, low, high, n = mean_interval(values)
    if np.std(values) > 1e-6:
        expected = stats.t.interval(.95, n - 1, np.mean(values), stats.sem(values))
        assert (low, high) == pytest.approx(expected, abs=1e-9)


def test_every_subject_weighs_the_same_however_many_rois_it_has():
    truth = np.zeros((64, 64), np.uint8); truth[10:30] = 1
    tiles = pd.DataFrame({"x": [0], "y": [0]})
    good, bad = count_roi(truth, truth, 2, tiles, 64), count_roi(truth, truth * 0, 2, tiles, 64)
    table = score_table({"many": subject_scores([good] * 9, ["background", "bone"]), "one": subject_scores([bad], ["background", "bone"])})
    value = table.set_index(["class", "score"])["mean"]
    assert value["bone", "dice"] == .5 and value["bone", "detection_f1"] == .5 and value["bone", "object_f1"] == .5
    shares = table[table["score"].isin(SHARES)]
    assert (shares["low"] >= 0).all() and (shares["high"] <= 1).all()


def test_a_perfect_map_has_every_score_one_and_no_truth_has_none():
    truth = np.zeros((70, 90), np.uint8); truth[10:30, 5:80] = 1; truth[30:40, 5:80] = 2
    tiles = pd.DataFrame({"x": [0, 45], "y": [0, 0]})
    scores = subject_scores([count_roi(truth, truth, 4, tiles, 45)], list("abcd")).set_index("class")
    assert (scores.loc[["b", "c", "tissue mean"], list(SHARES)] == 1).all(axis=None) and scores.loc["d"].isna().all() and np.isnan(scores.loc["a", "object_f1"])
    assert scores.loc[["b", "c"], "width_px"].tolist() == [20, 10] and (scores.loc[["b", "c"], "width_error_px"] == 0).all()


@pytest.mark.parametrize("wider", [-2, -1, 0, 1, 2])
def test_a_seam_too_wide_shows_in_its_width_and_hardly_in_dice(wider):
    truth, guess = np.zeros((2, 200, 300), np.uint8)
    truth[60:140, 20:280] = 1; truth[140:148, 20:280] = 2
    guess[:] = truth; guess[148:150, 20:280] = 2 * (wider == 2); guess[148:149, 20:280] = 2 * (wider >= 1)
    if wider < 0: guess[148 + wider:148, 20:280] = 0
    scores = subject_scores([count_roi(truth, guess, 3, pd.DataFrame({"x": [0], "y": [0]}))], ["background", "bone", "osteoid"]).set_index("class")
    assert scores.loc["osteoid", "width_px"] == 8 and scores.loc["osteoid", "width_error_px"] == wider and scores.loc["osteoid", "dice"] > .85
    assert np.isnan(scores.loc[["background", "tissue mean"], "width_error_px"]).all() and scores.loc["osteoid", "boundary_f1"] == 1


def test_borders_are_found_within_two_pixels_and_no_further():
    yy, xx = np.mgrid[:160, :160]; disc = lambda r: (np.hypot(yy - 80, xx - 80) <= r).astype(np.uint8)
    near, far = (border_f1(border_counts(disc(50), disc(r), 2))[1] for r in (51, 54))
    assert near > .98 and far < .05
    counts = border_counts(disc(50), disc(50) * 0, 2)
    assert border_f1(counts)[1] == 0 and np.isnan(border_f1(border_counts(disc(50) * 0, disc(50) * 0, 2))[1])


@pytest.mark.parametrize("wide", [3, 4, 5, 8, 13, 20])
def test_widths_are_those_drawn_whatever_the_direction(wide):
    yy, xx = np.mgrid[:240, :240]
    for angle in np.linspace(0, np.pi, 7):
        line = abs((yy - 119.7) * np.cos(angle) + (xx - 120.1) * np.sin(angle)) <= wide / 2
        assert np.median(midline_widths(line)) == pytest.approx(wide, abs=.8)
    ring = abs(np.hypot(yy - 120, xx - 120) - 80) <= wide / 2
    assert np.median(midline_widths(ring)) == pytest.approx(wide, abs=.8)
    assert np.median(midline_widths(np.pad(np.ones((wide, 50), bool), ((30, 30), (0, 0))))) == wide  # cut by the frame at both ends
