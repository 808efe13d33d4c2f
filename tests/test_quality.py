"The word on an ROI's quality: in focus or not, blank, unlike what was learnt from."
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from bonehisto.phantom import draw_roi
from bonehisto.quality import focus_limit, roi_quality, sample_focus, tile_focus
from bonehisto.tiling import tile_roi


def tiles_of(image):
    tiles, table = tile_roi(image)
    return tiles[~table["blank"].to_numpy(bool)]


@pytest.fixture(scope="module", params=["brightfield", "fluorescence"])
def study(request):
    "Seven ROIs of one domain, as tiles; the last took no part in the limit."
    images = [draw_roi(request.param, seed, 512).image for seed in range(7)]
    return images, focus_limit([np.median(tile_focus(tiles_of(i))) for i in images[:-1]])


def test_an_roi_like_the_others_is_in_focus_and_a_blurred_one_is_not(study):
    images, limit = study
    for image in images[-2:]:
        assert np.median(tile_focus(tiles_of(image))) > limit
        blurred = ndimage.gaussian_filter(image.astype(float), (4, 4, 0)) + np.random.default_rng(0).normal(0, 2, image.shape)
        assert np.median(tile_focus(tiles_of(np.clip(blurred, 0, 255).astype(np.uint8)))) < limit


def test_focus_does_not_hang_on_brightness_or_contrast(study):
    tiles = tiles_of(study[0][0])
    assert np.median(tile_focus((tiles * .6 + 30).astype(np.uint8))) == pytest.approx(np.median(tile_focus(tiles)), abs=.15)


def test_one_blurred_training_roi_does_not_lower_the_limit():
    sharp = -.7 + .04 * np.random.default_rng(0).normal(size=12)
    assert abs(focus_limit([*sharp, -2.]) - focus_limit(sharp)) < .1 and focus_limit([np.nan]) == -np.inf


def test_limits_are_per_domain_and_blank_tiles_have_no_say():
    rng = np.random.default_rng(0); tiles = rng.integers(0, 255, (8, 64, 64, 3), dtype=np.uint8); tiles[6:] = 7
    table = pd.DataFrame({"roi": list("aabbccaa"), "modality": ["x"] * 4 + ["y"] * 2 + ["x"] * 2, "blank": [False] * 6 + [True] * 2})
    limits = sample_focus(tiles, table)
    assert sorted(limits) == ["x", "y"] and limits["x"] == sample_focus(tiles[:6], table[:6])["x"]


def test_an_roi_is_unlike_training_when_most_of_its_tiles_are():
    table = pd.DataFrame({"blank": [False] * 5, "focus": -.5, "distance": [2, 2, 2, .1, .1], "colour_distance": np.nan})
    assert roi_quality(table) == "unlike training" and roi_quality(table[2:]) == "good" and roi_quality(table.assign(blank=True)) == "blank"
