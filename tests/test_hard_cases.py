"""The hard cases are what they say, leave their source alone, and are marked without mercy."""
import numpy as np
import pytest

from bonehisto.hard_cases import HARD_CASES, grey, half_filled, make_hard_cases, recoloured, restained
from bonehisto.routing import hard_case_table

CASES = {c.name: c for c in HARD_CASES}


@pytest.fixture(scope="module")
def tiles():
    rng = np.random.default_rng(0); wave = np.sin(np.arange(64) / 5)[:, None] * np.cos(np.arange(64) / 7)
    bright = 200 - 60 * (wave > 0.2)[None, ..., None] * np.array([1.0, 0.6, 0.2]) + rng.normal(0, 4, (3, 64, 64, 3))
    dark = 15 + 60 * (wave > 0.4)[None, ..., None] * np.array([0.2, 1.0, 0.3]) + rng.normal(0, 4, (3, 64, 64, 3))
    return np.clip(np.concatenate([bright, dark]), 0, 255).astype(np.uint8), np.repeat(["brightfield", "fluorescence"], 3)


@pytest.mark.parametrize("name", CASES)
def test_every_case_changes_its_tiles_and_not_the_source(name, tiles):
    case = CASES[name]; source = tiles[0][tiles[1] == case.source]; kept = source.copy()
    made = case.make(source, np.random.default_rng(1))
    assert made.dtype == np.uint8 and made.shape == source.shape
    assert np.array_equal(source, kept) and (made != source).mean() > 0.05


def test_same_seed_same_tiles_and_the_limit_is_kept(tiles):
    a, b, c = ({k.name: t for k, t in make_hard_cases(*tiles, per_case=2, seed=s)} for s in (3, 3, 4))
    assert all(len(a[k]) == 2 and np.array_equal(a[k], b[k]) for k in a)
    assert any(not np.array_equal(a[k], c[k]) for k in a)


def test_a_study_of_one_domain_gets_its_own_cases_only(tiles):
    sources = {case.source for case, _ in make_hard_cases(tiles[0][:3], tiles[1][:3])}
    assert sources == {"brightfield"}
    assert list(make_hard_cases(tiles[0], np.array([""] * 6))) == []


def test_grey_tiles_have_no_colour(tiles):
    g = grey(tiles[0], None)
    assert (g[..., 0] == g[..., 1]).all() and (g[..., 1] == g[..., 2]).all()


def test_half_of_a_padded_tile_is_untouched(tiles):
    out = half_filled(tiles[0], np.random.default_rng(0), value=255)
    left, right = ((out[:, :, s] == tiles[0][:, :, s]).all((1, 2, 3)) for s in (slice(None, 32), slice(32, None)))
    assert (left ^ right).all()


def test_mirrored_tiles_are_symmetric(tiles):
    out = half_filled(tiles[0], np.random.default_rng(0))
    assert np.array_equal(out, out[:, :, ::-1])


def test_recolouring_keeps_black_black():
    assert (recoloured(np.zeros((2, 8, 8, 3), np.uint8), np.random.default_rng(0)) == 0).all()


def test_restained_tissue_takes_the_stain_and_glass_stays_pale(tiles):
    glass = np.full((1, 64, 64, 3), 255, np.uint8); tissue = np.full((1, 64, 64, 3), 90, np.uint8)
    rng = np.random.default_rng(0)
    eosin, pale = (np.median(restained(t, rng), axis=(0, 1, 2)) for t in (tissue, glass))
    assert eosin[1] < eosin[2] < eosin[0] and pale.min() > 230


def test_sending_what_belongs_nowhere_is_wrong():
    table = hard_case_table([("noise", "", False, ["brightfield", "abstain"]), ("grey", "brightfield", False, ["brightfield", "fluorescence"]),
                             ("H&E", "", True, ["abstain", "abstain", "brightfield", "abstain"])]).set_index("case")
    assert table.loc["noise", ["right", "abstained", "wrong"]].tolist() == [0, 0.5, 0.5]
    assert table.loc["grey", ["right", "abstained", "wrong"]].tolist() == [0.5, 0, 0.5]
    assert table.loc["all: hard", "wrong"] == 0.5 and table.loc["all: hard", "tiles"] == 4 and table.loc["all: third domain", "abstained"] == 0.75
    assert hard_case_table([]).empty


def test_a_folder_of_another_domain_is_cut_and_its_broken_images_are_named(tmp_path):
    from PIL import Image
    from bonehisto.hard_cases import folder_tiles
    picture = np.random.default_rng(0).integers(0, 255, (500, 700, 3), np.uint8)
    Image.fromarray(np.kron(picture[::10, ::10], np.ones((10, 10, 1), np.uint8))).save(tmp_path / "a.png")
    Image.fromarray(np.full((500, 500, 3), 240, np.uint8)).save(tmp_path / "blank.png")
    (tmp_path / "b.jpg").write_bytes(b"no picture"); (tmp_path / "notes.txt").write_text("not an image")
    tiles, notes = folder_tiles(tmp_path, per_image=3)
    assert tiles.shape == (3, 224, 224, 3) and len(notes) == 1 and "b.jpg" in notes[0]
    assert np.array_equal(tiles, folder_tiles(tmp_path, per_image=3)[0])


def test_an_absent_folder_is_said_not_fatal(tmp_path):
    from bonehisto.hard_cases import folder_tiles
    tiles, notes = folder_tiles(tmp_path / "nowhere")
    assert len(tiles) == 0 and "nowhere" in notes[0]
