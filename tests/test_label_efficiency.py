"Peers learn alike but for the network; the grid keeps what is done, draws its labels fairly and scores test subjects alone."
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from bonehisto import label_efficiency, peers
from bonehisto.encoder import create_encoder
from bonehisto.files import UserError
from bonehisto.label_efficiency import choose_rois, held_classes, plan_cells, run_grid, score_network, summarise_grid
from bonehisto.label_figures import plot_label_efficiency
from bonehisto.labelled_tiles import cut_masks, gather_labels
from bonehisto.peers import PEERS, VARIANTS, check_peers, train_peer
from bonehisto.tiling import tile_roi

CLASSES = [{"id": i, "name": n, "colour": "#000000"} for i, n in enumerate(("ground", "bone", "label"))]
COLOURS = np.array([[60, 60, 70], [40, 120, 60], [220, 230, 40]], np.uint8)


@pytest.fixture(scope="module")
def encoder(): return create_encoder("micro").eval()


@pytest.fixture(scope="module")
def study():
    "Ten ROIs of seven subjects, 224 x 450 px; label lines in some of them only."
    rng, tiles, tables, masks = np.random.default_rng(0), [], [], {}
    for i, (subject, split) in enumerate(zip("aabbccdefg", ["train"] * 7 + ["val", "test", "test"])):
        m = np.zeros((224, 450), np.uint8); m[30 + 5 * i:130 + 5 * i] = 1
        if i % 2 == 0 or i > 6: m[130 + 5 * i:138 + 5 * i, 20:430] = 2
        t, table = tile_roi(COLOURS[m] + rng.integers(0, 15, (224, 450, 3), dtype=np.uint8))
        masks[f"R{i}"] = m; tiles.append(t); tables.append(table.assign(roi=f"R{i}", subject=subject, modality="fluorescence", split=split))
    return np.concatenate(tiles), pd.concat(tables, ignore_index=True), masks


def test_labels_grow_by_roi_and_hold_every_class(study):
    _, table, masks = study; holds = held_classes(masks)
    for seed in range(5):
        drawn = [choose_rois(table, holds, "fluorescence", n, 3, seed) for n in (1, 2, 4, 6)]
        assert all(a == b[:len(a)] for a, b in zip(drawn, drawn[1:])) and all((masks[d[0]] == 2).any() for d in drawn)
        subjects = table.drop_duplicates("roi").set_index("roi").loc[drawn[2], "subject"]
        assert subjects.nunique() >= 3 and set(subjects) <= set("abcd")
    assert len({tuple(choose_rois(table, holds, "fluorescence", 4, 3, s)) for s in range(8)}) > 2
    assert choose_rois(table, holds, "fluorescence", None, 3) == [f"R{i}" for i in range(7)]


@pytest.mark.parametrize("n,classes,words", [(8, 3, "8 labelled ROIs asked for, there are 7"), (0, 3, "0 labelled"), (2, 4, "no 2 of its labelled ROIs hold all 4 classes")])
def test_labels_that_cannot_be_drawn_are_refused(study, n, classes, words):
    with pytest.raises(UserError, match=words): choose_rois(study[1], held_classes(study[2]), "fluorescence", n, classes)


@pytest.mark.parametrize("name", ["ours", "random", "linear", "unet"])
def test_every_peer_learns_and_stops_by_the_clock(study, encoder, name):
    if name == "unet": pytest.importorskip("segmentation_models_pytorch")
    tiles, table, masks = study; before = {k: v.clone() for k, v in encoder.state_dict().items()}
    net, log, steps, seconds = train_peer(name, gather_labels(tiles, masks, table, "fluorescence", CLASSES, 4), encoder, 1.5, batch=2, looks=2)
    with torch.no_grad(): assert net(torch.rand(2, 3, 224, 224)).shape == (2, 3, 224, 224)
    assert not net.training and steps >= 1 and seconds >= 1.4 and len(log)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_unknown_peers_and_missing_weights_are_said():
    assert check_peers(["ours", "unet"]) == ["ours", "unet"]
    with pytest.raises(UserError, match="no peer `unett`.*unet"): check_peers(["unett"])
    with pytest.raises(UserError, match="dinov2.*weights"): check_peers(["dinov2"])


def test_all_peers_get_the_same_settings(study, encoder, monkeypatch):
    import bonehisto.heads as heads
    seen = []
    def stop(net, data, phases, batch=8, **settings):
        seen.append(settings | {"batch": batch}); raise InterruptedError
    for module in (peers, heads): monkeypatch.setattr(module, "fit_network", stop)
    data = gather_labels(study[0], study[2], study[1], "fluorescence", CLASSES, 4)
    for name in ("ours", "random", "linear", "no_stem"):
        with pytest.raises(InterruptedError): train_peer(name, data, encoder, 60, seed=3, vary=.7, device="cpu")
    shared = [{k: str(s[k]) for k in ("seconds", "seed", "batch", "vary", "device")} for s in seen]
    assert len(seen) == 4 and all(s == shared[0] for s in shared)
    for name, settings in VARIANTS.items():
        with pytest.raises(InterruptedError): train_peer(name, data, encoder, 60, device="cpu")
        assert {**seen[-1], **{k: v for k, v in settings.items() if k in seen[-1]}} == seen[-1]


def test_a_grid_goes_on_where_it_was_broken_off(study, encoder, tmp_path, monkeypatch):
    tiles, table, masks = study; calls, real = [], label_efficiency.train_peer
    monkeypatch.setattr(label_efficiency, "train_peer", lambda name, data, *a, **k: (calls.append((name, tuple(data.subjects["train"]), len(data.index))), real(name, data, *a, **k))[1])
    grid = lambda cells, **k: run_grid(tiles, table, {"fluorescence": masks}, {"fluorescence": CLASSES}, encoder, tmp_path, cells, .3, val_tiles=2, batch=2, **k)
    cells = plan_cells(["fluorescence"], ["linear", "ours"], [1, 2], [0])
    first = grid(cells[:2]); assert len(calls) == 2
    second = grid(cells); assert len(calls) == len(cells)
    assert second[:len(first)].equals(first) and len(pd.read_csv(tmp_path / "tables/label_efficiency.csv")) == len(cells) * 4
    one = next(c for c in calls if c[0] == "linear" and len(c[1]) == 1); assert one[2] < calls[0][2]
    grid(cells[:1], vary=.5); assert len(calls) == len(cells) + 1  # other settings: trained again
    stored = json.loads((tmp_path / "cells/fluorescence_linear_2_0.json").read_text())
    assert len(stored["settings"]["rois"]) == 2 and stored["result"]["steps"] >= 1


def test_scores_are_of_test_subjects_and_a_perfect_network_has_all(study):
    tiles, table, masks = study
    rows = table[(table["split"] == "test") & (table["kind"] != "centre") & (table["pad_right"] < 224) & (table["pad_bottom"] < 224)]
    truth, _ = cut_masks(rows, masks.__getitem__, 3)
    class Perfect(torch.nn.Module):
        def forward(self, x): return -((x[:, None] * 255 - torch.from_numpy(COLOURS + 7).float()[None, :, :, None, None]) ** 2).sum(2)
    scores = score_network(Perfect(), tiles, rows, truth, [c["name"] for c in CLASSES]).set_index("class")
    assert (scores[["dice", "iou", "boundary_f1", "detection_f1"]] == 1).all(axis=None)


def test_differences_are_paired_by_seed_and_the_curve_is_drawn():
    rows = pd.DataFrame([("brightfield", p, l, s, "tissue mean", v + .1 * s, 9) for p, v in (("ours", .6), ("unet", .5)) for l in ("1", "all") for s in (0, 1, 2)], columns=["domain", "peer", "labels", "seed", "class", "dice", "steps"])
    found = summarise_grid(rows).set_index(["peer", "labels"])
    assert found.loc[("ours", "1"), "difference"] == pytest.approx(.1) and found.loc[("ours", "1"), "difference_high"] == pytest.approx(.1)
    assert np.isnan(found.loc[("unet", "all"), "difference"])
    ax = plot_label_efficiency(found.reset_index(), plt.figure().gca(), "brightfield")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "all"] and len(ax.get_legend().get_texts()) == 2
    plt.close("all")


def test_the_grid_asks_first_what_matters_most():
    cells = plan_cells(["x", "y"], ["ours", "unet", "linear"], [1, 2, 4], [0, 1])
    assert {c[2] for c in cells[:12]} == {2} and {c[1] for c in cells if c[2] in (1, 4)} == {"ours", "unet"} and len(cells) == len(set(cells)) == 2 * 2 * (2 * 3 + 2 * 2)
    assert all(c[2] is None for c in plan_cells(["x"], ["ours", "no_stem"], [], [0]))
    assert set(PEERS) >= {"ours", "unet", "linear", "random", "dinov2"}
