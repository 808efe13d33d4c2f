"""What to label next, who gets it with how much help, and that the queue's file survives what happens to files."""
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from synthetic_run import make_run

from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.files import UserError, write_table
from bonehisto.images import write_mask
from bonehisto.label_patches import patch_from
from bonehisto.labelling_queue import (VIEW, close_item, may_compare, proposal_for, queue_table, queue_view, send_to_queue,
                                       take_item, without_sentinels)
from bonehisto.queue_file import found_readings, locked_queue, new_item, queue_notes, reader_name, this_process
from bonehisto.queue_plan import draw_kinds, plan_queue, spread
from bonehisto.reader_tables import READERS, reader_table, reading_pairs
from bonehisto.record import Record, summarise_record
from bonehisto.roi_doubt import doubt_of_tiles, roi_facts, run_doubt
from bonehisto.roi_ranking import rank_rois, rank_run
from bonehisto.sentinels import plant_error, sentinel_result, with_planted, without_planted
from bonehisto.tiling import tile_windows

NAMES = {"brightfield": ["background", "bone", "osteoid"], "fluorescence": ["background", "bone", "osteoid", "label"]}


# ---- the order

def made_pool(seed, low=50, rich=5, empty=8, tiles_each=10):
    """Mostly low turnover or blank: facts, features, tiles, and which ROIs are rich. The head doubts blank ROIs most."""
    rng, n = np.random.default_rng([seed, 1]), low + rich + empty
    kind = rng.permutation(np.repeat(["low", "rich", "blank"], [low, rich, empty])); is_rich, blank = kind == "rich", kind == "blank"
    facts = pd.DataFrame({"roi": [f"r{i:03d}" for i in range(n)], "subject": "S", "domain": "brightfield", "split": "train", "why": np.where(blank, "blank", ""), "mapped": True,
                          "px_0": 8e5, "doubt_0": rng.gamma(4, 500, n) * np.where(blank, 50, 1), "px_1": rng.gamma(4, 4e4, n), "doubt_1": rng.gamma(4, 500, n),
                          "px_2": np.where(is_rich, rng.gamma(4, 1e3, n), rng.gamma(1, 100, n)), "doubt_2": np.where(is_rich, rng.gamma(4, 100, n), rng.gamma(1, 20, n))})
    tiles = pd.DataFrame({"roi": np.repeat(facts["roi"].to_numpy(), tiles_each), "blank": np.repeat(blank, tiles_each), "tissue_fraction": .6})
    shown = np.repeat(is_rich, tiles_each) & (np.arange(n * tiles_each) % tiles_each < 4)
    features = rng.normal(size=(n * tiles_each, 16)) + 5 * shown[:, None] * rng.normal(size=16)
    return facts, features, tiles, set(facts["roi"][is_rich])


def area(order, wanted):
    """Area under the curve of wanted ROIs found against ROIs looked at, 0.5 for a random order."""
    return 1 - np.mean([list(order).index(r) + .5 for r in wanted]) / len(order)


@pytest.mark.parametrize("head,place", [(True, True), (True, False), (False, True)])
def test_rare_tissue_is_found_clearly_earlier_than_at_random(head, place):
    gains = []
    for seed in range(6):
        facts, features, tiles, rich = made_pool(seed)
        if not head: facts = facts[["roi", "subject", "domain", "split", "why"]].assign(mapped=False)
        order, _ = rank_rois(facts, features if place else None, tiles, names=NAMES, seed=seed)
        readable = facts["roi"][facts["why"] == ""].to_numpy()
        gains.append(area(order["roi"], rich) - area(np.random.default_rng(seed).permutation(readable), rich))  # random, yet spared the blank ones
    assert np.mean(gains) > (.25 if head else .12) and min(gains) > (.1 if head else -.1)


def test_what_cannot_be_read_comes_last_whatever_the_head_doubts():
    for seed in range(3):
        facts, features, tiles, _ = made_pool(seed)
        facts.loc[facts.index[facts["why"] == ""][:4], "why"] = "out of focus"
        order, notes = rank_rois(facts, features, tiles, random=.5, seed=seed)
        assert order["usable"].tolist() == sorted(order["usable"], reverse=True) and set(order["roi"]) == set(facts["roi"])
        assert set(order["reason"][~order["usable"]]) == {"blank", "out of focus"} and sum("come last" in n for n in notes) == 2


def test_the_order_is_the_seeds_alone():
    facts, features, tiles, _ = made_pool(0)
    order, _ = rank_rois(facts, features, tiles, seed=3)
    mixed = np.random.default_rng(0).permutation(len(tiles) // 10)
    rows = (10 * mixed[:, None] + np.arange(10)).ravel()
    again, _ = rank_rois(facts.sample(frac=1, random_state=0), features[rows], tiles.iloc[rows].reset_index(drop=True), seed=3)
    assert order["roi"].tolist() == again["roi"].tolist()
    assert order["roi"].tolist() != rank_rois(facts, features, tiles, seed=4)[0]["roi"].tolist()


def test_each_choice_minds_those_before_it_and_what_is_labelled():
    place = np.repeat([[0., 0], [10, 0], [0, 10]], 4, 0) + np.random.default_rng(0).normal(0, .1, (12, 2))
    facts = pd.DataFrame({"roi": [f"{c}{k}" for c in "abc" for k in range(4)], "domain": "brightfield", "why": "", "split": "", "mapped": False})
    tiles = pd.DataFrame({"roi": facts["roi"], "blank": False})
    order, _ = rank_rois(facts, place, tiles, random=0)
    assert {r[0] for r in order["roi"][:3]} == set("abc")
    order, _ = rank_rois(facts, place, tiles, labelled=["a0", "b2"], random=0)
    assert order["roi"][0][0] == "c" and len(order) == 10 and not {"a0", "b2"} & set(order["roi"])


def test_a_class_that_was_labelled_gives_way_to_one_that_was_not():
    bone, seam = np.repeat([[1.2, .1], [.1, 1.]], 5, 0).T
    facts = pd.DataFrame({"roi": [f"bone{k}" for k in range(5)] + [f"seam{k}" for k in range(5)], "domain": "brightfield", "why": "", "split": "", "mapped": True, "px_0": 0., "doubt_0": 0., "px_1": 9e4 * bone, "doubt_1": 900 * bone, "px_2": 500 * seam, "doubt_2": 50 * seam})
    order = lambda *labelled: rank_rois(facts, random=0, labelled=labelled, names=NAMES)[0]
    assert order()["reason"][0] in ("bone: rare or in doubt", "osteoid: rare or in doubt") and {r[:4] for r in order()["roi"][:2]} == {"bone", "seam"}
    assert order("bone0", "bone1")["roi"][0][:4] == "seam" and order("seam0", "seam1")["roi"][0][:4] == "bone"
    assert order("bone0", "bone1")["reason"][0] == "osteoid: rare or in doubt"


def test_domains_take_turns_and_the_one_with_fewer_labels_comes_first():
    facts = pd.DataFrame({"roi": [f"b{k:02d}" for k in range(30)] + [f"f{k:02d}" for k in range(6)], "domain": ["brightfield"] * 30 + ["fluorescence"] * 6, "why": "", "split": "", "mapped": False})
    assert rank_rois(facts)[0]["domain"][:12].value_counts().tolist() == [6, 6]
    order, _ = rank_rois(facts, labelled=["b00", "b01", "b02"])
    assert order["domain"][:3].eq("fluorescence").all() and order["domain"][3:6].eq("fluorescence").sum() < 3


def test_rois_kept_for_scoring_are_never_chosen_by_score():
    facts, features, tiles, _ = made_pool(1)
    facts["split"] = np.where(np.arange(len(facts)) % 2, "test", "train")
    order, _ = rank_rois(facts, features, tiles, random=.2)
    held = order["roi"].isin(facts["roi"][facts["split"] == "test"])
    assert set(order["reason"][held & order["usable"]]) <= {"drawn at random", "kept for scoring"} and (order["reason"] == "kept for scoring").any()
    by_score = order.index[~held & order["usable"]]
    assert order.index[order["reason"] == "kept for scoring"].min() > by_score.max()


@given(st.integers(0, 10**6), st.sampled_from([0., .1, .25, 1.]))
@settings(max_examples=15, deadline=None)
def test_the_random_share_is_kept(seed, share):
    facts = pd.DataFrame({"roi": [f"r{k:02d}" for k in range(40)], "domain": "brightfield", "why": "", "split": "", "mapped": True, "px_0": 0., "doubt_0": 0., "px_1": np.arange(40.) + 1, "doubt_1": 0.})
    order, _ = rank_rois(facts, random=share, seed=seed)
    assert abs((order["reason"] == "drawn at random").sum() - 40 * share) <= 1 and sorted(order["roi"]) == facts["roi"].tolist()


def test_what_is_lacking_is_said_and_done_without():
    facts, features, tiles, _ = made_pool(0)
    bare = facts[["roi", "domain", "split", "why"]].assign(mapped=False)
    assert rank_rois(bare, random=0, seed=0)[0]["roi"].tolist() != rank_rois(bare, random=0, seed=1)[0]["roi"].tolist()
    assert "chance alone" in rank_rois(bare)[1][0] and "novelty alone" in rank_rois(bare, features, tiles)[1][0] and "doubt alone" in rank_rois(facts)[1][0]
    new = pd.concat([facts, bare.iloc[:1].assign(roi="new", why="")], ignore_index=True)
    order, notes = rank_rois(new, features, tiles, random=0)
    at = order["roi"].tolist().index("new")  # neither first nor last
    assert 2 < at < 50 and any("1 of 64 ROIs have no map" in n for n in notes)
    assert len(rank_rois(facts[:0])[0]) == 0 and len(rank_rois(facts, labelled=facts["roi"])[0]) == 0
    same = np.ones_like(features)
    assert len(rank_rois(bare, same, tiles)[0]) == len(facts)
    holes = features.copy(); holes[::3] = np.nan
    assert np.isfinite(rank_rois(facts, holes, tiles)[0]["score"]).all()
    with pytest.raises(UserError, match="random is 2"): rank_rois(facts, random=2)


def test_a_stop_after_n_leaves_none_out():
    facts, features, tiles, _ = made_pool(0)
    whole, part = rank_rois(facts, features, tiles)[0], rank_rois(facts, features, tiles, n=7)[0]
    assert part["roi"][:7].tolist() == whole["roi"][:7].tolist() and set(part["roi"]) == set(whole["roi"])


# ---- doubt, from the files of a run

def written_maps(run, doubtful=(), size=448):
    """Two ROIs: `a` in doubt on its bone, `b` the same with one tile blank and one blurred."""
    drawn = np.zeros((size, size), np.uint8); drawn[:, 100:140] = 1; drawn[:, 300:340] = 2
    sure = np.where(drawn > 0, 102, 255).astype(np.uint8); rows = []
    for roi in ("a", "b"):
        for tail, pixels in (("", drawn), ("_confidence", sure)): write_mask(run / f"masks/{roi}{tail}.png", pixels)
        rows.append(tile_windows(size, size).assign(roi=roi, blank=False, focus=[0., .1, -.1, .05, 0]))
    tiles = pd.concat(rows, ignore_index=True)
    tiles.loc[[5], "blank"] = True; tiles.loc[[6], "focus"] = -9.
    write_table(run / "tables/segment_tiles.parquet", tiles)
    write_table(run / "tables/roi_segmentation.csv", pd.DataFrame({"roi": ["a", "b", "c"], "domain": "brightfield", "state": ["segmented", "segmented", "abstained"], "tiles": 5, "blank": [0, 1, 0], "quality": "good"}))
    return tiles


def test_doubt_on_blank_and_blurred_tiles_is_not_counted(tmp_path):
    written_maps(tmp_path)
    doubt = run_doubt(tmp_path, NAMES)
    facts = roi_facts(pd.DataFrame({"roi": ["a", "b", "c"], "modality": "brightfield"}), pd.read_csv(tmp_path / "tables/roi_segmentation.csv"), doubt).set_index("roi")
    assert facts.loc["a", ["px_1", "px_2"]].tolist() == [448 * 40] * 2 and facts.loc["a", "doubt_1"] == pytest.approx(448 * 40 * .6)
    assert facts.loc["b", "px_1"] == 224 * 40 and facts.loc["b", "px_2"] == 224 * 40  # the lower half alone
    assert facts["mapped"].tolist() == [True, True, False]


def test_maps_that_are_gone_or_damaged_leave_their_roi_without_doubt(tmp_path):
    tiles = written_maps(tmp_path)
    (tmp_path / "masks/b_confidence.png").unlink()
    doubt = run_doubt(tmp_path, NAMES)
    assert set(doubt["roi"]) == {"a"} and np.isnan(doubt_of_tiles(doubt, tiles)[5:]).all() and np.isfinite(doubt_of_tiles(doubt, tiles)[:5]).all()
    (tmp_path / "masks/a.png").write_bytes(b"no picture"); (tmp_path / "tables/tile_doubt.parquet").write_bytes(b"torn")
    doubt = run_doubt(tmp_path, NAMES)
    assert len(doubt) == 0 and np.isnan(doubt_of_tiles(doubt, tiles)).all()
    assert not roi_facts(pd.DataFrame({"roi": ["a"]}), None, doubt)["mapped"].any()


def test_doubt_is_read_again_when_the_maps_were_drawn_anew(tmp_path):
    written_maps(tmp_path); before = run_doubt(tmp_path, NAMES)
    write_mask(tmp_path / "masks/a_confidence.png", np.zeros((448, 448), np.uint8))
    assert run_doubt(tmp_path, NAMES).equals(before)
    os.utime(tmp_path / "tables/roi_segmentation.csv", (2e9, 2e9))
    assert run_doubt(tmp_path, NAMES)["doubt"][:5].tolist() == [1] * 5


def test_a_run_is_ranked_from_what_it_left(tmp_path):
    run = make_run(tmp_path, size=120, per_group=2, steps=20)
    rois = pd.read_csv(run / "tables/rois.csv", keep_default_na=False)
    order, notes = rank_run(run, NAMES, labelled=rois["roi"][:2])
    assert len(order) == len(rois) - 2 and sum("chance alone" in n for n in notes) == 2
    tiles = pd.read_parquet(run / "tables/tiles.parquet")
    np.save(run / "features/cls.npy", np.random.default_rng(0).normal(size=(len(tiles), 8)).astype(np.float32))
    assert sum("novelty alone" in n for n in rank_run(run, NAMES)[1]) == 2
    np.save(run / "features/cls.npy", np.zeros((3, 8), np.float32))
    assert any("3 rows for" in n for n in rank_run(run, NAMES)[1])
    (run / "tables/roi_segmentation.csv").unlink()
    assert any("`segment` was not run" in n for n in rank_run(run, NAMES)[1])


# ---- sentinels

def blobs(seed, size=200, classes=4):
    """A class map of patches of tissue in a background."""
    fields = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((classes, size, size)), (0, 9, 9)); fields[0] += .004
    return fields.argmax(0).astype(np.uint8)


@given(st.integers(0, 10**6), st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_a_planted_error_is_where_it_says_and_comes_out_again(seed, classes):
    truth = blobs(seed, classes=classes); names = NAMES["fluorescence"][:classes]
    planted = plant_error(truth, names, seed)
    wrong = with_planted(truth, planted); x, y, w, h = planted["box"]
    changed = wrong != truth
    assert changed.sum() == planted["pixels"] > 0 and not changed[:y].any() and not changed[:, :x].any() and changed[y:y + h, x:x + w].sum() == planted["pixels"]
    assert json.loads(json.dumps(planted)) == planted == plant_error(truth, names, seed)
    assert sentinel_result(wrong, planted)["caught"] is False and sentinel_result(truth, planted) == {"caught": True, "changed": 1, "right": 1}
    missed = without_planted(wrong, planted)
    assert np.array_equal(missed == 255, changed) and np.array_equal(missed[~changed], truth[~changed])
    elsewhere = wrong.copy(); elsewhere[changed] = (wrong[changed] + 1) % classes  # seen, put right or not
    assert sentinel_result(elsewhere, planted)["caught"] and np.array_equal(without_planted(elsewhere, planted), elsewhere)


def test_errors_are_planted_where_the_head_is_sure_and_labels_that_are_not_there_stay_so():
    truth = blobs(3); sure = np.zeros(truth.shape, np.uint8); sure[:, 100:] = 250
    found = [plant_error(truth, NAMES["fluorescence"], s, sure) for s in range(20)]
    assert all(p["box"][0] > 60 for p in found if p) and any(found)
    assert plant_error(truth * 0, NAMES["fluorescence"], 0) is None and plant_error(np.full((50, 50), 255, np.uint8), NAMES["fluorescence"], 0) is None
    added = [p for s in range(20) if (p := plant_error(truth, NAMES["fluorescence"], s)) and p["error"].endswith("drawn where there is none")]
    assert added and all((truth[y:y + h, x:x + w] != p["patches"][0]["value"]).all() for p in added for x, y, w, h in [p["box"]])
    holed = truth.copy(); holed[::2] = 255
    assert all((with_planted(holed, p)[::2] == 255).all() for s in range(5) if (p := plant_error(holed, NAMES["fluorescence"], s)))


def test_an_error_of_another_image_is_refused():
    planted = plant_error(blobs(0), NAMES["fluorescence"], 0)
    for act in (with_planted, without_planted, sentinel_result):
        with pytest.raises(UserError, match="reaches outside the image"): act(np.zeros((5, 5), np.uint8), planted)


# ---- the plan

def ranking(n, mapped=True, first=0):
    return pd.DataFrame({"roi": [f"r{k:03d}" for k in range(first, n)], "domain": "brightfield", "score": np.linspace(1, 0, n - first), "reason": "osteoid: rare or in doubt", "usable": True, "mapped": mapped})


def plan(folder, n=100, **kw): return plan_queue(folder, ranking(n), ranking(n)["roi"], **kw)


def test_the_shares_are_those_asked_for_in_every_stretch_of_the_queue(tmp_path):
    plan(tmp_path, 200)
    table = queue_table(tmp_path); first = table[table["kind"] != "second reading"]
    assert first["kind"].value_counts().to_dict() == {"normal": 172, "unassisted": 20, "sentinel": 8} and (table["kind"] == "second reading").sum() == 20
    assert all(1 <= (first["kind"][k:k + 30] == "unassisted").sum() <= 5 for k in range(0, 170, 10))
    assert set(first["proposal"][first["kind"] == "unassisted"]) == {"none"} and set(first["proposal"][first["kind"] == "sentinel"]) == {"planted"}
    assert not set(table["roi"][table["kind"] == "sentinel"]) & set(table["roi"][table["kind"] == "second reading"])


def test_the_same_seed_makes_the_same_queue_and_another_one_another(tmp_path):
    kinds = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        plan(tmp_path / name, seed=seed); kinds.append(queue_table(tmp_path / name)[["roi", "kind", "proposal"]].values.tolist())
    assert kinds[0] == kinds[1] != kinds[2]


@given(st.integers(0, 400), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_spread_marks_the_share_it_was_given(n, share, seed):
    assert abs(spread(n, share, np.random.default_rng(seed)).sum() - n * share) <= 1


def test_planning_again_keeps_what_was_begun_and_orders_what_waits(tmp_path):
    plan(tmp_path, 30); item = take_item(tmp_path, "Ada"); close_item(tmp_path, item["id"], "Ada"); held = take_item(tmp_path, "Ada")
    before = queue_table(tmp_path).set_index("id")
    more = ranking(40)[::-1]
    assert plan_queue(tmp_path, more[~more["roi"].isin([item["roi"]])], more["roi"]) == ["added to the queue: 10 ROIs"]
    after = queue_table(tmp_path).set_index("id")
    assert after.loc[item["id"], "status"] == "done" and take_item(tmp_path, "Ada") == held and take_item(tmp_path, "Eve")["roi"] == "r039"
    assert after.loc[before.index, ["roi", "kind", "proposal", "annotator"]].equals(before[["roi", "kind", "proposal", "annotator"]])
    waits = after[(after["status"] == "waiting") & (after["kind"] != "second reading")]["roi"].tolist()
    assert waits == sorted(waits, reverse=True)


def test_rois_that_leave_are_set_aside_with_their_readings_and_come_back(tmp_path):
    plan(tmp_path, 12, readers=2); item = take_item(tmp_path, "Ada"); close_item(tmp_path, item["id"], "Ada", seconds=5)
    assert plan_queue(tmp_path, ranking(12, first=5), ranking(12, first=5)["roi"], readers=2) == ["set aside, for they left the study or have labels: 5 ROIs"]
    table = queue_table(tmp_path)
    assert set(table["roi"][~table["aside"]]) == set(ranking(12, first=5)["roi"]) and any("set aside" in n for n in queue_notes(tmp_path))
    assert plan(tmp_path, 12, readers=2) == ["back in the queue: 5 ROIs"]
    back = queue_table(tmp_path).set_index("id").loc[item["id"]]
    assert (back["status"], back["annotator"], back["seconds"], bool(back["aside"])) == ("done", "Ada", 5, False)


def test_what_has_labels_from_elsewhere_is_not_asked_for_but_a_second_reading_still_is(tmp_path):
    plan(tmp_path, 10, readers=2); item = take_item(tmp_path, "Ada"); close_item(tmp_path, item["id"], "Ada")
    plan_queue(tmp_path, ranking(10, first=3), ranking(10)["roi"], readers=2)  # r000 is Ada's, r001 and r002 have masks now
    left = {take_item(tmp_path, "Eve")["roi"]}
    while item := [r for r in queue_view(tmp_path, "Eve").to_dict("records") if r["status"] == "open"]:
        close_item(tmp_path, item[0]["id"], "Eve")
        if (next_ := take_item(tmp_path, "Eve")) is None: break
        left.add(next_["roi"])
    assert "r000" in left and not left & {"r001", "r002"}


def test_asking_for_more_readers_later_adds_readings(tmp_path):
    plan(tmp_path, 10, reread=0); assert len(queue_table(tmp_path)) == 10
    plan(tmp_path, 10, readers=3); plan(tmp_path, 10, readers=3)
    assert queue_table(tmp_path)["roi"].value_counts().tolist() == [3] * 10


def test_a_bad_plan_is_refused_and_changes_nothing(tmp_path):
    plan(tmp_path, 5); before = (tmp_path / "queue.json").read_bytes()
    for bad, said in (({"unassisted": 2}, "unassisted is 2"), ({"sentinels": -.1}, "sentinels is -0.1"), ({"readers": 0}, "readers is 0"), ({"unassisted": .7, "sentinels": .7}, "1.4 together"), ({"reread": float("nan")}, "reread is nan")):
        with pytest.raises(UserError, match=said): plan(tmp_path, 9, **bad)
    assert (tmp_path / "queue.json").read_bytes() == before
    assert plan_queue(tmp_path / "none", ranking(0), []) == [] and take_item(tmp_path / "none", "Ada") is None


def test_second_readings_are_helped_as_the_first_ones_were():
    queue = {"next": 0}; items = [new_item(queue, f"r{k}") for k in range(50)] + [new_item(queue, f"r{k}", kind="second reading") for k in range(50)]
    draw_kinds(items, items[:50], .3, .1, np.random.default_rng(0))
    first = {i["roi"]: i["proposal"] for i in items[:50]}
    assert all(i["proposal"] == ("none" if first[i["roi"]] == "none" else "model") for i in items[50:]) and "planted" in first.values()
    items = [new_item(queue, f"r{k}") for k in range(50)] + [new_item(queue, f"r{k}", kind="second reading") for k in range(25)]
    draw_kinds(items, items[:50], 0, .3, np.random.default_rng(0))
    assert sum(i["kind"] == "sentinel" for i in items[25:50]) == 15  # where some ROIs are read once, sentinels are among these


# ---- taking

def test_nothing_a_reader_sees_tells_the_kind_of_an_item(tmp_path):
    plan(tmp_path, 40, readers=2); kinds = queue_table(tmp_path).set_index("id")["kind"]
    seen = []
    for name in ("Ada", "Eve"):
        while item := take_item(tmp_path, name): seen.append(item); close_item(tmp_path, item["id"], name)
    assert {kinds[i["id"]] for i in seen} == {"normal", "unassisted", "sentinel", "second reading"}
    assert all(list(i) == VIEW for i in seen) and list(queue_view(tmp_path, "Ada")) == VIEW
    assert {i["reason"] for i in seen} == {"osteoid: rare or in doubt"} and {i["status"] for i in seen} == {"open"}


def test_a_second_reading_is_somebody_elses_and_blind(tmp_path):
    plan(tmp_path, 6, readers=2); first = take_item(tmp_path, "Ada")
    assert all(i["roi"] != first["roi"] for i in queue_view(tmp_path, "Eve").to_dict("records"))  # not before the first is closed
    close_item(tmp_path, first["id"], "Ada")
    begin = take_item(tmp_path, "Eve"); assert begin["roi"] != first["roi"]  # nobody begins with a second reading
    close_item(tmp_path, begin["id"], "Eve")
    second = take_item(tmp_path, "Eve")
    assert second["roi"] == first["roi"] and second["id"] != first["id"] and "Ada" not in json.dumps(second)
    assert first["roi"] not in {i["roi"] for i in queue_view(tmp_path, "Ada").to_dict("records") if i["status"] == "waiting"}
    assert not may_compare(tmp_path, first["roi"], "Eve") and may_compare(tmp_path, first["roi"], "Ada")
    assert not may_compare(tmp_path, "r005", "Ada")
    close_item(tmp_path, second["id"], "Eve"); assert may_compare(tmp_path, first["roi"], "Eve")


def test_every_roi_gets_as_many_different_readers_as_asked_for(tmp_path):
    plan(tmp_path, 7, readers=3); names = ["Ada", "Eve", "Zoë", "Ida"]
    for _ in range(30):
        for name in names:
            if item := take_item(tmp_path, name): close_item(tmp_path, item["id"], name)
    done = queue_table(tmp_path)
    assert (done["status"] == "done").all() and done.groupby("roi")["annotator"].nunique().eq(3).all() and len(done) == 21


TAKE = """
import sys; from bonehisto.labelling_queue import close_item, take_item
sys.stdin.readline()
while item := take_item(sys.argv[1], sys.argv[2]):
    print(item["roi"], item["id"], flush=True); close_item(sys.argv[1], item["id"], sys.argv[2])
"""


@pytest.mark.parametrize("names", [("Ada", "Eve"), ("Ada", "Ada")])
def test_two_processes_never_get_the_same_item(tmp_path, names):
    plan(tmp_path, 24, reread=0)
    both = [subprocess.Popen([sys.executable, "-c", TAKE, str(tmp_path), n], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for n in names]
    for p in both: p.stdin.write("go\n"); p.stdin.flush()
    got = [line.split()[1] for p in both for line in p.communicate(timeout=60)[0].splitlines()]
    assert len(got) == 24 == len(set(got)) and (queue_table(tmp_path)["status"] == "done").all()


def test_many_threads_never_get_the_same_item(tmp_path):
    plan(tmp_path, 24, reread=0)
    with ThreadPoolExecutor(8) as pool: got = list(pool.map(lambda k: take_item(tmp_path, f"reader {k}")["id"], range(24)))
    assert len(set(got)) == 24


def run_and_die(folder, code):
    """Runs code that ends its own process without any goodbye; what it printed."""
    done = subprocess.run([sys.executable, "-c", "import os, sys\n" + code + "\nsys.stdout.flush(); os._exit(9)", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 9, done.stderr
    return done.stdout.split()


def test_an_item_of_a_dead_process_goes_back_to_its_reader_and_to_nobody_else(tmp_path):
    plan(tmp_path, 5, reread=0)
    roi, id = run_and_die(tmp_path, "from bonehisto.labelling_queue import take_item\ni = take_item(sys.argv[1], 'Ada'); print(i['roi'], i['id'])")
    assert take_item(tmp_path, "Eve")["id"] != id and take_item(tmp_path, "Ada")["id"] == id


def test_a_lock_goes_with_the_process_that_held_it(tmp_path):
    plan(tmp_path, 5)
    run_and_die(tmp_path, "from bonehisto.queue_file import locked_queue\nq = locked_queue(sys.argv[1]); q.__enter__()['items'].clear()")
    assert take_item(tmp_path, "Ada")["roi"] == "r000" and len(queue_table(tmp_path)) >= 5


def test_who_waits_too_long_for_the_lock_is_told(tmp_path):
    with locked_queue(tmp_path):
        with pytest.raises(UserError, match="another process has held the queue"):
            with locked_queue(tmp_path, patience=.05): pass


def test_an_item_open_in_a_living_process_is_not_given_to_its_reader_twice(tmp_path):
    plan(tmp_path, 5, reread=0)
    other = subprocess.Popen([sys.executable, "-c", "from bonehisto.labelling_queue import take_item; import sys; print(take_item(sys.argv[1], 'Ada')['id'], flush=True); input()", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        id = other.stdout.readline().strip()
        assert take_item(tmp_path, "Ada")["id"] != id
        with locked_queue(tmp_path) as queue: mine = [i for i in queue["items"] if i["holder"] and i["holder"]["pid"] == this_process()["pid"]]
        close_item(tmp_path, mine[0]["id"], "Ada")
        with locked_queue(tmp_path) as queue: held = next(i["holder"] for i in queue["items"] if i["id"] == id); held["started"] -= 1000
        assert take_item(tmp_path, "Ada")["id"] == id  # another process has that number now: the one that took it is gone
    finally: other.communicate("\n", timeout=60)


def test_an_item_can_be_put_back_skipped_and_opened_again(tmp_path):
    plan(tmp_path, 3, reread=0); item = take_item(tmp_path, "Ada")
    close_item(tmp_path, item["id"], "Ada", "waiting"); assert take_item(tmp_path, "Eve")["id"] == item["id"]
    skipped = take_item(tmp_path, "Ada"); close_item(tmp_path, skipped["id"], "Ada", "skipped")
    assert take_item(tmp_path, "Ada")["id"] not in (item["id"], skipped["id"])
    again = take_item(tmp_path, "Ada", roi=skipped["roi"]); assert again["id"] == skipped["id"] and again["status"] == "open"
    assert take_item(tmp_path, "Ada", roi=item["roi"]) is None and take_item(tmp_path, "Ada", roi="nowhere") is None


def test_only_who_has_an_item_closes_it(tmp_path):
    plan(tmp_path, 3); item = take_item(tmp_path, "Ada")
    for args, said in (((item["id"], "Eve"), "not open with Eve"), (("9999", "Ada"), "item 9999: no such item"), ((item["id"], "Ada", "finished"), "status is 'finished'")):
        with pytest.raises(UserError, match=said): close_item(tmp_path, *args)
    close_item(tmp_path, item["id"], " ADA ", seconds=12); row = queue_table(tmp_path).set_index("id").loc[item["id"]]
    assert (row["status"], row["seconds"], row["annotator"]) == ("done", 12, "Ada") and row["closed"] >= row["opened"] > ""


def test_names_are_texts_and_lead_to_no_path(tmp_path):
    labels = tmp_path / "labels"; plan(labels, 5, reread=0)
    for k, name in enumerate(("../../evil", "a/b\\c", "<script>alert(1)</script>", "Zoë 🦴")): assert reader_name(name) == name and take_item(labels, name)["roi"] == f"r00{k}"
    assert {p.name for p in tmp_path.rglob("*")} == {"labels", "queue.json", ".queue.lock"}
    assert set(queue_table(labels)["annotator"]) == {"", "../../evil", "a/b\\c", "<script>alert(1)</script>", "Zoë 🦴"}
    for bad in ("", " \n", "x" * 200, "a\u202eb", None):
        with pytest.raises(UserError, match="annotator is"): take_item(labels, bad)


# ---- sending

def test_what_is_sent_comes_first_with_the_places_of_its_tiles(tmp_path):
    plan(tmp_path, 20, reread=0); tiles = pd.DataFrame({"tile": ["r007:0", "r007:4", "r009:1"], "x": [0, 112, 224], "y": [0, 112, 0], "pad_right": [0, 0, 100], "pad_bottom": 0})
    said = send_to_queue(tmp_path, ["r009:1", "r007:0", "r007:4", "r003"], by="<b>Eve</b>", tiles=tiles)
    assert said == ["in front of the queue now: 3 ROIs"] and [r["roi"] for r in queue_view(tmp_path, "Ada").to_dict("records")][:4] == ["r009", "r007", "r003", "r000"]
    one, two = queue_view(tmp_path, "Ada").to_dict("records")[:2]
    assert one["boxes"] == [[224, 0, 124, 224]] and two["boxes"] == [[0, 0, 224, 224], [112, 112, 224, 224]] and "Eve" not in json.dumps([one, two])
    plan(tmp_path, 25); assert [take_item(tmp_path, n)["roi"] for n in ("Ada", "Ida", "Oda", "Una")] == ["r009", "r007", "r003", "r000"]  # a new plan keeps them in front


def test_what_is_done_is_sent_as_a_new_item_and_what_is_open_stays(tmp_path):
    plan(tmp_path, 5, reread=0); done = take_item(tmp_path, "Ada"); close_item(tmp_path, done["id"], "Ada"); open_ = take_item(tmp_path, "Ada")
    assert send_to_queue(tmp_path, [done["roi"], open_["roi"]], by="Eve") == ["in front of the queue now: 1 ROIs", f"{open_['roi']} is being labelled now: left where it is"]
    again = take_item(tmp_path, "Eve"); assert again["roi"] == done["roi"] and again["id"] != done["id"]


def test_what_is_meant_for_one_reader_waits_for_them(tmp_path):
    plan(tmp_path, 5, reread=0); send_to_queue(tmp_path, ["r004"], by="Eve", to="Ada")
    assert take_item(tmp_path, "Eve")["roi"] == "r000" and take_item(tmp_path, "ada")["roi"] == "r004"


def test_an_unknown_roi_is_named_and_nothing_is_sent(tmp_path):
    plan(tmp_path, 5); before = queue_table(tmp_path)["roi"].tolist()
    with pytest.raises(UserError) as e: send_to_queue(tmp_path, ["r004", "r04", "x:3"], by="Eve")
    assert len(e.value.problems) == 2 and "r04: no such ROI in the queue: did you mean `r004`?" in e.value.problems[0] and queue_table(tmp_path)["roi"].tolist() == before


# ---- proposals

TRUTH = np.zeros((320, 320), np.uint8); TRUTH[100:200, 20:300] = 1; TRUTH[100:108, 20:200] = 2


def test_a_proposal_is_the_heads_none_or_wrong_and_the_same_after_a_restart(tmp_path):
    plan(tmp_path, 50, reread=0)
    for r in queue_table(tmp_path).to_dict("records"):
        shown = [proposal_for(tmp_path, r["id"], TRUTH.copy(), NAMES["brightfield"]) for _ in range(2 if r["kind"] != "normal" else 1)]
        if r["kind"] == "unassisted": assert shown == [None, None]
        elif r["kind"] == "normal": assert np.array_equal(shown[0], TRUTH)
        else: assert np.array_equal(*shown) and 0 < (shown[0] != TRUTH).sum() < .1 * TRUTH.size
    planted = queue_table(tmp_path).dropna(subset="planted")
    assert set(planted["kind"]) == {"sentinel"} and len(planted) == 2 and planted["planted"].iloc[0] != planted["planted"].iloc[1]
    assert all(proposal_for(tmp_path, i, None, []) is None for i in planted["id"])


def test_a_sentinel_with_nothing_to_spoil_passes_its_part_on(tmp_path):
    plan(tmp_path, 60, reread=0); before = queue_table(tmp_path).set_index("id"); one = before.index[before["kind"] == "sentinel"][0]
    assert np.array_equal(proposal_for(tmp_path, one, TRUTH * 0, NAMES["brightfield"]), TRUTH * 0)
    after = queue_table(tmp_path).set_index("id")
    assert after.loc[one, "kind"] == "normal" and (after["kind"] == "sentinel").sum() == (before["kind"] == "sentinel").sum()


def test_a_planted_error_that_was_missed_never_gets_into_the_labels(tmp_path):
    plan(tmp_path, 50, reread=0)
    while item := take_item(tmp_path, "Ada"):
        shown = proposal_for(tmp_path, item["id"], TRUTH, NAMES["brightfield"])
        kept = TRUTH if shown is None else shown  # a reader who accepts whatever is offered
        labels = without_sentinels(tmp_path, item["roi"], "ada", kept)
        assert ((labels == TRUTH) | (labels == 255)).all() and (labels == 255).sum() == (kept != TRUTH).sum()
        assert np.array_equal(without_sentinels(tmp_path, item["roi"], "Eve", kept), kept)  # another reader was not shown it
        close_item(tmp_path, item["id"], "Ada")


# ---- the file

def leave_log(labels, roi, annotator, *events, time="2026-01-01T00:00:00.000+00:00"):
    (labels / roi).mkdir(parents=True, exist_ok=True)
    lines = [{"id": 1, "kind": "open", "roi": roi, "annotator": annotator, "time": time}] + [{"id": k + 2, "kind": e, "time": "2026-01-01T00:05:00.000+00:00"} for k, e in enumerate(events)]
    name = "".join(c if c.isalnum() else "_" for c in annotator)
    (labels / roi / f"{name}.jsonl").write_bytes(b"\n".join(json.dumps(l).encode() for l in lines) + b'\n{"id": 9, "ki\xff')


WHOLE = new_item({"next": 0}, "r000")
DAMAGE = {"torn": b'{"next": 3, "items": [{"id"', "empty": b"", "bytes": b"\xff\xfe\x00", "a list": b"[]", "nested": b"[" * 100000, "no items": b'{"next": 1}',
          "fields lack": json.dumps({"next": 1, "items": [{"id": "0001"}], "aside": [], "rois": [], "notes": []}).encode(),
          "a status of its own": json.dumps({"next": 1, "items": [WHOLE | {"status": "finished"}], "aside": [], "rois": [], "notes": []}).encode(),
          "a roi that is no text": json.dumps({"next": 1, "items": [WHOLE | {"roi": 3}], "aside": [], "rois": [], "notes": []}).encode(),
          "one id twice": json.dumps({"next": 1, "items": [WHOLE, WHOLE], "aside": [], "rois": [], "notes": []}).encode()}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_queue_is_set_aside_and_made_anew_from_the_labels(tmp_path, content):
    leave_log(tmp_path, "r001", "<Ada>", "paint", "done"); leave_log(tmp_path, "r002", "Eve", "paint"); leave_log(tmp_path, "r001", "Eve", "done", time="2026-01-02T00:00:00.000+00:00")
    (tmp_path / "r003").mkdir(); (tmp_path / "r003/Ida.jsonl").write_bytes(b"\xff\xff")
    (tmp_path / "queue.json").write_bytes(content)
    plan(tmp_path, 6, reread=0)
    assert (tmp_path / "queue.damaged-1.json").read_bytes() == content and "was damaged" in queue_notes(tmp_path)[0] and "3 readings" in queue_notes(tmp_path)[0]
    table = queue_table(tmp_path); begun = table[table["status"] != "waiting"]
    assert begun[["roi", "annotator", "status", "kind"]].values.tolist() == [["r001", "<Ada>", "done", "normal"], ["r002", "Eve", "open", "normal"], ["r001", "Eve", "done", "second reading"]]
    assert sorted(table["roi"][table["status"] == "waiting"]) == ["r000", "r003", "r004", "r005"]
    assert take_item(tmp_path, "Eve")["roi"] == "r002"  # what was open is taken up again
    (tmp_path / "queue.json").write_bytes(content); queue_notes(tmp_path); assert (tmp_path / "queue.damaged-2.json").exists()


def test_what_was_planted_is_known_even_when_the_queue_is_lost(tmp_path):
    plan(tmp_path, 30, reread=0, sentinels=.2); kept = {}
    while item := take_item(tmp_path, "Ada"):
        kept[item["roi"]] = proposal_for(tmp_path, item["id"], TRUTH, NAMES["brightfield"]); leave_log(tmp_path, item["roi"], "Ada", "done"); close_item(tmp_path, item["id"], "Ada")
    watched = [r for r, m in kept.items() if m is not None and (m != TRUTH).any()]
    (tmp_path / "queue.json").unlink(); leave_log(tmp_path, watched[0], "Eve", "done", time="2025-01-01T00:00:00.000+00:00")
    assert queue_table(tmp_path).query("annotator == 'Eve'")["kind"].tolist() == ["normal"]  # she was shown nothing wrong
    assert len(watched) == 6 and set(queue_table(tmp_path).query("kind == 'sentinel'")["roi"]) == set(watched)
    assert all((without_sentinels(tmp_path, r, "Ada", kept[r]) == 255).sum() == (kept[r] != TRUTH).sum() > 0 for r in watched)


def test_logs_beside_the_queue_are_read_as_far_as_they_are_sound(tmp_path):
    assert found_readings(tmp_path / "nowhere") == []
    leave_log(tmp_path, "r001", "Ada", "done"); (tmp_path / "r001/x.jsonl").write_text("[1]\nnull\n\n"); (tmp_path / "loose.jsonl").write_text("{}")
    (tmp_path / "r002").mkdir(); (tmp_path / "r002/Eve.jsonl").write_text('{"kind": "paint"}\n')
    assert [(r["roi"], r["annotator"], r["status"]) for r in found_readings(tmp_path)] == [("r002", "Eve", "open"), ("r001", "Ada", "done")]


def test_what_was_changed_after_it_was_done_is_not_done(tmp_path):
    leave_log(tmp_path, "r001", "Ada", "done", "paint"); leave_log(tmp_path, "r002", "Ada", "done", "undo"); leave_log(tmp_path, "r003", "Ada", "paint", "done", "look")
    assert [r["status"] for r in found_readings(tmp_path)] == ["open", "open", "done"]


def test_records_of_the_annotator_are_found_and_summed_up(tmp_path):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "i.png"); labels, region = tmp_path / "labels", np.ones((4, 5), bool)
    for roi, done in (("r000", True), ("a/b", False)):
        record = Record(labels, roi, "Zoë", tmp_path / "i.png", DEFAULT_CLASSES["brightfield"])
        record.add("accept", [patch_from(region, 1)], source="model", pixels=20); record.add("paint", [patch_from(region[:1], 2)])
        if done: record.add("done")
        record.close()
    assert [(r["roi"], r["annotator"], r["status"]) for r in found_readings(labels)] == [("r000", "Zoë", "done"), ("a/b", "Zoë", "open")]
    plan(labels, 3); assert take_item(labels, "zoë")["annotator"] == "Zoë"
    with locked_queue(labels) as queue: queue["items"][0]["proposal"] = "model"
    row = reader_table(queue_table(labels), [summarise_record(Record(labels, "r000", "Zoë", write=False))]).iloc[0]
    assert (row["done"], row["accepted (%)"], row["corrected (%)"]) == (1, 100, 25)


def test_a_full_disk_leaves_the_queue_as_it_was(tmp_path, monkeypatch):
    plan(tmp_path, 5); before = (tmp_path / "queue.json").read_bytes()
    def full(*_): raise OSError(28, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(os, "replace", full)
        with pytest.raises(UserError, match="no space left"): take_item(tmp_path, "Ada")
    assert (tmp_path / "queue.json").read_bytes() == before and take_item(tmp_path, "Ada")["roi"] == "r000"
    assert {p.name for p in tmp_path.iterdir()} == {"queue.json", ".queue.lock"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "labels").write_text("")
    with pytest.raises(UserError, match="labels: the queue cannot be written there"): take_item(tmp_path / "labels", "Ada")


# ---- the readers

def test_readers_are_told_apart_and_what_no_record_tells_stays_open(tmp_path):
    plan(tmp_path, 30, readers=2); records = []
    for _ in range(40):
        for name in ("Ada", "ada ", "Eve"):
            if item := take_item(tmp_path, name): close_item(tmp_path, item["id"], name, seconds=60); records.append({"roi": item["roi"], "annotator": name.strip(), "accepted": 3, "rejected": 1})
    items = queue_table(tmp_path); table = reader_table(items, records)
    assert list(table) == READERS and table["annotator"].tolist() == ["Ada", "Eve", "all"] and table["done"].tolist() == [30, 30, 60] and table["minutes"].tolist() == [30, 30, 60]
    assert (table["accepted (%)"] == 75).all() and table["corrected (%)"].isna().all() and table["sentinels"][2] == (items["kind"] == "sentinel").sum() and (table["caught"] == 0).all()
    pairs = reading_pairs(items)
    send_to_queue(tmp_path, ["r000"], by="Eve"); close_item(tmp_path, take_item(tmp_path, "Eve")["id"], "Eve")
    assert reading_pairs(queue_table(tmp_path)).query("roi == 'r000'").shape[0] <= 1  # nobody is paired with themselves
    assert len(pairs) == 30 - (items["kind"] == "sentinel").sum() and set(pairs["first"] + pairs["second"]) <= {"AdaEve", "EveAda"} and (~pairs["assisted"]).sum() == (items["kind"] == "unassisted").sum()


def test_tables_of_nothing_are_empty(tmp_path):
    plan(tmp_path, 3)
    for records in (None, [], pd.DataFrame()): assert len(reader_table(queue_table(tmp_path), records)) == 0
    assert len(reading_pairs(queue_table(tmp_path))) == 0 and len(reader_table(queue_table(tmp_path), [{"roi": "r000", "annotator": "Ada", "caught": True}])) == 0


def test_a_run_that_knows_none_of_the_study_s_rois_ranks_them_by_chance(tmp_path):
    make_run(tmp_path, size=320, per_group=1, steps=10)
    table, notes = rank_run(tmp_path, NAMES, pd.DataFrame({"roi": ["new1", "new2"], "subject": "S", "split": "", "modality": "brightfield"}))
    assert sorted(table["roi"]) == ["new1", "new2"] and not table["mapped"].any() and any("chance" in n for n in notes)
