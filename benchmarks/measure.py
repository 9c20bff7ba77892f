"""Rows, cases and the clock: what is common to all comparisons"""

import importlib.util
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

PEERS = ("ta", "TA-Lib", "pandas", "polars", "vectorbt", "vectorbt-rust", "backtrader", "backtesting", "papermill")
OURS = ("numpy", "numba", "lightgbm", "sqlalchemy")


@dataclass(frozen=True)
class Case:
    "One way to do the work of a row"

    name: str
    call: Callable[[], Any]  # does the work once
    scale: float = 1.0  # the work of the row is so many times what `call` does
    needs: str = ""  # module without which the case is left out
    bar: float = 0.0  # this case shall take so many times as long as ours; 0 = no target
    moonshot: float = 0.0  # and one day so many times
    times_itself: bool = False  # `call` answers with the seconds it took
    note: str = ""

    def available(self) -> bool:
        "Is its library there?"
        return not self.needs or importlib.util.find_spec(self.needs) is not None

    def seconds(self) -> float:
        "One measurement, scaled to the whole work"
        start = perf_counter()
        said = self.call()
        taken = float(said) if self.times_itself else perf_counter() - start
        return taken * self.scale


@dataclass(frozen=True)
class Row:
    "One line of work, done by us and by others on the same data"

    work: str  # what is done, with its size
    ours: Case
    others: Sequence[Case]
    checks: Sequence[str] = ()  # what was found equal before anything was timed
    bounds: Sequence[Case] = ()  # what no implementation can beat on this machine


@dataclass(frozen=True)
class Size:
    "How large the rows are: the published sizes, or tiny ones for the tests"

    symbols: int = 1000  # of the features and of the sweep's neighbours
    sessions: int = 1260
    portfolio: int = 32  # symbols of a backtest
    history: int = 2520  # sessions of a backtest
    sweep: int = 10_000  # parameter sets
    many: int = 5000  # symbols of the large trade cycle
    load: int = 200  # symbols of the panel that is read from disk
    sampled: int = 4  # symbols that the slow peers really do


FULL = Size()
TINY = Size(symbols=6, sessions=600, portfolio=4, history=300, sweep=20, many=8, load=3, sampled=2)
Build = Callable[[Size], Row]
ROWS: dict[str, Build] = {}


def row(name: str) -> Callable[[Build], Build]:
    'Register a row under a name for `--only`; use as `@row("features")`'

    def register(build: Build) -> Build:
        ROWS[name] = build
        return build

    return register


@dataclass
class Timing:
    "What the clock said about one case"

    case: Case
    kind: str  # ours, peer or bound
    taken: list[float] = field(default_factory=list)  # seconds

    @property
    def least(self) -> float:
        return min(self.taken)

    @property
    def median(self) -> float:
        return statistics.median(self.taken)


def timings(
    row: Row,
    repeat: int = 15,  # measurements of each case, at most
    budget: float = 20.0,  # seconds for each case; at least two measurements are made in any case
) -> list[Timing]:  # ours first
    "Measure all cases of a row in turn, again and again, so that a busy moment of the machine meets all of them"
    kinds = (("ours", [row.ours]), ("peer", row.others), ("bound", row.bounds))
    found = [Timing(case, kind) for kind, cases in kinds for case in cases if case.available()]
    for timing in found:
        timing.case.seconds()  # compiles, fills caches; not counted
    for turn in range(repeat):
        for timing in found:
            if turn < 2 or sum(timing.taken) / timing.case.scale < budget:
                timing.taken.append(timing.case.seconds())
    return found


def verdict(ratio: float, case: Case) -> str:
    "Whether a ratio reaches its target"
    if not case.bar:
        return ""
    if case.moonshot and ratio >= case.moonshot:
        return "moonshot"
    return "reached" if ratio >= case.bar else "missed"


def figures(row: Row, found: Sequence[Timing]) -> dict[str, Any]:
    "The measurements of a row as plain data"
    ours = found[0]
    cases = []
    for timing in found:
        case = timing.case
        ratio = timing.median / ours.median
        facts = {"name": case.name, "kind": timing.kind, "min": timing.least, "median": timing.median}
        facts |= {
            "runs": len(timing.taken),
            "scale": case.scale,
            "ratio": ratio,
            "ratio_of_minima": timing.least / ours.least,
        }
        cases.append(
            facts | {"bar": case.bar, "moonshot": case.moonshot, "verdict": verdict(ratio, case), "note": case.note}
        )
    return {"work": row.work, "checks": list(row.checks), "cases": cases}


def processor() -> str:
    "The model name of the CPU"
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    "When and on what the figures were measured"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: installed(name) for name in PEERS + OURS},
        "argv": sys.argv[1:],
    }
