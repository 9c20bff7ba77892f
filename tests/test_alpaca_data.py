"""Bars, events and prices from Alpaca: the real client over real HTTP, judged by Alpaca's market-data specification

Issue 5, table of faults, rows 5 (429 in the middle of a list), 9 and 20 (pages that never end, `bars: null`, symbols
that are missing), DA-16 (quotes are a mapping, not a frame).
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CHECKOUT
from servers.alpaca import KEY, SECRET, Alpaca
from servers.exchange import Exchange
from servers.judge import Judge
from servers.wire import Fault, Reply, Request

from alpha_trader.alpaca_data import AlpacaBars, history, latest, snapshots
from alpha_trader.alpaca_line import Line, line_to, shared_limit
from alpha_trader.bars import Panel, load_panel, read_card
from alpha_trader.checks import Ingested, IngestReport, ingest
from alpha_trader.domain import AuthFailed, DataError, NotSent, ProtocolError
from alpha_trader.samples import Events, synthetic_panel
from alpha_trader.sessions import is_session, session_close, session_open

CAPITAL = Decimal(100_000)
EVENTS = Events(splits=(("SYNB", 20, 2.0), ("SYNC", 25, 0.1)), dividends=(("SYNA", 11, 0.4), ("SYNA", 30, 0.5)))
TAPE = synthetic_panel(4, 60, seed=1, start=date(2023, 6, 1), events=EVENTS)
DAYS = [day.item() for day in TAPE.sessions]
SYMBOLS = TAPE.symbols


@dataclass
class Feed:
    "A source at a local server whose clock stands half an hour after a close"

    service: Alpaca
    folder: Path
    day: int = 40
    naps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.to(self.day)

    def to(self, day: int) -> None:
        self.day = day
        self.service.exchange.to(session_close(DAYS[day]) + timedelta(minutes=30))

    @property
    def now(self) -> datetime:
        return self.service.exchange.now

    @cached_property
    def judged(self) -> Line:
        line = line_to(self.service.url, KEY, SECRET, lambda: None, lambda: self.now, self.naps.append, data=True)
        line.client._session.hooks["response"].append(Judge("market-data", self.service.url))
        return line

    def source(self, symbols: tuple[str, ...] = SYMBOLS) -> AlpacaBars:
        return AlpacaBars(lambda: self.judged, symbols, "sip", DAYS[0], lambda: self.now)

    def ingest(self, symbols: tuple[str, ...] = SYMBOLS) -> IngestReport:
        source = self.source(symbols)
        return ingest(source, self.folder, source.symbols(), DAYS[self.day], self.now)

    def asked(self, path: str = "/stocks/bars") -> list[Request]:
        "The requests for `path` since this was asked last"
        found = [request for request in self.service.wire.log if request.path.endswith(path)]
        self.service.wire.log.clear()
        return found


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    service = Alpaca(Exchange(TAPE, session_open(DAYS[0]), CAPITAL), CAPITAL, limit=10_000)
    yield Feed(service, tmp_path / "bars")
    service.wire.close()


def same(found: Panel, day: int, tape: Panel = TAPE) -> None:
    "The panel is the tape up to a day, bar for bar and event for event"
    wanted = tape.upto(DAYS[day])
    assert found.symbols == wanted.symbols and list(found.sessions) == list(wanted.sessions)
    np.testing.assert_array_equal(found.values, np.concatenate([wanted.values[:4], np.floor(wanted.values[4:])]))
    np.testing.assert_allclose(found.splits, wanted.splits, rtol=1e-12)
    np.testing.assert_array_equal(found.dividends, wanted.dividends)


# --- an earlier beginning


def test_an_earlier_since_asks_for_the_missing_piece_alone(feed: Feed) -> None:
    "`since` moved back: the days before the kept ones are asked for, once, and the panel is as if it had always been so"
    events = [day for day in range(1, 40) if (TAPE.splits[day] != 1).any() or (TAPE.dividends[day] != 0).any()]
    assert events, "a split or a dividend lies in what is kept or in what is missing"
    late = replace(feed.source(), since=DAYS[20])
    ingest(late, feed.folder, SYMBOLS, DAYS[30], feed.now)
    feed.asked()
    feed.to(31)
    report = ingest(feed.source(), feed.folder, SYMBOLS, DAYS[31], feed.now)
    early, news = feed.asked()
    assert (early.query["start"][:10], early.query["end"][:10]) == (str(DAYS[0]), str(DAYS[20]))
    assert (news.query["start"][:10], news.query["end"][:10]) == (str(DAYS[30]), str(DAYS[31]))
    assert [row.status for row in report.rows] == ["written"] * 4 and not report.findings
    same(load_panel(feed.folder, SYMBOLS), 31)
    assert [row.status for row in feed_at(feed, 31)] == ["kept"] * 4 and feed.asked() == []
    ingest(late, feed.folder, SYMBOLS, DAYS[31], feed.now)
    assert [row.status for row in feed_at(feed, 31)] == ["kept"] * 4 and feed.asked() == [], "later and back: nothing is lost"


def feed_at(feed: Feed, day: int) -> tuple[Ingested, ...]:
    return ingest(feed.source(), feed.folder, SYMBOLS, DAYS[day], feed.now).rows


def test_what_was_never_there_is_asked_for_once(feed: Feed) -> None:
    "A company that was listed later than its neighbours, and a note that is gone: no daily question about its youth"
    young = TAPE.values.copy()
    young[:, :25, 0] = np.nan
    feed.service.exchange.tape = replace(TAPE, values=young)
    ingest(replace(feed.source(), since=DAYS[10]), feed.folder, SYMBOLS, DAYS[30], feed.now)
    (feed.folder / "asked.json").unlink()
    feed.asked()
    feed_at(feed, 30)
    [early] = feed.asked()
    assert early.query["end"][:10] == str(DAYS[10]) and set(early.query["symbols"].split(",")) == set(SYMBOLS)
    feed_at(feed, 30)
    assert feed.asked() == []
    assert load_panel(feed.folder, SYMBOLS).values[3, :, 0].tolist()[24:26] == [pytest.approx(np.nan, nan_ok=True), young[3, 25, 0]]


def test_an_earlier_piece_that_does_not_fit_renews_all(feed: Feed) -> None:
    "The first kept bar is another one now → everything is asked for again"
    ingest(replace(feed.source(), since=DAYS[20]), feed.folder, SYMBOLS, DAYS[30], feed.now)
    changed = TAPE.values.copy()
    changed[:4] *= 1.01
    feed.service.exchange.tape = replace(TAPE, values=changed)
    feed.asked()
    feed_at(feed, 30)
    _, whole = feed.asked()
    assert (whole.query["start"][:10], whole.query["end"][:10]) == (str(DAYS[0]), str(DAYS[30]))
    np.testing.assert_allclose(load_panel(feed.folder, SYMBOLS).values[3], changed[3, :31], rtol=1e-9)


# --- complete


@pytest.mark.parametrize("page", [10_000, 41, 7, 1])
def test_every_bar_and_every_event_whatever_the_pages(feed: Feed, page: int) -> None:
    "Pages cut within a symbol, between two, and of a single bar; events a page each"
    feed.service.page, feed.service.actions_page = page, 1
    if page == 1:
        feed.to(9)
    report = feed.ingest()
    assert [row.status for row in report.rows] == ["written"] * 4, report.findings
    same(load_panel(feed.folder, SYMBOLS), feed.day)
    card = read_card(feed.folder / "SYNA.parquet")
    assert (card.source, card.feed, card.adjustment) == ("alpaca", "sip", "raw")
    assert {request.query["adjustment"] for request in feed.asked()} == {"raw"}


def test_a_missing_symbol_is_reported_and_hides_no_other(feed: Feed) -> None:
    "Row 20: one that Alpaca does not know, and one that cannot exist and spoils the request"
    report = feed.ingest(("NO.PE1", "NOPE", *SYMBOLS))
    feed.service.wire.faults.append(
        Fault(
            lambda request: "NOPE" in request.query.get("symbols", "") and request.path.endswith("bars"),
            "reply",
            reply=Reply(400, {"message": "invalid symbol(s): NOPE"}),
            times=9,
        )
    )
    feed.to(41)
    again = feed.ingest(("NO.PE1", "NOPE", *SYMBOLS))
    for found, day in ((report, 40), (again, 41)):
        refused = {row.symbol: row.findings[0].detail for row in found.rows if row.status == "refused"}
        assert set(refused) == {"NO.PE1", "NOPE"} and "alpaca/sip has no bar of it" in refused["NOPE"]
        assert found.symbols == SYMBOLS
        assert found.as_of == DAYS[day]
    same(load_panel(feed.folder, SYMBOLS), 41)


# --- only what is missing


def test_only_what_is_missing_is_asked(feed: Feed) -> None:
    "The next evening one bar more than the last one; the same evening nothing but the events"
    feed.ingest()
    assert [request.query["start"][:10] for request in feed.asked()] == [str(DAYS[0])]
    assert [row.status for row in feed.ingest().rows] == ["kept"] * 4
    assert feed.asked() == []
    feed.to(43)
    assert [row.status for row in feed.ingest().rows] == ["written"] * 4
    [request] = feed.asked()
    assert request.query["start"][:10] == str(DAYS[40]) and request.query["end"] == f"{DAYS[43]}T20:00:00Z"
    same(load_panel(feed.folder, SYMBOLS), 43)


def test_what_an_adjustment_changed_is_asked_again(feed: Feed) -> None:
    "A split that was recorded late, and a last bar that was corrected: those two symbols from the beginning, no other"
    feed.ingest()
    feed.asked()
    values, splits = TAPE.values.copy(), TAPE.splits.copy()
    splits[15, SYMBOLS.index("SYND")] = 1.05
    values[3, 40, SYMBOLS.index("SYNA")] = values[1, 40, SYMBOLS.index("SYNA")]
    feed.service.exchange.tape = replace(TAPE, values=values, splits=splits)
    feed.to(41)
    feed.ingest()
    wholly = [request.query["symbols"] for request in feed.asked() if request.query["start"][:10] == str(DAYS[0])]
    assert sorted(wholly) == ["SYNA", "SYND"]
    found = load_panel(feed.folder, SYMBOLS)
    same(found, 41, feed.service.exchange.tape)
    assert found.splits[15, 3] == 1.05 and found.close[40, 0] == values[3, 40, 0] != TAPE.values[3, 40, 0]


def test_todays_bar_is_not_taken_before_it_is_final(feed: Feed) -> None:
    "In the first minutes after the close the newest session is yesterday's; asking for today's would be refused"
    feed.service.exchange.to(session_close(DAYS[41]) + timedelta(minutes=5))
    assert feed.source().last_session() == DAYS[40]
    with pytest.raises(DataError, match="subscription does not permit querying recent SIP data"):
        feed.source().bars(SYMBOLS, None, DAYS[41])
    feed.service.exchange.to(session_close(DAYS[41]) + timedelta(minutes=20))
    assert feed.source().last_session() == DAYS[41]
    assert feed.source().bars(SYMBOLS, None, DAYS[41])["SYNA"].index[-1] == pd.Timestamp(DAYS[41])


# --- faults


def bars_page(number: int) -> Any:
    "Matches the n-th request for bars"
    seen = iter(range(10_000))
    return lambda request: request.path.endswith("/stocks/bars") and next(seen) == number


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "reply", "reply": Reply(429, {"message": "too many requests."}, {"X-RateLimit-Reset": "1"})},
        {"action": "reply", "reply": Reply(429, {"message": "too many requests."})},
        {"action": "reply", "reply": Reply(503, b"<html>down</html>")},
        {"action": "truncate"},
        {"action": "reset"},
    ],
)
def test_a_fault_in_the_middle_of_a_list_leaves_no_gap(feed: Feed, fault: dict[str, Any]) -> None:
    "Row 5: the page that failed is asked for again, with its token, and nothing else is"
    feed.service.page = 30
    feed.service.wire.faults.append(Fault(bars_page(2), **fault))
    feed.ingest()
    same(load_panel(feed.folder, SYMBOLS), 40)
    tokens = [request.query.get("page_token") for request in feed.asked()]
    assert tokens[:5] == [None, "30", "60", "60", "90"] and feed.naps


def test_a_list_that_never_ends_ends(feed: Feed) -> None:
    "Row 20: a repeated token is an error after two pages; alpaca-py itself would ask for ever"
    feed.service.page = 30
    feed.service.wire.faults.append(
        Fault(bars_page(1), "reply", change=lambda body: {**body, "next_page_token": "30"}, times=1)
    )
    with pytest.raises(ProtocolError, match="the same page came twice"):
        feed.ingest()
    assert len(feed.asked()) == 2


def test_no_bars_may_be_null(feed: Feed) -> None:
    "Row 9: `bars: null` is no bars, for each symbol with a sentence"
    feed.service.wire.faults.append(
        Fault(bars_page(0), "reply", reply=Reply(200, {"bars": None, "next_page_token": None}))
    )
    line = line_to(feed.service.url, KEY, SECRET, lambda: None, lambda: feed.now, feed.naps.append, data=True)
    source = AlpacaBars(lambda: line, SYMBOLS, since=DAYS[0], clock=lambda: feed.now)
    report = ingest(source, feed.folder, source.symbols(), DAYS[40], feed.now)
    assert [row.status for row in report.rows] == ["refused"] * 4
    assert all("no bar" in finding.detail for finding in report.findings)


def test_wrong_keys_and_no_server_stop_the_ingest(feed: Feed) -> None:
    "Nothing was learned about any symbol, so no symbol is reported: one error, and the cache stays as it is"
    feed.ingest()
    before = {path.name: path.read_bytes() for path in feed.folder.iterdir()}
    wrong = line_to(feed.service.url, KEY, "x" * 40, lambda: None, lambda: feed.now, feed.naps.append, data=True)
    with pytest.raises(AuthFailed, match="ALPACA_API_KEY"):
        ingest(replace(feed.source(), open_line=lambda: wrong), feed.folder, SYMBOLS, DAYS[41], feed.now)
    feed.service.wire.close()
    gone = line_to(feed.service.url, KEY, SECRET, lambda: None, lambda: feed.now, feed.naps.append, data=True)
    with pytest.raises(NotSent, match="no connection"):
        ingest(replace(feed.source(), open_line=lambda: gone), feed.folder, SYMBOLS, DAYS[41], feed.now)
    assert {path.name: path.read_bytes() for path in feed.folder.iterdir()} == before


# --- now


def test_latest_prices_and_snapshots(feed: Feed) -> None:
    "DA-16: a price for each symbol that trades, in dollars and exactly; one that does not trade is left out"
    at_noon = session_open(DAYS[41]) + timedelta(hours=2)
    feed.service.exchange.to(at_noon)
    price = Decimal(repr(round(float(TAPE.open[41, 0]), 6)))
    now = latest(feed.judged, ["SYNA", "NOPE"])
    assert list(now) == ["SYNA"]
    assert (now["SYNA"].price, now["SYNA"].bid, now["SYNA"].traded_at) == (price, price, at_noon)
    shot = snapshots(feed.judged, ["SYNA", "NOPE"])
    assert list(shot) == ["SYNA"] and shot["SYNA"].latest == now["SYNA"]
    assert shot["SYNA"].before["close"] == TAPE.close[40, 0]
    bars = history(feed.judged, ["SYNA"], "5Min", session_open(DAYS[3]), session_close(DAYS[5]))
    assert str(bars["SYNA"].index.tz) == "UTC"
    assert feed.asked()[-1].query["timeframe"] == "5Min"


def test_this_mornings_split(feed: Feed) -> None:
    "Known before the open of its session, and of no other"
    source = feed.source()
    found = [source.splits_at(SYMBOLS, DAYS[n]) for n in (19, 20, 25)]
    assert found == [{}, {"SYNB": 2.0}, {"SYNC": pytest.approx(0.1)}]


# --- one limit


def test_one_limit_for_all_lines_of_a_key(feed: Feed, tmp_path: Path) -> None:
    "Trading and data, this process and another: they fill the same window; another key has its own; no name is a key"
    limit = shared_limit(tmp_path / "limits", KEY)
    data = line_to(feed.service.url, KEY, SECRET, limit.wait, lambda: feed.now, data=True)
    trading = line_to(feed.service.url, KEY, SECRET, limit.wait, lambda: feed.now)
    data.read("/stocks/snapshots", {"symbols": "SYNA"}, "snapshots")
    trading.read("/account", what="account")
    code = (
        "import sys; from pathlib import Path; from alpha_trader.alpaca_line import shared_limit; "
        "shared_limit(Path(sys.argv[1]), sys.argv[2]).wait()"
    )
    subprocess.run([sys.executable, "-c", code, str(limit.path.parent), KEY], cwd=CHECKOUT, check=True, timeout=120)
    assert limit.used() == 3 and shared_limit(tmp_path / "limits", "another").used() == 0
    assert (limit.calls, limit.seconds) == (180, 60.0)
    files = list((tmp_path / "limits").iterdir())
    assert files and not [path for path in files if KEY in path.name or KEY.encode() in path.read_bytes()]


# --- five thousand symbols


class Warehouse(Alpaca):
    "Alpaca's bars for any number of symbols, made up while they are sent"

    days: list[str]

    def bars(self, query: dict[str, str]) -> Reply:
        symbols, first = sorted(query["symbols"].split(",")), int(query.get("page_token") or 0)
        days = [day for day in self.days if query["start"][:10] <= day <= query["end"][:10]]
        end = min(first + int(query["limit"]), len(symbols) * len(days))
        bars: dict[str, list[dict[str, Any]]] = {}
        for place in range(first, end):
            symbol, n = symbols[place // len(days)], place % len(days)
            price = 50 + n % 7 / 8
            bar = {"t": f"{days[n]}T05:00:00Z", "o": price, "h": price + 1, "l": price - 1, "c": price, "v": 1000 + n}
            bars.setdefault(symbol, []).append(bar | {"n": 9, "vw": price})
        following = str(end) if end < len(symbols) * len(days) else None
        return Reply(body={"bars": bars, "next_page_token": following})

    def actions(self, query: dict[str, str]) -> dict[str, Any]:
        return {"corporate_actions": {}, "next_page_token": None}


INGEST = """
import json, sys
from datetime import UTC, datetime, date
from pathlib import Path
from alpha_trader.alpaca_data import AlpacaBars
from alpha_trader.alpaca_line import line_to
from alpha_trader.checks import ingest

url, folder, count, first, last, key, secret = sys.argv[1:]
symbols = tuple(sorted(chr(65 + n // 676) + chr(65 + n // 26 % 26) + chr(65 + n % 26) for n in range(int(count))))
now = datetime.now(UTC)
line = line_to(url, key, secret, lambda: None, lambda: now, data=True)
source = AlpacaBars(lambda: line, symbols, "sip", date.fromisoformat(first), lambda: now)
def peak():  # MiB; unlike ru_maxrss, this begins anew with the program
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
began, told = peak(), []
tell = lambda done, of, name: told.append(done)
report = ingest(source, Path(folder), symbols, date.fromisoformat(last), now, progress=tell)
print(json.dumps({"began": began, "peak": peak(), "written": len(report.symbols), "told": told[-1]}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=pytest.mark.slow)])
def test_memory_stays_flat(tmp_path: Path, count: int) -> None:
    "Two years of daily bars of thousands of symbols: below 500 MiB, at 11 requests for 200 symbols"
    days = [str(day) for day in pd.bdate_range("2022-01-03", "2023-12-29").date]
    tape = synthetic_panel(1, 100)
    service = Warehouse(Exchange(tape, datetime(2024, 1, 2, tzinfo=UTC), CAPITAL), CAPITAL, limit=10**9)
    service.days = [day for day in days if is_session(date.fromisoformat(day))]
    words = [service.url, str(tmp_path / "bars"), str(count), service.days[0], service.days[-1], KEY, SECRET]
    done = subprocess.run(
        [sys.executable, "-c", INGEST, *words], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=3000
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found, len(service.wire.log), "requests")
    assert (found["written"], found["told"]) == (count, count)
    assert found["peak"] < 500, found
    assert len(service.wire.log) <= 12 * -(-count // 200)
    service.wire.close()
