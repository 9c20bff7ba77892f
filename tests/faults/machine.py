"""Schedules of trading, faults, deaths and real `kill -9`, drawn by Hypothesis; after each step the invariants

`python -m faults.machine N [SEED]` drives N schedules, or as many as there were before Ctrl-C, and prints what it counted.
Children are forked by a maker: a process that has imported everything once, has no threads, and is told what to do on
its standard input.
"""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from servers.exchange import Refused, closing, session_of
from servers.judge import Judge
from servers.wire import Fault, Reply, Request

from alpha_trader.domain import AlphaTraderError
from alpha_trader.execution import working
from alpha_trader.store import OrderRow
from faults.floor import DAYS, FIRST, MEMORY, SYMBOLS, Book, Death, Doom, Floor, Trader, at_any_moment, in_the_end

TESTS = Path(__file__).resolve().parents[1]
FAILED, WRONG = 3, 4  # exit codes of a child: an error that a run may end with; one that it may not


# ------------------------------------------------------------------------------------------------ work, and who does it


def work(trader: Trader, job: dict[str, Any]) -> None:
    "What one process does before it ends"
    if job["kind"] == "cycle":
        trader.cycle(job["day"], job["wanted"])
    elif job["kind"] == "cancel":
        trader.reconcile()
        alive = working(trader.engine, "demo")
        if alive:
            trader.cancel(alive[job["pick"] % len(alive)].client_id)


def child(job: dict[str, Any], control: str, url: str, judge: Judge, book: Book) -> int:
    "A life in a forked process; it ends with the exit code"

    def ask(path: str) -> datetime:
        with urllib.request.urlopen(f"{control}{path}", timeout=30) as answer:
            return datetime.fromisoformat(json.load(answer))

    trader = None
    try:
        doom = Doom(job["doom"], really=True)
        trader = Trader(Path(job["path"]), url, lambda: ask("/now"), lambda s: void(ask(f"/sleep?seconds={s}")), judge, doom, book)
        work(trader, job)
    except AlphaTraderError:
        return WRONG if judge.wrong else FAILED
    except BaseException as error:
        sys.stderr.write(f"{job}: {type(error).__name__}: {error}\n")
        return WRONG
    return WRONG if judge.wrong else 0


def void(_: object) -> None: ...


def make_children(path: str, url: str, control: str) -> None:
    "Fork a child for each job, one JSON a line; answer with its number, then with how it ended"
    judge, book = Judge("trading", url), Book(Path(path))
    for line in sys.stdin:
        job = json.loads(line)
        if job.pop("warm", False):
            child(job, control, url, judge, book)
            book.engine.dispose()
            judge.wrong.clear()
            print(json.dumps(0), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = WRONG
            try:
                code = child(job, control, url, judge, book)
            finally:
                os._exit(code)
        print(json.dumps(pid), flush=True)
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), flush=True)


class Maker:
    "The other end of `make_children`"

    def __init__(self, floor: Floor):
        arguments = ["make", str(floor.path), floor.url, floor.control.url]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faults.machine", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        )
        self.pid, self.born = 0, threading.Event()
        self.tell({"warm": True, "path": str(floor.path), "doom": None, "kind": "cycle", "day": FIRST, "wanted": {"ACME": 1}})
        assert self.hear() == 0
        floor.reset()

    def tell(self, job: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def hear(self) -> int:
        assert self.process.stdout
        return int(json.loads(self.process.stdout.readline()))

    def run(self, job: dict[str, Any]) -> int:
        "How the child ended: 0, its exit code, or minus its signal"
        self.born.clear()
        self.tell(job)
        self.pid = self.hear()
        self.born.set()
        return self.hear()

    def kill(self, signal: int = 9) -> None:
        "End the child that is at work now"
        self.born.wait(10)
        os.kill(self.pid, signal)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# ------------------------------------------------------------------------------------------------ what goes wrong


def lose(rows: Any) -> Any:
    return rows[:1] if isinstance(rows, list) else rows


def twice(rows: Any) -> Any:
    return [*reversed(rows), *rows] if isinstance(rows, list) else rows


def teleported(body: Any) -> Any:
    return body | {"status": "teleported"} if isinstance(body, dict) and "status" in body else body


HTML = b"<html>502</html>"
FAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {  # method, path, what the wire does
    "lost before": ("POST", "/orders", {"action": "close", "after": False}),
    "reset before": ("POST", "/orders", {"action": "reset", "after": False}),
    "lost after": ("POST", "/orders", {"action": "close"}),
    "reset after": ("POST", "/orders", {"action": "reset"}),
    "hang": ("POST", "/orders", {"action": "hang", "seconds": 0.05}),
    "truncated": ("POST", "/orders", {"action": "truncate"}),
    "504": ("POST", "/orders", {"action": "reply", "reply": Reply(504, {"message": "gateway"})}),
    "502 html": ("POST", "/orders", {"action": "reply", "reply": Reply(502, HTML)}),
    "200 html": ("POST", "/orders", {"action": "reply", "reply": Reply(200, HTML)}),
    "200 empty": ("POST", "/orders", {"action": "reply", "reply": Reply(200)}),
    "new word": ("POST", "/orders", {"action": "reply", "change": teleported}),
    "429": (
        "POST",
        "/orders",
        {"action": "reply", "after": False, "reply": Reply(429, {"message": "too many requests."})},
    ),
    "403": (
        "POST",
        "/orders",
        {"action": "reply", "after": False, "reply": Reply(403, {"message": "insufficient buying power"})},
    ),
    "lagging": ("POST", "/orders", {"action": "reset", "lag": 4}),
    "lagging long": ("POST", "/orders", {"action": "reset", "lag": 9}),
    "cancel lost before": ("DELETE", "/orders", {"action": "close", "after": False}),
    "cancel lost after": ("DELETE", "/orders", {"action": "reset"}),
    "cancel 500": ("DELETE", "/orders", {"action": "reply", "reply": Reply(500)}),
    "read 429": (
        "GET",
        "/v2",
        {"action": "reply", "after": False, "reply": Reply(429, {"message": "too many requests."})},
    ),
    "read 500": ("GET", "/v2", {"action": "reply", "after": False, "reply": Reply(500)}),
    "read reset": ("GET", "/v2", {"action": "reset"}),
    "read html": ("GET", "/v2", {"action": "reply", "reply": Reply(200, HTML)}),
    "fills twice": ("GET", "/account/activities", {"action": "reply", "change": twice}),
    "fills late": ("GET", "/account/activities", {"action": "reply", "change": lose}),
    "positions stale": ("GET", "/positions", {"action": "reply", "change": lambda rows: []}),
}
HARMLESS = [name for name in FAULTS if name not in ("positions stale", "fills late")]  # the others may freeze a symbol
NAMES, WRONGS = st.sampled_from(SYMBOLS), st.sampled_from(HARMLESS)
PLANS = st.fixed_dictionaries({symbol: st.sampled_from([20, 10, 0, -1]) for symbol in SYMBOLS})


class Schedule(RuleBasedStateMachine):
    "A few sessions of an account, and everything that can happen to it"

    floor: Floor  # shared by all schedules
    maker: Maker

    @initialize()
    def begin(self) -> None:
        self.floor.reset()
        self.day, self.trader, self.traded = FIRST, None, False
        self.floor.totals["schedules"] += 1

    def teardown(self) -> None:
        if getattr(self, "day", None) is not None:
            self.everything()
            self.leave()

    def leave(self) -> None:
        if self.trader:
            self.trader.line.client._session.close()
        self.trader = None

    def ready(self, doom: Callable[[str], None] = lambda what: None) -> Trader:
        "A process of its own: a new fence, a new line"
        self.leave()
        self.trader = self.floor.trader(doom)
        return self.trader

    def do(self, job: dict[str, Any], how: str, place: int) -> None:
        "Have work done: here, here with a death, by a child, by a child that is killed"
        job |= {"path": str(self.floor.path), "doom": place if how == "kill" else None}
        totals = self.floor.totals
        if how in ("live", "die"):
            try:
                work(self.ready(Doom(place if how == "die" else None)), job)
            except Death:
                totals["crashes"] += 1
            except AlphaTraderError:
                totals["failed runs"] += 1
            self.leave()
        else:
            self.leave()
            self.floor.book.engine.dispose()
            if how == "kill at the door":
                self.put(Fault(lambda r: r.method == "POST", "reply", now=self.maker.kill), "killed at the door")
            code = self.maker.run(job)
            assert code != WRONG, "a child ended with an error that nobody expects"
            totals["kills" if code < 0 else "failed runs" if code else "children"] += 1
            assert code in (0, FAILED, -9)

    def put(self, fault: Fault, name: str) -> None:
        "Let something go wrong, and count it when it does"
        before = fault.now

        def count() -> None:
            self.floor.totals[f"fault: {name}"] += 1
            if before:
                before()

        fault.now = count
        self.floor.wire.faults.append(fault)

    HOW = st.sampled_from(["live", "die", "kill", "kill", "kill at the door"])
    PLACE = st.sampled_from(range(1, 90))

    @rule(
        wanted=PLANS,
        how=HOW,
        place=PLACE,
        name=st.none() | WRONGS | WRONGS,
        nth=st.sampled_from(range(4)),
        times=st.sampled_from([1, 1, 2, 3]),
        again=st.booleans(),
    )
    def trade(self, wanted: dict[str, int], how: str, place: int, name: str | None, nth: int, times: int, again: bool) -> None:
        "A cycle of the session, or of the next one, which may break off; a repeated one finds the plan of the first"
        if session_of(self.floor.clock()) is None or self.traded:
            self.night()
        if name:
            self.disturb(name, nth, times)
        self.traded = how == "live"
        job = {"kind": "cycle", "day": self.day, "wanted": wanted}
        if session_of(self.floor.clock()) == DAYS[self.day]:
            self.do(job, how, place)
            at_any_moment(self.floor)
            if again:
                self.traded = True
                self.do(job, "live", 0)

    def night(self) -> None:
        if self.day + 1 < len(DAYS):
            self.day += 1
            self.floor.to_open(self.day)

    def disturb(self, name: str, nth: int, times: int) -> None:
        method, path, what = FAULTS[name]
        lag, left = what.get("lag", 0), [nth]

        def matches(request: Request) -> bool:
            if request.method != method or path not in request.path:
                return False
            left[0] -= 1
            if left[0] < 0 and lag:
                self.floor.service.lag[request.body["client_order_id"]] = lag
            return left[0] < 0

        self.put(Fault(matches, **{"times": times} | {k: v for k, v in what.items() if k != "lag"}), name)

    @rule(
        what=st.sampled_from(["cancel", "hand", "hand", "parts", "parts", "close"]),
        symbol=NAMES,
        n=st.sampled_from(range(-5, 6)),
        how=st.sampled_from(["live", "die"]),
    )
    def meanwhile(self, what: str, symbol: str, n: int, how: str) -> None:
        "An order is cancelled, a person trades, an order fills in parts, the session ends"
        if what == "cancel":
            self.do({"kind": "cancel", "pick": abs(n)}, how, 5 * abs(n))
        elif what == "hand":
            self.by_hand(symbol, n)
        elif what == "parts":
            self.parts(abs(n) % 3 + 1)
        elif self.floor.clock() < closing(DAYS[self.day]):
            self.floor.to_close(self.day)

    def by_hand(self, symbol: str, shares: int) -> None:
        try:
            if shares and session_of(self.floor.clock()):
                self.floor.exchange.submit(symbol, "buy" if shares > 0 else "sell", Decimal(abs(shares)), "market")
                self.floor.totals["orders by hand"] += 1
        except Refused:
            pass

    def parts(self, parts: int) -> None:
        "In how many parts an order fills; what waits may fill now"
        exchange = self.floor.exchange
        exchange.portion = lambda order: max(order.left // parts, Decimal(1)) if order.kind == "market" else order.left
        for order in list(exchange.orders.values()):
            if order.kind == "market":
                exchange.match(order)

    @rule()
    def everything(self) -> None:
        "All invariants, over a line that works"
        in_the_end(self.floor, trader := self.ready())
        names = Counter(order.client_id for order in self.floor.ours())
        remembered = {row.client_id for row in trader.rows(OrderRow)}
        self.floor.totals.update({"reconciled": 1, "lost": len(set(names) - remembered), "doubled": names.total() - len(names)})

    @invariant()
    def nothing_is_doubled_or_lost(self) -> None:
        if hasattr(self, "trader"):
            at_any_moment(self.floor)


def drive(schedules: int, number: int | None = None, steps: int = 6) -> Counter[str]:
    "Run so many schedules; what was counted, or the first one that broke an invariant, as small as it gets"
    with TemporaryDirectory(dir=MEMORY) as folder:
        floor = Floor(Path(folder))
        maker = Maker(floor)
        floor.totals.clear()
        machine = type("Run", (Schedule,), {"floor": floor, "maker": maker})
        profile = settings(
            max_examples=schedules, stateful_step_count=steps, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink), print_blob=False,
        )  # fmt: skip
        try:
            run_state_machine_as_test(seed(number)(machine) if number is not None else machine, settings=profile)
        except KeyboardInterrupt:  # a person has seen enough: what was driven counts
            pass
        finally:
            floor.count()
            maker.close()
            floor.close()
    return floor.totals


def summary(counted: Counter[str], seed: int) -> str:
    "What was driven and what came of it, as a table"
    wrongs = sorted((name.removeprefix("fault: "), n) for name, n in counted.items() if name.startswith("fault: "))
    rows = [(name, counted[name]) for name in ("schedules", "requests", "orders", "orders by hand", "reconciled")]
    rows += [("faults", sum(n for _, n in wrongs)), *((f"  {name}", n) for name, n in wrongs)]
    rows += [(name, counted[name]) for name in ("crashes", "kills", "failed runs", "lost", "doubled", "seconds")]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}} {n:>9,}" for name, n in rows]
    return "\n".join([f"faults at Alpaca, {datetime.now():%Y-%m-%d}, seed {seed}", *lines])


def main(schedules: int, number: int, workers: int = 2) -> int:  # exit code
    "Share the schedules out, wait, and print the summary; the first violation is printed instead"
    began = time.monotonic()
    share = [schedules // workers + (n < schedules % workers) for n in range(workers)]
    command = [sys.executable, "-m", "faults.machine", "drive"]
    parts = [
        subprocess.Popen([*command, str(size), str(number + n)], stdout=subprocess.PIPE, text=True) for n, size in enumerate(share)
    ]
    try:
        said = [part.communicate()[0] for part in parts]
    except KeyboardInterrupt:
        said = [part.communicate()[0] for part in parts]
    if any(part.returncode for part in parts):
        print(f"an invariant was broken: see above (seed {number})", file=sys.stderr)
        return 1
    counted = sum((Counter(json.loads(text)) for text in said), Counter())
    print(summary(counted | Counter({"seconds": round(time.monotonic() - began)}), number))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make_children(*sys.argv[2:5])
    elif sys.argv[1] == "drive":
        print(json.dumps(drive(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        chosen = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time()) % 1_000_000
        sys.exit(main(int(sys.argv[1]), chosen))
