"""Labels: what a page cannot teach about `06_labels`: any panel, any cut, the old systems' defects"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trader.domain import InputError
from alpha_trader.labels import clip_apply, clip_fit, forward_return, open_to_open, purge
from alpha_trader.samples import Events, sample_panel, synthetic_panel

HORIZONS = st.integers(min_value=1, max_value=12)


def old_stacked_shift(opens: np.ndarray, horizon: int) -> np.ndarray:
    "DB-11: symbols stacked under each other, the whole column shifted"
    stacked = pd.Series(opens.T.ravel())
    labels = stacked.shift(-purge(horizon)) / stacked.shift(-1) - 1
    return labels.to_numpy().reshape(opens.shape[1], len(opens)).T


def crosses_symbols(label, opens: np.ndarray, horizon: int) -> bool:
    "Whether a symbol's labels change when another symbol's prices do"
    changed = opens.copy()
    changed[:, 1:] *= 7.0
    return not np.array_equal(label(opens, horizon)[:, 0], label(changed, horizon)[:, 0], equal_nan=True)


def test_db_11_a_label_never_sees_another_symbol() -> None:
    opens = synthetic_panel(symbols=4, sessions=100).open
    assert not crosses_symbols(open_to_open, opens, 5)
    assert crosses_symbols(old_stacked_shift, opens, 5)  # the old rule fails this very check


def test_db_11_forty_false_labels_in_nine_symbols() -> None:
    levels = np.outer(np.ones(60), 10.0 * 3.0 ** np.arange(9))  # nine symbols that never move
    stacked = pd.Series(levels.T.ravel())
    assert int((stacked.shift(-5) / stacked - 1).abs().gt(0.5).sum()) == 40
    assert np.nanmax(np.abs(open_to_open(levels, 5))) == 0.0


@settings(max_examples=60)
@given(rows=st.integers(1, 40), symbols=st.integers(1, 4), horizon=HORIZONS, seed=st.integers(0, 9999))
def test_every_label_is_its_two_opens_and_nothing_else(rows: int, symbols: int, horizon: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    opens = rng.uniform(1, 500, size=(rows, symbols))
    opens[rng.random(opens.shape) < 0.1] = np.nan
    labels = open_to_open(opens, horizon)
    for row in range(rows):
        for column in range(symbols):
            end = row + purge(horizon)
            expected = opens[end, column] / opens[row + 1, column] - 1 if end < rows else np.nan
            assert np.array_equal(labels[row, column], expected, equal_nan=True)


@settings(max_examples=30)
@given(cut=st.integers(1, 119), horizon=HORIZONS)
def test_cutting_off_the_future_removes_labels_and_changes_none(cut: int, horizon: int) -> None:
    panel = synthetic_panel(symbols=3, sessions=120, events=Events(splits=(("SYNA", 60, 2.0),)))
    full, cut_off = forward_return(panel, horizon), forward_return(panel.upto(panel.sessions[cut - 1].item()), horizon)
    known = max(cut - purge(horizon), 0)
    assert np.array_equal(cut_off[:known], full[:known], equal_nan=True)
    assert np.isnan(cut_off[known:]).all()


def test_a_split_and_a_dividend_earn_nothing_by_themselves() -> None:
    events = Events(splits=(("SYNA", 50, 4.0),), dividends=(("SYNB", 50, 1.0),), halts=(("SYNC", 50, 2),))
    quiet, eventful = (
        forward_return(synthetic_panel(symbols=3, sessions=100, events=chosen), 5) for chosen in (Events(), events)
    )
    assert np.nanmax(np.abs(quiet[:, 0] - eventful[:, 0])) < 2e-3  # cents are coarser after a 4:1 split
    assert np.nanmax(np.abs(quiet[:, 1] - eventful[:, 1])) < 2e-3
    missing = np.isnan(eventful[:, 2]) & ~np.isnan(quiet[:, 2])
    assert np.flatnonzero(missing).tolist() == [44, 45, 49, 50]  # fill or end falls into the halt


def test_real_splits_of_the_sample_are_no_returns() -> None:
    panel = sample_panel()
    labels = forward_return(panel, 5)
    row = panel.row(pd.Timestamp("2005-02-25").date())  # AAPL splits 2:1 on the next session
    raw = open_to_open(panel.open, 5)
    apple = panel.symbols.index("AAPL")
    assert raw[row - 5, apple] < -0.4 < labels[row - 5, apple] < 0.4
    crash = panel.row(pd.Timestamp("2000-09-27").date())  # bought on the 28th, −52 % on the 29th is real
    assert labels[crash, apple] < -0.4


@settings(max_examples=60)
@given(seed=st.integers(0, 9999), share=st.floats(0.0, 0.49), later=st.floats(-0.99, 50.0))
def test_clip_limits_know_only_their_training_rows(seed: int, share: float, later: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.normal(0, 0.03, size=(80, 3))
    labels[rng.random(labels.shape) < 0.2] = np.nan
    limits = clip_fit(labels[:60], share)
    labels[60:] = later
    assert all(np.array_equal(a, b) for a, b in zip(clip_fit(labels[:60], share), limits, strict=True))
    clipped = clip_apply(labels, limits)
    assert np.array_equal(np.isnan(clipped), np.isnan(labels))
    assert (clipped[np.isfinite(clipped)] <= np.broadcast_to(limits[1], labels.shape)[np.isfinite(clipped)]).all()
    assert (clipped[np.isfinite(clipped)] >= np.broadcast_to(limits[0], labels.shape)[np.isfinite(clipped)]).all()


def test_da_5_limits_fitted_on_everything_move_with_the_future() -> None:
    labels = np.random.default_rng(0).normal(0, 0.02, size=(500, 1))
    crash = labels.copy()
    crash[400:] = -0.5
    assert np.array_equal(clip_fit(labels[:400], 0.02)[0], clip_fit(crash[:400], 0.02)[0])
    assert not np.array_equal(clip_fit(labels, 0.02)[0], clip_fit(crash, 0.02)[0])  # the old rule


@pytest.mark.parametrize("horizon", [0, -1])
def test_a_horizon_below_one_is_refused(horizon: int) -> None:
    with pytest.raises(InputError, match="at least 1 session"):
        open_to_open(np.ones((5, 1)), horizon)


@pytest.mark.parametrize("share", [-0.01, 0.5, float("nan")])
def test_a_clip_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="label clip"):
        clip_fit(np.ones((5, 1)), share)
