"""One conformance suite for every broker, and what is peculiar to the simulated one

A broker joins by a factory in `VENUES`: given the tape below it must answer every test of the first half. What it
cannot do it declares in its capabilities; tests that need the ability are skipped for it.
"""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import MEMORY
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.alpaca import KEY, SECRET, Alpaca
from servers.exchange import Exchange
from servers.judge import Judge
from servers.kis import ACCOUNT, HTS_ID, PAPER_KEY, PAPER_SECRET, PRODUCT, REAL_KEY, REAL_SECRET, Kis

from alpha_trader.alpaca_broker import paper_broker
from alpha_trader.alpaca_line import line_to
from alpha_trader.bars import Panel, bars_frame, panel_of
from alpha_trader.broker import Broker, look, missing, refusal
from alpha_trader.domain import (
    Ambiguous,
    Duplicate,
    InputError,
    NotFound,
    NotSent,
    OrderIntent,
    OrderStatus,
    OrderType,
    Purpose,
    Rejected,
    RejectReason,
    Side,
)
from alpha_trader.fills import CostRules, cash_flow, exit_level, market_fill
from alpha_trader.kis_broker import live_kis, paper_kis
from alpha_trader.kis_data import PAPER, REAL, Keys, kis_line
from alpha_trader.samples import synthetic_panel
from alpha_trader.sessions import session_close, session_open
from alpha_trader.simulated import FaultPlan, SimBroker

DAYS = [date(2024, 1, day) for day in (2, 3, 4, 5, 8)]
CAPITAL = Decimal(100_000)
COSTS = CostRules(0.001, 0.0, 0.0002, 0.0001, 0.01)
FREE = CostRules(0.001, 0.0, 0.0, 0.0, 0.0)


def make_tape(**changes: list[float]) -> Panel:
    "ACME moves and pays, BOLT rests at 20, MUTE does not trade on the second day, CENT costs half a dollar"
    acme = {
        "open": [100.0, 101, 50, 52, 54],
        "high": [104.0, 102, 53, 56, 55],
        "low": [99.0, 94, 49, 51, 53],
        "close": [102.0, 96, 52, 55, 54],
        "volume": [1e6] * 5,
        "split": [1.0, 1, 2, 1, 1],
        "dividend": [0.0, 0, 0, 0.5, 0],
    } | changes
    flat = {"open": [20.0] * 5, "high": [21.0] * 5, "low": [19.0] * 5, "close": [20.0] * 5, "volume": [1e6] * 5}
    cent = {name: [value / 40 for value in values] if name != "volume" else values for name, values in flat.items()}
    mute = bars_frame(DAYS, flat)
    mute.iloc[1, :5] = np.nan
    frames = {"ACME": bars_frame(DAYS, acme), "BOLT": bars_frame(DAYS, flat), "CENT": bars_frame(DAYS, cent)}
    return panel_of(frames | {"MUTE": mute}, "test", "test")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@dataclass
class Venue:
    "A broker whose clock the tests move"

    broker: Broker
    to: Callable[[datetime], None]
    by_hand: Callable[[OrderIntent], object]
    fee: Decimal = Decimal("0.001")  # of the value, each side


def sim_venue(folder: Path, **more: object) -> Venue:
    broker = SimBroker(folder / "book.db", make_tape(), session_open(DAYS[0]), "demo", CAPITAL, FREE, **more)  # type: ignore[arg-type]
    return Venue(broker, broker.advance, broker.by_hand)


def nameless_venue(folder: Path) -> Venue:
    return sim_venue(folder, client_ids=False)


def alpaca_venue(folder: Path) -> Venue:
    "The real client library over real HTTP; Alpaca's specification judges every request and reply"
    exchange = Exchange(make_tape(), session_open(DAYS[0]), CAPITAL)
    service = Alpaca(exchange, CAPITAL)
    line = line_to(service.url, KEY, SECRET, lambda: None, lambda: exchange.now, lambda seconds: None)
    line.client._session.hooks["response"].append(Judge("trading", service.url))

    def by_hand(intent: OrderIntent) -> object:
        return exchange.submit(intent.symbol, intent.side.value, intent.quantity, "market")

    return Venue(paper_broker(line), exchange.to, by_hand, Decimal(0))


def kis_venue(folder: Path, paper: bool = False) -> Venue:
    "The real client library over real HTTP; the server refuses whatever differs from KIS's own samples"
    exchange = Exchange(make_tape(), session_open(DAYS[0]), CAPITAL)
    service = Kis(exchange, CAPITAL, where={"BOLT": "NYSE", "CENT": "AMEX"})
    real, twin = Keys(REAL_KEY, REAL_SECRET), Keys(PAPER_KEY, PAPER_SECRET) if paper else None
    number, urls = f"{ACCOUNT}-{PRODUCT}", {REAL: service.url, PAPER: service.paper_url}
    still = {"wait": lambda: None, "sleep": lambda seconds: None}
    line = kis_line(real, twin, number, HTS_ID, folder / "kis", lambda: exchange.now, urls, **still)  # type: ignore[arg-type]
    broker = paper_kis(line, folder / "kis") if paper else live_kis(line, folder / "kis", number)

    def by_hand(intent: OrderIntent) -> object:
        return exchange.submit(intent.symbol, intent.side.value, intent.quantity, "market")

    return Venue(broker, exchange.to, by_hand, Decimal(0))


def kis_paper_venue(folder: Path) -> Venue:
    return kis_venue(folder, paper=True)


VENUES: dict[str, Callable[[Path], Venue]] = {
    "sim": sim_venue,
    "sim-nameless": nameless_venue,
    "alpaca": alpaca_venue,
    "kis": kis_venue,
    "kis-paper": kis_paper_venue,
}


@pytest.fixture(params=VENUES)
def venue(request: pytest.FixtureRequest, tmp_path: Path) -> Venue:
    return VENUES[request.param](tmp_path)


def buy(symbol: str = "ACME", quantity: object = 10, day: int = 0, **more: object) -> OrderIntent:
    shares = Decimal(str(quantity))
    return OrderIntent("demo", "mom", DAYS[day], symbol, Side.BUY, Purpose.ENTRY, shares, **more)  # type: ignore[arg-type]


def sell(symbol: str = "ACME", quantity: object = 10, day: int = 0, **more: object) -> OrderIntent:
    shares, purpose = Decimal(str(quantity)), more.pop("purpose", Purpose.EXIT)
    return OrderIntent("demo", "mom", DAYS[day], symbol, Side.SELL, purpose, shares, **more)  # type: ignore[arg-type]


def stop(price: object, quantity: object = 10, day: int = 0, **more: object) -> OrderIntent:
    level = Decimal(str(price))
    kind = {"purpose": Purpose.STOP, "order_type": OrderType.STOP, "stop_price": level}
    return sell(quantity=quantity, day=day, **kind, **more)


def target(price: object, quantity: object = 10, day: int = 0, **more: object) -> OrderIntent:
    level = Decimal(str(price))
    kind = {"purpose": Purpose.TARGET, "order_type": OrderType.LIMIT, "limit_price": level}
    return sell(quantity=quantity, day=day, **kind, **more)


def resting(venue: Venue, quantity: object = 10) -> OrderIntent:
    "A sale that waits: a stop where there are stops, a limit far away elsewhere"
    return stop(90, quantity) if venue.broker.caps.stop else target(200, quantity)


EVER = datetime(2000, 1, 1, tzinfo=UTC)


# ---------------------------------------------------------------------------------------------- conformance


def test_has_every_call(venue: Venue) -> None:
    assert missing(venue.broker) == []


def test_a_new_account_has_its_capital_and_nothing_else(venue: Venue) -> None:
    account = venue.broker.account()
    assert (account.cash, account.equity, account.last_equity, account.buying_power) == (CAPITAL,) * 4
    assert account.currency == "USD" and not account.blocked
    assert venue.broker.positions() == [] and venue.broker.orders(EVER) == [] and venue.broker.fills(EVER) == []


def test_the_clock_knows_open_and_closed(venue: Venue) -> None:
    clock = venue.broker.clock()
    assert (clock.is_open, clock.next_close, clock.next_open) == (True, session_close(DAYS[0]), session_open(DAYS[1]))
    venue.to(session_close(DAYS[0]))
    clock = venue.broker.clock()
    assert (clock.is_open, clock.next_close, clock.next_open) == (False, session_close(DAYS[1]), session_open(DAYS[1]))
    assert clock.now == session_close(DAYS[0]) and clock.now.tzinfo is not None


def test_assets_leaves_unknown_symbols_out(venue: Venue) -> None:
    venue.to(session_open(DAYS[1]))
    assets = venue.broker.assets(["ACME", "CENT", "NOPE"])
    assert sorted(assets) == ["ACME", "CENT"]
    assert assets["ACME"].tradable
    assert (assets["ACME"].tick, assets["CENT"].tick) == (Decimal("0.01"), Decimal("0.0001"))


def test_a_market_order_fills_once_and_everything_agrees(venue: Venue) -> None:
    order = venue.broker.submit(buy())
    assert (order.status, order.filled_quantity, order.average_price) == (OrderStatus.FILLED, 10, 100)
    assert venue.broker.order(order.broker_id) == order
    [fill], [position] = venue.broker.fills(EVER), venue.broker.positions()
    assert (fill.broker_id, fill.quantity, fill.price, fill.fee) == (order.broker_id, 10, 100, 1000 * venue.fee)
    assert (position.symbol, position.quantity, position.quantity_free, position.average_price) == ("ACME", 10, 10, 100)
    assert venue.broker.account().cash == CAPITAL + fill.cash == 99000 - 1000 * venue.fee


def test_our_name_is_on_the_order_where_there_are_names(venue: Venue) -> None:
    order = venue.broker.submit(buy())
    if venue.broker.caps.client_ids:
        assert order.client_id == buy().client_id == venue.broker.fills(EVER)[0].client_id
        assert venue.broker.find(buy()) == order
    else:
        assert order.client_id is None and venue.broker.fills(EVER)[0].client_id is None
    assert venue.broker.find(buy("BOLT")) is None


def test_the_same_name_trades_once_for_ever(venue: Venue) -> None:
    "DA-2: a retry is not a second order, not even with other numbers, not even after the first is over"
    if not venue.broker.caps.client_ids:
        pytest.skip("orders cannot be named here")
    order = venue.broker.submit(buy(order_type=OrderType.LIMIT, limit_price=Decimal(1)))
    for again in (buy(quantity=11), buy()):
        with pytest.raises(Duplicate):
            venue.broker.submit(again)
    venue.broker.cancel(order.broker_id)
    with pytest.raises(Duplicate):
        venue.broker.submit(buy())
    assert len(venue.broker.orders(EVER)) == 1


@pytest.mark.parametrize(
    ("intent", "reason"),
    [
        (buy(quantity=2000), RejectReason.FUNDS),
        (buy("NOPE"), RejectReason.SYMBOL),
        (sell(), RejectReason.QTY_HELD),
        (buy(order_type=OrderType.LIMIT, limit_price=Decimal("99.995")), RejectReason.PRICE),
        (buy(quantity="0.5"), RejectReason.OTHER),
    ],
)
def test_a_refusal_says_why_and_leaves_no_trace(venue: Venue, intent: OrderIntent, reason: RejectReason) -> None:
    before = venue.broker.account()
    with pytest.raises(Rejected) as refused:
        venue.broker.submit(intent)
    assert refused.value.reason is reason
    assert venue.broker.account() == before and venue.broker.orders(EVER) == [] and venue.broker.find(intent) is None
    market = {"order_type": OrderType.MARKET, "limit_price": None}
    good = replace(intent, symbol="BOLT", side=Side.BUY, quantity=Decimal(1), **market)
    assert venue.broker.submit(good).status is OrderStatus.FILLED


def test_market_orders_are_refused_while_the_market_is_closed(venue: Venue) -> None:
    for moment in (session_close(DAYS[0]), session_open(DAYS[1]) - timedelta(microseconds=1)):
        venue.to(moment)
        with pytest.raises(Rejected) as refused:
            venue.broker.submit(buy(day=1))
        assert refused.value.reason is RejectReason.CLOSED
    venue.to(session_open(DAYS[1]))
    assert venue.broker.submit(buy(day=1)).average_price == 101


def needs_groups(venue: Venue) -> None:
    if not venue.broker.caps.bracket:
        pytest.skip("one order cannot cancel another here")


def test_a_stop_sells_at_its_level_and_the_rest_of_its_group_is_cancelled(venue: Venue) -> None:
    needs_groups(venue)
    venue.broker.submit(buy())
    venue.to(session_open(DAYS[1]))
    group = "ACME-1"
    first = venue.broker.submit(target(110, quantity=5, day=1, oco_group=group))
    second = venue.broker.submit(stop(95, day=1, oco_group=group))
    assert (first.status, second.status, venue.broker.positions()[0].quantity_free) == ("open", "open", 0)
    venue.to(session_close(DAYS[1]))
    assert [venue.broker.order(o.broker_id).status for o in (first, second)] == ["canceled", "filled"]
    assert venue.broker.fills(EVER)[-1].price == 95 and venue.broker.positions() == []


def test_when_one_bar_reaches_both_the_stop_wins(venue: Venue) -> None:
    needs_groups(venue)
    venue.broker.submit(buy())
    venue.to(session_open(DAYS[1]))
    venue.broker.submit(target("101.5", quantity=5, day=1, oco_group="g"))
    venue.broker.submit(stop(95, day=1, oco_group="g"))
    venue.to(session_close(DAYS[1]))
    assert [(fill.price, fill.quantity) for fill in venue.broker.fills(EVER)[1:]] == [(95, 10)]


def test_a_gap_below_the_stop_sells_at_the_open(venue: Venue) -> None:
    if not venue.broker.caps.stop:
        pytest.skip("no stop rests here")
    venue.broker.submit(buy())
    venue.to(session_close(DAYS[0]))
    venue.broker.submit(stop("101.5", day=1))
    venue.to(session_close(DAYS[1]))
    assert venue.broker.fills(EVER)[-1].price == 101


def test_a_limit_needs_to_be_traded_through(venue: Venue) -> None:
    venue.broker.submit(buy())
    touched = venue.broker.submit(target(104, quantity=5))
    through = venue.broker.submit(replace(target("103.99", quantity=5), attempt=2))
    venue.to(session_close(DAYS[0]))
    assert venue.broker.order(touched.broker_id).status is OrderStatus.EXPIRED
    assert venue.broker.order(through.broker_id).average_price == Decimal("103.99")


def test_what_was_not_reached_expires_with_its_session(venue: Venue) -> None:
    venue.broker.submit(buy())
    waiting = venue.broker.submit(target(200))
    assert venue.broker.orders(EVER, open_only=True) == [waiting]
    venue.to(session_close(DAYS[0]))
    assert venue.broker.orders(EVER, open_only=True) == []
    assert venue.broker.order(waiting.broker_id).status is OrderStatus.EXPIRED
    venue.to(session_close(DAYS[1]))
    assert len(venue.broker.fills(EVER)) == 1


def test_held_shares_are_not_sold_twice(venue: Venue) -> None:
    venue.broker.submit(buy())
    order = venue.broker.submit(resting(venue, quantity=8))
    assert venue.broker.positions()[0].quantity_free == 2
    with pytest.raises(Rejected) as refused:
        venue.broker.submit(sell(quantity=3))
    assert refused.value.reason is RejectReason.QTY_HELD
    venue.broker.cancel(order.broker_id)
    assert venue.broker.submit(sell(quantity=10)).status is OrderStatus.FILLED
    assert venue.broker.positions() == []


def test_cancelling_is_a_wish(venue: Venue) -> None:
    filled = venue.broker.submit(buy())
    venue.broker.cancel(filled.broker_id)
    assert venue.broker.order(filled.broker_id) == filled
    waiting = venue.broker.submit(resting(venue))
    venue.broker.cancel(waiting.broker_id)
    venue.broker.cancel(waiting.broker_id)
    assert venue.broker.order(waiting.broker_id).status is OrderStatus.CANCELED
    with pytest.raises(NotFound):
        venue.broker.order("00000000-0000-4000-8000-00000000ffff")


def test_orders_by_hand_are_seen_and_have_no_name_of_ours(venue: Venue) -> None:
    venue.by_hand(buy(quantity=7))
    [order] = venue.broker.orders(EVER)
    assert order.client_id is None and venue.broker.positions()[0].quantity == 7


def test_splits_and_dividends_are_booked_and_reported(venue: Venue) -> None:
    "KIS books them without a word: there they are what two looks differ by, and so somebody has to look"
    venue.broker.submit(buy(quantity=11))
    assert venue.broker.corporate_actions(EVER) == []
    venue.to(session_open(DAYS[2]))
    [position] = venue.broker.positions()
    assert (position.quantity, position.average_price) == (22, 50)
    assert [action.kind for action in venue.broker.corporate_actions(EVER)] == ["split"]
    venue.to(session_open(DAYS[3]))
    kinds = [(a.kind, a.session, a.amount, a.quantity, a.cash) for a in venue.broker.corporate_actions(EVER)]
    assert kinds == [("split", DAYS[2], 2, 11, 0), ("dividend", DAYS[3], Decimal("0.5"), 0, 11)]


def test_since_means_written_down_since(venue: Venue) -> None:
    venue.broker.submit(buy())
    venue.to(session_open(DAYS[1]))
    later = venue.broker.submit(buy("BOLT", day=1))
    assert [fill.broker_id for fill in venue.broker.fills(session_open(DAYS[1]))] == [later.broker_id]
    assert [fill.symbol for fill in venue.broker.fills(EVER)] == ["ACME", "BOLT"]


def test_last_equity_is_the_previous_close(venue: Venue) -> None:
    venue.broker.submit(buy(quantity=100))
    closes = [session_close(DAYS[0]), session_open(DAYS[1]), session_close(DAYS[1]), session_open(DAYS[2])]
    fee = 10_000 * venue.fee
    expected = [CAPITAL, CAPITAL + 200 - fee, CAPITAL + 200 - fee, CAPITAL - 400 - fee]  # +2 then −4 on 100 shares
    for moment, last in zip(closes, expected, strict=True):
        venue.to(moment)
        assert venue.broker.account().last_equity == last


def test_a_quiet_broker_gives_one_look(venue: Venue) -> None:
    venue.broker.submit(buy())
    naps: list[float] = []
    seen = look(venue.broker, EVER, naps.append)
    assert (seen.account.cash, len(seen.orders), len(seen.fills), naps) == (99000 - 1000 * venue.fee, 1, 1, [])


# ------------------------------------------------------------------------------------- the simulated broker


def sim(folder: Path, at: datetime | None, name: str = "book", **more: object) -> SimBroker:
    given = {"tape": make_tape(), "costs": FREE} | more
    return SimBroker(folder / f"{name}.db", now=at, account_id="demo", capital=CAPITAL, **given)  # type: ignore[arg-type]


def test_a_split_restates_the_last_price(tmp_path: Path) -> None:
    broker = sim(tmp_path, session_open(DAYS[0]))
    broker.submit(buy(quantity=11))
    broker.advance(session_open(DAYS[2]))
    assert broker.positions()[0].last_price == 48
    assert broker.account().equity == broker.account().last_equity


def test_refusals_match_the_declared_abilities(tmp_path: Path) -> None:
    broker = sim(tmp_path, session_open(DAYS[0]))
    assert refusal(buy(quantity="0.5"), broker.caps) is not None
    fractional = sim(tmp_path, session_open(DAYS[0]), "fractional", fractional=True)
    assert fractional.submit(buy(quantity="0.5")).filled_quantity == Decimal("0.5")
    assert fractional.account().cash == CAPITAL - 50 - Decimal("0.05")


def test_prices_and_fees_are_those_of_the_backtest(tmp_path: Path) -> None:
    broker = sim(tmp_path, session_open(DAYS[0]), costs=COSTS)
    order = broker.submit(buy(quantity=300))
    price, fee = market_fill(300.0, 100.0, 1e6, COSTS)
    assert float(order.average_price or 0) == price and float(broker.fills(EVER)[0].fee) == fee
    assert float(broker.account().cash - CAPITAL) == pytest.approx(cash_flow(300.0, price, fee), abs=1e-9)
    broker.submit(stop(exit_level(price, -0.05), quantity=300))
    broker.advance(session_open(DAYS[1]))
    broker.submit(stop(exit_level(price, -0.05), quantity=300, day=1))
    broker.advance(session_open(DAYS[2]))
    assert float(broker.fills(EVER)[-1].price) == market_fill(-300.0, exit_level(price, -0.05), 1e6, COSTS)[0]


def test_cash_of_today_s_sales_waits_under_t1(tmp_path: Path) -> None:
    broker = sim(tmp_path, session_open(DAYS[0]), cash_rule="t1")
    broker.submit(buy(quantity=990))
    broker.advance(session_open(DAYS[1]))
    broker.submit(sell(quantity=990, day=1))
    assert broker.account().settled_cash == Decimal("901.00") == broker.account().buying_power
    with pytest.raises(Rejected, match="can be spent"):
        broker.submit(buy("BOLT", 100, day=1))
    broker.advance(session_open(DAYS[2]))
    assert broker.account().settled_cash == broker.account().cash
    assert broker.submit(buy("BOLT", 100, day=2)).status is OrderStatus.FILLED


def test_open_buys_reserve_their_money(tmp_path: Path) -> None:
    broker = sim(tmp_path, session_open(DAYS[0]))
    broker.submit(buy(quantity=900, order_type=OrderType.LIMIT, limit_price=Decimal(90)))
    with pytest.raises(Rejected, match="can be spent"):
        broker.submit(buy("BOLT", 1000))
    assert broker.account().buying_power == CAPITAL - 81081


def test_a_symbol_that_does_not_trade_does_not_fill(tmp_path: Path) -> None:
    broker = sim(tmp_path, session_open(DAYS[1]))
    order = broker.submit(buy("MUTE", day=1))
    assert order.status is OrderStatus.OPEN
    broker.advance(session_close(DAYS[1]))
    assert broker.order(order.broker_id).status is OrderStatus.EXPIRED and broker.fills(EVER) == []


def test_a_tape_that_comes_late_fills_late_and_is_still_news(tmp_path: Path) -> None:
    short = make_tape().upto(DAYS[1])
    broker = sim(tmp_path, session_open(DAYS[2]), tape=short)
    order = broker.submit(buy(day=2))
    assert order.status is OrderStatus.OPEN
    broker.close()
    again = sim(tmp_path, session_open(DAYS[4]))
    assert again.order(order.broker_id).average_price == 50
    assert [fill.at for fill in again.fills(session_open(DAYS[4]))] == [session_open(DAYS[2])]
    assert again.corporate_actions(session_open(DAYS[4]))[0].kind == "dividend"


def test_a_late_open_that_is_too_dear_is_refused_not_lent(tmp_path: Path) -> None:
    broker = sim(tmp_path, session_open(DAYS[1]), tape=make_tape().upto(DAYS[0]))
    order = broker.submit(buy(quantity=970, day=1))  # 97 % at the close of 102, 98 % at 101
    broker.close()
    risen = make_tape(open=[100.0, 110, 50, 52, 54], high=[104.0, 110, 53, 56, 55])
    dear = sim(tmp_path, session_open(DAYS[1]), tape=risen)
    assert dear.order(order.broker_id).status is OrderStatus.REJECTED
    assert dear.account().cash == CAPITAL


def test_orders_that_wait_over_a_split_are_cancelled(tmp_path: Path) -> None:
    broker = sim(tmp_path, session_open(DAYS[0]))
    broker.submit(buy())
    broker.advance(session_close(DAYS[1]))
    waiting = broker.submit(stop(90, day=2))
    broker.advance(session_close(DAYS[2]))
    assert broker.order(waiting.broker_id).status is OrderStatus.CANCELED and broker.positions()[0].quantity == 20


def test_the_book_belongs_to_one_account_and_does_not_go_back(tmp_path: Path) -> None:
    broker = sim(tmp_path, session_open(DAYS[1]))
    broker.submit(buy(day=1))
    with pytest.raises(InputError, match="cannot go back"):
        sim(tmp_path, session_open(DAYS[0]))
    with pytest.raises(InputError, match="belongs to account 'demo'"):
        SimBroker(tmp_path / "book.db", make_tape(), None, "other", CAPITAL, FREE)
    with pytest.raises(InputError, match="holds ACME"):
        sim(tmp_path, None, tape=make_tape().select(["BOLT"]))
    with pytest.raises(InputError, match="a new one needs a time"):
        sim(tmp_path, None, "none")
    assert sim(tmp_path, None).now == session_open(DAYS[1]) and not (tmp_path / "none.db").exists()


def test_faults_happen_before_or_after_the_order_exists(tmp_path: Path) -> None:
    def fail(error: Exception, at: int) -> Callable[[int, OrderIntent], None]:
        def fault(call: int, intent: OrderIntent) -> None:
            if call == at:
                raise error

        return fault

    plan = FaultPlan(before_accept=fail(NotSent("line"), 1), after_accept=fail(Ambiguous("lost"), 2))
    broker = sim(tmp_path, session_open(DAYS[0]), faults=plan)
    with pytest.raises(NotSent):
        broker.submit(buy())
    assert broker.find(buy()) is None
    with pytest.raises(Ambiguous):
        broker.submit(buy())
    assert broker.find(buy()) is not None and broker.submit(buy("BOLT")).status is OrderStatus.FILLED


def dump(path: Path) -> list[str]:
    book = sqlite3.connect(path)
    lines = list(book.iterdump())
    book.close()
    return lines


def live(broker: SimBroker, day: int) -> None:
    "A day of trading that never does twice what is done already"
    broker.advance(max(broker.now, session_open(DAYS[day])))
    for intent in (buy(quantity=50, day=day), buy("BOLT", 50, day=day), stop(95, 50, day=day)):
        if broker.find(intent) is None:
            broker.submit(intent)


def test_a_life_lived_twice_leaves_the_same_book(tmp_path: Path) -> None:
    for name in ("one", "two"):
        broker = sim(tmp_path, session_open(DAYS[0]), name, costs=COSTS)
        for day in (0, 1, 3):
            live(broker, day)
        broker.close()
    assert dump(tmp_path / "one.db") == dump(tmp_path / "two.db")


KILLER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_broker as t
import alpha_trader.simulated as s
left = [{steps}]
done = s.change_cash
def dying(book, amount):
    left[0] -= 1
    done(book, amount)
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
s.change_cash = dying
broker = t.sim(Path({folder!r}), t.session_open(t.DAYS[0]), costs=t.COSTS)
for day in (0, 1, 3):
    t.live(broker, day)
"""


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_killed_in_the_middle_of_a_transaction_the_book_ends_the_same(tmp_path: Path, steps: int) -> None:
    "kill -9 between the cash and the shares of the n-th booking, then once more from the beginning"
    broker = sim(tmp_path, session_open(DAYS[0]), "reference", costs=COSTS)
    for day in (0, 1, 3):
        live(broker, day)
    broker.close()
    script = KILLER.format(here=str(Path(__file__).parent), folder=str(tmp_path), steps=steps)
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-500:]
    rest = sim(tmp_path, None, costs=COSTS)
    for day in (0, 1, 3):
        live(rest, day) if session_open(DAYS[day]) >= rest.now else None
    rest.close()
    assert dump(tmp_path / "book.db") == dump(tmp_path / "reference.db")


TAPE = synthetic_panel(symbols=3, sessions=12, seed=3)
SESSIONS = TAPE.sessions.tolist()
moves = st.lists(
    st.tuples(
        st.sampled_from(["advance", "buy", "sell", "stop", "target", "cancel"]),
        st.integers(0, 2),
        st.integers(1, 400),
        st.integers(80, 120),
    ),
    max_size=25,
)


@settings(max_examples=120)
@given(moves=moves, rule=st.sampled_from(["margin", "t1"]))
def test_money_and_shares_are_never_invented(moves: list, rule: str) -> None:
    "cash = capital + fills + actions, shares = fills + actions, neither below zero, whatever is asked for"
    with TemporaryDirectory(dir=MEMORY) as folder:
        invent_nothing(Path(folder) / "book.db", moves, rule)


def invent_nothing(book: Path, moves: list, rule: str) -> None:
    broker = SimBroker(book, TAPE, session_open(SESSIONS[0]), "demo", Decimal(20_000), COSTS, cash_rule=rule)
    day = 0
    for n, (move, symbol, quantity, percent) in enumerate(moves):
        if move == "advance":
            day = min(day + 1, len(SESSIONS) - 1)
            broker.advance(session_open(SESSIONS[day]))
            continue
        side = Side.BUY if move == "buy" else Side.SELL
        price = Decimal(str(round(float(TAPE.open[day, symbol]) * percent / 100, 2)))
        kind = {"stop": OrderType.STOP, "target": OrderType.LIMIT}.get(move, OrderType.MARKET)
        levels = {OrderType.LIMIT: {"limit_price": price}, OrderType.STOP: {"stop_price": price}}.get(kind, {})
        group = {"oco_group": f"{symbol}"} if quantity % 2 and levels else {}
        decision = ("demo", "any", SESSIONS[day], TAPE.symbols[symbol], side, Purpose.CLOSE, Decimal(quantity), kind)
        with suppress(Rejected):
            if move == "cancel" and broker.orders(EVER):
                broker.cancel(broker.orders(EVER)[-1].broker_id)
            else:
                broker.submit(OrderIntent(*decision, **levels, **group, attempt=n + 1))
    fills, actions, account = broker.fills(EVER), broker.corporate_actions(EVER), broker.account()
    assert account.cash == 20_000 + sum(f.cash for f in fills) + sum(a.cash for a in actions)
    assert account.cash >= 0 and account.settled_cash <= account.cash
    held = {p.symbol: p.quantity for p in broker.positions()}
    for symbol in TAPE.symbols:
        bought = sum(f.signed_quantity for f in fills if f.symbol == symbol)
        split = sum(a.quantity for a in actions if a.symbol == symbol)
        assert held.get(symbol, 0) == bought + split >= 0
    assert all(p.quantity_free >= 0 for p in broker.positions())
    broker.close()
