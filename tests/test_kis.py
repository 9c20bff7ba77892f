"""KIS alone: the faults that are its own, by their numbers in the broker design, with the real library over real HTTP

Asserted against the *server's* book and the server's log: what was really sent, how often, and what stood in it.
"""

import json
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
from servers.exchange import Exchange, closing
from servers.kis import (
    ACCOUNT,
    HTS_ID,
    PAPER_KEY,
    PAPER_SECRET,
    PRODUCT,
    RATE,
    REAL_KEY,
    REAL_SECRET,
    Kis,
)
from servers.wire import Fault, Reply, Request
from sqlalchemy import Engine, select
from test_broker import CAPITAL, DAYS, EVER, buy, make_tape, sell, stop, target

from alpha_trader.bars import panel_of
from alpha_trader.broker import lookalikes
from alpha_trader.domain import (
    Ambiguous,
    AuthFailed,
    BrokerError,
    IntentStatus,
    NotFound,
    NotSent,
    OrderIntent,
    OrderStatus,
    OrderType,
    RateLimited,
    Rejected,
    RejectReason,
)
from alpha_trader.execution import Reconciliation, frozen, reconcile, record_intents, resolve_unknown, submit_intent
from alpha_trader.kis_broker import KisBroker, LiveKis, live_kis, paper_kis, won_beside
from alpha_trader.kis_data import (
    PAPER,
    REAL,
    Keys,
    KisSource,
    Line,
    Quotes,
    Token,
    kis_line,
    minute_bars,
    read_token,
    write_token,
)
from alpha_trader.sessions import session_close, session_open
from alpha_trader.store import (
    FillRow,
    PositionRow,
    RiskEventRow,
    acquire_lease,
    open_account,
    open_store,
    reading,
)

NUMBER = f"{ACCOUNT}-{PRODUCT}"
SECRETS = (ACCOUNT, REAL_KEY, REAL_SECRET, PAPER_KEY, PAPER_SECRET, "eyJ-")
ORDERS, CANCELS = "/trading/order", "/trading/order-rvsecncl"
LISTS, RESTING = "/trading/inquire-ccnl", "/trading/inquire-nccs"


@dataclass
class Bench:
    "A local KIS and our line to it"

    service: Kis
    line: Line
    folder: Path
    naps: list[float]

    @property
    def exchange(self) -> Exchange:
        return self.service.exchange

    def broker(self) -> KisBroker:
        return paper_kis(self.line, self.folder) if self.line.kis.virtual else live_kis(self.line, self.folder, NUMBER)

    def asked(self, ending: str) -> list[Request]:
        "Requests to a page, from any port"
        return [request for request in self.service.log if request.path.endswith(ending)]


def bench(folder: Path, paper: bool = False, wait: Callable[[], None] | None = lambda: None, **server: Any) -> Bench:
    service = Kis(Exchange(make_tape(), session_open(DAYS[0]), CAPITAL), CAPITAL, where={"BOLT": "NYSE"}, **server)
    return bench_at(service, folder, paper, wait)


def bench_at(service: Kis, folder: Path, paper: bool, wait: Callable[[], None] | None) -> Bench:
    naps: list[float] = []
    urls = {REAL: service.url, PAPER: service.paper_url}
    twin = Keys(PAPER_KEY, PAPER_SECRET) if paper else None
    clock, sleep = lambda: service.exchange.now, naps.append if wait else time.sleep
    line = kis_line(Keys(REAL_KEY, REAL_SECRET), twin, NUMBER, HTS_ID, folder / "kis", clock, urls, wait, sleep)
    return Bench(service, line, folder / "kis", naps)


@pytest.fixture(params=["real", "paper"])
def kis(request: pytest.FixtureRequest, folder: Path) -> Bench:
    return bench(folder, request.param == "paper")


@pytest.fixture
def real(folder: Path) -> Bench:
    return bench(folder)


def at(ending: str) -> Callable[[Request], bool]:
    return lambda request: request.path.endswith(ending)


def said(code: str, status: int = 200, sentence: str = "오류") -> Reply:
    return Reply(status, {"rt_cd": "1", "msg_cd": code, "msg1": sentence}, {"tr_cont": "", "tr_id": "", "gt_uid": ""})


def book(of: Bench) -> list[str]:
    "What the exchange really has"
    return [f"{order.side} {order.quantity} {order.symbol}" for order in of.exchange.orders.values()]


# ------------------------------------------------------------------------- 23: the gateway's codes


@pytest.mark.parametrize("code", ["EGW00201", "EGW00123", "EGW00121"])
@pytest.mark.parametrize("status", [500, 200])
@pytest.mark.parametrize("passed_on", [True, False])
def test_fault_23_an_order_is_sent_once_whatever_the_gateway_says(
    kis: Bench, code: str, status: int, passed_on: bool
) -> None:
    "The library alone sends it thirty times in three seconds; here the answer is unknown, and nothing is sent again"
    broker = kis.broker()
    broker.quote("ACME")
    kis.service.fault(Fault(at(ORDERS), "reply", passed_on, said(code, status), times=99))
    with pytest.raises(Ambiguous, match=code):
        broker.submit(buy())
    assert len(kis.asked(ORDERS)) == 1
    assert book(kis) == (["buy 10 ACME"] if passed_on else [])


def test_fault_23_the_library_alone_repeats_an_order(kis: Bench) -> None:
    "What the guard is for: the same library without it, and the order that is sent again until somebody stops it"
    from pykis.kis import PyKis

    kis.broker()
    plain = PyKis(id=HTS_ID, account=NUMBER, appkey=REAL_KEY, secretkey=REAL_SECRET, use_websocket=False)
    sent: list[str] = []

    class Stop(Exception):
        pass

    def transport(session: requests.Session, request: requests.PreparedRequest, **_: object) -> requests.Response:
        sent.append(str(request.url))
        if len(sent) == 5:
            raise Stop
        response = requests.Response()
        response.status_code, response._content = 500, b'{"rt_cd":"1","msg_cd":"EGW00201","msg1":""}'
        return response

    with pytest.MonkeyPatch.context() as patch, suppress(Stop):
        patch.setattr(requests.Session, "send", transport)
        plain.request(f"/uapi/overseas-stock/v1{ORDERS}", method="POST", body={}, auth=False)
    assert len(sent) == 5 and all(url.endswith(ORDERS) for url in sent)


@pytest.mark.parametrize("status", [500, 200])
def test_fault_23_a_read_waits_its_turn_and_gives_up_after_three(real: Bench, status: int) -> None:
    broker = real.broker()
    real.service.fault(Fault(at("price-detail"), "reply", False, said("EGW00201", status), times=2))
    assert broker.quote("ACME") is not None
    assert len(real.asked("price-detail")) == 3 and real.naps == [1.0, 1.0]
    real.service.fault(Fault(at("price-detail"), "reply", False, said("EGW00201", status), times=99))
    with pytest.raises(RateLimited):
        broker.quote("ACME")
    assert len(real.asked("price-detail")) == 6


def test_the_library_does_not_talk_into_our_answers(real: Bench) -> None:
    "As it comes it warns on standard output, in colour, where `--json` is being read"
    from pykis.logging import logger

    assert real.broker().quote("ACME") is not None
    assert logger.handlers == []


@pytest.mark.parametrize("code", ["EGW00123", "EGW00121"])
def test_fault_23_28_a_dead_token_is_replaced_once(real: Bench, code: str) -> None:
    "EGW00121 is never recovered by the library; EGW00123 is, for ever"
    broker = real.broker()
    real.exchange.move(timedelta(minutes=2))
    real.service.tokens.clear()
    assert broker.positions() == [] and len(real.asked("tokenP")) == 2
    real.exchange.move(timedelta(minutes=2))
    real.service.fault(Fault(at("present-balance"), "reply", False, said(code, 500), times=99))
    before = len(real.service.log)
    with pytest.raises(AuthFailed):
        broker.positions()
    assert len(real.service.log) - before == 3  # asked, a token, asked again
    with pytest.raises((AuthFailed, RateLimited)):
        broker.positions()
    assert len(real.asked("tokenP")) == 3, "not a second token within the minute"


def test_fault_28_a_token_that_expires_in_the_middle_of_a_cycle(real: Bench) -> None:
    broker = real.broker()
    for _ in range(4):
        real.exchange.move(timedelta(hours=7))
        assert broker.positions() == []
    assert len(real.asked("tokenP")) == 2, "one a day"
    _, _, until = real.service.tokens[broker.line.known[REAL].value]
    real.exchange.to(until - timedelta(minutes=5))
    assert broker.positions() == [] and len(real.asked("tokenP")) == 3, "renewed before its end"


def test_fault_23_another_program_took_the_minute(folder: Path) -> None:
    "EGW00133: a time is said, nothing is sent, and nobody waits a minute in a cycle"
    of = bench(folder)
    of.service.asked["real"] = of.exchange.now - timedelta(seconds=20)
    with pytest.raises(RateLimited) as told:
        of.broker()
    assert told.value.retry_at == of.exchange.now + timedelta(minutes=1)
    assert len(of.service.log) == 1 and sum(of.naps) < 15


def test_an_order_without_a_token_was_not_sent(folder: Path) -> None:
    of = bench(folder)
    broker = of.broker()
    broker.quote("ACME")
    of.line.known.clear()
    of.line.files[REAL].unlink()
    of.exchange.move(timedelta(minutes=2))
    of.service.fault(Fault(at("tokenP"), "drop", False, times=99))
    with pytest.raises(NotSent):
        broker.line.write("/uapi/overseas-stock/v1/trading/order", "TTTT1002U", {}, "order")
    with pytest.raises((NotSent, RateLimited)):
        broker.submit(buy())
    assert of.asked(ORDERS) == []


def test_i9_the_rate_is_kept_by_all_processes_of_a_key(folder: Path) -> None:
    "Two lines, one key: two requests a second in the paper world, and nothing else within a second of an order"
    service = Kis(Exchange(make_tape(), session_open(DAYS[0]), CAPITAL), CAPITAL)
    lines = [bench_at(service, folder, True, None) for _ in range(2)]
    seen: list[tuple[float, bool]] = []
    answer = service.worlds["paper"].answer

    def timed(request: Request) -> Reply:
        seen.append((time.monotonic(), request.path.endswith(ORDERS)))
        return answer(request)

    service.worlds["paper"].answer = timed
    work = [lambda: KisBroker(lines[0].line, folder).positions(), lambda: KisBroker(lines[1].line, folder).submit(buy())]
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times, [order] = [at for at, _ in seen], [n for n, (_, is_order) in enumerate(seen) if is_order]
    assert len(times) >= 6
    assert min(third - first for first, third in zip(times, times[2:], strict=False)) > 0.9  # 1.2 less what a busy computer takes
    around = [abs(at - times[order]) for n, at in enumerate(times) if n != order]
    assert min(around) > 0.9


# ------------------------------------------------------------------------- 24, 26: what became of it


@dataclass
class Hand:
    "A store, a lease, and a KIS account"

    of: Bench
    engine: Engine
    fence: int
    broker: KisBroker

    def clock(self) -> datetime:
        return self.of.exchange.now

    def nap(self, seconds: float) -> None: ...

    def submit(self, intent: OrderIntent) -> IntentStatus:
        record_intents(self.engine, [intent], None, self.clock(), self.fence)
        return submit_intent(self.engine, self.broker, intent.client_id, self.fence, self.clock).status

    def resolve(self, intent: OrderIntent) -> IntentStatus:
        found = resolve_unknown(self.engine, self.broker, intent.client_id, self.fence, self.clock, self.nap)
        return found.status

    def reconcile(self) -> Reconciliation:
        return reconcile(self.engine, self.broker, "demo", self.fence, self.clock, self.nap)

    def positions(self) -> dict[str, Decimal]:
        with reading(self.engine) as db:
            return {row.symbol: row.quantity for row in db.scalars(select(PositionRow)) if row.quantity}

    def fills(self) -> list[str]:
        with reading(self.engine) as db:
            return [f"{row.quantity:f} at {row.price:f}" for row in db.scalars(select(FillRow).order_by(FillRow.at))]

    def alarms(self) -> list[str]:
        with reading(self.engine) as db:
            return [row.kind for row in db.scalars(select(RiskEventRow))]


def hand_at(of: Bench, folder: Path) -> Hand:
    engine = open_store(f"sqlite:///{folder}/store.db")
    kind = "paper" if of.line.kis.virtual else "live"
    open_account(engine, "demo", "kis", kind, CAPITAL, of.exchange.now)
    fence = acquire_lease(engine, "demo", "test", os.getpid(), "here", of.exchange.now, timedelta(days=900))
    return Hand(of, engine, fence, of.broker())


@pytest.fixture
def hand(kis: Bench, folder: Path) -> Hand:
    return hand_at(kis, folder)


LOST = [
    Fault(at(ORDERS), "reset"),
    Fault(at(ORDERS), "drop"),
    Fault(at(ORDERS), "truncate"),
    Fault(at(ORDERS), "reply", reply=Reply(502, b"<html>bad gateway</html>")),
    Fault(at(ORDERS), "reply", reply=Reply(200, b"")),
    Fault(at(ORDERS), "reply", reply=said("EGW00201", 500)),
    Fault(at(ORDERS), "reply", change=lambda body: body | {"output": {}}),
    Fault(at(ORDERS), "reply", change=lambda body: {name: part for name, part in body.items() if name != "output"}),
    Fault(at(ORDERS), "reply", change=lambda body: body | {"output": body["output"] | {"ORD_TMD": ""}}),
    Fault(at(ORDERS), "reply", change=lambda body: body | {"rt_cd": "1", "msg_cd": "APBK9999", "output": {}}),
]


@pytest.mark.parametrize("n", range(len(LOST)))
def test_faults_24_26_a_placed_order_whose_answer_was_lost_is_adopted(hand: Hand, n: int) -> None:
    "DB-9: System B called an order filled because it was not pending, and sent it again the next hour"
    fault = replace(LOST[n], times=1)
    hand.reconcile()
    hand.of.service.fault(fault)
    assert hand.submit(buy()) is IntentStatus.UNKNOWN
    assert "ACME" in frozen(hand.engine, "demo")
    assert hand.resolve(buy()) is IntentStatus.FILLED
    assert hand.submit(buy()) is IntentStatus.FILLED, "asked again, nothing is sent again"
    assert book(hand.of) == ["buy 10 ACME"] and len(hand.of.asked(ORDERS)) == 1
    assert hand.reconcile().drift == {} and hand.positions() == {"ACME": 10} and hand.fills() == ["10 at 100.00"]


def test_fault_24_never_arrived_is_dropped_after_two_clean_looks_a_minute_apart(hand: Hand) -> None:
    hand.of.service.fault(Fault(at(ORDERS), "drop", after=False))
    assert hand.submit(buy()) is IntentStatus.UNKNOWN
    assert hand.resolve(buy()) is IntentStatus.UNKNOWN and "ACME" in frozen(hand.engine, "demo")
    hand.of.exchange.move(timedelta(seconds=59))
    assert hand.resolve(buy()) is IntentStatus.UNKNOWN
    hand.of.exchange.move(timedelta(seconds=1))
    assert hand.resolve(buy()) is IntentStatus.DROPPED and frozen(hand.engine, "demo") == {}
    assert book(hand.of) == [] and len(hand.of.asked(ORDERS)) == 1


def test_fault_24_a_twin_by_hand_is_a_conflict_for_a_person(hand: Hand) -> None:
    hand.of.service.fault(Fault(at(ORDERS), "drop"))
    assert hand.submit(buy()) is IntentStatus.UNKNOWN
    hand.of.exchange.submit("ACME", "buy", Decimal(10), "market")
    assert hand.resolve(buy()) is IntentStatus.CONFLICT
    assert "ACME" in frozen(hand.engine, "demo") and len(hand.of.asked(ORDERS)) == 1


def test_fault_19_24_an_older_order_by_hand_is_not_ours(hand: Hand) -> None:
    "It was there before we sent, and so it is known not to be ours, however alike it looks"
    hand.of.exchange.submit("ACME", "buy", Decimal(10), "market")
    hand.of.service.fault(Fault(at(ORDERS), "drop"))
    assert hand.submit(buy()) is IntentStatus.UNKNOWN
    assert hand.resolve(buy()) is IntentStatus.FILLED
    assert hand.reconcile().drift == {} and hand.positions() == {"ACME": 20}
    assert "manual" in hand.alarms()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("APBK1664", RejectReason.CLOSED),
        ("APBK0656", RejectReason.SYMBOL),
        ("APBK0952", RejectReason.FUNDS),
        ("APBK0400", RejectReason.QTY_HELD),
        ("APBK1507", RejectReason.PRICE),
    ],
)
def test_fault_8_26_only_known_codes_are_refusals(kis: Bench, code: str, reason: RejectReason) -> None:
    broker = kis.broker()
    kis.service.fault(Fault(at(ORDERS), "reply", False, said(code), times=1))
    with pytest.raises(Rejected) as refused:
        broker.submit(buy())
    assert refused.value.reason is reason
    kis.service.fault(Fault(at(ORDERS), "reply", False, said("APBK7777"), times=1))
    with pytest.raises(Ambiguous, match="APBK7777"):
        broker.submit(buy())


def test_what_fails_before_the_order_leaves_was_not_sent(kis: Bench) -> None:
    "A quote that is lost, or says nothing that can be read, is no reason to freeze a symbol"
    broker = kis.broker()
    faults = [Fault(at("price-detail"), "reset", times=9), Fault(at("price-detail"), "reply", change=odd, times=1)]
    for fault in faults:
        kis.service.fault(fault)
        with pytest.raises(NotSent):
            broker.submit(buy())
        fault.times = 0
    assert kis.asked(ORDERS) == []


def odd(body: dict) -> dict:
    return body | {"output": body["output"] | {"last": "약 100"}}


@pytest.mark.parametrize("action", ["drop", "reset", "truncate", "close", "drip", "hang"])
def test_fault_2_reads_survive_a_bad_line_and_give_up_in_time(real: Bench, action: str) -> None:
    broker = real.broker()
    real.service.fault(Fault(at("present-balance"), action, times=2, seconds=0.0))
    assert broker.positions() == []
    if action != "drip":
        real.service.fault(Fault(at("present-balance"), action, times=99, seconds=0.0))
        with pytest.raises(Ambiguous):
            broker.positions()


# ------------------------------------------------------------------------- 25: lists that lie


def first_row_again(body: dict) -> dict:
    return body | {"output": body["output"][:1] * 3}


def test_fault_25_one_row_repeated_is_one_order_and_resting_ones_are_found(real: Bench) -> None:
    broker = real.broker()
    broker.submit(buy())
    waiting = broker.submit(target(200, quantity=5))
    real.service.fault(Fault(at(LISTS), "reply", change=first_row_again, times=99))
    found = broker.orders(EVER)
    assert [(order.symbol, order.status) for order in found] == [("ACME", "filled"), ("ACME", "open")]
    assert broker.orders(EVER, open_only=True) == [waiting]
    assert [fill.quantity for fill in broker.fills(EVER)] == [10], "and its fill is counted once"


def test_fault_25_shares_of_a_hidden_order_freeze_their_symbol(real: Bench, folder: Path) -> None:
    "The list hides a filled order; the balance shows its shares, and wins"
    hand = hand_at(real, folder)
    hand.reconcile()
    hand.submit(buy("BOLT"))
    real.exchange.submit("ACME", "buy", Decimal(3), "market")
    real.service.fault(Fault(at(LISTS), "reply", change=first_row_again, times=99))
    found = hand.reconcile()
    assert found.drift == {"ACME": (0, 3)} and "ACME" in found.frozen and "BOLT" not in found.frozen


@pytest.mark.parametrize("tr_cont", ["", None])
def test_fault_25_a_list_without_an_end_has_ended(real: Bench, tr_cont: str | None) -> None:
    "The library raises ValueError and KeyError"
    broker = real.broker()
    broker.submit(buy())
    for wire in real.service.worlds.values():
        answer = wire.answer

        def without(request: Request, answer: Any = answer) -> Reply:
            reply = answer(request)
            headers = {name: value for name, value in reply.headers.items() if name != "tr_cont"}
            return replace(reply, headers=headers if tr_cont is None else headers | {"tr_cont": tr_cont})

        wire.answer = without
    assert [order.status for order in broker.orders(EVER)] == ["filled"]


def test_fault_25_an_empty_list_says_nothing_about_resting_orders(real: Bench) -> None:
    broker = real.broker()
    broker.submit(buy())
    waiting = broker.submit(target(200))
    real.service.fault(Fault(at(LISTS), "reply", change=lambda body: body | {"output": []}, times=99))
    assert broker.orders(EVER) == [waiting]
    with pytest.raises(NotFound):
        broker.order("20240102-0030138291")


def test_fault_20_lists_of_many_pages_are_complete_and_end(folder: Path) -> None:
    of = bench(folder, page=3)
    broker = of.broker()
    for _ in range(10):
        of.exchange.submit("BOLT", "buy", Decimal(1), "market")
    assert len(broker.orders(EVER)) == len({order.broker_id for order in broker.orders(EVER)}) == 10
    of.service.fault(Fault(at(LISTS), "reply", after=False, reply=endless(of), times=9999))
    before = len(of.asked(LISTS))
    assert len(broker.orders(EVER)) == 1 and len(of.asked(LISTS)) - before == 2


def endless(of: Bench) -> Reply:
    row = of.service.row(of.service.book()[0]) | {"dmst_ord_dt": "20240102", "rvse_cncl_dvsn": "00"}
    body = {"rt_cd": "0", "output": [row], "ctx_area_fk200": "x", "ctx_area_nk200": "y"}
    return Reply(200, body, {"tr_cont": "M"})


def test_fault_25_orders_after_midnight_in_seoul_are_of_the_same_session(kis: Bench) -> None:
    "The library dates a resting order of 23:50 a day late ten minutes later"
    broker = kis.broker()
    before, after = datetime(2024, 1, 2, 14, 50, tzinfo=UTC), datetime(2024, 1, 2, 15, 10, tzinfo=UTC)
    kis.exchange.to(before)
    broker.submit(buy())
    first = broker.submit(target(200))
    kis.exchange.to(after)
    second = broker.submit(buy("BOLT"))
    assert [order.submitted_at for order in broker.orders(EVER)] == [before, before, after]
    assert [name.broker_id[:8] for name in (first, second)] == ["20240102", "20240102"]
    assert broker.orders(after) == [first, second], "the waiting one is open, whatever its age"


def test_numbers_begin_anew_every_day_and_ours_do_not(kis: Bench) -> None:
    broker = kis.broker()
    names, numbers = [], []
    for day in DAYS[:2]:
        kis.exchange.to(session_open(day))
        names.append(broker.submit(replace(buy(), session=day)).broker_id)
        numbers.append(kis.service.book()[-1].number)
    assert numbers[0] == numbers[1] and names[0] != names[1]
    assert [fill.broker_id for fill in broker.fills(EVER)] == names
    kis.exchange.to(session_open(DAYS[4]))
    assert [broker.order(name).filled_quantity for name in names] == [10, 10]


# ------------------------------------------------------------------------- fills out of totals


def test_fault_12_partial_fills_are_told_once_each_by_all_processes(kis: Bench, folder: Path) -> None:
    "I4: four, then six; a process that begins later tells the same two"
    kis.exchange.portion = lambda order: Decimal(4)
    hand = hand_at(kis, folder)
    hand.reconcile()
    assert hand.submit(buy()) is IntentStatus.PARTIAL
    hand.reconcile()
    kis.exchange.move(timedelta(minutes=3))
    order = next(iter(kis.exchange.orders.values()))
    kis.exchange.execute(order, Decimal("100.50"), Decimal(6))
    for _ in range(2):
        hand.broker = bench_at(kis.service, folder, kis.line.kis.virtual, lambda: None).broker()
        assert hand.reconcile().drift == {}
    assert hand.fills() == ["4 at 100.00", "6 at 100.50"] and hand.positions() == {"ACME": 10}
    cash = kis.exchange.cash
    assert hand.broker.account().cash == cash == CAPITAL - 400 - 603


def test_i4_processes_that_look_at_the_same_moment_note_a_fill_once(kis: Bench) -> None:
    broker = kis.broker()
    order = broker.submit(buy())
    broker.noted.path.unlink()
    threads = [threading.Thread(target=broker.noted.note, args=([order], kis.exchange.now)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [fill.quantity for fill in broker.noted.since(EVER)] == [10]


def test_fault_12_13_what_was_filled_before_a_cancel_stays(kis: Bench) -> None:
    kis.exchange.portion = lambda order: Decimal(4)
    broker = kis.broker()
    order = broker.submit(buy())
    broker.cancel(order.broker_id)
    ended = broker.order(order.broker_id)
    assert (ended.status, ended.filled_quantity, ended.average_price) == (OrderStatus.CANCELED, 4, 100)
    assert [(fill.quantity, fill.price) for fill in broker.fills(EVER)] == [(4, 100)]
    broker.cancel(order.broker_id)
    assert len(kis.asked(CANCELS)) == 1, "an order that is over is not cancelled again"
    assert len(broker.orders(EVER)) == 1, "the row of the cancelling is no order"


def test_fault_13_a_cancel_that_comes_too_late_leaves_a_filled_order(kis: Bench) -> None:
    broker = kis.broker()
    broker.submit(buy())
    waiting = broker.submit(target(105))
    real_order = list(kis.exchange.orders.values())[1]

    def fills_first(request: Request) -> bool:
        if request.path.endswith(CANCELS):
            kis.exchange.execute(real_order, Decimal(105), Decimal(10))
        return False

    kis.service.fault(Fault(fills_first, "reply"))
    broker.cancel(waiting.broker_id)
    assert broker.order(waiting.broker_id).status is OrderStatus.FILLED and broker.positions() == []


def test_a_fill_seen_late_belongs_to_its_session(kis: Bench) -> None:
    "The cool-down after a stop counts sessions: a fill of Tuesday that is first seen on Thursday is Tuesday's"
    broker = kis.broker()
    kis.exchange.submit("ACME", "buy", Decimal(7), "market")
    kis.exchange.to(session_open(DAYS[2]))
    [fill] = broker.fills(session_open(DAYS[0]))
    assert fill.at == session_close(DAYS[0])
    assert [again.fill_id for again in broker.fills(session_open(DAYS[2]))] == [fill.fill_id], "news is what was seen"


def test_an_accepted_order_that_the_lists_do_not_show_yet_is_pending(kis: Bench) -> None:
    broker = kis.broker()
    kis.service.fault(Fault(at(LISTS), "reply", change=lambda body: body | {"output": []}, times=1))
    kis.service.fault(Fault(at(RESTING), "reply", change=lambda body: body | {"output": []}, times=1))
    order = broker.submit(buy())
    assert (order.status, order.quantity, order.filled_quantity) == (OrderStatus.PENDING, 10, 0)
    found = broker.order(order.broker_id)
    assert found.status is OrderStatus.FILLED and found.submitted_at == order.submitted_at


def test_an_order_that_was_pending_is_believed_filled_although_its_row_is_older(kis: Bench, folder: Path) -> None:
    "The answer says 23:30:03, the list 23:30:00: news all the same"
    kis.service.late = timedelta(seconds=3)
    kis.exchange.move(timedelta(minutes=5))
    hand = hand_at(kis, folder)
    hand.reconcile()
    empty = [Fault(lists_of_today(kis, page), "reply", change=lambda body: body | {"output": []}) for page in (LISTS, RESTING)]
    for fault in empty:
        kis.service.fault(fault)
    assert hand.submit(buy()) is IntentStatus.OPEN
    for fault in empty:
        fault.times = 0
    hand.reconcile()
    assert hand.submit(buy()) is IntentStatus.FILLED and hand.positions() == {"ACME": 10}


def lists_of_today(of: Bench, page: str) -> Callable[[Request], bool]:
    return lambda request: request.path.endswith(page) and bool(of.exchange.orders)


def test_an_order_that_rests_beyond_the_close_is_alive(real: Bench) -> None:
    "A person may have prolonged it into the evening: the list of resting orders wins over the calendar"
    broker = real.broker()
    broker.submit(buy())
    waiting = broker.submit(target(200))
    [row] = real.service.pages([real.service.row(real.service.book()[1])], {"CTX_AREA_NK200": ""}, "nccs")[1]["output"]
    real.exchange.to(session_close(DAYS[0]))
    assert broker.order(waiting.broker_id).status is OrderStatus.EXPIRED
    prolonged = row | {"rvse_cncl_dvsn_cd": "00", "nccs_qty": "10"}
    real.service.fault(Fault(at(RESTING), "reply", change=lambda body: body | {"output": [prolonged]}, times=99))
    assert broker.order(waiting.broker_id).status is OrderStatus.OPEN


def test_without_the_list_of_resting_orders_the_other_one_stands(real: Bench) -> None:
    "It comes and goes in KIS's own samples; an order of today with shares left is alive then, as in the paper world"
    broker = real.broker()
    broker.submit(buy())
    waiting = broker.submit(target(200))
    real.service.fault(Fault(at(RESTING), "reply", reply=said("OPSQ0002"), times=99))
    assert broker.orders(EVER, open_only=True) == [waiting]
    real.exchange.to(session_close(DAYS[0]))
    assert broker.order(waiting.broker_id).status is OrderStatus.EXPIRED


# ------------------------------------------------------------------------- 27: what KIS cannot do


@pytest.mark.parametrize(
    "wish",
    [
        buy(quantity="0.5"),
        stop(90),
        target(110, oco_group="g"),
        buy("NOPE"),
        buy(order_type=OrderType.LIMIT, limit_price=Decimal("99.999")),
    ],
)
def test_fault_27_what_kis_cannot_do_is_refused_here(kis: Bench, wish: OrderIntent) -> None:
    broker = kis.broker()
    with pytest.raises(Rejected):
        broker.submit(wish)
    assert kis.asked(ORDERS) == []


def test_fault_27_a_market_order_is_a_limit_with_a_collar(kis: Bench) -> None:
    "python-kis sends 1.5 and 0.5 times the last price, unrounded, and half a share as none"
    broker = kis.broker()
    broker.submit(buy(quantity=1000, symbol="BOLT"))
    broker.submit(sell(quantity=1000, symbol="BOLT"))
    sent = [request.body for request in kis.asked(ORDERS)]
    assert [(body["OVRS_ORD_UNPR"], body["ORD_QTY"], body["ORD_DVSN"]) for body in sent] == [
        ("20.20", "1000", "00"),
        ("19.80", "1000", "00"),
    ]
    assert [body["OVRS_EXCG_CD"] for body in sent] == ["NYSE", "NYSE"]
    services = [{k.lower(): v for k, v in request.headers.items()}["tr_id"] for request in kis.asked(ORDERS)]
    assert services == (["VTTT1002U", "VTTT1001U"] if broker.caps.paper else ["TTTT1002U", "TTTT1006U"])


def test_fault_27_the_paper_world_is_asked_only_what_it_answers(folder: Path) -> None:
    of = bench(folder, paper=True)
    broker = of.broker()
    broker.submit(buy())
    broker.submit(target(200))
    broker.orders(EVER)
    assert of.asked(RESTING) == []
    assert {(request.query["PDNO"], request.query["OVRS_EXCG_CD"]) for request in of.asked(LISTS)} == {("", "")}


def test_i8_a_paper_account_trades_in_its_own_world_and_nowhere_else(folder: Path) -> None:
    of = bench(folder, paper=True)
    broker = of.broker()
    broker.submit(buy())
    broker.account()
    of.line.home = REAL  # a bug, say
    with pytest.raises(AuthFailed, match="on its way to the real world"):
        broker.line.write("/uapi/overseas-stock/v1/trading/order", "TTTT1002U", {}, "order")
    ports = {name: [request.path for request in wire.log] for name, wire in of.service.worlds.items()}
    assert not any("/trading/" in path for path in ports["real"])
    assert any("/trading/" in path for path in ports["paper"])


# ------------------------------------------------------------------------- 28: the token's file


def test_fault_28_the_file_is_the_owner_s_alone_and_shared_by_processes(kis: Bench, folder: Path) -> None:
    kis.broker()
    again = bench_at(kis.service, folder, kis.line.kis.virtual, lambda: None)
    again.broker().account()
    tokens = sorted(kis.folder.glob("token-*.json"))
    assert len(kis.asked("tokenP")) == len(tokens) <= 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in tokens} == {0o600}
    assert stat.S_IMODE(kis.folder.stat().st_mode) == 0o700
    assert REAL_KEY not in "".join(path.name for path in kis.folder.iterdir())


def spoiled(path: Path) -> None:
    path.write_text(path.read_text()[:20])


def expired(path: Path) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"until": "2024-01-02T14:31:00+00:00"}))


def linked(path: Path) -> None:
    (path.parent / "elsewhere.json").write_text(path.read_text())
    path.unlink()
    path.symlink_to(path.parent / "elsewhere.json")


@pytest.mark.parametrize("harm", [spoiled, expired, linked, Path.unlink])
def test_fault_28_a_file_that_is_no_good_costs_one_new_token(real: Bench, folder: Path, harm: Callable) -> None:
    real.broker()
    harm(real.line.files[REAL])
    real.exchange.move(timedelta(minutes=2))
    real.exchange.now = min(real.exchange.now, closing(DAYS[0]))
    fresh = bench_at(real.service, folder, False, lambda: None)
    fresh.broker()
    assert len(real.asked("tokenP")) == 2
    assert not real.line.files[REAL].is_symlink() and stat.S_IMODE(real.line.files[REAL].stat().st_mode) == 0o600


def test_fault_28_an_open_file_is_closed_and_a_stranger_s_is_not_read(
    real: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real.broker()
    path = real.line.files[REAL]
    path.chmod(0o644)
    assert read_token(path, real.exchange.now) is not None and stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert read_token(path, real.exchange.now) is None


def test_fault_28_only_the_refused_token_is_thrown_away(real: Bench) -> None:
    "Two processes meet the same dead token: the second finds the one that the first one got"
    broker = real.broker()
    dead = broker.line.known[REAL]
    newer = Token("newer", dead.until + timedelta(hours=1))
    write_token(real.line.files[REAL], newer)
    broker.line.forget(REAL, dead)
    assert broker.line.token(REAL) == newer and len(real.asked("tokenP")) == 1


# ------------------------------------------------------------------------- I7: nothing leaks


def leaks(error: BaseException) -> list[str]:
    "Secrets in an exception, and in all that hangs on it"
    seen: list[BaseException | None] = [error]
    while seen[-1] is not None:
        seen.append(seen[-1].__cause__ or seen[-1].__context__)
    texts = [part for found in seen if found for part in (str(found), repr(found), repr(vars(found)))]
    return [secret for secret in SECRETS for text in texts if secret in text]


SAYING = {"rt_cd": "1", "msg_cd": "APBK9999", "msg1": f"계좌 {ACCOUNT} {NUMBER} {REAL_KEY} 오류"}


@pytest.mark.parametrize("ending", [ORDERS, "present-balance", LISTS, "price-detail", "tokenP"])
@pytest.mark.parametrize("fault", ["reset", "truncate", "html", "saying"])
def test_i7_no_secret_leaves_in_an_error(kis: Bench, ending: str, fault: str) -> None:
    broker = kis.broker()
    if ending == "tokenP":
        kis.line.known.clear()
        for path in kis.line.files.values():
            path.unlink(missing_ok=True)
        kis.exchange.move(timedelta(minutes=2))
    reply = {"html": Reply(500, b"<html>" + ACCOUNT.encode()), "saying": Reply(400, SAYING)}.get(fault)
    action = fault if reply is None else "reply"
    kis.service.fault(Fault(at(ending), action, reply=reply, times=99))
    with pytest.raises(BrokerError) as told:
        broker.submit(buy()) if ending != LISTS else broker.orders(EVER)
        broker.account()
    assert leaks(told.value) == []


def test_i7_nothing_that_is_shown_or_kept_holds_a_secret(kis: Bench) -> None:
    broker = kis.broker()
    broker.submit(buy())
    parts = (broker.account(), broker.orders(EVER), broker.fills(EVER), broker.clock(), broker.line.known)
    shown = [repr(part) for part in parts]
    assert not [secret for secret in SECRETS for text in shown if secret in text]
    kept = {path.name: path.read_bytes() for path in kis.folder.iterdir() if not path.name.startswith("token-")}
    assert len(kept) >= 2
    assert not [name for name, content in kept.items() for secret in SECRETS if secret.encode() in content]


# ------------------------------------------------------------------------- the two worlds


def test_keys_of_the_other_world_fail_at_the_door(folder: Path) -> None:
    "EGW02004, before the first order; and the advice says which keys to look at"
    service = Kis(Exchange(make_tape(), session_open(DAYS[0]), CAPITAL), CAPITAL)
    urls = {REAL: service.url, PAPER: service.paper_url}
    swapped = Keys(PAPER_KEY, PAPER_SECRET), Keys(REAL_KEY, REAL_SECRET)
    line = kis_line(*swapped, NUMBER, HTS_ID, folder / "kis", lambda: service.exchange.now, urls, lambda: None)
    with pytest.raises(AuthFailed, match="EGW02004.*KIS_PAPER_"):
        paper_kis(line, folder)
    assert not any("/order" in request.path for request in service.log)


def test_one_address_for_both_worlds_is_enough(folder: Path) -> None:
    service = Kis(Exchange(make_tape(), session_open(DAYS[0]), CAPITAL), CAPITAL)
    urls = dict.fromkeys((REAL, PAPER), service.both_url)
    twin = Keys(PAPER_KEY, PAPER_SECRET)
    now = lambda: service.exchange.now  # noqa: E731
    line = kis_line(Keys(REAL_KEY, REAL_SECRET), twin, NUMBER, HTS_ID, folder, now, urls, lambda: None)
    assert paper_kis(line, folder).submit(buy()).status is OrderStatus.FILLED


def test_what_is_wrong_with_the_keys_is_said(kis: Bench) -> None:
    broker = kis.broker()
    kis.service.fault(Fault(at("present-balance"), "reply", False, said("EGW00105", 403), times=9))
    with pytest.raises(AuthFailed, match="KIS_APP_SECRET"):
        broker.account()


def test_won_are_shown_beside_dollars(kis: Bench) -> None:
    broker = kis.broker()
    assert won_beside(broker.account().equity, broker.rate) == "100,000.00 USD (₩140,000,000)"


@pytest.mark.parametrize("off", [-300, 0, 300])
def test_fault_22_the_clock_is_kis_s_where_ours_is_wrong(folder: Path, off: int) -> None:
    "The date in the header of an answer, to the second; a token's end is moved by as much"
    of = bench(folder)
    of.line.clock = lambda: of.exchange.now + timedelta(seconds=off)
    broker = of.broker()
    clock = broker.clock()
    assert abs(clock.now - of.exchange.now) < timedelta(seconds=2) and clock.is_open
    assert abs(of.line.known[REAL].until - of.exchange.now - timedelta(days=1, seconds=off)) < timedelta(seconds=2)


def test_an_answer_serves_a_moment_and_no_longer_than_the_next_order(folder: Path) -> None:
    of = bench(folder, paper=True)
    broker = paper_kis(of.line, of.folder, 60.0)
    for _ in range(3):
        broker.account()
        broker.positions()
    assert len(of.asked("present-balance")) == 2 and len(of.asked("inquire-balance")) == 3
    assert len(of.asked(LISTS)) == len(of.asked("inquire-psamount")) == 1
    broker.submit(buy())
    assert broker.positions()[0].quantity == 10 and broker.account().cash == CAPITAL - 1000


# ------------------------------------------------------------------------- bars


def source_at(of: Bench, *symbols: str, since: date = date(2023, 1, 3)) -> KisSource:
    return KisSource(lambda: of.line, symbols, since, lambda: of.exchange.now, timedelta(0))


def test_bars_are_the_tape_with_its_events(folder: Path) -> None:
    "Raw prices, the split found in the adjusted series; where that one takes payments out, they are found, too"
    for pays in (False, True):
        of = bench(folder / str(pays), pays=pays)
        of.exchange.to(session_close(DAYS[4]))
        source = source_at(of, "BOLT", "ACME")
        frames = source.bars(source.symbols(), None, DAYS[4])
        panel = panel_of(frames, source.name, source.feed)
        tape = make_tape().select(["ACME", "BOLT"])
        assert (panel.values == tape.values).all() and (panel.splits == tape.splits).all()
        paid = tape.dividends if pays else tape.dividends * 0
        assert abs(panel.dividends - paid).max() < 2e-3, "to the last digit of a price"
        assert source.last_session() == DAYS[4]


def test_bars_of_years_come_in_hundreds_and_are_complete(folder: Path) -> None:
    from alpha_trader.samples import synthetic_panel

    tape = synthetic_panel(2, 450, seed=5)
    exchange = Exchange(tape, closing(tape.sessions[-1].item()), CAPITAL)
    of = bench_at(Kis(exchange, CAPITAL), folder, False, lambda: None)
    source = source_at(of, *tape.symbols, since=date(2015, 1, 2))
    found = panel_of(source.bars(tape.symbols, None, None), "kis", "dailyprice")
    assert (found.values == tape.values).all()
    pages = len(of.asked("dailyprice"))
    assert pages == 2 * 2 * 5, "two series of two symbols, five pages each"
    middle = source.bars([tape.symbols[0]], tape.sessions[10].item(), tape.sessions[20].item())[tape.symbols[0]]
    assert len(middle) == 11 and len(of.asked("dailyprice")) - pages == 2


def test_a_symbol_nobody_lists_is_named_and_the_others_are_ingested(folder: Path) -> None:
    from alpha_trader.checks import ingest

    of = bench(folder)
    of.exchange.to(session_close(DAYS[4]))
    source = source_at(of, "ACME", "BOLT", "NOPE")
    report = ingest(source, folder / "bars", source.symbols(), DAYS[4], of.exchange.now, max_move=0.6)
    assert report.symbols == ("ACME", "BOLT")
    assert "NOPE: neither Nasdaq nor NYSE nor AMEX" in report.findings[-1].detail


def test_the_bar_of_today_is_not_a_bar_yet(folder: Path) -> None:
    from alpha_trader.checks import ingest

    of = bench(folder)
    of.exchange.to(session_open(DAYS[2]) + timedelta(hours=1))
    source = source_at(of, "BOLT")
    assert source.last_session() == DAYS[1]
    assert ingest(source, folder / "bars", ["BOLT"], DAYS[1], of.exchange.now).rows[0].last == DAYS[1]


def test_ingest_asks_only_for_what_is_missing(folder: Path) -> None:
    "Three mornings: all of history, then two questions a symbol with the split of that day, then none"
    from alpha_trader.bars import read_bars
    from alpha_trader.checks import ingest

    of = bench(folder)
    source, asked = source_at(of, "ACME", "BOLT", "NOPE"), []
    for day in (DAYS[1], DAYS[2], DAYS[2], DAYS[4]):
        of.exchange.to(session_close(day))
        before = len(of.asked("dailyprice"))
        report = ingest(source, folder / "bars", source.symbols(), day, of.exchange.now, max_move=0.6)
        asked.append(len(of.asked("dailyprice")) - before)
        assert report.symbols == ("ACME", "BOLT")
    assert asked == [8, 4, 0, 4]
    tape = make_tape().select(["ACME"])
    kept = read_bars(folder / "bars", "ACME")
    assert kept["close"].tolist() == tape.close[:, 0].tolist() and kept["split"].tolist() == tape.splits[:, 0].tolist()


def test_a_kept_bar_that_was_corrected_brings_everything_anew(folder: Path) -> None:
    of = bench(folder)
    of.exchange.to(session_close(DAYS[4]))
    source = source_at(of, "BOLT")
    full = source.bars(["BOLT"], None, DAYS[4])["BOLT"]
    kept = full.iloc[:3].copy()
    kept.iloc[1:, 3] += 0.01
    [(_, again)] = source.renewed(["BOLT"], lambda symbol: kept, DAYS[4])
    assert again.equals(full)


def test_a_line_for_bars_cannot_trade_and_needs_no_paper_keys(folder: Path) -> None:
    of = bench(folder)
    urls, number = {REAL: of.service.url}, NUMBER
    keys = Keys(REAL_KEY, REAL_SECRET)
    now = of.line.clock
    line = kis_line(keys, None, number, HTS_ID, folder / "kis", now, urls, lambda: None, quotes_only=True)
    assert Quotes(line).quote("ACME") is not None
    with pytest.raises(AuthFailed, match="on its way to the real world"):
        KisBroker(line, folder).positions()


def test_minutes_are_in_order_and_complete(real: Bench) -> None:
    real.exchange.to(session_close(DAYS[1]))
    bars = minute_bars(Quotes(real.line), "ACME", session_open(DAYS[0]) + timedelta(hours=1), 5)
    assert len(bars) == 78 - 12 + 78 and bars.index.is_monotonic_increasing and bars.index.is_unique
    assert bars.index[0] == session_open(DAYS[0]) + timedelta(hours=1)
    assert len(real.asked("itemchartprice")) == 2


def test_quotes_are_asked_in_the_real_world_also_for_paper(folder: Path) -> None:
    of = bench(folder, paper=True)
    assert sorted(Quotes(of.line).quotes(["ACME", "BOLT", "NOPE"])) == ["ACME", "BOLT"]
    assert [request.path for request in of.service.worlds["paper"].log] == []
    rate = Decimal(of.service.price_detail({"SYMB": "ACME", "EXCD": "NAS"}, "", "")[1]["output"]["t_rate"])
    assert rate == RATE


def test_lookalikes_of_kis_are_told_apart_by_what_was_there_before(kis: Bench) -> None:
    broker = kis.broker()
    before = [broker.submit(buy()).broker_id]
    sent_at = kis.exchange.now
    broker.submit(buy())
    found = lookalikes(buy(), broker.orders(EVER), before, sent_at)
    assert len(found) == 1 and found[0].broker_id not in before


def test_a_live_type_is_not_a_paper_type(folder: Path) -> None:
    live, paper = bench(folder / "a").broker(), bench(folder / "b", paper=True).broker()
    assert isinstance(live, LiveKis) and not isinstance(paper, LiveKis)
    assert (live.caps.paper, paper.caps.paper) == (False, True)
