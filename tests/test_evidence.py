"""Evidence: the formulas against other people's programs, and the verdict's error rates on noise and on skill"""

import math
from datetime import UTC, date, datetime
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from alpha_trader.domain import InputError
from alpha_trader.evidence import (
    ONE_TRY,
    Tries,
    average_correlation,
    block_length,
    deflated_sharpe,
    excess_sharpes,
    expected_maximum,
    independent_trials,
    minimum_track_record,
    overfitting_probability,
    pooled,
    probabilistic_sharpe,
    resampled,
    sharpe_interval,
    tries_of,
    verdict,
)
from alpha_trader.settings import Settings
from alpha_trader.statistics import YEAR, Moments, moments
from alpha_trader.store import TrialKind, open_store
from alpha_trader.trials import Look, count_trials, placebo_rate, rules_hash, trials_counted

RATIOS = st.floats(-0.2, 0.2)
SAMPLES = st.builds(Moments, st.integers(30, 5000), RATIOS, st.floats(-2, 2), st.floats(6, 20))


# ---------------------------------------------------------------- formulas


@pytest.mark.parametrize("seed", range(3))
def test_the_deflated_ratio_is_vectorbts(seed: int) -> None:
    "Nine strategies, judged by both; vectorbt takes the variance across them with ddof = 1, per year"
    vectorbt = pytest.importorskip("vectorbt")
    days = pd.bdate_range("2015-01-01", periods=700)
    returns = pd.DataFrame(np.random.default_rng(seed).standard_t(4, (700, 9)) * 0.01 + 0.0004, index=days)
    tries = tries_of(np.array([moments(returns[n].to_numpy()).sharpe for n in returns]))
    ours = [deflated_sharpe(moments(returns[n].to_numpy()), tries) for n in returns]
    theirs = returns.vbt.returns(freq="1D", year_freq="252 days").deflated_sharpe_ratio()
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert vectorbt.__version__


@given(SAMPLES, RATIOS)
def test_moments_are_scipys_and_the_ratio_pandas(sample: Moments, shift: float) -> None:
    values = np.random.default_rng(sample.sessions).gamma(2.0, 0.01, sample.sessions) + shift
    found, series = moments(values), pd.Series(values)
    expected = series.mean() / series.std(), stats.skew(values), stats.kurtosis(values, fisher=False)
    np.testing.assert_allclose(found[1:], expected, rtol=1e-8, atol=1e-9)


@given(SAMPLES, RATIOS, st.floats(0.6, 0.99))
def test_the_track_record_is_the_probability_turned_round(sample: Moments, benchmark: float, confidence: float) -> None:
    "With exactly so many sessions, the probability is exactly the confidence"
    needed = minimum_track_record(sample, benchmark, confidence)
    if sample.sharpe - benchmark <= 1e-9:
        assert needed == math.inf
    elif 3 <= needed < 1e12:
        exactly = sample._replace(sessions=needed)
        assert probabilistic_sharpe(exactly, benchmark) == pytest.approx(confidence, abs=1e-6)


@given(st.lists(st.lists(RATIOS, min_size=1, max_size=9), min_size=1, max_size=9))
def test_lots_of_tries_are_one_lot(lots: list[list[float]]) -> None:
    together = tries_of(np.array([ratio for lot in lots for ratio in lot]))
    np.testing.assert_allclose(pooled([tries_of(np.array(lot)) for lot in lots]), together, rtol=1e-9, atol=1e-12)


@given(st.integers(2, 100_000), st.floats(1e-6, 1.0))
def test_more_tries_show_more(number: int, variance: float) -> None:
    fewer, more = (expected_maximum(Tries(n, 0.0, variance * (n - 1) / n, 0.0)) for n in (number, 2 * number))
    assert 0.0 < fewer < more


@pytest.mark.parametrize("number", [10, 100, 1000])
def test_the_expected_maximum_is_that_of_normal_numbers(number: int) -> None:
    drawn = np.random.default_rng(0).normal(0.0, 0.06, (2000, number)).max(axis=1)
    formula = expected_maximum(Tries(number, 0.0, 0.06**2 * (number - 1) / number, 0.0))
    assert formula == pytest.approx(drawn.mean(), rel=0.03)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_all_tries_with_their_own_spread_is_right_for_resembling_ones(share: float) -> None:
    "Why the verdict does not use the number of independent tries: the spread has discounted the resemblance already"
    rng, number = np.random.default_rng(1), 50
    ratios = math.sqrt(share) * rng.normal(size=(4000, 1)) + math.sqrt(1 - share) * rng.normal(size=(4000, number))
    formula = np.mean([expected_maximum(tries_of(row)) for row in ratios])
    assert formula == pytest.approx(ratios.max(axis=1).mean(), abs=0.05)
    worth = round(independent_trials(number, share))
    twice = np.mean([expected_maximum(tries_of(row)._replace(number=worth)) for row in ratios])
    assert share < 0.9 or twice < 0.8 * ratios.max(axis=1).mean()


def test_average_correlation_needs_no_matrix() -> None:
    returns = np.random.default_rng(0).normal(size=(300, 12)) @ np.random.default_rng(1).normal(size=(12, 12))
    idle = np.hstack([returns, np.zeros((300, 3))])  # sets that never trade are nobody's copy
    expected = np.corrcoef(returns.T)[np.triu_indices(12, 1)].mean()
    assert average_correlation(idle) == pytest.approx(expected)
    assert average_correlation(np.zeros((300, 3))) == 1.0


# ---------------------------------------------------------------- overfitting


def slow_logits(returns: np.ndarray, blocks: int) -> list[float]:
    "CSCV as the paper words it: join the blocks, compute each ratio, rank"
    size, logits = len(returns) // blocks, []
    parts = np.split(returns[len(returns) - size * blocks :], blocks)
    for chosen in combinations(range(blocks), blocks // 2):
        inside = np.vstack([parts[n] for n in chosen])
        outside = np.vstack([parts[n] for n in range(blocks) if n not in chosen])
        best = (inside.mean(axis=0) / inside.std(axis=0)).argmax()
        omega = stats.rankdata(outside.mean(axis=0) / outside.std(axis=0))[best] / (returns.shape[1] + 1)
        logits.append(math.log(omega / (1 - omega)))
    return logits


@hypothesis_settings(max_examples=25)
@given(st.sampled_from([4, 6, 8]), st.integers(2, 12), st.integers(0, 999), st.integers(80, 130))
def test_sums_of_blocks_give_the_papers_logits(blocks: int, count: int, seed: int, sessions: int) -> None:
    returns = np.random.default_rng(seed).standard_t(4, (sessions, count)) * 0.01
    found, expected = overfitting_probability(returns, blocks), slow_logits(returns, blocks)
    np.testing.assert_allclose(found.logits, expected, atol=1e-9)
    assert found.probability == np.mean(np.array(expected) <= 1e-12)


def test_strategies_that_never_trade_do_not_break_it() -> None:
    returns = np.hstack([np.random.default_rng(0).normal(0.001, 0.01, (400, 2)), np.zeros((400, 3))])
    assert 0.0 <= overfitting_probability(returns, 8).probability <= 1.0


@pytest.mark.parametrize(("sessions", "count", "blocks"), [(400, 1, 8), (400, 5, 7), (15, 5, 8)])
def test_what_cannot_be_halved_is_refused(sessions: int, count: int, blocks: int) -> None:
    with pytest.raises(InputError, match="needed: an even number of blocks"):
        overfitting_probability(np.zeros((sessions, count)), blocks)


# ---------------------------------------------------------------- bootstrap


def autoregressive(share: float) -> np.ndarray:
    shocks = np.random.default_rng(5).normal(size=1000)
    values = shocks.copy()
    for t in range(1, 1000):
        values[t] += share * values[t - 1]
    return values


ARCH = [(0.0, 2.35900661), (0.1, 3.86367633), (0.5, 11.58644701), (0.9, 42.28314774)]


@pytest.mark.parametrize(("share", "expected"), ARCH)
def test_the_block_length_is_archs(share: float, expected: float) -> None:
    "Figures of `arch.bootstrap.optimal_block_length` 8.0.0, whose memory can be one lag longer than the paper's"
    assert block_length(autoregressive(share)) == pytest.approx(expected, rel=0.03)


def test_the_interval_is_archs() -> None:
    "Figures of `arch.bootstrap.StationaryBootstrap` 8.0.0 with blocks of 8, percentile method, 10,000 resamples"
    low, high = sharpe_interval(autoregressive(0.3) * 0.01 + 0.0005, resamples=4000)
    assert (low / math.sqrt(YEAR), high / math.sqrt(YEAR)) == pytest.approx((-0.0358, 0.1369), abs=0.006)


@given(st.integers(2, 400), st.floats(1, 50), st.integers(0, 99))
def test_resampled_rows_exist(count: int, block: float, seed: int) -> None:
    rows = resampled(count, block, np.random.default_rng(seed))
    assert rows.shape == (count,) and rows.min() >= 0 and rows.max() < count


def test_memory_widens_the_interval() -> None:
    "Returns that hang together hold less information, and only the blocks know it"
    kept = autoregressive(0.5) * 0.01
    shuffled = np.random.default_rng(0).permutation(kept)
    widths = [np.diff(sharpe_interval(values, resamples=500))[0] for values in (kept, shuffled)]
    assert widths[0] > 1.3 * widths[1]


# ---------------------------------------------------------------- the verdict


def curve(returns: np.ndarray) -> pd.Series:
    return pd.Series(100.0 * np.cumprod(1.0 + returns), index=pd.bdate_range("2000-01-03", periods=len(returns)))


def judged(seed: int, strategies: int, skill: float, counted: bool) -> bool:  # skill: Sharpe ratio a year of the excess
    rng = np.random.default_rng(seed)
    hold = rng.normal(0.0, 0.003, 1260)
    tried = hold[:, None] + rng.normal(0.007 * skill / math.sqrt(YEAR), 0.007, (1260, strategies))
    found = excess_sharpes(tried, hold)
    tries = tries_of(found) if counted else ONE_TRY
    return verdict(curve(tried[:, found.argmax()]), curve(hold), 100.0, tries).proven


@pytest.mark.slow
def test_noise_passes_in_at_most_one_of_twenty_and_forgotten_tries_ruin_that() -> None:
    assert np.mean([judged(seed, 1, 0.0, True) for seed in range(60)]) <= 0.05
    assert np.mean([judged(seed, 50, 0.0, True) for seed in range(30)]) <= 0.05
    assert np.mean([judged(seed, 50, 0.0, False) for seed in range(30)]) >= 0.3


def test_skill_passes() -> None:
    "A yearly ratio of 2 over five years, as the only try and as one of twenty strangers of the same skill"
    assert np.mean([judged(seed, 1, 2.0, True) for seed in range(20)]) >= 0.8
    assert np.mean([judged(seed, 20, 2.0, True) for seed in range(20)]) >= 0.8


@pytest.mark.parametrize("case", ["idle", "short", "empty pocket", "falling market"])
def test_what_is_no_evidence(case: str) -> None:
    rng = np.random.default_rng(0)
    good, flat, fall = rng.normal(0.002, 0.01, 1260), np.zeros(1260), rng.normal(-0.002, 0.01, 1260)
    own, hold = {
        "idle": (flat, fall),
        "short": (good[:200], flat[:200]),
        "empty pocket": (good[:1], flat[:1]),
        "falling market": (rng.normal(0.0, 0.001, 1260), fall),
    }[case]
    found = verdict(curve(own), curve(hold), 100.0)
    assert not found.proven and found.text.startswith("no evidence of skill")
    assert verdict(curve(good), curve(flat), 100.0).proven
    assert len(found.table()) == 6 and found.facts()["proven"] is False


# ---------------------------------------------------------------- the ledger

NOW = datetime(2013, 3, 1, tzinfo=UTC)
SEEN = Look("sample", "sip-eod", ("AAPL", "IBM"), date(2004, 1, 2), date(2013, 2, 28))


def test_tries_count_against_whoever_looks_at_the_same_bars(tmp_path: Path) -> None:
    engine, settings = open_store(f"sqlite:///{tmp_path}/store.db"), Settings()
    count_trials(engine, TrialKind.SWEEP, SEEN, settings, np.linspace(-0.02, 0.04, 7), NOW, asked="stops")
    assert trials_counted(engine, SEEN) == pytest.approx(tries_of(np.linspace(-0.02, 0.04, 7)))
    others = {
        SEEN._replace(universe=("IBM", "MSFT")): 7,
        SEEN._replace(universe=("MSFT",)): 1,
        SEEN._replace(feed="iex"): 1,
        SEEN._replace(first=date(2013, 2, 28), last=date(2020, 1, 2)): 7,
        SEEN._replace(first=date(2013, 3, 1), last=date(2020, 1, 2)): 1,
    }
    assert {look: trials_counted(engine, look).number for look in others} == others


def test_a_history_that_grew_by_a_day_is_no_new_try(tmp_path: Path) -> None:
    engine, settings = open_store(f"sqlite:///{tmp_path}/store.db"), Settings()
    tomorrow = SEEN._replace(last=date(2013, 3, 1))
    days = [
        count_trials(engine, TrialKind.BACKTEST, look, settings, np.array([ratio]), NOW)
        for look, ratio in ((SEEN, 0.020), (SEEN, 0.020), (tomorrow, 0.021))
    ]
    assert days == [True, False, False]
    assert not count_trials(engine, TrialKind.SWEEP, SEEN, settings, np.array([]), NOW)


def test_changed_code_is_a_new_try_unless_it_answers_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, counted = open_store(f"sqlite:///{tmp_path}/store.db"), []
    for code, ratio in (("v1", 0.02), ("v2", 0.02), ("v3", 0.03)):
        monkeypatch.setattr("alpha_trader.trials.source_hash", lambda folder, code=code: code)
        counted.append(count_trials(engine, TrialKind.BACKTEST, SEEN, Settings(), np.array([ratio]), NOW))
    assert counted == [True, False, True]


def test_a_placebo_speaks_for_its_own_settings_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, settings = open_store(f"sqlite:///{tmp_path}/store.db"), Settings()
    count_trials(engine, TrialKind.PLACEBO, SEEN, settings, np.zeros(20), NOW, asked="walks", proven=1)
    other = settings.model_copy(update={"signals": settings.signals.model_copy(update={"buy": 0.01})})
    assert placebo_rate(engine, SEEN, settings) == (0.05, 20)
    assert placebo_rate(engine, SEEN, other) == (None, 0)
    assert rules_hash(settings) != rules_hash(other)
    assert trials_counted(engine, SEEN) == ONE_TRY
    monkeypatch.setattr("alpha_trader.trials.source_hash", lambda folder: "newer")
    assert placebo_rate(engine, SEEN, settings) == (None, 0)
