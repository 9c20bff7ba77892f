"""Helpers of the whole-way tests: a small workspace, and sessions traded in it without the notebook around them"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pandas as pd
from sqlalchemy import Engine

from alpha_trader.backtest import Backtest, run_backtest
from alpha_trader.books import account_fills, equity_of
from alpha_trader.context import RunContext, using_run
from alpha_trader.desk import champion, open_desk, sessions_to_trade
from alpha_trader.parity import world_of
from alpha_trader.pipeline import close_day, ingest, trade_cycle
from alpha_trader.research import load_bars
from alpha_trader.samples import source_for
from alpha_trader.settings import Settings, load_settings
from alpha_trader.store import begin_run, finish_run, open_store, this_process
from alpha_trader.training import train

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)  # the clock on the wall, which no decision may read
SMALL = {  # fitted in seconds
    "model.min_train": 2900,
    "model.lightgbm_rounds": 15,
    "model.xgboost_rounds": 15,
    "signals.buy": 0.001,
    "signals.sell": -0.001,
    "signals.confidence": 0.5,
}


def write_settings(root: Path, changes: dict[str, object]) -> Settings:
    "Write a `settings.ini` that differs from the shipped defaults by `changes`"
    sections: dict[str, list[str]] = {}
    for name, value in changes.items():
        section, key = name.split(".")
        sections.setdefault(section, []).append(f"{key} = {value}")
    root.mkdir(parents=True, exist_ok=True)
    text = "\n".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())
    (root / "settings.ini").write_text(text)
    return load_settings(root, {})


@dataclass(frozen=True)
class Lab:
    "A workspace with bars and a champion"

    settings: Settings
    engine: Engine
    sessions: tuple[date, ...]


def prepare(root: Path, changes: dict[str, object]) -> Lab:
    "Settings, bars and a model fitted before the first session that will be traded"
    settings = write_settings(root, changes)
    engine = open_store(settings.store_url)
    ingest(settings, engine, NOW)
    sessions = sessions_to_trade(settings, source_for(settings).last_session())
    train(settings, engine, sessions[0], NOW)
    return Lab(settings, engine, sessions)


def trade(lab: Lab, sessions: Iterable[date], account: str = "demo") -> None:
    "Trade sessions one after the other, as the run notebook does"
    for session in sessions:
        run = begin_run(lab.engine, "trade", f"{session} decision", account, NOW, *this_process())
        context = RunContext(run.id, "trade", f"{session} decision", account, lab.settings, lab.engine, lambda: NOW)
        with using_run(context):
            trade_cycle(open_desk(str(session), account))
        finish_run(lab.engine, run.id, "succeeded", NOW)


def close(lab: Lab, session: date, account: str = "demo") -> None:
    "Close the last day"
    run = begin_run(lab.engine, "daily_report", f"{session} close", account, NOW, *this_process())
    context = RunContext(run.id, "daily_report", f"{session} close", account, lab.settings, lab.engine, lambda: NOW)
    with using_run(context):
        close_day(str(session), account)
    finish_run(lab.engine, run.id, "succeeded", NOW)


def walked(lab: Lab) -> Backtest:
    "The same sessions by the compiled walk, on the champion's predictions, with its expiry and the drift since its fit"
    panel = load_bars(lab.settings)
    row = champion(lab.settings, lab.engine, panel)
    assert row is not None
    forecast = world_of(panel, lab.settings, row.id).forecast
    capital, span = float(lab.settings.broker.capital), (lab.sessions[0], lab.sessions[-1])
    return run_backtest(panel, forecast.predicted, forecast.confidence, lab.settings, capital, *span, forecast.gate)


def fills(lab: Lab, account: str = "demo") -> pd.DataFrame:
    "What was filled, in an order that does not depend on when it was noticed"
    table = account_fills(lab.engine, account)[["session", "symbol", "quantity", "price", "fee", "reason"]]
    return table.sort_values(["session", "symbol", "reason"], ignore_index=True)


def closes(lab: Lab, account: str = "demo") -> pd.Series:
    "Equity at each close"
    return equity_of(lab.engine, account)
