"""Walk, live plan and simulated broker agree with the plain-Python replay of `oracle.py`, to the last digit

A world is described by a `Blueprint`: few enough numbers for Hypothesis to shrink, each stock with a stream of random
numbers of its own, so that leaving out a session or a stock leaves everything else as it was. What a failure prints is
the blueprint: paste it under `CASES` and it is tried at every run.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import Bar, Fill, Journal, Opinion, Rules, Session, replay

from alpha_trader.backtest import (
    Ledger,
    blank_ledger,
    forecast_of,
    market_history,
    opening_state,
    run_backtest,
    tape_of,
    walk,
)
from alpha_trader.bars import Panel
from alpha_trader.cycle import Observation, book_of, exact, funds_of, market_of, price_of, purpose_of
from alpha_trader.domain import Account, OrderIntent, OrderStatus, OrderType, Purpose, Rejected, Side
from alpha_trader.execution import Reconciliation
from alpha_trader.features import volatility
from alpha_trader.fills import cost_rules, exit_level
from alpha_trader.plan import Orders, empty_orders, plan, plan_rules, recheck_entries, wishes_of
from alpha_trader.research import Outlook
from alpha_trader.risk import day_loss_breached, risk_rules, target_quantity
from alpha_trader.sessions import open_index, session_close, session_open, sessions_between
from alpha_trader.settings import SECTIONS, Settings
from alpha_trader.signals import Reason
from alpha_trader.simulated import SimBroker
from alpha_trader.store import PositionRow, move_position

DAYS = open_index(sessions_between(date(2020, 1, 2), date(2020, 12, 31)))
CAPITAL = 100_000.0


# ---------------------------------------------------------------------- worlds
@dataclass(frozen=True)
class Stock:
    "One symbol of a world"

    seed: int = 0
    price: float = 25.0  # USD per share of its first close
    swing: float = 0.02  # standard deviation of daily returns, fraction
    steps: bool = False  # moves in whole steps of `swing`, so that limits are met exactly
    listed: int = 0  # row of its first bar
    gone: int = 10_000  # row after its last bar
    gaps: float = 0.0  # share of sessions without a bar
    volume: float = 1e6  # shares a session
    eager: float = 0.5  # share of predictions above the threshold to buy
    gloomy: float = 0.1  # share of predictions below the threshold to sell
    silent: float = 0.0  # share of unknown predictions, confidences and volatilities


@dataclass(frozen=True)
class Blueprint:
    "A world, an account and its settings"

    stocks: tuple[Stock, ...]
    sessions: int
    first: int = 1  # row of the first session traded
    capital: float = CAPITAL  # USD
    splits: tuple[tuple[int, int, float], ...] = ()  # row, stock, shares after per share before
    dividends: tuple[tuple[int, int, float], ...] = ()  # row, stock, fraction of the last close
    moves: tuple[tuple[int, int, float], ...] = ()  # row, stock, factor of the night before
    gates: tuple[tuple[int, int], ...] = ()  # row, `Reason` against all entries in the next session
    changed: tuple[tuple[str, Any], ...] = ()  # "section.key" and value, where not as shipped


@dataclass(frozen=True)
class World:
    "What the compiled side is given"

    panel: Panel
    predicted: np.ndarray  # [T, N] known after the close of the row, as are the next two
    confidence: np.ndarray
    volatility: np.ndarray
    gate: np.ndarray  # [T]
    settings: Settings


def on_tick(price: float) -> float:
    "A price that can be quoted"
    return max(round(price, 2), 0.01) if price >= 1.0 else max(round(price, 4), 0.0001)


def moved(stock: Stock, draw: float) -> float:
    "The factor of one move, from a standard normal draw"
    return max(1.0 + stock.swing * (round(draw) if stock.steps else draw), 0.05)


def history(
    stock: Stock,
    sessions: int,
    splits: dict[int, float],  # row → shares after per share before
    moves: dict[int, float],  # row → factor of the night before
) -> np.ndarray:  # [5, T] open, high, low, close, volume; NaN = no bar
    "The bars of one stock"
    values, known = np.full((5, sessions), np.nan), stock.price
    for row in range(sessions):
        stream = random.Random(f"{stock.seed} bar {row}")
        night, day, up, down = (stream.gauss(0, 1) for _ in range(4))
        known = known / splits.get(row, 1.0)
        traded = stock.listed <= row < stock.gone and stream.random() >= stock.gaps
        opened = on_tick(known * moved(stock, night / 2) * moves.get(row, 1.0))
        closed = on_tick(opened * moved(stock, day))
        high = max(opened, closed, on_tick(opened * moved(stock, abs(up))))
        low = min(opened, closed, on_tick(opened * moved(stock, -abs(down))))
        if traded:
            values[:, row] = opened, high, low, closed, round(stock.volume * stream.uniform(0.5, 1.5))
        known = closed
    return values


def dividend(
    closes: np.ndarray,  # of the sessions before
    splits: np.ndarray,  # of the same sessions and this one
    part: float,  # fraction of the last close
) -> float:  # USD per share after the split of this session
    "A dividend that the price can bear"
    known = 1.0
    for row, ratio in enumerate(splits):
        known = known / ratio
        if row < len(closes) and not np.isnan(closes[row]):
            known = closes[row]
    return math.floor(known * part * 1e6) / 1e6


def opinions(
    stock: Stock,
    sessions: int,
    buy: float,
    sell: float,
    confident: float,
) -> np.ndarray:  # [3, T] predicted, confidence, volatility
    "What is believed of one stock: often near the thresholds, sometimes exactly on them"
    values = np.full((3, sessions), np.nan)
    for row in range(sessions):
        stream = random.Random(f"{stock.seed} opinion {row}")
        kind = stream.random()
        if kind < stock.eager:
            predicted = stream.choice([buy * stream.uniform(1, 6), 2 * buy, 3 * buy])
        elif kind < stock.eager + stock.gloomy:
            predicted = sell * stream.uniform(1, 4)
        else:
            predicted = stream.choice([stream.uniform(sell, buy), 0.0, buy, sell])
        confidence = stream.choice([0.95, 0.95, 0.9, 1.0, stream.uniform(confident, 1), confident, stream.random()])
        swing = stream.choice([0.0, 0.01, 0.015, stream.uniform(0.01, 0.06)])
        values[:, row] = [math.nan if stream.random() < stock.silent else it for it in (predicted, confidence, swing)]
    return values


def settings_of(blueprint: Blueprint) -> Settings:
    "The shipped settings with the changes of a blueprint"
    changes: dict[str, dict[str, Any]] = {}
    for name, value in blueprint.changed:
        section, _, key = name.partition(".")
        changes.setdefault(section, {})[key] = value
    return Settings(**{section: SECTIONS[section](**values) for section, values in changes.items()})


def build(blueprint: Blueprint) -> World:
    "The arrays a blueprint describes"
    count, sessions = len(blueprint.stocks), blueprint.sessions
    chosen = settings_of(blueprint)
    splits, dividends = np.ones((sessions, count)), np.zeros((sessions, count))
    for row, number, ratio in blueprint.splits:
        splits[row, number] = ratio
    values, beliefs = np.full((5, sessions, count), np.nan), np.full((3, sessions, count), np.nan)
    for number, stock in enumerate(blueprint.stocks):
        moves = {row: factor for row, whose, factor in blueprint.moves if whose == number}
        values[:, :, number] = history(stock, sessions, dict(enumerate(splits[:, number])), moves)
        signals = chosen.signals
        beliefs[:, :, number] = opinions(stock, sessions, signals.buy, signals.sell, signals.confidence)
    for row, number, part in blueprint.dividends:
        dividends[row, number] = dividend(values[3, :row, number], splits[: row + 1, number], part)
    gate = np.zeros(sessions, dtype=np.int64)
    for row, reason in blueprint.gates:
        gate[row] = reason
    symbols = tuple(f"S{letter}" for letter in "ABCDEF"[:count])
    panel = Panel(DAYS[:sessions], symbols, values, splits, dividends, "random", "oracle")
    return World(panel, *beliefs, gate, chosen)


# ---------------------------------------------------------------------- both sides
def sessions_of(world: World) -> list[Session]:
    "The world as the replay reads it: what is believed after a close is known in the next session"
    panel, sessions = world.panel, []
    for row in range(len(panel.index)):
        columns = dict(enumerate(panel.symbols))
        beliefs = (world.predicted, world.confidence, world.volatility)
        sessions.append(
            Session(
                {
                    symbol: Bar(*panel.values[:, row, n].tolist())
                    for n, symbol in columns.items()
                    if not np.isnan(panel.close[row, n])
                },
                {symbol: float(panel.splits[row, n]) for n, symbol in columns.items() if panel.splits[row, n] != 1.0},
                {symbol: float(panel.dividends[row, n]) for n, symbol in columns.items() if panel.dividends[row, n]},
                {symbol: Opinion(*(float(view[row - 1, n]) for view in beliefs)) for n, symbol in columns.items()},
                Reason(world.gate[row - 1]),
            )
        )
    return sessions


def replayed(world: World, first: int, stop: int, capital: float) -> Journal:
    "The slow side"
    chosen = world.settings
    costs = cost_rules(chosen.costs)
    rules = Rules(chosen.risk, chosen.signals, costs, chosen.label.horizon, chosen.data.max_move)
    return replay(list(world.panel.symbols), sessions_of(world)[:stop], rules, capital, first)


def walked(world: World, first: int, stop: int, capital: float) -> Ledger:
    "The compiled side"
    panel, chosen = world.panel, world.settings
    rules, (sessions, count) = plan_rules(chosen), panel.close.shape
    forecast = forecast_of(panel, world.predicted, world.confidence, chosen.data.max_move, world.gate)
    forecast = forecast._replace(volatility=np.ascontiguousarray(world.volatility))
    state, ledger = opening_state(count, capital), blank_ledger(sessions, count, rules.risk.max_positions)
    costs, orders = cost_rules(chosen.costs), empty_orders(count)
    market = market_history(forecast, costs)
    wishes = wishes_of(count, market, rules.signals)
    walk(tape_of(panel), market, wishes, forecast, rules, costs, first, first, stop, state, ledger, orders)
    return ledger


def journal_of(
    ledger: Ledger,
    symbols: tuple[str, ...],
    first: int,
    stop: int,
) -> Journal:
    "A ledger in the words of the replay"
    journal, used = Journal(), int(ledger.used[0])
    columns = (ledger.row, ledger.symbol, ledger.quantity, ledger.price, ledger.fee, ledger.reason)
    for row, symbol, quantity, price, fee, reason in zip(*(each[:used].tolist() for each in columns), strict=True):
        journal.fills.append(Fill(row, symbols[symbol], quantity, price, fee, Reason(reason)))
    for row in range(first, stop):
        journal.reasons[row] = {symbol: Reason(ledger.verdict[row, n]) for n, symbol in enumerate(symbols)}
        planned = zip(symbols, ledger.planned[row].tolist(), strict=True)
        journal.planned[row] = {symbol: shares for symbol, shares in planned if shares != 0.0}
        journal.income[row] = round(float(ledger.income[row]), 2)  # a sum of whole cents
        journal.cash[row], journal.equity[row] = float(ledger.cash[row]), float(ledger.equity[row])
    return journal


def first_difference(
    ours: Journal,  # of the compiled side
    theirs: Journal,  # of the replay
    first: int,
    stop: int,
) -> str:  # empty when there is none
    "The first session that went differently, and how"
    for row in range(first, stop):
        for name in ("reasons", "planned", "fills", "income", "cash", "equity"):
            if name == "fills":
                pair = [[fill for fill in journal.fills if fill.row == row] for journal in (ours, theirs)]
            else:
                pair = [getattr(journal, name)[row] for journal in (ours, theirs)]
            if pair[0] != pair[1]:
                return f"row {row}, {name}:\n  compiled {pair[0]}\n  replayed {pair[1]}"
    return "" if ours.fills == theirs.fills else "the fills are not in the order of their sessions"


def check(blueprint: Blueprint) -> Journal:  # of the replay
    "Walk a world on both sides; every reason, plan, fill and balance is the same"
    world, first, stop = build(blueprint), blueprint.first, blueprint.sessions
    theirs = replayed(world, first, stop, blueprint.capital)
    ours = journal_of(walked(world, first, stop, blueprint.capital), world.panel.symbols, first, stop)
    difference = first_difference(ours, theirs, first, stop)
    assert not difference, f"{difference}\n  in {blueprint}"
    return theirs


def check_whole(blueprint: Blueprint) -> Journal:  # of the replay
    "The same through `run_backtest`, which measures the volatility itself and may stop before the last bar"
    drawn = build(blueprint)
    world, first, stop = replace(drawn, volatility=volatility(drawn.panel)), blueprint.first, blueprint.sessions - 2
    days = [day.astype(object) for day in world.panel.sessions[[first, stop - 1]]]
    beliefs = (world.predicted, world.confidence, world.settings)
    result = run_backtest(world.panel, *beliefs, blueprint.capital, *days, world.gate)
    assert (result.first, result.stop) == (first, stop)
    theirs = replayed(world, first, stop, blueprint.capital)
    difference = first_difference(journal_of(result.ledger, world.panel.symbols, first, stop), theirs, first, stop)
    assert not difference, f"{difference}\n  in {blueprint}"
    return theirs


# ---------------------------------------------------------------------- the live side
NOTHING_NEW: dict[str, Any] = {
    "resolved": (),
    "new_fills": 0,
    "new_actions": 0,
    "strangers": (),
    "drift": {},
    "frozen": {},
}


@dataclass
class Live:
    "The plan as live makes it, its orders sent to the simulated broker; no store in between"

    world: World
    broker: SimBroker
    journal: Journal = field(default_factory=Journal)
    rows: dict[str, PositionRow] = field(default_factory=dict)
    reasons: dict[str, Reason] = field(default_factory=dict)  # by client id
    booked: set[str] = field(default_factory=set)  # fills
    closes: list[float] = field(default_factory=list)  # USD, of equity, the capital first

    def position(self, symbol: str) -> PositionRow:
        blank = {"entry_session": None, "half_taken": False, "last_stop_session": None}
        amounts = {"quantity": Decimal(0), "average_price": Decimal(0)}
        return self.rows.setdefault(
            symbol, PositionRow(account="demo", symbol=symbol, updated_at=self.broker.now, **amounts, **blank)
        )

    def learn_actions(self, row: int, day: date) -> None:
        "What the broker booked at the opening"
        income = Decimal(0)
        for action in self.broker.corporate_actions(session_open(day)):
            held = self.position(action.symbol)
            if action.session == day and action.kind == "split":
                held.quantity += action.quantity
                held.average_price = round(held.average_price / action.amount, 6)
                if not held.quantity:
                    move_position(held, Decimal(0), Decimal(0), day)
            elif action.session == day and action.kind == "dividend":
                income += action.cash
        self.journal.income[row] = float(income)

    def learn_fills(self, row: int, day: date) -> None:
        "What was filled since the last look"
        for fill in self.broker.fills(session_open(day)):
            if fill.fill_id in self.booked:
                continue
            self.booked.add(fill.fill_id)
            held, reason = self.position(fill.symbol), self.reasons[str(fill.client_id)]
            move_position(held, fill.signed_quantity, fill.price, day)
            held.last_stop_session = day if reason == Reason.STOP_LOSS else held.last_stop_session
            held.half_taken = held.half_taken or (reason == Reason.TAKE_PROFIT and held.quantity > 0)
            amounts = (float(fill.signed_quantity), float(fill.price), float(fill.fee))
            self.journal.fills.append(Fill(row, fill.symbol, *amounts, reason))

    def send(self, day: date, symbol: str, quantity: float, reason: Reason, **prices: Any) -> bool:  # was it filled?
        "One order, named as the cycle names it"
        purpose = Purpose.ENTRY if quantity > 0 else purpose_of(reason)
        side = Side.BUY if quantity > 0 else Side.SELL
        intent = OrderIntent("demo", "demo", day, symbol, side, purpose, exact(abs(quantity)), **prices)
        self.reasons[intent.client_id] = reason
        try:
            return self.broker.submit(intent).status is OrderStatus.FILLED
        except Rejected:
            return False

    def plan(self, row: int, day: date, account: Account) -> tuple[Observation, Orders]:
        "The plan on bars up to the session before"
        world, chosen, known = self.world, self.world.settings, row - 1
        self.closes.append(float(account.last_equity))
        lost = len(self.closes) > 1 and day_loss_breached(self.closes[-1], self.closes[-2], risk_rules(chosen.risk))
        gate = Reason.DAY_LOSS if lost else Reason(world.gate[known])
        panel, splits = world.panel.upto(world.panel.sessions[known].item()), world.panel.splits[row]
        calm = Reconciliation(account, {}, cash_drift=Decimal(0), **NOTHING_NEW)
        seen = Observation(day, self.broker.now, account, panel, splits, self.rows, (), {}, {}, ((gate, ""),), calm)
        predicted, confidence = world.predicted[known], world.confidence[known]
        unasked = [np.full(len(panel.symbols), np.nan)] * 4
        market = market_of(seen, Outlook(predicted, *unasked, confidence, np.zeros(0, dtype=np.int64)), chosen)
        market = market._replace(volatility=world.volatility[known])
        orders = plan(market, book_of(seen), funds_of(seen, chosen), plan_rules(chosen), seen.gate)
        symbols = panel.symbols
        self.journal.reasons[row] = {symbol: Reason(orders.reason[n]) for n, symbol in enumerate(symbols)}
        self.journal.planned[row] = {s: float(q) for s, q in zip(symbols, orders.quantity, strict=True) if q}
        self.carry_out(row, day, seen, market, orders)
        return seen, orders

    def carry_out(self, row: int, day: date, seen: Observation, market: Any, orders: Orders) -> None:
        "Exits, entries that fit, protection"
        chosen, symbols = self.world.settings, seen.panel.symbols
        exits = [n for n in range(len(symbols)) if orders.quantity[n] < 0]
        leaving = {
            symbols[n] for n in exits if not self.send(day, symbols[n], orders.quantity[n], Reason(orders.reason[n]))
        }
        self.learn_fills(row, day)
        if leaving:
            held = np.array([float(self.rows[symbol].quantity) if symbol in self.rows else 0.0 for symbol in symbols])
            recheck_entries(market, held, funds_of(seen, chosen), plan_rules(chosen), orders)
        for n in sorted(np.flatnonzero(orders.quantity > 0), key=lambda n: orders.rank[n]):
            self.send(day, symbols[n], orders.quantity[n], Reason(orders.reason[n]))
        self.learn_fills(row, day)
        if chosen.risk.stop_check == "bar":
            for symbol in sorted(
                symbol for symbol, held in self.rows.items() if held.quantity and symbol not in leaving
            ):
                self.protect(day, symbol)

    def protect(self, day: date, symbol: str) -> None:
        "A stop, and a target that was not taken yet"
        held, rules = self.rows[symbol], risk_rules(self.world.settings.risk)
        average, shares = float(held.average_price), float(held.quantity)
        group = {"oco_group": f"{symbol} {day}"}
        stop, target = (price_of(exit_level(average, rate)) for rate in (rules.stop_loss, rules.take_profit))
        self.send(day, symbol, -shares, Reason.STOP_LOSS, order_type=OrderType.STOP, stop_price=stop, **group)
        if not held.half_taken:
            part = -target_quantity(shares, rules)
            self.send(day, symbol, part, Reason.TAKE_PROFIT, order_type=OrderType.LIMIT, limit_price=target, **group)

    def trade(self, row: int) -> None:
        "One session from its opening to its close"
        day = self.world.panel.sessions[row].item()
        self.broker.advance(session_open(day))
        self.learn_actions(row, day)
        self.plan(row, day, self.broker.account())
        self.broker.advance(session_close(day))
        self.learn_fills(row, day)
        account = self.broker.account()
        self.journal.cash[row], self.journal.equity[row] = float(account.cash), float(account.equity)


def lived(world: World, first: int, stop: int, capital: float, book: Path) -> Journal:
    "The live side"
    chosen, opening = world.settings, session_open(world.panel.sessions[first].item())
    costs, rules = cost_rules(chosen.costs), chosen.risk
    broker = SimBroker(book, world.panel, opening, "demo", Decimal(str(capital)), costs, rules.fractional, rules.cash)
    broker.desk.book.execute("PRAGMA synchronous = OFF")
    live = Live(world, broker)
    for row in range(first, stop):
        live.trade(row)
    broker.close()
    return live.journal


def without_fractions(journal: Journal) -> Journal:
    "Fills by symbol; a fraction of a share that a split leaves is a corporate action at a broker, and no fill"
    fills = [fill for fill in journal.fills if fill.reason != Reason.SPLIT_CASH]
    return replace(
        journal, fills=sorted(fills, key=lambda fill: (fill.row, fill.symbol, fill.quantity < 0, fill.reason))
    )


def check_live(blueprint: Blueprint, book: Path) -> Journal:  # of the replay
    "Trade a world with live plan and simulated broker; every reason, plan, fill and balance is the replay's"
    world, first, stop = build(blueprint), blueprint.first, blueprint.sessions
    theirs = without_fractions(replayed(world, first, stop, blueprint.capital))
    ours = without_fractions(lived(world, first, stop, blueprint.capital, book))
    difference = first_difference(ours, theirs, first, stop)
    assert not difference, f"{difference}\n  in {blueprint}"
    return theirs


# ---------------------------------------------------------------------- random worlds
CHOICES: dict[str, list[Any]] = {
    "signals.buy": [0.005, 0.001, 0.02],
    "signals.sell": [-0.005, -0.001, -0.02],
    "signals.confidence": [0.7, 0.0, 0.5],
    "risk.max_positions": [2, 7, 1, 3],
    "risk.stop_loss": [-0.05, -0.01, -0.02, -0.2],
    "risk.take_profit": [0.10, 0.01, 0.02, 0.05],
    "risk.take_profit_share": [0.5, 0.1, 1 / 3, 1.0],
    "risk.day_loss": [-0.02, -0.2, -0.005, -0.001],
    "risk.volatility_target": [0.015, 0.005, 0.05],
    "risk.swap_premium": [1.5, 1.0, 3.0],
    "risk.cool_down": [3, 0, 1, 5],
    "risk.stop_check": ["bar", "close"],
    "risk.fractional": [False, True],
    "risk.cash": ["margin", "t1"],
    "costs.commission_rate": [0.001, 0.0, 0.01],
    "costs.commission_per_share": [0.0, 0.0, 0.005, 1.0],
    "costs.half_spread": [0.0002, 0.0, 0.01],
    "costs.slippage": [0.0001, 0.0, 0.005],
    "costs.impact": [0.01, 0.0, 0.01, 0.0, 1.0],
    "label.horizon": [5, 12, 2, 1],
    "data.max_move": [0.25, 1.0, 0.05],
}
SIZES = [(0.10, 0.80), (0.30, 0.80), (0.20, 0.50), (0.30, 0.30), (0.60, 1.0), (1.0, 1.0)]  # of one, and of all
COSTS = ("costs.commission_rate", "costs.commission_per_share", "costs.half_spread", "costs.slippage")


@st.composite
def changes(draw: st.DrawFn) -> tuple[tuple[str, Any], ...]:
    "Settings that differ from those shipped; costs are never zero"
    chosen = {name: draw(st.sampled_from(values)) for name, values in CHOICES.items()}
    chosen["risk.max_position"], chosen["risk.max_exposure"] = draw(st.sampled_from(SIZES))
    if sum(chosen[name] for name in COSTS) == 0.0:
        chosen["costs.commission_rate"] = 0.001
    shipped = Settings()
    places = {name: name.partition(".")[::2] for name in chosen}
    now = {name: getattr(getattr(shipped, section), key) for name, (section, key) in places.items()}
    return tuple((name, value) for name, value in chosen.items() if value != now[name])


def stocks(
    sessions: int,  # of the world
) -> st.SearchStrategy[Stock]:
    "Quiet and wild, cheap and dear, thin and liquid, listed late and gone early"
    return st.builds(
        Stock,
        seed=st.integers(0, 9999),
        price=st.sampled_from([25.0, 10.0, 100.0, 0.97, 0.03, 4000.0]),
        swing=st.sampled_from([0.01, 0.02, 0.005, 0.05, 0.1, 0.3]),
        steps=st.booleans(),
        listed=st.sampled_from([0, 0, 0, 0, 3, sessions // 2]),
        gone=st.sampled_from([10_000, 10_000, 10_000, sessions - 2, sessions // 2 + 3]),
        gaps=st.sampled_from([0.0, 0.0, 0.05, 0.1, 0.3]),
        volume=st.sampled_from([1e6, 1e6, 1e3, 10.0, 0.0]),
        eager=st.sampled_from([0.5, 0.2, 0.8]),
        gloomy=st.sampled_from([0.1, 0.0, 0.2]),
        silent=st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.3]),
    )


def events(
    sessions: int,
    count: int,  # of stocks
    sizes: list[float],
) -> st.SearchStrategy[tuple[tuple[int, int, float], ...]]:
    "Up to twelve events, at most one for a stock in a session"
    one = st.tuples(st.integers(0, sessions - 1), st.integers(0, count - 1), st.sampled_from(sizes))
    return st.lists(one, max_size=12, unique_by=lambda event: event[:2]).map(tuple)


@st.composite
def blueprints(draw: st.DrawFn, shortest: int = 15) -> Blueprint:
    "Small worlds in which everything happens"
    sessions = draw(st.integers(shortest, 60))
    chosen = draw(st.lists(stocks(sessions), min_size=2, max_size=6))
    count = len(chosen)
    gates = st.tuples(
        st.integers(0, sessions - 1), st.sampled_from([int(Reason.MODEL_EXPIRED), int(Reason.MODEL_MISSING)])
    )
    return Blueprint(
        stocks=tuple(chosen),
        sessions=sessions,
        first=draw(st.sampled_from([1, 1, 1, 2, sessions // 2])),
        capital=draw(st.sampled_from([CAPITAL, 10_000.0, 1_000.0, 1_000.0, 250.55, 37.0])),
        splits=draw(events(sessions, count, [2.0, 1.5, 0.1, 3.0, 0.2, 20.0, 4 / 3])),
        dividends=draw(events(sessions, count, [0.01, 0.002, 0.1, 0.5])),
        moves=draw(events(sessions, count, [0.5, 2.0, 0.85, 1.2, 0.1])),
        gates=draw(st.lists(gates, max_size=2, unique_by=lambda gate: gate[0]).map(tuple)),
        changed=draw(changes()),
    )


def trials(
    request: pytest.FixtureRequest,
    few: int,
    many: int,  # with --slow
) -> settings:
    "How Hypothesis is asked: always the same cases, nothing remembered on disk"
    return settings(
        max_examples=many if request.config.getoption("--slow") else few,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


DECIDED = {
    Reason.HOLD, Reason.STOP_LOSS, Reason.TAKE_PROFIT, Reason.SELL_SIGNAL, Reason.HORIZON, Reason.SWAP_OUT,
    Reason.ENTRY, Reason.SWAP_IN, Reason.SWAP_WAITS, Reason.NO_SIGNAL, Reason.LOW_CONFIDENCE, Reason.SELL_FLAT,
    Reason.NO_DATA, Reason.JUMP, Reason.NO_PREDICTION, Reason.COOL_DOWN, Reason.DAY_LOSS, Reason.MODEL_EXPIRED,
    Reason.MODEL_MISSING, Reason.MAX_POSITIONS, Reason.MAX_EXPOSURE, Reason.TOO_SMALL, Reason.NO_CASH,
}  # fmt: skip
FILLED = {
    Reason.ENTRY, Reason.SWAP_IN, Reason.SWAP_OUT, Reason.STOP_LOSS, Reason.TAKE_PROFIT, Reason.SELL_SIGNAL,
    Reason.HORIZON, Reason.SPLIT_CASH,
}  # fmt: skip
MISSED = {Reason.NOT_FILLED, Reason.NO_FUNDS, Reason.EXIT_NOT_FILLED}


def test_plan_and_ledger_are_the_replay(request: pytest.FixtureRequest) -> None:
    "Reasons, plans, fills, cash and equity of every session agree; and the worlds leave no rule out"
    decided: Counter[Reason] = Counter()
    filled: Counter[Reason] = Counter()
    missed: Counter[Reason] = Counter()

    @trials(request, 150, 1000)
    @given(blueprints())
    def agree(blueprint: Blueprint) -> None:
        journal = check(blueprint)
        decided.update(reason for reasons in journal.reasons.values() for reason in reasons.values())
        filled.update(fill.reason for fill in journal.fills)
        missed.update(reason for reasons in journal.missed.values() for reason in reasons.values())

    agree()
    assert (set(decided), set(filled), set(missed)) == (DECIDED, FILLED, MISSED)


def test_the_whole_backtest_is_the_replay(request: pytest.FixtureRequest) -> None:
    "`run_backtest` hands the walk what the replay was told: dates, beliefs, volatility, gates and capital"
    fills: list[int] = []

    @trials(request, 25, 200)
    @given(blueprints(shortest=40))
    def agree(blueprint: Blueprint) -> None:
        fills.append(len(check_whole(blueprint).fills))

    agree()
    assert sum(fills) > len(fills)


def test_live_plan_and_simulated_broker_are_the_replay(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    "What live would plan and the simulated broker fill, session by session"
    fills: list[int] = []

    @trials(request, 20, 1000)
    @given(blueprints())
    def agree(blueprint: Blueprint) -> None:
        book = tmp_path / f"{len(fills)}.sqlite"
        for file in tmp_path.glob(f"{book.name}*"):  # of a case that failed and is shrunk
            file.unlink()
        fills.append(len(check_live(blueprint, book).fills))

    agree()
    assert sum(fills) > len(fills)


CALM, PENNY = Stock(swing=0.01), Stock(626, 0.03, 0.1, steps=True, gone=13)
CASES = {
    "as shipped": Blueprint(tuple(Stock(seed) for seed in range(6)), 60),
    "two splits without a bar between them": Blueprint(
        (CALM, CALM, CALM, CALM, PENNY, CALM),
        21,
        splits=((17, 4, 4 / 3), (15, 4, 4 / 3)),
        moves=((7, 4, 1.2),),
        changed=(("risk.max_positions", 2), ("risk.stop_check", "close")),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_worlds_that_once_differed_or_are_easily_read(name: str, tmp_path: Path) -> None:
    check(CASES[name])
    check_live(CASES[name], tmp_path / "demo.sqlite")
