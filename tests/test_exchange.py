"Labels out and in: no way there and back loses a pixel, other programs' own readers see the same, and what is unsound in a file is named and stops nothing else."
import io, json, string, zipfile

import numpy as np
import pytest
import roifile
import shapely
import tifffile
from hypothesis import given, settings, strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi
from scipy import ndimage

from bonehisto.annotations import read_annotations
from bonehisto.entries import DEFAULT_CLASSES, ClassEntry
from bonehisto.exchange import FORMATS, export_labels, import_labels
from bonehisto.files import UserError
from bonehisto.label_outlines import class_outlines, fill, fill_rings, piece_outlines

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools and numpy 2
CLASSES = DEFAULT_CLASSES["fluorescence"]
SHAPE = (40, 60)
WHOLE = [s for s in FORMATS if s != ".roi"]  # a .roi holds a single region


def picture(*rows):
    return np.array([[" 123".index(c) if c != "?" else 255 for c in row] for row in rows], np.uint8)


DRAWN = {
    "nothing": np.zeros((4, 5), np.uint8), "one class all over": np.full((4, 5), 2, np.uint8), "unlabelled all over": np.full((4, 5), 255, np.uint8),
    "one pixel of an image": np.ones((1, 1), np.uint8), "a column": np.array([[1], [0], [1], [2], [2]], np.uint8), "a row": np.array([[1, 0, 1, 2, 255]], np.uint8),
    "single pixels": picture("1    ", "  1  ", "    2"),
    "a hole": picture("     ", " 111 ", " 1 1 ", " 111 "),
    "islands in holes": picture("1111111", "1     1", "1 222 1", "1 2 2 1", "1 222 1", "1     1", "1111111"),
    "an island in a hole of an island": picture("1111111", "1     1", "1 111 1", "1 1 1 1", "1 111 1", "1     1", "1111111"),
    "corners that touch": picture("1 1 1", " 1 1 ", "1 1 1"),
    "a ring closed at a corner": picture("11111", "1   1", "1   1", "1  1 ", "111  "),
    "a hole that touches the outside at a corner": picture("1111 ", "1  11", "1 111", "11111"),
    "an island that touches its ring at a corner": picture("11111", "12  1", "1 2 1", "1   1", "11111"),
    "two holes that touch at a corner": picture("11111", "1 111", "11 11", "11111"),
    "the frame": picture("1111", "1  1", "1  1", "1111"),
    "classes side by side": picture("112233", "112233", "??11??"),
}


def checked(path, label_map, classes=CLASSES, **given):
    "The map that comes back, without a problem."
    back, _, _, problems = import_labels(export_labels(path, label_map, classes, **given), label_map.shape, classes)
    assert problems == []
    return back


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def feature(kind, coordinates, name="osteoid", **more):
    geometry = {"type": kind, "coordinates": coordinates} if kind != "GeometryCollection" else {"type": kind, "geometries": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", "classification": name and {"name": name}} | more}


def square(x, y, size=4, name="osteoid"):
    return feature("Polygon", [[[x, y], [x + size, y], [x + size, y + size], [x, y + size], [x, y]]], name)


def taken(tmp_path, content, shape=SHAPE, classes=CLASSES, **more):
    "What is imported from GeoJSON."
    path = tmp_path / "a.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return import_labels(path, shape, classes, **more)


# There and back

@pytest.mark.parametrize("suffix", WHOLE)
@pytest.mark.parametrize("name", DRAWN)
def test_no_pixel_is_lost(tmp_path, name, suffix):
    assert np.array_equal(checked(tmp_path / f"a{suffix}", DRAWN[name]), DRAWN[name])


label_maps = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([(0, 1), (0, 1, 2), (1, 2), (0, 1, 2, 3, 255)])).map(
    lambda t: np.random.default_rng(t[2]).choice(np.array(t[3], np.uint8), t[:2]))


@settings(deadline=None, max_examples=60)
@given(label_maps, st.sampled_from(WHOLE))
def test_no_pixel_of_any_map_is_lost(tmp_path_factory, label_map, suffix):
    assert np.array_equal(checked(tmp_path_factory.mktemp("a") / f"a{suffix}", label_map), label_map)


@settings(deadline=None, max_examples=20)
@given(label_maps)
def test_a_single_region_file_keeps_its_class(tmp_path_factory, label_map):
    only = np.where(label_map == 1, 1, 0).astype(np.uint8); only[0, 0] = 1
    assert np.array_equal(checked(tmp_path_factory.mktemp("a") / "a.roi", only), only)


@pytest.mark.parametrize("suffix", [".geojson", ".zip"])
def test_points_and_lines_come_back_where_they_were(tmp_path, suffix):
    points = {"osteoblast": np.array([[0, 0], [39.25, 59.5], [7.125, 3]]), "osteocyte": np.array([[5.0, 6.0]])}
    lines = {"eroded surface": [np.array([[0, 0], [10.5, 20], [3, 3.75]]), np.array([[5, 5], [5, 9]])], "osteoblast surface": [np.array([[1.0, 2], [3, 4]])]}
    label_map = np.zeros(SHAPE, np.uint8); label_map[3:9, 4:20] = 2
    back, found, drawn, problems = import_labels(export_labels(tmp_path / f"a{suffix}", label_map, CLASSES, points=points, lines=lines), SHAPE, CLASSES)
    assert np.array_equal(back, label_map) and problems == [] and list(found) == list(points) and list(drawn) == list(lines)
    for name in points: np.testing.assert_array_equal(found[name], points[name])
    for name in lines:
        assert len(drawn[name]) == len(lines[name])
        for a, b in zip(drawn[name], lines[name]): np.testing.assert_array_equal(a, b)


def test_classes_of_other_cells_and_surfaces_come_back_where_they_are_named(tmp_path):
    path = export_labels(tmp_path / "a.geojson", np.zeros(SHAPE, np.uint8), CLASSES, points={"mast cell": [[1, 2]]}, lines={"cement line": [[[1, 2], [3, 4]]]})
    _, points, lines, problems = import_labels(path, SHAPE, CLASSES, cells=["mast cell"], surfaces=["cement line"])
    assert points["mast cell"].tolist() == [[1, 2]] and len(lines["cement line"]) == 1 and not problems
    assert [("mast cell" in p, "cement line" in p) for p in import_labels(path, SHAPE, CLASSES)[-1]] == [(True, False), (False, True)]


@pytest.mark.parametrize("suffix", [".geojson", ".json", ".zip"])
def test_where_labels_come_from_travels_with_them(tmp_path, suffix):
    origin = {}
    path = export_labels(tmp_path / f"a{suffix}", np.ones(SHAPE, np.uint8), CLASSES, pixel_size_um=0.5, provenance={"annotator": "reader: 1", "model": None, "image": "S01.png", "events": 12})
    import_labels(path, SHAPE, CLASSES, origin=origin)
    assert origin == {"annotator": ["reader: 1"], "image": ["S01.png"], "events": ["12"], "pixel_size_um": ["0.5"]}


@pytest.mark.parametrize("suffix", WHOLE)
def test_a_name_of_html_or_of_folders_stays_a_name(tmp_path, suffix):
    classes = [CLASSES[0], ClassEntry(id=1, name="<img src=x onerror=alert(1)>", colour="#112233"), ClassEntry(id=2, name="../../bone: 2", colour="#445566"), ClassEntry(id=3, name="Ostéoïde 12", colour="#778899")]
    label_map = np.arange(8, dtype=np.uint8).reshape(2, 4) % 4
    assert np.array_equal(checked(tmp_path / f"a{suffix}", label_map, classes), label_map)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]
    if suffix == ".zip":
        with zipfile.ZipFile(tmp_path / "a.zip") as archive: assert not any("/" in n or "\\" in n or "<" in n for n in archive.namelist())


# Outlines and filling against shapely

@settings(deadline=None, max_examples=80)
@given(label_maps)
def test_every_piece_is_a_valid_polygon_on_whole_pixels_with_the_area_of_its_pixels(label_map):
    polygons, ids = piece_outlines(label_map)
    assert shapely.is_valid(polygons).all()
    at = shapely.get_coordinates(polygons)
    assert (at == at.round()).all() and len(polygons) == sum(ndimage.label(label_map == c)[1] for c in np.unique(label_map) if c)
    rows, cols = np.mgrid[:label_map.shape[0], :label_map.shape[1]] + 0.5
    for c, area in class_outlines(label_map).items():
        assert area.is_valid and area.area == (label_map == c).sum()
        assert np.array_equal(shapely.contains_xy(area, cols, rows), label_map == c)
        assert shapely.equals(area, shapely.union_all([shapely.box(x, y, x + 1, y + 1) for y, x in np.argwhere(label_map == c)]))


def test_outlines_have_corners_only_where_they_turn():
    label_map = np.zeros((200, 300), np.uint8); label_map[10:150, 20:280] = 1
    assert shapely.get_num_coordinates(class_outlines(label_map)[1]) == 5


corners = st.floats(-10, 50, allow_nan=False).map(lambda v: round(v, 3))


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(corners, corners), min_size=3, max_size=9), st.lists(st.tuples(corners, corners), min_size=3, max_size=5))
def test_a_polygon_is_filled_where_pixel_centres_lie_inside(outline, hole):
    shape, area = (31, 37), shapely.make_valid(shapely.Polygon(outline)).difference(shapely.make_valid(shapely.Polygon(hole)))
    polygons = [p for p in shapely.get_parts(area) if p.geom_type == "Polygon"]
    rows, cols = np.mgrid[:shape[0], :shape[1]] + 0.5
    inside = np.zeros(shape, bool); sure = np.ones(shape, bool); filled = np.zeros(shape, bool)
    for p in polygons:
        inside |= shapely.contains_xy(p, cols, rows)
        sure &= shapely.distance(p.boundary, shapely.points(cols, rows)) > 1e-9
    window, found = fill(polygons, shape); filled[window] = found
    assert np.array_equal(filled[sure], inside[sure])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 0.5]))
def test_polygons_that_share_their_sides_share_no_pixel_and_leave_none(seed, step):
    at = np.random.default_rng(seed).integers(0, 40, (12, 2)) * step
    mesh = shapely.get_parts(shapely.delaunay_triangles(shapely.multipoints([*map(tuple, at), (0, 0), (40, 0), (0, 40), (40, 40)])))
    count = np.zeros((40, 40), int)
    for triangle in mesh:
        window, inside = fill(triangle, count.shape); count[window] += inside
    assert (count == 1).all()


def test_rings_without_order_are_filled_by_the_odd_number_around_a_pixel():
    boxes = [shapely.box(0, 0, 9, 9), shapely.box(2, 2, 7, 7), shapely.box(4, 4, 5, 5)]
    xy, ring = shapely.get_coordinates([b.exterior for b in boxes], return_index=True)
    assert fill_rings(xy, ring, (9, 9))[1].sum() == 81 - 25 + 1


# What others read

def test_geojson_is_what_qupath_writes(tmp_path):
    label_map = np.zeros(SHAPE, np.uint8); label_map[0, 0] = 1; label_map[5:20, 5:30] = 2; label_map[8:12, 8:12] = 3
    path = export_labels(tmp_path / "a.geojson", label_map, CLASSES, points={"osteoclast": [[0, 0]]}, lines={"eroded surface": [[[0, 0], [0, 9]]]}, provenance={"annotator": "x", "events": 3})
    found = json.loads(path.read_text())
    assert found["type"] == "FeatureCollection" and {f["properties"]["objectType"] for f in found["features"]} == {"annotation"}
    assert all(f["properties"]["metadata"] == {"annotator": "x", "events": "3"} for f in found["features"])
    first = found["features"][0]
    assert first["properties"]["classification"] == {"name": "bone", "color": [0x3b, 0x6f, 0xb6]}
    assert sorted(map(tuple, first["geometry"]["coordinates"][0][:-1])) == [(0, 0), (0, 1), (1, 0), (1, 1)]  # the first pixel spans 0 to 1
    rows, cols = np.mgrid[:SHAPE[0], :SHAPE[1]] + 0.5
    for f in found["features"][:3]:
        geometry, id = shapely.geometry.shape(f["geometry"]), next(c.id for c in CLASSES if c.name == f["properties"]["classification"]["name"])
        assert geometry.is_valid and np.array_equal(shapely.contains_xy(geometry, cols, rows), label_map == id)
    marks = {f["geometry"]["type"]: f["geometry"]["coordinates"] for f in found["features"][3:]}
    assert marks == {"MultiPoint": [[0.5, 0.5]], "LineString": [[0.5, 0.5], [9.5, 0.5]]}


def test_what_is_exported_for_qupath_is_what_is_measured(tmp_path):
    points, lines = {"osteoblast": np.array([[3.0, 4.5]]), "osteoclast": np.empty((0, 2))}, {"eroded surface": [np.array([[0.0, 0], [9, 9]])], "osteoblast surface": []}
    found = read_annotations(export_labels(tmp_path / "a.geojson", np.zeros(SHAPE, np.uint8), CLASSES, points=points, lines=lines), SHAPE)
    assert found.points["osteoblast"].tolist() == [[3, 4.5]] and len(found.points["osteoclast"]) == 0  # looked for, none there
    assert np.array_equal(found.lines["eroded surface"][0], lines["eroded surface"][0]) and found.lines["osteoblast surface"] == [] and not found.notes
    _, again, drawn, _ = import_labels(tmp_path / "a.geojson", SHAPE, CLASSES)
    assert len(again["osteoclast"]) == 0 and drawn["osteoblast surface"] == []


@pytest.mark.parametrize("name", DRAWN)
def test_pycocotools_reads_the_same_areas(tmp_path, name):
    label_map = DRAWN[name]
    found = COCO(str(export_labels(tmp_path / "a.json", label_map, CLASSES, provenance={"image": "S01.png"})))
    assert found.loadImgs(found.getImgIds())[0] == {"id": 1, "file_name": "S01.png", "width": label_map.shape[1], "height": label_map.shape[0]}
    assert [found.cats[c]["name"] for c in found.getCatIds()] == ["bone", "osteoid", "label", "not labelled"]
    back = np.zeros_like(label_map)
    for a in found.loadAnns(found.getAnnIds()):
        mask = found.annToMask(a)
        assert a["area"] == mask.sum() and a["bbox"] == coco_mask.toBbox(found.annToRLE(a)).tolist()
        back[mask > 0] = a["category_id"]
    assert np.array_equal(back, label_map)


def coco(annotations, images=({"id": 7, "file_name": "S01.png", "height": SHAPE[0], "width": SHAPE[1]},)):
    return {"images": list(images), "categories": [{"id": 31, "name": "Osteoid"}, {"id": 32, "name": "vessel"}], "annotations": [{"id": n, "image_id": 7, "category_id": 31, "iscrowd": 0, **a} for n, a in enumerate(annotations)]}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_that_pycocotools_packed_are_read(tmp_path_factory, seed, share):
    mask = np.random.default_rng(seed).random(SHAPE) < share; mask[0, 0] = True
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    path = tmp_path_factory.mktemp("a") / "a.json"
    path.write_text(json.dumps(coco([{"segmentation": {"size": packed["size"], "counts": packed["counts"].decode()}}])))
    label_map, _, _, problems = import_labels(path, SHAPE, CLASSES)
    assert np.array_equal(label_map == 2, mask) and not problems


def test_polygons_of_coco_are_united_and_only_the_image_that_is_meant_is_read(tmp_path):
    images = [{"id": k, "file_name": f"folder/S0{k}.png", "height": SHAPE[0], "width": SHAPE[1]} for k in (7, 8)]
    found = coco([{"segmentation": [[2, 2, 6, 2, 6, 6, 2, 6], [4, 4, 8, 4, 8, 8, 4, 8]]}, {"image_id": 8, "segmentation": [[20, 20, 30, 20, 30, 30]]}], images)
    (tmp_path / "a.json").write_text(json.dumps(found))
    label_map, _, _, problems = import_labels(tmp_path / "a.json", SHAPE, CLASSES, image="S07.png")
    assert (label_map == 2).sum() == 16 + 16 - 4 and not problems
    for wanted in (None, "S09.png"):
        with pytest.raises(UserError, match="holds 2 images"): import_labels(tmp_path / "a.json", SHAPE, CLASSES, image=wanted)


@pytest.mark.parametrize("name", DRAWN)
def test_roifile_reads_the_same_areas(tmp_path, name):
    label_map = DRAWN[name]
    path = export_labels(tmp_path / "a.zip", label_map, CLASSES)
    rows, cols = np.mgrid[:label_map.shape[0], :label_map.shape[1]] + 0.5
    regions = roifile.roiread(path)
    assert len(regions) == len(np.unique(label_map[label_map > 0]))
    for region in regions:
        inside = np.zeros(label_map.shape, bool)
        for ring in region.coordinates(multi=True): inside ^= shapely.contains_xy(shapely.Polygon(ring), cols, rows)
        id = next((c.id for c in CLASSES if c.name == region.name), 255)
        assert region.composite and f"class: {region.name}" in region.props and np.array_equal(inside, label_map == id)
        where = np.argwhere(inside)
        assert [region.top, region.left, region.bottom, region.right] == [*where.min(0), *where.max(0) + 1]


def test_imagej_marks_count_from_the_centre_of_the_first_pixel(tmp_path):
    path = export_labels(tmp_path / "a.zip", np.zeros(SHAPE, np.uint8), CLASSES, points={"osteoblast": [[2, 7.5], [0, 0]]}, lines={"eroded surface": [[[5, 0], [5, 39]]]}, provenance={"annotator": "reader 1"})
    point, line = roifile.roiread(path)
    assert (point.roitype, line.roitype) == (ROI_TYPE.POINT, ROI_TYPE.POLYLINE) and point.name == "osteoblast" and "annotator: reader 1" in line.props
    assert point.coordinates().tolist() == [[7.5, 2], [0, 0]] and line.coordinates().tolist() == [[0, 5], [39, 5]]


def corner(kind, xy, **more):
    region = ImagejRoi.frompoints(xy); region.roitype = kind
    for k, v in more.items(): setattr(region, k, v)
    return region


IMAGEJ = {
    "rectangle": (ImagejRoi(roitype=ROI_TYPE.RECT, left=2, top=3, right=8, bottom=9), shapely.box(2, 3, 8, 9)),
    "polygon": (corner(ROI_TYPE.POLYGON, [[1, 1], [20, 1], [10, 15]]), shapely.Polygon([(1, 1), (20, 1), (10, 15)])),
    "freehand between pixels": (corner(ROI_TYPE.FREEHAND, [[1.2, 1.7], [20.3, 1.1], [10.9, 15.4]]), shapely.Polygon([(1.2, 1.7), (20.3, 1.1), (10.9, 15.4)])),
    "traced": (corner(ROI_TYPE.TRACED, [[3, 3], [6, 3], [6, 5], [4, 5], [4, 8], [3, 8]]), shapely.Polygon([(3, 3), (6, 3), (6, 5), (4, 5), (4, 8), (3, 8)])),
    "oval": (ImagejRoi(roitype=ROI_TYPE.OVAL, left=10, top=5, right=30, bottom=35), shapely.affinity.scale(shapely.Point(20, 20).buffer(1, 256), 10, 15)),
}


@pytest.mark.parametrize("name", IMAGEJ)
def test_areas_drawn_in_imagej_are_filled(tmp_path, name):
    region, area = IMAGEJ[name]; region.name = "Osteoid-1"
    region.tofile(tmp_path / "a.roi")
    label_map, _, _, problems = import_labels(tmp_path / "a.roi", SHAPE, CLASSES)
    rows, cols = np.mgrid[:SHAPE[0], :SHAPE[1]] + 0.5
    assert np.array_equal(label_map == 2, shapely.contains_xy(area, cols, rows)) and not problems


def test_what_imagej_draws_for_the_eye_or_without_a_class_is_named(tmp_path):
    regions = [corner(ROI_TYPE.POINT, [[3, 4]], name="osteocyte 2"), ImagejRoi(roitype=ROI_TYPE.LINE, x1=1, y1=2, x2=9, y2=2, name="eroded_surface"), ImagejRoi(roitype=ROI_TYPE.RECT, subtype=ROI_SUBTYPE.TEXT, text="hello", name="bone"),
               ImagejRoi(roitype=ROI_TYPE.RECT, right=3, bottom=3, name="0012-0034"), corner(ROI_TYPE.ANGLE, [[1, 1], [5, 5], [9, 1]], name="bone"), corner(ROI_TYPE.POLYGON, [[1, 1], [5, 5], [9, 1]], name="bone", options=ROI_OPTIONS.SPLINE_FIT)]
    roifile.roiwrite(tmp_path / "a.zip", regions, name=map(str, range(6)))
    label_map, points, lines, problems = import_labels(tmp_path / "a.zip", SHAPE, CLASSES)
    assert points["osteocyte"].tolist() == [[4, 3]] and lines["eroded surface"][0].tolist() == [[2, 1], [2, 9]] and (label_map == 1).any()
    assert [p.split(":")[0] for p in problems] == [f"regions[{k}]" for k in (2, 3, 4, 5)]
    assert "for the eye only (text)" in problems[0] and "no class" in problems[1] and "angle" in problems[2] and "rounded outline" in problems[3]


def test_pictures_know_the_size_of_a_pixel(tmp_path):
    label_map = DRAWN["islands in holes"]
    with tifffile.TiffFile(export_labels(tmp_path / "a.tif", label_map, CLASSES, pixel_size_um=0.5)) as tif:
        tags = tif.pages[0].tags
        assert tags["ResolutionUnit"].value == 3 and np.divide(*tags["XResolution"].value) == 20000 and np.array_equal(tif.asarray(), label_map)  # pixels a centimetre
    with Image.open(export_labels(tmp_path / "a.png", label_map, CLASSES, pixel_size_um=0.5)) as png:
        assert abs(png.info["dpi"][0] - 50800) < 1 and np.array_equal(np.asarray(png), label_map)


def test_black_and_white_of_another_program_are_two_classes(tmp_path):
    Image.fromarray(np.where(np.arange(12).reshape(3, 4) > 5, 255, 0).astype(np.uint8)).save(tmp_path / "a.png")
    label_map, _, _, problems = import_labels(tmp_path / "a.png", (3, 4), CLASSES[:2])
    assert label_map.sum() == 6 and problems == ["0 and 255 were read as classes 0 and 1"]
    with pytest.raises(UserError, match="save as .geojson"): export_labels(tmp_path / "b.png", np.array([[0, 255]], np.uint8), CLASSES[:2])
    assert not (tmp_path / "b.png").exists()


# Unsound features

BAD = {
    "no feature": (7, "is no GeoJSON feature"), "nothing": (None, "is no GeoJSON feature"), "a bare geometry": ({"type": "Polygon", "coordinates": []}, "is no GeoJSON feature"),
    "without geometry": ({"type": "Feature", "geometry": None, "properties": {}}, "has no geometry"), "without coordinates": ({"type": "Feature", "geometry": {"type": "Polygon"}, "properties": None}, "a geometry without 'coordinates'"),
    "without class": (square(1, 1, name=None), "has no class"), "an unknown class": (square(1, 1, name="Stroma"), "class 'Stroma' is not known, known are background, bone"),
    "a class that is a list": (square(1, 1, name=["bone", "osteoid"]), "is not known"), "properties that are a list": (square(1, 1) | {"properties": ["bone"]}, "has no class"),
    "not a number": (feature("Polygon", [[[0, 0], [float("nan"), 0], [4, 4]]]), "no numbers"), "endless": (feature("Polygon", [[[0, 0], [float("inf"), 0], [4, 4]]]), "no numbers"),
    "words": (feature("Polygon", [[["a", "b"], ["c", "d"], ["e", "f"]]]), "no readable geometry"), "two corners": (feature("Polygon", [[[0, 0], [1, 1]]]), "no readable geometry"),
    "one number": (feature("Polygon", 5), "no readable geometry"), "no ring": (feature("Polygon", []), "no readable geometry"), "ragged": (feature("Polygon", [[[0, 0], [1], [4, 4]]]), "no readable geometry"),
    "a huge number": (feature("Polygon", [[[0, 0], [10**400, 0], [4, 4]]]), "no readable geometry"), "far away": (feature("Polygon", [[[0, 0], [1e300, 0], [4, 1e300]]]), "far from any image"),
    "an unknown shape": (feature("Circle", [3, 3]), "a Circle is no geometry"), "empty": (feature("MultiPolygon", []), "is empty"), "smaller than a pixel": (square(1.1, 1.1, 0.2), "covers the centre of no pixel"),
    "tissue as a point": (feature("Point", [3, 3]), "osteoid is drawn as Polygon, not as Point"), "a cell as an area": (square(1, 1, name="osteoblast"), "osteoblast is drawn as Point, not as Polygon"),
    "a surface as points": (feature("MultiPoint", [[1, 1]], "eroded surface"), "eroded surface is drawn as LineString, not as Point"), "a line without length": (feature("LineString", [[1, 1], [1, 1]], "eroded surface"), "line without length"),
    "outside": (square(100, 100), "reaches beyond the image of 60 x 40 pixels"), "a point outside": (feature("Point", [100, 3], "osteoblast"), "points outside the image"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unsound_feature_is_named_and_the_others_are_taken(tmp_path, name):
    bad, reason = BAD[name]
    label_map, points, lines, problems = taken(tmp_path, collection(square(10, 10), bad, square(20, 20, name="bone")))
    assert (label_map == 2).sum() == 16 and (label_map == 1).sum() == 16 and label_map[:9, :9].sum() == 0
    assert sum(map(len, points.values())) == sum(map(len, lines.values())) == 0
    assert problems[0].startswith("features[1]: ") and reason in problems[0]


def test_numbers_that_are_text_and_heights_above_the_slide_are_read(tmp_path):
    label_map, *_, problems = taken(tmp_path, [feature("Polygon", [[["1", "1"], ["5", 1], [5, "5.0"], ["1", "5"]]]), feature("Polygon", [[[10, 10, 1], [12, 10, 1], [12, 12, 1], [10, 12, 1]]], "bone")])
    assert (label_map == 2).sum() == 16 and (label_map == 1).sum() == 4 and problems == []


@pytest.mark.parametrize("wrap", [lambda f: collection(f), lambda f: [f], lambda f: f])
def test_a_collection_a_list_and_a_feature_are_files(tmp_path, wrap):
    assert (taken(tmp_path, wrap(square(1, 1)))[0] == 2).sum() == 16


def test_geometry_is_found_however_deep_it_lies(tmp_path):
    box = {"type": "Polygon", "coordinates": [[[1, 1], [5, 1], [5, 5], [1, 5], [1, 1]]]}
    geometry = {"type": "GeometryCollection", "geometries": [box, {"type": "GeometryCollection", "geometries": [{"type": "MultiPolygon", "coordinates": [[[[10, 10], [12, 10], [12, 12], [10, 10]]]]}, {"type": "Point", "coordinates": [3, 3]}]}]}
    label_map, points, _, problems = taken(tmp_path, collection({"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "bone"}}}))
    assert (label_map == 1).sum() >= 17 and len(problems) == 1 and "not as Point" in problems[0] and not points
    deep = box
    for _ in range(300): deep = {"type": "GeometryCollection", "geometries": [deep]}
    assert (taken(tmp_path, [{"type": "Feature", "geometry": deep, "properties": {"classification": "osteoid"}}])[0] == 2).sum() == 16
    endless = '{"type":"GeometryCollection","geometries":[' * 100_000
    with pytest.raises(UserError): taken(tmp_path, f'[{{"type":"Feature","geometry":{endless}')


def test_an_outline_that_crosses_itself_keeps_all_it_encloses(tmp_path):
    bow = feature("Polygon", [[[2, 2], [12, 12], [12, 2], [2, 12]]])
    label_map, *_, problems = taken(tmp_path, [square(30, 30), bow])
    assert problems == ["features[1]: an outline crosses or touches itself: made valid"]
    assert label_map[3:11, 2].all() and label_map[3:11, 11].all() and not label_map[2:4, 5:9].any()
    holes = feature("Polygon", [[[0, 0], [20, 0], [20, 20], [0, 20]], [[2, 2], [10, 2], [10, 10], [2, 10]], [[6, 6], [14, 6], [14, 14], [6, 14]]])
    label_map, *_, problems = taken(tmp_path, [holes])
    assert (label_map == 2).sum() == 400 - 64 - 64 + 16 and len(problems) == 1  # holes that overlap are one hole


def test_parts_of_one_feature_may_overlap(tmp_path):
    box = lambda x: [[[x, 2], [x + 6, 2], [x + 6, 8], [x, 8]]]
    label_map, *_, problems = taken(tmp_path, [feature("MultiPolygon", [box(2), box(5)])])
    assert (label_map == 2).sum() == 6 * 9 and problems == []


def test_the_later_feature_wins_and_the_overlap_is_counted(tmp_path):
    label_map, *_, problems = taken(tmp_path, [square(2, 2), square(4, 4, name="bone"), square(5, 5, name="label"), square(20, 20), square(22, 22), square(3, 3, 1, "background")])
    assert label_map[4, 4] == 1 and label_map[5, 5] == 3 and label_map[2, 2] == 2 and label_map[3, 3] == 0
    assert problems == [f"{4 + 9 - 1 + 1} pixels are claimed by two classes: the later of the features won"]  # osteoid on osteoid is no quarrel


def test_what_reaches_beyond_the_image_is_cut_off_there(tmp_path):
    label_map, points, lines, problems = taken(tmp_path, [square(-2, -2), square(58, 38), square(-0.4, 20), feature("LineString", [[50, 5], [80, 5]], "eroded surface"), feature("MultiPoint", [[3, 3], [-9, 3]], "osteoblast")])
    assert (label_map == 2).sum() == 4 + 4 + 16 and lines["eroded surface"][0][:, 1].tolist() == [49.5, 60] and len(points["osteoblast"]) == 1
    assert problems[0].startswith("features[0-1, 3]: reaches beyond the image of 60 x 40 pixels") and "features[4]: has points outside" in problems[1] and len(problems) == 2


def test_thousands_of_features_are_taken_and_thousands_refused_in_one_line(tmp_path):
    many = [square(x, y, 1, name) for y in range(40) for x, name in zip(range(60), ("bone", "osteoid", "Stroma") * 20)]
    label_map, *_, problems = taken(tmp_path, collection(*many, *many[2::3]))
    assert [(label_map == c).sum() for c in (0, 1, 2)] == [800] * 3
    assert len(problems) == 1 and problems[0].startswith("features[2, 5, 8, ") and "2399-3199]" in problems[0]


def test_a_name_of_html_is_told_as_text(tmp_path):
    assert "'<b>bone</b>'" in taken(tmp_path, [square(1, 1, name="<b>bone</b>")])[-1][0]


def test_objects_nested_in_others_are_told(tmp_path):
    parent = square(1, 1); parent["properties"]["childObjects"] = [square(2, 2, 1, "bone")]
    label_map, *_, problems = taken(tmp_path, [parent])
    assert (label_map == 2).sum() == 16 and "without their hierarchy" in problems[0]


# Files that are not what they are called

@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("content", [b"", b"{", b"not a file of labels", b"\xff\xfe\x00\x80" * 40, b"{}", b"[1", b"5", b'{"type": "Topology"}', b'{"images": 3, "annotations": [], "categories": []}'])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"; path.write_bytes(content)
    with pytest.raises(UserError, match="a" + suffix): import_labels(path, SHAPE, CLASSES)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_file_and_a_folder_are_refused(tmp_path, suffix):
    (tmp_path / f"b{suffix}").mkdir()
    for name in "ab":
        with pytest.raises(UserError, match=name + suffix): import_labels(tmp_path / f"{name}{suffix}", SHAPE, CLASSES)


@pytest.mark.parametrize("suffix", [".json", ".png", ".tif"])
def test_labels_of_another_size_are_refused_with_both_sizes(tmp_path, suffix):
    path = export_labels(tmp_path / f"a{suffix}", np.ones(SHAPE, np.uint8), CLASSES)
    with pytest.raises(UserError, match="60 x 40.*61 x 40"): import_labels(path, (40, 61), CLASSES)


def test_a_zip_without_regions_is_refused_and_one_bad_region_is_not(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive: archive.writestr("a.geojson", "{}")
    with pytest.raises(UserError, match="no ImageJ region"): import_labels(path, SHAPE, CLASSES)
    export_labels(path, np.ones(SHAPE, np.uint8), CLASSES)
    with zipfile.ZipFile(path, "a") as archive: archive.writestr("b.roi", b"Iout" + b"\xff" * 80); archive.writestr("c.roi", b"short")
    label_map, *_, problems = import_labels(path, SHAPE, CLASSES)
    assert label_map.all() and problems and all(p.startswith("regions[") for p in problems)


BAD_COCO = [({"segmentation": {"size": [40, 60], "counts": [5, 6]}}, "do not make up 60 x 40"), ({"segmentation": {"size": [60, 40], "counts": [2400]}}, "run lengths for [40, 60]"), ({"segmentation": {"counts": [-1, 2401]}}, "do not make up"),
            ({"segmentation": {"counts": "~~~"}}, "do not make up"), ({"segmentation": {"counts": None}}, "readable"), ({"segmentation": [[1, 2, 3]]}, "readable"), ({"segmentation": [[1, 2, None, 4, 5, 6]]}, "no numbers"), ({}, "segmentation"),
            ({"segmentation": {"counts": [0, 2400]}, "category_id": 32}, "'vessel' is not known"), ({"segmentation": {"counts": [0, 2400]}, "category_id": [99]}, "has no class"), ({"segmentation": "text"}, "readable")]


@pytest.mark.parametrize("bad, reason", BAD_COCO)
def test_an_unsound_annotation_of_coco_is_named_and_the_others_are_taken(tmp_path, bad, reason):
    (tmp_path / "a.json").write_text(json.dumps(coco([bad, {"segmentation": {"size": list(SHAPE), "counts": [0, 40, 2360]}}])))
    label_map, *_, problems = import_labels(tmp_path / "a.json", SHAPE, CLASSES)
    assert (label_map == 2).sum() == 40 and label_map[:, 0].all() and len(problems) == 1 and problems[0].startswith("annotations[0]: ") and reason in problems[0]


# Never an exception of another kind

json_values = st.recursive(st.none() | st.booleans() | st.integers(-10**30, 10**30) | st.floats() | st.text(string.printable, max_size=5) | st.sampled_from(["Polygon", "MultiPolygon", "GeometryCollection", "Point", "LineString", "bone", "osteoblast"]),
                           lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["type", "coordinates", "geometries", "geometry", "properties", "classification", "name", "metadata", "childObjects"]), inner, max_size=4), max_leaves=25)


@settings(deadline=None, max_examples=150)
@given(st.lists(json_values | st.builds(lambda kind, c, name: feature(kind, c, name), st.sampled_from(["Polygon", "MultiPolygon", "MultiPoint", "LineString", "GeometryCollection"]), json_values, st.sampled_from(["bone", "osteoblast", "eroded surface", "x"])), max_size=4))
def test_no_feature_stops_the_import(tmp_path_factory, features):
    label_map, *_, problems = taken(tmp_path_factory.mktemp("a"), [square(10, 10), *features])
    assert label_map.shape == SHAPE and any("is no GeoJSON feature" in p for p in problems) >= any(not isinstance(f, dict) for f in features)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.fixed_dictionaries({}, optional={"segmentation": json_values, "category_id": json_values, "image_id": json_values}) | json_values, max_size=3), json_values)
def test_no_annotation_of_coco_stops_the_import(tmp_path_factory, annotations, more):
    path = tmp_path_factory.mktemp("a") / "a.json"
    found = coco([{"segmentation": {"counts": [0, 40, 2360]}}]); found["annotations"] += annotations; found["info"] = more; found["categories"].append(more)
    path.write_text(json.dumps(found))
    assert import_labels(path, SHAPE, CLASSES)[0][:, 0].all()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_damage_to_a_region_stops_the_import(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("a")
    whole = folder / "whole.zip"
    export_labels(whole, DRAWN["islands in holes"], CLASSES, points={"osteoblast": [[1, 1], [2, 2]]}, lines={"eroded surface": [[[0, 0], [3, 3]]]})
    with zipfile.ZipFile(whole) as archive: regions = [bytearray(archive.read(n)) for n in archive.namelist()]
    hurt = bytearray(data.draw(st.sampled_from(regions)))
    for _ in range(data.draw(st.integers(1, 4))): hurt[data.draw(st.integers(4, len(hurt) - 1))] = data.draw(st.integers(0, 255))
    hurt = hurt[:data.draw(st.integers(0, len(hurt)))] if data.draw(st.booleans()) else hurt
    with zipfile.ZipFile(folder / "a.zip", "w") as archive: archive.writestr("0 bone.roi", bytes(regions[0])); archive.writestr("1.roi", bytes(hurt))
    assert import_labels(folder / "a.zip", DRAWN["islands in holes"].shape, CLASSES)[0].any()


# What is not written

def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    label_map = DRAWN["classes side by side"]
    for name, given, told in [("a.png", {"points": {"osteoblast": [[1, 1]]}}, "cannot hold points"), ("a.json", {"lines": {"eroded surface": [[[1, 1], [2, 2]]]}}, "cannot hold lines: leave them out, or save as one of .geojson, .zip, .roi"),
                              ("a.roi", {}, "holds one region, these labels are 4: save as .zip"), ("a.svg", {}, "labels are not kept in .svg"), ("labels", {}, "files without ending")]:
        with pytest.raises(UserError, match=told): export_labels(tmp_path / name, label_map, CLASSES, **given)
    with pytest.raises(UserError, match="outside the class table: 3; known: 0 background, 1 bone, 2 osteoid"): export_labels(tmp_path / "a.geojson", label_map, CLASSES[:3])
    with pytest.raises(ValueError, match="uint8"): export_labels(tmp_path / "a.geojson", label_map.astype(int), CLASSES)
    with pytest.raises(UserError, match="holds one region, these labels are 0"): export_labels(tmp_path / "a.roi", DRAWN["nothing"], CLASSES)
    with pytest.raises(UserError, match="ImageJ cannot store"): export_labels(tmp_path / "a.zip", np.ones(SHAPE, np.uint8), [CLASSES[0], ClassEntry(id=1, name="bone \U0001f9b4", colour="#112233")])
    assert list(tmp_path.iterdir()) == []
