"""Splits: the properties of `06a_splits` on any calendar, and the split that DB-12 describes"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trader.domain import InputError
from alpha_trader.labels import open_to_open, purge
from alpha_trader.splits import Fold, fold_table, gap, period_of, trainable_rows, walk_forward

REFITS = st.sampled_from(["weekly", "monthly", "yearly"])


@st.composite
def calendars(draw: st.DrawFn) -> np.ndarray:  # datetime64[D][T]
    "Business days with holes: any exchange, any listing history"
    start = draw(st.dates(pd.Timestamp("1995-01-01").date(), pd.Timestamp("2015-01-01").date()))
    days = pd.bdate_range(start, periods=draw(st.integers(1, 900))).to_numpy().astype("datetime64[D]")
    kept = np.random.default_rng(draw(st.integers(0, 9999))).random(len(days)) > draw(st.sampled_from([0.0, 0.05, 0.5]))
    return days[kept]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, int, str, int, int, list[Fold]]:
    sessions, horizon, refit = draw(calendars()), draw(st.integers(1, 20)), draw(REFITS)
    least, embargo = draw(st.integers(1, 300)), draw(st.integers(0, 10))
    return sessions, horizon, refit, least, embargo, walk_forward(sessions, horizon, refit, least, embargo)


@settings(max_examples=150)
@given(cases())
def test_no_training_label_is_known_only_after_the_first_prediction(case) -> None:
    _, horizon, _, _, embargo, folds = case
    for fold in folds:
        known_at = fold.train_stop - 1 + purge(horizon)  # row whose open completes the last training label
        assert known_at + embargo < fold.test_start
        before = np.arange(1.0, fold.test_start + 1)[:, None]  # history when the first prediction is made, less its row
        labels = open_to_open(before, horizon)
        assert np.isfinite(labels[: fold.train_stop]).all()


@settings(max_examples=150)
@given(cases())
def test_every_row_from_the_first_prediction_on_is_predicted_once(case) -> None:
    sessions, _, _, _, _, folds = case
    covered = [row for fold in folds for row in range(fold.test_start, fold.test_stop)]
    assert covered == list(range(folds[0].test_start, len(sessions))) if folds else covered == []


@settings(max_examples=150)
@given(cases())
def test_fits_follow_the_calendar_and_grow(case) -> None:
    sessions, horizon, refit, least, embargo, folds = case
    periods = period_of(sessions, refit)
    for fold in folds:
        assert fold.train_stop >= least
        assert fold.test_start - fold.train_stop == gap(horizon, embargo)
        assert len(set(periods[fold.test_start : fold.test_stop])) == 1
        assert periods[fold.test_start - 1] < periods[fold.test_start]
    assert [fold.train_stop for fold in folds] == sorted({fold.train_stop for fold in folds})
    turns = np.flatnonzero(np.diff(periods)) + 1
    late_enough = [row for row in turns if row - gap(horizon, embargo) >= least]
    assert [fold.test_start for fold in folds] == late_enough  # no refit is left out


@settings(max_examples=100)
@given(cases(), st.integers(1, 200))
def test_more_history_changes_no_earlier_fold(case, cut: int) -> None:
    sessions, horizon, refit, least, embargo, folds = case
    shorter = walk_forward(sessions[:-cut], horizon, refit, least, embargo)
    for early, full in zip(shorter, folds, strict=False):
        assert (early.train_stop, early.test_start) == (full.train_stop, full.test_start)
        assert early.test_stop == min(full.test_stop, max(len(sessions) - cut, 0))


@settings(max_examples=100)
@given(st.integers(0, 500), st.integers(1, 20), st.integers(0, 10))
def test_trainable_rows_are_known_today(rows: int, horizon: int, embargo: int) -> None:
    stop = trainable_rows(rows, horizon, embargo)
    labels = open_to_open(np.arange(1.0, rows + 1)[:, None], horizon)
    assert np.isfinite(labels[:stop]).all()
    assert stop == max(np.isfinite(labels).sum() - embargo, 0)  # and embargo rows fewer than could be


@settings(max_examples=100)
@given(st.dates(pd.Timestamp("1990-01-01").date(), pd.Timestamp("2040-01-01").date()))
def test_weeks_are_the_iso_weeks(day) -> None:
    days = pd.date_range(day, periods=30)
    weeks = period_of(days.to_numpy(), "weekly")
    iso = days.isocalendar().week.to_numpy()
    assert (np.diff(weeks) == (np.diff(iso) != 0)).all()


def test_db_12_stacked_symbols_cannot_be_split() -> None:
    grid = np.arange("2020-01-01", "2020-02-10", dtype="datetime64[D]")
    stacked = np.concatenate([grid] * 5)
    with pytest.raises(InputError, match="follows"):
        walk_forward(stacked, 5, "weekly", 20, 2)
    # the old rule: five ordered folds over the stacked rows (what TimeSeriesSplit(5) does)
    size = len(stacked) // 6
    for fold in range(1, 6):
        train, test = stacked[: fold * size], stacked[fold * size : (fold + 1) * size]
        assert (train >= test.min()).any()  # training rows dated on or after the validation start, in every fold
    for kept in walk_forward(grid, 5, "weekly", 10, 2):
        assert grid[: kept.train_stop].max() < grid[kept.test_start]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refit": "daily"}, "weekly, monthly or yearly"),
        ({"min_train": 0}, "min_train must be at least 1"),
        ({"embargo": -1}, "embargo must be 0 or more"),
        ({"horizon": 0}, "horizon must be at least 1"),
    ],
)
def test_a_contradiction_refuses_in_one_line(change: dict, message: str) -> None:
    sessions = pd.bdate_range("2020-01-01", periods=500).to_numpy()
    with pytest.raises(InputError, match=message) as caught:
        walk_forward(sessions, **{"horizon": 5, "refit": "monthly", "min_train": 100, "embargo": 2, **change})
    assert "\n" not in str(caught.value)


def test_the_table_shows_what_the_folds_say() -> None:
    sessions = pd.bdate_range("2000-01-03", "2005-12-30").to_numpy().astype("datetime64[D]")
    folds = walk_forward(sessions, 5, "yearly", 500, 2)
    table = fold_table(folds, sessions, 5)
    assert len(table) == len(folds) == 4
    assert (table["last trained"] < table["label known"]).all()
    assert (table["label known"] < table["predicts from"]).all()
    assert fold_table([], sessions, 5).empty
