"""Token pictures disturb no training, keep their colours, and survive resumed, damaged and tiny runs."""
import numpy as np
import pandas as pd
import pytest
import torch

from bonehisto.encoder import create_encoder
from bonehisto.files import UserError
from bonehisto.token_pictures import (add_epoch, align_components, as_colours, keep_epochs, load_pictures, make_small, picture_recorder, picture_tiles,
                                      token_components, token_maps)


@pytest.fixture(scope="module")
def tiles():
    "Discs on a ground, two stains and a dark field."
    disc = (np.hypot(*(np.mgrid[:64, :64] - 32)) < 20)[..., None]
    return np.stack([np.where(disc, a, b) for a, b in (((40, 90, 160), (235, 225, 220)), ((180, 60, 60), (235, 225, 220)), ((60, 200, 60), (10, 10, 10)))]).astype(np.uint8)


@pytest.fixture
def encoder():
    return create_encoder("micro", drop_path=.5)


def shake(encoder, size, seed=0):
    "One step of a training, as far as a picture can tell."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in encoder.vit.blocks[-1].parameters(): p += size * torch.randn(p.shape, generator=g)


def test_a_training_goes_on_as_if_nobody_had_looked(tiles, encoder):
    encoder.train(); encoder.vit.blocks[3].eval(); encoder.vit.cls_token.grad = torch.ones_like(encoder.vit.cls_token)
    modes = [m.training for m in encoder.modules()]
    torch.manual_seed(5); np.random.seed(5); random = torch.get_rng_state(), np.random.get_state()[1].copy()
    attention, tokens = token_maps(encoder, tiles, batch=2)
    assert torch.equal(random[0], torch.get_rng_state()) and (random[1] == np.random.get_state()[1]).all()
    assert modes == [m.training for m in encoder.modules()] and (encoder.vit.cls_token.grad == 1).all()
    again = token_maps(encoder, tiles)
    assert np.allclose(attention, again[0], atol=1e-5) and np.allclose(tokens, again[1], atol=1e-4)  # drop path is off while it looks


def test_modes_come_back_even_when_the_look_fails(encoder):
    encoder.train()
    with pytest.raises(Exception): token_maps(encoder, np.zeros((1, 8, 8, 3), np.uint8))
    assert all(m.training for m in encoder.modules())


def test_attention_is_the_mean_over_heads_and_tiles_of_any_size_are_cut_to_patches(tiles, encoder):
    attention, tokens = token_maps(encoder, np.pad(tiles, ((0, 0), (0, 9), (0, 3), (0, 0))))
    exact = token_maps(encoder, tiles)
    assert attention.shape == (3, 4, 4) and np.allclose(attention, exact[0], atol=1e-6)
    with torch.no_grad(): t = encoder.eval().tokens(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255, (encoder.depth,))
    assert np.allclose(exact[0].reshape(3, 16), t.attention.mean(1), atol=1e-5)


def test_components_find_the_directions_that_were_put_in():
    rng = np.random.default_rng(0); put = rng.normal(size=(2, 5, 5, 3)) ** 3 * (9, 4, 1)
    axes = np.linalg.qr(rng.normal(size=(20, 3)))[0]
    found = token_components((put @ axes.T + 7).astype(np.float32)).reshape(-1, 3)
    flat = put.reshape(-1, 3); flat = flat - flat.mean(0)
    u, s, _ = np.linalg.svd(flat, full_matrices=False)
    assert np.allclose(np.abs(found), np.abs(u * s), atol=1e-4) and ((found ** 3).sum(0) >= 0).all()


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0], [2, 1, 0]])
@pytest.mark.parametrize("signs", [[1, 1, 1], [-1, 1, -1]])
def test_flipped_and_exchanged_components_take_their_old_colours(order, signs):
    old = np.random.default_rng(1).normal(size=(2, 6, 6, 3))
    assert np.allclose(align_components(old[..., order] * signs, as_colours(old)), old)


def test_collapsed_tokens_are_grey_not_noise():
    assert (as_colours(token_components(1 + 1e-7 * np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype(np.float32))) == 128).all()


def test_colours_of_a_slowly_changing_encoder_do_not_flip(tmp_path, tiles, encoder):
    for epoch in range(5): add_epoch(tmp_path / "t.npz", encoder, epoch, epoch, tiles, [0, 1, 2]); shake(encoder, .01, epoch)
    pca = load_pictures(tmp_path / "t.npz").pca.astype(float)
    for a, b in zip(pca, pca[1:]): assert min(np.corrcoef(a[..., k].ravel(), b[..., k].ravel())[0, 1] for k in range(3)) > .5


def test_a_resumed_run_replaces_its_epoch_and_drops_later_ones(tmp_path, tiles, encoder):
    path = tmp_path / "features/t.npz"; record = picture_recorder(path, tiles, [5, 6, 9])
    for epoch in range(4): record(encoder, epoch, 10 * epoch); shake(encoder, .2, epoch)
    first = load_pictures(path); record(encoder, 2, 21); second = load_pictures(path)
    assert second.epochs.tolist() == [0, 1, 2] and second.steps.tolist() == [0, 10, 21] and second.rows.tolist() == [5, 6, 9]
    assert (second.attention[:2] == first.attention[:2]).all() and (second.attention[2] != first.attention[2]).any()
    assert second.attention.dtype == np.float16 and second.pca.dtype == np.uint8 and [p.name for p in path.parent.iterdir()] == ["t.npz"]
    record(encoder, 0); assert load_pictures(path).epochs.tolist() == [0]  # begun anew


def test_other_tiles_or_a_damaged_file_begin_anew(tmp_path, tiles, encoder):
    path = tmp_path / "t.npz"
    for epoch in range(2): add_epoch(path, encoder, epoch, 0, tiles, [0, 1, 2])
    assert add_epoch(path, encoder, 2, 0, tiles, [0, 1, 7]).epochs.tolist() == [2]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="t.npz: not readable"): load_pictures(path)
    assert add_epoch(path, encoder, 3, 0, tiles, [0, 1, 7]).epochs.tolist() == [3]


def test_what_could_run_code_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", **{k: np.array([print], object) for k in ("rows", "tiles", "epochs", "steps", "attention", "pca")})
    with pytest.raises(UserError, match="not readable"): load_pictures(tmp_path / "t.npz")
    with pytest.raises(UserError, match="no such file"): load_pictures(tmp_path / "none.npz")


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    np.savez(tmp_path / "t.npz", rows=np.arange(2), tiles=np.zeros((2, 8, 8, 3), np.uint8), epochs=np.arange(3), steps=np.arange(3), attention=np.ones((3, 2, 4, 4)), pca=np.zeros((2, 2, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="do not fit each other"): load_pictures(tmp_path / "t.npz")


def test_without_tiles_nothing_is_written(tmp_path, encoder):
    picture_recorder(tmp_path / "t.npz", np.zeros((0, 64, 64, 3), np.uint8), [])(encoder, 0, 0)
    assert not list(tmp_path.iterdir())


def test_tiles_are_of_every_domain_of_different_subjects_full_of_tissue_and_never_of_the_test():
    n = 120; rng = np.random.default_rng(0)
    t = pd.DataFrame({"modality": ["brightfield"] * 80 + ["fluorescence"] * 40, "subject": [f"S{i % 6}" for i in range(n)], "split": ["test" if i % 6 == 0 else "val" if i % 6 == 1 else "train" for i in range(n)],
                      "blank": rng.random(n) < .3, "tissue_fraction": rng.random(n)})
    rows = picture_tiles(t, 3, seed=1); shown = t.iloc[rows]
    assert shown["modality"].tolist() == ["brightfield"] * 3 + ["fluorescence"] * 3 and not shown["blank"].any() and "test" not in set(shown["split"])
    assert (shown.groupby("modality")["subject"].nunique() == 3).all() and shown["tissue_fraction"].min() > .4
    assert (rows == picture_tiles(t, 3, seed=1)).all() and (rows != picture_tiles(t, 3, seed=2)).any()
    assert len(picture_tiles(t.assign(blank=True))) == 0
    assert len(picture_tiles(t[["blank", "tissue_fraction"]], 4)) == 4 and len(picture_tiles(t.assign(subject="one"), 3)) == 6


def test_tiles_with_something_to_see_come_first_but_another_subject_before_a_second_tile():
    t = pd.DataFrame({"subject": ["a", "a", "b", "b"], "blank": False, "tissue_fraction": 1.0})
    tiles = np.zeros((4, 32, 32, 3), np.uint8); tiles[0, :, 16:] = 250; tiles[1, :, 16:] = 200; tiles[3, :, 16:] = 90
    tiles[2] = np.random.default_rng(0).integers(0, 255, (32, 32, 3))  # noise is nothing to see
    assert [picture_tiles(t, k, tiles=tiles).tolist() for k in (1, 2, 3)] == [[0], [0, 3], [0, 3, 1]]


@pytest.mark.parametrize("n", [1, 2, 6, 7, 9, 60, 401])
@pytest.mark.parametrize("most", [2, 5, 6])
def test_kept_epochs_begin_with_the_first_end_with_the_last_and_widen(n, most):
    at = keep_epochs(np.arange(n) * 3, most)
    assert len(at) == min(n, most) and at[0] == 0 and at[-1] == n - 1 and (np.diff(at) > 0).all() and (n < 30 or (np.diff(np.diff(at)) >= 0).all())


def test_thumbnails_are_means_at_a_whole_fraction():
    tile = np.zeros((1, 224, 224, 3), np.uint8); tile[:, ::2] = 200
    assert make_small(tile).shape == (1, 112, 112, 3) and (make_small(tile) == 100).all()
    assert (make_small(tile[:, :100, :128]) == tile[:, :100, :128]).all()
