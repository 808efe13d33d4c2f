"""A collapse is seen in a log and said; a log that cannot tell says so."""
import numpy as np
import pandas as pd
import pytest

from bonehisto.collapse import last_tenth, pretraining_verdict
from bonehisto.pretrain import pretrain

HEALTHY = {"loss": 1.1, "invariance": .32, "sigreg_ratio": 2.7, "rank_projection": 19.6, "rank_backbone": 11.7, "spread_projection": .83, "spread_least": .39, "learning_rate": 1e-4}
NO_SIGREG = HEALTHY | {"invariance": 2e-4, "sigreg_ratio": 12.2, "rank_projection": 8.3, "spread_projection": .062, "spread_least": .009}  # lambda 0, 200 steps of 32
LITTLE = HEALTHY | {"invariance": .001, "sigreg_ratio": 7.0, "rank_projection": 2.8, "spread_projection": .48, "spread_least": .05}         # lambda 0.005
NEAR = HEALTHY | {"invariance": .018, "sigreg_ratio": 5.3, "rank_projection": 4.3, "spread_projection": .59, "spread_least": .074}           # lambda 0.02


def log_of(values, steps=200, every=10):
    "A log that ends with these values; ranks and spreads are measured now and then."
    log = pd.DataFrame({"step": range(steps)} | values)
    log.loc[log["step"] % every > 0, [c for c in log if c.startswith(("rank", "spread"))]] = np.nan
    return log


@pytest.mark.parametrize("values, state", [(HEALTHY, "healthy"), (NO_SIGREG, "collapsed"), (LITTLE, "collapsed"), (NEAR, "weak")])
@pytest.mark.parametrize("batch", [32, None])
@pytest.mark.parametrize("old", [False, True])
def test_runs_are_judged_alike_whatever_the_log_holds(values, state, batch, old):
    log = log_of(values)
    if old: log = log.drop(columns=["spread_projection", "spread_least"])
    assert pretraining_verdict(log, 64, batch)[0] == state


def test_a_collapse_without_a_low_rank_is_seen_by_its_spread():
    assert pretraining_verdict(log_of(HEALTHY | {"spread_projection": .1}))[0] == "collapsed"


def test_a_collapse_onto_a_line_is_seen_by_its_rank():
    state, text = pretraining_verdict(log_of(HEALTHY | {"rank_projection": 1.4}))
    assert state == "collapsed" and "effective rank of 1.4 in 64 dimensions" in text and "pretrain.lam" in text


def test_the_numbers_are_in_the_words_and_the_cure_only_where_it_is_needed():
    state, text = pretraining_verdict(log_of(HEALTHY), 64, 32)
    assert all(s in text for s in ("19.6", "0.83", "0.39", "2.7 times", "would give 12")) and "Raise" not in text and "nan" not in text
    assert "nan" not in pretraining_verdict(log_of(HEALTHY).drop(columns=["spread_projection", "spread_least", "sigreg_ratio"]))[1]


def test_only_the_end_counts():
    bad, good = log_of(NO_SIGREG, 100), log_of(HEALTHY, 100)
    recovered = pd.concat([bad, good], ignore_index=True).assign(step=range(200))
    assert pretraining_verdict(recovered)[0] == "healthy" and pretraining_verdict(recovered[::-1])[0] == "collapsed"


@pytest.mark.parametrize("log, said", [(log_of(NO_SIGREG, 19), "19 steps, at least 20"), (log_of(NO_SIGREG)[:0], "0 steps"), (log_of(HEALTHY)[["step", "loss"]], "neither rank nor spread"),
                                       (log_of(HEALTHY | {"learning_rate": 0.}).assign(learning_rate=np.arange(200)), "still rises"),
                                       (log_of(HEALTHY).assign(rank_projection=np.nan, spread_projection=np.nan, invariance=np.nan), "neither rank nor spread")])
def test_what_cannot_be_told_is_said_to_be_unknown(log, said):
    state, text = pretraining_verdict(log)
    assert state == "unknown" and said in text


def test_a_measure_taken_before_the_last_tenth_still_counts():
    log = log_of(HEALTHY, 400, every=300)
    assert last_tenth(log, "rank_projection") == 19.6 and np.isnan(last_tenth(log, "nothing"))


@pytest.fixture(scope="module")
def tiles():
    "Stripes of two colours each."
    rng = np.random.default_rng(0); y, x = np.mgrid[:48, :48]
    stripes = [np.sin(x * rng.uniform(.05, .5) + y * rng.uniform(-.5, .5) + rng.uniform(0, 6)) > rng.uniform(-.6, .6) for _ in range(96)]
    return np.stack([np.where(s[..., None], *rng.integers(0, 255, (2, 3))) for s in stripes]).astype(np.uint8)


@pytest.mark.parametrize("lam, state", [(0., "collapsed"), (.4, "healthy")])
def test_a_real_run_without_sigreg_collapses_and_one_with_it_does_not(tmp_path, tiles, lam, state):
    _, log = pretrain(tiles, tmp_path, steps=28, batch=16, n_global=2, n_local=1, global_px=32, local_px=16, lam=lam, n_directions=64, lr=1e-3, projector_width=128, rank_every=3, device="cpu")
    assert pretraining_verdict(log, 64, 16)[0] == state, log.tail(3)
