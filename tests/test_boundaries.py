"Areas, perimeters and osteoid surface against shapes whose answers are written down."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from bonehisto.boundaries import (MARGIN, MeasureError, check_class_map, check_pixel_size, extend_classes, length_px, perimeter_um,
                                  seam_along, settle_runs, tidy_tissue, trace_boundary)
from bonehisto.files import UserError

ROWS, COLS = np.mgrid[:420, :420].astype(float)


def lobed(angle=0.0, centre=(210.0, 210.0), size=110.0, lobes=3, depth=0.25):
    "A smooth shape r = size (1 + depth cos(lobes a)) turned by `angle`: mask, area, perimeter."
    y, x = ROWS - centre[0], COLS - centre[1]
    mask = np.hypot(y, x) <= size * (1 + depth * np.cos(lobes * (np.arctan2(y, x) - angle)))
    t = np.linspace(0, 2 * np.pi, 20001)
    r = size * (1 + depth * np.cos(lobes * t))
    xy = np.c_[r * np.cos(t), r * np.sin(t)]
    return mask, 0.5 * np.sum(r[:-1] ** 2) * (t[1] - t[0]), np.hypot(*np.diff(xy, axis=0).T).sum()


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 2 * np.pi), st.floats(205, 215), st.floats(205, 215), st.floats(45, 140), st.integers(2, 5), st.floats(0, 0.25))
def test_area_and_perimeter_of_a_smooth_shape_hold_wherever_and_however_it_lies(angle, row, col, size, lobes, depth):
    mask, area, perimeter = lobed(angle, (row, col), size, lobes, depth)
    assert mask.sum() == pytest.approx(area, rel=0.005)
    assert perimeter_um(mask, 1.0) == pytest.approx(perimeter, rel=0.01)


def test_turning_a_shape_changes_area_and_perimeter_by_at_most_one_percent():
    shapes = [lobed(a)[0] for a in np.linspace(0, 2 * np.pi / 3, 13)]
    lengths, areas = [perimeter_um(m, 0.5) for m in shapes], [m.sum() for m in shapes]
    assert max(lengths) / min(lengths) < 1.01 and max(areas) / min(areas) < 1.01


@pytest.mark.parametrize("angle", np.radians([0, 10, 30, 45, 77, 90]))
def test_a_bar_across_the_frame_has_two_sides_and_no_ends(angle):
    off = (COLS - 210) * np.sin(angle) + (ROWS - 210) * np.cos(angle)
    bar = np.abs(off) < 50.3
    true = 0.0
    for side in (-50.3, 50.3):  # length of the line inside the frame
        t = np.linspace(-700, 700, 280001)
        x, y = 210 + side * np.sin(angle) + t * np.cos(angle), 210 + side * np.cos(angle) - t * np.sin(angle)
        true += ((x > -0.5) & (x < 419.5) & (y > -0.5) & (y < 419.5)).sum() * (t[1] - t[0])
    assert perimeter_um(bar, 1.0) == pytest.approx(true, rel=0.01)


def test_the_edge_of_the_roi_is_no_surface_whatever_lies_outside():
    disc = np.hypot(ROWS - 210, COLS - 210) <= 120
    roi = np.abs(np.arctan2(ROWS - 210.3, COLS - 210.3)) < 1.1  # a wedge from the centre
    inside_only, everywhere = perimeter_um(disc & roi, 1.0, roi), perimeter_um(disc, 1.0, roi)
    assert inside_only == pytest.approx(2.2 * 120, rel=0.015) and everywhere == pytest.approx(2.2 * 120, rel=0.015)


def test_a_tear_left_out_of_the_roi_adds_no_surface():
    disc = np.hypot(ROWS - 210, COLS - 210) <= 120
    tear = np.abs(COLS - 200 - 0.2 * ROWS) < 4
    assert perimeter_um(disc & ~tear, 1.0, roi=~tear) == pytest.approx(perimeter_um(disc, 1.0, roi=~tear), rel=0.01)


def test_nothing_and_everything_have_no_surface():
    for mask in (np.zeros((40, 50), bool), np.ones((40, 50), bool)): assert perimeter_um(mask, 1.0) == 0
    assert perimeter_um(np.ones((40, 50), bool), 1.0, roi=np.zeros((40, 50), bool)) == 0


def test_crumbs_are_left_out_and_counted_and_lacunae_filled():
    bone = np.hypot(ROWS - 210, COLS - 210) <= 120
    dust = sum(np.hypot(ROWS - r, COLS - c) < 5 for r, c in ((30, 30), (40, 380), (390, 30))).astype(bool)
    lacuna, canal = np.hypot(ROWS - 180, COLS - 200) < 5, np.hypot(ROWS - 250, COLS - 220) < 25
    tidy, counts = tidy_tissue((bone | dust) & ~lacuna & ~canal, 1.0)
    assert counts["fragments"] == 3 and counts["holes"] == 1
    assert np.array_equal(tidy, bone & ~canal)
    everything, counts = tidy_tissue((bone | dust) & ~lacuna & ~canal, 1.0, min_fragment_um2=0, max_hole_um2=0)
    assert counts["fragments"] == counts["holes"] == 0 and everything[30, 30] and not everything[180, 200]


def test_a_small_piece_at_the_frame_or_roi_edge_is_kept_for_only_part_of_it_is_seen():
    piece = np.zeros((100, 100), bool); piece[:6, 40:50] = True; piece[60:66, 40:50] = True
    roi = np.ones_like(piece); roi[66:] = False
    tidy, counts = tidy_tissue(piece, 1.0, roi)
    assert counts["fragments"] == 0 and tidy.sum() == piece.sum()


def seams(lines, osteoid, px):
    "Length of the surface that osteoid lies under, and the seam's mean width along it."
    under, width, length = (np.concatenate(x) for x in zip(*(seam_along(p, osteoid, px) for p in lines)))
    return length[under].sum(), np.average(width[under], weights=length[under]) if under.any() else np.nan


@pytest.mark.parametrize("px", [0.5, 1.0])
@pytest.mark.parametrize("width_um", [4.0, 9.0, 25.0])
def test_osteoid_surface_and_width_of_a_seam_on_a_disc(px, width_um):
    y, x = (ROWS - 210.2) * px, (COLS - 209.7) * px
    r, radius = np.hypot(y, x), 190 * px
    bone, seam = r <= radius, (r <= radius) & (r > radius - width_um) & (np.abs(np.arctan2(y, x)) < 1.0)
    lines = trace_boundary(extend_classes(bone, np.ones_like(bone)), np.ones_like(bone))
    covered, width = seams(lines, np.pad(seam, MARGIN), px)
    assert covered == pytest.approx(2 * radius, rel=0.03, abs=2)
    assert width == pytest.approx(width_um, rel=0.05)


def test_osteoid_deep_in_the_bone_or_out_in_the_marrow_covers_no_surface():
    bone = np.hypot(ROWS - 210, COLS - 210) <= 150
    lines = trace_boundary(extend_classes(bone, np.ones_like(bone)), np.ones_like(bone))
    buried = np.hypot(ROWS - 210, COLS - 210) <= 120
    assert seams(lines, np.pad(buried, MARGIN), 1.0)[0] == 0


def test_short_runs_give_way_to_their_neighbours_but_the_ends_stay():
    flags = np.array([1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1], bool)
    assert settle_runs(flags, np.ones(13), 2.5).tolist() == [True] + [False] * 10 + [True] * 2
    ring = settle_runs(flags, np.ones(13), 3.5, closed=True)  # on a ring the run of True over the seam is three long
    assert not ring.any()


@pytest.mark.parametrize("bad", [None, 0, -0.5, float("nan"), float("inf"), 500, "0.5um", (0.5, 0.6), [], [0.5, 0.5, 0.5]])
def test_a_pixel_size_that_cannot_be_right_is_refused_by_name(bad):
    with pytest.raises(ValueError, match="pixel_size_um") as e: check_pixel_size(bad)
    assert isinstance(e.value, UserError) and isinstance(e.value, MeasureError)


def test_square_pixels_may_be_given_twice():
    assert check_pixel_size((0.5, 0.5)) == 0.5 and check_pixel_size(np.float32(0.5)) == 0.5


def test_a_class_map_says_what_is_wrong_with_it():
    with pytest.raises(MeasureError, match=r"ids \[5\]"): check_class_map(np.full((3, 3), 5), (0, 1, 2))
    with pytest.raises(MeasureError, match="shape"): check_class_map(np.zeros((3, 3, 3), int), (0, 1))
    with pytest.raises(MeasureError, match="roi"): check_class_map(np.zeros((3, 3), int), (0, 1), np.ones((2, 2), bool))
    with pytest.raises(MeasureError, match="float"): check_class_map(np.full((3, 3), 0.5), (0, 1))


def test_polylines_follow_the_mask_on_their_right_hand_side():
    bone = np.hypot(ROWS - 210, COLS - 210) <= 60
    (line,) = trace_boundary(extend_classes(bone, np.ones_like(bone)), np.ones_like(bone))
    along, middle = np.diff(line, axis=0), (line[1:] + line[:-1]) / 2
    right = np.c_[along[:, 1], -along[:, 0]]
    assert ((right * (210 - middle)).sum(1) > 0).all() and length_px([line]) > 0
