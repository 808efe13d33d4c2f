"""The benchmark times by turns, tells each number's machine, and its tables add up; no test asserts a time."""
import json

import numpy as np
import pandas as pd
import pytest
import torch

import bonehisto.benchmarks as benchmarks
from bonehisto.benchmark_figures import plot_growth, plot_shares
from bonehisto.benchmarks import PARTS, Bench, bars, checked_counts, checked_recipe, compare_sigreg, drawn_tiles, grow, memory, plain_sigreg, plain_sigreg_at_once, say_bars, shares, throughput, with_watching
from bonehisto.files import UserError
from bonehisto.lejepa import directions_at, sigreg
from bonehisto.pretrain import Recipe
from bonehisto.timing import by_turns, ratio, signed, slope, spread

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = dict(n_global=2, n_local=2, global_px=32, local_px=16, projector_width=32, projector_out=16, n_directions=32)


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(0).integers(0, 256, (40, 48, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def bench(tiles):
    return Bench(checked_recipe("benchmarks.", 40, 48, batch=16, **SMALL), tiles, CPU)


@pytest.fixture(scope="module")
def times(bench):
    return by_turns(bench.turns(), CPU, repeats=3)


def test_functions_are_called_by_turns_and_warm_up_does_not_count():
    called = []
    found = by_turns({n: lambda n=n: called.append(n) for n in "abc"}, CPU, repeats=3, warmup=2)
    assert "".join(called) == "abc" * 5 and list(found) == list("abc") and len(found) == 3


def test_out_of_time_three_rounds_are_still_made():
    called = []
    assert len(by_turns({"a": lambda: called.append(1)}, CPU, repeats=50, warmup=1, seconds=0)) == 3 and len(called) == 4


def test_a_gpu_is_waited_for_before_and_after_every_call(monkeypatch):
    order = []
    monkeypatch.setattr("bonehisto.timing.synchronise", lambda device: order.append("wait"))
    by_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, repeats=1, warmup=0)
    assert order == ["wait", "a", "wait", "wait", "b", "wait"]


def test_a_ratio_is_that_of_the_two_printed_medians():
    found = ratio(pd.Series([1., 2, 9]), pd.Series([1., 4, 3]))
    assert found["this_s"] == 2 and found["against_s"] == 3 and found["ratio"] == 2 / 3 and found["low"] <= 1 <= found["high"]
    row = spread(pd.DataFrame({"a": [1., 2, 3, 4, 5]})).iloc[0]
    assert row.to_dict() == {"part": "a", "median_s": 3, "low_s": 2, "high_s": 4, "repeats": 5}


@pytest.mark.parametrize("power", [1, 2, .5])
def test_slope_of_a_power_is_its_exponent(power):
    n = np.array([500, 1000, 2000, 4000, 8000])
    assert slope(n, 3e-3 * n ** power) == pytest.approx(power) and np.isnan(slope([1], [1]))


def test_every_row_tells_device_threads_precision_and_machine():
    found = signed(pd.DataFrame({"a": [1, 2]}), CPU, torch.float32)
    assert (found["device"] == "cpu").all() and (found["threads"] == 1).all() and (found["precision"] == "float32").all() and found["machine"].str.contains("cores").all()


def test_parts_and_rest_add_up_to_the_whole_step(times):
    found = shares(with_watching(times, 4)).set_index("part")
    assert list(found.index) == [*PARTS, "rest", "whole"] and (found.loc[list(PARTS), "seconds"] > 0).all()
    assert found["seconds"].iloc[:-1].sum() == pytest.approx(found.loc["whole", "seconds"]) and found["share"].iloc[:-1].sum() == pytest.approx(1)
    assert found.loc["watching", "seconds"] == pytest.approx(times["watching"].median() / 4) and found.loc["whole", "seconds"] == pytest.approx((times["step"] + times["watching"] / 4).median())


def test_throughput_is_the_batch_over_the_median(times, bench):
    found = throughput(with_watching(times), bench.recipe).set_index("part")
    assert list(found.index) == ["forward", "network", "step"] and (found["views"] == "2x32 + 2x16").all()
    assert (found["images_per_s"] * found["median_s"]).to_numpy() == pytest.approx(16) and found["images_per_s"].iloc[0] > 0


def test_a_timed_step_trains_and_the_network_alone_does_not(tiles):
    bench = Bench(Recipe(batch=16, **SMALL), tiles, CPU)
    weights = lambda: bench.training.net.projector[0].weight.detach().clone()
    first = weights(); bench.network(); bench.forward(); bench.loss(); bench.make_views(); bench.reading()
    assert torch.equal(weights(), first) and bench.training.net.training and bench.z.grad is not None
    bench.step()
    second = weights()
    assert not torch.equal(second, first) and bench.done == 1
    bench.network(); bench.optimizer()
    assert not torch.equal(weights(), second)


def test_what_a_step_is_held_against_has_the_step_s_shapes(bench):
    assert [tuple(g.shape) for g in bench.groups] == [(2, 16, 3, 32, 32), (2, 16, 3, 16, 16)] and bench.z.shape == bench.slope.shape == (4, 16, 16)
    assert all(p.grad is not None for p in bench.training.net.parameters() if p.requires_grad)


@pytest.mark.parametrize("n", [5, 64])
def test_both_plain_forms_and_sigreg_agree(n):
    z, a = torch.randn(3, n, 8, generator=torch.Generator().manual_seed(n)), directions_at(0, 0, 8, 40)
    found = [f(z, a).item() for f in (sigreg, plain_sigreg, plain_sigreg_at_once)]
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5)


def test_sigreg_is_held_against_the_faster_plain_form_and_gives_the_same():
    found = compare_sigreg([8, 16], CPU, repeats=3, views=2, dim=8, n_directions=32)
    assert found["images"].tolist() == [8, 16] and (found["value_difference"] < 1e-5).all() and (found["gradient_difference"] < 1e-4).all()
    assert (found["against_s"] == found[["by_view_s", "at_once_s"]].min(axis=1)).all() and found["ratio"].to_numpy() == pytest.approx((found["sigreg_s"] / found["against_s"]).to_numpy())


def test_a_bar_applies_to_its_own_settings_and_says_both_numbers():
    times = pd.DataFrame({"step": [2.2, 2.3, 2.4], "network": [2., 2., 2.]})
    sigregs = pd.DataFrame([{"images": n, "views": 8, "dim": 64, "directions": 1024, "this_s": .4, "against_s": 1., "ratio": r, "low": r, "high": r} for n, r in ((64, .4), (128, .6))])
    full = Recipe("tiny", n_global=2, n_local=6, global_px=224, local_px=96)
    found = bars(times, sigregs, full)
    assert found["ratio"].tolist() == pytest.approx([1.15, .4, .6]) and found["applies"].tolist() == [True, True, False] and found["limit"].tolist() == [1.15, .5, .5]
    assert bars(times.assign(step=2.31), sigregs, full)["met"].tolist() == [False, True, False]
    assert not bars(times, sigregs, Recipe("micro", n_global=2, n_local=6, global_px=224, local_px=96))["applies"].iloc[0]
    said = say_bars(bars(times.assign(step=3.), sigregs, full))
    assert "3000.0 ms" in said[0] and "2000.0 ms" in said[0] and "1.500" in said[0] and "NOT met" in said[0] and "set for" not in said[0] and "set for" in said[2]


def test_an_epoch_sees_full_batches_of_each_count(tiles, monkeypatch):
    seen, real = [], benchmarks.train_step
    monkeypatch.setattr(benchmarks, "train_step", lambda training, batches, *a, **k: seen.append((len(batches[0]), a[5])) or real(training, batches, *a, **k))
    found = grow(Recipe(batch=8, **SMALL), tiles, [17, 40], CPU, rank_every=2)
    assert found["seen"].tolist() == [16, 40] and found["steps"].tolist() == [2, 5] and {n for n, _ in seen} == {8}
    assert [look for _, look in seen[2:]] == [True, False, True, False, True, False, True]
    assert (found["seconds_per_tile"] * found["seen"]).to_numpy() == pytest.approx(found["seconds"].to_numpy()) and found["slope"].iloc[0] == pytest.approx(slope(found["seen"], found["seconds"]))


def test_tiles_are_the_same_for_a_seed_and_their_file_goes_even_after_a_failure(tmp_path):
    with drawn_tiles(tmp_path / "t.npy", 6, 64, 3) as shown: first = np.array(shown)
    with pytest.raises(ZeroDivisionError), drawn_tiles(tmp_path / "t.npy", 6, 64, 3) as shown:
        assert isinstance(shown, np.memmap) and shown.dtype == np.uint8 and np.array_equal(shown, first)
        1 / 0
    assert not list(tmp_path.iterdir()) and len({t.tobytes() for t in first}) == 6 and first.std() > 10


def test_memory_is_that_of_a_fresh_process(bench):
    held = np.ones((300, 1024, 1024), np.uint8)  # this process's memory does not count
    row = memory(bench).iloc[0]
    assert 0 < row["peak_mib"] < held.nbytes / 2**20 and row["ratio"] == pytest.approx(row["peak_mib"] / row["predicted_mib"])
    assert row["predicted_mib"] == pytest.approx(16 * row["per_image_mib"] + row["fixed_mib"]) and "resident" in row["measured"]


@pytest.mark.parametrize("settings, said", [(dict(preset="tinny"), r"benchmarks\.preset is `tinny`: did you mean `tiny`"), (dict(global_px=100), r"benchmarks\.global_px is 100.*96 would do"),
                                            (dict(batch=64), r"benchmarks\.batch is 64, and there are 40 tiles"), (dict(n_global=0, n_local=0), r"benchmarks\.n_global is 0 and benchmarks\.n_local 0"), (dict(precision="half"), r"benchmarks\.precision")])
def test_a_setting_that_cannot_work_is_named_as_the_step_names_it(settings, said):
    with pytest.raises(UserError, match=said) as e:
        checked_recipe("benchmarks.", 40, 48, **settings | {"batch": settings.get("batch", 16)})
    assert "pretrain." not in str(e.value)


def test_a_batch_that_memory_cannot_hold_is_refused_before_anything_is_timed(tiles, monkeypatch):
    monkeypatch.setattr(benchmarks, "free_memory", lambda device: 2**20)
    with pytest.raises(UserError, match=r"benchmarks\.batch is 16: a step takes about .* GiB are free: make it smaller"):
        Bench(Recipe(batch=16, **SMALL), tiles, CPU)


@pytest.mark.parametrize("counts", [[], [500], [10, 500], ["a", 500]])
def test_growth_needs_two_counts_of_a_batch_or_more(counts):
    with pytest.raises(UserError, match=r"benchmarks\.growth is .*growth_batch \(64\)"): checked_counts(counts, 64)
    assert checked_counts([1000, 64], 64) == [64, 1000]


def test_figures_show_every_part_and_every_count(times):
    import matplotlib.pyplot as plt
    table = shares(with_watching(times))
    fig, axes = plt.subplots(1, 2)
    plot_shares(table, axes[0])
    assert [t.get_text().split(" ")[0] for t in axes[0].get_legend().get_texts()] == [*PARTS, "rest"]
    assert [p.get_width() for p in axes[0].patches] == pytest.approx(table["share"].iloc[:-1].clip(lower=0).tolist())
    plot_growth(pd.DataFrame({"tiles": [500, 8000], "seen": [448, 8000], "seconds": [1., 20.], "slope": 1.04}), axes[1])
    assert axes[1].get_xscale() == axes[1].get_yscale() == "log" and "1.04" in axes[1].get_legend().get_texts()[1].get_text()
    plt.close(fig)


def test_the_step_s_settings_are_json_that_papermill_passes(bench):
    from bonehisto.recipe import cell_parameters, notebook_path, step_named
    found = cell_parameters(notebook_path(step_named("benchmarks")))
    assert next(iter(found)) == "run" and found["growth"] == [500, 1000, 2000, 4000, 8000] and json.loads(json.dumps(found)) == found
