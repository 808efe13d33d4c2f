"""Files that are spoiled, mutated or made up give an error message or a result: never a crash, never a hang. Nothing in the package unpickles, parses XML bare or listens to the network."""
import io
import json
import re
import time
import zipfile

import numpy as np
import pytest
import tifffile
import yaml
from conftest import REPO
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from written_study import STUDY, write_study

from bonehisto.annotations import read_annotations
from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.exchange import FORMATS, export_labels, import_labels
from bonehisto.files import UserError, load_yaml, read_json
from bonehisto.images import open_roi, read_image, read_mask, read_polygon, read_probabilities, write_probabilities
from bonehisto.inventory import inspect_roi
from bonehisto.manifest import load_manifest
from bonehisto.ome_xml import read_ome
from bonehisto.pixel_size import file_pixel_size
from bonehisto.recipe import parse_override
from bonehisto.slide_cuts import drawn_rois

THREE = DEFAULT_CLASSES["brightfield"]
FUZZ = settings(deadline=None, max_examples=40, derandomize=True, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
GREY = np.add.outer(np.arange(20), 2 * np.arange(30)).astype(np.uint8)
RGB, MASK = np.dstack([GREY, GREY[::-1], 255 - GREY]), GREY % 3


def survives(read, *args, **options):
    """What a reader gives, or None where it refuses in words."""
    try:
        return read(*args, **options)
    except UserError as e:
        assert str(e).strip()


def written(write, suffix, folder):
    path = folder / f"valid{suffix}"
    write(path)
    return path.read_bytes()


def tif(pixels, **options):
    return lambda p: tifffile.imwrite(p, pixels, **options)


VALID = {  # small whole files of many kinds
    "strips.tif": tif(RGB, photometric="rgb"), "tiles.tif": tif(RGB, photometric="rgb", tile=(16, 16), compression="zlib", predictor=True), "lzw16.tif": tif(GREY.astype(np.uint16) * 257, compression="lzw"),
    "jpeg.tif": tif(RGB, photometric="rgb", compression="jpeg"), "big.tif": tif(MASK, bigtiff=True), "planes.tif": tif(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"), "mask.tif": tif(MASK, compression="zlib"),
    "palette.tif": tif(MASK, photometric="palette", colormap=np.zeros((3, 256), np.uint16)), "imagej.tif": tif(GREY, imagej=True, resolution=(2, 2), metadata={"unit": "um"}),
    "a.ome.tif": tif(np.stack([GREY, GREY]), photometric="minisblack", metadata={"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "Channel": {"Name": ["a", "b"], "Color": [0x00ff00ff, -65281]}}),
    "rgb.png": lambda p: Image.fromarray(RGB).save(p, dpi=(50800, 50800)), "mask.png": lambda p: Image.fromarray(MASK).save(p), "grey16.png": lambda p: Image.fromarray(GREY.astype(np.uint16)).save(p), "palette.png": lambda p: Image.fromarray(MASK, "L").convert("P").save(p),
    "a.jpg": lambda p: Image.fromarray(RGB).save(p), "a.bmp": lambda p: Image.fromarray(RGB).save(p),
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid")
    return {name: written(write, "_" + name, folder) for name, write in VALID.items()}


def spoil(data, content):
    """Bytes flipped, most of them in the head where the tags are, a piece cut out or doubled, or the end cut off."""
    out = bytearray(content)
    for _ in range(data.draw(st.integers(0, 6))):
        reach = len(out) if data.draw(st.booleans()) else min(len(out), 300)
        out[data.draw(st.integers(0, reach - 1))] = data.draw(st.sampled_from([0, 1, 2, 3, 8, 127, 128, 255]) | st.integers(0, 255))
    kind = data.draw(st.sampled_from(["whole", "cut", "hole", "double", "tail"]))
    a, b = sorted((data.draw(st.integers(0, len(out))), data.draw(st.integers(0, len(out)))))
    return bytes(out[:a] if kind == "cut" else out[:a] + out[b:] if kind == "hole" else out[:b] + out[a:] if kind == "double" else out + out[a:b] if kind == "tail" else out)


@pytest.mark.parametrize("name", VALID)
def test_a_spoiled_picture_is_read_or_refused_in_words(tmp_path, valid, name):
    @FUZZ
    @given(st.data())
    def check(data):
        path = tmp_path / name
        path.write_bytes(spoil(data, valid[name]))
        record = survives(read_image, path)
        assert record is None or record.pixels.dtype == np.uint8 and record.pixels.ndim == 3
        ids = survives(read_mask, path, THREE)
        assert ids is None or ids.dtype == np.uint8 and ids.max(initial=0) <= 2
        survives(file_pixel_size, path)
        if (roi := survives(open_roi, path)) is not None:
            with roi:
                survives(roi.read, 0, min(8, roi.shape[0]))
    check()


@FUZZ
@given(st.data())
def test_spoiled_probabilities_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("p") / "p.tif"
    write_probabilities(path, np.stack([GREY, 255 - GREY], 2))
    path.write_bytes(spoil(data, path.read_bytes()))
    survives(read_probabilities, path)


def test_a_picture_that_claims_more_than_memory_is_refused_at_once(tmp_path):
    for tag, value in (("ImageWidth", 2 ** 31 - 1), ("ImageLength", 2 ** 31 - 1), ("SamplesPerPixel", 60000), ("RowsPerStrip", 0)):
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", compression="zlib", rowsperstrip=4)
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as f:
            f.pages[0].tags[tag].overwrite(value)
        for read in (read_image, lambda p: read_mask(p, THREE)):
            assert survives(read, tmp_path / "a.tif") is None, tag


# --- text: manifests, GeoJSON, OME-XML, archives

LEAF = st.none() | st.booleans() | st.integers(-10 ** 20, 10 ** 20) | st.floats() | st.text(max_size=12) | st.sampled_from(["unknown", "from_file", "none", "../..", "images/*.png", "{stem}", "rois.csv", "\x00", "=1", "S0"])
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.sampled_from(["id", "image", "dosing_days", "name", "colour"]), inner, max_size=3), max_leaves=8)


def places(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


FULL = STUDY | {"classes": {"brightfield": [{"id": 0, "name": "a", "colour": "#000000"}, {"id": 1, "name": "b", "colour": "#111111"}]}, "section": "iliac", "wall_thickness_um": 33, "annotated": ["osteoblast"], "label_folder": "labels", "truth": "t.csv"}
FULL["rois"] = STUDY["rois"][:3]
FULL["subjects"] = [{"id": "S0", "group": "a", "covariates": {"age": 61}, "dosing_days": [[1], [11]]}, *STUDY["subjects"][1:3]]


def test_a_manifest_with_anything_anywhere_loads_or_is_refused_in_words(study):
    @FUZZ
    @given(st.sampled_from(list(places(FULL))[1:]), VALUE, st.sampled_from(list(places(FULL))[1:]), st.none() | VALUE)
    def check(first, new, second, other):
        value = changed(FULL, first, new)
        try:
            value = changed(value, second, other)
        except (KeyError, IndexError, TypeError):
            pass
        study.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8", errors="replace")
        found = survives(load_manifest, study)
        if found:
            inspect_roi(found, found.rois[0])
    check()


def test_a_manifest_whose_text_is_spoiled_loads_or_is_refused_in_words(study):
    text = yaml.safe_dump(FULL).encode()
    @FUZZ
    @given(st.data())
    def check(data):
        out = bytearray(spoil(data, text))
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(out)))
            out[at:at] = data.draw(st.sampled_from([b"&a ", b"*a ", b"<<: ", b"!!set ", b"!!binary ", b"? ", b"- ", b"{", b"[", b": ", b"\t", b"\xff", b"'", b"|\n", b"---\n", b"!!timestamp ", b"!!float ", b"%YAML 9\n", b"2024-02-31"]))
        study.write_bytes(bytes(out))
        survives(load_manifest, study)
    check()


BOMB = "\n".join(["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)])


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "a: &a {b: *a}", "[" * 5000, "{a: " * 3000, "a: " + "[[" * 2000, "- " * 4000], ids=range(7))
def test_aliases_and_depth_without_end_are_refused_at_once(tmp_path, text):
    began = time.process_time()
    (tmp_path / "data_manifest.yaml").write_text(text)
    for read in (lambda: load_manifest(tmp_path), lambda: load_yaml(text, "a.yaml"), lambda: parse_override("a.b=" + text)):
        with pytest.raises(UserError):
            read()
    assert time.process_time() - began < 60  # a guard against hangs, not a benchmark


BOX = [[[2, 2], [12, 2], [12, 9], [2, 9], [2, 2]]]
DRAWN = {"type": "FeatureCollection", "features": [
    {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": BOX}, "properties": {"objectType": "annotation", "name": "a", "classification": {"name": "osteoid", "color": [1, 2, 3]}, "metadata": {"k": "v"}}},
    {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [BOX, [[[20, 2], [25, 2], [25, 9], [20, 2]]]]}, "properties": {"classification": {"name": "mineralised bone"}}},
    {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[1, 1], [9, 9]]}, "properties": {"classification": {"name": "eroded surface"}}},
    {"type": "Feature", "geometry": {"type": "MultiPoint", "coordinates": [[1, 1], [9, 9]]}, "properties": {"classification": {"name": "Osteoblast"}}}]}
ODD = VALUE | st.sampled_from([1e308, -1e308, [[1, 2]], [], [[]], [[[0, 0], [1, 1], [0, 0]]], [[[0, 0, 0], [5, 0], [5, 5], [0, 0]]], {"type": "Polygon", "coordinates": []}, {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 2]}]}, [[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]], "NaN", 10 ** 400])


def read_all(path):
    """Every reader of GeoJSON on one file."""
    survives(read_polygon, path, (20, 30))
    survives(read_annotations, path, (20, 30))
    survives(drawn_rois, path, (30, 20))
    found = survives(import_labels, path, (20, 30), THREE)
    assert found is None or found[0].shape == (20, 30) and found[0].max() <= 255


def test_geojson_with_anything_anywhere_is_read_or_refused_in_words(tmp_path):
    @FUZZ
    @given(st.sampled_from(list(places(DRAWN))), ODD)
    def check(place, new):
        (tmp_path / "a.geojson").write_text(json.dumps(changed(DRAWN, place, new)), encoding="utf-8", errors="replace")
        read_all(tmp_path / "a.geojson")
    check()


def test_geojson_whose_bytes_are_spoiled_is_read_or_refused_in_words(tmp_path):
    @FUZZ
    @given(st.data())
    def check(data):
        (tmp_path / "a.geojson").write_bytes(spoil(data, json.dumps(DRAWN).encode()))
        read_all(tmp_path / "a.geojson")
    check()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"features":' * 50_000, '{"type": "Feature", "geometry": ' * 20_000, '{"type":"GeometryCollection","geometries":[' * 900 + "]}" * 900, "9" * 100_000, "\ufeff{}", "null", '{"type":"FeatureCollection","features":{}}'], ids=range(8))
def test_json_without_end_is_refused(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text)
    read_all(tmp_path / "a.geojson")
    (tmp_path / "a.json").write_bytes(text.encode("utf-8"))
    survives(read_json, tmp_path / "a.json")
    survives(import_labels, tmp_path / "a.json", (20, 30), THREE)


@pytest.mark.parametrize("suffix", [".zip", ".json", ".png", ".tif"])
def test_spoiled_labels_of_other_programs_are_taken_or_refused(tmp_path, suffix):
    assert suffix in FORMATS
    export_labels(tmp_path / f"valid{suffix}", MASK, THREE)
    content = (tmp_path / f"valid{suffix}").read_bytes()
    @FUZZ
    @given(st.data())
    def check(data):
        (tmp_path / f"a{suffix}").write_bytes(spoil(data, content))
        survives(import_labels, tmp_path / f"a{suffix}", (20, 30), THREE)
    check()


def test_an_archive_writes_nothing_and_does_not_unpack_without_end(tmp_path, monkeypatch):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../../up.roi", "/abs.roi", "C:\\up.roi", "osteoid.roi"):
            archive.writestr(name, b"Iout" + bytes(60))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.zip").write_bytes(held.getvalue())
    survives(import_labels, tmp_path / "in/a.zip", (20, 30), THREE)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.zip"]
    with zipfile.ZipFile(tmp_path / "in/b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(9):
            archive.writestr(f"{i}.roi", bytes(1 << 17))
    monkeypatch.setattr("bonehisto.imagej_labels.MAX_UNPACKED", 1 << 20)
    with pytest.raises(UserError, match="unpacks to more than"):
        import_labels(tmp_path / "in/b.zip", (20, 30), THREE)


OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels SizeC="2" SizeZ="1" SizeT="1" SignificantBits="12" PhysicalSizeX="0.5" PhysicalSizeXUnit="um"><Channel Name="a" Color="-1"/><Channel Color="7"/><TiffData IFD="0" FirstC="0"/></Pixels></Image></OME>'


@FUZZ
@given(st.data())
def test_a_spoiled_ome_xml_is_read_or_refused(data):
    text = spoil(data, OME.encode()).decode("utf-8", "replace")
    for old in ('"1"', '"2"', '"12"', '"0.5"', '"-1"', '"0"'):
        if data.draw(st.booleans()):
            text = text.replace(old, '"' + data.draw(st.sampled_from(["", "x", "1e999", "-9", "9" * 30, "nan", "&lt;"])) + '"')
    try:
        read_ome(text)
    except ValueError as e:
        assert str(e)


# --- what the source may not hold

FORBIDDEN = {r"\bpickle\b(?!=False)": "unpickling runs what is in the file", r"torch\.(load|save)\(": "torch's own format is pickle", r"allow_pickle\s*=\s*True": "object arrays are pickle", r"read_pickle|joblib\.load": "pickle",
             r"yaml\.(load|unsafe_load|full_load)\(": "use load_yaml or read_yaml", r"yaml\.safe_load\((?!text\))": "use load_yaml: aliases are bounded there", r"(?<!defusedxml\.)ElementTree import (?!ParseError)|minidom|lxml": "XML goes through defusedxml",
             r"extractall\(|\.extract\(|tarfile": "nothing is unpacked to the disk", r"0\.0\.0\.0|[\"']::[\"']": "nothing listens beyond 127.0.0.1", r"\beval\(\s*[^)\s]|\bexec\(": "nothing that was read is run", r"shell=True": "no shell", r"urlopen|requests\.|http\.client": "nobody outside is asked",
             r"autoescape=False|\|\s*safe\b": "HTML escapes what came from files"}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_the_source_holds_nothing_that_trusts_a_file_or_opens_a_door(pattern):
    files = [*sorted((REPO / "bonehisto").glob("*.py")), *(REPO / "bonehisto/templates").glob("*"), *(REPO / "nbs/steps").glob("*.ipynb")]
    found = [f"{p.name}: {line.strip()[:120]}" for p in files if p.name != "_modidx.py" for line in p.read_text().splitlines() if re.search(pattern, line)]
    assert not found, f"{FORBIDDEN[pattern]}: {found}"


def test_arrays_that_hold_objects_are_not_loaded(tmp_path):
    from bonehisto.token_pictures import load_pictures
    np.savez(tmp_path / "a.npz", frames=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError):
        load_pictures(tmp_path / "a.npz")
