"""The judges of `alpha_trader.causality` on histories with everything that can happen to a share"""

from collections.abc import Callable
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest

from alpha_trader.backtest import run_backtest
from alpha_trader.bars import Panel, adjusted
from alpha_trader.causality import first_lookahead, first_rescaling, in_other_shares, with_split
from alpha_trader.confidence import agreement, consensus
from alpha_trader.features import FEATURES, FeatureSet, features, indicators, volatility
from alpha_trader.labels import forward_return
from alpha_trader.models import Ensemble, fit_panel, predict_panel
from alpha_trader.samples import Events, sample_panel, synthetic_panel
from alpha_trader.settings import LabelSettings, ModelSettings, Settings, override
from alpha_trader.signals import Reason

EVENTS = Events(
    splits=(("SYNA", 66, 3.0), ("SYNB", 71, 0.2)),
    dividends=(("SYNA", 64, 0.5), ("SYNC", 80, 1.0)),
    halts=(("SYNC", 68, 2), ("SYND", 75, 1)),
    listings=(("SYND", 8), ("SYNE", 40)),
)


@pytest.fixture(scope="module")
def panel() -> Panel:
    return synthetic_panel(symbols=5, sessions=95, seed=21, events=EVENTS)


def shipped(panel: Panel) -> np.ndarray:
    return features(panel, min_history=5).values


def returns(panel: Panel) -> pd.DataFrame:
    return pd.DataFrame(adjusted(panel)[3]).pct_change(fill_method=None)


CULPRITS: dict[str, Callable[[Panel], np.ndarray]] = {
    "centred mean": lambda p: pd.DataFrame(adjusted(p)[3]).rolling(5, center=True).mean().to_numpy(),
    "full-sample z-score": lambda p: ((returns(p) - returns(p).mean()) / returns(p).std()).to_numpy(),
    "backward fill": lambda p: pd.DataFrame(p.close).bfill().to_numpy(),
    "tomorrow": lambda p: returns(p).shift(-1).to_numpy(),
    "rank in the whole history": lambda p: returns(p).rank().to_numpy(),
    "vendor adjustment": lambda p: adjusted(p)[3] / adjusted(p)[3, -1],
}


@pytest.mark.parametrize("name", CULPRITS)
def test_planted_culprits_are_found(panel, name):
    "Each of them looks ahead, and the judge says so"
    assert first_lookahead(CULPRITS[name], panel) is not None


def test_the_session_named_is_where_the_future_began(panel):
    "A feature that cheats from one session on is caught there, neither before nor after"
    day: date = panel.sessions[57].item()

    def cheats_once(panel: Panel) -> np.ndarray:
        out = np.zeros(panel.close.shape)
        if len(out) > 58:
            out[57] = panel.close[58]
        return out

    assert first_lookahead(cheats_once, panel) == day


def test_nothing_shipped_looks_ahead(panel):
    "Features, every raw indicator, volatility and the adjustment, bit for bit, on every prefix"
    assert first_lookahead(shipped, panel, start=1) is None
    assert first_lookahead(volatility, panel, start=1) is None
    assert first_lookahead(adjusted_last, panel, start=1) is None
    assert first_lookahead(lambda p: np.stack(list(indicators(p).values()), axis=-1), panel, start=1) is None


def adjusted_last(panel: Panel) -> np.ndarray:
    return np.moveaxis(adjusted(panel), 0, -1)


def test_nothing_shipped_carries_the_price_level(panel):
    "Another size of the shares, from the start or by a split, changes no feature"
    assert first_rescaling(shipped, panel) is None
    assert first_rescaling(volatility, panel) is None


@pytest.mark.parametrize("name", ["sma_20", "macd", "atr_14", "bb_upper"])
def test_raw_levels_are_caught(panel, name):
    "The raw indicators in dollars would not pass; that is why no model reads them"
    assert first_rescaling(lambda p: indicators(p)[name], panel) is not None


def test_real_history_with_seven_times_the_shares():
    "On thirteen years of five stocks: within one float32 step, and nearly always equal"
    panel = sample_panel()
    before = features(panel).values
    for other in (in_other_shares(panel, 7.0), with_split(panel, panel.sessions[1600].item(), 7.0)):
        after = features(other).values
        there = np.isfinite(before)
        assert (there == np.isfinite(after)).all()
        assert (np.abs(after[there].astype(float) - before[there]) <= np.spacing(np.abs(before[there]))).all()
        assert np.count_nonzero(after[there] != before[there]) <= 1
    assert before.shape[2] == len(FEATURES)


EAGER = {"signals.buy": 1e-4, "signals.sell": -1e-4, "signals.confidence": 0.0, "risk.fractional": "true"}


@pytest.fixture(scope="module")
def history() -> Panel:
    "Longer than `panel`, so that there is something to trade"
    return synthetic_panel(symbols=6, sessions=150, seed=21, events=EVENTS)


@pytest.fixture(scope="module")
def model() -> Ensemble:
    "A fixed model that has learnt from another history"
    other = synthetic_panel(symbols=4, sessions=200, seed=2)
    few = ModelSettings(seeds=(42,), lightgbm_rounds=20, xgboost_rounds=20)
    return fit_panel(features(other), forward_return(other, 5), 190, LabelSettings(), few)


def seen(panel: Panel) -> FeatureSet:
    return features(panel, min_history=30)


def glimpsed(panel: Panel) -> FeatureSet:
    "One of 25 inputs known a session early"
    honest = seen(panel)
    values = honest.values.copy()
    values[:-1, :, FEATURES.index("return_1d")] = honest["return_1d"][1:]
    return FeatureSet(honest.names, values)


def priced(panel: Panel) -> FeatureSet:
    "Dollars where the model learnt ratios"
    honest = seen(panel)
    values = honest.values.copy()
    values[..., FEATURES.index("return_1d")] = (adjusted(panel)[3] - 50.0) / 1000.0
    return FeatureSet(honest.names, values)


def orders(
    panel: Panel,
    model: Ensemble,
    inputs: Callable[[Panel], FeatureSet] = seen,
) -> np.ndarray:  # [T, N, 2] shares decided at each opening, and the reason
    "Features → predictions → plan, with the account that follows; the last session has just opened and has no bar yet"
    values = panel.values.copy()
    values[:, -1] = np.nan
    morning = replace(panel, values=values)
    members = predict_panel(model, inputs(morning))
    ledger = run_backtest(morning, consensus(members), agreement(members), override(Settings(), EAGER)).ledger
    return np.stack([ledger.planned, ledger.verdict], axis=-1)


def test_cutting_the_future_changes_no_order(history, model):
    "Every order and every reason at every opening, bit for bit"
    decided = orders(history, model)
    assert (decided[..., 0] > 0).sum() > 20 and (decided[..., 0] < 0).sum() > 20
    assert first_lookahead(lambda panel: orders(panel, model), history, start=2) is None


def test_a_glimpse_of_tomorrow_is_seen_in_the_orders(history, model):
    "The orders give it away"
    assert first_lookahead(lambda panel: orders(panel, model, glimpsed), history, start=2) is not None


def shares_after(panel: Panel, row: int, ratio: float) -> np.ndarray:  # [T, 1]
    return np.where(np.arange(len(panel.index)) < row, 1.0, ratio)[:, None]


@pytest.mark.parametrize("row", [0, 75])
def test_a_split_changes_no_order(history, model, row):
    "Seven shares for one, from the start or half-way: the same reasons, seven times the shares but for ticks and cents"
    other = with_split(history, history.sessions[row].item(), 7.0) if row else in_other_shares(history, 7.0)
    before, after = orders(history, model), orders(other, model)
    np.testing.assert_array_equal(after[..., 1], before[..., 1])
    assert {Reason.ENTRY, Reason.SELL_SIGNAL} <= set(before[..., 1].ravel().astype(int))
    np.testing.assert_allclose(after[..., 0] / shares_after(history, row, 7.0), before[..., 0], rtol=2e-3)


def test_a_price_level_is_seen_in_the_orders(history, model):
    "A model that is shown dollars decides otherwise when shares have another size"
    other = in_other_shares(history, 7.0)
    assert (orders(history, model, priced)[..., 1] != orders(other, model, priced)[..., 1]).any()
