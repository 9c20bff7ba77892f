"""A trading floor for faults: the local Alpaca, the real client, our cycle, and the invariants between the two books

One server lives as long as the process. A schedule gets a new exchange, a new store and any number of traders: a
trader is what one process has in its hands, and it may die at any moment. Time is the exchange's: who sleeps moves it.
"""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from servers.alpaca import ACCOUNT, KEY, SECRET, Alpaca
from servers.exchange import Exchange, Order, closing, opening
from servers.judge import Judge
from servers.wire import Fault, Reply, Request, Wire
from sqlalchemy import select

from alpha_trader.alpaca_broker import AlpacaBroker, paper_broker
from alpha_trader.alpaca_line import line_to
from alpha_trader.bars import Panel, bars_frame, panel_of
from alpha_trader.cycle import Desk, commit, decide, held_now, observe
from alpha_trader.domain import IntentStatus, OrderIntent, Purpose, Run, Side
from alpha_trader.execution import (
    BACK,
    Outcome,
    Reconciliation,
    cancel_intent,
    execution_of,
    frozen,
    intent_of,
    reconcile,
    working,
)
from alpha_trader.settings import Settings
from alpha_trader.signals import REASON_TEXT, Reason
from alpha_trader.store import (
    DecisionRow,
    FillRow,
    IntentRow,
    OrderRow,
    PositionRow,
    RiskEventRow,
    acquire_lease,
    begin_run,
    connect,
    open_account,
    open_store,
    reading,
    this_process,
    writing,
)
from alpha_trader.transport import Guard, RateLimit

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # many commits, and no power cut to fear
CAPITAL = Decimal(100_000)
LIMITS = (1.0, 1.0, 1.5)  # seconds to connect, to hear something, to hear all: the real ones are 3, 10 and 20
SYMBOLS = ("ACME", "BOLT", "COIL")
DAYS = [date(2024, 1, day) for day in (2, 3, 4, 5, 8, 9, 10, 11, 12)]
FIRST = 2  # the first session that is traded
SETTINGS = Settings().model_copy(update={"broker": Settings().broker.model_copy(update={"name": "alpaca", "mode": "paper"})})


def make_tape() -> Panel:
    "ACME falls through its stop in the fifth session and splits in the seventh; BOLT pays; COIL rests"
    size = len(DAYS)
    acme = {
        "open": [100.0, 100, 100, 101, 101, 97, 48, 49, 49],
        "high": [101.0, 101, 104, 102, 102, 98, 50, 50, 50],
        "low": [99.0, 99, 99, 99, 90, 96, 47, 48, 48],
        "close": [100.0, 100, 102, 101, 96, 97, 49, 49, 49],
        "volume": [1e6] * size,
        "split": [1.0] * 6 + [2.0, 1, 1],
        "dividend": [0.0] * size,
    }
    flat = {
        "open": [20.0] * size,
        "high": [21.0] * size,
        "low": [19.5] * size,
        "close": [20.0] * size,
        "volume": [1e6] * size,
    }
    pays = flat | {"split": [1.0] * size, "dividend": [0.0] * 5 + [0.5, 0, 0, 0]}
    return panel_of({s: bars_frame(DAYS, rows) for s, rows in zip(SYMBOLS, (acme, pays, flat), strict=True)}, "test", "sip")


TAPE = make_tape()


# ------------------------------------------------------------------------------------------------ dying


class Death(BaseException):
    "The process ends here; nothing below it may catch it"


@dataclass
class Doom:
    "Counts what matters (around each commit and each request) and ends the process when its number comes up"

    at: int | None = None  # None: never
    really: bool = False  # kill -9, not an exception
    count: int = 0
    trail: list[str] = field(default_factory=list)

    def __call__(self, what: str) -> None:
        self.count += 1
        self.trail.append(what)
        if self.count == self.at:
            if self.really:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Death(what)


class Doomed(Guard):
    "The guard of the line, which also counts"

    doom: Callable[[str], None] = staticmethod(lambda what: None)
    timed: list[Any]

    def send(self, request: Any, *rest: Any, **options: Any) -> Any:
        self.doom(f"before {request.method}")
        response = super().send(request, *rest, **options)
        self.doom(f"after {request.method}")
        return response


class Book:
    "The store of a life; one engine for all its processes: compiling the same SQL again takes most of their time"

    def __init__(self, path: Path):
        self.engine = connect(f"sqlite:///{path}/store.db")
        self.doom: Callable[[str], None] = lambda what: None
        real = self.engine.dialect.do_commit

        def do_commit(connection: Any) -> None:
            self.doom("before commit")
            real(connection)
            self.doom("after commit")

        self.engine.dialect.do_commit = do_commit  # type: ignore[method-assign]


# ------------------------------------------------------------------------------------------------ a trader


class Trader:
    "What one process has in its hands"

    def __init__(
        self,
        path: Path,
        url: str,
        clock: Callable[[], datetime],
        sleep: Callable[[float], None],
        judge: Judge | None,
        doom: Callable[[str], None] = lambda what: None,
        book: Book | None = None,
    ):
        self.path, self.clock, self.sleep = path, clock, sleep
        self.book = book or Book(path)
        self.book.doom, self.engine = doom, self.book.engine
        limit = RateLimit(path / "limit.db", 180, 60.0, lambda: clock().timestamp(), sleep)
        self.line = line_to(url, KEY, SECRET, limit.wait, clock, sleep)
        guard = self.line.client._session.get_adapter(url)
        guard.__class__, guard.limits, guard.doom = Doomed, LIMITS, doom
        if judge:
            self.line.client._session.hooks["response"].append(judge)
        self.fence = acquire_lease(self.engine, "demo", "test", *this_process(), clock(), timedelta(days=900), lambda *_: False)
        self.broker: AlpacaBroker = paper_broker(self.line)

    def close(self) -> None:
        self.engine.dispose()
        self.line.client._session.close()

    @property
    def acting(self) -> tuple[int, Callable[[], datetime], Callable[[float], None]]:
        return self.fence, self.clock, self.sleep

    def desk(self, day: int) -> Desk:
        return Desk(SETTINGS, self.engine, self.broker, "demo", DAYS[day], TAPE, None, None, 1, *self.acting)

    def reconcile(self) -> Reconciliation:
        return reconcile(self.engine, self.broker, "demo", *self.acting)

    def cycle(self, day: int, wanted: dict[str, int]) -> list[Outcome]:
        "A session's cycle: the plan is `wanted` (shares to buy; below zero: sell all), unless one was made already"
        desk = self.desk(day)
        seen = observe(desk)
        decision = decide(desk, seen)
        with writing(self.engine) as db:
            if db.scalars(select(DecisionRow).filter_by(account="demo", session=DAYS[day])).first() is None:
                db.add_all(decisions(desk, wanted, set(seen.busy)))
        return commit(desk, seen, decision)

    def cancel(self, client_id: str) -> Outcome:
        return cancel_intent(self.engine, self.broker, client_id, *self.acting, self.clock() + timedelta(seconds=20))

    def rows(self, table: type) -> list[Any]:
        with reading(self.engine) as db:
            return list(db.scalars(select(table)))

    def alarms(self) -> list[str]:
        return [row.kind for row in self.rows(RiskEventRow)]

    def position(self, symbol: str = "ACME") -> PositionRow | None:
        with reading(self.engine) as db:
            return db.get(PositionRow, ("demo", symbol))

    def status(self, intent: OrderIntent) -> IntentStatus:
        return intent_of(self.engine, intent.client_id).status


def decisions(desk: Desk, wanted: dict[str, int], busy: set[str]) -> list[DecisionRow]:
    "A plan as the store keeps it: what is held is sold or kept, what is not is bought"
    held, rows = held_now(desk), []
    for rank, symbol in enumerate(SYMBOLS):
        shares = wanted.get(symbol, 0)
        if shares < 0:
            shares = -int(held[symbol].quantity) if symbol in held else 0
        elif symbol in held or symbol in busy:
            shares = 0
        code = Reason.ENTRY if shares > 0 else Reason.HORIZON if shares < 0 else Reason.HOLD
        rows.append(
            DecisionRow(
                run_id=1,
                account="demo",
                session=desk.session,
                symbol=symbol,
                quantity=Decimal(shares),
                code=int(code),
                reason=REASON_TEXT[code],
                price=None,
                rank=rank if shares > 0 else -1,
                target_value=None,
            )
        )
    return rows


def blank_store(folder: Path) -> Path:
    "A migrated store with an account and a run, to be copied"
    engine = open_store(f"sqlite:///{folder}/blank.db")
    open_account(engine, "demo", "alpaca", "paper", CAPITAL, opening(DAYS[FIRST]))
    run = begin_run(engine, "trade", "faults", "demo", opening(DAYS[FIRST]), *this_process())
    assert isinstance(run, Run) and run.id == 1
    engine.dispose()
    return folder / "blank.db"


# ------------------------------------------------------------------------------------------------ the floor


class Floor:
    "The exchange and its door, and whoever trades there now"

    def __init__(self, folder: Path):
        self.folder, self.path, self.book = folder, folder / "life", Book(folder / "life")
        self.service = Alpaca(Exchange(TAPE, opening(DAYS[FIRST]), CAPITAL), CAPITAL)
        self.url, self.wire = self.service.url, self.service.wire
        self.control = Wire(self.command)
        self.judge = Judge("trading", self.url)
        self.blank = blank_store(folder)
        self.totals: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        "A new exchange and a new store"
        self.count()
        self.book.engine.dispose()
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        shutil.copy(self.blank, self.path / "store.db")
        self.service.exchange = Exchange(TAPE, opening(DAYS[FIRST]), CAPITAL)
        self.service.calls, self.service.most = [], 0
        self.service.lag.clear()
        self.service.amended = "replaced"
        self.wire.faults.clear()
        self.wire.log.clear()
        self.naps: list[float] = []

    def count(self) -> None:
        self.totals["requests"] += len(self.wire.log)
        self.totals["orders"] += sum(order.client_id.startswith("at-") for order in self.exchange.orders.values())

    def close(self) -> None:
        self.wire.close()
        self.control.close()

    @property
    def exchange(self) -> Exchange:
        return self.service.exchange

    def clock(self) -> datetime:
        return self.exchange.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        if seconds > 0:
            self.exchange.move(timedelta(seconds=seconds))

    def command(self, request: Request) -> Reply:
        "What a trader in another process may ask: the time, and to let it pass"
        if request.path == "/sleep":
            self.sleep(float(request.query["seconds"]))
        return Reply(body=self.clock().isoformat())

    def trader(self, doom: Callable[[str], None] = lambda what: None) -> Trader:
        return Trader(self.path, self.url, self.clock, self.sleep, self.judge, doom, self.book)

    @contextmanager
    def trading(self) -> Iterator[Trader]:
        trader = self.trader()
        yield trader
        trader.close()

    def to_open(self, day: int) -> None:
        self.exchange.to(opening(DAYS[day]))

    def to_close(self, day: int) -> None:
        self.exchange.to(closing(DAYS[day]))

    def fault(self, method: str, path: str, action: str = "reply", **more: Any) -> Fault:
        "The next requests of this kind go wrong"
        wrong = Fault(lambda r: r.method == method and path in r.path, action, **more)
        self.wire.faults.append(wrong)
        return wrong

    def posts(self) -> list[str]:
        "Our names of all orders that arrived at the door, in their order"
        return [r.body["client_order_id"] for r in self.wire.log if r.method == "POST" and r.path.endswith("/orders")]

    def ours(self) -> list[Order]:
        "Orders of ours in the exchange's book"
        return [order for order in self.exchange.orders.values() if order.client_id.startswith("at-")]

    def orders_of(self, intent: OrderIntent) -> list[Order]:
        return [order for order in self.ours() if order.client_id == intent.client_id]


def entry(symbol: str = "ACME", quantity: int = 10, day: int = FIRST, **more: Any) -> OrderIntent:
    return OrderIntent(
        "demo",
        SETTINGS.model.strategy,
        DAYS[day],
        symbol,
        Side.BUY,
        Purpose.ENTRY,
        Decimal(quantity),
        env="paper",
        **more,
    )


def sale(symbol: str = "ACME", quantity: int = 10, day: int = FIRST, **more: Any) -> OrderIntent:
    return OrderIntent(
        "demo",
        SETTINGS.model.strategy,
        DAYS[day],
        symbol,
        Side.SELL,
        Purpose.EXIT,
        Decimal(quantity),
        env="paper",
        **more,
    )


# ------------------------------------------------------------------------------------------------ what must hold


def at_any_moment(floor: Floor) -> None:
    "I1, I2, I5, I7, I8, I9, I10: true between any two steps, whatever is under way; nobody is asked"
    with reading(floor.book.engine) as db:
        intents = {row.client_id: row for row in db.scalars(select(IntentRow))}
    ours = floor.ours()
    names = Counter(order.client_id for order in ours)
    assert max(names.values(), default=1) == 1, f"I1: {names}"
    assert set(names) <= set(intents), f"I2: orders that nobody remembers: {set(names) - set(intents)}"
    decided: dict[tuple[Any, ...], Decimal] = {}
    for order in ours:
        row = intents[order.client_id]
        assert order.quantity == row.quantity or row.status is IntentStatus.CONFLICT, "I1: not what was wished"
        key = row.noun().identity[:-1]
        if (
            row.purpose is not Purpose.STOP and row.status is not IntentStatus.CONFLICT
        ):  # a stop may be replaced by another after its end
            decided[key] = decided.get(key, Decimal(0)) + order.filled + order.left
    for key, shares in decided.items():
        most = max(row.quantity for row in intents.values() if row.noun().identity[:-1] == key)
        assert shares <= most, f"I1: {shares} shares for a decision of {most}: {key}"
    counted: Counter[str] = Counter()
    for row in intents.values():
        if not row.status.terminal and row.side is Side.BUY:
            counted[row.symbol] += row.quantity  # type: ignore[assignment]
    working_buys: Counter[str] = Counter()
    for order in ours:
        if order.side == "buy":
            working_buys[order.symbol] += order.left  # type: ignore[assignment]
    assert all(counted[symbol] >= left for symbol, left in working_buys.items()), "I5"
    stops = Counter(order.symbol for order in ours if order.kind == "stop" and order.left)
    assert max(stops.values(), default=1) == 1, f"two stops: {stops}"
    assert all(quantity >= 0 for quantity in floor.exchange.shares.values()), "oversold"
    assert all("-paper-" in name for name in names), "I8"
    assert not floor.judge.wrong, f"I10: {floor.judge.wrong}"
    assert floor.service.most <= 200, f"I9: {floor.service.most} requests within a minute"
    for file in floor.path.glob("store.db*"):
        assert not any(secret.encode() in file.read_bytes() for secret in (KEY, SECRET, ACCOUNT)), "I7"


def in_the_end(floor: Floor, trader: Trader) -> Reconciliation:
    "I1 to I10, after a look over a line that works again"
    floor.wire.faults.clear()
    floor.service.lag.clear()
    seen = trader.reconcile()
    for _ in range(3):
        if not any(o.status in (IntentStatus.SENDING, IntentStatus.UNKNOWN) for o in working(trader.engine, "demo")):
            break
        floor.sleep(61)
        seen = trader.reconcile()
    invariants(floor, trader, seen)
    return seen


def invariants(floor: Floor, trader: Trader, seen: Reconciliation) -> None:
    "Our books against the exchange's, after a reconciliation"
    at_any_moment(floor)
    exchange = floor.exchange
    intents = {row.client_id: row for row in trader.rows(IntentRow)}
    for order in floor.ours():
        row = intents[order.client_id]
        assert row.broker_id == order.id, f"I2: {order.client_id} is {row.status}, and at the exchange {order.status}"
        end = {"new": "open", "partially_filled": "partial"}.get(order.status, order.status)
        assert row.status in (end, IntentStatus.CONFLICT), f"I2: {row.status}, at the exchange {order.status}"
    restless = [row for row in intents.values() if row.status in (IntentStatus.SENDING, IntentStatus.UNKNOWN)]
    stopped = frozen(trader.engine, "demo")
    assert all(row.symbol in stopped for row in restless), "I2: unknown, and nobody is warned"
    named = {order.client_id for order in floor.ours()}
    never = {row.status for name, row in intents.items() if name not in named}
    quiet = {
        IntentStatus.PLANNED,
        IntentStatus.DROPPED,
        IntentStatus.REJECTED,
        IntentStatus.UNKNOWN,
        IntentStatus.CONFLICT,
    }
    assert never <= quiet, f"I2: {never} and not at the exchange"
    held = {row.symbol: row.quantity for row in trader.rows(PositionRow) if row.quantity}
    assert held == exchange.shares and seen.drift == {}, f"I3: {held} {exchange.shares} {seen.drift}"
    assert seen.cash_drift == 0 and seen.account.cash == exchange.cash, f"I3: cash {seen.cash_drift}"
    booked = sorted(execution_of(row.fill_id) for row in trader.rows(FillRow))
    amended = [(one.of.id + BACK, *([one.instead.id] if one.instead else [])) for one in exchange.amendments]
    told = [execution.id for execution in exchange.executions] + [name for names in amended for name in names]
    assert booked == sorted(map(execution_of, told)), "I4"
    orders = {row.broker_id: row for row in trader.rows(OrderRow)}
    assert set(exchange.orders) == set(orders), "I2: an order by hand was not recorded"
    guard = trader.line.client._session.get_adapter(floor.url)
    assert isinstance(guard, Guard) and all(guard.limits) and guard.max_retries.total == 0, "I6"
