"""Backtest and live agree to the cent on random universes: gaps, splits, dividends, halts, short histories

A universe is drawn from its seed: invented bars written as a user's own files, events, settings. The live path ingests,
trains and trades it session by session with the simulated broker; the compiled walk gets the same predictions.
"""

import ast
import random
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from replay import NOW, Lab, close, closes, fills, prepare, walked
from sqlalchemy import select

import alpha_trader
from alpha_trader.backtest import Backtest, fills_frame
from alpha_trader.bars import COLUMNS
from alpha_trader.books import decisions_of
from alpha_trader.context import RunContext, using_run
from alpha_trader.desk import open_desk
from alpha_trader.pipeline import Cycle, trade_cycle
from alpha_trader.samples import Events, synthetic_frames, synthetic_symbol
from alpha_trader.signals import Reason
from alpha_trader.store import EquityRow, begin_run, finish_run, reading, this_process

SESSIONS, START = 340, date(2019, 6, 3)
COLUMN_NAMES = ["session", "symbol", "quantity", "price", "fee", "reason"]
CHOICES: dict[str, list[object]] = {
    "signals.buy": [0.0001, 0.0005, 0.001],
    "signals.sell": [-0.0001, -0.001, -0.003],
    "signals.confidence": [0.0, 0.1, 0.2],
    "risk.max_positions": [2, 3, 7],
    "risk.stop_loss": [-0.01, -0.02, -0.05],
    "risk.take_profit": [0.01, 0.02, 0.05],
    "risk.take_profit_share": [0.5, 0.3333, 1.0],
    "risk.day_loss": [-0.02, -0.004, -0.001],
    "risk.swap_premium": [1.0, 1.5],
    "risk.cool_down": [0, 1, 3],
    "risk.stop_check": ["bar", "bar", "close"],
    "risk.fractional": ["false", "true"],
    "risk.cash": ["margin", "t1"],
    "costs.commission_per_share": [0.0, 0.005],
    "costs.half_spread": [0.0002, 0.002],
    "costs.impact": [0.01, 0.5],
    "label.horizon": [1, 2, 5],
    "broker.capital": [100_000, 20_000, 5_432.1],
}
SIZES = [(0.1, 0.8), (0.3, 0.8), (0.5, 1.0), (1.0, 1.0)]  # of one position, and of all
EXPIRIES = [262, 60, 23]  # sessions after which a model opens nothing new


def events(dice: random.Random, symbols: list[str]) -> Events:
    "What happens to the symbols, mostly while they are traded"
    day = lambda: dice.randrange(30, SESSIONS)  # noqa: E731
    late = lambda: dice.randrange(SESSIONS - 100, SESSIONS - 1)  # noqa: E731
    some = lambda most: dice.sample(symbols, dice.randint(1, min(most, len(symbols))))  # noqa: E731
    ratios = [2.0, 1.5, 0.1, 3.0, 4 / 3, 1 / 15, 10.0]
    return Events(
        splits=tuple((symbol, late(), dice.choice(ratios)) for symbol in some(5)),
        dividends=tuple((symbol, late(), round(dice.uniform(0.05, 2.5), 4)) for symbol in symbols),
        halts=tuple((symbol, when(), dice.randint(1, 12)) for symbol in some(5) for when in (day, late, late)),
        listings=tuple((symbol, dice.choice([40, SESSIONS - 120, SESSIONS - 70])) for symbol in some(2)),
    )


def frames(seed: int) -> dict[str, pd.DataFrame]:
    "The bars of a universe, by symbol"
    dice = random.Random(f"universe {seed}")
    symbols = [synthetic_symbol(number) for number in range(dice.randint(3, 8))]
    made = synthetic_frames(len(symbols), SESSIONS, seed, START, 0.0005, events(dice, symbols))
    for symbol, frame in made.items():
        lost = [
            dice.random() < 0.02 and not has_event
            for has_event in (frame[["split", "dividend"]] != [1.0, 0.0]).any(axis=1)
        ]
        left = frame[~np.array(lost)].copy()
        if dice.random() < 0.2:  # delisted
            left = left.iloc[: -dice.randint(3, 40)]
        if dice.random() < 0.2:  # a penny stock, quoted in hundredths of a cent
            left[["open", "high", "low", "close", "dividend"]] = (
                left[["open", "high", "low", "close", "dividend"]] / 100
            ).round(4)
        if dice.random() < 0.3:  # a jump that no split explains
            prices, late = ["open", "high", "low", "close"], left.index[-dice.randint(5, 50)] <= left.index
            left.loc[late, prices] = (left.loc[late, prices] * 1.35).round(4)
        if dice.random() < 0.3:  # hardly traded
            left["volume"] = np.maximum(np.round(left["volume"] / 1e5), 1)
        made[symbol] = left
    return made


def changes(seed: int) -> dict[str, object]:
    "The settings of a universe"
    dice = random.Random(f"settings {seed}")
    chosen = {name: dice.choice(values) for name, values in CHOICES.items()}
    chosen["risk.max_position"], chosen["risk.max_exposure"] = dice.choice(SIZES)
    chosen["model.expires_after"] = dice.choice(EXPIRIES)
    return chosen


def laboratory(root: Path, seed: int, sessions: int) -> Lab:
    "A workspace with the files of a universe, its bars ingested and a small model trained"
    made, folder = frames(seed), root / "files"
    folder.mkdir(parents=True)
    for number, (symbol, frame) in enumerate(made.items()):
        table = frame[list(COLUMNS)].rename_axis("date").reset_index()
        if number % 2:
            table.to_parquet(folder / f"{symbol}.parquet")
        else:
            table.assign(date=table["date"].dt.strftime("%Y-%m-%d")).to_csv(folder / f"{symbol}.csv", index=False)
    fixed: dict[str, object] = {
        "data.source": "folder", "data.folder": "files", "data.watchlist": ", ".join(made),
        "model.lightgbm_rounds": 20, "model.xgboost_rounds": 20, "model.min_train": 200, "model.threads": 1,
        "model.refit": "monthly", "run.paper_sessions": sessions,
    }  # fmt: skip
    return prepare(root, fixed | changes(seed))


def cycles(lab: Lab, reports: bool) -> Iterator[Cycle]:
    "Trade the sessions one after the other, with a daily report after each or after the last alone"
    for session in lab.sessions:
        run = begin_run(lab.engine, "trade", f"{session} decision", "demo", NOW, *this_process())
        context = RunContext(run.id, "trade", f"{session} decision", "demo", lab.settings, lab.engine, lambda: NOW)
        with using_run(context):
            yield trade_cycle(open_desk(str(session), "demo"))
        finish_run(lab.engine, run.id, "succeeded", NOW)
        if reports or session == lab.sessions[-1]:
            close(lab, session)


def same_decisions(lab: Lab, result: Backtest) -> None:
    "Every symbol of every session: the shares and the reason"
    symbols = result.panel.symbols
    theirs = decisions_of(lab.engine, "demo")
    rows = range(result.first, result.stop)
    ours = [
        (
            result.panel.sessions[row].item(),
            symbol,
            result.ledger.planned[row, n],
            Reason(result.ledger.verdict[row, n]).name,
        )
        for row in rows
        for n, symbol in enumerate(symbols)
    ]
    live = list(zip(theirs["session"], theirs["symbol"], theirs["quantity"].astype(float), theirs["code"], strict=True))
    for mine, his in zip(ours, live, strict=True):
        assert mine == his


def same_fills(lab: Lab, result: Backtest) -> pd.DataFrame:
    "Every fill; a fraction of a share after a split is a corporate action in live, and a fill in the walk"
    expected = fills_frame(result)[COLUMN_NAMES]
    expected = expected[expected["reason"] != "SPLIT_CASH"].sort_values(
        ["session", "symbol", "reason"], ignore_index=True
    )
    ours = fills(lab)
    pd.testing.assert_frame_equal(ours, expected, check_exact=True, check_dtype=False)
    return ours


def same_money(lab: Lab, result: Backtest, seen: list[Cycle]) -> None:
    "Cash and equity of every morning and every close"
    ledger = result.ledger
    parts = fills_frame(result)
    in_lieu = parts[parts["reason"] == "SPLIT_CASH"].groupby("session")["flow"].sum()
    cash = np.concatenate([[result.capital], ledger.cash[result.first : result.stop]])
    for n, cycle in enumerate(seen):
        paid = ledger.income[result.first + n] + in_lieu.get(pd.Timestamp(cycle.observation.session), 0.0)
        assert cycle.observation.account.cash == Decimal(str(round(float(cash[n] + paid), 2))), (
            cycle.observation.session
        )
    equity = closes(lab)
    np.testing.assert_array_equal(equity.to_numpy(), np.concatenate([[result.capital], result.equity]))
    with reading(lab.engine) as db:
        kept = db.scalars(select(EquityRow).filter_by(account="demo", kind="close").order_by(EquityRow.session)).all()
    np.testing.assert_array_equal([float(row.cash) for row in kept], cash)


def compare(root: Path, seed: int, sessions: int) -> dict[str, int]:
    "Trade a universe both ways; answers how much happened in it"
    lab, reports = laboratory(root, seed, sessions), seed % 2 == 0
    seen = list(cycles(lab, reports))
    result = walked(lab)
    same_decisions(lab, result)
    done = same_fills(lab, result)
    same_money(lab, result, seen)
    drifted = [
        cycle for cycle in seen if cycle.observation.reconciliation.drift or cycle.observation.reconciliation.cash_drift
    ]
    assert not drifted
    reasons = len(np.unique(result.ledger.verdict[result.first : result.stop]))
    return {"symbols": len(result.panel.symbols), "fills": len(done), "reasons": reasons} | done[
        "reason"
    ].value_counts().to_dict()


@pytest.mark.parametrize("seed", range(20))
def test_live_equals_backtest_in_a_random_universe(seed: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    slow = request.config.getoption("--slow")
    if seed > 1 and not slow:
        pytest.skip("needs --slow")
    happened = compare(tmp_path, seed, 90 if slow else 40)
    print(seed, happened)
    assert happened["reasons"] >= 4  # also where a falling market leaves nothing to buy
    assert happened["fills"] > 0 or seed > 2


def imported(module: str) -> dict[str, set[str]]:
    "What a module takes from each other module of the package"
    tree = ast.parse((Path(alpha_trader.__file__).parent / f"{module}.py").read_text())
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and (node.level or node.module.startswith("alpha_trader")):
            found.setdefault(node.module.removeprefix("alpha_trader."), set()).update(
                alias.name for alias in node.names
            )
    return found


def test_walk_and_simulated_broker_share_only_fills_rounding_and_costs() -> None:
    "Bars and errors are nouns; every rule that both obey stands in `fills`"
    walk, broker = imported("backtest"), imported("simulated")
    assert not {"simulated", "broker", "execution", "cycle", "store"} & set(walk)
    assert not {"backtest", "plan", "risk", "signals", "features"} & set(broker)
    shared = {module: walk[module] & broker[module] for module in walk.keys() & broker.keys()}
    assert shared.pop("fills") and shared == {"bars": {"Panel"}, "domain": {"InputError"}}
