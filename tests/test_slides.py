"""ROIs drawn on a whole slide come out at the resolution that is wanted, in their place, and make a study; what cannot be cut is refused."""
import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

from bonehisto.files import UserError
from bonehisto.images import read_image, read_polygon
from bonehisto.inventory import inventory
from bonehisto.manifest import load_manifest
from bonehisto.pixel_size import file_pixel_size
from bonehisto.slide_cuts import cut_slide

pytest.importorskip("openslide", reason="whole slides need pip install 'bonehisto[slides]'")
NOISE = np.random.default_rng(0).random((800, 1000, 3), np.float32)
WHOLE = (255 * np.clip(0.5 + 6 * (gaussian_filter(NOISE, (6, 6, 0)) - 0.5), 0, 1)).astype(np.uint8)


def write_slide(path, um=0.25, levels=(1, 2, 4), unit="CENTIMETER"):
    with tifffile.TiffWriter(path) as tif:
        for k in levels:
            small = WHOLE[:800 // k * k, :1000 // k * k].reshape(800 // k, k, 1000 // k, k, 3).mean((1, 3)).astype(np.uint8)
            tif.write(small, tile=(128, 128), photometric="rgb", subfiletype=int(k > 1), resolution=((1e4 if unit == "CENTIMETER" else 25400) / um,) * 2, resolutionunit=unit)
    return path


def box(x0, y0, x1, y1):
    return [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]


def write_rois(path, **rings):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": r}, "properties": {"objectType": "annotation", "name": n, "classification": {"name": "Region"}}} for n, r in rings.items()]}))
    return path


@pytest.mark.parametrize("um", [0.25, 0.4, 0.5, 1.0, 1.7])
def test_a_cut_shows_what_lies_there_at_the_size_that_is_wanted(tmp_path, um):
    slide, rois = write_slide(tmp_path / "S1.tif"), write_rois(tmp_path / "r.geojson", a=box(301, 203, 901, 703))
    path, = cut_slide(slide, rois, um, tmp_path / "out")
    pixels = read_image(path).pixels
    assert pixels.shape == (int(np.ceil(500 * .25 / um)), int(np.ceil(600 * .25 / um)), 3) and file_pixel_size(path).x_um == pytest.approx(um)
    factor = um / .25
    if factor == 1:
        np.testing.assert_array_equal(pixels, WHOLE[203:703, 301:901])
    smooth = gaussian_filter(WHOLE.astype(np.float32), (factor / 2.5, factor / 2.5, 0))
    y, x = (203 + (np.arange(0, pixels.shape[0] - 1) + .5) * factor).astype(int), (301 + (np.arange(0, pixels.shape[1] - 1) + .5) * factor).astype(int)
    assert np.abs(pixels[:-1, :-1] - smooth[np.ix_(y, x)]).mean() < 4  # a shift of one pixel would be more
    with tifffile.TiffFile(path) as tif:
        assert tif.pages[0].is_tiled


def test_no_more_than_a_window_is_ever_read(tmp_path, monkeypatch):
    import openslide
    sizes, read = [], openslide.OpenSlide.read_region
    monkeypatch.setattr(openslide.OpenSlide, "read_region", lambda self, at, level, size: sizes.append(size) or read(self, at, level, size))
    cut_slide(write_slide(tmp_path / "S1.tif", levels=(1,)), write_rois(tmp_path / "r.geojson", a=box(0, 0, 1000, 800)), 0.3, tmp_path / "out")
    assert len(sizes) == 4 and max(max(s) for s in sizes) < 700


def test_corners_count_from_where_the_scan_begins_as_in_qupath(tmp_path, monkeypatch):
    import openslide
    from types import MappingProxyType
    said = openslide.OpenSlide.properties.fget
    monkeypatch.setattr(openslide.OpenSlide, "properties", property(lambda self: MappingProxyType({**said(self), "openslide.bounds-x": "120", "openslide.bounds-y": "80", "openslide.bounds-width": "700", "openslide.bounds-height": "600"})))
    path, = cut_slide(write_slide(tmp_path / "S1.tif"), write_rois(tmp_path / "r.geojson", a=box(100, 50, 400, 350)), 0.25, tmp_path / "out")
    np.testing.assert_array_equal(read_image(path).pixels, WHOLE[130:430, 220:520])
    with pytest.raises(UserError, match="the slide is 700 x 600"): cut_slide(tmp_path / "S1.tif", write_rois(tmp_path / "r.geojson", a=box(0, 0, 701, 99)), 0.25, tmp_path / "out")


def test_the_cuts_of_two_slides_are_one_study_that_passes_the_check(tmp_path):
    for name in ("S1", "S2", "S1"):
        rois = write_rois(tmp_path / "r.geojson", **{"Cancellous 1": box(100, 100, 500, 400), "Cortex": [[[400, 400], [800, 400], [400, 800], [400, 400]]]})
        cut_slide(write_slide(tmp_path / f"{name}.tif"), rois, 0.5, tmp_path / "out", modality="brightfield")
    study = load_manifest(tmp_path / "out")
    assert [r.id for r in study.rois] == ["S2_Cancellous-1", "S2_Cortex", "S1_Cancellous-1", "S1_Cortex"] and {s.id for s in study.subjects} == {"S1", "S2"}
    table, _, problems = inventory(study)
    assert not problems and table[["height", "width"]].values.tolist()[:2] == [[150, 200], [200, 200]]
    assert abs(read_polygon(study.rois[1].polygon, (200, 200)).sum() - 20000) < 300


REFUSED = {
    "finer than the slide": (dict(um=0.1), "finer than the 0.25 um"), "out of range": (dict(um=50), "--pixel-size-um is 50"), "modality": (dict(modality="bright"), "give brightfield or fluorescence"),
    "off the slide": (dict(ring=box(100, 100, 5000, 400)), "the slide is 1000 x 800 pixels"), "crossing": (dict(ring=[[[0, 0], [90, 90], [90, 0], [0, 90], [0, 0]]]), "not simple"),
    "too many pixels": (dict(most=1000), "million pixels"), "no polygon": (dict(ring=None), "holds no polygon"),
    "print setting": (dict(slide=dict(um=25400 / 300, unit="INCH")), "states no pixel size: give"), "contradiction": (dict(slide_um=0.5), "--slide-pixel-size-um is 0.5, but"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_cut_is_refused_and_writes_no_manifest(tmp_path, case, monkeypatch):
    given, words = REFUSED[case]
    given = dict(um=0.5, ring=box(100, 100, 500, 400), modality=None, slide={}, slide_um=None, most=None) | given
    if given["most"]:
        monkeypatch.setattr("bonehisto.slide_cuts.MAX_PIXELS", given["most"])
    rois = write_rois(tmp_path / "r.geojson", **({"a": given["ring"]} if given["ring"] else {}))
    with pytest.raises(UserError) as caught:
        cut_slide(write_slide(tmp_path / "S1.tif", **given["slide"]), rois, given["um"], tmp_path / "out", modality=given["modality"], slide_um=given["slide_um"])
    assert words in str(caught.value) and not (tmp_path / "out/data_manifest.yaml").exists()


def test_the_command_cuts_and_refuses_a_file_that_is_no_slide(tmp_path):
    rois = write_rois(tmp_path / "r.geojson", **{"../../up": box(100, 100, 500, 400)})
    def cut(slide):
        return subprocess.run([sys.executable, "-m", "bonehisto", "cut", slide, "--rois", rois, "--pixel-size-um", "0.5", "--out", tmp_path / "out"], capture_output=True, text=True)
    done = cut(write_slide(tmp_path / "S1.tif"))
    assert done.returncode == 0 and "wrote 1 ROIs" in done.stdout and [p.name for p in (tmp_path / "out/images").iterdir()] == ["S1_up.tif"]
    (tmp_path / "words.svs").write_text("no slide")
    done = cut(tmp_path / "words.svs")
    assert done.returncode == 2 and "no whole slide that OpenSlide knows" in done.stderr and "Traceback" not in done.stderr


def test_a_czi_is_cut_like_any_slide(tmp_path):
    czi = pytest.importorskip("pylibCZIrw.czi", reason="CZI needs pip install 'bonehisto[czi]'")
    with czi.create_czi(str(tmp_path / "S1.czi")) as file:
        file.write(np.ascontiguousarray(WHOLE[..., ::-1]), plane={"C": 0, "Z": 0, "T": 0})
        file.write_metadata("S1", scale_x=0.25e-6, scale_y=0.25e-6)
    path, = cut_slide(tmp_path / "S1.czi", write_rois(tmp_path / "r.geojson", a=box(301, 203, 901, 703)), 0.25, tmp_path / "out")
    np.testing.assert_array_equal(read_image(path).pixels, WHOLE[203:703, 301:901])
    assert file_pixel_size(path).x_um == pytest.approx(0.25)
    path, = cut_slide(tmp_path / "S1.czi", write_rois(tmp_path / "r.geojson", a=box(300, 204, 900, 704)), 1.0, tmp_path / "coarse")
    smooth = WHOLE[204:704, 300:900].reshape(125, 4, 150, 4, 3).mean((1, 3))
    assert np.abs(read_image(path).pixels - smooth).mean() < 4


SHOWN = [("blue", (0, 0, 255), 100, 3000, True), ("hidden", (255, 0, 0), 0, 4095, False), ("yellow", (255, 200, 0), 200, 2000, True)]  # name, colour, black, white, switched on


def write_channels(czi, path, shown=SHOWN, planes=1, um=0.25):
    """A fluorescence slide of 12 bits in 16; returns its samples (channel, row, column)."""
    samples = np.stack([(4095 * (gaussian_filter(NOISE[..., c], 4) - .4) / .2).clip(0, 4095).astype(np.uint16) for c in range(len(shown))])
    with czi.create_czi(str(path)) as file:
        for z in range(planes):
            for c, plane in enumerate(samples): file.write(plane, plane={"C": c, "Z": z, "T": 0})
        display = {c: czi.ChannelDisplaySettingsDataClass(on, czi.TintingMode.Color, czi.Rgb8Color(*map(np.uint8, colour)), low / 65535, high / 65535) for c, (_, colour, low, high, on) in enumerate(shown) if colour}
        file.write_metadata("S1", channel_names={c: name for c, (name, *_) in enumerate(shown)}, scale_x=um * 1e-6, scale_y=um * 1e-6, display_settings=display)
    return samples


def test_the_channels_of_a_czi_are_seen_as_its_program_shows_them(tmp_path):
    czi = pytest.importorskip("pylibCZIrw.czi", reason="CZI needs pip install 'bonehisto[czi]'")
    samples = write_channels(czi, tmp_path / "S1.czi")
    path, = cut_slide(tmp_path / "S1.czi", write_rois(tmp_path / "r.geojson", a=box(301, 203, 901, 703)), 0.25, tmp_path / "out", modality="fluorescence")
    seen = sum(((np.clip(samples[c, 203:703, 301:901], low, high) - low) / (high - low))[..., None] * np.array(colour) for c, (_, colour, low, high, on) in enumerate(SHOWN) if on)
    assert np.abs(read_image(path).pixels - np.minimum(seen, 255)).max() <= 1
    path, = cut_slide(tmp_path / "S1.czi", write_rois(tmp_path / "r.geojson", a=box(0, 0, 400, 400)), 1.0, tmp_path / "coarse")
    assert read_image(path).pixels.shape == (100, 100, 3) and read_image(path).pixels.mean() == pytest.approx(np.minimum(seen, 255).mean(), rel=.2)


@pytest.mark.parametrize("change, says", [
    (dict(shown=[("one", None, 0, 0, True), ("two", None, 0, 0, True)]), "channels (one, two) without colours that tell them apart"),
    (dict(shown=[("one", (255, 255, 255), 0, 65535, True), ("two", (255, 255, 255), 0, 65535, True)]), "without colours"),
    (dict(shown=[("one", (255, 0, 0), 900, 900, True)]), "leaves nothing to see"), (dict(planes=2), "2 planes in depth or time"),
])
def test_a_czi_whose_look_is_not_said_is_refused(tmp_path, change, says):
    czi = pytest.importorskip("pylibCZIrw.czi", reason="CZI needs pip install 'bonehisto[czi]'")
    write_channels(czi, tmp_path / "S1.czi", **change)
    with pytest.raises(UserError) as caught: cut_slide(tmp_path / "S1.czi", write_rois(tmp_path / "r.geojson", a=box(0, 0, 99, 99)), 0.5, tmp_path / "out")
    assert says in str(caught.value)


def test_a_czi_that_is_damaged_or_cannot_be_read_here_is_refused_in_words(tmp_path):
    (tmp_path / "S1.czi").write_bytes(b"ZISRAWFILE" + bytes(600))
    with pytest.raises(UserError, match="pylibCZIrw, which is not installed|no CZI that"):
        cut_slide(tmp_path / "S1.czi", write_rois(tmp_path / "r.geojson", a=box(0, 0, 9, 9)), 0.5, tmp_path / "out")
