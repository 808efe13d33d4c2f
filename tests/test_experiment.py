"""The experiment trains every arm once, on its own tiles and no test subject, and claims what its seeds can show."""
import numpy as np
import pandas as pd
import pytest

import bonehisto.experiment as experiment
from bonehisto.encoder import create_encoder, save_encoder
from bonehisto.experiment import Arm, arm_rows, plan_arms, run_experiment, summarise_experiment, verdict, where_it_helps
from bonehisto.experiment_figures import experiment_panels, plot_experiment
from bonehisto.files import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
DOMAINS = ("brightfield", "fluorescence")
QUICK = dict(steps=2, batch=8, training=dict(n_local=1, global_px=32, local_px=16, projector_width=16, projector_out=8, n_directions=32), probing=dict(k=3, permutations=2), sampling=dict(tile=32))


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    rows = [(f"s{s}_{d[0]}{k}", f"s{s}", ("low", "high")[s % 2], d, "test" if s > 5 else "val" if s > 4 else "train") for s in range(8) for d in DOMAINS for k in range(2)]
    table = pd.DataFrame(rows, columns=["roi", "subject", "group", "modality", "split"]).assign(x=0, y=0, blank=False)
    masks = {d: {r[0]: np.kron(rng.permutation([0, 0, 1, 1]).reshape(2, 2), np.ones((16, 16))).astype(np.uint8) for r in rows if r[3] == d} for d in DOMAINS}
    ink = {"brightfield": np.array([[230, 220, 225], [40, 90, 170]]), "fluorescence": np.array([[8, 9, 8], [20, 120, 60]])}
    tiles = np.stack([np.clip(ink[r[3]][masks[r[3]][r[0]]] + rng.normal(0, 15, (32, 32, 3)), 0, 255) for r in rows]).astype(np.uint8)
    return tiles, table, masks, {d: ["background", "bone"] for d in DOMAINS}


@pytest.fixture
def counted(monkeypatch):
    """Names of the folders in which `pretrain` and the rows with which it was called."""
    calls, real = [], experiment.pretrain
    monkeypatch.setattr(experiment, "pretrain", lambda tiles, out, rows, **k: calls.append((out.name, list(rows))) or real(tiles, out, rows, **k))
    return calls


def test_arms_differ_in_what_they_saw_and_in_nothing_else(tmp_path):
    given = str(save_encoder(create_encoder("micro"), tmp_path / "e.safetensors"))
    arms = {a.name: a for a in plan_arms("tiny", [["mine", "micro", given]])}
    assert list(arms) == ["random", "lejepa_brightfield", "lejepa_fluorescence", "lejepa_both", "random_micro", "mine"]
    assert arms["lejepa_both"].domains == DOMAINS and arms["lejepa_both"].baseline == "random" and arms["mine"].baseline == "random_micro"
    assert {a.preset for a in arms.values() if a.name.startswith("lejepa")} == {"tiny"}


@pytest.mark.parametrize("extra, said", [([["a", "huge", "x"]], "huge"), ([["a", "micro", "nowhere.safetensors"]], "nowhere"), ([["random", "micro", "x"]], "another name"), (["dinov2"], r"\[name, preset, weights\]"), ([["../a", "micro", "x"]], "letters")])
def test_a_mistake_in_the_given_weights_is_told_before_anything_is_trained(extra, said):
    with pytest.raises(UserError, match=said) as e:
        plan_arms("micro", extra)
    assert "experiment.extra[0]" in str(e.value)


def test_no_arm_is_pretrained_on_test_subjects_blank_tiles_or_the_other_domain(study):
    _, table, _, _ = study
    table = table.assign(blank=np.arange(len(table)) == 0)
    seen = table.iloc[arm_rows(table, Arm("a", "micro", ("brightfield",)))]
    assert set(seen["split"]) == {"train", "val"} and set(seen["modality"]) == {"brightfield"} and not seen["blank"].any() and len(seen) == 11
    assert len(arm_rows(table, Arm("a", "micro", DOMAINS))) == 23
    with pytest.raises(UserError, match="brightfield"):
        arm_rows(table[table["modality"] == "fluorescence"], Arm("a", "micro", ("brightfield",)))


def test_an_arm_that_stands_there_is_not_trained_twice_and_other_settings_are_noticed(study, counted, tmp_path):
    arms = plan_arms("micro")
    first = run_experiment(*study, tmp_path, arms, (0, 1), **QUICK)
    assert len(counted) == 6 and len({n for n, _ in counted}) == 6 and first.groupby(["arm", "seed"]).ngroups == 8
    assert not {study[1]["split"][r] for _, rows in counted for r in rows} & {"test"}
    pd.testing.assert_frame_equal(run_experiment(*study, tmp_path, arms, (0, 1), **QUICK), first)
    assert len(counted) == 6
    (tmp_path / "arms/lejepa_both_seed1/probes.csv").unlink()  # as if killed while probing
    pd.testing.assert_frame_equal(run_experiment(*study, tmp_path, arms, (0, 1), **QUICK), first)
    assert [n for n, _ in counted[6:]] == ["lejepa_both_seed1"]
    run_experiment(*study, tmp_path, arms, (0,), **QUICK | {"steps": 3})
    assert [n for n, _ in counted[7:]] == ["lejepa_brightfield_seed0", "lejepa_fluorescence_seed0", "lejepa_both_seed0"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "tables/experiment.csv")[["arm", "seed"]].drop_duplicates(ignore_index=True), pd.DataFrame({"arm": [a.name for a in arms], "seed": 0}))


def test_a_study_of_one_domain_leaves_arms_out_and_goes_on(study, tmp_path, capsys):
    tiles, table, masks, names = study
    keep = np.flatnonzero(table["modality"] == "fluorescence")
    found = run_experiment(tiles[keep], table.iloc[keep].reset_index(drop=True), masks, names, tmp_path, plan_arms("micro"), (0,), **QUICK)
    assert list(found["arm"].unique()) == ["random", "lejepa_fluorescence"] and "lejepa_both is left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="seeds"):
        run_experiment(*study, tmp_path, plan_arms("micro"), (), **QUICK)


def results(values, seeds=(0, 1, 2), probe="tissue Dice", class_="tissue mean"):
    """Rows of one probe: arm -> its value at each seed."""
    return pd.DataFrame([{"arm": a, "preset": "micro", "baseline": "" if a == "random" else "random", "seed": s, "probe": probe, "domain": "brightfield", "class": class_, "value": v, "chance": .3, "p": np.nan, "n": 9, "note": ""}
                         for a, vs in values.items() for s, v in zip(seeds, vs)])


def test_differences_are_paired_by_seed():
    seed_effect = np.array([0, .3, -.2])  # seeds differ far more than arms do
    table = summarise_experiment(results({"random": .5 + seed_effect, "better": .55 + seed_effect + [.001, 0, -.001], "worse": .45 + seed_effect + [.001, 0, -.001], "same": .5 + seed_effect + [.05, -.06, .01]})).set_index("arm")
    assert table["verdict"].to_dict() == {"random": "", "better": "better than random weights", "worse": "worse than random weights", "same": "no difference that 3 seeds can show"}
    assert table.loc["better", "difference"] == pytest.approx(.05) and table.loc["better", "low"] < table.loc["random", "mean"]  # unpaired, nothing would be seen


def test_interval_is_that_of_t_over_seeds():
    table = summarise_experiment(results({"random": [.5, .5, .5], "a": [.6, .7, .8]})).set_index("arm")
    assert table.loc["a", ["low", "high"]].tolist() == pytest.approx([.7 - 4.302653 * .1 / 3**.5, .7 + 4.302653 * .1 / 3**.5])
    assert table.loc["a", ["difference_low", "difference_high"]].tolist() == pytest.approx([.2 - .248414, .2 + .248414], abs=1e-5)


def test_a_missing_baseline_seed_or_value_makes_no_pair():
    found = results({"random": [.5, np.nan, .5], "a": [.6, .7, .8]})
    assert summarise_experiment(found[~((found["arm"] == "random") & (found["seed"] == 2))]).set_index("arm").loc["a", "verdict"] == "one seed shows nothing"
    assert summarise_experiment(found[found["arm"] == "a"])["verdict"].tolist() == ["not measured"]


@pytest.mark.parametrize("low, high, seeds, words", [(.01, .1, 3, "better than random weights"), (-.1, -.01, 3, "worse than random weights"), (-.1, .1, 5, "no difference that 5 seeds can show"),
                                                     (0, 0, 3, "no difference that 3 seeds can show"), (.083, .083, 2, "no difference that 2 seeds can show"), (np.nan, np.nan, 1, "one seed shows nothing"), (np.nan, np.nan, 0, "not measured")])
def test_verdict_words(low, high, seeds, words):
    assert verdict(low, high, seeds) == words


def test_the_list_of_where_it_does_not_help_names_every_such_probe_and_every_class_that_lost():
    table = summarise_experiment(pd.concat([results({"random": [.5, .5, .5], "a": [.6, .61, .62], "b": [.5, .6, .4]}), results({"random": [.5, .5, .5], "a": [.4, .41, .42], "b": [.6, .61, .62]}, class_="osteoid")]))
    helps, does_not = where_it_helps(table)
    assert len(helps) == 1 and helps[0].startswith("a: tissue Dice, brightfield: 0.610 against 0.500") and len(does_not) == 2
    none, lost = sorted(does_not, key=lambda t: "osteoid" in t)
    assert none.startswith("b:") and "no difference" in none and lost.startswith("a:") and "worse" in lost


def test_every_probe_has_its_panel_and_marks_follow_the_verdict():
    import matplotlib.pyplot as plt
    table = summarise_experiment(pd.concat([results({"random": [.5, .51, .5], "lejepa_both": [.6, .61, .62]}), results({"random": [np.nan] * 3, "lejepa_both": [np.nan] * 3}, probe="turnover", class_="all")]))
    fig, axes = plt.subplots(1, 4)
    plot_experiment(table, axes)
    assert experiment_panels(table) == [("tissue Dice", "brightfield"), ("turnover", "brightfield")]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["random weights", "LeJEPA, both domains"]
    assert axes[1].texts and not axes[1].lines and axes[2].get_legend() is not None and not axes[3].axison
    plt.close(fig)
