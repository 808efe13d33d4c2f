"""Figures draw what their tables hold, and survive tables with holes."""
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bonehisto import figures, overlays, result_figures, token_figures
from bonehisto.look import FIXED, colours, pretty
from bonehisto.token_pictures import TokenPictures


def axes(nrows=1, ncols=1):
    return Figure().subplots(nrows, ncols, squeeze=False)


@pytest.fixture
def token_pictures():
    "Eight epochs of two tiles; one patch in twenty gets 4.2 times the mean."
    attention = np.full((8, 2, 5, 8), 1.0); attention[..., :2, 0] = 4.2
    return TokenPictures(np.arange(2), np.zeros((2, 20, 32, 3), np.uint8), np.arange(8), np.arange(8), attention.astype(np.float16), np.random.default_rng(0).integers(0, 255, (8, 2, 5, 8, 3)).astype(np.uint8))


def test_every_monitored_quantity_of_pretraining_has_a_panel_of_its_own():
    log = pd.DataFrame({"step": range(50), "loss": 1.0, "rank_backbone": [3.0 if i % 5 == 0 else np.nan for i in range(50)], "note": "x"})
    a = axes(2, 2); figures.plot_pretraining(log, a)
    assert [ax.get_title(loc="left") for ax in a.flat if ax.get_visible()] == ["LeJEPA loss", "eff. rank, backbone"]


def test_quantities_of_one_kind_share_a_panel_with_the_gaussian_value_dashed():
    log = pd.DataFrame({"step": range(30), "epoch": 0, "loss": 1.0, "invariance": .3, "sigreg_ratio": 2.0, "rank_projection": 9.0, "rank_backbone": 5.0, "spread_projection": .8, "spread_least": .3, "grad_norm": 1.0, "learning_rate": 1e-4, "images_per_s": 5.0})
    a = axes(2, 4); figures.plot_pretraining(log, a)
    drawn = {ax.get_title(loc="left"): ax for ax in a.flat}
    assert list(drawn) == ["LeJEPA loss", "invariance", "SIGReg / 1.0525", "effective rank", "spread of projections (SD)", "gradient norm", "learning rate", "images/s"]
    assert [t.get_text() for t in drawn["effective rank"].get_legend().get_texts()] == ["projections", "backbone"] and len(drawn["spread of projections (SD)"].lines) == 3
    dashed = {name for name, ax in drawn.items() if any(l.get_linestyle() == "--" and set(l.get_ydata()) == {1} for l in ax.lines)}
    assert dashed == {"SIGReg / 1.0525", "spread of projections (SD)"}


def test_token_figure_shows_kept_epochs_in_order_and_each_tile_once(token_pictures):
    fig = token_figures.token_figure(token_pictures, ["brightfield", "fluorescence"], most=3)
    panels = [ax for ax in fig.axes if ax.images]
    assert len(panels) == 2 * (1 + 2 * 3) and [ax.get_title() for ax in panels[:7]] == ["", *(f"epoch {e}" for e in (0, 0, 2, 2, 7, 7))]
    assert (panels[2].images[0].get_array() == token_pictures.pca[0, 0]).all() and {ax.images[-1].get_clim() for ax in panels[1:7:2]} == {(.9, 4.2)}
    assert [t.get_text() for t in panels[0].texts + panels[7].texts] == ["brightfield", "fluorescence"]
    inside = [ax.get_position() for ax in fig.axes]
    assert all(p.x0 >= 0 and p.y0 >= 0 and p.x1 <= 1 and p.y1 <= 1 for p in inside)


def test_token_figure_of_the_untrained_encoder_alone(token_pictures):
    one = TokenPictures(**{k: v[:1] if k in ("epochs", "steps", "attention", "pca") else v for k, v in vars(token_pictures).items()})
    assert sum(bool(ax.images) for ax in token_figures.token_figure(one).axes) == 2 * 3


def test_a_quantity_logged_every_fifth_step_is_drawn_as_a_line():
    log = pd.DataFrame({"step": range(50), "rank_backbone": [float(i) if i % 5 == 0 else np.nan for i in range(50)]})
    ax = figures.plot_curve(log, "rank_backbone", axes()[0, 0])
    assert np.isfinite(ax.lines[-1].get_ydata()).sum() == 10


def test_umap_draws_every_tile_that_has_a_place_and_names_open_ones_unknown():
    t = pd.DataFrame({"umap_x": [0.0, 1, np.nan, 2], "umap_y": 0.0, "group": ["low", None, "low", ""]})
    ax = figures.plot_umap(t, "group", axes()[0, 0])
    assert len(ax.collections[0].get_offsets()) == 3
    assert {x.get_text() for x in ax.get_legend().get_texts()} == {"low", "unknown"}


@pytest.mark.parametrize("table", [pd.DataFrame({"truth": ["a", "b"], "a": [9, 0], "b": [1, 5]}), pd.DataFrame({"truth": ["a", "a", "b"], "sent": ["a", "b", "b"], "tiles": [9, 1, 5]}), pd.DataFrame([[9, 1], [0, 5]], ["a", "b"], ["a", "b"])])
def test_confusion_reads_wide_long_and_indexed_tables_alike(table):
    ax = figures.plot_confusion(table, axes()[0, 0])
    assert [t.get_text() for t in ax.texts] == ["9\n90.0%", "1\n10.0%", "0", "5\n100.0%"]


def test_a_true_domain_without_tiles_does_not_divide_by_zero():
    ax = figures.plot_confusion(pd.DataFrame({"truth": ["a", "b"], "a": [3, 0], "b": [0, 0]}), axes()[0, 0])
    assert [t.get_text() for t in ax.texts][2:] == ["0", "0"]


def test_scores_without_interval_are_still_labelled():
    t = pd.DataFrame({"class": ["bone"], "score": ["dice"], "mean": [.9], "low": [np.nan], "high": [np.nan]})
    assert [x.get_text() for x in figures.plot_scores(t, axes()[0, 0]).texts] == ["0.900"]


def test_truth_panels_leave_out_undefined_pairs_and_say_so_when_none_is_left():
    t = pd.DataFrame({"parameter": ["MAR (um/d)"] * 2 + ["BV/TV (%)"], "measured": [.5, np.nan, np.nan], "true": [.5, .6, 20]})
    a = axes(1, 2); result_figures.plot_truth(t, a)
    assert len(a[0, 0].collections[0].get_offsets()) == 1 and "undefined" in a[0, 1].texts[0].get_text()


def test_a_true_value_of_zero_gives_no_infinite_error_in_the_legend():
    t = pd.DataFrame({"parameter": "MS/BS (%)", "measured": [.1, 5.0], "true": [0.0, 5.0]})
    a = axes(); result_figures.plot_truth(t, a)
    assert "inf" not in a[0, 0].get_legend().get_texts()[0].get_text()


def test_groups_show_each_defined_subject_once_and_the_default_range():
    s = pd.DataFrame({"subject": list("abcd"), "group": ["high", "low", None, "low"], "MAR (um/d)": [.9, .4, .5, np.nan]})
    ax = result_figures.plot_groups(s, "MAR (um/d)", axes()[0, 0])
    assert sum(len(c.get_offsets()) for c in ax.collections) == 3
    assert [t.get_text().split("\n")[0] for t in ax.get_xticklabels()] == ["low", "high", "no group"]
    assert [p.get_y() for p in ax.patches] == [.45]


def test_a_parameter_that_no_subject_has_is_said_to_be_undefined():
    s = pd.DataFrame({"subject": ["a"], "group": ["low"], "MAR (um/d)": [np.nan]})
    assert "undefined in every subject" in result_figures.plot_groups(s, "MAR (um/d)", axes()[0, 0]).texts[0].get_text()


def test_label_distances_weigh_doubles_by_length_and_leave_singles_out():
    t = pd.DataFrame({"kind": ["double", "double", "single"], "length_um": [100.0, 300.0, 999.0], "distance_um": [8.0, 9.0, np.nan]})
    ax = result_figures.plot_distances(t, axes()[0, 0], 15)
    assert np.isclose(sum(p.get_height() for p in ax.patches), .4)
    assert "no double label" in result_figures.plot_distances(t[t.kind == "single"], axes()[0, 0]).texts[0].get_text()


def test_a_scale_bar_keeps_its_meaning_when_the_image_is_made_smaller():
    image = np.zeros((900, 1200, 3), np.uint8)
    full, small = (overlays.show_roi(image, axes()[0, 0], .5, longest=n) for n in (1200, 400))
    assert small.artists[0].dx == 3 * full.artists[0].dx == 1.5


def test_an_unknown_pixel_size_draws_no_bar_and_says_so():
    ax = overlays.show_roi(np.zeros((20, 20, 3), np.uint8), axes()[0, 0], np.nan)
    assert not ax.artists and ax.texts[0].get_text() == "scale unknown"


@pytest.mark.parametrize("shape", [(1, 1), (7, 900), (1001, 333)])
def test_image_mask_and_overlay_agree_in_size_whatever_the_factor(shape):
    image, mask = np.full((*shape, 3), 9, np.uint8), np.ones(shape, np.uint8)
    ax = overlays.show_overlay(image, mask, [{"id": 1, "name": "bone", "colour": "#ff0000"}], axes()[0, 0], .5, longest=100)
    assert max(ax.images[0].get_array().shape[:2]) <= 100


def test_shrinking_a_mask_makes_no_new_class():
    mask = np.random.default_rng(0).choice([0, 3], (500, 500)).astype(np.uint8)
    assert set(np.unique(overlays.shrink(mask, 90, ids=True)[0])) == {0, 3}


def test_colours_stay_with_their_domain_whatever_else_is_shown():
    assert colours(["x", "fluorescence", "y"])["fluorescence"] == colours(["fluorescence"])["fluorescence"] == FIXED["fluorescence"]
    many = colours([f"low-{i:02d}" for i in range(30)])
    assert len(set(many.values())) == 30  # subjects named after their group are still told apart


def test_units_are_printed_as_a_journal_would():
    assert pretty("BS/BV (mm2/mm3)") == "BS/BV (mm²/mm³)" and pretty("Ir.L.Ar (mm2)") == "Ir.L.Ar (mm²)"
