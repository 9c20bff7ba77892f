"""One backtest, the first backtest of a process, and many"""

import importlib.util
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from alpha_trader.backtest import Backtest, history_of, run_backtest, walk_history
from alpha_trader.bars import Panel
from alpha_trader.features import volatility
from alpha_trader.samples import synthetic_panel
from alpha_trader.settings import Settings, override
from alpha_trader.sweep import SweepResult, parse_grid, run_sweep
from benchmarks import peer_backtests
from benchmarks.measure import Case, Row, Size, row

CAPITAL = 100_000.0  # USD
COMMON = {
    "risk.stop_check": "close",
    "risk.swap_premium": 1e9,
    "risk.cool_down": 0,
    "risk.day_loss": -0.99,
    "data.max_move": 0.9,
    "signals.sell": -1e-12,
    "signals.confidence": 0.0,
    "costs.commission_rate": 0,
    "costs.half_spread": 1e-12,
    "costs.slippage": 0,
    "costs.impact": 0,
}
# what the peers can follow: no costs, no second order a day, no swap (whatever is not worth holding is sold)


PERSISTENCE = 0.66  # of a forecast until the next session: that of the shipped model on the sample, 0.48 to 0.72


def forecasts(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    "Invented predictions, as persistent from session to session as a model's, and confidences [T, N]"
    random = np.random.default_rng(5)
    predicted = random.normal(0.0, 0.01, shape)
    for t in range(1, shape[0]):
        predicted[t] = PERSISTENCE * predicted[t - 1] + (1.0 - PERSISTENCE**2) ** 0.5 * predicted[t]
    return predicted, random.uniform(0.5, 1.0, shape)


def views_of(panel: Panel) -> peer_backtests.Views:
    "What the peers are given"
    arrays = [
        np.ascontiguousarray(array) for array in (*panel.values, *forecasts(panel.close.shape), volatility(panel))
    ]
    return peer_backtests.Views(*arrays)


def ours(panel: Panel, settings: Settings) -> Backtest:
    "`run_backtest` on the invented predictions"
    return run_backtest(panel, *forecasts(panel.close.shape), settings, CAPITAL)


@cache
def callbacks() -> tuple[Any, Any]:
    "vectorbt's callbacks, compiled once in this process"
    return peer_backtests.order_functions()


def check_common(panel: Panel) -> list[str]:
    "The common rules: the last equity of ours, vectorbt and backtrader; of backtesting.py for one symbol"
    settings = override(Settings(), COMMON)
    rules, views, found = peer_backtests.rules_of(settings), views_of(panel), ours(panel, settings)
    last, fills = float(found.equity.iloc[-1]), int(found.ledger.used[0])
    said = []
    if importlib.util.find_spec("vectorbt"):
        theirs = peer_backtests.vectorbt_orders(views, rules, CAPITAL, callbacks())
        np.testing.assert_allclose(theirs.value().to_numpy()[1:], found.equity, rtol=1e-9, err_msg="equity of vectorbt")
        assert len(theirs.orders.records) == fills, "orders of vectorbt"
        said.append(f"common rules: {fills} fills and the equity of every day = vectorbt from_order_func, 1e-9")
    if importlib.util.find_spec("backtrader"):
        np.testing.assert_allclose(
            peer_backtests.backtrader_run(views, rules, CAPITAL), last, rtol=1e-9, err_msg="backtrader"
        )
        said.append("last equity = backtrader, 1e-9")
    if importlib.util.find_spec("backtesting"):
        alone = panel.cut(slice(None), [0])
        single = run_backtest(alone, views.predicted[:, :1], views.confidence[:, :1], settings, CAPITAL)
        theirs = peer_backtests.backtesting_run(views, rules, CAPITAL, 0)
        np.testing.assert_allclose(theirs, float(single.equity.iloc[-1]), rtol=1e-9, err_msg="backtesting.py")
        said.append("one symbol alone: last equity = backtesting.py, 1e-9")
    return said


def walk_only(panel: Panel, settings: Settings) -> Callable[[], Backtest]:
    "The walk over arrays in memory: what is left when the panel has been prepared once, as in a sweep"
    history = history_of(panel, *forecasts(panel.close.shape), settings.data.max_move)
    return lambda: walk_history(history, settings, CAPITAL, 1, len(panel.index))


@row("backtest")
def backtest_row(size: Size) -> Row:
    """One portfolio backtest, everything in memory and compiled

    Ours has every rule of the plan with the shipped settings: stops and targets within the bar, costs, swaps, cool-
    down, day-loss stop. It starts, as the peers do, from arrays of bars, predictions, confidences and volatilities,
    and makes a new ledger. `run_backtest` does the preparation of these arrays from the panel as well. vectorbt's
    `from_order_func` and backtrader have the common rules (see `peer_backtests`), `from_signals` has no limit on
    positions, and backtesting.py no portfolio: its symbols are added up.
    """
    settings, panel = Settings(), synthetic_panel(symbols=size.portfolio, sessions=size.history, seed=9)
    rules, views = peer_backtests.rules_of(settings), views_of(panel)

    def signals(engine: str) -> Any:
        return peer_backtests.vectorbt_signals(views, rules, CAPITAL, engine)

    def single() -> list[float]:
        return [peer_backtests.backtesting_run(views, rules, CAPITAL, column) for column in range(size.sampled)]

    return Row(
        f"one backtest with every rule, {size.portfolio} symbols × {size.history:,} sessions",
        Case("ours, the walk", walk_only(panel, settings)),
        [
            Case("ours, run_backtest from the panel", lambda: ours(panel, settings)),
            Case(
                "vectorbt from_order_func",
                lambda: peer_backtests.vectorbt_orders(views, rules, CAPITAL, callbacks()),
                needs="vectorbt",
                bar=100,
                moonshot=300,
            ),
            Case("vectorbt from_signals, numba", lambda: signals("numba"), needs="vectorbt"),
            Case("vectorbt from_signals, Rust", lambda: signals("rust"), needs="vectorbt_rust"),
            Case(
                "backtesting.py, symbol by symbol",
                single,
                scale=size.portfolio / size.sampled,
                needs="backtesting",
            ),
            Case(
                "backtrader", lambda: peer_backtests.backtrader_run(views, rules, CAPITAL), needs="backtrader", bar=3000
            ),
        ],
        check_common(panel),
    )


FRESH_OURS = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    panel, predicted, confidence = pickle.load(file)
from alpha_trader.backtest import run_backtest
from alpha_trader.settings import Settings
print(run_backtest(panel, predicted, confidence, Settings(), 100_000.0).equity.iloc[-1])
"""
FRESH_VECTORBT = """
import pickle, sys
from benchmarks import peer_backtests
from alpha_trader.settings import Settings
with open(sys.argv[1], "rb") as file:
    views = peer_backtests.Views(*pickle.load(file))
found = peer_backtests.{call}
print(found.value().iloc[-1])
"""
RULES = "peer_backtests.rules_of(Settings())"
FOLDER = tempfile.TemporaryDirectory(prefix="bench-")


def fresh(code: str, path: Path) -> Callable[[], None]:
    "Run code in a new interpreter"
    return lambda: subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True) and None


@row("fresh")
def fresh_row(size: Size) -> Row:
    """The first backtest of a new process, from the start of the interpreter to its last equity

    Each process reads its arrays from a pickle. Our kernels come from the cache on disk, as after the first use.
    vectorbt's `from_signals` comes with its Rust engine and with numba (its own cache), `from_order_func` compiles
    its callbacks in every process.
    """
    panel = synthetic_panel(symbols=size.portfolio, sessions=size.history, seed=9)
    views, folder = views_of(panel), Path(FOLDER.name)
    mine, theirs = folder / "panel.pickle", folder / "views.pickle"
    mine.write_bytes(pickle.dumps((panel, views.predicted, views.confidence)))
    theirs.write_bytes(pickle.dumps(tuple(views)))
    signals = "vectorbt_signals(views, {}, 100_000.0, {!r})"
    calls = {
        "vectorbt from_signals, Rust": (signals.format(RULES, "rust"), "vectorbt_rust", 1.0),
        "vectorbt from_signals, numba": (signals.format(RULES, "numba"), "vectorbt", 0.0),
        "vectorbt from_order_func": (
            f"vectorbt_orders(views, {RULES}, 100_000.0, peer_backtests.order_functions())",
            "vectorbt",
            0.0,
        ),
    }
    return Row(
        f"first backtest in a fresh process, {size.portfolio} × {size.history:,}, cached kernels",
        Case("ours", fresh(FRESH_OURS, mine)),
        [
            Case(name, fresh(FRESH_VECTORBT.format(call=call), theirs), needs=needs, bar=bar)
            for name, (call, needs, bar) in calls.items()
        ]
        + [Case("an interpreter that imports numpy, pandas and numba", fresh("import numpy, pandas, numba", mine))],
    )


def parameter_sets(count: int) -> list[dict[str, float]]:
    "Stop and target of each set"
    stops, targets = np.linspace(-0.02, -0.10, count), np.linspace(0.05, 0.20, count)
    return [{"risk.stop_loss": float(a), "risk.take_profit": float(b)} for a, b in zip(stops, targets, strict=True)]


def sweep_ours(panel: Panel, count: int) -> SweepResult:
    "All sets by the sweep of the package, from nothing to its table"
    width = round(count**0.5)
    said = {"risk.stop_loss": f"-0.02:-0.10:{width}", "risk.take_profit": f"0.05:0.20:{count // width}"}
    grid = parse_grid(" ".join(f"{path}={span}" for path, span in said.items()), Settings())
    told = (*forecasts(panel.close.shape), np.zeros(len(panel.index), dtype=np.int64))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return run_sweep(panel, grid, Settings(), lambda _: told, CAPITAL, (1, len(panel.index)), Path(folder))


def sweep_vectorbt(views: peer_backtests.Views, sets: list[dict[str, float]], engine: str) -> list[float]:
    "The last value of each set: all sets side by side in one call, an account for each"
    import vectorbt

    rules, count, width = peer_backtests.rules_of(Settings()), len(sets), views.close.shape[1]
    sure = views.confidence > rules.confidence

    def wide(array: np.ndarray) -> np.ndarray:
        return np.tile(array, (1, count))

    def later(signal: np.ndarray) -> np.ndarray:
        return wide(np.vstack([np.zeros_like(signal[:1]), signal[:-1]]))

    stops, targets = (
        np.repeat([abs(each[key]) for each in sets], width) for key in ("risk.stop_loss", "risk.take_profit")
    )
    found = vectorbt.Portfolio.from_signals(
        wide(views.close),
        later(sure & (views.predicted > rules.buy)),
        later(sure & (views.predicted < rules.sell)),
        size=rules.max_position,
        size_type="percent",
        price=wide(views.open),
        open=wide(views.open),
        high=wide(views.high),
        low=wide(views.low),
        sl_stop=stops,
        tp_stop=targets,
        fees=0.001,
        init_cash=CAPITAL,
        cash_sharing=True,
        group_by=np.repeat(np.arange(count), width),
        engine=engine,
    )
    return found.final_value().tolist()


@row("sweep")
def sweep_row(size: Size) -> Row:
    """Many parameter sets over the same bars and predictions: the last equity of each

    Ours: `run_sweep`, every set, with every rule of the plan and ten measures of each. vectorbt: `from_signals` on
    a thousandth of the sets side by side, scaled; it has no limit on positions.
    """
    panel = synthetic_panel(symbols=size.portfolio, sessions=size.history, seed=9)
    views, theirs = views_of(panel), max(size.sweep // 1000, 2)
    few = parameter_sets(theirs)
    return Row(
        f"sweep of {size.sweep:,} parameter sets, {size.portfolio} × {size.history:,}",
        Case("ours, run_sweep", lambda: sweep_ours(panel, size.sweep)),
        [
            Case(
                "vectorbt from_signals, numba",
                lambda: sweep_vectorbt(views, few, "numba"),
                scale=size.sweep / theirs,
                needs="vectorbt",
                bar=25,
                moonshot=150,
            ),
            Case(
                "vectorbt from_signals, Rust",
                lambda: sweep_vectorbt(views, few, "rust"),
                scale=size.sweep / theirs,
                needs="vectorbt_rust",
            ),
        ],
    )
