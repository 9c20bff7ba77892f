"""Real processes, really killed (`kill -9`), at every labelled step and at random moments; then run again

A small trading cycle (reconcile, write down, exits, entries, protection) walks through invented sessions. Each session
is killed and repeated. In the end the broker's book must equal, order by order and to the cent, the book of a life
without accidents, and our store must agree with it: I1 no order twice, I2 none lost, I3 positions equal, I4 fills
counted once.

Run as a program, this file is the process that makes the processes: it imports everything once and forks.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import MEMORY
from sqlalchemy import select

from alpha_trader.domain import IntentStatus, LeaseHeld, OrderIntent, OrderType, Purpose, Side
from alpha_trader.execution import drop_stale, next_attempt, reconcile, record_intents, send
from alpha_trader.fills import CostRules, exit_level
from alpha_trader.samples import synthetic_panel
from alpha_trader.sessions import session_close, session_open
from alpha_trader.simulated import SimBroker
from alpha_trader.store import (
    FillRow,
    IntentRow,
    PositionRow,
    acquire_lease,
    open_account,
    open_store,
    reading,
    release_lease,
    this_process,
)

TAPE = synthetic_panel(symbols=6, sessions=64, seed=11)
DAYS = TAPE.sessions.tolist()
COSTS = CostRules(0.001, 0.0, 0.0002, 0.0001, 0.01)
CAPITAL = Decimal(100_000)
CYCLE = ["opened", "reconciled", "recorded", "exited", "entered", "protected"]
STEPS = ["claim", "ask", "settle", "done", "poll"]
HELD = 75  # exit code of a cycle that found the account in other hands


# --------------------------------------------------------------------------------------------- the cycle


def die_when(label: str, visit: int) -> Callable[[str], None]:
    "A checkpoint that kills its own process when it comes by `label` for the `visit`-th time"
    left = [visit]

    def checkpoint(here: str) -> None:
        left[0] -= here == label
        if left[0] == 0 and here == label:
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint


def holdings(engine, before) -> list[PositionRow]:
    "Positions that were opened before the session"
    with reading(engine) as db:
        rows = db.scalars(select(PositionRow).order_by(PositionRow.symbol)).all()
    return [row for row in rows if row.quantity and row.entry_session and row.entry_session < before]


def wanted(engine, day: int) -> tuple[list[OrderIntent], list[OrderIntent]]:
    "Exits and entries of a session: a fixed timetable, so that a repetition wants the same"
    session, shares = DAYS[day], Decimal(20)
    due = [symbol for i, symbol in enumerate(TAPE.symbols) if (day + i) % 3 == 0]
    done = {symbol for i, symbol in enumerate(TAPE.symbols) if (day + i) % 3 == 2}
    head = ("demo", "table", session)
    held = holdings(engine, session)
    exits = [
        OrderIntent(*head, r.symbol, Side.SELL, Purpose.EXIT, r.quantity, reason="HORIZON")
        for r in held
        if r.symbol in done
    ]
    busy = {row.symbol for row in held}
    entries = [OrderIntent(*head, symbol, Side.BUY, Purpose.ENTRY, shares) for symbol in due if symbol not in busy]
    return exits, entries


def protection(engine, day: int) -> list[OrderIntent]:
    "A stop for all and a target for half of everything that is held"
    orders = []
    for row in holdings(engine, DAYS[day] + timedelta(days=1)):
        level = {rate: Decimal(str(exit_level(float(row.average_price), rate))) for rate in (-0.02, 0.02)}
        group = {"oco_group": f"{row.symbol} {DAYS[day]}"}
        head = ("demo", "table", DAYS[day], row.symbol, Side.SELL)
        stop = OrderIntent(*head, Purpose.STOP, row.quantity, OrderType.STOP, stop_price=level[-0.02], **group)
        half = (row.quantity + 1) // 2
        target = OrderIntent(*head, Purpose.TARGET, half, OrderType.LIMIT, limit_price=level[0.02], **group)
        orders += [stop] if row.half_taken else [stop, target]
    return orders


def cycle(folder: Path, day: int, checkpoint: Callable[[str], None]) -> None:
    "One decision slot, from the lease to the protective orders"
    now, (pid, host) = session_open(DAYS[day]), this_process()
    engine = open_store(f"sqlite:///{folder}/store.db")
    open_account(engine, "demo", "sim", "sim", CAPITAL, now)
    fence = acquire_lease(engine, "demo", "cycle", pid, host, now, timedelta(minutes=10))
    broker = SimBroker(folder / "book.db", TAPE, now, "demo", CAPITAL, COSTS)
    acting = (fence, lambda: now, lambda seconds: None)
    checkpoint("opened")
    reconcile(engine, broker, "demo", *acting)
    drop_stale(engine, "demo", DAYS[day], now)
    checkpoint("reconciled")
    exits, entries = wanted(engine, day)
    record_intents(engine, exits + entries, None, now, fence)
    checkpoint("recorded")
    for label, intents in (("exited", exits), ("entered", entries)):
        send(engine, broker, intents, *acting, now, checkpoint=checkpoint)
        checkpoint(label)
    guards = protection(engine, day)
    record_intents(engine, guards, None, now, fence)
    send(engine, broker, guards, *acting, now, checkpoint=checkpoint)
    checkpoint("protected")
    release_lease(engine, "demo", fence)
    broker.close()
    engine.dispose()


# ------------------------------------------------------------------------------- the maker of processes


def born(folder: str, day: int, label: str | None, visit: int) -> int:  # process id
    "Fork a child that runs one cycle"
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        cycle(Path(folder), day, die_when(label, visit) if label else lambda here: None)
        code = 0
    except LeaseHeld:
        code = HELD
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def make_processes() -> None:
    "Read jobs, one JSON a line; answer with the exit codes and the seconds they took"
    with TemporaryDirectory(dir=MEMORY) as folder:
        cycle(Path(folder), 0, lambda here: None)  # load everything once, before the first fork
    for line in sys.stdin:
        job = json.loads(line)
        began = time.perf_counter()
        children = [
            born(job["folder"], job["day"], job.get("label"), job.get("visit", 1)) for _ in range(job.get("twins", 1))
        ]
        if job.get("delay") is not None:
            time.sleep(job["delay"])
            os.kill(children[0], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps({"codes": codes, "seconds": time.perf_counter() - began}), flush=True)


@dataclass
class Maker:
    "The other end of `make_processes`"

    process: subprocess.Popen

    def run(self, folder: Path, day: int, **job: object) -> tuple[list[int], float]:
        "Exit codes (negative: killed) and seconds"
        self.process.stdin.write(json.dumps({"folder": str(folder), "day": day} | job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["codes"], answer["seconds"]


@pytest.fixture(scope="module")
def maker() -> Iterator[Maker]:
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield Maker(process)
    process.stdin.close()
    process.wait()


@pytest.fixture
def folders() -> Iterator[tuple[Path, Path]]:
    "A life with accidents, and one without"
    with TemporaryDirectory(dir=MEMORY) as one, TemporaryDirectory(dir=MEMORY) as two:
        yield Path(one), Path(two)


# ------------------------------------------------------------------------------------------ what must hold


def book_of(folder: Path) -> dict:
    "The broker's book, without the numbers of its orders"
    broker = SimBroker(folder / "book.db", TAPE, None, "demo", CAPITAL, COSTS)
    since = session_open(DAYS[0]) - timedelta(days=9)
    orders = broker.orders(since)
    book = {
        "orders": sorted((o.client_id, o.quantity, o.status, o.average_price) for o in orders),
        "fills": sorted((f.client_id, f.quantity, f.price, f.fee, f.at) for f in broker.fills(since)),
        "positions": {p.symbol: (p.quantity, p.average_price) for p in broker.positions()},
        "cash": broker.account().cash,
    }
    broker.close()
    return book


def assert_agree(folder: Path, day: int) -> None:
    "Our store and the broker's book tell the same story"
    now = session_close(DAYS[day])
    engine = open_store(f"sqlite:///{folder}/store.db")
    broker = SimBroker(folder / "book.db", TAPE, now, "demo", CAPITAL, COSTS)
    fence = acquire_lease(engine, "demo", "test", *this_process(), now, timedelta(minutes=1))
    seen = reconcile(engine, broker, "demo", fence, lambda: now, lambda seconds: None)
    broker.close()
    book = book_of(folder)
    with reading(engine) as db:
        intents = {row.client_id: row for row in db.scalars(select(IntentRow))}
        fills = sorted((row.client_id, row.quantity, row.price, row.fee, row.at) for row in db.scalars(select(FillRow)))
        positions = {r.symbol: (r.quantity, r.average_price) for r in db.scalars(select(PositionRow)) if r.quantity}
    engine.dispose()
    assert max(Counter(name for name, *_ in book["orders"]).values()) == 1, "I1: an order twice"
    assert {name for name, *_ in book["orders"]} == {n for n, row in intents.items() if row.broker_id}, (
        "I2: one forgotten"
    )
    never = {row.status for row in intents.values() if not row.broker_id}
    assert never <= {IntentStatus.REJECTED, IntentStatus.DROPPED}, "I2: one lost"
    assert {name: status for name, _, status, _ in book["orders"]} == {
        n: r.status for n, r in intents.items() if r.broker_id
    }
    assert positions == book["positions"], "I3"
    assert fills == book["fills"], "I4"
    assert (seen.drift, seen.cash_drift, seen.frozen, seen.strangers) == ({}, 0, {}, ())


def assert_same_life(folders: tuple[Path, Path], day: int) -> None:
    "The accidents left no trace"
    with_accidents, without = (book_of(folder) for folder in folders)
    assert with_accidents == without
    for folder in folders:
        assert_agree(folder, day)


# ----------------------------------------------------------------------------------------------- the tests


def test_killed_at_every_step_and_run_again(maker: Maker, folders: tuple[Path, Path]) -> None:
    "Fault 10, DA-2, DB-9: between any two lines that matter, twice as far into the session each time"
    kills = [(label, 1) for label in CYCLE] + [(label, visit) for label in STEPS for visit in (1, 3, 6)]
    for day, (label, visit) in enumerate(kills):
        [code], _ = maker.run(folders[0], day, label=label, visit=visit)
        assert code in (-signal.SIGKILL, 0) and (visit > 1 or label in STEPS or code < 0), (label, visit, code)
        assert maker.run(folders[0], day)[0] == [0]
        assert maker.run(folders[1], day)[0] == [0]
    assert_same_life(folders, len(kills) - 1)
    lived = Counter(name.split("-")[6] for name, *_ in book_of(folders[0])["fills"])
    assert set(lived) == {"entry", "exit", "stop", "target"}, "too quiet a life to prove anything"


def test_killed_at_random_moments_and_run_again(maker: Maker, folders: tuple[Path, Path]) -> None:
    "Twenty sessions that were not traded before, one kill each, wherever it hits"
    dice, seconds, hits = random.Random(5), 0.3, 0
    for day in range(20):
        codes, _ = maker.run(folders[0], day, delay=dice.uniform(0.05, 1.0) * seconds)
        hits += codes == [-signal.SIGKILL]
        assert maker.run(folders[0], day)[0] == [0]
        done, seconds = maker.run(folders[1], day)
        assert done == [0]
    assert hits >= 5, "the kills missed: nothing was tested"
    assert_same_life(folders, 19)


def test_killed_again_and_again_in_one_session(maker: Maker, folders: tuple[Path, Path]) -> None:
    "The repetition is killed, too, and its repetition"
    for day in range(3):
        for label, visit in (("ask", 1), ("settle", 1), ("settle", 1), ("done", 2), ("poll", 1), ("poll", 2)):
            maker.run(folders[0], day, label=label, visit=visit)
        assert maker.run(folders[0], day)[0] == [0]
        assert maker.run(folders[1], day)[0] == [0]
    assert_same_life(folders, 2)


def test_two_processes_want_the_same_session(maker: Maker, folders: tuple[Path, Path]) -> None:
    "Fault 11: one of them trades, the other is told who does, or finds everything done"
    for day in range(4):
        codes, _ = maker.run(folders[0], day, twins=3)
        assert 0 in codes and set(codes) <= {0, HELD}
        assert maker.run(folders[1], day)[0] == [0]
    assert_same_life(folders, 3)


def test_a_repeated_session_sends_nothing(maker: Maker, folders: tuple[Path, Path]) -> None:
    for day in range(2):
        assert maker.run(folders[0], day)[0] == [0]
    before = book_of(folders[0])
    assert maker.run(folders[0], 1)[0] == [0]
    assert book_of(folders[0]) == before and len(before["orders"]) > 4
    with reading(open_store(f"sqlite:///{folders[0]}/store.db")) as db:
        intents = [row.noun() for row in db.scalars(select(IntentRow)) if row.status is IntentStatus.FILLED]
        engine = db.get_bind().engine
    assert all(next_attempt(engine, intent) is None for intent in intents)


if __name__ == "__main__":
    make_processes()
