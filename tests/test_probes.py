"""Probes read what is there, find nothing where nothing is, never let a subject answer for itself, and say why a number is missing."""
import numpy as np
import pandas as pd
import pytest

from bonehisto.encoder import create_encoder
from bonehisto.patches import ProbeSample, draw_sample, encode_sample, patch_classes, sample_tiles
from bonehisto.probes import COLUMNS, balanced_dice, domain_probe, patch_retrieval, probe_encoder, tissue_probe, turnover_probe

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["background", "bone", "osteoid"]


def patch_table(subjects=6, each=40, test=("s4", "s5")):
    t = pd.DataFrame({"subject": np.repeat([f"s{i}" for i in range(subjects)], 3 * each), "class": np.tile(np.repeat([0, 1, 2], each), subjects), "domain": "brightfield"})
    return t.assign(split=np.where(t["subject"].isin(test), "test", "train"))


def people(n=12, tiles=4, groups=("low", "normal", "high")):
    return pd.DataFrame([(f"s{i:02d}", groups[i % len(groups)], d) for i in range(n) for d in ("brightfield", "fluorescence") for _ in range(tiles)], columns=["subject", "group", "modality"])


def whole(rows):
    return pd.DataFrame(rows).set_index("class").loc["tissue mean"]


def carrying(patches, noise=.05, seed=0):
    return (np.eye(3)[patches["class"]] + noise * np.random.default_rng(seed).normal(size=(len(patches), 3))).astype(np.float32)


def test_a_patch_bears_the_class_that_fills_it_and_a_line_any_patch_it_crosses():
    mask = np.zeros((1, 32, 32), np.uint8)
    mask[0, :16, :9] = 1   # 56 % of the first patch
    mask[0, 6:10, 16:] = 3  # a line through a quarter of the second
    names = ["background", "bone", "osteoid", "label"]
    assert patch_classes(mask, 16, names, .6).tolist() == [[-1, 3, 0, 0]]
    assert patch_classes(mask, 16, names, .5).tolist() == [[1, 3, 0, 0]]
    assert patch_classes(mask, 16, names, .6, thin={}).tolist() == [[-1, 0, 0, 0]]


def test_patch_numbers_run_as_the_tokens_do():
    mask = np.kron(np.arange(4).reshape(1, 2, 2), np.ones((1, 16, 16))).astype(np.uint8)
    assert patch_classes(mask, 16, list("abcd")).tolist() == [[0, 1, 2, 3]]


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    rows = [(f"s{s}_{d[0]}", f"s{s}", ("low", "high")[s % 2], d, "test" if s > 3 else "train") for s in range(6) for d in ("brightfield", "fluorescence")]
    table = pd.DataFrame(rows, columns=["roi", "subject", "group", "modality", "split"]).assign(x=0, y=0, blank=False)
    masks = [np.kron(rng.permutation(np.r_[np.zeros(8), np.ones(8)]).reshape(4, 4), np.ones((16, 16))).astype(np.uint8) for _ in rows]
    ink = {"brightfield": np.array([[230, 220, 225], [40, 90, 170]]), "fluorescence": np.array([[8, 9, 8], [20, 120, 60]])}
    tiles = np.stack([np.clip(ink[r[3]][m] + rng.normal(0, 5, (64, 64, 3)), 0, 255) for r, m in zip(rows, masks)]).astype(np.uint8)
    return table, tiles, {d: {r[0]: m for r, m in zip(rows, masks) if r[3] == d} for d in ink}, {d: ["background", "bone"] for d in ink}


def test_the_sample_is_bounded_seeded_and_leaves_blank_and_open_tiles_out(study):
    table, _, masks, names = study
    many = pd.concat([table] * 5, ignore_index=True)
    many.loc[:11, "blank"] = True
    many.loc[12:23, "modality"] = ""
    rows = sample_tiles(many, 2, seed=1)
    assert rows.min() >= 24 and many.iloc[rows].groupby(["subject", "modality"]).size().eq(2).all()
    a, b = draw_sample(many, masks, names, 16, 3, 5, tile=64), draw_sample(many, masks, names, 16, 3, 5, tile=64)
    pd.testing.assert_frame_equal(a.patches, b.patches)
    assert a.patches.groupby(["subject", "domain", "class"]).size().max() == 5
    truth = [masks[d][a.table["roi"][t]][16 * (p // 4), 16 * (p % 4)] for t, p, d in zip(a.patches["tile"], a.patches["patch"], a.patches["domain"])]
    assert truth == a.patches["class"].tolist()


def test_tokens_are_those_of_the_chosen_patches_whatever_the_batch(study):
    table, tiles, masks, names = study
    sample, encoder = draw_sample(table, masks, names, 16, per_class=3, tile=64), create_encoder("micro").train()
    image, tokens = encode_sample(encoder, tiles, sample, 5)
    assert encoder.training and image.shape == (12, 192)
    one = sample.patches.iloc[7]
    alone = ProbeSample(sample.rows[[one["tile"]]], sample.table.iloc[[one["tile"]]], sample.patches.iloc[[7]].assign(tile=0), names, 16)
    np.testing.assert_allclose(encode_sample(encoder, tiles, alone)[1][0], tokens[7], atol=1e-5)
    with pytest.raises(ValueError, match="14 px"):
        encode_sample(create_encoder("small"), tiles, sample)


def test_dice_does_not_depend_on_how_rare_a_class_is():
    rng = np.random.default_rng(0)
    for counts in ((4000, 4000), (7900, 100)):
        truth = np.repeat([0, 1], counts)
        wrong = np.concatenate([np.arange(n) < n * .2 for n in counts])
        assert balanced_dice(truth, np.where(wrong, 1 - truth, truth), 2) == pytest.approx([.8, .8])
    assert balanced_dice(rng.integers(0, 3, 9000), rng.integers(0, 3, 9000), 3) == pytest.approx([1 / 3] * 3, abs=.03)


def test_features_that_carry_the_class_give_dice_1_and_shuffled_ones_chance():
    patches = patch_table()
    tokens = carrying(patches)
    found = tissue_probe(tokens, patches, NAMES, "brightfield")
    assert whole(found)["value"] == 1 and whole(found)["n"] == 160
    shuffled = tokens[np.random.default_rng(1).permutation(len(tokens))]
    nothing = whole(tissue_probe(shuffled, patches, NAMES, "brightfield"))
    assert nothing["chance"] == pytest.approx(1 / 3) and abs(nothing["value"] - nothing["chance"]) < .1


def test_the_linear_probe_learns_from_no_test_subject():
    patches = patch_table()
    tokens = carrying(patches)
    test = (patches["split"] == "test").to_numpy()
    tokens[test] = np.roll(tokens[test], 1, axis=1)  # in test subjects the classes have changed places
    assert whole(tissue_probe(tokens, patches, NAMES, "brightfield"))["value"] == 0


def test_a_class_that_no_test_subject_has_is_left_out_of_the_mean():
    patches = patch_table()
    patches = patches[~((patches["split"] == "test") & (patches["class"] == 2))].reset_index(drop=True)
    found = pd.DataFrame(tissue_probe(carrying(patches), patches, NAMES, "brightfield")).set_index("class")
    assert np.isnan(found.loc["osteoid", "value"]) and found.loc["osteoid", "note"] and found.loc["tissue mean", "value"] == 1


def test_retrieval_never_counts_the_own_subject():
    patches = patch_table()
    subject = pd.factorize(patches["subject"])[0]
    own = 10 * np.eye(6)[subject]
    own += 0.5 * np.random.default_rng(1).normal(size=(len(patches), 6))
    secret = np.zeros((len(patches), 18)); secret[np.arange(len(patches)), 3 * subject + patches["class"]] = 50  # tells the class within a subject only
    alone = whole(patch_retrieval(np.concatenate([own, secret], 1).astype(np.float32), patches, NAMES, "brightfield"))
    assert abs(alone["value"] - 1 / 3) < .1 and alone["chance"] == pytest.approx(1 / 3)
    assert whole(patch_retrieval(carrying(patches), patches, NAMES, "brightfield"))["value"] == 1


def test_retrieval_chance_is_the_share_of_the_class_among_other_subjects():
    patches = patch_table()
    patches = patches.groupby(["subject", "class"]).head(10)
    patches = pd.concat([patches, patch_table(each=30).query("`class` == 0")], ignore_index=True)  # background is four times as frequent
    tokens = np.random.default_rng(0).normal(size=(len(patches), 5)).astype(np.float32)
    found = pd.DataFrame(patch_retrieval(tokens, patches, NAMES, "brightfield")).set_index("class")
    assert found.loc["background", "chance"] == pytest.approx(4 / 6) and found.loc["bone", "chance"] == pytest.approx(1 / 6)
    assert abs(found.loc["bone", "value"] - 1 / 6) < .08


def test_a_planted_turnover_signal_is_found_and_p_is_small():
    table = people()
    centre = 4 * np.random.default_rng(0).normal(size=(3, 5))
    image = centre[pd.factorize(table["group"])[0]] + np.random.default_rng(1).normal(size=(len(table), 5))
    found = turnover_probe(image, table, 30)
    assert found["value"] == 1 and found["p"] == pytest.approx(1 / 31) and found["n"] == 12
    assert found["chance"] < .5


def test_p_is_spread_out_where_there_is_no_signal():
    table = people(n=8, tiles=1, groups=("low", "high"))
    p = [turnover_probe(np.random.default_rng(i).normal(size=(len(table), 3)), table, 9, seed=i)["p"] for i in range(20)]
    assert np.mean(np.array(p) <= .1) <= .3 and .35 < np.mean(p) < .85 and min(p) >= .1


def test_a_subject_without_group_is_left_out_and_too_few_groups_give_the_reason():
    table, image = people(), np.random.default_rng(0).normal(size=(96, 3))
    table["group"] = table["group"].where(table["subject"] != "s00", None)
    assert turnover_probe(image, table, 2)["n"] == 11
    table["group"] = table["group"].where(table["subject"] != "s01", "odd")
    found = turnover_probe(image, table, 2)
    assert found["n"] == 10 and "odd" in found["note"]
    for none in (table.assign(group=None), table.assign(group=""), table.assign(group="low"), table.iloc[:8]):
        found = turnover_probe(image[:len(none)], none, 2)
        assert np.isnan(found["value"]) and np.isnan(found["p"]) and "two groups" in found["note"]


def test_a_subject_of_one_domain_still_takes_part():
    table = people()
    keep = ~((table["subject"] == "s02") & (table["modality"] == "fluorescence"))
    found = turnover_probe(np.random.default_rng(0).normal(size=(96, 3))[keep], table[keep].reset_index(drop=True), 2)
    assert found["n"] == 12 and np.isfinite(found["value"])


def test_domains_are_judged_on_test_subjects_only():
    table = people().assign(split="train")
    image = np.random.default_rng(0).normal(size=(96, 4))
    assert all(np.isnan(r["value"]) and r["note"] for r in domain_probe(image, table))
    test = table["subject"].isin(["s09", "s10", "s11"]).to_numpy()
    image[test] += 30 * (table["modality"] == "fluorescence").to_numpy()[test, None]  # apart in test subjects alone
    assert domain_probe(image, table.assign(split=np.where(test, "test", "train")), k=3)[1]["value"] == 1
    assert domain_probe(image, table.assign(split=np.where(test, "train", "test")), k=3)[1]["value"] < .8


def test_one_table_for_all_probes_even_without_masks(study):
    table, tiles, masks, names = study
    full = probe_encoder(create_encoder("micro"), tiles, draw_sample(table, masks, names, 16, tile=64), k=3, permutations=3)
    assert list(full.columns) == COLUMNS and set(full["probe"]) == {"domain silhouette", "domain purity", "tissue Dice", "tissue retrieval", "turnover"}
    bare = probe_encoder(create_encoder("micro"), tiles, draw_sample(table, {}, names, 16, tile=64), k=3, permutations=3)
    assert bare.loc[bare["probe"].str.startswith("tissue"), "note"].ne("").all() and bare.loc[bare["probe"] == "turnover", "value"].notna().all()
