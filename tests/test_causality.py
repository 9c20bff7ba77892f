"""The judges of `alpha_trader.causality` on histories with everything that can happen to a share"""

from collections.abc import Callable
from datetime import date

import numpy as np
import pandas as pd
import pytest

from alpha_trader.bars import Panel, adjusted
from alpha_trader.causality import first_lookahead, first_rescaling, in_other_shares, with_split
from alpha_trader.features import FEATURES, features, indicators, volatility
from alpha_trader.samples import Events, sample_panel, synthetic_panel

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
