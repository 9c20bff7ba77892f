"""Issue 4, done when 1: the gate on random walks and on bars with a planted signal, through the real training

Features, labels, a refit a year, calibration, backtest with costs and the gate: nothing is replaced but the size (40
trees, one seed of each kind) and the placebo rate, which is what the first test measures. `--slow` runs 200 universes
of each kind in about six minutes; without it a few. `pytest -s` prints the summaries.
"""

import numpy as np
import pytest

from alpha_trader.backtest import buy_and_hold, run_backtest
from alpha_trader.bars import Panel
from alpha_trader.calibration import calibration_error, reliability
from alpha_trader.fills import cost_rules
from alpha_trader.labels import forward_return
from alpha_trader.promotion import Passport, gate, judged_window
from alpha_trader.research import Outlook, out_of_sample, outlook_forward
from alpha_trader.samples import synthetic_panel
from alpha_trader.scores import ic_table
from alpha_trader.settings import Settings, override

SMALL = {
    "model.lightgbm_rounds": "40", "model.xgboost_rounds": "40", "model.min_train": "500", "model.threads": "2",
    "promotion.window": "0.99",
}  # fmt: skip
QUIET = (0.0, 40)  # the placebo question answered as it would be if the first test passes
SYMBOLS, SESSIONS, RISK = 20, 1100, 0.015
IC = 0.3  # between what was visible and the return from fill to horizon, across very many symbols
EXPECTED = IC * (1 - (1 - IC**2) / (2 * (SYMBOLS - 1)))  # a correlation of so few symbols is a little too small


def universes(request: pytest.FixtureRequest, few: int) -> int:
    return 200 if request.config.getoption("--slow") else few


def judged(panel: Panel, seed: int) -> tuple[Passport, Outlook]:
    "The whole pipeline on a panel: what the gate says, and what was believed"
    settings = override(Settings(), {**SMALL, "model.seeds": str(seed)})
    view = outlook_forward(panel, out_of_sample(panel, settings), settings)
    window = judged_window(panel, view.predicted, settings.promotion.window)
    result = run_backtest(panel, view.predicted, view.confidence, settings, None, *window)
    holding = buy_and_hold(panel, result.first, result.stop, result.capital, cost_rules(settings.costs))
    return gate(result.equity, holding, result.capital, placebo=QUIET), view


def test_noise_does_not_pass(request: pytest.FixtureRequest) -> None:
    "At most one random-walk universe in twenty passes"
    count = universes(request, 4)
    passed = [judged(synthetic_panel(SYMBOLS, SESSIONS, seed), seed)[0].passed for seed in range(count)]
    print(f"\nnoise: {sum(passed)} of {count} random-walk universes pass the gate")
    assert np.mean(passed) <= 0.05


def planted(seed: int) -> tuple[Panel, np.ndarray]:
    """Bars whose volume announces part of the next five sessions, and the best forecast anyone could make of them

    A loud session `s` adds `beta * s / 5` to each of the next five; the label of the next one shares four of them, and
    so on, so that of the variance of a label `beta**2` is announced, `2.4 * beta**2` is of other sessions, and the rest
    is chance.
    """
    frame, rng = synthetic_panel(SYMBOLS, SESSIONS, seed), np.random.default_rng((seed, 7))
    loud, drift = rng.normal(size=(SESSIONS, SYMBOLS)), np.zeros((SESSIONS, SYMBOLS))
    beta = IC * np.sqrt(5 * RISK**2 / (1 - 3.4 * IC**2))
    for later in range(1, 6):
        drift[later:] += beta / 5 * loud[:-later]
    step = drift + RISK * rng.normal(size=drift.shape)
    close = 55.0 * np.exp(np.cumsum(step, axis=0))
    opens, reach = close * np.exp(-step), np.exp(0.004 * np.abs(rng.normal(size=(2, *drift.shape))))
    high, low = np.maximum(opens, close) * reach[0], np.minimum(opens, close) / reach[1]
    values = np.stack([opens, high, low, close, np.round(np.exp(14.5 + 0.5 * loud))])
    feed = f"planted-{seed}"
    return Panel(frame.index, frame.symbols, values, frame.splits, frame.dividends, "synthetic", feed), beta * loud


def test_the_planted_ic_is_what_it_is_said_to_be() -> None:
    "Over very many outcomes the correlation is the planted one"
    parts = [planted(seed) for seed in range(20)]
    label = np.concatenate([forward_return(panel, 5)[:-6].ravel() for panel, _ in parts])
    best = np.concatenate([said[:-6].ravel() for _, said in parts])
    assert abs(np.corrcoef(best, label)[0, 1] - IC) < 0.01


def interval(said: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    "Mean information coefficient and half of its 95 % interval"
    found = ic_table(said, label, 5).set_index("coefficient").loc["IC"]
    return found["mean"], 1.96 * abs(found["mean"] / found["t"])


def test_a_planted_signal_passes(request: pytest.FixtureRequest) -> None:
    "At least nine in ten pass; the planted IC lies in the interval of the best forecast, and is nearly reached"
    count = universes(request, 10)
    passed, best, ours, broken = [], [], [], []
    for seed in range(count):
        panel, announced = planted(seed)
        found, view = judged(panel, seed)
        label, said = forward_return(panel, 5), view.predicted
        broken.append(calibration_error(reliability(view.p_correct, said, label, overlap=5)))
        passed.append(found.passed)
        best.append(interval(np.where(np.isfinite(said), announced, np.nan), label))
        ours.append(interval(said, label))
    inside = [abs(mean - EXPECTED) <= reach for mean, reach in best]
    found_it = [mean - reach > 0 for mean, reach in ours]
    measured, reached = float(np.mean([mean for mean, _ in best])), float(np.mean([mean for mean, _ in ours]))
    print(
        f"\nplanted IC {EXPECTED:.3f}: {sum(passed)} of {count} pass the gate; the interval of the best holds it "
        f"in {sum(inside)}, mean {measured:.3f}; the trained members reach {reached:.3f}, above 0 in {sum(found_it)}; "
        f"expected calibration error {np.mean(broken):.3f}, at most {max(broken):.3f}"
    )
    assert np.mean(passed) >= 0.9
    assert np.mean(inside) >= 0.9 and abs(measured - EXPECTED) < 0.03 / np.sqrt(count) * 1.96
    assert np.mean(found_it) >= 0.95 and 0.75 * EXPECTED < reached < EXPECTED
    assert np.mean(broken) <= 0.05
