"""The sample's known facts, and the promises of invented history"""

from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trader.bars import adjusted, adjustment
from alpha_trader.domain import InputError
from alpha_trader.samples import (
    SPLITS,
    Events,
    SampleSource,
    SyntheticSource,
    sample_frames,
    sample_panel,
    source_for,
    synthetic_frames,
    synthetic_panel,
    synthetic_symbol,
)
from alpha_trader.sessions import sessions_between
from alpha_trader.settings import Settings

FIRST = dict.fromkeys(("AAPL", "IBM", "MSFT"), date(2000, 3, 1))
FIRST |= {"GOOGL": date(2004, 8, 19), "META": date(2012, 5, 18)}


def test_twelve_thousand_bars():
    assert sum(len(frame) for frame in sample_frames().values()) == 12_154
    assert {symbol: frame.index[0].date() for symbol, frame in sample_frames().items()} == FIRST
    assert {frame.index[-1].date() for frame in sample_frames().values()} == {date(2013, 3, 1)}


@pytest.mark.parametrize("symbol", FIRST)
def test_every_session_is_there_and_none_too_many(symbol):
    days = sample_frames()[symbol].index.date.tolist()
    assert days == sessions_between(FIRST[symbol], date(2013, 3, 1))


@pytest.mark.parametrize("symbol", FIRST)
def test_every_bar_is_whole(symbol):
    frame = sample_frames()[symbol]
    assert not frame.isna().any().any()
    assert (frame[["open", "close"]].max(axis=1) <= frame["high"]).all()
    assert (frame[["open", "close"]].min(axis=1) >= frame["low"]).all()
    assert (frame[["low", "volume"]] > 0).all().all()


def test_recorded_splits_are_where_the_raw_price_halves():
    for symbol, frame in sample_frames().items():
        halved = frame.index[(frame["open"] / frame["close"].shift(1)).between(0.49, 0.52)]
        assert set(halved.date) == {day for name, day in SPLITS if name == symbol}
        assert set(frame.index[frame["split"] != 1].date) == set(halved.date)


def test_the_crash_of_2000_is_there():
    apple = sample_frames()["AAPL"]["close"]
    assert apple["2000-09-29"] / apple["2000-09-28"] - 1 == pytest.approx(-0.52, abs=0.005)


def test_dividends_are_whole_cents_and_come_every_quarter():
    paid = {symbol: frame["dividend"][frame["dividend"] > 0] for symbol, frame in sample_frames().items()}
    counts = {symbol: len(dates) for symbol, dates in paid.items()}
    assert counts == {"AAPL": 3, "GOOGL": 0, "IBM": 52, "META": 0, "MSFT": 37}
    for dates in paid.values():
        np.testing.assert_allclose(dates * 100, np.round(dates * 100), atol=1e-9)
    assert pd.Series(paid["IBM"].index).diff().dropna().dt.days.between(85, 98).all()
    assert paid["MSFT"].index[0] == pd.Timestamp("2003-02-19")  # the first one ever: 0.16 in shares before the split
    assert paid["MSFT"].iloc[0] == 0.08
    assert paid["MSFT"]["2004-11-15"] == 3.08  # the special one of 3.00 and the regular one of 0.08
    assert paid["IBM"]["2012-11-07"] == 0.85
    assert paid["AAPL"].index[0] == pd.Timestamp("2012-08-09") and set(paid["AAPL"]) == {2.65}


def test_a_long_history_adjusts_the_same_at_every_cut():
    panel = sample_panel()
    whole = adjusted(panel)
    for row in (0, 78, 1256, 1257, 3112, 3269):
        np.testing.assert_array_equal(adjusted(panel.upto(panel.sessions[row].item())), whole[:, : row + 1])


def test_asking_the_sample():
    source = SampleSource()
    frames = source.bars(["IBM"], date(2012, 12, 24), date(2012, 12, 26))
    assert frames["IBM"].index.day.tolist() == [24, 26]
    with pytest.raises(InputError, match="FB: not on offer, there is AAPL, GOOGL, IBM, META, MSFT"):
        source.bars(["FB"], None, None)


# --- invented history -------------------------------------------------------------------------------------------------

small = {"symbols": st.integers(1, 6), "sessions": st.integers(2, 60), "seed": st.integers(0, 2**32)}


@settings(max_examples=30)
@given(**small)
def test_invented_bars_could_have_been_printed(symbols, sessions, seed):
    panel = synthetic_panel(symbols, sessions, seed)
    assert panel.close.shape == (sessions, symbols) and np.isfinite(panel.values).all()
    assert (panel.high >= np.maximum(panel.open, panel.close)).all()
    assert (panel.low <= np.minimum(panel.open, panel.close)).all()
    assert (panel.low >= 0.01).all() and (panel.volume >= 1).all()
    np.testing.assert_array_equal(np.round(panel.values[:4], 2), panel.values[:4])
    np.testing.assert_array_equal(np.round(panel.volume), panel.volume)


@settings(max_examples=20)
@given(**small)
def test_more_symbols_and_more_sessions_change_no_history(symbols, sessions, seed):
    fewer, more = synthetic_frames(symbols, sessions, seed), synthetic_frames(symbols + 2, sessions + 30, seed)
    for symbol, frame in fewer.items():
        pd.testing.assert_frame_equal(more[symbol].iloc[:sessions], frame, check_exact=True)


def test_seeds_and_symbols_differ():
    a, b = synthetic_panel(seed=1, sessions=50), synthetic_panel(seed=2, sessions=50)
    assert a.hash != b.hash and a.hash == synthetic_panel(seed=1, sessions=50).hash
    assert len({tuple(column) for column in a.close.T}) == 12


def test_the_names_sort_and_never_repeat():
    names = [synthetic_symbol(number) for number in range(1000)]
    assert len(set(names)) == 1000
    assert synthetic_panel(symbols=30, sessions=2).symbols == tuple(sorted(names[:30]))


def test_without_drift_nothing_is_earned_on_average():
    "240 symbol-years: the mean daily return is noise around zero, and a drift is found"
    def mean(drift: float) -> float:
        close = synthetic_panel(symbols=40, sessions=1500, drift=drift).close
        return float((close[1:] / close[:-1] - 1).mean())

    assert abs(mean(0.0)) < 0.0005
    assert mean(0.002) - mean(0.0) == pytest.approx(0.002, rel=0.05)


def test_yesterday_says_nothing_about_tomorrow():
    close = synthetic_panel(symbols=40, sessions=1500).close
    returns = np.diff(np.log(close), axis=0)
    own = returns - returns.mean(axis=1, keepdims=True)
    correlation = np.corrcoef(own[1:].ravel(), own[:-1].ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(own.size)


def test_symbols_follow_a_market():
    returns = np.diff(np.log(synthetic_panel(sessions=1500).close), axis=0)
    correlations = np.corrcoef(returns.T)[np.triu_indices(12, 1)]
    assert correlations.min() > 0.15 and correlations.max() < 0.9
    assert returns.std(axis=0).min() > 0.008 and returns.std(axis=0).max() < 0.04


def test_events_move_the_price_and_not_the_wealth():
    events = Events(splits=(("SYNA", 10, 2.0),), dividends=(("SYNA", 20, 1.5), ("SYNB", 10, 0.5)))
    plain, eventful = synthetic_panel(symbols=2, sessions=40), synthetic_panel(symbols=2, sessions=40, events=events)
    np.testing.assert_allclose(adjusted(eventful)[3], plain.close, rtol=2e-3)  # cents were rounded
    assert adjustment(eventful)[-1, 0] == pytest.approx(2 / (1 - 1.5 / eventful.close[19, 0]))
    np.testing.assert_allclose(adjusted(eventful)[4], plain.volume, rtol=1e-5)
    assert eventful.volume[10:, 0].sum() == pytest.approx(2 * plain.volume[10:, 0].sum(), rel=1e-5)


def test_source_for_follows_the_settings(tmp_path):
    assert isinstance(source_for(Settings()), SampleSource)
    synthetic = {"source": "synthetic", "synthetic_symbols": 3, "synthetic_sessions": 100, "synthetic_seed": 5}
    source = source_for(Settings(data=synthetic))
    assert isinstance(source, SyntheticSource)
    assert (source.symbols(), source.feed, len(source.frames["SYNA"])) == (("SYNA", "SYNB", "SYNC"), "seed-5", 100)
    folder = source_for(Settings(root=tmp_path, data={"source": "folder", "folder": "mine"}))
    assert folder.folder == tmp_path / "mine"
