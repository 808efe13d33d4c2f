"""Every kind of image file becomes the same RGB, or is refused with the reason; masks hold only ids the class table knows."""
import json
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.files import UserError
from bonehisto.images import image_size, open_roi, read_image, read_mask, read_polygon, write_mask

GREY = np.add.outer(np.arange(50), 2 * np.arange(70)).astype(np.uint8)
RGB = np.dstack([GREY, GREY[::-1], 255 - GREY])
TWO, THREE = DEFAULT_CLASSES["brightfield"][:2], DEFAULT_CLASSES["brightfield"]


def pil(mode="RGB", **options):
    return lambda path: Image.fromarray(RGB if mode != "L" else GREY).convert(mode).save(path, **options)


def tif(pixels, **options):
    return lambda path: tifffile.imwrite(path, pixels, **options)


def sixteen(pixels):
    return pixels.astype(np.uint16) * 257


def rgba(path):
    Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)])).save(path)


# name: (writer, expected pixels or None where lossy, a word of the note or None)
SAME = {
    "rgb.png": (pil(), RGB, None), "rgb.bmp": (pil(), RGB, None), "rgb.jpg": (pil(quality=98, subsampling=0), None, None),
    "grey.png": (pil("L"), GREY, "greyscale"), "rgba.png": (rgba, RGB, "transparency"), "cmyk.jpg": (pil("CMYK", quality=98), None, "CMYK"),
    "grey16.png": (lambda p: Image.fromarray(sixteen(GREY)).save(p), GREY, "16 bits scaled to 8: 65535 becomes 255"),
    "palette.png": (lambda p: Image.fromarray(RGB // 128 * 128).quantize(8, dither=0).save(p), None, "palette"),
    "rgb.tif": (tif(RGB, photometric="rgb"), RGB, None), "zlib.tif": (tif(RGB, photometric="rgb", compression="zlib", predictor=True), RGB, None),
    "lzw.tif": (tif(RGB, photometric="rgb", compression="lzw"), RGB, None), "tiles.tif": (tif(RGB, photometric="rgb", tile=(32, 16)), RGB, None),
    "planes.tif": (tif(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"), RGB, None),
    "planes_tiles.tif": (tif(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate", tile=(16, 16), compression="zlib"), RGB, None),
    "rgb16.tif": (tif(sixteen(RGB), photometric="rgb"), RGB, "16 bits"), "big_endian.tif": (tif(sixteen(GREY), byteorder=">"), GREY, "16 bits"),
    "bigtiff.tif": (tif(GREY, bigtiff=True), GREY, "greyscale"), "white0.tif": (tif(255 - GREY, photometric="miniswhite"), GREY, "0 as white"),
    "alpha.tif": (tif(np.dstack([RGB, np.full_like(GREY, 255)]), photometric="rgb", extrasamples=["unassalpha"]), RGB, "transparency"),
    "cmyk.tif": (tif(np.dstack([255 - RGB, np.zeros_like(GREY)]), photometric="separated"), RGB, "CMYK"),
    "jpeg.tif": (tif(RGB, photometric="rgb", compression="jpeg", compressionargs={"level": 98}), None, None),
    "bits.tif": (tif(GREY > 100, photometric="minisblack"), (GREY > 100) * np.uint8(255), "black and white"),
    "palette.tif": (tif(GREY, photometric="palette", colormap=np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))), GREY, "palette"),
}


@pytest.mark.parametrize("name", SAME)
def test_every_format_becomes_the_same_rgb_and_says_what_was_converted(tmp_path, name):
    writer, expected, word = SAME[name]
    writer(tmp_path / name)
    record = read_image(tmp_path / name)
    assert record.pixels.dtype == np.uint8 and record.pixels.shape == (50, 70, 3) == (*image_size(tmp_path / name), 3)
    if expected is not None:
        np.testing.assert_array_equal(record.pixels, expected if expected.ndim == 3 else np.dstack([expected] * 3))
    else:
        wanted = RGB // 128 * 128 if name.startswith("palette") else RGB
        assert np.abs(record.pixels.astype(int) - wanted).mean() < 8
    assert any(word in n for n in record.notes) if word else record.notes == []


@pytest.mark.parametrize("name", SAME)
def test_rows_read_one_strip_at_a_time_equal_the_whole(tmp_path, name):
    SAME[name][0](tmp_path / name)
    whole = read_image(tmp_path / name).pixels
    with open_roi(tmp_path / name) as roi:
        assert roi.shape == whole.shape
        for y0, y1 in ((0, 1), (0, 17), (15, 33), (31, 50), (0, 50)):
            np.testing.assert_array_equal(roi.read(y0, y1), whole[y0:y1])


def test_the_largest_value_a_tiff_states_becomes_white(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.uint16) * 16, extratags=[(281, "H", 1, 4080, True)])
    record = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(record.pixels[..., 0], GREY)
    assert any("4080 becomes 255" in n for n in record.notes)


def test_twelve_bits_in_a_sixteen_bit_file_are_pointed_out(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 16).save(tmp_path / "a.png")
    assert any("very dark" in n and "MaxSampleValue" in n for n in read_image(tmp_path / "a.png").notes)


def cut(writer, keep):
    def write(path):
        writer(path)
        data = path.read_bytes()
        path.write_bytes(data[:int(len(data) * keep)])
    return write


def spoiled_png(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2:len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)


def two_frames(path):
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(255 - RGB)])


REFUSED = {
    "cut.png": (cut(pil(), 0.9), "damaged or cut short"), "cut.jpg": (cut(pil(), 0.8), "damaged or cut short"), "cut.bmp": (cut(pil(), 0.8), "damaged or cut short"),
    "cut.tif": (cut(tif(RGB, photometric="rgb"), 0.7), "damaged or cut short"), "cut_zlib.tif": (cut(tif(RGB, photometric="rgb", compression="zlib"), 0.7), "damaged or cut short"),
    "head.png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), "damaged or cut short"), "head.tif": (lambda p: p.write_bytes(b"II*\0\x08\0"), "damaged or cut short"),
    "spoiled.png": (spoiled_png, "damaged or cut short"), "empty.png": (lambda p: p.touch(), r"0 bytes"), "words.png": (lambda p: p.write_text("hello"), "not a PNG"),
    "folder.png": (lambda p: p.mkdir(), "is a folder"), "gone.png": (lambda p: None, "no such file"), "frames.png": (two_frames, "2 frames"),
    "stack.tif": (tif(np.stack([GREY] * 3), photometric="minisblack"), "3 images"), "hyperstack.tif": (tif(np.stack([GREY] * 4), imagej=True), "4 images"),
    "float.tif": (tif(GREY.astype(np.float32)), "float32"), "pointer.png": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "not downloaded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_single_whole_image_is_refused_naming_the_file(tmp_path, name):
    writer, words = REFUSED[name]
    writer(tmp_path / name)
    with pytest.raises(UserError, match=words) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value)


def test_an_image_that_unfolds_to_gigabytes_is_refused_before_decoding(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "bomb.png")
    data = bytearray((tmp_path / "bomb.png").read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(UserError, match="million pixels"):
        read_image(tmp_path / "bomb.png")


@settings(deadline=None, max_examples=25)
@given(h=st.integers(1, 40), w=st.integers(1, 40), suffix=st.sampled_from(["png", "tif"]), size=st.one_of(st.none(), st.floats(0.05, 5)))
def test_a_mask_comes_back_as_it_was_written(tmp_path_factory, h, w, suffix, size):
    path = tmp_path_factory.mktemp("masks") / f"m.{suffix}"
    mask = np.random.default_rng(h * 41 + w).integers(0, 3, (h, w), dtype=np.uint8)
    write_mask(path, mask, size)
    np.testing.assert_array_equal(read_mask(path, THREE, shape=(h, w)), mask)


def test_a_failed_write_leaves_the_old_mask_and_nothing_beside_it(tmp_path, monkeypatch):
    path = write_mask(tmp_path / "m.png", np.ones((4, 4), np.uint8))
    before = path.read_bytes()
    def full(self, where, **options):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="no space left"):
        write_mask(path, np.zeros((4, 4), np.uint8))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def mask_file(path, ids):
    (tifffile.imwrite if path.suffix == ".tif" else lambda p, a: Image.fromarray(a).save(p))(path, ids)
    return path


def test_0_and_255_are_read_as_0_and_1_for_two_classes_and_said(tmp_path):
    notes, mask = [], (GREY > 90).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(mask_file(tmp_path / "m.png", mask * 255), TWO, notes=notes), mask)
    assert notes == ["0 and 255 were read as classes 0 and 1"]
    with pytest.raises(UserError, match=r"m.png: holds ids outside the class table: 255 \(\d+ px\); known: 0 background, 1 mineralised bone, 2 osteoid"):
        read_mask(tmp_path / "m.png", THREE)


@pytest.mark.parametrize("dtype, suffix", [(np.uint8, "png"), (np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif"), (np.uint32, "tif")])
def test_instances_of_any_width_become_one_class(tmp_path, dtype, suffix):
    ids = (np.arange(50 * 70).reshape(50, 70) % 200).astype(dtype)
    path = mask_file(tmp_path / f"m.{suffix}", ids)
    np.testing.assert_array_equal(read_mask(path, TWO, "instances"), ids > 0)
    with pytest.raises(UserError, match="masks: instances"):
        read_mask(path, TWO)


def test_palette_and_grey_rgb_masks_keep_their_ids(tmp_path):
    ids = (GREY % 3).astype(np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
    palette.save(tmp_path / "p.png")
    Image.fromarray(np.dstack([ids] * 3)).save(tmp_path / "g.png")
    notes = []
    for name in ("p.png", "g.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, THREE, notes=notes), ids)
    assert len(notes) == 1 and "RGB" in notes[0]


@pytest.mark.parametrize("name, write, words", [
    ("colour.png", lambda p: Image.fromarray(RGB).save(p), "colour picture"), ("m.jpg", lambda p: Image.fromarray(GREY % 3).save(p), "JPEG"),
    ("float.tif", lambda p: tifffile.imwrite(p, GREY.astype(np.float32)), "float32"), ("stack.tif", lambda p: tifffile.imwrite(p, np.stack([GREY] * 2), photometric="minisblack"), "2 images"),
    ("cut.tif", cut(tif((GREY % 3)), 0.6), "damaged"), ("cut.png", cut(pil("L"), 0.6), "damaged"), ("gone.png", lambda p: None, "no such file")])
def test_masks_that_hold_no_ids_are_refused(tmp_path, name, write, words):
    write(tmp_path / name)
    with pytest.raises(UserError, match=words) as caught:
        read_mask(tmp_path / name, THREE)
    assert name in str(caught.value)


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    with pytest.raises(UserError, match="70 x 50 pixels, its image 71 x 50"):
        read_mask(mask_file(tmp_path / "m.png", GREY % 3), THREE, shape=(50, 71, 3))


def geojson(path, *rings, kind="Polygon"):
    coordinates = [list(r) for r in rings] if kind == "Polygon" else [[list(r)] for r in rings]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": {"type": kind, "coordinates": coordinates}}]}))
    return path


def box(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


@settings(deadline=None, max_examples=40)
@given(x0=st.integers(0, 20), y0=st.integers(0, 20), w=st.integers(3, 40), h=st.integers(3, 25))
def test_a_box_covers_exactly_its_pixels(tmp_path_factory, x0, y0, w, h):
    path = geojson(tmp_path_factory.mktemp("p") / "a.geojson", box(x0, y0, x0 + w, y0 + h), box(x0 + 1, y0 + 1, x0 + 2, y0 + 2))
    mask = np.zeros((50, 70), bool)
    mask[y0:y0 + h, x0:x0 + w] = True
    mask[y0 + 1, x0 + 1] = False
    np.testing.assert_array_equal(read_polygon(path, (50, 70)), mask)


def test_several_polygons_are_one_area(tmp_path):
    path = geojson(tmp_path / "a.geojson", box(0, 0, 10, 10), box(20, 20, 30, 30), kind="MultiPolygon")
    assert read_polygon(path, (50, 70)).sum() == 200


def test_a_circle_has_its_area(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 721)
    path = geojson(tmp_path / "a.geojson", np.c_[150 + 120 * np.cos(angle), 150.3 + 120 * np.sin(angle)].tolist())
    assert abs(read_polygon(path, (300, 300)).sum() / (np.pi * 120 ** 2) - 1) < 1e-3


@pytest.mark.parametrize("content, words", [
    (lambda p: geojson(p, box(10, 10, 90, 40)), r"reaches from \(10, 10\) to \(90, 40\), the image is 70 x 50"), (lambda p: geojson(p, box(-9, 10, 20, 40)), "reaches"),
    (lambda p: geojson(p, [[0, 0], [20, 20], [20, 0], [0, 20], [0, 0]]), "not simple"), (lambda p: p.write_text("{"), "not a GeoJSON polygon"),
    (lambda p: p.write_text(json.dumps({"type": "Point", "coordinates": [1, 2]})), "a Point has no area"), (lambda p: p.write_text("[]"), "not a GeoJSON polygon"),
    (lambda p: p.write_text(json.dumps({"type": "FeatureCollection", "features": []})), "no polygon"), (lambda p: None, "cannot be read"),
    (lambda p: p.write_text(json.dumps({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]})), "not a GeoJSON polygon")])
def test_polygons_that_cannot_be_used_are_refused(tmp_path, content, words):
    content(tmp_path / "roi.geojson")
    with pytest.raises(UserError, match=words) as caught:
        read_polygon(tmp_path / "roi.geojson", (50, 70))
    assert "roi.geojson" in str(caught.value)
