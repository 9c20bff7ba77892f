"""Placebo: the whole pipeline finds nothing in noise, and finds what was planted"""

import numpy as np
import pandas as pd
import pytest

from alpha_trader.backtest import buy_and_hold, run_backtest
from alpha_trader.bars import adjusted
from alpha_trader.evidence import Evidence, verdict
from alpha_trader.fills import cost_rules
from alpha_trader.labels import forward_return
from alpha_trader.samples import Events, sample_panel, synthetic_panel
from alpha_trader.settings import Settings
from alpha_trader.trials import Noise, Placebo, permuted, placebo

TREES = 0.1  # 50 LightGBM and 30 XGBoost trees a member


def settings_for(min_train: int) -> Settings:
    plain = Settings()
    return plain.model_copy(update={"model": plain.model.model_copy(update={"min_train": min_train, "threads": 2})})


def on_noise(kind: Noise, runs: int) -> Placebo:
    "Eight random walks of five years, or the newest seven years of the sample in another order"
    if kind is Noise.RANDOM_WALK:
        return placebo(settings_for(500), kind, range(1, runs + 1), panel=synthetic_panel(8, 1250, 0), trees=TREES)
    newest = sample_panel().cut(slice(-1750, None), range(5))
    return placebo(settings_for(750), kind, range(1, runs + 1), panel=newest, trees=TREES)


@pytest.mark.parametrize("kind", list(Noise))
def test_a_few_runs_on_noise(kind: Noise) -> None:
    found = on_noise(kind, 2)
    assert found.passed == 0, found.table
    assert (found.table["fills"] > 15).all(), "a machine that does not trade proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(Noise))
def test_a_hundred_runs_on_noise(kind: Noise) -> None:
    "Issue 3, done when 4: on pure noise the verdict is `no evidence` in at least 95 of 100 seeds"
    found = on_noise(kind, 100)
    assert len(found.table) == 100 and found.passed <= 5, found.table[found.table["proven"]]
    assert (found.table["fills"] > 15).mean() > 0.9


# ---------------------------------------------------------------- planted signals


def planted(seed: int, correlation: float) -> Evidence:
    "Forecasts with this correlation to what comes, as sure as the members are"
    panel, settings = synthetic_panel(symbols=12, sessions=2520, seed=seed), Settings()
    future = forward_return(panel, settings.label.horizon)
    known = np.nan_to_num(future / np.nanstd(future))
    guess = np.random.default_rng(seed).normal(size=known.shape)
    said = 0.02 * (correlation * known + np.sqrt(1.0 - correlation**2) * guess)
    result = run_backtest(panel, said, np.full(known.shape, 0.9), settings)
    holding = buy_and_hold(panel, result.first, result.stop, result.capital, cost_rules(settings.costs))
    return verdict(result.equity, holding, result.capital)


def test_a_planted_signal_is_found_and_its_absence_too() -> None:
    assert sum(planted(seed, 0.6).proven for seed in range(10)) >= 7
    assert sum(planted(seed, 0.0).proven for seed in range(10)) == 0


# ---------------------------------------------------------------- permutation


@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_keeps_everything_but_the_order(seed: int) -> None:
    events = Events(
        splits=(("SYNA", 50, 2.0),), dividends=(("SYNB", 60, 0.5),), halts=(("SYNC", 70, 3),), listings=(("SYND", 90),)
    )
    panel = synthetic_panel(symbols=5, sessions=300, seed=seed, events=events)
    moved, again, other = (permuted(panel, s) for s in (seed, seed, seed + 1))
    assert moved.hash == again.hash != other.hash
    np.testing.assert_array_equal(np.isnan(moved.close), np.isnan(panel.close))
    before, after = adjusted(panel), adjusted(moved)
    np.testing.assert_allclose(after[3][-1], before[3][-1], rtol=1e-9)
    for n in range(5):
        for field in (0, 1, 2):  # the shape of each bar goes along
            shapes = [np.sort((view[field] / view[3])[:, n]) for view in (before, after)]
            np.testing.assert_allclose(shapes[0], shapes[1], rtol=1e-9)
        np.testing.assert_array_equal(np.sort(before[4][:, n]), np.sort(after[4][:, n]))
        steps = [np.sort(pd.Series(view[3][:, n]).dropna().pct_change().dropna()) for view in (before, after)]
        np.testing.assert_allclose(steps[0], steps[1], rtol=1e-7)
    assert not np.allclose(after[3][:, 0], before[3][:, 0])
