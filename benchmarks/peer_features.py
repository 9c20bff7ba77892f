"""The 25 features of the shipped set, as other libraries compute them: levels as ratios to the close"""

from typing import Any

import numpy as np
import pandas as pd

Table = dict[str, Any]  # name → array, series or frame


def against_close(raw: Table, close: Any) -> Table:
    "Turn levels into ratios, as the models read them"
    found = dict(raw)
    for name in ("sma_5", "sma_20", "sma_60", "ema_12", "ema_26"):
        found[name] = raw[name] / close - 1
    for name in ("macd", "macd_signal", "macd_diff", "atr_14"):
        found[name] = raw[name] / close
    return found


def with_crosses(raw: Table, close: Any, upper: Any, lower: Any) -> Table:
    "What follows from the averages and bands by division"
    raw["sma_cross_5_20"] = raw["sma_5"] / raw["sma_20"] - 1
    raw["ema_cross_12_26"] = raw["ema_12"] / raw["ema_26"] - 1
    raw["price_vs_bb_upper"], raw["price_vs_bb_lower"] = close / upper - 1, close / lower - 1
    return against_close(raw, close)


def ta_features(frame: pd.DataFrame) -> Table:
    "One symbol by the `ta` library; by pandas what `ta` does not have"
    import ta

    high, low, close, volume = (frame[name] for name in ("high", "low", "close", "volume"))
    macd, bands = ta.trend.MACD(close), ta.volatility.BollingerBands(close)
    stochastic = ta.momentum.StochasticOscillator(high, low, close)
    raw = {f"sma_{window}": ta.trend.sma_indicator(close, window) for window in (5, 20, 60)}
    raw |= {f"ema_{window}": ta.trend.ema_indicator(close, window) for window in (12, 26)}
    raw |= {"macd": macd.macd(), "macd_signal": macd.macd_signal(), "macd_diff": macd.macd_diff()}
    raw |= {"rsi_14": ta.momentum.rsi(close), "rsi_14_simple": simple_rsi(close)}
    raw |= {"stoch_k": stochastic.stoch(), "stoch_d": stochastic.stoch_signal()}
    raw |= {"bb_width": bands.bollinger_wband() / 100, "bb_pband": bands.bollinger_pband()}
    raw |= {"atr_14": ta.volatility.average_true_range(high, low, close)}
    return with_crosses(raw | by_pandas(close, volume), close, bands.bollinger_hband(), bands.bollinger_lband())


def simple_rsi(close: Any) -> Any:
    "RSI from plain sums over 14 bars; a series or a frame"
    move = close.diff()
    up, down = move.clip(lower=0).rolling(14).sum(), (-move).clip(lower=0).rolling(14).sum()
    return 100 * up / (up + down)


def by_pandas(close: Any, volume: Any) -> Table:
    "Returns, volatility, momentum and volume; a series or a frame"
    found = {f"return_{days}d": close / close.shift(days) - 1 for days in (1, 5, 20)}
    found |= {
        "volatility_20d": found["return_1d"].rolling(20).std(),
        "volume_ratio": volume / volume.rolling(20).mean(),
    }
    return found | {"momentum_score": close / close.rolling(10).mean() - 1}


def pandas_features(high: pd.DataFrame, low: pd.DataFrame, close: pd.DataFrame, volume: pd.DataFrame) -> Table:
    "All symbols at once by pandas frames [T, N]"

    def ema(values: pd.DataFrame, **span: Any) -> pd.DataFrame:
        return values.ewm(adjust=False, **span).mean()

    raw: Table = {f"sma_{window}": close.rolling(window).mean() for window in (5, 20, 60)}
    raw |= {"ema_12": ema(close, span=12), "ema_26": ema(close, span=26)}
    raw["macd"] = raw["ema_12"] - raw["ema_26"]
    raw["macd_signal"] = ema(raw["macd"], span=9)
    raw["macd_diff"] = raw["macd"] - raw["macd_signal"]
    move = close.diff()
    up, down = ema(move.clip(lower=0), alpha=1 / 14), ema((-move).clip(lower=0), alpha=1 / 14)
    raw |= {"rsi_14": 100 * up / (up + down), "rsi_14_simple": simple_rsi(close)}
    lowest, highest = low.rolling(14).min(), high.rolling(14).max()
    raw["stoch_k"] = 100 * (close - lowest) / (highest - lowest)
    raw["stoch_d"] = raw["stoch_k"].rolling(3).mean()
    sigma = close.rolling(20).std(ddof=0)
    upper, lower = raw["sma_20"] + 2 * sigma, raw["sma_20"] - 2 * sigma
    raw |= {"bb_width": (upper - lower) / raw["sma_20"], "bb_pband": (close - lower) / (upper - lower)}
    before = close.shift(1)
    raw["atr_14"] = ema(np.maximum(high, before) - np.minimum(low, before), alpha=1 / 14)
    return with_crosses(raw | by_pandas(close, volume), close, upper, lower)


def polars_features(tall: Any) -> Any:
    "All symbols by polars: a tall frame with the columns symbol, high, low, close, volume; answers 25 columns more"
    import polars as pl

    high, low, close, volume = pl.col("high"), pl.col("low"), pl.col("close"), pl.col("volume")

    def ema(values: Any, **span: Any) -> Any:
        return values.ewm_mean(adjust=False, **span)

    move, before = close.diff(), close.shift(1)
    up, down = move.clip(lower_bound=0), (-move).clip(lower_bound=0)
    rising, falling = ema(up, alpha=1 / 14), ema(down, alpha=1 / 14)
    up_14, down_14 = up.rolling_sum(14), down.rolling_sum(14)
    lowest, highest = low.rolling_min(14), high.rolling_max(14)
    raw: Table = {f"sma_{window}": close.rolling_mean(window) for window in (5, 20, 60)}
    raw |= {"ema_12": ema(close, span=12), "ema_26": ema(close, span=26)}
    raw["macd"] = raw["ema_12"] - raw["ema_26"]
    raw["macd_signal"] = ema(raw["macd"], span=9)
    raw["macd_diff"] = raw["macd"] - raw["macd_signal"]
    raw |= {"rsi_14": 100 * rising / (rising + falling), "rsi_14_simple": 100 * up_14 / (up_14 + down_14)}
    raw["stoch_k"] = 100 * (close - lowest) / (highest - lowest)
    raw["stoch_d"] = raw["stoch_k"].rolling_mean(3)
    sigma = close.rolling_std(20, ddof=0)
    upper, lower = raw["sma_20"] + 2 * sigma, raw["sma_20"] - 2 * sigma
    raw |= {"bb_width": (upper - lower) / raw["sma_20"], "bb_pband": (close - lower) / (upper - lower)}
    raw["atr_14"] = ema(pl.max_horizontal(high, before) - pl.min_horizontal(low, before), alpha=1 / 14)
    raw |= {f"return_{days}d": close / close.shift(days) - 1 for days in (1, 5, 20)}
    raw |= {"volatility_20d": raw["return_1d"].rolling_std(20), "volume_ratio": volume / volume.rolling_mean(20)}
    raw["momentum_score"] = close / close.rolling_mean(10) - 1
    columns = with_crosses(raw, close, upper, lower)
    return tall.with_columns(**{name: column.over("symbol") for name, column in columns.items()})


def talib_features(high: np.ndarray, low: np.ndarray, close: np.ndarray, volume: np.ndarray) -> Table:
    "One symbol by TA-Lib, by NumPy what TA-Lib does not have"
    import talib

    raw: Table = {f"sma_{window}": talib.SMA(close, window) for window in (5, 20, 60)}
    raw |= {"ema_12": talib.EMA(close, 12), "ema_26": talib.EMA(close, 26)}
    raw |= dict(zip(("macd", "macd_signal", "macd_diff"), talib.MACD(close, 12, 26, 9), strict=True))
    move = np.diff(close, prepend=close[:1])
    up, down = talib.SUM(np.maximum(move, 0), 14), talib.SUM(np.maximum(-move, 0), 14)
    raw |= {"rsi_14": talib.RSI(close, 14), "rsi_14_simple": 100 * up / (up + down)}
    stochastic = talib.STOCHF(high, low, close, fastk_period=14, fastd_period=3)
    raw |= dict(zip(("stoch_k", "stoch_d"), stochastic, strict=True))
    upper, middle, lower = talib.BBANDS(close, 20, 2, 2)
    raw |= {"bb_width": (upper - lower) / middle, "bb_pband": (close - lower) / (upper - lower)}
    raw |= {"atr_14": talib.ATR(high, low, close, 14), "volume_ratio": volume / talib.SMA(volume, 20)}
    raw |= {f"return_{days}d": talib.ROCP(close, days) for days in (1, 5, 20)}
    raw["volatility_20d"] = talib.STDDEV(raw["return_1d"], 20) * np.sqrt(20 / 19)
    raw["momentum_score"] = close / talib.SMA(close, 10) - 1
    return with_crosses(raw, close, upper, lower)
