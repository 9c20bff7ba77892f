"""A small exchange of our own: orders, matching against daily bars, positions and cash, under a clock the tests move

Written for the local Alpaca and KIS servers, from the rules in the brokers' documents, and sharing no code with the
simulated broker: what both agree on was not copied.
"""

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

import exchange_calendars
import numpy as np
import pandas as pd

from alpha_trader.bars import Panel

CENT = Decimal("0.01")
OVER = ("filled", "canceled", "expired", "rejected")
XNYS = exchange_calendars.get_calendar("XNYS", start="2000-01-03")


class Refused(Exception):
    "The exchange's no, with the word of its reason"

    def __init__(self, reason: str, detail: str, **more: object):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.more = reason, detail, more


@dataclass
class Order:
    "An order as the exchange knows it"

    id: str
    client_id: str
    symbol: str
    side: str  # buy, sell
    quantity: Decimal
    kind: str  # market, limit, stop
    tif: str  # day, gtc
    limit: Decimal | None
    stop: Decimal | None
    group: str | None  # one of them fills, the others are cancelled
    submitted: datetime
    updated: datetime
    number: int
    status: str = "new"
    filled: Decimal = Decimal(0)
    paid: Decimal = Decimal(0)  # USD for what is filled
    ended: datetime | None = None
    reason: str = ""

    @property
    def average(self) -> Decimal | None:
        return self.paid / self.filled if self.filled else None

    @property
    def left(self) -> Decimal:
        return self.quantity - self.filled if self.status not in OVER else Decimal(0)


@dataclass(frozen=True)
class Execution:
    "One fill"

    id: str
    order: Order
    quantity: Decimal
    price: Decimal
    fee: Decimal
    at: datetime
    total: Decimal  # filled so far


@dataclass(frozen=True)
class Amendment:
    "A fill that does not stand any more"

    id: str
    of: Execution
    instead: Execution | None  # None: busted
    at: datetime


@dataclass(frozen=True)
class Event:
    "A split or a dividend that was booked"

    id: str
    symbol: str
    session: date
    kind: str  # split, dividend
    amount: Decimal  # ratio, or USD a share
    quantity: Decimal  # shares added
    cash: Decimal  # USD added
    at: datetime


def session_of(moment: datetime) -> date | None:
    "The session that is open at `moment`"
    day = pd.Timestamp(moment.astimezone(exchange_calendars.get_calendar("XNYS").tz).date())
    if not XNYS.is_session(day):
        return None
    return day.date() if XNYS.session_open(day) <= moment < XNYS.session_close(day) else None


def opening(session: date) -> datetime:
    return XNYS.session_open(pd.Timestamp(session)).to_pydatetime()


def closing(session: date) -> datetime:
    return XNYS.session_close(pd.Timestamp(session)).to_pydatetime()


def next_session(moment: datetime) -> date:
    "The session that opens next"
    for day in XNYS.sessions_in_range(
        pd.Timestamp(moment.date()) - pd.Timedelta(days=1), pd.Timestamp(moment.date()) + pd.Timedelta(days=12)
    ):
        if opening(day.date()) > moment:
            return day.date()
    raise AssertionError("the calendar ends")


@dataclass
class Exchange:
    "The books, and the tape they are matched against"

    tape: Panel
    now: datetime
    cash: Decimal
    fee_rate: Decimal = Decimal(0)  # of the value, each side
    portion: Callable[[Order], Decimal] = lambda order: order.left  # how much of an order fills at one time
    orders: dict[str, Order] = field(default_factory=dict)
    executions: list[Execution] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    amendments: list[Amendment] = field(default_factory=list)
    shares: dict[str, Decimal] = field(default_factory=dict)
    average: dict[str, Decimal] = field(default_factory=dict)
    closes: dict[date, Decimal] = field(default_factory=dict)  # equity at each close
    lock: threading.RLock = field(default_factory=threading.RLock)
    moves: dict[str, str] = field(default_factory=dict)
    numbers: itertools.count = field(default_factory=lambda: itertools.count(1))

    # ---------------------------------------------------------------- the tape

    def row(self, session: date) -> int | None:
        place = int(np.searchsorted(self.tape.sessions, np.datetime64(session)))
        there = place < len(self.tape.sessions) and self.tape.sessions[place] == np.datetime64(session)
        return place if there else None

    def bar(self, symbol: str, session: date) -> tuple[Decimal, ...] | None:
        "Open, high, low, close, volume; None: it did not trade"
        row = self.row(session)
        if row is None or symbol not in self.tape.symbols:
            return None
        values = self.tape.values[:, row, self.tape.symbols.index(symbol)]
        return None if np.isnan(values[3]) else tuple(Decimal(repr(round(float(value), 6))) for value in values)

    def price(self, symbol: str) -> Decimal | None:
        "What the symbol trades at, in shares of today"
        column, live = self.tape.symbols.index(symbol), session_of(self.now)
        if live and (bar := self.bar(symbol, live)):
            return bar[0]
        value = None
        for row, day in enumerate(self.tape.sessions.tolist()):
            if opening(day) > self.now:
                break
            ratio = Decimal(repr(float(self.tape.splits[row, column])))
            value = value / ratio if value is not None else None
            if closing(day) <= self.now and (bar := self.bar(symbol, day)):
                value = bar[3]
        return value

    # ---------------------------------------------------------------- orders

    def submit(
        self,
        symbol: str,
        side: str,
        quantity: Decimal,
        kind: str,
        tif: str = "day",
        limit: Decimal | None = None,
        stop: Decimal | None = None,
        client_id: str = "",
        group: str | None = None,
    ) -> Order:
        "Accept an order, or raise `Refused`"
        with self.lock:
            number = next(self.numbers)
            name = f"{number:08d}-0000-4000-8000-{number:012d}"
            order = Order(
                name,
                client_id or f"own-{name}",
                symbol,
                side,
                quantity,
                kind,
                tif,
                limit,
                stop,
                group,
                self.now,
                self.now,
                number,
            )
            self.check(order)
            self.orders[name] = order
            self.match(order)
            return order

    def check(self, order: Order) -> None:
        "The exchange's rules"
        if any(known.client_id == order.client_id for known in self.orders.values()):
            raise Refused("duplicate", "client_order_id must be unique")
        if order.symbol not in self.tape.symbols:
            raise Refused("symbol", f"asset {order.symbol} not found")
        if order.quantity <= 0:
            raise Refused("quantity", "qty must be > 0")
        for price in (order.limit, order.stop):
            tick = CENT if price is None or price >= 1 else Decimal("0.0001")
            if price is not None and (price <= 0 or price % tick):
                words = "sub-penny increment does not fulfill minimum pricing criteria"
                raise Refused("price", f"invalid {'limit' if price == order.limit else 'stop'}_price {price}. {words}")
        if order.side == "sell":
            held, free = self.shares.get(order.symbol, Decimal(0)), self.free(order.symbol, order.group)
            if order.quantity > free:
                more = {"available": str(free), "existing_qty": str(held), "held_for_orders": str(held - free)}
                raise Refused(
                    "held",
                    f"insufficient qty available for order (requested: {order.quantity}, available: {free})",
                    **more,
                )
        elif self.value(order) > self.buying_power():
            more = {"buying_power": str(self.buying_power()), "cost_basis": str(self.value(order))}
            raise Refused("funds", "insufficient buying power", **more)

    def value(self, order: Order) -> Decimal:
        "What a purchase may take from the cash"
        price = order.limit or order.stop or self.price(order.symbol) or Decimal(0)
        return (order.left * price * (1 + self.fee_rate)).quantize(CENT, ROUND_HALF_UP)

    def buying_power(self) -> Decimal:
        waiting = [self.value(order) for order in self.orders.values() if order.side == "buy" and order.left]
        return self.cash - sum(waiting, Decimal(0))

    def free(self, symbol: str, group: str | None = None) -> Decimal:
        holds: dict[str, Decimal] = {}
        for order in self.orders.values():
            if (
                order.symbol == symbol
                and order.side == "sell"
                and order.left
                and (group is None or order.group != group)
            ):
                key = order.group or order.id
                holds[key] = max(holds.get(key, Decimal(0)), order.left)
        return self.shares.get(symbol, Decimal(0)) - sum(holds.values(), Decimal(0))

    def match(self, order: Order) -> None:
        "Fill what can trade at once"
        session = session_of(self.now)
        bar = self.bar(order.symbol, session) if session else None
        if bar is None or not order.left:
            return
        price, sells = bar[0], order.side == "sell"
        if (
            order.kind == "limit"
            and order.limit is not None
            and not (price > order.limit if sells else price < order.limit)
        ):
            return
        if order.kind == "stop" and order.stop is not None and (price > order.stop if sells else price < order.stop):
            return
        self.execute(order, price, self.portion(order))

    def execute(self, order: Order, price: Decimal, quantity: Decimal) -> None:
        "Book a fill"
        quantity = min(quantity, order.left)
        if quantity <= 0:
            return
        if order.side == "buy" and (quantity * price * (1 + self.fee_rate)) > self.cash:
            self.end(order, "rejected", "insufficient buying power")
            return
        fee = (quantity * price * self.fee_rate).quantize(CENT, ROUND_HALF_UP)
        signed = quantity if order.side == "buy" else -quantity
        before = self.shares.get(order.symbol, Decimal(0))
        if signed > 0:
            cost = before * self.average.get(order.symbol, Decimal(0)) + signed * price
            self.average[order.symbol] = cost / (before + signed)
        self.shares[order.symbol] = before + signed
        if not self.shares[order.symbol]:
            del self.shares[order.symbol]
        self.cash += (-signed * price).quantize(CENT, ROUND_HALF_UP) - fee
        order.filled, order.paid, order.updated = order.filled + quantity, order.paid + quantity * price, self.now
        order.status = "filled" if order.filled == order.quantity else "partially_filled"
        order.ended = self.now if order.status == "filled" else None
        self.executions.append(Execution(self.fill_name(), order, quantity, price, fee, self.now, order.filled))
        for mate in self.orders.values():
            if order.group and mate.group == order.group and mate is not order:
                self.end(mate, "canceled", "another order of its group filled")

    def fill_name(self) -> str:
        "When, and which execution"
        number = len(self.executions) + len(self.amendments)
        return f"{self.now:%Y%m%d%H%M%S}{number:03d}::{number:08d}-0000-4000-9000-{number:012d}"

    def amend(self, execution: Execution, quantity: Decimal = Decimal(0), price: Decimal = Decimal(0)) -> Amendment:
        "A fill is stated anew, or busted: nothing stands instead"
        with self.lock:
            order, sign = execution.order, 1 if execution.order.side == "buy" else -1
            now_held = self.shares.get(order.symbol, Decimal(0)) + sign * (quantity - execution.quantity)
            self.shares[order.symbol] = now_held
            self.average.setdefault(order.symbol, price or execution.price)
            if not now_held:
                del self.shares[order.symbol]
            self.cash += sign * (execution.quantity * execution.price - quantity * price).quantize(CENT, ROUND_HALF_UP)
            fee = (quantity * price * self.fee_rate).quantize(CENT, ROUND_HALF_UP)
            self.cash += execution.fee - fee
            order.filled += quantity - execution.quantity
            order.paid += quantity * price - execution.quantity * execution.price
            order.updated = self.now
            total = execution.total - execution.quantity + quantity
            instead = Execution(self.fill_name(), order, quantity, price, fee, execution.at, total) if quantity else None
            self.amendments.append(Amendment(self.fill_name(), execution, instead, self.now))
            return self.amendments[-1]

    def end(self, order: Order, status: str, reason: str = "") -> None:
        if order.status not in OVER:
            order.status, order.reason, order.updated, order.ended = status, reason, self.now, self.now

    def cancel(self, name: str) -> bool:  # whether there was something to cancel
        with self.lock:
            order = self.orders[name]
            alive = order.status not in OVER
            self.end(order, "canceled", "cancelled")
            return alive

    # ---------------------------------------------------------------- time

    def to(self, moment: datetime) -> None:
        "Let the clock run to `moment`, through every opening and close on the way"
        with self.lock:
            for day in self.tape.sessions.tolist():
                for at, work in ((opening(day), self.open_session), (closing(day), self.close_session)):
                    if self.now < at <= moment:
                        self.now = at
                        work(day)
            self.now = max(self.now, moment)

    def open_session(self, session: date) -> None:
        row = self.row(session)
        assert row is not None
        for n, symbol in enumerate(self.tape.symbols):
            held = self.shares.get(symbol, Decimal(0))
            ratio, dividend = (Decimal(repr(float(table[row, n]))) for table in (self.tape.splits, self.tape.dividends))
            if ratio != 1:
                for order in self.orders.values():
                    if order.symbol == symbol:
                        self.end(order, "canceled", "corporate action")
                if held:
                    self.shares[symbol] = held * ratio
                    self.average[symbol] /= ratio
                    self.events.append(
                        Event(
                            f"split-{session}-{symbol}",
                            symbol,
                            session,
                            "split",
                            ratio,
                            held * (ratio - 1),
                            Decimal(0),
                            self.now,
                        )
                    )
            if dividend and self.shares.get(symbol):
                cash = (self.shares[symbol] * dividend).quantize(CENT, ROUND_HALF_UP)
                self.cash += cash
                self.events.append(
                    Event(
                        f"dividend-{session}-{symbol}",
                        symbol,
                        session,
                        "dividend",
                        dividend,
                        Decimal(0),
                        cash,
                        self.now,
                    )
                )
        for order in list(self.orders.values()):
            if order.kind == "market":
                self.match(order)

    def close_session(self, session: date) -> None:
        for order in sorted(self.orders.values(), key=lambda order: (order.kind != "stop", order.number)):
            bar = self.bar(order.symbol, session)
            if bar and order.left:
                self.within(order, bar)
        for order in self.orders.values():
            if order.tif == "day":
                self.end(order, "expired", "good for the day")
        self.closes[session] = self.equity()

    def within(self, order: Order, bar: tuple[Decimal, ...]) -> None:
        "Fill a resting order that the session's bar reached"
        open_, high, low = bar[:3]
        sells = order.side == "sell"
        if order.kind == "market":
            self.execute(order, open_, order.left)
        elif order.kind == "stop" and order.stop is not None and (low <= order.stop if sells else high >= order.stop):
            self.execute(order, min(open_, order.stop) if sells else max(open_, order.stop), order.left)
        elif order.kind == "limit" and order.limit is not None and (high > order.limit if sells else low < order.limit):
            self.execute(order, max(open_, order.limit) if sells else min(open_, order.limit), order.left)

    # ---------------------------------------------------------------- the account

    def equity(self) -> Decimal:
        held = [
            (quantity * (self.price(symbol) or 0)).quantize(CENT, ROUND_HALF_UP)
            for symbol, quantity in self.shares.items()
        ]
        return self.cash + sum(held, Decimal(0))

    def last_equity(self, capital: Decimal) -> Decimal:
        "Equity at the close before today"
        today = session_of(self.now)
        if today is None:
            done = [day for day in self.closes if closing(day) <= self.now]
            today = max(done) if done else None
        before = [day for day in self.closes if today is None or day < today]
        return self.closes[max(before)] if before else capital

    def move(self, by: timedelta) -> None:
        self.to(self.now + by)
