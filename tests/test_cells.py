"Cells counted on the surface and lines laid down on it, against shapes whose answers are written down."
import json

import numpy as np
import pytest
import shapely
import yaml
from hypothesis import given, settings, strategies as st

from bonehisto.annotations import Annotations
from bonehisto.boundaries import MeasureError
from bonehisto.cells import ANNOTATED, annotation_sums, base_of, covered, within
from bonehisto.files import read_table
from bonehisto.histomorphometry import TISSUE_SUMS, measure_in_full, measure_roi, names_in_2d, pool_subject
from bonehisto.images import write_mask
from bonehisto.measure import measure_files
from bonehisto.midlines import resample
from bonehisto.surface import trace_surface

ROWS, COLS = np.mgrid[:360, :360].astype(float)
R = 110.0  # px, of the disc


def polar(centre=(180.0, 180.0)): return np.hypot(ROWS - centre[0], COLS - centre[1]), np.arctan2(ROWS - centre[0], COLS - centre[1])


def disc(seam=None, centre=(180.0, 180.0), width=14):
    "A disc of bone, with osteoid of `width` px where `seam(angle)` holds."
    radius, angle = polar(centre)
    classes = (radius <= R).astype(np.uint8)
    if seam is not None: classes[(radius <= R) & (radius > R - width) & seam(angle)] = 2
    return classes


def arc(a, b, radius=R, n=120, centre=(180.0, 180.0)):
    t = np.linspace(a, b, n); return np.c_[centre[0] + radius * np.sin(t), centre[1] + radius * np.cos(t)]


def surface_of(classes, roi=None, px=0.5): return trace_surface(classes, np.ones(classes.shape, bool) if roi is None else roi, px)[0]
def marks(lines=None, points=None): return Annotations(points or {}, {k: [np.asarray(p, float) for p in v] for k, v in (lines or {}).items()}, [])
def away(angle, half): return lambda a: np.abs(np.angle(np.exp(1j * (a - angle)))) < half


# the surface itself

@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10 ** 6), st.floats(0, 6.3))
def test_the_distance_to_the_surface_is_that_of_the_traced_line(seed, turn):
    surface = surface_of(disc(away(turn, 0.7)))
    points = np.random.default_rng(seed).uniform(0, 360, (50, 2))
    ends = surface.along * surface.length_um[:, None]  # px 0.5: the half length in px is the length in um
    lines = shapely.multilinestrings(shapely.linestrings(np.stack([surface.middle - ends, surface.middle + ends], 1)))
    np.testing.assert_allclose(surface.nearest(points)[0], shapely.distance(shapely.points(points), lines) * 0.5, atol=0.02)


def test_the_way_between_two_segments_is_the_short_way_round_a_closed_line_and_the_only_way_along_an_open_one():
    ring, half = surface_of(disc()), surface_of(disc(), polar()[1] > 0.01)
    for surface, total in ((ring, np.pi * R), (half, np.pi * R / 2)):
        n = len(surface.length_um)
        assert surface.length_um.sum() == pytest.approx(total, rel=0.01) and list(surface.closed) == [surface is ring]
        for i, j in ((5, n - 5), (n - 5, 5)):
            run = surface.between(i, j)
            assert {int(run[0]), int(run[-1])} == {5, n - 5} and len(run) == (11 if surface is ring else n - 9)


def test_runs_cover_exactly_the_flags_and_do_not_break_at_the_seam_of_a_ring():
    surface = surface_of(disc()); n = len(surface.length_um)
    flags = np.zeros(n, bool); flags[[0, 1, n - 1, 50, 51]] = True
    runs = surface.runs(flags)
    assert sorted(map(len, runs)) == [2, 3] and sorted(np.concatenate(runs)) == [0, 1, 50, 51, n - 1]
    assert len(surface.runs(np.ones(n, bool))) == 1 and not surface.runs(np.zeros(n, bool))


# lines on the surface

@settings(deadline=None, max_examples=25)
@given(st.floats(0, 6.28), st.floats(0.3, 5.5), st.floats(-12, 20), st.integers(0, 1))
def test_a_line_beside_a_disc_covers_the_arc_it_runs_along_wherever_it_lies(start, extent, off, back):
    "Whatever the side, the distance and the direction: the length is that of the surface, not of the line."
    surface = surface_of(disc())
    line = arc(start, start + extent, R + off, 300)[::-1 if back else 1]
    length = surface.length_um[covered(surface, within(marks({"eroded surface": [line]}), surface.roi, 0.5).lines["eroded surface"])].sum()
    assert length == pytest.approx(extent * R / 2, abs=3, rel=0.01)  # 3 um: each end is known to a micrometre or so, where the drawn disc has a step


@pytest.mark.parametrize("angle", np.radians([0, 20, 45, 70, 90]))
def test_a_line_along_a_band_covers_the_side_it_lies_on(angle):
    across = (COLS - 180) * np.sin(angle) + (ROWS - 180) * np.cos(angle)
    surface = surface_of((np.abs(across) < 30).astype(np.uint8))
    along, out = np.array([-np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), np.sin(angle)])
    line = 180 + 36 * out + along * np.array([[-60.0], [80.0]])
    flags = covered(surface, [resample(line, False, 0.5)])
    assert surface.length_um[flags].sum() == pytest.approx(70, abs=1) and (((surface.middle[flags] - 180) * out).sum(1) > 0).all()


def test_a_line_longer_than_the_surface_or_drawn_twice_covers_it_once():
    surface = surface_of(disc()); total = surface.length_um.sum()
    spiral = resample(arc(0, 9.5, R + 4, 900), False, 0.5)
    assert surface.length_um[covered(surface, [spiral])].sum() == pytest.approx(total)
    once, twice = (surface.length_um[covered(surface, [resample(arc(0, 1, R + 3), False, 0.5)] * k)].sum() for k in (1, 2))
    assert once == twice
    beyond = surface_of((ROWS > 180).astype(np.uint8)[:, :200])  # a flat surface, the line hangs over both ends of the frame
    cut = within(marks({"eroded surface": [[[176.0, -80], [176, 400]]]}), beyond.roi, 0.5)
    assert beyond.length_um[covered(beyond, cut.lines["eroded surface"])].sum() == pytest.approx(beyond.length_um.sum(), rel=0.01) and "140 um" in cut.notes[0]


def test_a_line_far_from_the_surface_covers_nothing():
    surface = surface_of(disc())
    assert not covered(surface, [resample(arc(0, 2, R + 60), False, 0.5)]).any()
    assert covered(surface, [resample(arc(0, 2, R + 60), False, 0.5)], reach_um=35).any()


def test_a_line_straight_across_a_lacuna_means_its_floor_too():
    radius, _ = polar(); bite = np.hypot(ROWS - 180, COLS - 70) <= 25  # about a semicircle bitten out of the left
    surface = surface_of(((radius <= R) & ~bite).astype(np.uint8))
    line = resample(np.array([[150.0, 76], [210.0, 76]]), False, 0.5)
    floor = np.hypot(*(surface.middle - (180, 70)).T) < 26
    assert surface.length_um[floor & ~covered(surface, [line])].sum() < 1
    shallow = covered(surface, [line], bridge_um=3)
    assert surface.length_um[floor & ~shallow].sum() > 5


def test_a_line_that_leaves_a_bone_for_another_fills_nothing_between():
    classes = ((np.hypot(ROWS - 180, COLS - 90) <= 60) | (np.hypot(ROWS - 180, COLS - 270) <= 60)).astype(np.uint8)
    surface = surface_of(classes)
    flags = covered(surface, [resample(np.array([[118.0, 90], [118, 270]]), False, 0.5)])
    assert {0, 1} == set(surface.line[flags].tolist()) and surface.length_um[flags].sum() < 80


# cells

def test_cells_near_the_surface_count_and_the_rest_are_reported():
    surface = surface_of(disc())
    at = np.concatenate([arc(0, 5, R + 20, 7), arc(0, 5, R - 20, 5), arc(0, 5, R + 60, 3)])  # 10 um outside, 10 um inside, 30 um outside
    sums, notes, _ = annotation_sums(marks(points={"osteoblast": at}), surface)
    assert (sums, notes) == ({"N.Ob": 12}, {"osteoblasts off surface": 3})
    assert annotation_sums(marks(points={"osteoblast": at}), surface, reach_um=40)[0] == {"N.Ob": 15}
    assert annotation_sums(marks(points={"osteoblast": at}), surface, reach_um=9)[0] == {"N.Ob": 0}


def test_osteocytes_count_inside_bone_however_deep():
    at = np.array([[180.0, 180], [180, 230], [180, 285], [180, 300]])
    sums, notes, _ = annotation_sums(marks(points={"osteocyte": at}), surface_of(disc()))
    assert sums == {"N.Ot": 3} and notes == {"osteocytes outside bone": 1}


def test_a_cell_clicked_twice_is_one_and_two_neighbours_are_two():
    at = np.array([[180.0, 295], [180, 295], [180, 297.5], [190, 295]])  # 2 um are 4 px
    kept = within(marks(points={"osteoclast": at}), np.ones((360, 360), bool), 0.5)
    assert len(kept.points["osteoclast"]) == 2 and "osteoclast (2)" in kept.notes[0]
    other = within(marks(points={"osteoclast": at[:1], "osteoblast": at[:1]}), np.ones((360, 360), bool), 0.5)
    assert len(other.points["osteoclast"]) == len(other.points["osteoblast"]) == 1  # of two classes: two cells


def test_only_what_lies_in_the_roi_is_counted_with_the_bone_that_lies_there():
    roi = np.zeros((360, 360), bool); roi[:, :180] = True
    at = np.array([[180.0, 60], [180, 300], [60, 170], [60, 190]])
    marked = marks({"eroded surface": [arc(0, 2 * np.pi, R + 5, 400)]}, {"osteoblast": at})
    m = measure_roi(disc(), "brightfield", 0.5, roi=roi, annotations=marked)
    assert m["N.Ob"] == 2 and m["B.Pm (mm)"] == pytest.approx(np.pi * R / 2 / 1e3, rel=0.02) and m["ES/BS (%)"] == pytest.approx(100, abs=0.5)
    assert any("outside the ROI: osteoblast (2)" in w for w in m["warnings"]) and any("cut off, outside the ROI" in w for w in m["warnings"])


def test_cells_at_the_frame_count_where_their_surface_is_seen():
    band = (np.abs(ROWS - 180) < 30).astype(np.uint8)
    at = np.array([[145.0, 0.0], [145, 359], [0, 0], [359, 359]])
    sums, notes, _ = annotation_sums(marks(points={"osteoblast": at}), surface_of(band))
    assert sums == {"N.Ob": 2} and notes == {"osteoblasts off surface": 2}


# sums and indices

@settings(deadline=None, max_examples=15)
@given(st.floats(0, 6.28), st.floats(0.3, 1.2), st.floats(0, 6.28), st.floats(0.2, 2.5))
def test_osteoid_eroded_and_quiescent_surface_share_the_bone_surface_however_they_overlap(turn, half, start, extent):
    m = measure_roi(disc(away(turn, half)), "brightfield", 0.5, annotations=marks({"eroded surface": [arc(start, start + extent, R + 4)]}))
    assert m["OS/BS (%)"] + m["ES/BS (%)"] + m["QS/BS (%)"] == pytest.approx(100)
    assert m["O.Pm (mm)"] + m["E.Pm (mm)"] + m["Q.Pm (mm)"] == pytest.approx(m["B.Pm (mm)"]) and m["Q.Pm (mm)"] >= -1e-12
    assert (m["E.Pm (mm)"] + m["eroded on osteoid (mm)"]) * 1e3 == pytest.approx(extent * R / 2, abs=3, rel=0.02)
    assert m["OS/BS (%)"] == measure_roi(disc(away(turn, half)), "brightfield", 0.5)["OS/BS (%)"]


def test_eroded_surface_on_osteoid_counts_as_osteoid_and_is_said():
    m = measure_roi(disc(away(0, 0.5)), "brightfield", 0.5, annotations=marks({"eroded surface": [arc(-0.4, 0.4, R + 3)]}))
    assert m["E.Pm (mm)"] == 0 and m["eroded on osteoid (mm)"] == pytest.approx(0.8 * R / 2 / 1e3, rel=0.03)
    assert any("eroded surface lies on osteoid: it counts as osteoid only" in w for w in m["warnings"])


def test_osteoblast_surface_may_lie_on_osteoid_and_points_alone_give_no_surface():
    m = measure_roi(disc(away(0, 0.6)), "brightfield", 0.5, annotations=marks({"osteoblast surface": [arc(-0.5, 0.5, R + 10)]}, {"osteoclast": arc(2, 3, R + 8, 4)}))
    assert m["Ob.S/BS (%)"] == pytest.approx(100 / (2 * np.pi), rel=0.02) and m["N.Oc/B.Pm (1/mm)"] == pytest.approx(4 / m["B.Pm (mm)"])
    assert not {"Oc.S/BS (%)", "ES/BS (%)", "N.Ob/B.Pm (1/mm)", "N.Ob"} & set(m)


def test_nothing_is_said_where_nobody_annotated():
    m = measure_roi(disc(), "brightfield", 0.5)
    assert not any(k in m or index in m or base_of(k) in m for k, (index, *_) in ANNOTATED.items())
    assert m["QS/BS (%)"] == pytest.approx(100)


def test_looked_for_and_not_found_is_zero_and_over_no_bone_undefined():
    nothing = marks({"eroded surface": []}, {"osteoblast": np.empty((0, 2)), "osteocyte": np.empty((0, 2))})
    m, blank = measure_roi(disc(), "brightfield", 0.5, annotations=nothing), measure_roi(np.zeros((60, 60), int), "brightfield", 0.5, annotations=nothing)
    assert m["N.Ob/B.Pm (1/mm)"] == m["N.Ot/B.Ar (1/mm2)"] == m["ES/BS (%)"] == 0
    for key, why in (("N.Ob/B.Pm (1/mm)", "no bone surface"), ("ES/BS (%)", "no bone surface"), ("N.Ot/B.Ar (1/mm2)", "no bone in")): assert np.isnan(blank[key]) and why in blank["reasons"][key]


@pytest.mark.parametrize("section", ["none", "isotropic", "iliac"])
def test_counts_per_length_and_shares_know_no_section_factor(section):
    m = measure_roi(disc(), "brightfield", 0.5, section=section, annotations=marks({"eroded surface": [arc(0, 1)]}, {"osteoblast": arc(0, 5, R + 10, 6)}))
    assert m["N.Ob/B.Pm (1/mm)"] == pytest.approx(6 / (2 * np.pi * R * 0.5e-3), rel=0.01) and m["ES/BS (%)"] == pytest.approx(100 / (2 * np.pi), rel=0.02)


def test_a_subject_is_pooled_by_ratio_of_sums_over_the_annotated_rois_alone():
    more = marks({"eroded surface": [arc(0, 1)]}, {"osteoblast": arc(0, 6, R + 10, 20)})
    rows = [measure_roi(c, "brightfield", 0.5, annotations=a) for c, a in ((disc(away(0, 1)), None), (disc(), more), (disc(away(2, 0.4)), marks(points={"osteoblast": arc(0, 6, R + 10, 2)})))]
    s = pool_subject(rows)
    assert s["N.Ob"] == 22 and s["N.Ob/B.Pm (1/mm)"] == pytest.approx(22 / (rows[1]["B.Pm (mm)"] + rows[2]["B.Pm (mm)"]))
    assert s["ES/BS (%)"] == pytest.approx(rows[1]["ES/BS (%)"]) and s["QS/BS (%)"] == pytest.approx(100 - s["ES/BS (%)"]) and s["B.Pm of E.Pm (mm)"] == pytest.approx(rows[1]["B.Pm (mm)"])
    assert s["OS/BS (%)"] == pytest.approx(100 * sum(r["O.Pm (mm)"] for r in rows) / sum(r["B.Pm (mm)"] for r in rows))
    assert any("annotated in 1 of 3 brightfield ROIs" in w for w in s["warnings"])
    assert "N.Ob" not in pool_subject(rows[:1])


def test_when_every_roi_is_annotated_the_three_shares_of_a_subject_add_up():
    rows = [measure_roi(disc(away(k, 0.3 + 0.2 * k)), "brightfield", 0.5, annotations=marks({"eroded surface": [arc(k + 2, k + 2.5)]})) for k in range(3)]
    s = pool_subject(rows)
    assert s["OS/BS (%)"] + s["ES/BS (%)"] + s["QS/BS (%)"] == pytest.approx(100) and not any("annotated in" in w for w in s["warnings"])


def test_two_dimensional_names_cover_the_annotated_indices():
    plane = names_in_2d(measure_roi(disc(), "brightfield", 0.5, annotations=marks({"eroded surface": [arc(0, 1)], "osteoblast surface": [], "osteoclast surface": []})))
    assert {"E.Pm/B.Pm (%)", "Ob.Pm/B.Pm (%)", "Oc.Pm/B.Pm (%)"} <= set(plane) and not any("/BS" in k for k in plane)


@pytest.mark.parametrize("name", ["cell_reach_um", "bridge_um", "label_reach_um"])
def test_a_reach_of_nothing_is_refused_by_name(name):
    with pytest.raises(MeasureError, match=f"{name} is 0: give a length in um"): measure_roi(disc(), "brightfield", 0.5, **{name: 0})


def test_areas_and_lengths_come_from_the_same_surface():
    m = measure_in_full(disc(away(0, 1)), "brightfield", 0.5).result
    assert m["B.Ar (mm2)"] == pytest.approx(np.pi * (R / 2e3) ** 2, rel=0.005) and m["O.Pm (mm)"] == pytest.approx(R / 1e3, rel=0.02) and set(TISSUE_SUMS) <= set(m)


# a study

def study(folder, annotations=(), **more):
    "Two brightfield ROIs of one subject, the disc with a seam; annotation files for as many of them as are given."
    (folder / "marks").mkdir(parents=True)
    rois = [{"id": f"r{k}", "image": f"r{k}.png", "mask": f"r{k}.png", "subject": "S1", "modality": "brightfield", "pixel_size_um": 0.5} for k in range(2)]
    for k, roi in enumerate(rois):
        write_mask(folder / roi["mask"], disc(away(0, 0.8)))
        if k < len(annotations):
            roi["annotations"] = f"marks/r{k}.geojson"
            features = [{"type": "Feature", "geometry": {"type": kind, "coordinates": np.round(at[:, ::-1] + 0.5, 3).tolist()}, "properties": {"classification": {"name": name}}} for kind, name, at in annotations[k]]
            (folder / roi["annotations"]).write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    (folder / "study.yaml").write_text(yaml.safe_dump({"subjects": [{"id": "S1"}], "rois": rois, **more}))
    said = measure_files(sorted(folder.glob("r*.png")), folder / "study.yaml", folder / "out")
    return said, {p.stem: read_table(p) for p in (folder / "out").glob("*.csv")}


CELLS_AND_LINE = [("MultiPoint", "Osteoblasts", arc(-0.6, 0.6, 122, 5)), ("LineString", "eroded surface", arc(2, 3, 113))]


def test_a_study_pools_over_the_rois_in_which_a_class_was_looked_for(tmp_path):
    _, t = study(tmp_path / "held", [CELLS_AND_LINE, []])
    s, r = t["subject_parameters"].iloc[0], t["roi_parameters"]
    assert r["N.Ob"].tolist()[0] == 5 and np.isnan(r["N.Ob"][1]) and s["B.Pm of N.Ob (mm)"] == pytest.approx(r["B.Pm (mm)"][0]) and "N.Oc" not in s
    _, t = study(tmp_path / "looked", [CELLS_AND_LINE, []], annotated=["osteoblast", "osteoclast", "eroded surface"])
    looked = t["subject_parameters"].iloc[0]
    assert looked["N.Ob/B.Pm (1/mm)"] == pytest.approx(s["N.Ob/B.Pm (1/mm)"] / 2) and looked["N.Oc/B.Pm (1/mm)"] == 0 and looked["ES/BS (%)"] == pytest.approx(s["ES/BS (%)"] / 2)
    assert looked["OS/BS (%)"] + looked["ES/BS (%)"] + looked["QS/BS (%)"] == pytest.approx(100)


def test_a_study_writes_cells_and_their_neighbourhood_and_nothing_of_them_where_nobody_annotated(tmp_path):
    _, t = study(tmp_path / "marked", [CELLS_AND_LINE])
    assert len(t["cells"]) == 5 and t["cells"]["surface_um"].mean() == pytest.approx(6, abs=0.2) and set(t["cells"]["roi"]) == {"r0"}
    subjects = t["neighbourhood_subjects"].set_index("quantity")
    assert subjects.loc["osteoblasts on osteoid (%)", "value"] == 100 and subjects.loc["osteoblast to surface (um)", "basis"] == 5
    _, bare = study(tmp_path / "bare")
    assert "cells" not in bare and not len(bare["neighbourhood_rois"]) and not any("N.O" in c or "E.Pm" in c for c in bare["subject_parameters"])


def test_an_annotation_that_cannot_be_used_costs_its_own_roi_and_says_why(tmp_path):
    said, t = study(tmp_path / "x", [[("Polygon", "osteoclast", arc(0, 1)[None])]])
    assert "r0 was not measured" in said and "r0.geojson: features[0] (osteoclast) is a Polygon" in said and t["roi_parameters"]["not measured"].notna().tolist() == [True, False]
