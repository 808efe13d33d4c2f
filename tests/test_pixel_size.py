"""Pixel sizes that files state are read, held against the manifest, and never taken from a printer's setting; channels come in their colours."""
import numpy as np
import pytest
import tifffile
from PIL import Image
from written_study import write_study

from bonehisto.files import UserError
from bonehisto.images import open_roi, read_image
from bonehisto.inventory import check_study, inventory, note_lines
from bonehisto.manifest import load_manifest, save_manifest
from bonehisto.pixel_size import file_pixel_size

GREY = np.add.outer(np.arange(48), 2 * np.arange(64)).astype(np.uint8)
RGB = np.dstack([GREY, GREY[::-1], 255 - GREY])


def tif(**options):
    return lambda path: tifffile.imwrite(path, RGB, photometric="rgb", **options)


def png(dpi):
    return lambda path: Image.fromarray(RGB).save(path, dpi=(dpi, dpi))


def ome(**said):
    return lambda path: tifffile.imwrite(path, RGB, photometric="rgb", metadata={"axes": "YXS", **said})


STATED = {  # name: (writer, um or None)
    "cm.tif": (tif(resolution=(20000, 20000), resolutionunit="CENTIMETER"), 0.5), "inch.tif": (tif(resolution=(25400 / 0.325,) * 2, resolutionunit="INCH"), 0.325),
    "print.tif": (tif(resolution=(300, 300), resolutionunit="INCH"), None), "screen.tif": (tif(resolution=(72, 72), resolutionunit="INCH"), None),
    "print_cm.tif": (tif(resolution=(118.11, 118.11), resolutionunit="CENTIMETER"), None), "unitless.tif": (tif(resolution=(2, 2), resolutionunit="NONE"), None), "silent.tif": (tif(), None),
    "imagej.tif": (lambda p: tifffile.imwrite(p, GREY, imagej=True, resolution=(1 / 0.65,) * 2, metadata={"unit": "micron"}), 0.65),
    "imagej_px.tif": (lambda p: tifffile.imwrite(p, GREY, imagej=True, resolution=(2, 2), metadata={"unit": "pixel"}), None),
    "um.ome.tif": (ome(PhysicalSizeX=0.25, PhysicalSizeXUnit="µm", PhysicalSizeY=0.25, PhysicalSizeYUnit="µm"), 0.25),
    "nm.ome.tif": (ome(PhysicalSizeX=250, PhysicalSizeXUnit="nm", PhysicalSizeY=250, PhysicalSizeYUnit="nm"), 0.25), "px.ome.tif": (ome(PhysicalSizeX=1, PhysicalSizeXUnit="pixel"), None),
    "big.tif": (tif(bigtiff=True, tile=(16, 16), resolution=(20000, 20000), resolutionunit="CENTIMETER"), 0.5),
    "a.png": (png(50800), 0.5), "print.png": (png(300), None), "scanner.png": (png(2400), None), "print.jpg": (png(600), None),
    "aperio.tif": (tif(description="Aperio Image Library v11\n48x64 |AppMag = 20|MPP = 0.4990", metadata=None), 0.499),
}


@pytest.mark.parametrize("name", STATED)
def test_a_microscope_is_believed_and_a_printer_is_not(tmp_path, name):
    writer, um = STATED[name]
    writer(tmp_path / name)
    found = file_pixel_size(tmp_path / name)
    assert found is None if um is None else found.x_um == pytest.approx(um, rel=1e-4) and found.square


def study(folder, pixel_size_um, writer=tif(resolution=(20000, 20000), resolutionunit="CENTIMETER"), name="images/S0_b.tif"):
    path = write_study(folder, lambda s: s["rois"][0].update(image=name, pixel_size_um=pixel_size_um))
    writer(folder / name)
    return path


def test_a_contradiction_is_an_error_with_both_values(tmp_path):
    with pytest.raises(UserError) as caught:
        check_study(study(tmp_path, 0.25))
    assert len(caught.value.problems) == 1
    for text in ("rois[0].pixel_size_um: is 0.25 um here, but the file says 0.5 um (TIFF resolution)", "`from_file`"):
        assert text in str(caught.value)


@pytest.mark.parametrize("given", [0.5, 0.503, "from_file"])
def test_rounding_is_no_contradiction_and_the_file_may_be_asked(tmp_path, given):
    path = study(tmp_path, given)
    assert "no problems found" in check_study(path)
    assert load_manifest(path).rois[0].pixel_size_um == (0.5 if given == "from_file" else given)


def test_a_copy_of_the_manifest_holds_the_number_that_was_read(tmp_path):
    saved = save_manifest(load_manifest(study(tmp_path / "study", "from_file")), tmp_path / "copy.yaml")
    assert "from_file" not in saved.read_text() and load_manifest(saved).rois[0].pixel_size_um == 0.5


def test_an_unknown_size_that_the_file_knows_is_said(tmp_path):
    _, notes, problems = inventory(load_manifest(study(tmp_path, "unknown")))
    assert not problems and any("unknown, but the file says 0.5 um (TIFF resolution): write `from_file`" in n for n in note_lines(notes))


@pytest.mark.parametrize("writer, words", [
    (tif(resolution=(300, 300), resolutionunit="INCH"), "rois[0].pixel_size_um is from_file, but S0_b.tif states no pixel size"),
    (tif(resolution=(20000, 40000), resolutionunit="CENTIMETER"), "rois[0].pixel_size_um is from_file, but the file says 0.5 x 0.25 um"),
    (lambda p: p.write_bytes(b"II*\0\x08\0"), "damaged or cut short")])
def test_a_file_that_cannot_say_is_an_error_that_says_what_to_do(tmp_path, writer, words):
    with pytest.raises(UserError) as caught:
        load_manifest(study(tmp_path, "from_file", writer))
    assert words in str(caught.value)


def channels(*colours, dtype=np.uint8, planes=None, **said):
    planes = np.stack([GREY, GREY[::-1], GREY[:, ::-1]][:len(colours)]).astype(dtype) if planes is None else planes
    signed = [None if c is None else (((c << 8) | 255) ^ 0x80000000) - 0x80000000 for c in colours]
    given = {"Color": signed} if None not in signed else {}
    return lambda path: tifffile.imwrite(path, planes, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": ["calcein", "alizarin", "bone"][:len(colours)], **given}, **said})


def test_channels_of_an_ome_tiff_are_added_in_their_colours(tmp_path):
    channels(0x00ff00, 0xff8000)(tmp_path / "a.ome.tif")
    record = read_image(tmp_path / "a.ome.tif")
    wanted = np.minimum(GREY[..., None] * np.array([0, 1., 0]) + GREY[::-1][..., None] * np.array([1, 128 / 255, 0]), 255)
    assert np.abs(record.pixels - wanted).max() <= 1
    assert record.notes == ["2 channels added in the colours of the OME-XML: calcein #00ff00, alizarin #ff8000"]
    with open_roi(tmp_path / "a.ome.tif") as roi:
        np.testing.assert_array_equal(roi.read(10, 30), record.pixels[10:30])


def test_bits_that_the_ome_xml_states_are_full_brightness(tmp_path):
    channels(0xff0000, 0x0000ff, planes=np.full((2, 8, 8), 4095, np.uint16), SignificantBits=12)(tmp_path / "a.ome.tif")
    assert read_image(tmp_path / "a.ome.tif").pixels.reshape(-1, 3).tolist() == [[255, 0, 255]] * 64


@pytest.mark.parametrize("colours", [(None, None), (0xffffff, 0xffffff)])
def test_channels_without_colours_of_their_own_are_refused_by_name(tmp_path, colours):
    channels(*colours)(tmp_path / "a.ome.tif")
    with pytest.raises(UserError, match=r"holds 2 channels \(calcein, alizarin\).* give every channel its colour"):
        read_image(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("xml", ['<!DOCTYPE a [<!ENTITY x "xx">]><OME><Image Name="&x;"/></OME>', "<OME><Image></OME>", "<OME></OME>"])
def test_an_ome_xml_with_entities_or_damage_is_refused_naming_the_file(tmp_path, xml):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", description=xml, metadata=None)
    for read in (read_image, file_pixel_size):
        with pytest.raises(UserError, match="a.tif: its OME-XML is refused"):
            read(tmp_path / "a.tif")


def test_a_picture_that_claims_to_be_endless_is_refused_before_a_row_is_read(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", rowsperstrip=8, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        tif.pages[0].tags["ImageWidth"].overwrite(400_000)
    with pytest.raises(UserError, match="400000 x 48"):
        open_roi(tmp_path / "a.tif")
