"""The learning defects of the two systems before: each old rule does the damage again, and ours cannot

The old rules are written out here as they were, so that each property below is seen to fail on them.
"""

import lightgbm
import numpy as np
import pandas as pd
import pytest
from replay import NOW, SMALL, write_settings

from alpha_trader.bars import Panel, adjusted
from alpha_trader.calibration import (
    calibration_error,
    errors_by_chance,
    fit_staircase,
    p_correct,
    p_correct_forward,
    reliability,
)
from alpha_trader.causality import first_lookahead
from alpha_trader.causality import verdict as causality_verdict
from alpha_trader.confidence import agreement, consensus
from alpha_trader.evidence import probabilistic_sharpe, tries_of, verdict
from alpha_trader.features import FeatureSet
from alpha_trader.features import features as features_of
from alpha_trader.models import usable_folds, walk_forward_said
from alpha_trader.pipeline import ingest
from alpha_trader.promotion import gate
from alpha_trader.research import lesson, load_bars, out_of_sample
from alpha_trader.samples import synthetic_panel
from alpha_trader.settings import LabelSettings, ModelSettings, Settings
from alpha_trader.splits import walk_forward
from alpha_trader.statistics import moments
from alpha_trader.store import open_store
from alpha_trader.training import record_of

RNG = np.random.default_rng(20261)
SESSIONS = 1000


def old_confidence(answers: list[float | None]) -> float:
    "A-10 as it was: what failed is 0.0 and counts, one model alone has spread 0 and so 0.95"
    spread = float(np.std([0.0 if answer is None else answer for answer in answers]))
    return 1.0 - min(spread / 0.01, 0.9) if spread > 0 else 0.95


def test_da_3_the_loneliest_model_was_trusted_most() -> None:
    "DA-3: one member's opinion is worth nothing here, and a failed one is not averaged in"
    alone, four = [0.02], [0.018, 0.020, 0.022, 0.024]
    assert old_confidence(alone) > old_confidence(four)
    ours = [agreement(np.array(answers)[:, None])[0] for answers in (alone, four)]
    assert np.isnan(ours[0]) and 0.5 < ours[1] < 1.0
    failed = np.array([[0.02], [0.02], [np.nan]])
    assert np.mean(np.nan_to_num(failed)) < 0.014
    assert consensus(failed)[0] == 0.02


def test_da_3_confidence_said_nothing_about_being_right() -> None:
    "DA-3: on noise the old confidence promises 90 % and keeps 50 %; a calibrated probability keeps what it promises"
    predicted = RNG.normal(0.0, 0.01, (SESSIONS, 8))
    members = predicted + RNG.normal(0.0, 0.0005, (4, SESSIONS, 8))
    label = RNG.normal(0.0, 0.02, (SESSIONS, 8))
    right = float((np.sign(predicted) == np.sign(label)).mean())
    old = np.mean([old_confidence(list(members[:, t, n])) for t in range(0, SESSIONS, 20) for n in range(8)])
    assert old - right > 0.3
    half = SESSIONS // 2
    ours = p_correct(predicted[half:], fit_staircase(predicted[:half], label[:half]))
    assert abs(float(np.nanmean(ours)) - right) < 0.05
    assert np.nanmax(ours) < 0.6


def old_gate(predicted: np.ndarray, label: np.ndarray) -> bool:
    "A-09 as it was: one of four tries is right more often than not and correlates at all, on the last rows"
    return any(((p > 0) == (label > 0)).mean() > 0.5 and np.corrcoef(p, label)[0, 1] > 0 for p in predicted)


def equity_of(positions: np.ndarray, moves: np.ndarray) -> pd.Series:
    "USD of holding equal parts of what is wanted, from 100"
    returns = (positions * moves).mean(axis=1)
    return pd.Series(100.0 * np.cumprod(1.0 + returns), pd.bdate_range("2010-01-04", periods=len(returns)))


def test_da_4_the_gate_let_coins_pass() -> None:
    "DA-4: two thirds of pure noise passed the old gate; ours lets at most one in twenty through"
    rng, tries = np.random.default_rng(4), 60
    old = [old_gate(rng.normal(size=(4, 100)), rng.normal(size=100)) for _ in range(tries)]
    assert np.mean(old) > 0.5
    ours = []
    for _ in range(tries):
        moves = rng.normal(0.0003, 0.01, (500, 8))
        coin = equity_of(2.0 * (rng.random((500, 8)) < 0.5), moves)
        ours.append(gate(coin, equity_of(np.ones((500, 8)), moves), 100.0, placebo=(0.0, 40)).passed)
    assert np.mean(ours) <= 0.05


def test_da_5_the_rows_that_chose_also_scored() -> None:
    "DA-5: the best of a hundred coins looked skilled on its own rows; here the number of tries is subtracted"
    rng = np.random.default_rng(5)
    moves, coins = rng.normal(0.0, 0.01, 100), rng.choice([-1.0, 1.0], (100, 100))
    reported = max(((coin > 0) == (moves > 0)).mean() for coin in coins)
    assert reported > 0.58
    moves, flat = rng.normal(0.0, 0.01, 500), pd.Series(100.0, pd.bdate_range("2010-01-04", periods=500))
    returns = rng.choice([-1.0, 1.0], (100, 500)) * moves
    sharpes = returns.mean(axis=1) / returns.std(axis=1, ddof=1)
    best = returns[sharpes.argmax()]
    assert probabilistic_sharpe(moments(best)) > 0.95
    equity = pd.Series(100.0 * np.cumprod(1.0 + best), flat.index)
    assert verdict(equity, flat, 100.0, tries_of(sharpes)).deflated < 0.95


def test_da_5_no_row_both_teaches_and_scores() -> None:
    "DA-5: between the last row learned from and the first row scored lies a label and the embargo"
    days = pd.bdate_range("2005-01-03", periods=2000).to_numpy().astype("datetime64[D]")
    for fold in walk_forward(days, 5, "yearly", 500, 2):
        assert fold.train_stop + 5 + 1 + 2 <= fold.test_start < fold.test_stop


def old_splits(rows: int, folds: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    "Folds over stacked rows, as the old cross-validation cut them"
    size = rows // (folds + 1)
    return [(np.arange(size * k), np.arange(size * k, size * (k + 1))) for k in range(1, folds + 1)]


def test_db_12_cross_validation_was_not_temporal() -> None:
    "DB-12: with symbols below each other every old fold learned from the days it was tested on; ours cut by date"
    days = np.arange(1000)
    stacked = np.tile(days, 9)
    for train, test in old_splits(len(stacked)):
        assert (stacked[train] >= stacked[test].min()).any()
    sessions = pd.bdate_range("2005-01-03", periods=1000).to_numpy().astype("datetime64[D]")
    folds = walk_forward(sessions, 5, "monthly", 300, 2)
    table = np.tile(days[:, None], (1, 9))
    assert folds
    for fold in folds:
        assert table[: fold.train_stop].max() + 5 < table[fold.test_start : fold.test_stop].min()


def old_classifier(x: np.ndarray, way: np.ndarray) -> lightgbm.Booster:
    "B-06 as it was: 200 trees of three classes that weigh the same, however rare they are"
    weight = (len(way) / (3.0 * np.bincount(way, minlength=3)))[way]
    parameters = {
        "objective": "multiclass", "num_class": 3, "learning_rate": 0.05, "num_leaves": 31, "max_depth": 6, "seed": 42,
        "bagging_fraction": 0.8, "feature_fraction": 0.8, "verbosity": -1, "num_threads": 1,
    }  # fmt: skip
    return lightgbm.train(parameters, lightgbm.Dataset(x, way, weight=weight), 200)


def test_db_13_confidence_was_read_off_the_rows_it_learned() -> None:
    """DB-13: the old rule (balanced weights, max(proba), trade at 0.6) is sure of noise, in sample and out of it

    Up and down come once in ten each; by decree they weigh as much as the rest. Asked about new rows the old rule sees
    them half as often again as they come, and where it is sure enough to trade it is hardly ever right. Ours, from the
    same features and moves, keeps what it promises and never reaches 0.6.
    """
    rng = np.random.default_rng(13)
    x, moves = rng.normal(size=(4000, 20)).astype(np.float32), rng.normal(0.0, 0.0156, 4000)
    way, old, new = np.digitize(moves, [-0.02, 0.02]), slice(0, 2000), slice(2000, 4000)
    rare = (way[new] != 1).mean()
    assert 0.15 < rare < 0.25
    model = old_classifier(x[old], way[old])
    seen, unseen = (np.asarray(model.predict(x[part])) for part in (old, new))
    assert seen.max(axis=1).mean() > 0.6 and (seen.argmax(axis=1) == way[old]).mean() > 0.9
    trades = (unseen.max(axis=1) >= 0.6) & (unseen.argmax(axis=1) != 1)
    promised = unseen[:, [0, 2]].sum(axis=1).mean()
    assert promised > rare + 0.05, "balanced weights promise moves that do not come"
    kept = (unseen.argmax(axis=1) == way[new])[trades].mean() if trades.any() else 0.0
    assert kept < 0.3
    features, labels = FeatureSet(tuple(f"f{n}" for n in range(20)), x[:, None]), moves[:, None]
    settings = ModelSettings(members="classifier", seeds="42", min_train=500, threads=1)
    days = pd.bdate_range("2001-01-02", periods=4000).to_numpy().astype("datetime64[D]")
    said = walk_forward_said(features, labels, days, LabelSettings(), settings)
    folds = usable_folds(features, labels, days, LabelSettings(), settings)
    ours = p_correct_forward(said.returns[0], labels, folds, 1)
    assert np.nanmax(ours) < 0.6
    assert calibration_error(reliability(ours, said.returns[0], labels, groups=5)) <= 0.05


def test_db_10_todays_report_was_written_to_every_row() -> None:
    """DB-10: a number known today, written to every historical row, is found by the causality page and teaches nothing

    The old rule is a feature whose value in every session is that of the newest one. It carries the end of the story
    into its beginning: the same past, told with two ends, gives other features. Ours are the same to the last bit.
    """
    def broadcast(panel: Panel) -> np.ndarray:
        momentum = adjusted(panel)[3][-1] / adjusted(panel)[3][-21] - 1.0
        return np.tile(momentum, (len(panel.index), 1))

    def as_of(panel: Panel) -> np.ndarray:
        close = adjusted(panel)[3]
        return np.vstack([np.full((20, close.shape[1]), np.nan), close[20:] / close[:-20] - 1.0])

    panel = synthetic_panel(symbols=4, sessions=120, seed=10)
    assert first_lookahead(broadcast, panel) is not None
    assert "looks ahead" in causality_verdict(broadcast, panel)
    assert first_lookahead(as_of, panel) is None
    ends = [panel.cut(slice(0, stop), range(4)) for stop in (100, 120)]
    old = [broadcast(end)[:100] for end in ends]
    ours = [features_of(end, ("shipped",), 20).values[:100] for end in ends]
    assert not np.array_equal(*old) and np.array_equal(*ours, equal_nan=True)
    np.testing.assert_array_equal(broadcast(panel)[30], broadcast(panel)[-1])


def test_known_probabilities_are_found() -> None:
    "Expected calibration error on a set whose probabilities are known"
    rng = np.random.default_rng(2)
    predicted = rng.normal(0.0, 0.01, (4000, 8))
    chance = 1.0 / (1.0 + np.exp(-predicted / 0.01))
    label = np.where(rng.random(predicted.shape) < chance, 0.01, -0.01)
    ours = p_correct(predicted[2000:], fit_staircase(predicted[:2000], label[:2000]))
    assert calibration_error(reliability(ours, predicted[2000:], label[2000:])) <= 0.05
    truth = np.maximum(chance, 1.0 - chance)[2000:]
    assert float(np.abs(ours - truth).mean()) < 0.03
    overconfident = np.clip(ours + 0.2, 0.0, 1.0)
    assert calibration_error(reliability(overconfident, predicted[2000:], label[2000:])) > 0.1


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    "The shipped history, walked with reduced rounds"
    few = SMALL | {"model.min_train": 750, "model.lightgbm_rounds": 60, "model.xgboost_rounds": 40}
    settings = write_settings(tmp_path_factory.mktemp("sample"), few)
    ingest(settings, open_store(settings.store_url), NOW)
    return settings


def test_the_sample_is_calibrated(sample: Settings) -> None:
    """The held-out folds of the shipped history, rounds reduced: 0.05, or what the base rate alone allows

    Five shares rose in 43 % of the weeks of 2008 and in 62 % of those of 2009: who promises the share of past rises and
    nothing else shows 0.051 here, we 0.051, a record that keeps every promise 0.044 (0.061 in one of twenty). With all
    rounds these are 0.057, 0.060, 0.037 and 0.050 (21 November 2026). Of the known probabilities above, and of the planted
    universes in `test_gate.py`, the bar of 0.05 is asked as it stands.
    """
    record = record_of(sample)
    facts = record.facts()
    assert facts["expected_calibration_error"] <= max(0.05, facts["of_the_base_rate_alone"] + 0.005)
    assert facts["highest_p_correct"] < 0.65
    certain = np.where(np.isfinite(record.view.p_correct), 0.95, np.nan)  # what DA-3 would have said
    boast = calibration_error(reliability(certain, record.view.predicted, record.label))
    assert boast > 0.3 > errors_by_chance(certain, record.view.predicted, record.label, record.horizon).max()


def test_backtest_and_page_agree(sample: Settings) -> None:
    "The probability of the backtest is the one of the calibration page wherever the input is at home"
    panel, settings = load_bars(sample), sample
    study, view = lesson(panel, settings), record_of(settings).view
    folds = usable_folds(study.features, study.label, panel.sessions, settings.question, settings.model)
    members = out_of_sample(panel, settings, settings.data_dir / "predictions")
    plain = p_correct_forward(consensus(members), study.label, folds, settings.label.horizon)
    home = np.isfinite(view.p_correct) & (view.distance <= 1.0)
    assert home.sum() > 1000
    np.testing.assert_array_equal(view.p_correct[home], plain[home])
    out = np.isfinite(view.p_correct) & (view.distance > 1.0)
    assert (np.abs(view.p_correct[out] - 0.5) <= np.abs(plain[out] - 0.5) + 1e-12).all()
