"""The oracle's benchmark: the pool is poor, costs are counted, both orders get the same, what is done is kept, and a good order wins."""
import json
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from bonehisto.encoder import create_encoder
from bonehisto.embeddings import embed_tiles
from bonehisto.files import UserError, write_table
from bonehisto.images import UNLABELLED, read_image, read_mask
from bonehisto.label_figures import plot_orders
from bonehisto.manifest import load_manifest
from bonehisto.queue_benchmark import HeadTrial, curve_area, draw_start, judge_orders, order_areas, pool_table, run_orders, say_orders, study_router, summarise_orders
from bonehisto.queue_pool import KINDS, count_clicks, deal_kinds, draw_pool, plan_pool
from bonehisto.roi_doubt import roi_facts
from bonehisto.roi_ranking import rank_rois
from bonehisto.tiling import tile_roi

GOOD = [f"r{k:02d}" for k in (4, 9, 17, 22)]
POOL = pd.DataFrame({"roi": [f"r{k:02d}" for k in range(24)], "by_hand": 6})
POOL["holds"] = [{0, 1, 2} if r in GOOD else {0, 1} for r in POOL["roi"]]


class Stand:
    "What a head knows is how much osteoid it saw; the order is that of the queue, from what such a head leaves in doubt."
    def __init__(self, broken=None): self.calls, self.broken = [], broken

    def __call__(self, domain, labelled, look, rank, seed):
        if self.broken == len(self.calls): raise InterruptedError
        self.calls.append((tuple(labelled), tuple(look), rank))
        known = len(set(labelled) & set(GOOD)); found = {"dice": {"osteoid": .2 * known, "tissue mean": .1 + .2 * known}, "steps": 5, "val_dice": .5, "clicks": {r: 2 + 3 * (r in GOOD) for r in look}}
        if rank:
            osteoid = np.where(POOL["roi"].isin(GOOD), 4000, 20)
            doubt = pd.DataFrame({"roi": POOL["roi"], "kind": "nw", "blank": False, "focus": 0., "px_0": 30000, "doubt_0": 300., "px_1": 16000, "doubt_1": 400., "px_2": osteoid, "doubt_2": .3 * osteoid})
            facts = roi_facts(POOL.assign(modality=domain, split="train"), pd.DataFrame({"roi": POOL["roi"], "domain": domain, "state": "segmented", "tiles": 5, "blank": 0, "quality": "good"}), doubt)
            found["order"] = [r for r in rank_rois(facts, labelled=labelled, seed=1000 * seed + len(labelled))[0]["roi"] if r in look]
        return found


def bench(folder, trial=None, counts=(3, 6, 9), seeds=range(5), **told):
    return run_orders(trial or Stand(), {"x": POOL}, {"x": 3}, folder, counts, seeds, told=told)


def test_most_of_the_pool_teaches_little_and_the_test_subjects_hold_every_kind():
    people, jobs = plan_pool(48, 3); jobs = pd.DataFrame(jobs); pool, test = jobs[jobs["split"] == "train"], jobs[jobs["split"] == "test"]
    for _, part in pool.groupby("modality"): assert len(part) == 48 and .75 <= part["kind"].isin(["low", "blank", "out of focus"]).mean() <= .85 and set(part["kind"]) == set(KINDS)
    assert all(set(part["kind"]) == set(KINDS) for _, part in test.groupby("modality"))
    assert jobs.groupby("subject")["split"].nunique().max() == 1 and jobs["roi"].is_unique and {p["id"] for p in people} == set(jobs["subject"])
    assert plan_pool(48, 3) == (people, plan_pool(48, 3)[1]) and plan_pool(48, 4)[1][0]["draw"]["seed"] != jobs["draw"][0]["seed"]


@given(st.integers(1, 80), st.integers(0, 9))
def test_kinds_are_dealt_in_their_shares(n, seed):
    kinds = deal_kinds(n, np.random.default_rng(seed))
    assert len(kinds) == n and (n < 5 or set(kinds) == set(KINDS)) and (n < 20 or all(abs(kinds.count(k) - n * s) <= 1.5 for k, s in KINDS.items()))


@given(st.integers(4, 40), st.integers(4, 40), st.integers(1, 600))
@settings(max_examples=40, deadline=None)
def test_clicks_grow_with_the_area_that_is_wrong(height, width, stroke):
    truth = np.zeros((60, 60), np.uint8); truth[10:10 + height, 10:10 + width] = 1
    wrong = height * width
    assert count_clicks(truth, truth) == 1 and count_clicks(truth, None, stroke, 10) == 1 + -(-wrong // stroke)
    assert count_clicks(np.where(truth, UNLABELLED, 0).astype(np.uint8), truth, stroke, 10) == 1


def test_a_stroke_paints_one_class_and_thin_rims_are_let_be():
    truth = np.zeros((50, 50), np.uint8); truth[10:30, 10:30] = 1; truth[30:40, 10:30] = 2
    assert count_clicks(truth, None) == 3  # bone and osteoid touch, and are two strokes
    rim = truth.copy(); rim[10:12] = 0
    assert count_clicks(truth, rim) == 1 and count_clicks(truth, np.roll(truth, 5, 0)) > 1


def test_area_of_known_curves():
    assert curve_area([0, 2], [0, 1]) == .5 and curve_area([3, 6, 12], [0, .6, .6]) == pytest.approx((.5 * 3 * .6 + 6 * .6) / 9)
    assert curve_area([0, 2, 4], [0, 1, 9], 2) == .5 and curve_area([0, 2, 4], [0, 1, 3], 3) == pytest.approx((1 + 1.5) / 3) and curve_area([5, 6], [.4, .5], 5) == .4


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(.05, .95))
def test_an_area_lies_within_its_curve(y, part):
    x = np.cumsum(np.arange(1, len(y) + 1)); a = curve_area(x, y, x[0] + part * (x[-1] - x[0]))
    assert min(y) - 1e-9 <= a <= max(y) + 1e-9


def test_a_start_holds_every_class_and_one_that_cannot_is_refused():
    for seed in range(6): assert set.union(*POOL.set_index("roi").loc[draw_start(POOL, 3, 3, seed), "holds"]) == {0, 1, 2}
    assert len({tuple(draw_start(POOL, 3, 3, s)) for s in range(6)}) > 3
    with pytest.raises(UserError, match="hold all 4 classes: begin with more"): draw_start(POOL, 3, 4)
    for n in (0, 24):
        with pytest.raises(UserError, match="the pool has 24"): draw_start(POOL, n, 3)


@pytest.mark.parametrize("counts, words", [((3, 24), "24 ROIs are to be labelled, the pool has 24"), ((6, 3), "numbers that grow"), ((3,), "two or more"), ((3, 3, 6), "numbers that grow")])
def test_counts_that_make_no_curve_are_refused_before_any_training(tmp_path, counts, words):
    trial = Stand()
    with pytest.raises(UserError, match=words): bench(tmp_path, trial, counts)
    assert not trial.calls and not list(tmp_path.iterdir())


def test_both_orders_begin_alike_and_label_as_much(tmp_path):
    trial = Stand(); rows = bench(tmp_path, trial)
    whole = rows[rows["class"] == "tissue mean"].set_index(["seed", "order", "rois"])
    for seed in range(5):
        assert whole.loc[(seed, "queue", 3)].equals(whole.loc[(seed, "random", 3)]) and whole.loc[(seed, "all", 24), "dice"] == pytest.approx(.9)
    assert len(trial.calls) == 5 * (1 + 2 + 2 + 1)
    assert all(len(set(labelled)) == len(labelled) and not set(labelled) & set(look) for labelled, look, _ in trial.calls)
    starts = {c[0] for c in trial.calls if len(c[0]) == 3}
    assert len(starts) == 5 and all(c[0][:3] in starts for c in trial.calls if len(c[0]) in (6, 9))
    assert whole["minutes"].dropna().to_numpy() == pytest.approx(whole["clicks"].dropna().to_numpy() * 4 / 60)
    assert (whole.loc[[(s, "queue", 3) for s in range(5)], "clicks"] == 18).all()  # three from an empty map
    by_order = whole.drop(index="all", level="order")["clicks"].unstack()
    assert (by_order.diff(axis=1)[[6, 9]] >= 6).all(axis=None)


def test_the_queue_wins_where_doubt_shows_what_is_rare(tmp_path):
    rows = bench(tmp_path); areas, summary = order_areas(rows), summarise_orders(rows); judged = judge_orders(areas, summary)
    assert judged.loc[0, "wins"] >= 4 and judged.loc[0, "difference"] > .05 and judged.loc[0, "reached"] <= 9 and not judged.loc[0, "against_reached"] <= 9
    said, = say_orders(judged); assert "random order not within" in said and "seeds" in said and "0.900" in said
    assert areas.loc[areas["order"] == "queue", "share"].dropna().le(9 / 24).all()


def test_an_order_that_is_no_better_is_said_to_be_none(tmp_path):
    class Blind(Stand):
        def __call__(self, domain, labelled, look, rank, seed):
            found = super().__call__(domain, labelled, look, rank, seed)
            return found | {"order": [r for r in reversed(found.get("order", [])) if r not in GOOD] + [r for r in look if r in GOOD]}
    rows = bench(tmp_path, Blind()); judged = judge_orders(order_areas(rows), summarise_orders(rows))
    assert judged.loc[0, "wins"] <= 1 and np.isnan(judged.loc[0, "reached"]) and "the queue reaches the Dice of all labels (0.900) less 0.02 not within" in say_orders(judged)[0]


@pytest.mark.parametrize("after", [0, 3, 8])
def test_a_benchmark_goes_on_where_it_was_broken_off(tmp_path, after):
    whole = bench(tmp_path / "whole", seeds=[0, 1])
    with pytest.raises(InterruptedError): bench(tmp_path / "broken", Stand(after), seeds=[0, 1])
    assert len(list((tmp_path / "broken").glob("cells/*.json"))) == after
    rest = Stand(); again = bench(tmp_path / "broken", rest, seeds=[0, 1])
    assert again.equals(whole) and len(rest.calls) == 12 - after and pd.read_csv(tmp_path / "broken/tables/queue_benchmark.csv").shape == whole.shape
    same = Stand(); bench(tmp_path / "broken", same, seeds=[0, 1]); assert not same.calls
    bench(tmp_path / "broken", same, seeds=[0], steps=9); assert len(same.calls) == 6  # other settings: trained again
    (tmp_path / "broken/cells/queue_x_0_start.json").write_text('{"settings": {')
    with pytest.raises(UserError, match="queue_x_0_start.json: not valid JSON"): bench(tmp_path / "broken", same, seeds=[0], steps=9)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "A drawn pool of five and what a run leaves of it, brightfield alone."
    folder = tmp_path_factory.mktemp("pool"); manifest = load_manifest(draw_pool(folder, 5, size_px=144, workers=1, val=2, test=3))
    rois = pd.DataFrame([{"roi": r.id, "subject": r.subject, "group": "g", "modality": r.modality, "split": r.split, "image": str(r.image), "mask": str(r.mask), "pixel_size_um": r.pixel_size_um} for r in manifest.rois if r.modality == "brightfield"])
    tiles, tables, masks = [], [], {}
    for r in rois.itertuples():
        t, table = tile_roi(read_image(r.image).pixels)
        tiles.append(t); tables.append(table.assign(tile=[f"{r.roi}:{k}" for k in range(len(t))], roi=r.roi, subject=r.subject, modality=r.modality, split=r.split)); masks[r.roi] = read_mask(r.mask, manifest.class_table("brightfield"))
    return manifest, rois, pd.concat(tables, ignore_index=True), np.concatenate(tiles), masks


def test_a_head_is_trained_scored_and_asked_for_the_order(study, tmp_path):
    manifest, rois, table, tiles, masks = study; encoder = create_encoder("micro").eval(); features = embed_tiles(encoder, tiles)
    write_table(tmp_path / "tables/tiles.parquet", table); (tmp_path / "features").mkdir(); np.save(tmp_path / "features/cls.npy", features["cls"])
    trial = HeadTrial(tmp_path, manifest, rois, table, tiles, {"brightfield": masks}, encoder, study_router(tiles, table, features), 2, 1, {"steps": 2, "looks": 1, "batch": 2, "tune": 0})
    pool = pool_table(rois, masks); assert len(pool) == 5 and (pool.loc[[h == {0} for h in pool["holds"]], "by_hand"] == 1).all()
    start = draw_start(pool, 2, 3); rest = [r for r in pool["roi"] if r not in start]
    found = trial("brightfield", start, rest, True, 0)
    assert set(found["dice"]) == {"background", "mineralised bone", "osteoid", "tissue mean"} and sorted(found["order"]) == rest and set(found["clicks"]) == set(rest) and found["steps"] == 2
    assert min(found["clicks"].values()) >= 1 and json.loads(json.dumps(found)).keys() == found.keys() and json.dumps(trial.told())
    assert trial("brightfield", start, [], False, 0)["dice"] == found["dice"]  # what is looked at changes nothing
    assert "order" not in trial("brightfield", start, rest[:1], False, 0)
    two, second = replace(trial, trainings=2)("brightfield", start, rest, True, 0), trial("brightfield", start, [], False, 1000)
    assert two["dice"] == pytest.approx({c: (v + second["dice"][c]) / 2 for c, v in found["dice"].items()}) and {k: two[k] for k in ("order", "clicks")} == {k: found[k] for k in ("order", "clicks")}
    with pytest.raises(UserError, match="occurs in no mask of a training subject"): trial("brightfield", [r for r in pool["roi"] if pool.set_index("roi").loc[r, "holds"] == {0}], [], False, 0)


def test_the_curves_are_drawn_with_what_all_labels_give(tmp_path):
    summary = summarise_orders(bench(tmp_path))
    for x, label in (("rois", "ROIs labelled"), ("clicks", "clicks"), ("minutes", "minutes (estimated)")):
        ax = plot_orders(summary, plt.figure().gca(), x, "x")
        assert ax.get_xlabel() == label and {"order of the queue", "random order", "all 24 ROIs", "less 0.02"} == {t.get_text() for t in ax.get_legend().get_texts()}
        drawn = next(l for l in ax.lines if l.get_label() == "order of the queue")
        assert drawn.get_ydata() == pytest.approx(summary.loc[summary["order"] == "queue", "mean"])
    plt.close("all")


@pytest.mark.parametrize("args, says", [(("phantom", "out", "--pool", "3"), "pool"), (("queue-benchmark", "nowhere.yaml", "--out", "out"), "nowhere.yaml: no such file")])
def test_a_mistake_ends_with_code_2_and_writes_nothing(tmp_path, args, says):
    done = subprocess.run([sys.executable, "-m", "bonehisto", *args], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and says in " ".join((done.stdout + done.stderr).split()) and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
