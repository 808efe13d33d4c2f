"""Tiling covers an ROI to its last pixel and is undone exactly, whatever the size."""
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from bonehisto.tiling import cut_tiles, describe_tile, reconstruct, reflect_index, tile_roi, tile_windows

sizes = st.integers(1, 1000)


def picture(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@settings(deadline=None, max_examples=25)
@given(sizes, sizes)
def test_tiles_put_together_are_the_image_to_the_pixel(height, width):
    image = picture(height, width)
    tiles, table = tile_roi(image)
    assert tiles.dtype == np.uint8 and tiles.shape == (len(table), 224, 224, 3)
    assert np.array_equal(reconstruct(tiles, table, height, width), image)


@settings(deadline=None, max_examples=15)
@given(sizes, sizes, st.sampled_from([0, 1, 4]))
def test_class_maps_and_float_maps_come_back_too(height, width, channels):
    ids = picture(height, width, channels)
    windows = tile_windows(height, width)
    assert np.array_equal(reconstruct(cut_tiles(ids, windows), windows, height, width), ids)
    floats = ids.astype(np.float32) / 255
    back = reconstruct(cut_tiles(floats, windows), windows, height, width)
    assert back.dtype == np.float32 and back.shape == floats.shape and np.abs(back - floats).max() < 1e-6


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_every_pixel_lies_in_exactly_one_quadrant_and_regions_have_five_tiles(height, width):
    table = tile_windows(height, width)
    assert len(table) == 5 * -(-height // 448) * -(-width // 448)
    assert (table["kind"].value_counts() == len(table) // 5).all()
    quadrants = table[table["kind"] != "centre"]
    own = (224 - quadrants["pad_right"]) * (224 - quadrants["pad_bottom"])
    assert own.sum() == height * width
    assert not quadrants.duplicated(["x", "y"]).any()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 700), st.integers(1, 500), st.integers(1, 300))
def test_reflection_is_numpys_even_far_beyond_the_image(start, length, size):
    padded = np.pad(np.arange(size), (0, start + length), mode="reflect")
    assert np.array_equal(reflect_index(start, length, size), padded[start:start + length])


def test_centre_crop_is_the_middle_of_its_region():
    image = picture(448, 896)
    tiles, table = tile_roi(image)
    for k in np.flatnonzero(table["kind"] == "centre"):
        x, y = table.loc[k, ["x", "y"]]
        assert (y, x % 448) == (112, 112) and np.array_equal(tiles[k], image[y:y + 224, x:x + 224])


def test_nearest_tile_decides_class_ids_and_makes_no_new_ones():
    windows = tile_windows(448, 448)
    ids = np.zeros((5, 224, 224), np.uint8)
    ids[4] = 3  # the centre crop says otherwise than the quadrants
    out = reconstruct(ids, windows, 448, 448)
    assert set(np.unique(out)) == {0, 3} and out[224, 224] == 3 and out[112, 112] == 0


def test_blank_tiles_are_flagged_and_kept():
    image = np.full((448, 448, 3), 245, np.uint8)
    image[:224, :224] = picture(224, 224, seed=3) // 2
    image[100:200, 20:200] = 20
    tiles, table = tile_roi(image)
    flags = table.set_index("kind")["blank"]
    assert len(tiles) == 5 and not flags["nw"] and flags["ne"] and flags["sw"] and flags["se"]
    assert table.set_index("kind")["tissue_fraction"]["se"] == 0


def test_a_tile_without_a_pixel_of_the_roi_is_blank_even_where_its_padding_shows_tissue():
    tiles, table = tile_roi(picture(200, 200) // 2 + np.arange(200, dtype=np.uint8)[:, None, None] // 2)
    outside = table["valid_fraction"] == 0
    assert outside.sum() == 3 and table.loc[outside, "blank"].all() and not table.loc[0, "blank"]


@pytest.mark.parametrize("colour", [(90, 0, 0), (0, 90, 0), (0, 0, 90)])
def test_one_thin_dim_line_of_any_colour_keeps_a_tile_from_being_blank(colour):
    tile = np.full((224, 224, 3), 6, np.uint8)
    tile[60:63] = colour
    assert describe_tile(tile)[0] is False


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no pixels"):
        tile_windows(0, 10)
    with pytest.raises(ValueError, match="two tiles wide"):
        tile_windows(500, 500, region=448, tile=200)
    with pytest.raises(ValueError, match="one to one"):
        reconstruct(np.zeros((3, 224, 224), np.uint8), tile_windows(448, 448), 448, 448)
