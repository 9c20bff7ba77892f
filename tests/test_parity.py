"""Backtest and live path make the same orders, fills, cash and equity, to the cent"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from replay import SMALL, Lab, close, closes, fills, prepare, trade, walked

from alpha_trader.backtest import fills_frame

SETTINGS = {
    "shipped": {},
    "closes": {"risk.stop_check": "close", "risk.max_positions": 2, "label.horizon": 3, "risk.stop_loss": -0.02},
    "fractional": {"risk.fractional": "true", "risk.cash": "t1", "risk.max_exposure": 0.3, "costs.half_spread": 0.002},
    "likely": {"model.min_train": 1500, "model.refit": "yearly", "signals.p_correct": 0.52},
    "break even": {"model.min_train": 1500, "signals.p_correct": "break_even"},
}


def compare(lab: Lab) -> int:
    "Every fill and every close; answers the number of fills"
    trade(lab, lab.sessions)
    close(lab, lab.sessions[-1])
    result = walked(lab)
    theirs = fills_frame(result)[["session", "symbol", "quantity", "price", "fee", "reason"]]
    theirs = theirs[theirs["reason"] != "SPLIT_CASH"]  # live books a corporate action for it, not a fill
    theirs = theirs.sort_values(["session", "symbol", "reason"], ignore_index=True)
    ours = fills(lab)
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True, check_dtype=False)
    equity = closes(lab)
    assert float(equity.iloc[0]) == float(lab.settings.broker.capital)
    np.testing.assert_array_equal(equity.iloc[1:].to_numpy(), result.equity.to_numpy())
    return len(ours)


CASES = [pytest.param(name, marks=pytest.mark.slow if name in ("likely", "break even") else ()) for name in SETTINGS]


@pytest.mark.parametrize("name", CASES)
def test_live_equals_backtest_on_the_sample(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    sessions = 250 if request.config.getoption("--slow") else 30
    lab = prepare(tmp_path, SMALL | {"run.paper_sessions": sessions} | SETTINGS[name])
    assert compare(lab) > 5
