"""The exchange's days: against the calendar itself, at every boundary, in every time zone (B-19, DB-20, DA-21)"""

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import exchange_calendars
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trader.domain import InputError
from alpha_trader.sessions import (
    FIRST_DAY,
    LAST_DAY,
    calendar,
    is_session,
    last_completed_session,
    next_session,
    open_index,
    previous_session,
    session_close,
    session_of,
    session_open,
    sessions_apart,
    sessions_between,
    slot_at,
    slot_text,
)

DAYS = st.dates(date(1990, 2, 1), date(2035, 11, 30))
MOMENTS = st.datetimes(datetime(1990, 2, 1), datetime(2035, 11, 30), timezones=st.just(UTC))
NEW_YORK = ZoneInfo("America/New_York")
untimed = settings(deadline=None)  # the first question builds the calendar


def test_equal_to_the_exchange_calendar_over_twenty_years():
    "An oracle: every session, open and close of 2000 to 2019"
    xnys = exchange_calendars.get_calendar("XNYS", start="1999-01-01", end="2020-12-31")
    schedule = xnys.schedule.loc["2000-01-01":"2019-12-31"]
    days = sessions_between(date(2000, 1, 1), date(2019, 12, 31))
    assert days == list(schedule.index.date)
    assert [session_open(day) for day in days] == list(schedule["open"])
    assert [session_close(day) for day in days] == list(schedule["close"])


def test_does_not_depend_on_today():
    "The library's own range moves with the clock; ours reaches from 1990 to 2035"
    assert calendar().days[0] == date(1990, 1, 2) and calendar().days[-1] == date(2035, 12, 31)
    assert (date(1990, 1, 1), date(2035, 12, 31)) == (FIRST_DAY, LAST_DAY)


@pytest.mark.parametrize(
    "day, opened, closed",
    [
        (date(2012, 11, 23), "14:30", "18:00"),  # the Friday after Thanksgiving
        (date(2012, 12, 24), "14:30", "18:00"),  # Christmas Eve
        (date(2013, 3, 8), "14:30", "21:00"),  # the last session of winter time
        (date(2013, 3, 11), "13:30", "20:00"),  # the first of summer time
        (date(2012, 11, 2), "13:30", "20:00"),  # the last of summer time
        (date(2012, 11, 5), "14:30", "21:00"),
    ],
)
def test_half_days_and_summer_time(day, opened, closed):
    assert f"{session_open(day):%H:%M}" == opened
    assert f"{session_close(day):%H:%M}" == closed
    assert session_open(day).astimezone(NEW_YORK).time().isoformat() == "09:30:00"


@pytest.mark.parametrize(
    "closed",
    [
        date(2012, 10, 29),
        date(2012, 10, 30),
        date(2001, 9, 11),
        date(2001, 9, 14),
        date(2013, 3, 29),
        date(2004, 6, 11),
    ],
)
def test_closures_no_rule_could_foretell(closed):
    assert not is_session(closed)
    with pytest.raises(InputError, match=rf"{closed} \({closed:%A}\) is not a session"):
        session_open(closed)


@pytest.mark.parametrize("outside", [date(1989, 12, 29), date(2036, 1, 2), date.min, date.max])
@pytest.mark.parametrize(
    "ask",
    [
        is_session,
        session_open,
        session_close,
        next_session,
        previous_session,
        lambda d: sessions_between(d, date(2013, 3, 1)),
    ],
)
def test_outside_the_calendar_is_not_closed(ask, outside):
    "DB-20: a silent 'closed' is the answer to another question"
    with pytest.raises(InputError, match="outside the calendar, allowed: 1990-01-01 to 2035-12-31"):
        ask(outside)


@pytest.mark.parametrize("moment", [datetime(1989, 12, 29, 15, tzinfo=UTC), datetime(2036, 1, 2, 15, tzinfo=UTC)])
@pytest.mark.parametrize("ask", [session_of, last_completed_session, slot_at])
def test_moments_outside_the_calendar_raise(ask, moment):
    with pytest.raises(InputError, match="outside the calendar"):
        ask(moment)


@pytest.mark.parametrize("ask", [session_of, last_completed_session, slot_at])
@pytest.mark.parametrize("moment", [datetime(2013, 3, 1, 9, 30), date(2013, 3, 1), "2013-03-01"])
def test_a_moment_must_say_its_time_zone(ask, moment):
    "DB-20: System B read a naive New York time as UTC"
    with pytest.raises(InputError, match="has no time zone") as caught:
        ask(moment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "day",
    [datetime(2013, 3, 1, tzinfo=UTC), pd.Timestamp("2013-03-01"), "2013-03-01", None, np.datetime64("2013-03-01")],
)
def test_a_day_must_be_a_day(day):
    with pytest.raises(InputError, match="is not a date"):
        is_session(day)


def test_edges_of_the_calendar_raise_instead_of_wrapping_round():
    with pytest.raises(InputError, match="outside the calendar"):
        previous_session(date(1990, 1, 2))
    with pytest.raises(InputError, match="outside the calendar"):
        next_session(date(2035, 12, 31))
    with pytest.raises(InputError, match="no session has closed"):
        last_completed_session(datetime(1990, 1, 2, 15, tzinfo=UTC))
    with pytest.raises(InputError, match="outside the calendar"):
        slot_at(datetime(2035, 12, 31, 23, tzinfo=UTC))


@untimed
@given(DAYS, st.integers(1, 15))
def test_steps_there_and_back(day, n):
    ahead, behind = next_session(day, n), previous_session(day, n)
    assert is_session(ahead) and is_session(behind) and behind < day < ahead
    assert sessions_apart(day, ahead) == n
    assert previous_session(ahead, n) == (day if is_session(day) else previous_session(day))
    assert next_session(behind, n) == (day if is_session(day) else next_session(day))


@untimed
@given(DAYS, DAYS)
def test_distance_is_what_lies_between(a, b):
    assert sessions_apart(a, b) == -sessions_apart(b, a)
    first, last = min(a, b), max(a, b)
    assert abs(sessions_apart(a, b)) == len(sessions_between(first + timedelta(days=1), last))


@settings(deadline=None, max_examples=300)
@given(MOMENTS)
def test_every_moment_lies_in_exactly_one_slot(now):
    slot = slot_at(now, guard_minutes=10, grace_minutes=10)
    assert slot.at <= now < slot.next_decision
    assert slot.next_decision == session_open(next_session(slot.session)) or slot.kind == "closed"
    assert slot_at(slot.at) == slot
    open_now = session_of(now)
    assert (slot.kind == "closed") == (open_now is None)
    if open_now is None:
        assert session_close(last_completed_session(now)) == slot.at
        assert session_open(slot.session) == slot.next_decision
    else:
        assert slot.session == open_now
        assert (now - session_open(open_now) < timedelta(minutes=10)) == (slot.kind == "decision")
        assert now - slot.at < timedelta(minutes=10)


@untimed
@given(MOMENTS, st.sampled_from(["America/New_York", "Asia/Seoul", "Asia/Kolkata", "UTC"]))
def test_the_time_zone_of_the_question_does_not_matter(now, zone):
    there = now.astimezone(ZoneInfo(zone))
    assert slot_at(there) == slot_at(now)
    assert session_of(there) == session_of(now)
    assert last_completed_session(there) == last_completed_session(now)


@pytest.mark.parametrize(
    "minutes, kind, began",
    [
        (0, "decision", 0),
        (9, "decision", 0),
        (10, "guard", 10),
        (29, "guard", 10),
        (30, "guard", 30),
        (389, "guard", 360),
    ],
)
def test_slots_of_a_session_when_guards_are_longer_than_the_grace(minutes, kind, began):
    opened = session_open(date(2013, 3, 1))
    slot = slot_at(opened + timedelta(minutes=minutes), guard_minutes=30, grace_minutes=10)
    assert (slot.kind, slot.at - opened) == (kind, timedelta(minutes=began))


def test_the_session_ends_with_the_bell():
    "DA-7: a bar is final from the close on and not a second earlier"
    bell = session_close(date(2012, 11, 23))
    second = timedelta(seconds=1)
    assert slot_at(bell - second).kind == "guard" and slot_at(bell).kind == "closed"
    assert last_completed_session(bell - second) == date(2012, 11, 21)
    assert last_completed_session(bell) == date(2012, 11, 23)


def test_the_night_in_asia_is_still_the_same_session():
    "23:45 in Seoul is the New York morning of the same day; 02:00 there is the afternoon of the day before"
    seoul = ZoneInfo("Asia/Seoul")
    assert session_of(datetime(2013, 3, 1, 23, 45, tzinfo=seoul)) == date(2013, 3, 1)
    assert session_of(datetime(2013, 3, 2, 2, 0, tzinfo=seoul)) == date(2013, 3, 1)
    assert session_of(datetime(2013, 3, 2, 2, 0, tzinfo=timezone(timedelta(hours=-5)))) is None


def test_who_comes_on_a_weekend_or_mid_session_is_told_when_to_come_back():
    weekend = slot_text(slot_at(datetime(2013, 3, 9, 12, tzinfo=UTC)))
    assert weekend.endswith("the next decision slot is Monday 2013-03-11 at 13:30 UTC (09:30 in New York)")
    assert slot_text(slot_at(datetime(2013, 3, 8, 17, 7, tzinfo=UTC))).startswith("in the middle of session 2013-03-08")


def test_open_index_of_a_panel():
    days = sessions_between(date(2012, 10, 1), date(2013, 3, 31))
    index = open_index(np.array(days, dtype="datetime64[D]"))
    assert index.equals(open_index(days)) and str(index.dtype) == "datetime64[ns, UTC]"
    assert list(index) == [session_open(day) for day in days]
    assert len(open_index([])) == 0 and str(open_index([]).tz) == "UTC"
    with pytest.raises(InputError, match="2013-03-09"):
        open_index([date(2013, 3, 9)])


def test_steps_of_nothing_are_refused():
    for n in (0, -1):
        with pytest.raises(InputError, match="allowed: a whole number >= 1"):
            next_session(date(2013, 3, 1), n)
    with pytest.raises(InputError, match="allowed: whole numbers >= 1"):
        slot_at(datetime(2013, 3, 1, 15, tzinfo=UTC), guard_minutes=0)


def test_importing_sessions_does_not_build_the_calendar():
    code = "import alpha_trader.sessions, sys; print('exchange_calendars' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
