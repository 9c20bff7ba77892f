"""The table of faults, by number, at Alpaca: the real client, real HTTP, every request and reply judged

Rows 17 (websockets) and 23 to 28 (KIS) are elsewhere. What is asserted in each test beside its own point are the
invariants of `floor.py`, against the exchange's book.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from servers.exchange import opening
from servers.wire import Fault, Reply
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

import alpha_trader.alpaca_broker as adapter
from alpha_trader.books import orders_of, orders_with_fills
from alpha_trader.cycle import clock_gate, decide, observe
from alpha_trader.domain import (
    IntentStatus,
    LeaseHeld,
    NotSent,
    OrderIntent,
    OrderStatus,
    ProtocolError,
    Rejected,
    RunError,
)
from alpha_trader.execution import (
    Outcome,
    frozen,
    pending,
    record_intents,
    resolve_unknown,
    send,
    submit_intent,
)
from alpha_trader.signals import Reason
from alpha_trader.store import FillRow, OrderRow, connect, halted, writing
from faults.floor import DAYS, FIRST, TAPE, Death, Doom, Floor, Trader, entry, in_the_end, sale

HTML = b"<html><body>502 Bad Gateway</body></html>"


def sent(trader: Trader, *intents: OrderIntent, seconds: int = 60) -> list[Outcome]:
    record_intents(trader.engine, intents, 1, trader.clock(), trader.fence)
    return send(trader.engine, trader.broker, intents, *trader.acting, trader.clock() + timedelta(seconds=seconds))


def one_order(floor: Floor, trader: Trader, posts: int, intent: OrderIntent | None = None) -> None:
    "However often we asked, there is one order, and both books agree"
    in_the_end(floor, trader)
    wish = intent or entry()
    assert len(floor.orders_of(wish)) == 1 and floor.posts().count(wish.client_id) == posts
    assert trader.status(wish) is IntentStatus.FILLED


# ------------------------------------------------------------------------------------ 1 to 4: the line breaks


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("where", ["refused", "dns", "tls"])
def test_fault_01_what_cannot_connect_was_not_sent(floor: Floor, trader: Trader, where: str) -> None:
    "Row 1: connect refused / DNS / TLS → NotSent; the same id later; I1"
    elsewhere = {"refused": closed_port(), "dns": "http://nowhere.invalid", "tls": floor.url.replace("http:", "https:")}
    trader.line.client._base_url = elsewhere[where]
    with pytest.raises(NotSent):
        trader.broker.submit(entry())
    outcome = sent(trader, entry(), seconds=0)[0]
    assert outcome.status is IntentStatus.PLANNED and floor.posts() == [] and floor.ours() == []
    trader.line.client._base_url = floor.url
    assert sent(trader, entry())[0].status is IntentStatus.FILLED
    one_order(floor, trader, posts=1)


LOST = [("hang", 1.3), ("reset", 0.0), ("close", 0.0), ("truncate", 0.0), ("drip", 0.1)]


@pytest.mark.parametrize(("action", "seconds"), LOST)
def test_fault_02_an_answer_that_does_not_come_is_looked_up(floor: Floor, trader: Trader, action: str, seconds: float) -> None:
    "Row 2: accepted, then hang / RST / FIN / truncated / slow drip → Ambiguous, adopted; 1 order; I6. DA-2, DB-9"
    floor.fault("POST", "/orders", action, seconds=seconds)
    record_intents(trader.engine, [entry()], 1, trader.clock(), trader.fence)
    lost = submit_intent(trader.engine, trader.broker, entry().client_id, trader.fence, trader.clock)
    assert lost.status is IntentStatus.UNKNOWN and pending(trader.engine, "demo") == {"ACME": 10}, "I5: it counts"
    assert list(frozen(trader.engine, "demo")) == ["ACME"]
    found = resolve_unknown(trader.engine, trader.broker, entry().client_id, *trader.acting)
    assert found.status is IntentStatus.FILLED
    one_order(floor, trader, posts=1)


@pytest.mark.parametrize("action", ["hang", "reset", "close"])
def test_fault_03_lost_before_it_was_accepted_is_sent_again_under_its_name(floor: Floor, trader: Trader, action: str) -> None:
    "Row 3: dropped before accept → find() misses five times → the same id again"
    floor.fault("POST", "/orders", action, after=False, seconds=1.3)
    assert sent(trader, entry())[0].status is IntentStatus.FILLED
    assert floor.naps[:5] == [0.0, 0.0, 0.5, 2.0, 5.0] or 15.0 in floor.naps
    one_order(floor, trader, posts=2)


@pytest.mark.parametrize("reply", [Reply(504, {"message": "gateway"}), Reply(502, HTML), Reply(500, {"message": "no"}), Reply(503)])
def test_fault_04_a_server_error_after_accepting_is_not_sent_again(floor: Floor, trader: Trader, reply: Reply) -> None:
    "Row 4: accepted, then 504 / 502 HTML / 500 → as 2, exactly 1 POST (alpaca-py itself would send two, DA-2)"
    floor.fault("POST", "/orders", reply=reply)
    assert sent(trader, entry())[0].status is IntentStatus.FILLED
    one_order(floor, trader, posts=1)


# ------------------------------------------------------------------------------------ 5 to 9: odd answers


def too_many(floor: Floor, reset: float | None) -> Reply:
    stamp = {} if reset is None else {"X-RateLimit-Reset": str(int(floor.clock().timestamp() + reset))}
    return Reply(429, {"message": "too many requests."}, stamp)


@pytest.mark.parametrize(("reset", "waits"), [(20.0, 21.0), (-30.0, 3.0), (None, 3.0)])
def test_fault_05_too_many_requests_waits_as_long_as_it_is_told(
    floor: Floor, trader: Trader, reset: float | None, waits: float
) -> None:
    "Row 5: 429 on the POST, with Reset ahead, in the past, absent → waits for it, the same id, one order"
    floor.fault("POST", "/orders", after=False, reply=too_many(floor, reset))
    floor.naps.clear()
    assert sent(trader, entry())[0].status is IntentStatus.FILLED
    assert waits in [round(nap, 6) for nap in floor.naps]
    one_order(floor, trader, posts=2)


def test_fault_05_too_many_requests_beyond_the_deadline_stays_planned(floor: Floor, trader: Trader) -> None:
    "Row 5: what may only be sent after the deadline is not sent, nor waited for"
    floor.fault("POST", "/orders", after=False, reply=too_many(floor, 50.0))
    floor.naps.clear()
    assert sent(trader, entry(), seconds=30)[0].status is IntentStatus.PLANNED
    assert floor.posts() == [entry().client_id] and sum(floor.naps) == 0.0
    in_the_end(floor, trader)


@pytest.mark.parametrize("path", ["/account/activities", "/orders", "/positions"])
def test_fault_05_too_many_requests_while_reading_resumes(floor: Floor, trader: Trader, path: str) -> None:
    "Row 5: 429 on a GET → asked again, nothing is missing"
    sent(trader, entry())
    floor.fault("GET", path, after=False, reply=too_many(floor, 5.0))
    one_order(floor, trader, posts=1)


def test_fault_05_too_many_requests_between_two_pages(floor: Floor, trader: Trader) -> None:
    "Row 5: 429 on the second of three pages → the page is asked for again, no gap and no row twice"
    for _ in range(250):
        floor.exchange.submit("COIL", "buy", Decimal(1), "market")
    pages = iter((False, True))
    second = Fault(lambda r: "page_token" in r.query and next(pages, False), "reply", after=False, reply=too_many(floor, 5.0))
    floor.wire.faults.append(second)
    assert len(trader.broker.fills(opening(DAYS[0]))) == 250 and second.times == 0
    in_the_end(floor, trader)


def test_fault_05_we_stay_below_the_limit(floor: Floor, trader: Trader) -> None:
    "Row 5, I9: 400 reads in a row are paced by the shared limit; the exchange never sees 200 in a minute"
    began = floor.clock()
    for _ in range(400):
        trader.broker.account()
    assert floor.service.most == 180 and floor.clock() - began >= timedelta(seconds=120)


@pytest.mark.parametrize(("lag", "posts"), [(3, 1), (7, 2)])
def test_fault_06_a_lookup_that_lags_makes_no_second_order(floor: Floor, trader: Trader, lag: int, posts: int) -> None:
    "Row 6: the lookup answers 404 for a while after accepting → still 1 order; a second is refused as a duplicate"
    floor.service.lag[entry().client_id] = lag
    floor.fault("POST", "/orders", "reset")
    assert sent(trader, entry())[0].status is IntentStatus.FILLED
    one_order(floor, trader, posts)


def test_fault_07_a_duplicate_of_the_same_order_is_adopted(floor: Floor, trader: Trader) -> None:
    "Row 7: 422 duplicate, same symbol and quantity → adopted"
    record_intents(trader.engine, [entry()], 1, trader.clock(), trader.fence)
    trader.broker.submit(entry())
    assert sent(trader, entry())[0].status is IntentStatus.FILLED
    one_order(floor, trader, posts=2)


def test_fault_07_our_name_on_another_order_halts(floor: Floor, trader: Trader) -> None:
    "Row 7: 422 duplicate, another quantity → CONFLICT, halt, and the next symbol is not touched by it"
    trader.broker.submit(entry(quantity=11))
    outcome = sent(trader, entry())[0]
    assert outcome.status is IntentStatus.CONFLICT and "we wished 10" in outcome.error
    assert "conflict" in str(halted(trader.engine, "demo")) and "ACME" in frozen(trader.engine, "demo")
    in_the_end(floor, trader)


REFUSALS = [
    (403, {"code": 40310000, "message": "insufficient buying power", "buying_power": "10"}, "funds"),
    (
        403,
        {"code": 40310000, "message": "insufficient qty available for order (requested: 10, available: 0)"},
        "qty_held",
    ),
    (403, {"code": 40310000, "message": "potential wash trade detected. use complex orders"}, "wash"),
    (403, {"message": "account is blocked from trading"}, "blocked"),
    (422, {"code": 42210000, "message": "asset ACME is not tradable"}, "symbol"),
]


@pytest.mark.parametrize(("status", "body", "word"), REFUSALS)
def test_fault_08_a_refusal_is_final_and_the_next_symbol_goes_on(
    floor: Floor, trader: Trader, status: int, body: dict[str, Any], word: str
) -> None:
    "Row 8: 403 funds, held, wash, blocked → Rejected with its reason; the next goes on; no storm of retries"
    floor.fault("POST", "/orders", after=False, reply=Reply(status, body))
    first, second = sent(trader, entry(), entry("BOLT"))
    assert (first.status, second.status) == (IntentStatus.REJECTED, IntentStatus.FILLED) and f"({word})" in first.error
    assert sent(trader, entry())[0].status is IntentStatus.REJECTED
    assert floor.posts() == [entry().client_id, entry("BOLT").client_id]
    in_the_end(floor, trader)


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: {key: value for key, value in body.items() if key != name}


ODD: dict[str, dict[str, Any]] = {
    "empty": {"reply": Reply(200)},
    "html": {"reply": Reply(200, HTML)},
    "list": {"reply": Reply(200, [])},
    "new word": {"change": lambda body: body | {"status": "teleported"}},
    "null id": {"change": lambda body: body | {"id": None}},
    "no status": {"change": without("status")},
    "extra": {"change": lambda body: body | {"moon": {"phase": "full"}}},
    "numbers": {"change": lambda body: body | {"qty": 10, "filled_qty": 10.0, "filled_avg_price": 100.0}},
}


@pytest.mark.parametrize("kind", ODD)
def test_fault_09_an_odd_answer_loses_no_order(floor: Floor, trader: Trader, kind: str) -> None:
    "Row 9: 200 empty, HTML, new enum, missing / null / extra field, numbers for strings → never lost"
    floor.fault("POST", "/orders", **ODD[kind])
    assert sent(trader, entry())[0].status is IntentStatus.FILLED
    one_order(floor, trader, posts=1)


def test_fault_09_one_odd_order_does_not_hide_the_others(floor: Floor, trader: Trader) -> None:
    "Row 9: a status nobody knows in a list → the list is read; that order counts as open"
    sent(trader, entry(), entry("BOLT"))

    def teleport(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"status": "teleported"} if row["symbol"] == "ACME" else row for row in rows]

    floor.fault("GET", "/v2/orders", change=teleport, times=9)
    seen = {order.symbol: order.status for order in trader.broker.orders(opening(DAYS[0]))}
    assert seen == {"ACME": OrderStatus.UNKNOWN, "BOLT": OrderStatus.FILLED}
    in_the_end(floor, trader)


# ------------------------------------------------------------------------------------ 10, 11: dying, and two at once


PLAN = {"ACME": 10, "BOLT": 20}


def test_fault_10_killed_anywhere_and_run_again(floor: Floor, request: pytest.FixtureRequest) -> None:
    "Row 10: the process ends before or after any commit or request of a cycle; the next carries the plan out. I1–I5"
    calm = Doom()
    with_calm = floor.trader(calm)
    with_calm.cycle(FIRST, PLAN)
    with_calm.close()
    step = 1 if request.config.getoption("--slow") else 5
    for place in range(1, calm.count + 1, step):
        floor.reset()
        victim = None
        try:
            victim = floor.trader(Doom(place))
            victim.cycle(FIRST, PLAN)
            raise AssertionError(f"place {place} of {calm.count} was not reached: {calm.trail[place - 1]}")
        except Death:
            pass
        with floor.trading() as heir:
            heir.cycle(FIRST, PLAN)
            in_the_end(floor, heir)
        book = sorted((order.symbol, order.side, order.kind, order.status) for order in floor.ours())
        assert book == [
            ("ACME", "buy", "market", "filled"), ("ACME", "sell", "stop", "new"),
            ("BOLT", "buy", "market", "filled"), ("BOLT", "sell", "stop", "new"),
        ], f"{place}: {calm.trail[place - 1]}"  # fmt: skip
        assert max(map(floor.posts().count, floor.posts())) <= 2


def test_fault_11_one_of_two_holds_the_account(floor: Floor) -> None:
    "Row 11: two processes in the same slot → one lease holder, one order; the older one cannot send any more"
    first = floor.trader()
    record_intents(first.engine, [entry("COIL")], 1, first.clock(), first.fence)
    second = floor.trader()
    with pytest.raises(LeaseHeld):
        submit_intent(first.engine, first.broker, entry("COIL").client_id, first.fence, first.clock)
    with pytest.raises(LeaseHeld):
        first.cycle(FIRST, PLAN)
    assert floor.posts() == []
    second.cycle(FIRST, PLAN)
    one_order(floor, second, posts=1)
    for each in (first, second):
        each.close()


def test_fault_11_the_lease_is_lost_while_the_answer_is_under_way(floor: Floor, trader: Trader) -> None:
    "Row 11: taken over between the POST and its answer → the old one writes nothing, the new one adopts"
    heirs: list[Trader] = []
    floor.fault("POST", "/orders", then=lambda: heirs.append(Trader(floor.path, floor.url, floor.clock, floor.sleep, None)))
    with pytest.raises(LeaseHeld):
        sent(trader, entry())
    assert trader.status(entry()) is IntentStatus.SENDING
    one_order(floor, heirs[0], posts=1)
    heirs[0].close()


# ------------------------------------------------------------------------------------ 12 to 16: what becomes of it


def half(floor: Floor) -> None:
    floor.exchange.portion = lambda order: order.left // 2 if order.kind == "market" else order.left


def test_fault_12_an_entry_that_half_fills_is_cut_off_at_the_deadline(floor: Floor, trader: Trader) -> None:
    "Row 12: partial fill, then our time-out cancels the rest: 5 are kept and protected, the other 5 are released"
    half(floor)
    outcomes = trader.cycle(FIRST, {"ACME": 10})
    states = [(o.intent.purpose.value, o.status.value, int(o.filled_quantity), int(o.intent.quantity)) for o in outcomes]
    assert states == [("entry", "canceled", 5, 10), ("stop", "open", 0, 5)]
    assert pending(trader.engine, "demo") == {}
    in_the_end(floor, trader)


@pytest.mark.parametrize("end", ["expired", "rejected", "canceled"])
def test_fault_12_the_exchange_ends_the_rest(floor: Floor, trader: Trader, end: str) -> None:
    "Row 12: partial fill, then expired / rejected / cancelled → filled_qty kept, remainder released"
    half(floor)
    assert sent(trader, entry(), seconds=0)[0].status is IntentStatus.PARTIAL
    assert pending(trader.engine, "demo") == {"ACME": 5}
    floor.exchange.end(floor.ours()[0], end)
    in_the_end(floor, trader)
    assert trader.status(entry()) == end and pending(trader.engine, "demo") == {}
    assert floor.exchange.shares == {"ACME": 5}


@pytest.mark.parametrize("answer", [204, 422])
def test_fault_13_a_fill_may_win_the_race(floor: Floor, trader: Trader, answer: int) -> None:
    "Row 13: cancel against fill (204 then filled; 422) → what counts is filled; no second exit"
    half(floor)
    sent(trader, entry(), seconds=0)
    order = floor.ours()[0]
    reply = Reply(204) if answer == 204 else None
    fill = lambda: floor.exchange.execute(order, Decimal(100), order.left)  # noqa: E731
    floor.fault("DELETE", "/orders/", now=fill, after=answer == 422, reply=reply)
    assert trader.cancel(entry().client_id).status is IntentStatus.FILLED
    one_order(floor, trader, posts=1)
    assert floor.exchange.shares == {"ACME": 10}


def test_fault_13_the_stop_sells_in_the_moment_of_the_exit(floor: Floor, trader: Trader) -> None:
    "Row 13: the resting stop fills while we cancel it to sell → there is nothing left to sell, and nothing is sold"
    trader.cycle(FIRST, {"ACME": 10})
    floor.to_open(FIRST + 1)
    stop = next(order for order in floor.ours() if order.kind == "stop")
    floor.fault("DELETE", "/orders/", now=lambda: floor.exchange.execute(stop, Decimal(95), stop.left))
    assert trader.cycle(FIRST + 1, {"ACME": -1}) == []
    assert floor.exchange.shares == {} and "sale_cut" in trader.alarms()
    in_the_end(floor, trader)


def test_fault_14_an_order_replaced_by_hand_is_a_conflict(floor: Floor, trader: Trader) -> None:
    "Row 14: we never replace; a person did, and both fill → one position, both orders known, entries halted"
    half(floor)
    sent(trader, entry(), seconds=0)
    floor.exchange.portion = lambda order: order.left
    floor.exchange.end(floor.ours()[0], "replaced")
    floor.exchange.submit("ACME", "buy", Decimal(5), "market", client_id="by-hand")
    in_the_end(floor, trader)
    assert trader.status(entry()) is IntentStatus.CONFLICT and halted(trader.engine, "demo")
    assert floor.exchange.shares == {"ACME": 10} and len(trader.rows(OrderRow)) == 2


def test_fault_15_a_stop_half_filled_is_not_sold_again(floor: Floor, trader: Trader) -> None:
    "Row 15: the stop sells 4 of 10, then the plan sells → cancelled first, 6 are sold, never below zero"
    trader.cycle(FIRST, {"ACME": 10})
    floor.to_open(FIRST + 1)
    stop = next(order for order in floor.ours() if order.kind == "stop")
    floor.exchange.execute(stop, Decimal(95), Decimal(4))
    outcomes = trader.cycle(FIRST + 1, {"ACME": -1})
    assert [(o.intent.quantity, o.status) for o in outcomes] == [(6, IntentStatus.FILLED)]
    assert floor.exchange.shares == {} and stop.status == "canceled"
    in_the_end(floor, trader)


def test_fault_15_a_stop_cancelled_by_hand_is_put_back(floor: Floor, trader: Trader) -> None:
    "Row 15: a leg is cancelled by hand → the next cycle protects the position again, with one stop"
    trader.cycle(FIRST, {"ACME": 10})
    floor.exchange.cancel(next(order.id for order in floor.ours() if order.kind == "stop"))
    floor.to_open(FIRST + 1)
    assert [o.status for o in trader.cycle(FIRST + 1, {})] == [IntentStatus.OPEN]
    assert [o.status for o in trader.cycle(FIRST + 1, {})] == [IntentStatus.OPEN]
    assert sum(order.kind == "stop" and order.left > 0 for order in floor.ours()) == 1
    in_the_end(floor, trader)


def test_fault_15_the_stop_outlives_the_night_and_us(floor: Floor, trader: Trader) -> None:
    "Row 15: a stop is good till cancelled: kept from day to day, and it sells in the session in which nobody is awake"
    trader.cycle(FIRST, {"ACME": 10})
    [stop] = [order for order in floor.ours() if order.kind == "stop"]
    assert (stop.tif, stop.stop) == ("gtc", Decimal(95))
    floor.to_open(FIRST + 1)
    assert [o.broker_id for o in trader.cycle(FIRST + 1, {})] == [stop.id]
    floor.to_open(FIRST + 3)  # the session between fell to 90
    in_the_end(floor, trader)
    row = trader.position()
    assert stop.average == Decimal(95) and row and (row.quantity, row.last_stop_session) == (0, DAYS[FIRST + 2])


def test_fault_16_fills_told_twice_late_and_in_any_order(floor: Floor, trader: Trader) -> None:
    "Row 16: activities duplicated, out of order, late → I4"
    half(floor)
    sent(trader, entry(), seconds=0)
    floor.exchange.execute(floor.ours()[0], Decimal(101), Decimal(5))
    floor.fault("GET", "/account/activities", change=lambda rows: [*reversed(rows), *rows], times=2)
    trader.reconcile()
    floor.fault("GET", "/account/activities", change=lambda rows: rows[:1], times=2)
    trader.reconcile()
    in_the_end(floor, trader)
    row = trader.position()
    assert row and (row.quantity, row.average_price) == (10, Decimal("100.50"))


@pytest.mark.parametrize("count", [99, 100, 101, 200])
def test_fault_16_fills_around_the_end_of_a_page(floor: Floor, trader: Trader, count: int) -> None:
    "Row 16: page boundaries → each fill once"
    for _ in range(count):
        floor.exchange.submit("COIL", "buy", Decimal(1), "market")
    in_the_end(floor, trader)


def amended(floor: Floor, trader: Trader) -> tuple[list[tuple[Decimal, Decimal]], list[str]]:
    "Shares and price of each row of ours, oldest first, and the alarms about it"
    rows = sorted(trader.rows(FillRow), key=lambda row: (row.booked_at, row.fill_id.endswith(" taken back"), row.fill_id))
    return [(row.quantity, row.price) for row in rows], [kind for kind in trader.alarms() if kind in ("busted", "corrected")]


@pytest.mark.parametrize("journal", ["replaced", "beside", "untold"])
def test_fault_16_a_busted_fill_is_taken_back_once(floor: Floor, trader: Trader, journal: str) -> None:
    "Row 16: busted → shares and cash are back, the fill and its opposite are two rows, the stop goes, nothing is bought again"
    floor.service.amended = journal
    trader.cycle(FIRST, {"ACME": 10})
    floor.exchange.amend(floor.exchange.executions[0])
    seen = in_the_end(floor, trader)
    assert (seen.drift, seen.frozen, seen.cash_drift) == ({}, {}, 0)
    assert amended(floor, trader) == ([(10, 100), (-10, 100)], ["busted"])
    trader.reconcile()
    floor.to_open(FIRST + 1)
    assert trader.cycle(FIRST + 1, {}) == [] and not [order for order in floor.ours() if order.left]
    in_the_end(floor, trader)
    assert amended(floor, trader)[1] == ["busted"] and len(floor.posts()) == 2
    assert orders_of(trader.engine, "demo")["filled"].tolist()[0] == 0


@pytest.mark.parametrize("journal", ["replaced", "beside", "untold"])
@pytest.mark.parametrize(("quantity", "price", "level"), [(10, 90, "85.50"), (8, 100, "95"), (9, 101, "95.95")])
def test_fault_16_a_corrected_fill_replaces_what_it_corrects(
    floor: Floor, trader: Trader, journal: str, quantity: int, price: int, level: str
) -> None:
    "Row 16: corrected in price, in shares or in both → I3 and I4, what the shares cost and their stop follow; once"
    floor.service.amended = journal
    trader.cycle(FIRST, {"ACME": 10})
    floor.exchange.amend(floor.exchange.executions[0], Decimal(quantity), Decimal(price))
    assert in_the_end(floor, trader).frozen == {}
    trader.reconcile()
    rows, alarms = amended(floor, trader)
    assert sorted(rows) == sorted([(10, 100), (-10, 100), (quantity, price)]) and alarms == ["corrected"]
    row = trader.position()
    assert row and (row.quantity, row.average_price, row.entry_session) == (quantity, price, DAYS[FIRST])
    [order] = [row for row in orders_with_fills(trader.engine, "demo") if row["purpose"] == "entry"]
    assert (order["filled"], order["price"]) == (quantity, price)
    floor.to_open(FIRST + 1)
    [stop] = trader.cycle(FIRST + 1, {})
    assert (stop.intent.quantity, stop.intent.stop_price) == (quantity, Decimal(level))
    in_the_end(floor, trader)


def test_fault_16_a_sale_that_does_not_stand_brings_the_position_back(floor: Floor, trader: Trader) -> None:
    "Row 16: the stop's sale is busted a session later → the shares are ours again, at what they cost, and protected again"
    trader.cycle(FIRST, {"ACME": 10})
    floor.to_open(FIRST + 3)  # the session between fell to 90
    assert in_the_end(floor, trader).positions == {}
    floor.exchange.amend(floor.exchange.executions[1])
    in_the_end(floor, trader)
    row = trader.position()
    assert row and (row.quantity, row.average_price, row.entry_session, row.last_stop_session) == (10, 100, DAYS[FIRST], None)
    [stop] = trader.cycle(FIRST + 3, {})
    assert (stop.intent.quantity, stop.intent.stop_price, stop.status) == (10, Decimal(95), IntentStatus.OPEN)
    in_the_end(floor, trader)


def test_fault_16_a_correction_is_corrected_and_then_busted(floor: Floor, trader: Trader) -> None:
    "Row 16: corrected twice and busted → each word takes back the one before it, once"
    trader.cycle(FIRST, {"ACME": 10})
    first = floor.exchange.amend(floor.exchange.executions[0], Decimal(8), Decimal(100))
    trader.reconcile()
    assert first.instead
    second = floor.exchange.amend(first.instead, Decimal(9), Decimal(99))
    trader.reconcile()
    assert second.instead
    floor.exchange.amend(second.instead)
    in_the_end(floor, trader)
    assert amended(floor, trader)[1] == ["corrected", "corrected", "busted"]


def test_fault_16_what_is_not_explained_stays_frozen(floor: Floor, trader: Trader) -> None:
    "Row 16: a bust of which nobody tells → nothing is taken back, frozen with an alarm; told later, it adds up"
    trader.cycle(FIRST, {"ACME": 10})
    floor.exchange.amend(floor.exchange.executions[0])
    floor.fault("GET", "/events/activities", reply=Reply(500, HTML), times=99)
    seen = trader.reconcile()
    assert seen.drift == {"ACME": (10, 0)} and list(seen.frozen) == ["ACME"] and "drift" in trader.alarms()
    assert len(trader.rows(FillRow)) == 1
    floor.wire.faults.clear()
    later = trader.reconcile()
    assert later.drift == {} and list(later.frozen) == ["ACME"], "a person lifts it"
    assert amended(floor, trader) == ([(10, 100), (-10, 100)], ["busted"])


def test_fault_16_the_reason_for_odd_cash_may_come_later(floor: Floor, trader: Trader) -> None:
    "Row 16: a price is corrected, the word comes a day after the money → an alarm about the money, then the fill is right"
    trader.cycle(FIRST, {"ACME": 10})
    floor.exchange.amend(floor.exchange.executions[0], Decimal(10), Decimal(99))
    floor.service.amended = "untold"
    floor.fault("GET", "/events/activities", change=lambda stream: b"", times=2)
    assert trader.reconcile().cash_drift == 10
    floor.to_open(FIRST + 1)
    assert trader.reconcile().cash_drift == 0 and amended(floor, trader)[1] == []
    assert in_the_end(floor, trader).cash_drift == 0
    assert [kind for kind in trader.alarms() if kind != "lease"] == ["cash", "corrected"]


def test_fault_16_a_death_while_a_fill_is_taken_back(floor: Floor) -> None:
    "Row 16, 10: killed around every commit and request of the look that hears of it → taken back once"
    for at in range(1, 40):
        floor.reset()
        with floor.trading() as trader:
            trader.cycle(FIRST, {"ACME": 10})
            floor.exchange.amend(floor.exchange.executions[0], Decimal(9), Decimal(101))
        doom = Doom(at)
        with suppress(Death):
            floor.trader(doom).reconcile()
        with floor.trading() as trader:
            in_the_end(floor, trader)
            assert sorted(amended(floor, trader)[0]) == [(-10, 100), (9, 101), (10, 100)]
        if doom.count < at:
            return
    raise AssertionError("it never came to its end")


# ------------------------------------------------------------------------------------ 18 to 22: the books and the clock


def test_fault_18_stale_positions_are_looked_at_again(floor: Floor, trader: Trader) -> None:
    "Row 18: positions lag behind orders → looked at three times, no alarm, no double exit"
    trader.cycle(FIRST, {"ACME": 10})
    floor.to_open(FIRST + 1)
    floor.fault("GET", "/positions", change=lambda rows: [], times=2)
    seen = trader.reconcile()
    assert (seen.drift, seen.frozen) == ({}, {}) and {0.0, 1.0, 2.0} <= set(floor.naps)
    floor.fault("GET", "/positions", change=lambda rows: [], times=3)
    assert list(trader.reconcile().frozen) == ["ACME"] and "drift" in trader.alarms()
    outcomes = trader.cycle(FIRST + 1, {"ACME": -1, "BOLT": 5})
    assert [(o.intent.symbol, o.status.value) for o in outcomes][:2] == [("ACME", "filled"), ("BOLT", "filled")]
    floor.wire.faults.clear()
    assert floor.posts().count(sale(day=FIRST + 1).client_id) == 1, "frozen: exits allowed, once"
    in_the_end(floor, trader)


def test_fault_19_what_a_person_does_is_counted_and_not_touched(floor: Floor, trader: Trader) -> None:
    "Row 19: manual orders and shares → recorded, counted, untouched: of 17 shares we sell our 10"
    trader.cycle(FIRST, {"ACME": 10})
    floor.exchange.submit("ACME", "buy", Decimal(7), "market")
    resting = floor.exchange.submit("COIL", "buy", Decimal(1), "limit", limit=Decimal(1))
    floor.to_open(FIRST + 1)
    seen = observe(trader.desk(FIRST + 1))
    assert [(p.symbol, p.quantity) for p in seen.others] == [("ACME", 7)] and seen.positions["ACME"].quantity == 10
    outcomes = trader.cycle(FIRST + 1, {"ACME": -1})
    assert [(o.intent.quantity, o.status) for o in outcomes] == [(10, IntentStatus.FILLED)]
    assert floor.exchange.shares == {"ACME": 7} and not [o for o in floor.ours() if o.left]
    assert trader.alarms().count("manual") == 2 and resting.status in ("new", "expired")
    in_the_end(floor, trader)


def test_fault_19_a_sale_by_hand_makes_ours_smaller(floor: Floor, trader: Trader) -> None:
    "Row 19: a person sells 6 of our 10, the stop in the way cancelled by hand → we sell 4; overselling is impossible"
    trader.cycle(FIRST, {"ACME": 10})
    floor.exchange.cancel(next(order.id for order in floor.ours() if order.kind == "stop"))
    floor.exchange.submit("ACME", "sell", Decimal(6), "market")
    floor.to_open(FIRST + 1)
    assert [o.intent.quantity for o in trader.cycle(FIRST + 1, {"ACME": -1})] == [4]
    assert floor.exchange.shares == {}
    in_the_end(floor, trader)


def test_fault_19_a_sale_by_hand_in_the_last_second(floor: Floor, trader: Trader) -> None:
    "Row 19: a person sells between our look and our sale → we sell what is left, or nothing"
    trader.cycle(FIRST, {"ACME": 10})
    floor.to_open(FIRST + 1)
    floor.fault("DELETE", "/orders/", then=lambda: floor.exchange.submit("ACME", "sell", Decimal(8), "market"))
    assert [(o.intent.quantity, o.status.value) for o in trader.cycle(FIRST + 1, {"ACME": -1})] == [(2, "filled")]
    assert floor.exchange.shares == {}
    in_the_end(floor, trader)


def test_fault_19_shares_that_were_there_before_us_stay(floor: Floor) -> None:
    "Row 19: what the account held at our first look is not ours: no stop, no sale"
    floor.exchange.submit("COIL", "buy", Decimal(9), "market")
    with floor.trading() as trader:
        assert [o.intent.symbol for o in trader.cycle(FIRST, {"ACME": 10, "COIL": -1})] == ["ACME", "ACME"]
        assert floor.exchange.shares["COIL"] == 9


def test_fault_20_more_orders_than_a_page(floor: Floor, trader: Trader) -> None:
    "Row 20: more than 500 orders → all are read, each once"
    for _ in range(520):
        floor.exchange.submit("COIL", "buy", Decimal(1), "market")
        floor.exchange.now += timedelta(milliseconds=10)
    assert len(trader.broker.orders(opening(DAYS[0]))) == 520


def test_fault_20_a_page_that_repeats_itself_ends(floor: Floor, trader: Trader) -> None:
    "Row 20: the same page again and again → bounded, and nothing twice"
    for _ in range(100):
        floor.exchange.submit("COIL", "buy", Decimal(1), "market")
    first: list[Any] = []

    def repeat(rows: list[Any]) -> list[Any]:
        first.extend([] if first else rows)
        return list(first)

    floor.fault("GET", "/account/activities", change=repeat, times=999)
    before = len(floor.wire.log)
    assert len(trader.broker.fills(opening(DAYS[0]))) == 100 and len(floor.wire.log) - before <= 6


def test_fault_20_pages_that_never_end_are_not_believed(floor: Floor, trader: Trader, monkeypatch: pytest.MonkeyPatch) -> None:
    "Row 20: ever new rows → an error after a bounded number of pages; nothing is booked from it"
    monkeypatch.setattr(adapter, "PAGES", 5)
    floor.exchange.submit("COIL", "buy", Decimal(1), "market")
    count = iter(range(10**6))

    def more(rows: list[Any]) -> list[Any]:
        row = {"id": "", "order_id": "x", "symbol": "COIL", "side": "buy", "qty": "1", "price": "1"}
        return [row | {"id": str(next(count)), "transaction_time": "2024-01-04T14:30:00Z"} for _ in range(100)]

    floor.fault("GET", "/account/activities", change=more, times=999)
    with pytest.raises(ProtocolError, match="does not end within"):
        trader.broker.fills(opening(DAYS[0]))


def test_fault_21_a_split_overnight_is_explained(floor: Floor, trader: Trader) -> None:
    "Row 21: a split → explained, no drift, no trade; the stop that the exchange dropped is put back, at its new level"
    floor.to_open(FIRST + 3)
    trader.cycle(FIRST + 3, {"ACME": 10})
    floor.to_open(FIRST + 4)
    seen = in_the_end(floor, trader)
    assert (seen.new_actions, seen.frozen) == (1, {})
    [stop] = trader.cycle(FIRST + 4, {})
    assert (stop.intent.quantity, stop.intent.stop_price, stop.status) == (20, Decimal("46.08"), IntentStatus.OPEN)
    assert len([name for name in floor.posts() if "-buy-" in name]) == 1
    in_the_end(floor, trader)


CLOSED = {
    "before the open": datetime.fromisoformat("2024-01-04T09:29:59-05:00"),
    "after the close": datetime.fromisoformat("2024-01-04T16:00:00-05:00"),
    "holiday": datetime.fromisoformat("2024-01-15T11:00:00-05:00"),
    "weekend": datetime.fromisoformat("2024-01-06T11:00:00-05:00"),
    "half day": datetime.fromisoformat("2024-07-03T13:00:01-04:00"),
    "summer time": datetime.fromisoformat("2024-03-11T09:29:00-04:00"),
}


@pytest.mark.parametrize("when", CLOSED)
def test_fault_22_no_order_leaves_outside_the_session(floor: Floor, when: str) -> None:
    "Row 22: half day, DST, holiday, before and after hours → refused here, nothing sent or decided"
    with floor.trading() as trader:
        floor.exchange.now = CLOSED[when].astimezone(floor.exchange.now.tzinfo)
        with pytest.raises(Rejected, match="the market is closed"):
            trader.broker.submit(entry())
        with pytest.raises(RunError, match="is not open at the broker"):
            trader.cycle(FIRST, PLAN)
    assert floor.posts() == []


@pytest.mark.parametrize("minutes", [-5, 5])
def test_fault_22_a_wrong_clock_stops_entries(floor: Floor, trader: Trader, minutes: int) -> None:
    "Row 22: the host's clock five minutes off → entries are stopped, with the number of seconds"
    floor.exchange.now += timedelta(minutes=10)
    trader.clock = lambda: floor.clock() + timedelta(minutes=minutes)
    desk = trader.desk(FIRST)
    seen = observe(desk)
    assert seen.gate is Reason.STALE and "300 s" in seen.gates[0][1]
    assert not decide(desk, seen).orders.quantity.any()
    assert clock_gate(desk, replace(seen.clock, now=desk.clock() + timedelta(seconds=59))) == []  # type: ignore[type-var]


def test_fault_22_stale_bars_stop_entries(floor: Floor, trader: Trader) -> None:
    "Row 22: open, but the newest bar is two sessions old → no entries"
    desk = trader.desk(FIRST)
    stale = replace(desk, tape=TAPE.upto(date(2024, 1, 2)))
    assert Reason.STALE in [code for code, _ in observe(stale).gates]


# ------------------------------------------------------------------------------------ 29: the store fails


@pytest.mark.parametrize("step", ["INSERT", "UPDATE"])
def test_fault_29_what_is_not_written_down_is_not_sent(floor: Floor, trader: Trader, step: str) -> None:
    "Row 29: disk full at step 1 (the intent) or step 2 (SENDING) → no POST"
    with writing(trader.engine) as db:
        db.execute(text(f"CREATE TRIGGER full BEFORE {step} ON intents BEGIN SELECT RAISE(ABORT, 'disk full'); END"))
    with pytest.raises(Exception, match="disk full"):
        trader.cycle(FIRST, PLAN)
    assert floor.posts() == []
    with writing(trader.engine) as db:
        db.execute(text("DROP TRIGGER full"))
    trader.cycle(FIRST, PLAN)
    one_order(floor, trader, posts=1)


def test_fault_29_a_locked_store_sends_nothing(floor: Floor, trader: Trader) -> None:
    "Row 29: the store is locked by another process → no POST; later all is well"
    record_intents(trader.engine, [entry()], 1, trader.clock(), trader.fence)
    other = connect(f"sqlite:///{floor.path}/store.db")
    with trader.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 50")
    with writing(other) as db, pytest.raises(OperationalError, match="locked"):
        db.execute(text("SELECT 1"))  # takes the write lock
        submit_intent(trader.engine, trader.broker, entry().client_id, trader.fence, trader.clock)
    other.dispose()
    assert floor.posts() == []
    sent(trader, entry())
    one_order(floor, trader, posts=1)


def test_fault_29_the_answer_cannot_be_written_down(floor: Floor, trader: Trader) -> None:
    "Row 29: the disk is full after the POST → the intent stays SENDING, and the next process adopts"
    full = "CREATE TRIGGER full BEFORE INSERT ON orders BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    with writing(trader.engine) as db:
        db.execute(text(full))
    with pytest.raises(Exception, match="disk full"):
        sent(trader, entry())
    assert trader.status(entry()) is IntentStatus.SENDING
    with writing(trader.engine) as db:
        db.execute(text("DROP TRIGGER full"))
    one_order(floor, trader, posts=1)


def test_the_invariants_can_fail(floor: Floor, trader: Trader) -> None:
    "What is asserted after every fault is seen to fail: a second order, a lost fill, a wrong position"
    sent(trader, entry())
    in_the_end(floor, trader)
    floor.exchange.shares["ACME"] += 1
    with pytest.raises(AssertionError, match="I3"):
        in_the_end(floor, trader)
    floor.exchange.shares["ACME"] -= 1
    execution = floor.exchange.executions.pop()
    with pytest.raises(AssertionError, match="I4"):
        in_the_end(floor, trader)
    floor.exchange.executions.append(execution)
    second = floor.exchange.submit("ACME", "buy", Decimal(10), "market", client_id=replace(entry(), attempt=2).client_id)
    with pytest.raises(AssertionError, match="I2: orders that nobody remembers"):
        in_the_end(floor, trader)
    second.client_id = entry().client_id
    with pytest.raises(AssertionError, match="I1"):
        in_the_end(floor, trader)
