"Drawn maps have the head's probabilities, err in patches rather than pixels, and their spread becomes an interval."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonehisto.boundaries import perimeter_um
from bonehisto.map_draws import RANGES_UM, area_spread, choose_range, draw_map
from bonehisto.map_uncertainty import draw_coverage, draw_intervals, fit_ranges, measure_draws
from bonehisto.images import write_mask, write_probabilities
from bonehisto.entries import DEFAULT_CLASSES


def soft_disc(size=160, radius=45, blur=2.5):
    yy, xx = np.mgrid[:size, :size]
    share = 1 / (1 + np.exp((np.hypot(yy - size / 2, xx - size / 2) - radius) / blur))
    return np.rint(255 * np.stack([1 - share, share, 0 * share], -1)).astype(np.uint8)


def test_every_pixel_keeps_its_probabilities_whatever_the_range():
    p, rng = np.tile(np.array([26, 77, 152], np.uint8), (60, 60, 1)), np.random.default_rng(0)
    for far in (0, 3.):
        share = np.stack([(draw_map(p, far, rng)[..., None] == np.arange(3)).mean((0, 1)) for _ in range(60)]).mean(0)
        assert share == pytest.approx(p[0, 0] / 255, abs=.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 30))
def test_what_is_impossible_is_never_drawn(seed, far):
    rng = np.random.default_rng(seed); p = rng.integers(0, 256, (20, 25, 3)).astype(np.uint8) * (rng.random((20, 25, 3)) < .6)
    p[p.max(-1) == 0, 0] = 255
    drawn = draw_map(p, far, rng)
    assert (np.take_along_axis(p, drawn[..., None].astype(int), -1) > 0).all()


def test_dice_pixel_by_pixel_fray_the_border_and_a_smooth_field_does_not():
    p, rng = soft_disc(), np.random.default_rng(1)
    true = perimeter_um(p.argmax(-1) > 0, 1.)
    longer = [np.mean([perimeter_um(draw_map(p, far, rng) > 0, 1.) for _ in range(12)]) / true for far in (0, 16.)]
    assert longer[0] > 1.25 and longer[1] < 1.06
    spread = [np.std([(draw_map(p, far, rng) > 0).sum() for _ in range(40)]) for far in (0, 16.)]
    assert spread[1] > 4 * spread[0]


def test_the_range_of_the_errors_is_found():
    p, rng, ranges = soft_disc(blur=5), np.random.default_rng(2), (1., 4., 16., 64.)
    for true, near in ((1., (1.,)), (8., (4., 16.))):
        chosen, ratio = choose_range([area_spread(p, draw_map(p, true, rng), 1., ranges, draws=5, seed=k) for k in range(14)], ranges)
        assert chosen in near and len(ratio) == len(ranges)
    assert np.isnan(choose_range([])[0])


@pytest.fixture
def jobs(tmp_path):
    "Four subjects of two ROIs; the masks are drawn maps."
    rng, rows, p = np.random.default_rng(3), [], soft_disc()
    for k in range(8):
        write_probabilities(tmp_path / f"{k}.tif", p); write_mask(tmp_path / f"{k}.png", draw_map(p, 8., rng))
        rows.append({"roi": f"R{k}", "subject": f"S{k // 2}", "group": "", "split": "val", "modality": "brightfield", "probabilities": str(tmp_path / f"{k}.tif"), "mask": str(tmp_path / f"{k}.png"), "polygon": "", "pixel_size_um": 1., "interval_days": np.nan})
    return pd.DataFrame(rows)


def test_drawn_rois_are_measured_pooled_and_the_same_seed_gives_the_same(jobs):
    ranges, table = fit_ranges(jobs, DEFAULT_CLASSES, draws=3, workers=1)
    assert table["chosen"].sum() == 1 and (table["ROIs"] == 8).all() and ranges["brightfield"] in RANGES_UM
    rows = measure_draws(jobs, {"brightfield": 8.}, "none", draws=4, workers=1)
    assert len(rows) == 32 and rows.groupby("draw")["roi"].nunique().eq(8).all() and rows["B.Ar (mm2)"].nunique() > 25
    assert measure_draws(jobs[:2], {"brightfield": 8.}, "none", draws=4, workers=1).equals(rows[:8].reset_index(drop=True))


def test_an_roi_that_cannot_be_read_is_said_and_the_rest_goes_on(jobs, tmp_path):
    (tmp_path / "0.tif").write_bytes(b"no picture")
    rows = measure_draws(jobs[:2], {"brightfield": 8.}, "none", draws=2, workers=1)
    assert rows["not measured"].str.contains("not readable class probabilities").tolist() == [True, True, False, False]


def subject_rows(values): return pd.DataFrame([{"roi": "R", "subject": "S", "group": "", "split": "test", "modality": "brightfield", "domain": "brightfield", "draw": k, "not measured": "", **dict.fromkeys(
    ["O.Ar (mm2)", "O.Pm (mm)"], 0.), "T.Ar (mm2)": 1., "B.Ar (mm2)": v, "Md.Ar (mm2)": v, "Ma.Ar (mm2)": 1 - v, "B.Pm (mm)": 2., "Md.Pm (mm)": 2., "Q.Pm (mm)": 2.} for k, v in enumerate(values)])


def test_intervals_follow_the_draws():
    subjects = pd.DataFrame({"subject": ["S"], "BV/TV (%)": [20.], "O.Th (um)": [np.nan], "OS/BS (%)": [0.]})
    found = draw_intervals(subjects, subject_rows([.19, .2, .21]), "none").set_index("parameter")
    wide = 4.302653 * (4 / 3) ** .5 * np.log([.19, .2, .21]).std(ddof=1)
    assert found.loc["BV/TV (%)", ["low", "high"]].tolist() == pytest.approx([20 * np.exp(-wide), 20 * np.exp(wide)], rel=1e-5)
    assert found.loc["OS/BS (%)", ["value", "low", "high"]].tolist() == [0, 0, 0] and "O.Th (um)" not in found.index
    same = draw_intervals(subjects, subject_rows([.2] * 4), "none").set_index("parameter").loc["BV/TV (%)"]
    assert same["low"] == pytest.approx(20) and same["high"] == pytest.approx(20) and same["shift"] == pytest.approx(0)
    assert draw_intervals(subjects, subject_rows([.19, .21]), "none")["low"].isna().all()


def test_coverage_counts_held_out_subjects_alone():
    intervals = pd.DataFrame([(s, "BV/TV (%)", v, v - 1, v + 1, 0, 9) for s, v in (("a", 20.), ("b", 25.), ("c", 30.))], columns=["subject", "parameter", "value", "low", "high", "shift", "draws"])
    truth = pd.DataFrame({"subject": ["a", "b", "c"], "BV/TV (%)": [20.5, 27., 99.]})
    c = draw_coverage(intervals, truth, ["a", "b"])
    assert c["n"].tolist() == [2] and c["inside"].tolist() == [.5] and c["half width (%)"].tolist() == pytest.approx([4.5])
    assert not len(draw_coverage(intervals, truth[:0], ["a"]))
