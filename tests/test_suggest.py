"""Suggestions: tokens kept on disk, proposals as patches, further cells like those marked."""
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from skimage.draw import disk

import bonehisto.token_cache as token_cache
from bonehisto.clicks import click_medians, next_click
from bonehisto.encoder import create_encoder, save_encoder
from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.files import UserError, file_digest
from bonehisto.label_patches import apply_patches, check_patch, patches_from_buffers, patches_to_buffers
from bonehisto.phantom import draw_roi
from bonehisto.suggest import Suggester, suggestions
from bonehisto.token_cache import RoiTokens, between, cached_tokens, pixels_digest, read_tokens, roi_tokens

CLASSES = DEFAULT_CLASSES["brightfield"]


@pytest.fixture(scope="module")
def help(tmp_path_factory):
    return suggestions(None, tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def roi():
    p = draw_roi("brightfield", 3, 384)
    assert {1, 2} <= set(np.unique(p.class_map))
    return p


@pytest.fixture
def suggester(help, roi):
    return help.suggester(roi.image, CLASSES)


def middle(truth, cls):
    _, x, y, _ = next_click(truth, np.full_like(truth, 255), [cls])
    return {"x": x, "y": y, "cls": cls}


def never():
    raise AssertionError("the encoder was asked although the tokens are kept")


# Tokens kept on disk

def test_tokens_kept_are_read_without_the_encoder(tmp_path, roi, help):
    image = roi.image[:100, :120]
    first = cached_tokens(tmp_path, image, "a" * 64, help.get)
    again = cached_tokens(tmp_path, image, "a" * 64, never)
    assert np.array_equal(first.values, again.values) and again.cell == first.cell == 8 and first.values.dtype == np.float16
    assert first.values.shape == (13, 15, 64)


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"PK not a zip", lambda b: b[:3000] + bytes([b[3000] ^ 255]) + b[3001:]])
def test_a_damaged_file_is_computed_anew(tmp_path, roi, help, damage):
    image = roi.image[:64, :64]
    whole = cached_tokens(tmp_path, image, "a", help.get)
    path, = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert read_tokens(path, {"image": pixels_digest(image), "weights": "a", "dim": 64, "version": token_cache.VERSION}) is None
    assert np.array_equal(cached_tokens(tmp_path, image, "a", help.get).values, whole.values)
    assert np.array_equal(cached_tokens(tmp_path, image, "a", never).values, whole.values)


def test_another_image_other_weights_and_another_version_have_tokens_of_their_own(tmp_path, roi, help, monkeypatch):
    image, asked = roi.image[:64, :64], []
    make = lambda: asked.append(1) or help.get()
    cached_tokens(tmp_path, image, "a", make), cached_tokens(tmp_path, image ^ np.uint8(1), "a", make), cached_tokens(tmp_path, image, "b", make)
    cached_tokens(tmp_path, image.reshape(32, 128, 3), "a", make)
    assert len(asked) == 4 and len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(token_cache, "VERSION", 99)
    cached_tokens(tmp_path, image, "a", make)
    assert len(asked) == 5


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path, roi, help):
    (tmp_path / "file").write_text("")
    assert cached_tokens(tmp_path / "file/below", roi.image[:40, :40], "a", help.get).values.shape == (5, 5, 64)


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (16, 16), (17, 9)])
def test_tiny_images_have_tokens_and_suggestions(help, shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    own = help.suggester(image, CLASSES)
    tokens, cell = own.tokens()
    assert tokens.shape[:2] == tuple(-(-n // 8) for n in shape) and tokens.dtype == np.int8 and cell == 8
    for do in (lambda m: own.suggest([{"x": 0, "y": 0, "cls": 1}], m), own.whole):
        found = np.zeros(shape, np.uint8); apply_patches(found, do(found)[0])
        assert set(np.unique(found)) <= {0, 1}


def test_memory_is_bounded_by_windows(roi, help):
    "However large the ROI, the encoder sees at most a batch of windows at a time."
    seen, real = [], help.get().tokens
    class Watched:
        def __getattr__(self, name): return getattr(help.get(), name)
        def tokens(self, x, depths): seen.append(tuple(x.shape)); return real(x, depths)
    image = np.tile(roi.image, (1, 2, 1))
    found = roi_tokens(Watched(), image, batch=5)
    assert {s[0] for s in seen} <= {1, 2, 3, 4, 5} and {s[1:] for s in seen} == {(3, 224, 224)} and len(seen) > 8
    assert np.allclose(found.values, roi_tokens(help.get(), image).values, atol=.02)


def test_a_token_stands_for_the_place_where_it_is(help):
    "A disc moved by a cell moves the tokens by one."
    def disc(x):
        image = np.full((224, 224, 3), 200, np.uint8); image[disk((108, x), 20)] = 60
        return roi_tokens(help.get(), image).values.astype(float)
    spread = lambda v: np.linalg.norm(v - np.median(v, (0, 1)), axis=-1)
    centre = lambda v: (spread(v)[4:-4, 4:-4] ** 4 * np.arange(4, 24)).sum() / (spread(v)[4:-4, 4:-4] ** 4).sum()
    assert abs(centre(disc(124)) - centre(disc(92)) - 4) < 1


def test_another_patch_size_has_its_own_cell(roi):
    found = roi_tokens(create_encoder("small", seed=0).eval(), roi.image[:60, :70])
    assert found.cell == 7 and found.values.shape == (9, 10, 64)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 300))
def test_pixels_lie_between_two_cells_that_exist(cell, count, pixels):
    index, share = between(0, pixels, cell, count)
    assert (index >= 0).all() and (index <= max(0, count - 2)).all() and (share >= 0).all() and (share <= 1).all()
    assert (np.diff(index + share) >= -1e-5).all()


def test_the_preview_has_one_scale_and_few_cells():
    values = np.random.default_rng(0).normal(size=(40, 90, 8)).astype(np.float16)
    own, (small, cell) = RoiTokens(values, 8), RoiTokens(values, 8).preview(30)
    assert small.shape == (14, 30, 8) and cell == 24 and small.dtype == np.int8
    full, cell = own.preview()
    assert cell == 8 and full.shape == values.shape
    inside = np.abs(full) < 127
    ratio = full[inside & (np.abs(values) > .5)] / values[inside & (np.abs(values) > .5)].astype(float)
    assert ratio.std() / ratio.mean() < .03  # one scale for all components


# Proposals

def test_patches_carried_out_give_the_proposal_and_leave_the_map_given_alone(suggester, roi):
    truth, drawn = roi.class_map, np.zeros_like(roi.class_map)
    for cls in (1, 2, 0): patches, facts = suggester.suggest([middle(truth, cls)], drawn)
    patches, facts = suggester.whole(drawn)
    assert not drawn.any()
    for p in patches: check_patch(p, drawn.shape, [c.id for c in CLASSES])
    assert patches_from_buffers(*patches_to_buffers(patches)) == patches
    found = drawn.copy(); apply_patches(found, patches)
    assert 2 * ((found == 1) & (truth == 1)).sum() / ((found == 1).sum() + (truth == 1).sum()) > .9
    assert suggester.whole(found)[0] == [] or not any((p.pixels & (found[p.y:p.y + p.height, p.x:p.x + p.width] > 0)).any() for p in suggester.whole(found)[0])
    assert facts["tool"] == "suggest" and facts["source"] == "model" and len(facts["weights"]) == 64 and facts["model"] and .5 < facts["confidence"] <= 1


def test_a_local_proposal_is_of_the_class_clicked_and_near_the_click(help, roi):
    image, truth = np.tile(roi.image, (2, 2, 1)), np.tile(roi.class_map, (2, 2))
    own = help.suggester(image, CLASSES); own.crop_px = 200
    at = middle(roi.class_map, 1)
    patches, _ = own.suggest([at], np.zeros_like(truth))
    assert [p.value for p in patches] == [1]
    p, = patches
    assert abs(p.x - at["x"]) <= 200 and p.width <= 200 and p.height <= 200
    assert p.pixels[at["y"] - p.y, at["x"] - p.x]  # the place itself is proposed


def test_a_scribble_longer_than_the_crop_is_proposed_on_the_crop(help, roi):
    own = help.suggester(np.tile(roi.image, (1, 3, 1)), CLASSES); own.crop_px = 150
    patches, _ = own.suggest([{"x": x, "y": 190, "cls": 1} for x in range(5, 1150, 40)], np.zeros((384, 1152), np.uint8))
    assert all(p.width <= 150 and p.height <= 150 for p in patches)


def test_one_class_only_is_held_against_the_rest_of_the_roi(suggester, roi):
    patches, facts = suggester.suggest([middle(roi.class_map, 1)], np.zeros_like(roi.class_map))
    found = np.zeros_like(roi.class_map); apply_patches(found, patches)
    assert 0 < (found == 1).mean() < .9 and (roi.class_map[found == 1] > 0).mean() > .8


def test_background_alone_proposes_nothing_and_says_why(suggester, roi):
    patches, facts = suggester.suggest([middle(roi.class_map, 0)], np.zeros_like(roi.class_map))
    assert patches == [] and "Click on a tissue too" in facts["text"] and facts["confidence"] is None


def test_nothing_known_proposes_nothing_and_says_what_to_do(suggester, roi):
    patches, facts = suggester.whole(np.zeros_like(roi.class_map))
    assert patches == [] and "first" in facts["text"]


def test_marks_outside_are_left_out_and_none_inside_is_said(suggester, roi):
    drawn, inside = np.zeros_like(roi.class_map), middle(roi.class_map, 1)
    outside = [{"x": -1, "y": 5, "cls": 1}, {"x": 384, "y": 5, "cls": 1}, {"x": 5, "y": 9999, "cls": 1}]
    for marks in ([], outside):
        with pytest.raises(UserError, match="no mark inside"): suggester.suggest(marks, drawn)
    assert suggester.suggest([*outside, inside], drawn)[0] and len(suggester.marks) == 1


def test_a_class_that_is_not_in_the_table_is_refused_and_not_kept(suggester, roi):
    with pytest.raises(UserError, match="class 7 is not in the table.*1 mineralised bone"): suggester.suggest([{"x": 5, "y": 5, "cls": 7}], np.zeros_like(roi.class_map))
    assert not suggester.marks


def test_what_is_drawn_teaches_and_the_whole_proposal_leaves_it_alone(suggester, roi):
    truth = roi.class_map
    drawn = np.where(np.arange(384)[None] < 192, truth, 0).astype(np.uint8)
    patches, _ = suggester.whole(drawn)
    found = drawn.copy(); apply_patches(found, patches)
    assert (found == drawn)[drawn > 0].all()
    right = np.s_[:, 192:]
    assert 2 * ((found == 1) & (truth == 1))[right].sum() / ((found == 1)[right].sum() + (truth == 1)[right].sum()) > .8


def test_unlabelled_pixels_are_filled_and_teach_nothing(suggester, roi):
    drawn = np.full_like(roi.class_map, 255)
    assert suggester.whole(drawn)[0] == []
    for cls in (1, 0): patches, _ = suggester.suggest([middle(roi.class_map, cls)], drawn)
    assert [p.value for p in patches] == [0]
    assert {p.value for p in suggester.whole(drawn)[0]} == {0, 1}


def test_a_later_click_in_the_same_place_replaces_the_first(suggester, roi):
    drawn, at = np.zeros_like(roi.class_map), middle(roi.class_map, 1)
    suggester.remember([at], drawn); suggester.remember([at | {"cls": 2}], drawn)
    assert [m[2] for m in suggester.marks.values()] == [2]


def test_a_click_that_was_painted_over_with_another_class_is_forgotten(suggester, roi):
    drawn, at = np.zeros_like(roi.class_map), middle(roi.class_map, 1)
    suggester.remember([at], drawn)
    drawn[at["y"], at["x"]] = 1; suggester.samples(drawn)
    assert len(suggester.marks) == 1
    drawn[at["y"], at["x"]] = 2; suggester.samples(drawn)
    assert not suggester.marks


def test_a_wrong_region_drawn_is_corrected_by_a_click(suggester, roi):
    truth = roi.class_map; drawn = np.zeros_like(truth); drawn[:] = 1
    suggester.remember([middle(truth, 1)], drawn)
    patches, _ = suggester.suggest([middle(truth, 0)], drawn)
    assert patches and all(p.value == 0 for p in patches)


def test_grey_fluorescence_is_suggested_on(help):
    p = draw_roi("fluorescence", 5, 384)
    grey = np.repeat(p.image.mean(-1, keepdims=True).astype(np.uint8), 3, 2)
    own = help.suggester(grey, DEFAULT_CLASSES["fluorescence"])
    for cls in (1, 0): own.suggest([middle(p.class_map, cls)], np.zeros_like(p.class_map))
    found = np.zeros_like(p.class_map); apply_patches(found, own.whole(found)[0])
    assert (p.class_map[found == 1] > 0).mean() > .8 and ((found == 1) & (p.class_map > 0)).sum() > .6 * (p.class_map > 0).sum()


@pytest.mark.parametrize("level", [0, 255])
def test_a_blank_image_does_no_harm(help, level):
    own = help.suggester(np.full((80, 90, 3), level, np.uint8), CLASSES)
    patches, facts = own.suggest([{"x": 40, "y": 40, "cls": 1}], np.zeros((80, 90), np.uint8))
    assert isinstance(patches, list) and own.similar([{"x": 40, "y": 40, "cls": "osteoclast"}]) is not None


# Cells

def test_similar_finds_planted_cells(help):
    rng, image = np.random.default_rng(1), np.random.default_rng(0).normal(190, 6, (512, 512, 3))
    places = [(int(x + rng.integers(-15, 15)), int(y + rng.integers(-15, 15))) for x in range(40, 500, 80) for y in range(40, 500, 80)]
    for x, y in places: image[disk((y, x), 7)] = (110, 40, 90)
    own = help.suggester(image.clip(0, 255).astype(np.uint8), CLASSES)
    found = own.similar([{"x": x + .4, "y": float(y), "cls": "osteoclast"} for x, y in places[:3]])
    assert {f["cls"] for f in found} == {"osteoclast"} and all(type(f["x"]) is int and type(f["y"]) is int for f in found)
    distance = np.array([[np.hypot(f["x"] - x, f["y"] - y) for x, y in places] for f in found])
    assert (distance.min(1) <= 10).mean() > .9 and (distance.min(0)[3:] <= 10).mean() > .9
    assert (distance[:, :3] > 12).all()  # those that were placed are not proposed again
    apart = [np.hypot(a["x"] - b["x"], a["y"] - b["y"]) for i, a in enumerate(found) for b in found[:i]]
    assert min(apart) >= 12


def test_similar_needs_a_point_inside(suggester):
    with pytest.raises(UserError, match="no point inside"): suggester.similar([{"x": 999, "y": 5, "cls": "osteoclast"}])


# For a study

def test_help_gives_what_a_work_takes_and_uses_the_encoder_of_the_run(tmp_path, roi):
    own = create_encoder("micro", seed=5)
    save_encoder(own, tmp_path / "run/checkpoints/encoder.safetensors")
    help = suggestions(tmp_path / "run", tmp_path / "run/features/roi_tokens")
    given = help(None, roi.image[:128, :128], CLASSES)
    assert set(given) == {"suggest", "whole", "similar", "tokens"} and help.encoder is None  # loaded when it is needed
    tokens, cell = given["tokens"]()
    assert tokens.shape == (16, 16, 64) and help.encoder is not None and len(list((tmp_path / "run/features/roi_tokens").iterdir())) == 1
    assert given["suggest"]([{"x": 9, "y": 9, "cls": 1}], np.zeros((128, 128), np.uint8))[1]["weights"] == file_digest(tmp_path / "run/checkpoints/encoder.safetensors") == help.weights
    assert suggestions(None).weights != help.weights
    with pytest.raises(UserError, match="encoder.safetensors"): suggestions(tmp_path / "nothing")


# The oracle

def test_the_oracle_clicks_inside_what_is_wrong():
    truth = np.zeros((50, 60), np.uint8); truth[5:40, 10:50] = 1; truth[12:30, 20:40] = 0
    for found in (np.zeros_like(truth), np.ones_like(truth)):
        size, x, y, cls = next_click(truth, found, (0, 1))
        assert truth[y, x] == cls != found[y, x] and size > 0


def test_medians_tell_the_bar_by_domain():
    import pandas as pd
    rows = [{"by": "tokens", "clicks": n, "id": i, "class": "", "roi": f"{d}{r}", "domain": d, "dice": v - .1 * i, "seconds": 0} for d, v in (("brightfield", 1.), ("fluorescence", .9)) for r in range(3) for n in (1, 2) for i in (1, 2)]
    found = click_medians(pd.DataFrame(rows), at=(1, 2)).set_index(["domain", "id"])
    assert found.loc[("brightfield", 1), "met"] is True and found.loc[("fluorescence", 1), "met"] is False and found.loc[("both", 1), "met"] is True
    assert found.loc[("brightfield", 2), "met"] is None and found.loc[("both", 1), "rois"] == 6 and found.loc[("fluorescence", 2), 2] == pytest.approx(.7)
