"""Features do not depend on how they are batched; neighbours and separation measures mean what they say."""
import numpy as np
import pandas as pd
import pytest
import torch

from bonehisto.embeddings import domain_silhouette, embed_tiles, knn_purity, neighbours, separation_table, standardise, umap_map, untrained_twin
from bonehisto.encoder import create_encoder, load_encoder, save_encoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_batches_and_memory_maps_change_nothing(tiles, tmp_path, batch):
    encoder = create_encoder("micro", drop_path=.5).train()
    np.save(tmp_path / "t.npy", tiles)
    a = embed_tiles(encoder, tiles, 7)
    b = embed_tiles(encoder, np.load(tmp_path / "t.npy", mmap_mode="r"), batch)
    for kind in ("cls", "mean"):
        np.testing.assert_allclose(a[kind], b[kind], atol=1e-5)
        assert a[kind].dtype == np.float32 and a[kind].shape == (7, 96)
    assert encoder.training, "the encoder comes back in the mode it was in"
    with torch.no_grad():
        own = encoder.eval()(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(a["cls"], own.numpy(), atol=1e-5)


def test_no_tiles_give_no_features(tiles):
    assert embed_tiles(create_encoder("micro"), tiles[:0])["cls"].shape == (0, 96)


def test_untrained_twin_is_the_network_pretraining_began_with(tmp_path):
    start = create_encoder("micro", seed=5)
    trained = create_encoder("micro", seed=5)
    with torch.no_grad():
        trained.vit.cls_token += 1
    stored = load_encoder(save_encoder(trained, tmp_path / "e.safetensors", {"seed": 5}))
    twin = untrained_twin(stored)
    assert all(torch.equal(v, start.vit.state_dict()[k]) for k, v in twin.vit.state_dict().items())


@pytest.mark.parametrize("n, k", [(12, 5), (300, 4)])
@pytest.mark.parametrize("grouped", [False, True])
def test_neighbours_are_those_of_a_plain_search(n, k, grouped):
    rng = np.random.default_rng(n)
    x, groups = rng.normal(size=(n, 6)), rng.integers(0, 4, n)
    index, score = neighbours(x, None, k, groups if grouped else None, block=50)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i in range(n):
        allowed = np.flatnonzero(groups != groups[i]) if grouped else np.delete(np.arange(n), i)
        expected = allowed[np.argsort(-(unit[allowed] @ unit[i]))][:k]
        assert index[i, :len(expected)].tolist() == expected.tolist()
        assert np.allclose(score[i, :len(expected)], unit[expected] @ unit[i], atol=1e-5)


def test_purity_counts_other_subjects_only():
    """Features that tell subjects apart and nothing else look pure within subjects and are at chance between them."""
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(40), 8)
    domain = np.where(subject % 2, "a", "b")
    x = standardise(rng.normal(size=(40, 10))[subject] + .05 * rng.normal(size=(320, 10)))
    within, chance = knn_purity(x, domain, 5)
    between, _ = knn_purity(x, domain, 5, subject)
    assert within == 1 and chance == pytest.approx(.5) and .25 < between < .75


def test_one_domain_or_one_subject_gives_nan_not_an_error():
    x = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    assert np.isnan(domain_silhouette(x, ["a"] * 10))
    assert np.isnan(domain_silhouette(x, list("abcdefghij")))
    assert np.isnan(knn_purity(x, ["a"] * 10, 3, groups=["s"] * 10)[0])


def test_separation_leaves_out_blank_tiles_and_open_rois():
    rng = np.random.default_rng(1)
    domain = np.array(["brightfield"] * 30 + ["fluorescence"] * 30 + [""] * 10)
    good = np.concatenate([rng.normal(-4, 1, (30, 5)), rng.normal(4, 1, (30, 5)), rng.normal(0, 9, (10, 5))]).astype(np.float32)
    blank = np.zeros(70, bool)
    blank[[3, 33]] = True
    good[[3, 33]] = good[[33, 3]]  # would count as mistakes
    table = pd.DataFrame({"modality": domain, "subject": np.arange(70) // 2, "blank": blank})
    rows = separation_table({"pretrained": {"cls": good}, "random": {"cls": rng.normal(size=(70, 5)).astype(np.float32)}}, table, k=5)
    best, none = rows.iloc[0], rows.iloc[1]
    assert (rows["tiles"] == 58).all() and list(rows["weights"]) == ["pretrained", "random"]
    assert best["knn_purity"] == 1 and best["domain_silhouette"] > .5
    assert abs(none["knn_purity"] - none["chance"]) < .2 and abs(none["domain_silhouette"]) < .1
    nothing = separation_table({"random": {"cls": good}}, table.assign(modality=""), k=5)
    assert nothing["tiles"].item() == 0 and np.isnan(nothing["knn_purity"].item())


def test_a_constant_dimension_does_not_divide_by_zero():
    x = standardise(np.c_[np.ones(5), np.arange(5)])
    assert (x[:, 0] == 0).all() and np.isfinite(x).all()


@pytest.mark.slow
def test_umap_is_repeatable_keeps_gaps_and_takes_few_tiles():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-3, 1, (40, 8)), rng.normal(3, 1, (40, 8))])
    x[7] = np.nan
    a = umap_map(x, seed=3)
    assert np.array_equal(a, umap_map(x, seed=3), equal_nan=True) and np.isnan(a).any(1).nonzero()[0].tolist() == [7]
    whole = np.delete(a, 7, 0)
    assert domain_silhouette(whole, [0] * 39 + [1] * 40) > .5
    for n in (1, 2, 4, 6):
        assert np.isfinite(umap_map(x[:n])).all()
