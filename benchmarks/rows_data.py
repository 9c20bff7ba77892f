"""Bars from disk, and a decision from bars in memory"""

import tempfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Column, Date, Float, MetaData, String, create_engine, select
from sqlalchemy import Table as SqlTable

from alpha_trader.bars import Panel, load_panel, write_bars
from alpha_trader.cycle import Decision, decide, newest_inputs
from alpha_trader.features import FEATURES, features
from alpha_trader.labels import forward_return
from alpha_trader.models import Ensemble, fit_panel
from alpha_trader.samples import synthetic_frames, synthetic_panel
from alpha_trader.sessions import next_session
from alpha_trader.settings import LabelSettings, ModelSettings, Settings
from benchmarks.measure import Case, Row, Size, row
from benchmarks.peer_features import ta_features

FOLDER = tempfile.TemporaryDirectory(prefix="bench-")
COLUMNS = ("open", "high", "low", "close", "volume")


def sql_store(panel: Panel) -> tuple[Any, SqlTable]:
    "The bars as rows of an SQLite table"
    engine = create_engine(f"sqlite:///{FOLDER.name}/bars.db")
    numbers = [Column(name, Float) for name in COLUMNS]
    table = SqlTable(
        "bars",
        MetaData(),
        Column("symbol", String, primary_key=True),
        Column("session", Date, primary_key=True),
        *numbers,
    )
    table.metadata.create_all(engine)
    days = panel.sessions.tolist()
    with engine.begin() as connection:
        for n, symbol in enumerate(panel.symbols):
            bars = zip(days, *panel.values[:, :, n].tolist(), strict=True)
            connection.execute(
                table.insert(),
                [{"symbol": symbol, "session": bar[0], **dict(zip(COLUMNS, bar[1:], strict=True))} for bar in bars],
            )
    return engine, table


def load_sql(engine: Any, table: SqlTable) -> np.ndarray:  # float64[5, T, N]
    "All bars by a SELECT, as an array"
    with engine.connect() as connection:
        rows = connection.execute(select(table).order_by(table.c.session, table.c.symbol)).all()
    frame = pd.DataFrame(rows, columns=list(table.c.keys()))
    return np.stack([frame.pivot(index="session", columns="symbol", values=name).to_numpy() for name in COLUMNS])


@row("load")
def load_row(size: Size) -> Row:
    """All bars of a panel from disk into an array that is ready to compute

    Ours: `load_panel` from the cache, one Parquet file a symbol, each verified by its digest, events included.
    SQLAlchemy: a SELECT from one SQLite table, rows to a frame to an array, nothing verified. The files were read
    before and are in the system's page cache.
    """
    frames = synthetic_frames(size.load, size.sessions, 4)
    cache = Path(FOLDER.name) / "bars"
    for symbol, frame in frames.items():
        write_bars(cache, symbol, frame, "synthetic", "seed-4", datetime(2024, 1, 2, tzinfo=UTC))
    panel = load_panel(cache, list(frames))
    store = sql_store(panel)
    np.testing.assert_array_equal(load_sql(*store), panel.values)
    return Row(
        f"panel of {size.load:,} symbols × {size.sessions:,} bars from disk",
        Case("ours, load_panel", lambda: load_panel(cache, list(frames))),
        [Case("SQLAlchemy and SQLite", lambda: load_sql(*store))],
        ["the same array, bit for bit"],
    )


HISTORY = 400  # bars that a decision reads


def crowd(panel: Panel, symbols: int) -> Panel:
    "A panel of as many symbols, made of copies"
    times = -(-symbols // len(panel.symbols))
    arrays = {name: np.tile(getattr(panel, name), times)[..., :symbols] for name in ("values", "splits", "dividends")}
    return Panel(
        index=panel.index, symbols=tuple(f"S{n:05d}" for n in range(symbols)), source="copies", feed="none", **arrays
    )


def small_model(panel: Panel) -> Ensemble:
    "One LightGBM and one XGBoost member of 100 trees each"
    model = ModelSettings(seeds=(42,), lightgbm_rounds=100, xgboost_rounds=100)
    return fit_panel(features(panel), forward_return(panel, 5), len(panel.index) - 7, LabelSettings(), model)


def situation(panel: Panel, model: Ensemble) -> tuple[Any, Any]:
    "A desk and an observation with nothing held, as `decide` reads them"
    cash = Decimal(100_000)
    account = SimpleNamespace(cash=cash, settled_cash=cash, equity=cash)
    desk = SimpleNamespace(settings=Settings(), model=model, card=None)
    seen = SimpleNamespace(
        session=next_session(panel.sessions[-1].item()),
        panel=panel,
        splits=np.ones(len(panel.symbols)),
        positions={},
        others=(),
        pending={},
        busy={},
        gate=0,
        account=account,
    )
    return desk, seen


def decided(desk: Any, seen: Any) -> Decision:
    "Features of all bars, then the decision"
    seen.inputs = newest_inputs(desk, seen.panel)
    return decide(desk, seen)


def the_usual_way(frames: list[pd.DataFrame], model: Ensemble) -> list[tuple[float, int]]:
    "Symbol by symbol: features by `ta`, one prediction of each member for the newest bar, then sort"
    found = []
    for number, frame in enumerate(frames):
        newest = pd.DataFrame(ta_features(frame))[list(FEATURES)].iloc[-1:].to_numpy(np.float32)
        found.append((float(model.predict(newest).mean()), number))
    return sorted(found, reverse=True)


def check_predictions(panel: Panel, frames: list[pd.DataFrame], model: Ensemble) -> str:
    "The usual way predicts what ours predicts"
    theirs = {number: said for said, number in the_usual_way(frames, model)}
    mine = decided(*situation(panel, model)).members.mean(axis=0)
    np.testing.assert_allclose(mine[: len(frames)], [theirs[n] for n in range(len(frames))], rtol=1e-6, atol=1e-9)
    return f"the same predictions for {len(frames)} symbols"


def cycle_row(size: Size, symbols: int) -> Row:
    "The decision for so many symbols"
    base = synthetic_panel(symbols=min(symbols, 32), sessions=HISTORY, seed=6)
    panel, model = crowd(base, symbols), small_model(base)
    situated = situation(panel, model)
    fields = dict(zip(COLUMNS, range(5), strict=True))
    frames = [
        pd.DataFrame({name: np.ascontiguousarray(panel.values[k, :, n]) for name, k in fields.items()})
        for n in range(min(size.sampled * 2, symbols))
    ]
    usual = Case(
        "ta and one prediction per symbol",
        lambda: the_usual_way(frames, model),
        scale=symbols / len(frames),
        needs="ta",
        bar=100 if symbols >= 1000 else 0,
    )
    return Row(
        f"decision for {symbols:,} symbols × {HISTORY} bars in memory: features, predictions, plan",
        Case("ours, features and decide", lambda: decided(*situated)),
        [usual],
        [check_predictions(panel, frames, model)] if usual.available() else [],
    )


@row("cycle")
def small_cycle_row(size: Size) -> Row:
    """The decision of a trade cycle without HTTP, for a watchlist

    Ours: `newest_inputs` and `decide`, the pure part of `trade_cycle`: features of all bars, every member's
    predictions, blocks, volatility, costs, the plan and the named inputs of each prediction. The usual way: for each
    symbol a frame, the features by `ta`, a prediction of one line; no plan, no volatility. Some symbols are done, the
    time is scaled.
    """
    return cycle_row(size, size.portfolio)


@row("cycle-5000")
def large_cycle_row(size: Size) -> Row:
    "The decision of a trade cycle without HTTP, for a whole market; compared as `cycle`"
    return cycle_row(size, size.many)
