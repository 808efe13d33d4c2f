"""The router on arrays whose answer is known: what is sent, what is abstained from, what a file must be."""
import subprocess, sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from bonehisto.files import UserError
from bonehisto.router import ABSTAIN, COLOURS, Router, colour_histogram, distance_limit, fit_temperature, router_features, softmax
from bonehisto.routing import calibration_error, confusion_table, router_scores


def study(seed, subjects=6, tiles=40, dim=16, gap=6.0, domains=("brightfield", "fluorescence")):
    "Features, domains and subjects: one cloud a domain, shifted a little by subject."
    rng = np.random.default_rng(seed); parts = []
    for k, d in enumerate(domains):
        who = np.repeat(np.arange(subjects), tiles)
        x = rng.normal(size=(len(who), dim)) + 0.4 * rng.normal(size=(subjects, dim))[who]
        x[:, 0] += gap * (2 * k - 1)
        parts.append((x, np.array([d] * len(who)), np.array([f"{d[0]}{seed}-{s}" for s in who])))
    return [np.concatenate(p) for p in zip(*parts)]


@pytest.fixture(scope="module")
def router():
    val = study(10, subjects=3)
    return Router.fit(*study(0), *val, extra={"encoder": "abc"})


def test_plain_tiles_of_new_subjects_go_to_their_domain(router):
    x, domains, subjects = study(20)
    sent = router.predict(x)
    assert (sent["domain"] == domains).mean() > 0.98
    assert (~sent["abstained"] & (sent["domain"] != domains)).sum() == 0


def test_tiles_far_from_training_are_abstained_from_although_softmax_is_sure(router):
    x = study(20)[0]; x[:, 5] += 30.0; x[:, 0] *= 3  # deeper inside one half-space, away from both clouds
    sent = router.predict(x)
    assert sent["probability"].mean() > 0.95 and sent["abstained"].all()
    assert set(sent["domain"]) == {ABSTAIN} and set(sent["reason"]) <= {"distance", "probability and distance"}


def test_a_tile_between_the_domains_is_abstained_from_by_probability():
    train, val = study(0, gap=1.5), study(10, gap=1.5)
    sent = Router.fit(*train, *val).predict(np.zeros((1, 16)))
    assert sent["reason"][0] == "probability" and sent["distance"][0] < 1


def test_numbers_that_are_none_are_never_sent(router):
    x = study(20)[0][:3]; x[0, 3] = np.nan; x[1, 2] = np.inf
    with np.errstate(invalid="ignore"): sent = router.predict(x)
    assert sent["abstained"].tolist() == [True, True, False]


def test_blank_tiles_are_named_blank(router):
    sent = router.predict(study(20)[0][:4], blank=np.array([True, False, False, True]))
    assert sent["reason"].tolist()[::3] == ["blank", "blank"] and sent["abstained"][[0, 3]].all()


def test_no_tiles_give_an_empty_table(router):
    assert len(router.predict(np.empty((0, 16)))) == 0


def test_left_out_subjects_keep_the_promised_abstention_rate():
    "Tiles of subjects that shaped the cloud lie too near: a limit from them would turn away many more new tiles than promised."
    rates = []
    for seed in range(5):
        train, val, new = study(seed, subjects=8), study(seed + 50, subjects=3), study(seed + 100, subjects=8)
        rates.append(Router.fit(*train, *val, rate=0.01, margin=1.).predict(new[0])["abstained"].mean())
    assert np.mean(rates) < 0.03


def test_one_domain_goes_by_distance_alone_and_says_so():
    x, domains, subjects = study(0); one = domains == "fluorescence"
    router = Router.fit(x[one], domains[one], subjects[one])
    new, truth, _ = study(20); sent = router.predict(new)
    assert "only fluorescence" in router.notes[0]
    assert (sent["domain"][truth == "fluorescence"] == "fluorescence").mean() > 0.97
    assert (sent["domain"][truth == "brightfield"] == ABSTAIN).all() and sent["probability"].isna().all()


@pytest.mark.parametrize("tiles, subjects", [(1, 1), (2, 1), (1, 2), (3, 3)])
def test_tiny_studies_still_give_a_router_that_sends_its_own_tiles(tiles, subjects):
    x, domains, who = study(0, subjects=subjects, tiles=tiles)
    sent = Router.fit(x, domains, who).predict(x)
    assert (sent["nearest"] == domains).all() and np.isfinite(sent["distance"]).all()


def test_features_that_never_vary_do_not_break_the_fit():
    x, domains, who = study(0); x[:, 4] = 7.0
    assert (Router.fit(x, domains, who).predict(x)["domain"] == domains).mean() > 0.97
    same = Router.fit(np.ones((6, 4)), np.array(list("aaabbb")), np.array(list("xyzxyz"))).predict(np.ones((2, 4)))
    assert same["abstained"].all()  # a collapsed encoder tells nothing apart


def test_no_known_domain_is_a_mistake_with_a_message():
    with pytest.raises(UserError, match="modality"): Router.fit(np.empty((0, 4)), [], [])


def test_validation_without_a_domain_is_noted():
    val = study(10); one = val[1] == "brightfield"
    router = Router.fit(*study(0), *(v[one] for v in val))
    assert any("no validation tile of fluorescence" in n for n in router.notes)


def test_three_domains_are_routed_too():
    names = ("a", "b", "c"); train, new = study(0, domains=names), study(20, domains=names)
    assert (Router.fit(*train, *train).predict(new[0])["domain"] == new[1]).mean() > 0.97


def test_storing_keeps_every_answer(router, tmp_path):
    again = Router.load(router.save(tmp_path / "router.safetensors")); x = study(20)[0]
    assert again.predict(x).equals(router.predict(x)) and again.extra == {"encoder": "abc"} and again.notes == router.notes
    assert {p.name for p in tmp_path.iterdir()} == {"router.safetensors", "router.json"}


@pytest.mark.parametrize("harm", ["cut", "missing", "json cut", "json missing", "json of another"])
def test_damaged_files_are_named(router, tmp_path, harm):
    path = router.save(tmp_path / "router.safetensors"); other = path.with_suffix(".json")
    if harm == "cut": path.write_bytes(path.read_bytes()[:200])
    if harm == "missing": path.unlink()
    if harm == "json cut": other.write_text(other.read_text()[:20])
    if harm == "json missing": other.unlink()
    if harm == "json of another": other.write_text(other.read_text().replace('"brightfield",', ""))
    with pytest.raises(UserError, match="router"): Router.load(path)


def test_features_of_another_encoder_are_refused(router):
    with pytest.raises(UserError, match="another encoder"): router.predict(np.zeros((3, 12)))


def test_routing_needs_no_scikit_learn(router, tmp_path):
    path = router.save(tmp_path / "router.safetensors")
    code = f"import sys, numpy as np; from bonehisto.router import Router; Router.load({str(path)!r}).predict(np.zeros((2, 16))); assert 'sklearn' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.3, 8.0), st.integers(0, 99))
def test_temperature_undoes_overconfidence(factor, seed):
    rng = np.random.default_rng(seed); logits = rng.normal(0, 2, (3000, 2))
    truth = (rng.random(3000) < softmax(logits)[:, 1]).astype(int)
    assert abs(fit_temperature(logits * factor, truth) / factor - 1) < 0.2


def test_temperature_stays_finite_on_perfect_separation():
    logits = np.array([[9.0, -9.0]] * 50 + [[-9.0, 9.0]] * 50)
    p = softmax(logits / fit_temperature(logits, np.repeat([0, 1], 50))).max(1)
    assert 0.97 < p.min() < 0.99  # (50 + 1) / (50 + 2)


def test_shares_count_subjects_not_tiles():
    "A subject with many tiles weighs no more than one with few; an abstained tile is not right."
    import pandas as pd
    sent = pd.DataFrame({"domain": ["a"] * 90 + [ABSTAIN] * 10, "nearest": "a", "probability": 1.0})
    scores = router_scores(["a"] * 100, sent, ["s1"] * 90 + ["s2"] * 10).query("domain == 'all'").set_index("score")
    assert scores.loc["right", "mean"] == 0.5 and scores.loc["abstained", "mean"] == 0.5 and scores.loc["wrong", "mean"] == 0
    assert scores.loc["right", "tiles"] == 100 and scores.loc["right", "subjects"] == 2


def test_confusion_counts_every_tile_once():
    table = confusion_table(["a", "a", "b"], ["a", ABSTAIN, "a"])
    assert table.columns.tolist() == ["truth", "a", "b", ABSTAIN]
    assert table.drop(columns="truth").to_numpy().tolist() == [[1, 0, 1], [1, 0, 0]]


def test_calibration_error_of_the_overconfident():
    assert calibration_error([0.99] * 100, [True] * 70 + [False] * 30) == pytest.approx(0.29)


def test_features_and_colours_lie_side_by_side():
    tiles = np.zeros((2, 8, 8, 3), np.uint8)
    x = router_features(np.zeros((2, 3), np.float16), np.ones((2, 3), np.float16), tiles)
    assert x.dtype == np.float64 and x.shape == (2, 6 + COLOURS) and x[:, :6].tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert np.array_equal(x[:, 6:], colour_histogram(tiles))
    assert router_features(np.zeros((0, 3)), np.zeros((0, 3)), tiles[:0]).shape == (0, 6 + COLOURS)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_colour_shares_add_to_one_whatever_the_pixels_and_wherever_they_lie(seed):
    rng = np.random.default_rng(seed); tile = np.kron(rng.integers(0, 256, (1, 4, 4, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    h = colour_histogram(tile)
    assert np.isclose((h**2).sum(), 1, atol=1e-5) and np.allclose(h, colour_histogram(tile[:, ::-1].transpose(0, 2, 1, 3)), atol=1e-4)


def test_a_strange_colour_is_abstained_from_although_features_are_at_home():
    train, val, new = study(0), study(10), study(20); rng = np.random.default_rng(0)
    paint = lambda x, hue: np.c_[x, colour_histogram(np.clip(rng.normal(hue, 6, (len(x), 8, 8, 3)), 0, 255).astype(np.uint8))]
    usual, odd = (200, 120, 110), (110, 200, 120)
    router = Router.fit(paint(train[0], usual), *train[1:], paint(val[0], usual), *val[1:], colours=COLOURS)
    assert (router.predict(paint(new[0], usual))["domain"] == new[1]).mean() > 0.97
    sent = router.predict(paint(new[0], odd))
    assert sent["abstained"].all() and (sent["distance"] <= 1).mean() > 0.97 and sent["reason"].str.contains("colour").all()


def test_one_subject_of_its_own_kind_does_not_stretch_the_limit_over_strangers():
    x, domains, who = study(0, subjects=8); odd = who == "b0-3"
    x[odd, 4:12] += 30; stranger = study(20)[0]; stranger[:, 12:] += 12  # another stain shows in many features
    router = Router.fit(x, domains, who)
    assert any("b0-3" in n for n in router.notes)
    assert (router.predict(x[odd])["domain"] == "brightfield").mean() > 0.97  # its own tiles are at home all the same
    assert router.predict(stranger)["abstained"].mean() > 0.97


def test_the_limit_never_turns_away_the_training_tiles():
    inside = np.linspace(0, 5, 1000)
    limit, apart = distance_limit(np.full(50, np.nan), ["s"] * 50, inside)
    assert limit > 5 and apart == []
    assert distance_limit(np.r_[np.ones(50), np.full(50, 2.0)], ["s"] * 50 + ["t"] * 50, inside, margin=1.0)[0] > 4.9
