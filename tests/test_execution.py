"""Execution under the faults of the broker design, by their numbers, and a state machine that mixes them all

The invariants, asserted against the *broker's* book: I1 at most one order an intent; I2 no decision lost; I3 our
positions are the broker's; I4 no fill counted twice; I5 what may still fill is counted.
"""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import MEMORY
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import OperationalError

from alpha_trader.bars import bars_frame, panel_of
from alpha_trader.broker import Broker
from alpha_trader.domain import (
    Account,
    Ambiguous,
    AuthFailed,
    BrokerOrder,
    Capabilities,
    CorporateAction,
    Duplicate,
    Fill,
    InputError,
    IntentStatus,
    LeaseHeld,
    NotSent,
    OrderIntent,
    OrderStatus,
    OrderType,
    Position,
    Purpose,
    RateLimited,
    Rejected,
    RejectReason,
    Side,
)
from alpha_trader.execution import (
    Outcome,
    Reconciliation,
    cancel_intent,
    claim,
    drop_intent,
    frozen,
    intent_of,
    next_attempt,
    pending,
    poll_orders,
    reconcile,
    record_intents,
    resolve_unknown,
    send,
    submit_intent,
    unfreeze,
    working,
)
from alpha_trader.fills import CostRules
from alpha_trader.sessions import session_close, session_open
from alpha_trader.simulated import FaultPlan, SimBroker
from alpha_trader.store import (
    FillRow,
    OrderRow,
    PositionRow,
    RiskEventRow,
    acquire_lease,
    halted,
    open_account,
    open_store,
    reading,
    writing,
)

DAYS = [date(2024, 1, day) for day in (2, 3, 4, 5, 8, 9, 10, 11)]
START = session_open(DAYS[0])
CAPITAL = Decimal(100_000)
COSTS = CostRules(0.001, 0.0, 0.0, 0.0, 0.0)
LONG = timedelta(days=900)


def make_tape():
    "ACME falls to 94 on the second day, splits before the third and pays before the fourth; BOLT and COIL rest"
    acme = {
        "open": [100.0, 101, 50, 52, 54, 54, 54, 54],
        "high": [104.0, 102, 53, 56, 55, 70, 55, 55],
        "low": [99.0, 94, 49, 51, 53, 53, 53, 53],
        "close": [102.0, 96, 52, 55, 54, 54, 54, 54],
        "volume": [1e6] * 8,
        "split": [1.0, 1, 2, 1, 1, 1, 1, 1],
        "dividend": [0.0, 0, 0, 0.5, 0, 0, 0, 0],
    }
    flat = {"open": [20.0] * 8, "high": [21.0] * 8, "low": [19.0] * 8, "close": [20.0] * 8, "volume": [1e6] * 8}
    frames = {"ACME": bars_frame(DAYS, acme), "BOLT": bars_frame(DAYS, flat), "COIL": bars_frame(DAYS, flat)}
    return panel_of(frames, "test", "test")


TAPE = make_tape()


@dataclass
class Hand:
    "Everything a test needs to act, and how often it waited"

    engine: Engine
    broker: Broker
    fence: int
    naps: list[float] = field(default_factory=list)

    def clock(self) -> datetime:
        return self.broker.account().as_of

    @property
    def acting(self) -> tuple:
        return self.fence, self.clock, self.naps.append

    def record(self, *intents: OrderIntent) -> list[Outcome]:
        return record_intents(self.engine, intents, None, self.clock(), self.fence)

    def send(self, *intents: OrderIntent) -> list[Outcome]:
        self.record(*intents)
        return send(self.engine, self.broker, intents, *self.acting, self.clock() + timedelta(seconds=20))

    def submit(self, intent: OrderIntent) -> Outcome:
        self.record(intent)
        return submit_intent(self.engine, self.broker, intent.client_id, self.fence, self.clock)

    def resolve(self, intent: OrderIntent) -> Outcome:
        return resolve_unknown(self.engine, self.broker, intent.client_id, *self.acting)

    def cancel(self, intent: OrderIntent) -> Outcome:
        deadline = self.clock() + timedelta(seconds=20)
        return cancel_intent(self.engine, self.broker, intent.client_id, *self.acting, deadline)

    def reconcile(self) -> Reconciliation:
        return reconcile(self.engine, self.broker, "demo", *self.acting)

    def status(self, intent: OrderIntent) -> IntentStatus:
        return intent_of(self.engine, intent.client_id).status

    def position(self, symbol: str = "ACME") -> PositionRow | None:
        with reading(self.engine) as db:
            return db.get(PositionRow, ("demo", symbol))

    def rows(self, table: type) -> list:
        with reading(self.engine) as db:
            return list(db.scalars(select(table)))

    def alarms(self) -> list[str]:
        return [row.kind for row in self.rows(RiskEventRow)]


def store_in(folder: Path) -> tuple[Engine, int]:
    engine = open_store(f"sqlite:///{folder}/store.db")
    open_account(engine, "demo", "sim", "sim", CAPITAL, START)
    return engine, acquire_lease(engine, "demo", "test", os.getpid(), "here", START, LONG)


def sim_in(folder: Path, now: datetime | None = START, **more) -> SimBroker:
    return SimBroker(folder / "book.db", TAPE, now, "demo", CAPITAL, COSTS, **more)


@pytest.fixture
def sim(folder: Path) -> Hand:
    engine, fence = store_in(folder)
    return Hand(engine, sim_in(folder), fence)


@pytest.fixture
def nameless(folder: Path) -> Hand:
    engine, fence = store_in(folder)
    return Hand(engine, sim_in(folder, client_ids=False), fence)


def wish(side: Side, purpose: Purpose, symbol: str, quantity: int, day: int, **more) -> OrderIntent:
    return OrderIntent("demo", "mom", DAYS[day], symbol, side, purpose, Decimal(quantity), **more)


def entry(symbol: str = "ACME", quantity: int = 10, day: int = 0, **more) -> OrderIntent:
    return wish(Side.BUY, Purpose.ENTRY, symbol, quantity, day, **more)


def exit_(symbol: str = "ACME", quantity: int = 10, day: int = 0, **more) -> OrderIntent:
    return wish(Side.SELL, Purpose.EXIT, symbol, quantity, day, **more)


def stop(price: int, quantity: int = 10, day: int = 0, **more) -> OrderIntent:
    level = {"order_type": OrderType.STOP, "stop_price": Decimal(price)}
    return wish(Side.SELL, Purpose.STOP, "ACME", quantity, day, **level, **more)


def target(price: int, quantity: int = 5, day: int = 0, **more) -> OrderIntent:
    level = {"order_type": OrderType.LIMIT, "limit_price": Decimal(price)}
    return wish(Side.SELL, Purpose.TARGET, "ACME", quantity, day, **level, **more)


def fail(error: BaseException, *calls: int) -> Callable[[int, OrderIntent], None]:
    "A fault at these calls, or at each"

    def fault(call: int, intent: OrderIntent) -> None:
        if not calls or call in calls:
            raise error

    return fault


# ------------------------------------------------------------------------------------- the faults, by number


@pytest.mark.parametrize("error", [NotSent("refused"), RateLimited("429", START), AuthFailed("401")])
def test_fault_1_what_never_left_is_sent_later_under_the_same_name(sim: Hand, error: Exception) -> None:
    sim.broker.faults = FaultPlan(before_accept=fail(error))
    assert sim.send(entry())[0].status is IntentStatus.PLANNED
    assert sim.broker.sent == 4 and sim.broker.orders(START) == []
    sim.broker.faults = FaultPlan()
    assert sim.send(entry())[0].status is IntentStatus.FILLED
    assert len(sim.broker.orders(START)) == 1


@pytest.mark.parametrize("error", [Ambiguous("reset"), Ambiguous("504"), ValueError("no JSON"), KeyError("ORD_TMD")])
def test_faults_2_4_9_a_lost_answer_is_looked_up_and_never_sent_again(sim: Hand, error: Exception) -> None:
    "DA-2, DB-9: System A retried into a second order, System B called it filled"
    sim.broker.faults = FaultPlan(after_accept=fail(error))
    assert sim.submit(entry()).status is IntentStatus.UNKNOWN
    assert sim.resolve(entry()).status is IntentStatus.FILLED
    assert sim.broker.sent == 1 and len(sim.broker.orders(START)) == 1


def test_fault_3_lost_before_it_arrived_is_sent_again_under_the_same_name(sim: Hand) -> None:
    sim.broker.faults = FaultPlan(before_accept=fail(Ambiguous("reset"), 1))
    assert sim.send(entry())[0].status is IntentStatus.FILLED
    assert sim.broker.sent == 2 and [o.client_id for o in sim.broker.orders(START)] == [entry().client_id]


class Lagging(SimBroker):
    "Does not find an order before it has been asked a few times"

    blind = 0

    def find(self, intent: OrderIntent) -> BrokerOrder | None:
        self.blind -= 1
        return super().find(intent) if self.blind < 0 else None


@pytest.mark.parametrize("blind", [3, 7])
def test_fault_6_a_lookup_that_lags_costs_patience_not_a_second_order(folder: Path, blind: int) -> None:
    engine, fence = store_in(folder)
    hand = Hand(engine, Lagging(folder / "book.db", TAPE, START, "demo", CAPITAL, COSTS), fence)
    hand.broker.blind, hand.broker.faults = blind, FaultPlan(after_accept=fail(Ambiguous("timeout"), 1))
    assert hand.send(entry())[0].status is IntentStatus.FILLED
    assert len(hand.broker.orders(START)) == 1
    assert hand.broker.sent == (1 if blind < 5 else 2)  # the second one was refused as a duplicate


def test_fault_7_a_duplicate_of_the_same_order_is_adopted(sim: Hand) -> None:
    sim.broker.submit(entry())
    assert sim.send(entry())[0].status is IntentStatus.FILLED
    assert len(sim.broker.orders(START)) == 1


def test_fault_7_our_name_on_another_order_is_a_conflict_and_halts(sim: Hand) -> None:
    sim.broker.submit(entry(quantity=11))
    outcome = sim.send(entry(quantity=10))[0]
    assert outcome.status is IntentStatus.CONFLICT and "quantity is 11 at the broker, we wished 10" in outcome.error
    assert halted(sim.engine, "demo") and "ACME" in frozen(sim.engine, "demo")
    drop_intent(sim.engine, entry().client_id, "looked at, and sold by hand", sim.clock())
    assert sim.reconcile().frozen == {} and sim.status(entry()) is IntentStatus.DROPPED
    assert sim.alarms().count("conflict") == 1


def test_fault_8_a_refusal_is_final_and_the_next_symbol_goes_on(sim: Hand) -> None:
    outcomes = sim.send(entry(quantity=5000), entry("BOLT"))
    assert [outcome.status for outcome in outcomes] == [IntentStatus.REJECTED, IntentStatus.FILLED]
    assert "funds" in outcomes[0].error and sim.broker.sent == 2
    assert sim.send(entry(quantity=5000))[0].status is IntentStatus.REJECTED and sim.broker.sent == 2


def test_what_a_broker_cannot_do_is_refused_before_anything_is_sent(sim: Hand) -> None:
    half = replace(entry(), quantity=Decimal("0.5"))
    assert sim.send(half)[0].status is IntentStatus.REJECTED and sim.broker.sent == 0


def test_fault_11_of_two_holders_the_older_one_cannot_act(sim: Hand) -> None:
    sim.record(entry())
    newer = acquire_lease(sim.engine, "demo", "other", os.getpid(), "here", START, LONG)
    with pytest.raises(LeaseHeld):
        submit_intent(sim.engine, sim.broker, entry().client_id, sim.fence, sim.clock)
    with pytest.raises(LeaseHeld):
        sim.reconcile()
    assert sim.broker.sent == 0 and sim.status(entry()) is IntentStatus.PLANNED
    sim.fence = newer
    assert sim.send(entry())[0].status is IntentStatus.FILLED


def test_fault_11_a_process_that_slept_over_its_request_makes_no_second_order(sim: Hand) -> None:
    "It claims, sleeps, loses the lease; the next holder finds nothing and sends; then the sleeper's request arrives"
    sim.record(entry())
    old = sim.fence
    assert claim(sim.engine, entry(), old, sim.clock())
    sim.fence = acquire_lease(sim.engine, "demo", "other", os.getpid(), "here", START, LONG)
    assert sim.reconcile().resolved[0].status is IntentStatus.PLANNED
    assert sim.send(entry())[0].status is IntentStatus.FILLED
    with pytest.raises(Duplicate):
        sim.broker.submit(entry())
    assert len(sim.broker.orders(START)) == 1


def test_a_request_that_arrives_after_it_was_given_up_is_not_overlooked(sim: Hand) -> None:
    sim.record(entry())
    drop_intent(sim.engine, entry().client_id, "given up", sim.clock())
    sim.broker.submit(entry())
    seen = sim.reconcile()
    assert sim.status(entry()) is IntentStatus.FILLED and sim.alarms() == ["late"]
    assert seen.drift == {} and sim.position().quantity == 10


def test_a_late_order_whose_place_was_taken_halts(puppet: Hand) -> None:
    puppet.record(entry())
    drop_intent(puppet.engine, entry().client_id, "given up", puppet.clock())
    puppet.submit(next_attempt(puppet.engine, entry()))
    puppet.broker.submit(entry())
    puppet.reconcile()
    assert puppet.status(entry()) is IntentStatus.DROPPED and puppet.alarms() == ["late"]
    assert "late" in halted(puppet.engine, "demo")


def test_a_conflict_that_a_person_has_dropped_stays_dropped(puppet: Hand) -> None:
    puppet.record(entry())
    puppet.broker.submit(entry(quantity=11))
    puppet.reconcile()
    assert puppet.status(entry()) is IntentStatus.CONFLICT
    drop_intent(puppet.engine, entry().client_id, "cancelled by hand", puppet.clock())
    puppet.broker.set("1", status=OrderStatus.CANCELED)
    puppet.reconcile()
    assert puppet.status(entry()) is IntentStatus.DROPPED and puppet.alarms() == ["conflict"]


def test_fault_11_the_answer_to_a_process_that_lost_its_lease_is_left_to_the_next(sim: Hand) -> None:
    def lose_lease(label: str) -> None:
        if label == "settle":
            acquire_lease(sim.engine, "demo", "other", os.getpid(), "here", START, LONG)

    sim.record(entry())
    with pytest.raises(LeaseHeld):
        submit_intent(sim.engine, sim.broker, entry().client_id, sim.fence, sim.clock, lose_lease)
    assert sim.status(entry()) is IntentStatus.SENDING
    with pytest.raises(LeaseHeld):
        poll_orders(sim.engine, sim.broker, "demo", [entry().client_id], *sim.acting, sim.clock())
    sim.fence += 1
    assert sim.reconcile().resolved[0].status is IntentStatus.FILLED and sim.broker.sent == 1


def test_what_was_being_sent_when_its_process_died_is_unknown(sim: Hand) -> None:
    class Deaf(SimBroker):
        def find(self, intent: OrderIntent) -> BrokerOrder | None:
            raise Ambiguous("timeout")

    sim.record(entry())
    claim(sim.engine, entry(), sim.fence, sim.clock())
    sim.broker.__class__ = Deaf
    assert sim.reconcile().resolved[0].status is IntentStatus.UNKNOWN
    assert list(frozen(sim.engine, "demo")) == ["ACME"]


class Puppet:
    "A broker in memory that does what the test says: partial fills, late and stale news"

    caps = Capabilities(False, True, True, True, True, False, True)

    def __init__(self) -> None:
        self.now, self.cash = START, CAPITAL
        self.book: dict[str, BrokerOrder] = {}
        self.trades: list[Fill] = []
        self.shares: Counter = Counter()
        self.stale_positions = 0
        self.on_cancel: Callable[[str], None] = lambda broker_id: self.set(broker_id, status=OrderStatus.CANCELED)

    def set(self, broker_id: str, **more) -> None:
        self.now += timedelta(seconds=1)
        self.book[broker_id] = replace(self.book[broker_id], updated_at=self.now, **more)

    def trade(self, broker_id: str, quantity: int, price: int = 100) -> Fill:
        order = self.book[broker_id]
        filled = order.filled_quantity + quantity
        status = OrderStatus.FILLED if filled == order.quantity else OrderStatus.PARTIAL
        self.set(broker_id, filled_quantity=filled, status=status, average_price=Decimal(price))
        name = f"{broker_id}:{filled}"
        what = (order.client_id, order.symbol, order.side, Decimal(quantity), Decimal(price), Decimal(0), self.now)
        self.trades.append(Fill(name, broker_id, *what))
        self.shares[order.symbol] += self.trades[-1].signed_quantity
        self.cash += self.trades[-1].cash
        return self.trades[-1]

    def account(self) -> Account:
        return Account("demo", *[self.cash] * 5, as_of=self.now)

    def positions(self) -> list[Position]:
        self.stale_positions -= 1
        shares = {} if self.stale_positions >= 0 else self.shares
        return [Position(s, Decimal(q), Decimal(q), Decimal(100), Decimal(100)) for s, q in shares.items() if q]

    def submit(self, intent: OrderIntent) -> BrokerOrder:
        broker_id = str(len(self.book) + 1)
        head = (intent.client_id, intent.symbol, intent.side, intent.quantity, OrderStatus.OPEN)
        self.book[broker_id] = BrokerOrder(broker_id, *head, Decimal(0), None, intent.order_type, self.now, self.now)
        return self.book[broker_id]

    def find(self, intent: OrderIntent) -> BrokerOrder | None:
        return next((order for order in self.book.values() if order.client_id == intent.client_id), None)

    def order(self, broker_id: str) -> BrokerOrder:
        return self.book[broker_id]

    def orders(self, since: datetime, open_only: bool = False) -> list[BrokerOrder]:
        return list(self.book.values())

    def cancel(self, broker_id: str) -> None:
        self.on_cancel(broker_id)

    def fills(self, since: datetime) -> list[Fill]:
        return list(self.trades)

    def corporate_actions(self, since: datetime) -> list[CorporateAction]:
        return []

    def clock(self):
        raise NotImplementedError

    def assets(self, symbols):
        raise NotImplementedError


@pytest.fixture
def puppet(folder: Path) -> Hand:
    engine, fence = store_in(folder)
    hand = Hand(engine, Puppet(), fence)
    hand.reconcile()
    return hand


@pytest.mark.parametrize("end", [OrderStatus.CANCELED, OrderStatus.EXPIRED, OrderStatus.REJECTED])
def test_fault_12_a_partial_fill_is_kept_and_only_the_rest_is_tried_again(puppet: Hand, end: OrderStatus) -> None:
    puppet.submit(entry())
    puppet.broker.trade("1", 4)
    puppet.reconcile()
    assert puppet.status(entry()) is IntentStatus.PARTIAL and pending(puppet.engine, "demo") == {"ACME": 6}
    assert next_attempt(puppet.engine, entry()) is None  # still alive
    puppet.broker.set("1", status=end)
    puppet.reconcile()
    assert puppet.status(entry()) == end and puppet.position().quantity == 4
    again = next_attempt(puppet.engine, entry())
    assert (again.attempt, again.quantity, again.client_id[-3:]) == (2, 6, "-a2")
    puppet.submit(again)
    puppet.broker.trade("2", 6, price=110)
    puppet.reconcile()
    assert (puppet.position().quantity, puppet.position().average_price) == (10, 106)
    assert next_attempt(puppet.engine, entry()) is None


def test_fault_13_a_fill_may_win_the_race_against_a_cancellation(puppet: Hand) -> None:
    puppet.submit(entry())
    puppet.broker.on_cancel = lambda broker_id: puppet.broker.trade(broker_id, 10)
    assert puppet.cancel(entry()).status is IntentStatus.FILLED
    assert puppet.position().quantity == 10


def test_fault_13_a_cancellation_that_fails_on_the_way_is_only_watched(puppet: Hand) -> None:
    def lost(broker_id: str) -> None:
        raise Ambiguous("timeout")

    puppet.submit(entry())
    puppet.broker.on_cancel = lost
    assert puppet.cancel(entry()).status is IntentStatus.OPEN
    puppet.broker.set("1", status=OrderStatus.CANCELED)
    assert puppet.cancel(entry()).status is IntentStatus.CANCELED


def test_fault_16_fills_repeated_and_out_of_order_are_counted_once(puppet: Hand) -> None:
    "I4"
    puppet.submit(entry())
    for quantity, price in ((3, 100), (7, 110)):
        puppet.broker.trade("1", quantity, price)
    puppet.broker.trades = [*reversed(puppet.broker.trades), *puppet.broker.trades]
    first, second = puppet.reconcile(), puppet.reconcile()
    assert (first.new_fills, second.new_fills, len(puppet.rows(FillRow))) == (2, 0, 2)
    assert (puppet.position().quantity, puppet.position().average_price) == (10, 107)
    assert first.cash_drift == second.cash_drift == 0


def test_fault_16_old_news_does_not_undo_newer(puppet: Hand) -> None:
    puppet.submit(entry())
    early = puppet.broker.book["1"]
    puppet.broker.trade("1", 10)
    puppet.reconcile()
    puppet.broker.book["1"] = early
    puppet.reconcile()
    assert puppet.status(entry()) is IntentStatus.FILLED


def test_fault_18_a_difference_is_looked_at_three_times_before_it_is_believed(puppet: Hand) -> None:
    puppet.submit(entry())
    puppet.broker.trade("1", 10)
    puppet.broker.stale_positions = 2
    seen = puppet.reconcile()
    assert (seen.drift, seen.frozen, seen.new_fills) == ({}, {}, 1)
    assert 1.0 in puppet.naps and 2.0 in puppet.naps


def test_fault_18_a_difference_that_stays_freezes_until_a_person_decides(puppet: Hand) -> None:
    puppet.submit(entry())
    puppet.broker.trade("1", 10)
    puppet.broker.shares["ACME"] = 8
    assert puppet.reconcile().drift == {"ACME": (10, 8)}
    assert puppet.alarms() == ["drift"]
    puppet.broker.shares["ACME"] = 10
    assert (puppet.reconcile().drift, list(puppet.reconcile().frozen)) == ({}, ["ACME"])
    puppet.broker.shares["ACME"] = 8
    unfreeze(puppet.engine, puppet.broker, "demo", "ACME", "me", puppet.fence, puppet.clock())
    assert puppet.reconcile().frozen == {} and puppet.position().quantity == 8


def test_fault_19_orders_by_hand_are_counted_and_never_touched(sim: Hand) -> None:
    sim.send(entry())
    sim.broker.by_hand(entry(quantity=5))
    sim.broker.by_hand(exit_(quantity=2))
    by_hand = sim.broker.by_hand(stop(50, quantity=3))
    seen = sim.reconcile()
    assert len(seen.strangers) == 3 and seen.drift == {} and sim.position().quantity == 13
    assert sim.reconcile().strangers == () and sim.alarms() == ["manual"] * 3
    assert by_hand in sim.broker.orders(START, open_only=True)
    sold_too_much = sim.send(exit_(quantity=13))[0]
    assert sold_too_much.status is IntentStatus.REJECTED and "10 of 13 free" in sold_too_much.error


def test_what_an_account_held_before_is_its_opening_balance(folder: Path) -> None:
    broker = sim_in(folder)
    broker.by_hand(entry(quantity=7))
    broker.advance(session_open(DAYS[2]))
    engine, fence = store_in(folder)
    hand = Hand(engine, broker, fence)
    seen = hand.reconcile()
    assert (seen.drift, seen.cash_drift, seen.new_fills) == ({}, 0, 0)
    assert (hand.position().quantity, hand.position().average_price, hand.position().entry_session) == (14, 50, DAYS[2])
    broker.advance(session_open(DAYS[3]))
    assert (hand.reconcile().new_actions, hand.reconcile().drift) == (1, {})


def test_fault_21_a_split_overnight_is_explained_and_trades_nothing(sim: Hand) -> None:
    sim.send(entry())
    sim.broker.advance(session_close(DAYS[2]))
    seen = sim.reconcile()
    assert (seen.drift, seen.cash_drift, seen.new_actions, seen.frozen) == ({}, 0, 1, {})
    assert (sim.position().quantity, sim.position().average_price, sim.broker.sent) == (20, 50, 1)


def test_several_days_at_once_are_booked_in_their_order(sim: Hand) -> None:
    "Bought before the split, halved after it, paid a dividend: nobody looked for three days"
    sim.send(entry(quantity=11))
    sim.broker.advance(session_open(DAYS[2]))
    sim.broker.submit(replace(exit_(quantity=12, day=2)))
    sim.broker.advance(session_open(DAYS[4]))
    seen = sim.reconcile()
    assert (seen.drift, seen.cash_drift, seen.new_actions, seen.new_fills) == ({}, 0, 2, 1)
    assert (sim.position().quantity, sim.position().average_price) == (10, 50)


def test_cash_that_nothing_explains_is_an_alarm_once(puppet: Hand) -> None:
    puppet.broker.cash += 500
    assert puppet.reconcile().cash_drift == 500
    assert puppet.reconcile().cash_drift == 0 and puppet.alarms() == ["cash"]


def test_an_order_with_our_name_that_we_do_not_know_is_an_alarm(sim: Hand) -> None:
    sim.reconcile()
    sim.broker.submit(entry())
    assert len(sim.reconcile().strangers) == 1 and sim.alarms() == ["orphan"]
    assert sim.position().quantity == 10


def test_fault_24_without_names_one_lookalike_is_ours(nameless: Hand) -> None:
    nameless.reconcile()
    nameless.broker.by_hand(entry())  # there before: not ours
    nameless.broker.faults = FaultPlan(after_accept=fail(Ambiguous("timeout")))
    assert nameless.send(entry())[0].status is IntentStatus.FILLED
    assert nameless.broker.sent == 1 and nameless.position().quantity == 20


def test_fault_24_without_names_an_order_of_ours_is_not_taken_for_another(nameless: Hand) -> None:
    nameless.reconcile()
    nameless.broker.faults = FaultPlan(before_accept=fail(Ambiguous("reset"), 1))
    nameless.submit(entry())
    twin = wish(Side.BUY, Purpose.CLOSE, "ACME", 10, 0)
    assert nameless.send(twin)[0].status is IntentStatus.FILLED
    assert nameless.resolve(entry()).status is IntentStatus.UNKNOWN


def test_fault_24_without_names_two_lookalikes_are_a_conflict(nameless: Hand) -> None:
    nameless.reconcile()
    nameless.broker.faults = FaultPlan(after_accept=fail(Ambiguous("timeout")))
    nameless.submit(entry())
    nameless.broker.by_hand(entry())
    outcome = nameless.resolve(entry())
    assert outcome.status is IntentStatus.CONFLICT and "look alike" in outcome.error
    assert "ACME" in frozen(nameless.engine, "demo") and nameless.broker.sent == 1


def test_fault_24_without_names_a_lost_request_is_never_repeated(nameless: Hand) -> None:
    now = [START]
    nameless.clock = lambda: now[0]  # type: ignore[method-assign]
    nameless.reconcile()
    nameless.broker.faults = FaultPlan(before_accept=fail(Ambiguous("reset")))
    assert nameless.send(entry())[0].status is IntentStatus.UNKNOWN
    for seconds in (10, 30):
        now[0] += timedelta(seconds=seconds)
        assert "ACME" in nameless.reconcile().frozen
    now[0] += timedelta(seconds=30)
    assert nameless.reconcile().frozen == {} and nameless.status(entry()) is IntentStatus.DROPPED
    assert nameless.broker.sent == 1 and nameless.alarms().count("unknown") == 1


def test_without_names_shares_that_moved_forbid_to_believe_in_a_miss(nameless: Hand) -> None:
    now = [START]
    nameless.clock = lambda: now[0]  # type: ignore[method-assign]
    nameless.reconcile()
    nameless.broker.faults = FaultPlan(before_accept=fail(Ambiguous("reset")))
    nameless.submit(entry())
    assert nameless.resolve(entry()).status is IntentStatus.UNKNOWN
    now[0] += timedelta(minutes=5)
    nameless.broker.by_hand(entry(quantity=9))  # no lookalike, but the position moved
    assert nameless.resolve(entry()).status is IntentStatus.UNKNOWN


def test_a_fill_booked_without_a_name_gets_its_purpose_afterwards(nameless: Hand) -> None:
    nameless.reconcile()
    nameless.send(entry())
    nameless.broker.advance(session_open(DAYS[1]))
    nameless.reconcile()
    nameless.broker.faults = FaultPlan(after_accept=fail(Ambiguous("timeout")))
    nameless.submit(stop(95, day=1))
    nameless.broker.advance(session_close(DAYS[1]))
    with writing(nameless.engine) as db:  # as if the list of orders lagged behind the list of fills
        db.execute(text("UPDATE intents SET status = 'planned' WHERE purpose = 'stop'"))
    nameless.reconcile()
    assert nameless.position().last_stop_session is None
    with writing(nameless.engine) as db:
        db.execute(text("UPDATE intents SET status = 'unknown' WHERE purpose = 'stop'"))
    nameless.reconcile()
    assert nameless.position().last_stop_session == DAYS[1]


@pytest.mark.parametrize("table", ["intents", "leases"])
def test_fault_29_without_a_written_intent_nothing_is_sent(sim: Hand, table: str) -> None:
    "The disk refuses step 1, or step 2"
    if table == "leases":
        sim.record(entry())
    with writing(sim.engine) as db:
        doomed = "INSERT" if table == "intents" else "UPDATE"
        db.execute(text(f"CREATE TRIGGER full BEFORE {doomed} ON intents BEGIN SELECT RAISE(ABORT, 'disk full'); END"))
    with pytest.raises(Exception, match="disk full"):
        sim.send(entry())
    assert sim.broker.sent == 0


def test_fault_29_a_locked_store_sends_nothing(sim: Hand, folder: Path) -> None:
    sim.record(entry())
    impatient = open_store(f"sqlite:///{folder}/store.db")
    with impatient.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 50")
    with writing(sim.engine) as db, pytest.raises(OperationalError, match="locked"):
        db.execute(text("SELECT 1"))  # takes the write lock
        submit_intent(impatient, sim.broker, entry().client_id, sim.fence, sim.clock)
    assert sim.broker.sent == 0


def test_a_broker_that_cannot_be_asked_leaves_the_intent_unknown(sim: Hand) -> None:
    class Deaf(SimBroker):
        def find(self, intent: OrderIntent) -> BrokerOrder | None:
            raise Ambiguous("timeout")

    sim.broker.faults = FaultPlan(after_accept=fail(Ambiguous("timeout")))
    sim.submit(entry())
    sim.broker.__class__ = Deaf
    assert sim.resolve(entry()).status is IntentStatus.UNKNOWN
    assert pending(sim.engine, "demo") == {"ACME": 10}  # I5: it counts
    sim.broker.__class__ = SimBroker
    assert sim.resolve(entry()).status is IntentStatus.FILLED


def test_waiting_ends_even_when_the_clock_stands_still(puppet: Hand) -> None:
    puppet.submit(entry())
    still = puppet.broker.now
    deadline = still + timedelta(seconds=20)
    ids = [entry().client_id]
    acting = (puppet.fence, lambda: still, puppet.naps.append)
    [outcome] = poll_orders(puppet.engine, puppet.broker, "demo", ids, *acting, deadline)
    assert outcome.status is IntentStatus.OPEN and puppet.naps.count(5.0) == 4


# ----------------------------------------------------------------------- defects of the predecessors, by number


def test_da_1_a_persistent_signal_buys_once(sim: Hand) -> None:
    "System A: eight orders in 80 minutes. Here: the same decision is the same intent, and tomorrow's waits for today's"
    for _ in range(8):
        sim.send(entry())
    assert sim.broker.sent == 1
    resting = replace(entry("BOLT", order_type=OrderType.LIMIT, limit_price=Decimal(10)))
    sim.send(resting)
    tomorrow = sim.record(replace(resting, session=DAYS[1]))[0]
    assert tomorrow.status is IntentStatus.DROPPED and resting.client_id in tomorrow.error
    with pytest.raises(InputError, match="only what is written down is sent"):
        submit_intent(sim.engine, sim.broker, tomorrow.client_id, sim.fence, sim.clock)


def test_da_2_two_processes_with_one_plan_send_it_once(sim: Hand, folder: Path) -> None:
    other = open_store(f"sqlite:///{folder}/store.db")
    sim.record(entry())
    assert [claim(engine, entry(), sim.fence, START) for engine in (sim.engine, other)] == [True, False]


def test_da_9_the_profit_target_takes_its_half_once(sim: Hand) -> None:
    "System A sold half of the half every ten minutes: 100 shares became 1 in 7 runs"
    sim.send(entry(quantity=100))
    sim.broker.advance(session_open(DAYS[5]))
    sim.reconcile()
    assert (sim.position().quantity, sim.position().half_taken) == (200, False)
    sim.send(target(60, quantity=100, day=5))
    sim.broker.advance(session_open(DAYS[6]))
    sim.reconcile()
    assert (sim.position().quantity, sim.position().half_taken) == (100, True)
    sim.send(exit_(quantity=100, day=6))
    assert (sim.position().quantity, sim.position().half_taken) == (0, False)


@pytest.mark.parametrize(("reason", "noted"), [("TAKE_PROFIT", True), ("HORIZON", False)])
def test_da_9_a_target_sold_at_the_market_counts_as_taken(sim: Hand, reason: str, noted: bool) -> None:
    sim.send(entry())
    sim.send(exit_(quantity=5, reason=reason))
    assert sim.position().half_taken is noted


def test_da_10_a_sale_closes_the_position(sim: Hand) -> None:
    sim.send(entry(quantity=7))
    sim.send(exit_(quantity=7))
    assert sim.broker.positions() == [] and sim.position().quantity == 0 and sim.position().entry_session is None


def test_da_11_positions_come_from_fills_at_their_price(puppet: Hand) -> None:
    "System A wrote 'executed' at the quoted price when it sent; here nothing is held before the broker says so"
    puppet.submit(replace(entry(), reference_price=Decimal(90)))
    puppet.reconcile()
    assert puppet.position() is None and puppet.status(entry()) is IntentStatus.OPEN
    puppet.broker.trade("1", 10, price=101)
    puppet.reconcile()
    assert puppet.position().average_price == 101


@pytest.mark.parametrize("how", ["resting", "market"])
def test_db_4_a_stop_is_remembered_for_the_cool_down(sim: Hand, how: str) -> None:
    "System B bought back at once what the stop had just sold"
    sim.send(entry())
    sim.broker.advance(session_open(DAYS[1]))
    sim.reconcile()
    sim.send(stop(95, day=1) if how == "resting" else exit_(day=1, reason="STOP_LOSS"))
    sim.broker.advance(session_open(DAYS[2]))
    sim.reconcile()
    assert (sim.position().quantity, sim.position().last_stop_session) == (0, DAYS[1])


def test_db_9_an_order_that_is_not_pending_is_not_therefore_filled(puppet: Hand) -> None:
    "System B stored no id and took 'not pending' for filled"
    puppet.submit(entry())
    puppet.broker.set("1", status=OrderStatus.EXPIRED)
    puppet.reconcile()
    assert puppet.status(entry()) is IntentStatus.EXPIRED and puppet.position() is None
    assert puppet.rows(OrderRow)[0].client_id == entry().client_id


# --------------------------------------------------------------------------------------------- everything mixed


class Crash(BaseException):
    "The process dies here; nothing below it may catch it"


SYMBOLS = ("ACME", "BOLT", "COIL")
NAMES = st.sampled_from(SYMBOLS)
LABELS = st.sampled_from(["claim", "ask", "settle", "done", "poll"])
FAULTS = st.sampled_from(["before", "after", "refused", "rejected"])


class Trading(RuleBasedStateMachine):
    "Submissions, cancellations, faults, crashes, restarts and ticks in any order, and the broker's book after each"

    names = True

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory(dir=MEMORY)
        self.path, self.day, self.asked, self.typed = Path(self.folder.name), 0, [], 0
        engine, fence = store_in(self.path)
        self.hand = Hand(engine, sim_in(self.path, client_ids=self.names), fence)
        self.hand.reconcile()

    def teardown(self) -> None:
        if hasattr(self, "hand"):
            self.hand.broker.close()
            self.hand.engine.dispose()
            self.folder.cleanup()

    def restart(self) -> None:
        "A new process: new connections, a larger fence, and what every cycle begins with"
        now = self.hand.broker.now
        self.hand.broker.close()
        self.hand.engine.dispose()
        engine = open_store(f"sqlite:///{self.path}/store.db")
        fence = acquire_lease(engine, "demo", "test", os.getpid(), "here", now, LONG)
        self.hand = Hand(engine, sim_in(self.path, None, client_ids=self.names), fence)
        self.hand.reconcile()

    def act(self, intent: OrderIntent, die_at: str | None, visit: int = 1) -> None:
        left = [visit]

        def checkpoint(label: str) -> None:
            if label == die_at:
                left[0] -= 1
                if left[0] == 0:
                    raise Crash

        again = next_attempt(self.hand.engine, intent)
        intent = again or intent
        self.asked.append(intent.client_id)
        try:
            hand = self.hand
            found = hand.record(intent)[0]
            if found.status is not IntentStatus.DROPPED:
                deadline = hand.clock() + timedelta(seconds=5)
                send(hand.engine, hand.broker, [intent], *hand.acting, deadline, checkpoint=checkpoint)
        except Crash:
            self.restart()
        self.hand.broker.faults = FaultPlan()

    @rule(symbol=NAMES, quantity=st.integers(1, 300), die_at=st.none() | LABELS)
    def buy(self, symbol: str, quantity: int, die_at: str | None) -> None:
        self.act(entry(symbol, quantity, self.day), die_at)

    @rule(symbol=NAMES, die_at=st.none() | LABELS)
    def close_out(self, symbol: str, die_at: str | None) -> None:
        row = self.hand.position(symbol)
        if row is not None and row.quantity:
            self.act(exit_(symbol, int(row.quantity), self.day), die_at)

    @rule(percent=st.integers(90, 99), die_at=st.none() | LABELS)
    def protect(self, percent: int, die_at: str | None) -> None:
        row = self.hand.position("ACME")
        if row is not None and row.quantity:
            group = {"oco_group": f"ACME {self.day}"}
            self.act(stop(int(row.average_price) * percent // 100, int(row.quantity), self.day, **group), die_at)
            self.act(
                target(int(row.average_price) * 110 // 100, max(int(row.quantity) // 2, 1), self.day, **group), None
            )

    @rule(kind=FAULTS, calls=st.integers(1, 5))
    def plan_fault(self, kind: str, calls: int) -> None:
        now = self.hand.broker.sent
        at = range(now + 1, now + 1 + calls)
        error = {"refused": NotSent("refused"), "rejected": Rejected(RejectReason.OTHER, "no")}.get(
            kind, Ambiguous("lost")
        )
        fault = {"after_accept" if kind == "after" else "before_accept": fail(error, *at)}
        self.hand.broker.faults = FaultPlan(**fault)

    @rule(pick=st.integers(0, 9))
    def cancel(self, pick: int) -> None:
        alive = working(self.hand.engine, "demo")
        if alive:
            outcome = alive[pick % len(alive)]
            if outcome.status is not IntentStatus.CONFLICT:
                self.hand.cancel(outcome.intent)

    @rule(half=st.booleans())
    def tick(self, half: bool) -> None:
        if half:
            self.hand.broker.advance(max(self.hand.clock(), session_close(DAYS[self.day])))
        elif self.day + 1 < len(DAYS):
            self.day += 1
            self.hand.broker.advance(session_open(DAYS[self.day]))

    @rule()
    def crash_between(self) -> None:
        self.restart()

    @rule(symbol=NAMES)
    def by_hand(self, symbol: str) -> None:
        with suppress(Rejected):
            self.hand.broker.by_hand(entry(symbol, 3, self.day))
            self.typed += 1

    @invariant()
    def the_broker_agrees(self) -> None:
        if not hasattr(self, "hand"):
            return
        hand, seen = self.hand, self.hand.reconcile()
        orders = hand.broker.orders(START - timedelta(days=1))
        with reading(hand.engine) as db:
            ours = {row.client_id: row for row in db.scalars(select(OrderRow)) if row.client_id}
        if self.names:
            assert max(Counter(order.client_id for order in orders if order.client_id).values(), default=1) == 1, "I1"
            assert {order.client_id for order in orders} - {None} == set(ours), "I2: an order nobody remembers"
            assert all(outcome.status is not IntentStatus.CONFLICT for outcome in working(hand.engine, "demo"))
        assert len(orders) <= len(set(self.asked)) + self.typed, "I1"
        assert (seen.drift, seen.cash_drift) == ({}, 0), "I3"
        fills = hand.broker.fills(START - timedelta(days=1))
        assert sorted(fill.fill_id for fill in fills) == sorted(row.fill_id for row in hand.rows(FillRow)), "I4"
        open_buys = Counter()
        for order in hand.broker.orders(START, open_only=True):
            if order.client_id in self.asked and order.side is Side.BUY:
                open_buys[order.symbol] += order.open_quantity
        counted = pending(hand.engine, "demo")
        assert all(counted.get(symbol, 0) >= shares for symbol, shares in open_buys.items()), "I5"


TestTrading = Trading.TestCase
TestTrading.settings = settings(max_examples=12, stateful_step_count=15)


class Nameless(Trading):
    "The same at a broker without names: no intent ever makes two orders, and doubts only freeze"

    names = False


TestNameless = Nameless.TestCase
TestNameless.settings = settings(max_examples=6, stateful_step_count=15)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Trading, Nameless])
def test_many_more_schedules(machine: type[Trading]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=400, stateful_step_count=30))
