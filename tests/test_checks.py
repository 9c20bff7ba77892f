"""Checks answer for any input, catch what they name, and leave good history alone"""

import math
from collections import Counter
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trader.bars import COLUMNS, FIELDS, load_panel, read_bars
from alpha_trader.checks import check_bars, findings_table, ingest, like_split
from alpha_trader.domain import DataError
from alpha_trader.samples import (
    SPLITS,
    Events,
    SampleSource,
    SyntheticSource,
    sample_frames,
    synthetic_frames,
)
from alpha_trader.sessions import sessions_between

AS_OF = date(2013, 3, 1)
NOON = datetime(2013, 3, 4, 12, tzinfo=UTC)
GOOGLE = sample_frames()["GOOGL"]["2012-06-01":]


def kinds(frame: pd.DataFrame, as_of: date = AS_OF, **options) -> list[tuple[str, str]]:
    return [(finding.kind, finding.severity) for finding in check_bars(frame, "X", as_of, **options)[1]]


def with_cell(row: int, column: str, value: float) -> pd.DataFrame:
    frame = GOOGLE.copy()
    frame.iloc[row, frame.columns.get_loc(column)] = value
    return frame


def test_good_history_is_left_alone():
    usable, findings = check_bars(GOOGLE, "GOOGL", AS_OF)
    assert findings == []
    pd.testing.assert_frame_equal(usable, GOOGLE)


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("close", np.nan, "nan"),
        ("volume", np.inf, "nan"),
        ("open", 0.0, "non_positive"),
        ("low", -1.0, "non_positive"),
        ("volume", 0.0, "non_positive"),
        ("high", 1.0, "high_low"),
        ("open", 1e6, "high_low"),
    ],
)
def test_a_wrong_number_drops_its_row(column, value, kind):
    frame = with_cell(50, column, value)
    usable, findings = check_bars(frame, "GOOGL", AS_OF)
    assert [finding.kind for finding in findings] == [kind, "gap"]  # what is dropped is missing
    assert findings[0].session == GOOGLE.index[50].date() and findings[0].severity == "drop"
    pd.testing.assert_frame_equal(usable, GOOGLE.drop(GOOGLE.index[50]))


def test_a_dropped_row_keeps_its_event():
    frame = with_cell(50, "close", np.nan).assign(dividend=np.where(np.arange(len(GOOGLE)) == 50, 1.0, 0.0))
    usable, _ = check_bars(frame, "GOOGL", AS_OF)
    assert usable["dividend"].sum() == 1.0 and usable.iloc[50][list(FIELDS)].isna().all()
    assert [finding.kind for finding in check_bars(usable, "GOOGL", AS_OF)[1]] == ["gap"]


@pytest.mark.parametrize("event", ["split=0", "split=-2", "split=nan", "dividend=-1", "dividend=1000000"])
def test_impossible_events_are_refused(event):
    column, value = event.split("=")
    assert ("event", "refuse") in kinds(with_cell(50, column, float(value)))


def test_duplicates_that_agree_leave_one_and_others_none():
    same = pd.concat([GOOGLE, GOOGLE.iloc[[50]]])
    usable, findings = check_bars(same, "GOOGL", AS_OF)
    pd.testing.assert_frame_equal(usable, GOOGLE)
    assert [finding.kind for finding in findings] == ["duplicate"]
    other = pd.concat([GOOGLE, GOOGLE.iloc[[50]].assign(close=GOOGLE["low"].iloc[50])])
    usable, findings = check_bars(other, "GOOGL", AS_OF)
    pd.testing.assert_frame_equal(usable, GOOGLE.drop(GOOGLE.index[50]))


def test_closed_days_and_unfinished_bars_are_dropped_by_calendar():
    saturday = GOOGLE.iloc[[50]].set_axis(pd.DatetimeIndex(["2012-09-01"]).as_unit("s"))
    frame = pd.concat([GOOGLE, saturday]).rename_axis("session")
    assert kinds(frame) == [("no_session", "drop")]
    usable, findings = check_bars(GOOGLE, "GOOGL", date(2013, 2, 27))
    assert usable.index[-1] == pd.Timestamp("2013-02-27")
    assert findings[0].detail == "not closed yet at the time of asking: 2013-03-01, 2013-02-28"


def test_gaps_are_named_and_too_many_are_refused():
    findings = check_bars(GOOGLE.drop(GOOGLE.index[10:13]), "GOOGL", AS_OF)[1]
    assert findings[0].detail.endswith("sessions have no bar: 2012-06-19, 2012-06-18, 2012-06-15")
    assert kinds(GOOGLE.iloc[::2].iloc[:-1]) == [("gap", "warn"), ("stale", "warn")]
    assert ("gap", "refuse") in kinds(GOOGLE.iloc[::3])
    assert kinds(GOOGLE.iloc[:0]) == [("gap", "refuse")]


def test_stale_counts_sessions_and_not_days():
    friday = GOOGLE[:"2013-02-15"]  # the next session is Tuesday, 19 February: Washington's birthday
    assert kinds(friday, date(2013, 2, 18), stale_after=0) == []
    assert kinds(friday, date(2013, 2, 19), stale_after=0) == [("stale", "warn")]
    assert kinds(friday, date(2013, 2, 19), stale_after=1) == []
    assert kinds(friday, date(2013, 2, 20), stale_after=1) == [("stale", "warn")]


# --- jumps: trap 3 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("symbol", "day"), SPLITS)
def test_a_forgotten_split_is_refused(symbol, day):
    frame = sample_frames()[symbol]
    forgotten = frame.assign(split=frame["split"].where(frame.index.date != day, 1.0))
    refused = [finding for finding in check_bars(forgotten, symbol, AS_OF)[1] if finding.severity == "refuse"]
    assert [(finding.kind, finding.session) for finding in refused] == [("jump", day)]
    assert "unrecorded 2:1 split?" in refused[0].detail


@pytest.mark.parametrize("ratio", [1.5, 3.0, 4.0, 7.0, 10.0, 20.0, 0.1, 0.05])
def test_other_splits_are_refused_without_a_record_and_fine_with_one(ratio):
    frames = synthetic_frames(symbols=3, sessions=300, events=Events(splits=(("SYNB", 150, ratio),)))
    end = frames["SYNB"].index[-1].date()
    assert kinds(frames["SYNB"], end) == []
    refused = check_bars(frames["SYNB"].assign(split=1.0), "SYNB", end)[1]
    assert [(finding.kind, finding.severity) for finding in refused] == [("jump", "refuse")]
    assert refused[0].session == frames["SYNB"].index[150].date()


def test_a_recorded_split_that_never_happened_is_refused():
    assert kinds(with_cell(50, "split", 2.0)) == [("jump", "refuse")]


def test_real_news_stays_in_history():
    usable, findings = check_bars(sample_frames()["AAPL"], "AAPL", AS_OF)
    assert [(f.kind, f.severity, f.session) for f in findings] == [("jump", "warn", date(2000, 9, 29))]
    assert len(usable) == 3270


def test_a_special_dividend_explains_its_move():
    frames = synthetic_frames(symbols=1, sessions=100)
    paid = 0.4 * frames["SYNA"]["close"].iloc[49]
    frame = synthetic_frames(symbols=1, sessions=100, events=Events(dividends=(("SYNA", 50, round(paid, 2)),)))["SYNA"]
    end = frame.index[-1].date()
    assert kinds(frame, end) == []
    assert kinds(frame.assign(dividend=0.0), end)[0][0] == "jump"


def test_a_larger_allowed_move_is_the_way_out():
    frame = sample_frames()["AAPL"].assign(split=1.0)
    assert {severity for _, severity in kinds(frame)} == {"refuse", "warn"}
    assert kinds(frame, max_move=0.6) == []


@pytest.mark.parametrize(
    ("ratio", "busy", "split"),
    [(0.5, 2.9, 2), (0.5, 3.0, None), (2.0, 1.0, 0.5), (0.7, 1.0, 1.5), (0.6, 1.0, None), (0.5, np.nan, 2)],
)
def test_what_looks_like_a_split(ratio, busy, split):
    assert like_split(ratio, busy) == split


# --- anything at all --------------------------------------------------------------------------------------------------

numbers = st.floats(width=64) | st.integers(-(10**9), 10**9) | st.none() | st.text(max_size=5) | st.booleans()
some_days = sessions_between(date(2012, 12, 20), date(2013, 1, 10))
dates = st.sampled_from(some_days) | st.dates() | st.datetimes() | st.text(max_size=10) | st.none() | st.integers()


@settings(max_examples=80)
@given(st.data())
def test_garbage_is_answered(data):
    rows = data.draw(st.integers(0, 6))
    names = data.draw(st.lists(st.sampled_from([*COLUMNS, *FIELDS, "other"]), max_size=9))
    cells = [[data.draw(numbers) for _ in names] for _ in range(rows)]
    frame = pd.DataFrame(cells, [data.draw(dates) for _ in range(rows)], names, dtype=object)
    usable, findings = check_bars(frame, "X", date(2013, 1, 9))
    assert list(usable.columns) == list(COLUMNS)
    assert usable.index.is_monotonic_increasing and usable.index.is_unique
    assert {finding.symbol for finding in findings} <= {"X"}
    assert len(findings_table(findings)) == len(findings)
    if len(usable) < rows:
        assert findings


lows, splits, closes = (st.sampled_from(cells) for cells in ([9, 10, 10.5, -1, np.nan, 0], [1, 2], [10, 11, 1000]))
bars = st.tuples(st.sampled_from(some_days), lows, splits, closes)


@settings(max_examples=60)
@given(st.lists(bars, max_size=12))
def test_what_was_cleaned_once_is_clean(rows):
    "A second check of what the first one let through drops nothing more"
    cells = [(10.0, max(11.0, close), low, close, 5.0, split) for _, low, split, close in rows]
    frame = pd.DataFrame(cells, pd.DatetimeIndex([day for day, *_ in rows]), COLUMNS[:6])
    usable, first = check_bars(frame, "X", some_days[-1])
    again, second = check_bars(usable, "X", some_days[-1])
    pd.testing.assert_frame_equal(again, usable, check_freq=False)
    assert [finding for finding in second if finding.severity == "drop"] == []
    assert second == [finding for finding in first if finding.severity != "drop"]


# --- ingest -----------------------------------------------------------------------------------------------------------


class OneBroken(SyntheticSource):
    "Offers one symbol that cannot be handed over and one that is nonsense"

    def bars(self, symbols, start, end):
        if "SYNB" in symbols:
            raise DataError("SYNB: the vendor sent half a page")
        frames = super().bars(symbols, start, end)
        return {symbol: frame * -1 if symbol == "SYNC" else frame for symbol, frame in frames.items()}


def blame(row: tuple, sessions: set[date], last: date) -> str | None:
    "The first rule that a bar breaks, told cell by cell; duplicates aside"
    day, (o, h, low, c, v), (split, paid) = row[0].date(), row[1:6], row[6:]
    numbers = (o, h, low, c, v)
    holes = [math.isnan(number) for number in numbers]
    if day > last:
        return "unfinished"
    if day not in sessions:
        return "no_session"
    if any(holes) and not (all(holes) and (split != 1 or paid != 0)):
        return "nan"
    if any(number <= 0 for number in numbers):
        return "non_positive"
    outside = any(price < low * (1 - 1e-6) or price > h * (1 + 1e-6) for price in (o, c))
    return "high_low" if outside else None


@settings(max_examples=150)
@given(st.data())
def test_each_bar_is_blamed_as_a_person_would(data):
    "The rules look at whole arrays; told row by row and cell by cell, in tidy and in untidy dress, it is the same"
    frame, values = GOOGLE.copy(), st.sampled_from([np.nan, 0.0, -1.0, 1.0, 1e6, 600.0])
    for _ in range(data.draw(st.integers(0, 6))):
        frame.iloc[data.draw(st.integers(0, len(frame) - 1)), data.draw(st.integers(0, 4))] = data.draw(values)
    strangers = [day for day in ("2012-07-04", "2013-01-01", "2013-03-04", "2013-03-05") if data.draw(st.booleans())]
    frame = pd.concat([frame, *(frame.iloc[[9]].set_axis(pd.DatetimeIndex([day])) for day in strangers)]).sort_index()
    frame.index = frame.index.as_unit("s").rename("session")
    sessions = set(sessions_between(date(2012, 6, 1), AS_OF))
    expected = Counter(word for row in frame.itertuples() if (word := blame(row, sessions, AS_OF)))
    usable, findings = check_bars(frame, "X", AS_OF)
    told, told_findings = check_bars(frame.set_axis([str(day) for day in frame.index]), "X", AS_OF)
    assert findings == told_findings
    pd.testing.assert_frame_equal(usable, told)
    assert {finding.kind for finding in findings if finding.severity == "drop"} == set(expected)
    assert len(frame) - len(usable) == expected.total()


def test_one_bad_symbol_never_stops_the_others(tmp_path):
    source, seen = OneBroken(symbols=4, sessions=50), []
    tell = lambda *step: seen.append(step)  # noqa: E731
    report = ingest(source, tmp_path, source.symbols(), source.last_session(), NOON, progress=tell)
    assert report.symbols == ("SYNA", "SYND")
    assert [row.status for row in report.rows] == ["written", "refused", "refused", "written"]
    assert seen == [(1, 4, "SYNA"), (2, 4, "SYNB"), (3, 4, "SYNC"), (4, 4, "SYND")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SYNA.parquet", "SYND.parquet"]
    assert report.frame().set_index("symbol").loc["SYNB", "findings"] == "1 unreadable"
    assert load_panel(tmp_path, report.symbols).symbols == ("SYNA", "SYND")


def test_a_replay_does_not_shorten_the_cache(tmp_path):
    source = SampleSource()
    ingest(source, tmp_path, ["META"], AS_OF, NOON)
    before = (tmp_path / "META.parquet").stat().st_mtime_ns
    report = ingest(source, tmp_path, ["META"], date(2012, 10, 1), NOON)
    assert (report.rows[0].status, report.rows[0].last) == ("kept", date(2012, 10, 1))
    assert (tmp_path / "META.parquet").stat().st_mtime_ns == before
    assert len(read_bars(tmp_path, "META")) == 196


def test_a_corrected_history_replaces_the_old_one(tmp_path):
    source = SyntheticSource(symbols=1, sessions=50)
    ingest(source, tmp_path, ["SYNA"], source.last_session(), NOON)
    source.frames["SYNA"].iloc[10, 4] += 1
    assert ingest(source, tmp_path, ["SYNA"], source.last_session(), NOON).rows[0].status == "written"
    pd.testing.assert_frame_equal(read_bars(tmp_path, "SYNA"), source.frames["SYNA"])


def test_another_feed_stops_everything(tmp_path):
    one, two = (SyntheticSource(symbols=1, sessions=30, seed=seed) for seed in (1, 2))
    ingest(one, tmp_path, ["SYNA"], one.last_session(), NOON)
    with pytest.raises(DataError, match="holds bars of synthetic/seed-1"):
        ingest(two, tmp_path, ["UNKNOWN"], two.last_session(), NOON)  # even if nothing of it would be written
