"""Features against the `ta` library, pandas and the promises of the notebook (systems.md B-03, A-04)"""

from dataclasses import replace
from datetime import date

import numba
import numpy as np
import pandas as pd
import pytest
import ta

from alpha_trader import indicators as steps
from alpha_trader.bars import Panel, adjusted
from alpha_trader.domain import InputError
from alpha_trader.features import (
    FEATURES,
    REGISTERED,
    FeatureState,
    feature,
    features,
    indicators,
    shipped_features,
    volatility,
    walk_with_gaps,
)
from alpha_trader.indicators import NAMES, WARM_UP
from alpha_trader.samples import Events, sample_panel, synthetic_panel


def ta_indicators(frame: pd.DataFrame) -> dict[str, pd.Series]:
    "The indicators of B-03 as `ta` computes them; from pandas what `ta` does not have"
    high, low, close, volume = frame["high"], frame["low"], frame["close"], frame["volume"]
    sma = {window: ta.trend.sma_indicator(close, window) for window in (5, 20, 60)}
    ema = {window: ta.trend.ema_indicator(close, window) for window in (12, 26)}
    macd = ta.trend.MACD(close)
    stochastic = ta.momentum.StochasticOscillator(high, low, close)
    bands = ta.volatility.BollingerBands(close)
    atr = ta.volatility.average_true_range(high, low, close)
    found = {f"sma_{window}": mean for window, mean in sma.items()}
    found |= {f"ema_{window}": mean for window, mean in ema.items()}
    found |= {"macd": macd.macd(), "macd_signal": macd.macd_signal(), "macd_diff": macd.macd_diff()}
    found |= {"rsi_14": ta.momentum.rsi(close), "stoch_k": stochastic.stoch(), "stoch_d": stochastic.stoch_signal()}
    found |= {"bb_upper": bands.bollinger_hband(), "bb_lower": bands.bollinger_lband()}
    found |= {"bb_middle": bands.bollinger_mavg(), "bb_pband": bands.bollinger_pband()}
    found |= {"bb_width": bands.bollinger_wband() / 100, "atr_14": atr.where(np.arange(len(atr)) >= 13)}
    found |= {"volume_ratio": volume / volume.rolling(20).mean()}
    found |= {f"return_{days}d": close.pct_change(days) for days in (1, 5, 20)}
    found |= {"sma_cross_5_20": sma[5] / sma[20] - 1, "ema_cross_12_26": ema[12] / ema[26] - 1}
    found |= {f"price_vs_bb_{side}": close / found[f"bb_{side}"] - 1 for side in ("upper", "lower")}
    return found


def a04_indicators(frame: pd.DataFrame) -> dict[str, pd.Series]:
    "What System A has and B has not, by pandas"
    close = frame["close"]
    move = close.diff()
    up, down = move.clip(lower=0).rolling(14).sum(), (-move).clip(lower=0).rolling(14).sum()
    return {
        "rsi_14_simple": 100 * up / (up + down),
        "volatility_20d": close.pct_change().rolling(20).std(),
        "momentum_score": close / close.rolling(10).mean() - 1,
    }


def eventful() -> Panel:
    "Eight invented symbols with splits, dividends, halts, a late listing and a short history"
    events = Events(
        splits=(("SYNA", 100, 7.0), ("SYNB", 200, 0.1)),
        dividends=(("SYNA", 50, 0.4), ("SYNC", 150, 1.0)),
        halts=(("SYNC", 70, 3), ("SYND", 10, 1), ("SYND", 199, 30)),
        listings=(("SYNE", 120), ("SYNF", 250)),
    )
    return synthetic_panel(symbols=8, sessions=300, seed=11, events=events)


PANELS = {"sample": sample_panel, "synthetic": eventful}


@pytest.fixture(params=PANELS, scope="module")
def panel(request) -> Panel:
    return PANELS[request.param]()


def each_symbol(panel: Panel):
    "Column, rows with a bar, and the adjusted bars on the symbol's own clock"
    values = adjusted(panel)
    for column in range(len(panel.symbols)):
        (rows,) = np.nonzero(~np.isnan(panel.close[:, column]))
        fields = dict(zip(("open", "high", "low", "close", "volume"), values[:, rows, column], strict=True))
        yield column, rows, pd.DataFrame(fields)


def test_indicators_equal_ta(panel):
    "B-03 and A-04: every raw indicator, within 1e-9 relative or absolute, NaN in the same places"
    ours = indicators(panel)
    compared = set()
    for column, rows, frame in each_symbol(panel):
        for name, expected in (ta_indicators(frame) | a04_indicators(frame)).items():
            found = ours[name][rows, column]
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9, err_msg=f"{panel.symbols[column]} {name}")
            compared.add(name)
            assert np.isnan(np.delete(ours[name][:, column], rows)).all()
    assert compared == set(ours)
    assert len(compared - {"rsi_14_simple", "volatility_20d", "momentum_score"}) == 25


def test_warm_up_is_the_first_answer(panel):
    "WARM_UP says at which bar each answer begins"
    ours = indicators(panel)
    for column, rows, frame in each_symbol(panel):
        for name, bars in WARM_UP.items():
            answered = np.flatnonzero(np.isfinite(ours[name][rows, column]))
            assert (answered[0] if len(answered) else len(frame)) == min(bars - 1, len(frame)), name


def test_features_are_levels_against_the_close(panel):
    "Levels divided by the close; ratios and points as they are"
    raw, close = indicators(panel), adjusted(panel)[3]
    shipped = features(panel, min_history=1)
    for name in FEATURES:
        expected = raw[name]
        if name.startswith(("sma_", "ema_")) and "cross" not in name:
            expected = raw[name] / close - 1
        elif name.startswith("macd") or name == "atr_14":
            expected = raw[name] / close
        np.testing.assert_allclose(shipped[name], expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_batch_is_step(panel):
    "Bar by bar gives the rows of the whole history, bit for bit, on each symbol's own clock"
    batch = features(panel)
    values = adjusted(panel)
    for column in range(len(panel.symbols)):
        state = FeatureState(1)
        for row in np.flatnonzero(~np.isnan(panel.close[:, column])):
            np.testing.assert_array_equal(state.update(values[:, row, [column]])[0], batch.values[row, column])


def test_blocks_threads_and_company_change_no_digit():
    "A symbol alone, among others, and among 700 on two threads"
    alone = eventful()
    wide = [np.tile(array, 90) for array in (alone.values, alone.splits, alone.dividends)]
    names = tuple(f"X{number:03d}" for number in range(720))
    crowd = replace(alone, symbols=names, values=wide[0], splits=wide[1], dividends=wide[2])
    expected = np.tile(features(alone).values, (1, 90, 1))
    np.testing.assert_array_equal(features(crowd, threads=2).values, expected)
    np.testing.assert_array_equal(features(crowd, threads=1).values, expected)
    found = np.empty_like(expected)
    for start in range(0, 720, 45):
        walk_with_gaps(adjusted(crowd), start, start + 45, 60, found)
    np.testing.assert_array_equal(found, expected)


def test_wide_and_narrow_sheets_agree():
    "Spare columns, eights and what is left of them: the widths around a multiple of 64 give the same digits"
    panel = synthetic_panel(symbols=130, sessions=80, seed=2)
    expected = features(panel, min_history=1).values
    for width in (1, 7, 63, 64, 65, 128):
        found = np.empty_like(expected)
        for start in range(0, 130, width):
            walk_with_gaps(panel.values, start, min(start + width, 130), 1, found)
        np.testing.assert_array_equal(found, expected)
    raw = indicators(panel)
    for name, levels in indicators(replace(panel, symbols=panel.symbols[:64], **narrow(panel, 64))).items():
        np.testing.assert_array_equal(levels, raw[name][:, :64], err_msg=name)


def narrow(panel: Panel, width: int) -> dict[str, np.ndarray]:
    "Arrays of the first symbols of a panel"
    return {
        "values": np.ascontiguousarray(panel.values[:, :, :width]),
        "splits": panel.splits[:, :width],
        "dividends": panel.dividends[:, :width],
    }


LOOPS = (
    *("simple_averages", "bands", "exponential_averages", "returns", "volatility_20", "wilder_strength"),
    *("simple_strength", "highest_14", "lowest_14", "stochastic", "average_range", "relative_volume", "relative"),
)


@pytest.mark.parametrize("name", LOOPS)
def test_loops_handle_several_symbols_at_once(name):
    "The compiler turned the loop into one over vectors; it gives up silently when a loop touches too many rows"
    loop = numba.njit(getattr(steps, name).py_func, error_model="numpy")
    arguments = [steps.ONE] if name in ("highest_14", "lowest_14") else []
    loop(np.ones((int(steps.ROWS), 100)), 30, *arguments)
    assert any("vector.body" in code for code in loop.inspect_llvm().values())


def test_windows_forget_exactly():
    "A window does not remember what came before it: the same last bars, the same answers, bit for bit"
    panel = synthetic_panel(symbols=3, sessions=400, seed=5)
    late = panel.between(panel.sessions[340].item(), panel.sessions[-1].item())
    wild = replace(panel, values=panel.values * np.where(np.arange(400) < 340, 1e6, 1.0)[:, None])
    fading = {"ema_12", "ema_26", "macd", "macd_signal", "macd_diff", "rsi_14", "atr_14", "ema_cross_12_26"}
    for name in set(NAMES) - fading:
        expected = indicators(late)[name][-1]
        np.testing.assert_array_equal(indicators(panel)[name][-1], expected, err_msg=name)
        np.testing.assert_array_equal(indicators(wild)[name][-1], expected, err_msg=name)


def test_a_share_that_does_not_move():
    "Equal closes: exact zeros, no noise divided by noise"
    panel = synthetic_panel(symbols=2, sessions=120, seed=1)
    still = panel.values.copy()
    still[:4, 40:, 0] = 17.3
    found = indicators(replace(panel, values=still))
    zero = ("return_1d", "return_20d", "volatility_20d", "bb_width", "sma_cross_5_20", "momentum_score")
    assert [found[name][-1, 0] for name in zero] == [0.0] * len(zero)
    assert np.isnan(found["bb_pband"][-1, 0]) and np.isnan(found["stoch_k"][-1, 0])
    assert found["rsi_14_simple"][-1, 0] == 100.0


def float32_steps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    "How many float32 numbers lie between two arrays of them, element by element"
    ordered = [x.astype(np.float32).view(np.int32).astype(np.int64) for x in (a, b)]
    ordered = [np.where(x < 0, -(x & 0x7FFFFFFF), x) for x in ordered]
    return np.abs(ordered[0] - ordered[1])


def restated(panel: Panel, ratio: float) -> Panel:
    "The same history in other shares"
    values = panel.values.copy()
    values[:4] /= ratio
    values[4] *= ratio
    return replace(panel, values=values, dividends=panel.dividends / ratio)


def with_split(panel: Panel, row: int, ratio: float) -> Panel:
    "The same history with a recorded split before one row"
    values, splits, dividends = panel.values.copy(), panel.splits.copy(), panel.dividends.copy()
    values[:4, row:] /= ratio
    values[4, row:] *= ratio
    splits[row] *= ratio
    dividends[row:] /= ratio
    return replace(panel, values=values, splits=splits, dividends=dividends)


CHANGES = {"scale": lambda panel: restated(panel, 7.0), "split": lambda panel: with_split(panel, 90, 7.0)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_shares_of_another_size_change_nothing(panel, change):
    "Prices × 1/7 and volume × 7, told for all history or as a recorded split"
    before, after = features(panel).values, features(change(panel)).values
    np.testing.assert_array_equal(np.isnan(after), np.isnan(before))
    there = ~np.isnan(before)
    steps = float32_steps(before[there], after[there])
    assert steps.max() <= 1
    assert np.count_nonzero(steps) <= 1


def test_min_history_and_missing_bars(panel):
    "No features without a bar, nor before `min_history` of them"
    for min_history in (60, 100):
        values = features(panel, min_history=min_history).values
        traded = ~np.isnan(panel.close)
        ready = traded & (np.cumsum(traded, axis=0) >= min_history)
        assert np.isnan(values[~ready]).all()
        assert np.isfinite(values[ready]).all()


def test_volatility_is_on_the_symbols_own_clock(panel):
    "A-13: the same number as the feature, and pandas' number"
    daily = volatility(panel)
    for column, rows, frame in each_symbol(panel):
        expected = frame["close"].pct_change().rolling(20).std()
        np.testing.assert_allclose(daily[rows, column], expected, rtol=1e-9, atol=1e-12)
        assert np.isnan(np.delete(daily[:, column], rows)).all()


def test_own_feature_and_wrong_names():
    "A registered function is a column; a wrong name, a taken name or a wrong shape is one clear line"
    panel = eventful()

    @feature
    def day_of_week(panel: Panel) -> np.ndarray:
        return np.repeat(panel.index.dayofweek.to_numpy()[:, None], len(panel.symbols), axis=1)

    @feature
    def wrong_shape(panel: Panel) -> np.ndarray:
        return panel.close[0]

    try:
        chosen = features(panel, ("shipped", "day_of_week"))
        assert chosen.names == (*FEATURES, "day_of_week")
        assert chosen.values.flags.c_contiguous and chosen.values.dtype == np.float32
        np.testing.assert_array_equal(chosen.values[..., :-1], features(panel).values)
        assert chosen["day_of_week"][-1, 0] == panel.index[-1].dayofweek
        with pytest.raises(InputError, match="wrong_shape: answered with shape"):
            features(panel, ["wrong_shape"])
        with pytest.raises(InputError, match=r"nonsense: unknown; known are shipped, sma_5.*day_of_week"):
            features(panel, ["nonsense"])
    finally:
        REGISTERED.clear()


def test_prefix_invariance(panel):
    "Cutting off the future changes no feature of the past, bit for bit"
    whole = features(panel).values
    for row in (61, len(panel.index) // 2, len(panel.index) - 2):
        day: date = panel.sessions[row].item()
        np.testing.assert_array_equal(features(panel.upto(day)).values, whole[: row + 1])


def test_features_fill_the_array_they_are_given():
    "The caller's array is the answer: nothing is copied"
    panel = eventful()
    out = np.empty((*panel.close.shape, len(FEATURES)), np.float32)
    assert shipped_features(panel, 60, out) is out
    np.testing.assert_array_equal(out, features(panel).values)
