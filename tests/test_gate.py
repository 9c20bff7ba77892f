"""The gate on noise and on a planted signal: at most one in twenty passes, and at least nine in ten

`--slow` runs 200 universes of each kind; without it a few. Each summary is printed.
"""

import numpy as np
import pytest

from alpha_trader.backtest import buy_and_hold, run_backtest
from alpha_trader.bars import Panel
from alpha_trader.fills import cost_rules
from alpha_trader.labels import excess_return, forward_return
from alpha_trader.promotion import Passport, gate, walk_recipe
from alpha_trader.samples import synthetic_panel
from alpha_trader.scores import ic_table
from alpha_trader.settings import Settings, override

FEW = {
    "model.lightgbm_rounds": "20", "model.xgboost_rounds": "20", "model.seeds": "42", "model.min_train": "500",
    "model.threads": "2", "promotion.window": "0.99",
}  # fmt: skip
QUIET = (0.0, 40)  # the placebo question answered as it would be if this test passes
IC, SYMBOLS, SESSIONS = 0.6, 20, 1100
EXPECTED = IC * (1 - (1 - IC**2) / (2 * (SYMBOLS - 1)))  # a correlation of so few symbols is a little too small


def universes(request: pytest.FixtureRequest, few: int) -> int:
    return 200 if request.config.getoption("--slow") else few


def passport(panel: Panel, settings: Settings, seed: int) -> Passport:
    "The whole pipeline on a panel, judged"
    result = walk_recipe(override(settings, {"model.seeds": str(seed)}), panel)
    holding = buy_and_hold(panel, result.first, result.stop, result.capital, cost_rules(settings.costs))
    return gate(result.equity, holding, result.capital, placebo=QUIET)


def test_noise_does_not_pass(request: pytest.FixtureRequest, tmp_path) -> None:
    "Random walks: features, labels, training, calibration, backtest and gate find nothing"
    settings, count = override(Settings(root=tmp_path), FEW), universes(request, 3)
    passed = [passport(synthetic_panel(5, SESSIONS, seed), settings, seed).passed for seed in range(count)]
    print(f"noise: {sum(passed)} of {count} random-walk universes pass the gate")
    assert np.mean(passed) <= 0.05


def planted(panel: Panel, seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Forecasts whose correlation with the label across symbols is known, and the label"
    label = forward_return(panel, 5)
    ahead = excess_return(label)
    noise = np.random.default_rng(seed).normal(size=label.shape)
    noise -= noise.mean(axis=1, keepdims=True)
    noise *= np.nanstd(ahead, axis=0) / noise.std(axis=0)
    return IC * (IC * np.nan_to_num(ahead) + np.sqrt(1 - IC**2) * noise), label

def test_a_planted_signal_passes(request: pytest.FixtureRequest) -> None:
    "Forecasts of a known IC on random walks: the gate passes them, and the IC is measured within its interval"
    settings, count = override(Settings(), {"risk.max_positions": "10"}), universes(request, 10)
    passed, within = [], []
    for seed in range(count):
        panel = synthetic_panel(SYMBOLS, SESSIONS, 1000 + seed)
        predicted, label = planted(panel, seed)
        result = run_backtest(panel, predicted, np.full(label.shape, 0.95), settings, None, panel.sessions[60].item())
        holding = buy_and_hold(panel, result.first, result.stop, result.capital, cost_rules(settings.costs))
        passed.append(gate(result.equity, holding, result.capital, placebo=QUIET).passed)
        found = ic_table(predicted, label, 5).set_index("coefficient").loc["IC"]
        reach = 1.96 * abs(found["mean"] / found["t"])
        within.append(abs(found["mean"] - EXPECTED) <= reach)
    print(f"planted IC {IC}: {sum(passed)} of {count} pass the gate, {sum(within)} intervals hold the IC")
    assert np.mean(passed) >= 0.9
    assert np.mean(within) >= 0.8
