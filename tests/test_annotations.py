"Annotation files: what counts as which class, what is left out and said so, what is refused naming the file and the feature, and how a manifest carries them."
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from test_manifest import at, problems
from written_study import write_study

from bonehisto.annotations import class_named, read_annotations
from bonehisto.files import UserError
from bonehisto.inventory import check_study, inventory, read_rois
from bonehisto.manifest import load_manifest, save_manifest
from bonehisto.pipeline import _source_files

SHAPE = (48, 64)


def feature(kind, coordinates, name="osteoblast", **more):
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": {"objectType": "annotation", "classification": {"name": name, "color": [1, 2, 3]}} | more}


def write(path, *features):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 47)), min_size=1, max_size=8))
def test_the_centre_of_a_pixel_becomes_its_row_and_column(tmp_path_factory, pixels):
    path = write(tmp_path_factory.mktemp("a") / "a.geojson", feature("MultiPoint", [[x + 0.5, y + 0.5] for x, y in pixels]))
    np.testing.assert_allclose(read_annotations(path, SHAPE).points["osteoblast"], [[y, x] for x, y in pixels])


def test_points_and_multipoints_lines_and_multilines_of_a_class_come_together(tmp_path):
    path = write(tmp_path / "a.geojson", feature("Point", [3, 4]), feature("MultiPoint", [[5, 6], [7, 8]], "Osteoblasts"), feature("LineString", [[0, 0], [9, 9]], "Eroded_surface"),
                 feature("MultiLineString", [[[1, 1], [2, 2]], [[3, 3], [4, 4], [5, 5]]], "eroded surface"))
    found = read_annotations(path, SHAPE)
    assert len(found.points["osteoblast"]) == 3 and [len(p) for p in found.lines["eroded surface"]] == [2, 2, 3] and not found.notes


@pytest.mark.parametrize("text, name", [("osteoclasts", "osteoclast"), ("OSTEOCYTE", "osteocyte"), (" osteoblast  surface ", "osteoblast surface"), ("eroded", None), ("", None), (None, None), (7, None), ("osteoblastss", None)])
def test_names_are_read_kindly_but_not_guessed(text, name):
    assert class_named(text) == name


def test_a_bare_list_and_a_single_feature_are_files_too(tmp_path):
    for content in ([feature("Point", [3, 4])], feature("Point", [3, 4])):
        (tmp_path / "a.geojson").write_text(json.dumps(content), encoding="utf-8-sig")
        assert len(read_annotations(tmp_path / "a.geojson", SHAPE).points["osteoblast"]) == 1


def test_unknown_classes_are_listed_with_their_numbers_and_left_out(tmp_path):
    unclassed = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}, "properties": {}}
    found = read_annotations(write(tmp_path / "a.geojson", feature("Point", [1, 1]), feature("Point", [1, 1], "Stroma"), feature("Point", [2, 2], "Stroma"), unclassed), SHAPE)
    assert list(found.points) == ["osteoblast"] and not found.lines
    assert "Stroma (2)" in found.notes[0] and "no class (1)" in found.notes[0] and "known: osteoblast, osteoclast" in found.notes[0]


def test_what_lies_outside_the_image_is_cut_off_and_counted(tmp_path):
    path = write(tmp_path / "a.geojson", feature("MultiPoint", [[10, 10], [64.4, 10], [65, 10], [10, -3]]), feature("LineString", [[54, 20], [84, 20]], "osteoclast surface"), feature("LineString", [[80, 1], [90, 1]], "osteoclast surface"))
    found = read_annotations(path, SHAPE)
    assert len(found.points["osteoblast"]) == 2 and len(found.lines["osteoclast surface"]) == 1
    assert found.lines["osteoclast surface"][0][:, 1].max() == 64.0  # the image ends at 64.5 with half a pixel's grace, in columns half a pixel less
    assert any("outside the image: osteoblast (2)" in n for n in found.notes) and any("30 px of osteoclast surface" in n for n in found.notes)  # 19.5 of one, 10 of the other


def test_a_line_that_leaves_and_comes_back_is_two(tmp_path):
    found = read_annotations(write(tmp_path / "a.geojson", feature("LineString", [[10, 40], [10, 80], [30, 80], [30, 40]], "eroded surface")), SHAPE)
    assert len(found.lines["eroded surface"]) == 2


def test_a_class_that_was_looked_for_and_not_found_is_there_and_empty(tmp_path):
    found = read_annotations(write(tmp_path / "a.geojson"), SHAPE, ["osteoclast", "eroded surface"])
    assert list(found.points) == ["osteoclast"] and found.points["osteoclast"].shape == (0, 2) and found.lines == {"eroded surface": []}
    marked = read_annotations(write(tmp_path / "b.geojson", feature("MultiPoint", [], "osteoclast")), SHAPE)
    assert marked.points["osteoclast"].shape == (0, 2) and "osteoblast" not in marked.points


REFUSED = {
    "not JSON": ("{", ["not JSON", "export"]), "an image": (b"\x89PNG\r\n", ["not JSON"]), "a number": ("5", ["no list of GeoJSON features"]), "no features": ('{"type": "FeatureCollection"}', ["no list of GeoJSON features"]),
    "features no list": ('{"type": "FeatureCollection", "features": {}}', ["no list"]), "a bare geometry": ('{"type": "Point", "coordinates": [1, 2]}', ["no list of GeoJSON features"]),
    "deep nest": ("[" * 100000, ["not JSON"]),
    "cell drawn as a polygon": ([feature("Point", [1, 1]), feature("Polygon", [[[0, 0], [9, 0], [9, 9], [0, 0]]], "osteoclast")], ["features[1] (osteoclast) is a Polygon: mark a cell as Point or MultiPoint"]),
    "surface as points": ([feature("MultiPoint", [[1, 1]], "eroded surface")], ["features[0] (eroded surface) is a MultiPoint: mark a surface as LineString or MultiLineString"]),
    "cells as a line": ([feature("LineString", [[1, 1], [2, 2]])], ["features[0] (osteoblast) is a LineString"]),
    "no geometry": ([feature("Point", [1, 1]) | {"geometry": None}], ["features[0] (osteoblast) is a feature without geometry"]),
    "a line of one point": ([feature("LineString", [[1, 1]], "eroded surface")], ["features[0] (eroded surface)"]),
    "words for numbers": ([feature("Point", ["a", "b"])], ["features[0] (osteoblast) has no readable coordinates"]), "no coordinates": ([{**feature("Point", 0), "geometry": {"type": "Point"}}], ["features[0] (osteoblast)"]),
    "not finite": ('[{"type": "Feature", "geometry": {"type": "Point", "coordinates": [NaN, 3]}, "properties": {"classification": {"name": "osteoblast"}}}]', ["features[0] (osteoblast) has coordinates that are no numbers"]),
    "another image": ([feature("MultiPoint", [[5000, 7000], [5100, 7000]])], ["everything lies outside the image of 64 x 48 pixels", "in pixels of the full image"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_naming_file_and_feature(tmp_path, case):
    content, words = REFUSED[case]
    path = tmp_path / "marked.geojson"
    path.write_bytes(content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode())
    with pytest.raises(UserError) as caught: read_annotations(path, SHAPE)
    assert len(caught.value.problems) == 1 and str(caught.value).startswith(str(path))
    for text in words: assert text in str(caught.value)


def test_every_wrong_feature_of_a_file_is_named_at_once(tmp_path):
    with pytest.raises(UserError) as caught: read_annotations(write(tmp_path / "a.geojson", feature("LineString", [[1, 1], [2, 2]]), feature("Point", [1, 1]), feature("Point", [1, 1], "eroded surface")), SHAPE)
    assert [("features[0]" in p, "features[2]" in p) for p in caught.value.problems] == [(True, False), (False, True)]


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(UserError, match="cannot be read"): read_annotations(tmp_path / "none.geojson", SHAPE)


# the manifest

def annotate(study):
    study["rois"] = [{"image": "images/{subject}_b.png", "mask": "masks/{stem}.png", "annotations": "marks/{stem}.geojson", "modality": "brightfield", "pixel_size_um": 0.5}]


def annotated_study(folder, *features):
    path = write_study(folder, annotate)
    for i in range(6): write(folder / f"marks/S{i}_b.geojson", *features)
    return path


def test_annotations_go_by_pattern_through_table_copy_and_digest(tmp_path):
    study = load_manifest(annotated_study(tmp_path / "study", feature("Point", [3, 4])))
    assert [r.annotations.name for r in study.rois] == [f"S{i}_b.geojson" for i in range(6)] and study.rois[0].annotations.is_absolute()
    copy = load_manifest(save_manifest(study, tmp_path / "run/manifest.yaml"))
    assert [r.annotations for r in copy.rois] == [r.annotations for r in study.rois]
    assert set(r.annotations for r in study.rois) <= set(_source_files(study))
    rois, notes, _ = inventory(study)
    (tmp_path / "run/tables").mkdir(); rois.to_csv(tmp_path / "run/tables/rois.csv", index=False)
    assert read_rois(tmp_path / "run")["annotations"].tolist() == [str(r.annotations) for r in study.rois]
    assert any("marked: osteoblast; what is not among them" in n for n in notes["note"])


def test_a_study_without_annotations_has_an_empty_column(tmp_path):
    rois, notes, _ = inventory(load_manifest(write_study(tmp_path)))
    assert set(rois["annotations"]) == {""} and not (notes["field"] == "annotations").any()


def test_a_missing_annotation_file_is_named_with_its_field(tmp_path):
    assert "rois[0].annotations is marks/none.geojson: no such file: correct the path" in problems(write_study(tmp_path, at("rois", 0, "annotations", value="marks/none.geojson")))[0]


def test_a_misspelt_class_that_was_looked_for_is_refused(tmp_path):
    found = problems(write_study(tmp_path, at("annotated", value=["osteoblast", "osteoclats"])))
    assert len(found) == 1 and "annotated[1] is osteoclats: list what was looked for" in found[0] and "osteoclast, osteocyte" in found[0]


def test_a_wrong_feature_is_found_by_the_check(tmp_path):
    path = annotated_study(tmp_path, feature("Polygon", [[[0, 0], [9, 0], [9, 9], [0, 0]]], "osteoclast"))
    with pytest.raises(UserError) as caught: check_study(path)
    assert len(caught.value.problems) == 6 and all("annotations: " in p and "features[0] (osteoclast) is a Polygon" in p for p in caught.value.problems)


def test_what_was_looked_for_survives_the_copy_and_counts_as_marked(tmp_path):
    path = annotated_study(tmp_path / "study", feature("Point", [3, 4]))
    path.write_text(path.read_text() + "annotated: [osteoblast, eroded surface]\n")
    study = load_manifest(save_manifest(load_manifest(path), tmp_path / "run/manifest.yaml"))
    assert study.annotated == ["osteoblast", "eroded surface"] and "marked: osteoblast, eroded surface" in check_study(path)
