"Label lines drawn analytically, away from the code that measures them: parallel, curved, broken, merged, cut by the frame."
import numpy as np
import pytest

from bonehisto.boundaries import MeasureError
from bonehisto.labels import fill_interlabel, measure_labels, trace_labels

SHAPE = (300, 340)


def band(r0, c0, r1, c1, px, width_um=3.0, shape=SHAPE):
    "Bool mask of a straight line of `width_um` with square ends, given in um."
    rows, cols = (np.indices(shape) + 0.5) * px
    size = np.hypot(r1 - r0, c1 - c0); ur, uc = (r1 - r0) / size, (c1 - c0) / size
    along, off = (rows - r0) * ur + (cols - c0) * uc, (rows - r0) * uc - (cols - c0) * ur
    return (along >= 0) & (along <= size) & (np.abs(off) <= width_um / 2)


def bone_with(*lines):
    "All bone, with label lines (bool masks)."
    classes = np.ones(lines[0].shape, np.uint8)
    for line in lines: classes[line] = 3
    return classes


def pair(distance_um, angle, px, length_um=90.0, shift=(0.0, 0.0), shape=SHAPE):
    "Two parallel lines `distance_um` apart about the middle of the frame, turned by `angle`."
    middle = np.array(shape) * px / 2 + shift
    along, normal = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    lines = []
    for s in (-0.5, 0.5):
        m = middle + s * distance_um * normal
        lines.append(band(*(m - along * length_um / 2), *(m + along * length_um / 2), px, shape=shape))
    return bone_with(*lines)


@pytest.mark.parametrize("px", [0.5, 1.0])
@pytest.mark.parametrize("distance_um", [6.0, 8.25, 14.3, 29.0])
def test_parallel_lines_at_any_angle_read_to_half_a_pixel_and_within_one_percent_on_average(px, distance_um):
    errors, lengths = [], []
    for k, angle in enumerate(np.linspace(0, np.pi, 12, endpoint=False) + 0.06):
        table = measure_labels(pair(distance_um, angle, px, shift=(0.13 * k * px, 0.29 * k * px)), px)
        assert table.kind.tolist() == ["double"]
        row = table.iloc[0]
        errors.append(row.distance_um - distance_um); lengths.append(row.length_um)
        assert row.area_um2 / row.length_um == pytest.approx(row.distance_um, rel=0.002)
    assert np.abs(errors).max() <= px / 2
    assert abs(np.mean(errors)) <= 0.01 * distance_um
    assert np.mean(lengths) == pytest.approx(90, rel=0.02)


def test_lines_along_rows_columns_and_diagonals_read_as_well_as_their_pixels_lie():  # each line rounds to the grid on its own
    for px in (0.5, 1.0):
        for angle in np.arange(4) * np.pi / 4:
            for shift in (0.0, 0.3, 0.6):
                table = measure_labels(pair(8.25, angle, px, shift=(shift * px, 0.4 * px)), px)
                assert table.kind.tolist() == ["double"] and abs(table.distance_um[0] - 8.25) <= 0.8 * px


@pytest.mark.parametrize("px", [0.5, 1.0])
@pytest.mark.parametrize("radii", [(40, 48), (60, 72.5), (100, 112)])
def test_concentric_arcs_are_as_far_apart_as_their_radii_and_enclose_the_area_between(px, radii):
    rows, cols = (np.indices((300, 300)) + 0.5) * px
    y, x = rows - 20 * px, cols - 20 * px
    r, a = np.hypot(y, x), np.arctan2(y, x)
    classes = bone_with(*[(np.abs(r - radius) <= 1.5) & (a > 0.2) & (a < 1.35) for radius in radii])
    table = measure_labels(classes, px)
    assert table.kind.tolist() == ["double"]
    row, (inner, outer) = table.iloc[0], radii
    assert row.distance_um == pytest.approx(outer - inner, abs=px / 4)
    assert row.length_um == pytest.approx(1.15 * (inner + outer) / 2, rel=0.02, abs=px)
    assert row.area_um2 == pytest.approx(1.15 * (outer ** 2 - inner ** 2) / 2, rel=0.03)
    assert row.area_um2 / row.length_um == pytest.approx(row.distance_um, rel=0.002 if px < 1 else 0.004)
    assert fill_interlabel(classes, px).sum() * px ** 2 == pytest.approx(row.area_um2, rel=0.01)


def test_rings_around_a_canal_are_one_double():
    rows, cols = np.indices((300, 300)) * 0.5
    r = np.hypot(rows - 75, cols - 74)
    classes = bone_with(np.abs(r - 30) <= 1.5, np.abs(r - 41) <= 1.5); classes[r < 20] = 0
    table = measure_labels(classes, 0.5)
    assert table.kind.tolist() == ["double"] and table.distance_um[0] == pytest.approx(11, abs=0.1)
    assert table.length_um[0] == pytest.approx(2 * np.pi * 35.5, rel=0.01)
    assert table.depth_um[0] == pytest.approx(10, abs=0.6)  # the inner ring is the later one, nearer the marrow
    filled = fill_interlabel(classes, 0.5)
    assert filled.sum() * 0.25 == pytest.approx(np.pi * (41 ** 2 - 30 ** 2), rel=0.01) and not filled[r < 29].any() and not filled[r > 42].any()


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2])
def test_lines_that_overlap_in_part_give_one_double_and_two_singles(angle):
    along, normal = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    a = np.array([60.0, 50.0]) - 20 * along
    b = a + 9 * normal + 40 * along
    classes = bone_with(band(*a, *(a + 80 * along), 0.5), band(*b, *(b + 80 * along), 0.5))
    table = measure_labels(classes, 0.5)
    lengths = table.groupby("kind").length_um.sum()
    if angle < 1:  # at the steepest angle the second line leaves the frame
        assert sorted(table.kind) == ["double", "single", "single"] and lengths["single"] == pytest.approx(80, abs=3)
    assert lengths["double"] == pytest.approx(40, abs=2) and table.distance_um.max() == pytest.approx(9, abs=0.25)


def test_a_broken_line_is_one_stretch_and_a_wide_gap_parts_it():
    dashes = [band(70, a, 70, a + 25, 0.5) for a in (20, 50, 80)]
    table = measure_labels(bone_with(*dashes), 0.5)
    assert table.kind.tolist() == ["single"] and table.length_um[0] == pytest.approx(85, rel=0.02)
    assert len(measure_labels(bone_with(*dashes), 0.5, gap_um=2)) == 3


def test_a_break_in_one_line_of_a_double_does_not_part_the_double():
    lines = [band(60, 20, 60, 130, 0.5), band(70, 20, 70, 70, 0.5), band(70, 76, 70, 130, 0.5)]
    table = measure_labels(bone_with(*lines), 0.5)
    assert table.kind.tolist() == ["double"] and table.length_um[0] == pytest.approx(110, rel=0.02)


def test_a_single_label_has_length_and_no_distance():
    (row,) = measure_labels(bone_with(band(60, 20, 90, 120, 0.5)), 0.5).to_dict("records")
    assert row["kind"] == "single" and np.isnan(row["distance_um"]) and row["length_um"] == pytest.approx(np.hypot(30, 100), rel=0.02)
    assert row["width_um"] == pytest.approx(3, abs=0.25)


@pytest.mark.parametrize("px", [0.5, 1.0])
def test_two_labels_that_merged_are_unresolved_and_have_no_distance(px):
    merged = measure_labels(bone_with(band(60, 20, 60, 120, px), band(62.5, 20, 62.5, 120, px)), px)
    assert merged.kind.tolist() == ["unresolved"] and merged.distance_um.isna().all()
    assert merged.length_um[0] == pytest.approx(100, rel=0.03)


def test_lines_that_run_together_are_double_where_apart_and_unresolved_where_merged():
    opening = measure_labels(bone_with(band(60, 20, 60, 140, 0.5), band(62.8, 20, 62.8, 80, 0.5), band(62.8, 80, 72, 140, 0.5)), 0.5)
    assert set(opening.kind) == {"double", "unresolved"}
    assert opening[opening.kind == "unresolved"].length_um.sum() == pytest.approx(70, abs=16)


@pytest.mark.parametrize("angle", [0.0, 0.3, 0.8])
def test_lines_cut_by_the_frame_keep_distance_and_length(angle):
    classes = pair(12.0, angle, 0.5, length_um=600)
    table = measure_labels(classes, 0.5)
    assert table.kind.tolist() == ["double"] and table.cut.all()
    assert table.distance_um[0] == pytest.approx(12, abs=0.25)
    labelled = (classes == 3).sum() * 0.25 / 3 / 2  # area over width, mean of two lines
    assert table.length_um[0] == pytest.approx(labelled, rel=0.02)
    assert table.area_um2[0] / table.length_um[0] == pytest.approx(table.distance_um[0], rel=0.01)


def test_lines_in_a_roi_are_measured_as_far_as_it_reaches():
    classes = bone_with(band(60, 10, 60, 150, 0.5), band(70, 10, 70, 150, 0.5))
    roi = np.zeros(SHAPE, bool); roi[:, 100:220] = True
    table = measure_labels(classes, 0.5, roi=roi)
    assert table.kind.tolist() == ["double"] and table.length_um[0] == pytest.approx(60, abs=1)


@pytest.mark.parametrize("distance_um, kinds", [(28.5, ["double"]), (32.0, ["single", "single"])])
def test_labels_up_to_thirty_micrometres_apart_are_paired(distance_um, kinds):
    assert measure_labels(pair(distance_um, 0.2, 0.5), 0.5).kind.tolist() == kinds
    assert measure_labels(pair(distance_um, 0.2, 0.5), 0.5, max_distance_um=40).kind.tolist() == ["double"]


def test_lines_with_marrow_or_osteoid_between_do_not_face_each_other():
    for between in (0, 2):
        classes = bone_with(band(50, 20, 50, 120, 0.5), band(66, 20, 66, 120, 0.5)); classes[106:126] = between
        assert measure_labels(classes, 0.5).kind.tolist() == ["single", "single"]


def test_single_labels_on_opposite_faces_of_a_thin_trabecula_are_no_double():
    classes = bone_with(band(55, 20, 55, 140, 0.5), band(79, 20, 79, 140, 0.5))
    rows = (np.indices(SHAPE)[0] + 0.5) * 0.5
    classes[(rows < 50) | (rows > 84)] = 0
    assert measure_labels(classes, 0.5).kind.tolist() == ["single", "single"]


@pytest.mark.parametrize("upside_down", [False, True])
def test_the_line_nearer_the_marrow_is_the_later_one(upside_down):
    classes = bone_with(band(50, 20, 50, 140, 0.5), band(62, 30, 62, 130, 0.5)); classes[:80] = 0
    classes = classes[::-1].copy() if upside_down else classes
    table = measure_labels(classes, 0.5)
    (double,) = table[table.kind == "double"].to_dict("records")
    assert double["depth_um"] == pytest.approx(10, abs=0.6) and double["depth_earlier_um"] == pytest.approx(22, abs=0.6)


def test_of_three_lines_the_nearer_two_are_the_double():
    table = measure_labels(bone_with(band(50, 20, 50, 140, 0.5), band(58, 20, 58, 140, 0.5), band(75, 20, 75, 140, 0.5)), 0.5)
    assert sorted(table.kind) == ["double", "single"] and table.distance_um.max() == pytest.approx(8, abs=0.25)


def test_crossing_lines_are_not_paired():
    table = measure_labels(bone_with(band(40, 30, 100, 90, 0.5), band(40, 150, 100, 96, 0.5)), 0.5)
    assert "double" not in set(table.kind)


def test_specks_and_stubs_change_nothing():
    clean = pair(10, 0.3, 0.5)
    noisy = clean.copy(); rng = np.random.default_rng(0)
    for r, c in rng.integers(4, 296, (60, 2)): noisy[r:r + 2, c:c + 2] = rng.integers(0, 4)
    a, b = measure_labels(clean, 0.5), measure_labels(noisy, 0.5)
    assert b.kind.tolist() == ["double"]
    assert b.distance_um[0] == pytest.approx(a.distance_um[0], rel=0.01) and b.length_um[0] == pytest.approx(a.length_um[0], rel=0.01)


def test_ragged_lines_keep_their_distance():
    from scipy import ndimage
    clean = pair(11, 0.5, 0.5); rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.standard_normal(clean.shape), 2); noise /= noise.std()
    ragged = np.where(ndimage.gaussian_filter((clean == 3).astype(float), 1.5) + 0.08 * noise > 0.42, 3, 1).astype(np.uint8)
    table = measure_labels(ragged, 0.5)
    double = table[table.kind == "double"]
    assert double.area_um2.sum() / double.length_um.sum() == pytest.approx(11, rel=0.02) and double.length_um.sum() == pytest.approx(90, rel=0.05)


def test_a_pair_turned_by_quarter_turns_and_mirrored_reads_the_same():
    classes = pair(9.3, 0.35, 0.5, shape=(300, 300))
    read = [measure_labels(m, 0.5).iloc[0] for m in (classes, np.rot90(classes), np.rot90(classes, 2), classes[:, ::-1], classes.T)]
    assert np.ptp([r.distance_um for r in read]) < 0.05 and np.ptp([r.length_um for r in read]) < 1.5


def test_no_label_gives_an_empty_table_with_all_columns():
    table = measure_labels(np.ones((50, 60), np.uint8), 0.5)
    assert len(table) == 0 and {"kind", "length_um", "distance_um", "area_um2", "width_um"} <= set(table.columns)
    assert not fill_interlabel(np.ones((50, 60), np.uint8), 0.5).any() and trace_labels(np.zeros((5, 5), int), 1.0) == []


def test_other_class_ids_may_stand_for_label_and_bone():
    classes = pair(10, 0.0, 0.5)
    other = np.choose(classes, [0, 4, 5, 7]).astype(np.uint8)
    assert measure_labels(other, 0.5, label_class=7, bone_classes=(4,)).distance_um[0] == measure_labels(classes, 0.5).distance_um[0]


def test_bad_arguments_are_named():
    with pytest.raises(MeasureError, match="pixel_size_um"): measure_labels(np.ones((9, 9), int), 0)
    with pytest.raises(MeasureError, match="max_distance_um"): measure_labels(pair(10, 0, 0.5), 0.5, max_distance_um=0)
    with pytest.raises(MeasureError, match="shape"): fill_interlabel(np.ones((9, 9, 3), int), 0.5)


def test_on_a_coarse_grid_the_image_knows_better_than_the_map():
    "Two lines along the rows: a map rounds each to the grid, the light does not."
    rows, errors = np.arange(120.0)[:, None] + np.zeros((120, 160)), []
    for first in np.arange(40, 41, .125):
        light = sum(np.exp(-(rows - at) ** 2 / (2 * 1.2 ** 2)) for at in (first, first + 8.25)) * ((np.arange(160) > 20) & (np.arange(160) < 140))
        classes = np.where(light > .5, 3, 1); image = np.array([10, 40, 60]) + light[..., None] * [180, 170, 20]
        errors.append([table.distance_um[0] - 8.25 for table in (measure_labels(classes, 1.0), measure_labels(classes, 1.0, image=image))])
    by_map, by_image = np.abs(errors).max(0)
    assert by_map > .2 and by_image < .0825


def test_an_image_of_another_size_is_named():
    with pytest.raises(MeasureError, match=r"image has shape \(10, 20\)"): measure_labels(pair(9.0, 0.3, .5), .5, image=np.zeros((10, 20)))
