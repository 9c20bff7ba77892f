"""The trading defects of the two systems before: each old rule does the damage again, and ours cannot

The old rules are written out here as they were, so that each property below is seen to fail on them.
"""

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpha_trader.backtest import Backtest, fills_frame, run_backtest
from alpha_trader.bars import Panel, open_index
from alpha_trader.cycle import exact
from alpha_trader.plan import Book, Funds, Market, Orders, empty_book, plan, plan_rules, recheck_entries
from alpha_trader.risk import day_loss_breached
from alpha_trader.samples import synthetic_panel
from alpha_trader.sessions import sessions_between
from alpha_trader.settings import Settings, override
from alpha_trader.signals import Reason

SETTINGS = override(Settings(), {"costs.half_spread": 0.0, "costs.slippage": 0.0, "costs.impact": 0.0})
RULES = plan_rules(SETTINGS)
EQUITY = 100_000.0
WARM_UP = 30  # sessions before anything happens, so that there is a volatility


def market_of(price: list[float], predicted: list[float], confidence: float = 0.94) -> Market:
    "Some calm symbols"
    size = len(price)
    known = np.full(size, confidence), np.full(size, 0.01), np.full(size, 0.0026)
    return Market(np.array(price), np.zeros(size, dtype=np.int64), np.array(predicted), *known)


def held(quantity: list[float], price: list[float], age: int = 1) -> Book:
    "A book of positions bought at a price"
    size = len(quantity)
    parts = {"quantity": np.array(quantity), "average_price": np.array(price), "age": np.full(size, age)}
    return empty_book(size)._replace(**parts)


def tape(closes: np.ndarray) -> Panel:
    "A panel of symbols whose sessions open, stay and close at one price, after a quiet beginning"
    size = closes.shape[1]
    quiet = 100.0 * (1.0 + 0.001 * (np.arange(WARM_UP) % 2))[:, None] * np.ones(size)
    price = np.round(np.vstack([quiet, closes]), 2)
    values = np.stack([price, price, price, price, np.full(price.shape, 1e6)])
    days = sessions_between(pd.Timestamp("2015-01-02").date(), pd.Timestamp("2017-12-29").date())[: len(price)]
    symbols = tuple(f"SYM{letter}" for letter in "ABCDEFGHIJKL"[:size])
    nothing = np.zeros(price.shape)
    return Panel(open_index(days), symbols, values, nothing + 1.0, nothing, "synthetic", "made-up")


def walked(panel: Panel, predicted: float | np.ndarray, changes: dict[str, object] | None = None) -> Backtest:
    "A backtest from the end of the quiet beginning, on given predictions and full confidence"
    said = np.broadcast_to(np.asarray(predicted, dtype=float), panel.close.shape).copy()
    start = panel.sessions[WARM_UP].item()
    return run_backtest(panel, said, np.ones(said.shape), override(SETTINGS, changes or {}), EQUITY, start)


def rows_of(result: Backtest, *reasons: Reason) -> pd.DataFrame:
    "The fills that were made for some reasons, with the number of their session"
    fills = fills_frame(result)
    fills["row"] = result.ledger.row[: len(fills)]
    return fills[fills["reason"].isin([reason.name for reason in reasons])]


# --- DA-1: the same signal, executed again and again


def pyramid(runs: int, share: float, exposure: float = 0.80) -> list[float]:
    "System A: buy the share of equity that the signal deserves, at every run, as long as the exposure allows it"
    shares: list[float] = []
    for _ in range(runs):
        shares.append(share if sum(shares) + share <= exposure else 0.0)
    return shares


@given(st.floats(0.71, 1.0), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_da_1_a_signal_is_bought_once(confidence: float, runs: int, symbols: int, filled: bool) -> None:
    "DA-1: however often the same signals are decided on, with the orders waiting or filled, no symbol passes its 10 %"
    market = market_of([100.0] * symbols, [0.02] * symbols, confidence)
    quantity = np.zeros(symbols)
    for _ in range(runs):
        book = empty_book(symbols)._replace(pending=quantity)
        if filled:
            book = held(quantity.tolist(), [100.0] * symbols)
        orders = plan(market, book, Funds(EQUITY, EQUITY - quantity.sum() * 100.0), RULES)
        quantity = quantity + orders.quantity
    assert quantity.max() * 100.0 <= 0.10 * EQUITY
    assert np.count_nonzero(quantity) == min(symbols, 7)


def test_da_1_as_it_was() -> None:
    "DA-1: the old rule takes one symbol to 75.2 % of the equity in 8 orders, the figure that was recorded"
    bought = pyramid(9, 0.10 * 0.94)
    assert (len([share for share in bought if share]), round(sum(bought), 3)) == (8, 0.752)
    result = walked(tape(np.full((40, 1), 100.0)), 0.02)
    assert rows_of(result, Reason.ENTRY)["row"].tolist() == [WARM_UP], "forty sessions of the same BUY are one entry"
    assert result.exposure.max() <= 0.10


# --- DA-8: a loss limit that looks at its own last look


def creeping_halt(values: list[float]) -> bool:
    "System A: the value at the last look is the reference, and every look overwrites it"
    last = values[0]
    for value in values[1:]:
        if (value - last) / last < -0.02:
            return True
        last = value
    return False


def test_da_8_as_it_was() -> None:
    "DA-8: 39 steps of half a percent lose 17.8 % of a day and never halt; ours halts at the fifth"
    values = [EQUITY * 0.995**step for step in range(40)]
    assert round(values[-1] / values[0] - 1.0, 3) == -0.178
    assert not creeping_halt(values)
    assert [bool(day_loss_breached(value, values[0], RULES.risk)) for value in values].index(True) == 5


@given(st.lists(st.floats(-0.015, 0.01), min_size=1, max_size=60))
def test_da_8_looking_changes_nothing(steps: list[float]) -> None:
    "DA-8: whether the limit is passed depends on the previous close and the value now, not on the looks between"
    values = EQUITY * np.cumprod([1.0, *(1.0 + step for step in steps)])
    assert day_loss_breached(values[-1], values[0], RULES.risk) == (values[-1] < 0.98 * values[0])
    assert not creeping_halt(values.tolist()), "the old rule never sees any of these days"


def test_da_8_the_halt_lasts_a_session_and_sells() -> None:
    "DA-8: after a day of −2 % and more nothing is bought the next session, a SELL signal still sells, then it is over"
    closes = np.full((8, 12), 100.0)
    closes[3:, :7] = 96.0  # seven positions of 10 % lose 4 %: 2.8 % of the equity, and no stop
    panel = tape(closes)
    predicted = np.full(panel.close.shape, 0.02)
    predicted[:, 7:] = 0.01
    fallen = WARM_UP + 3
    predicted[fallen, 0] = -0.02
    result = walked(panel, predicted)
    verdicts = result.ledger.verdict
    assert set(verdicts[fallen + 1, 7:].tolist()) == {Reason.DAY_LOSS}
    assert rows_of(result, Reason.SELL_SIGNAL)["row"].tolist() == [fallen + 1]
    entered = rows_of(result, Reason.ENTRY)
    assert fallen + 1 not in set(entered["row"]) and fallen + 2 in set(entered["row"])


# --- DA-9: half, and half again


def halving(quantity: int, runs: int) -> list[int]:
    "System A: at the target sell `int(quantity · 0.5)`, at every run"
    left = [quantity]
    for _ in range(runs):
        left.append(left[-1] - int(left[-1] * 0.5))
    return left


def test_da_9_as_it_was() -> None:
    "DA-9: the old rule turns 100 shares into 1 in seven runs, the figure that was recorded"
    assert halving(100, 7) == [100, 50, 25, 13, 7, 4, 2, 1]


@given(st.integers(1, 10_000), st.integers(1, 12), st.floats(110.0, 500.0))
def test_da_9_the_target_is_taken_once(quantity: int, runs: int, price: float) -> None:
    "DA-9: at the target half is sold, or the one share there is, and the rest stays for as long as the signal says so"
    book, market = held([float(quantity)], [100.0]), market_of([price], [0.02])
    for _ in range(runs):
        orders = plan(market, book, Funds(EQUITY, EQUITY), RULES)
        taken = orders.reason[0] == Reason.TAKE_PROFIT
        book = book._replace(quantity=book.quantity + orders.quantity, halved=book.halved | taken)
        if not book.quantity[0]:
            break
    assert book.quantity[0] == (quantity - quantity // 2 if quantity > 1 else 0)


@pytest.mark.parametrize("check", ["bar", "close"])
def test_da_9_the_backtest_sells_half_too(check: str) -> None:
    "DA-9: System A's backtest sold everything at the target; ours sells half, within the bar and at the close"
    rising = 100.0 * 1.02 ** np.arange(30)[:, None]
    result = walked(tape(rising), 0.02, {"risk.stop_check": check})
    [entry], taken = rows_of(result, Reason.ENTRY)["quantity"], rows_of(result, Reason.TAKE_PROFIT)
    assert taken["quantity"].tolist() == [-(entry // 2)]
    assert result.ledger.cash[result.stop - 1] < result.equity.iloc[-1], "the other half is still held"


# --- DA-10 and A-18: a sale that never closes


def confident_sale(quantity: float, confidence: float) -> int:
    "System A (A-18): `int(quantity · confidence)`, at least 1, at most the whole shares"
    return min(max(int(quantity * confidence), 1), int(quantity))


@given(st.decimals("2", "100000", places=6), st.floats(0.701, 0.999))
def test_da_10_a_sale_closes(quantity: Decimal, confidence: float) -> None:
    "DA-10, A-18: a SELL sells all that is held, to the millionth of a share; the old rule always left something"
    assert 0 < confident_sale(float(quantity), confidence) < quantity
    orders = plan(market_of([100.0], [-0.02], confidence), held([float(quantity)], [100.0]), Funds(EQUITY, 0.0), RULES)
    assert orders.reason[0] == Reason.SELL_SIGNAL
    assert exact(-orders.quantity[0]) == quantity


@pytest.mark.parametrize("fractional", [False, True])
def test_da_10_the_backtest_is_flat_after_a_sale(fractional: bool) -> None:
    "DA-10: after the SELL nothing is held, whole shares or not"
    panel = tape(np.full((10, 1), 99.37))
    predicted = np.full(panel.close.shape, 0.02)
    predicted[WARM_UP + 4 :] = -0.02
    result = walked(panel, predicted, {"risk.fractional": fractional})
    bought, sold = rows_of(result, Reason.ENTRY)["quantity"], rows_of(result, Reason.SELL_SIGNAL)["quantity"]
    assert bought.tolist() == (-sold).tolist() and len(bought) == 1
    assert (bought % 1 != 0).all() == fractional
    assert result.ledger.cash[result.stop - 1] == result.equity.iloc[-1]


# --- DA-12: a swap that cannot be reached, and does not wait


@dataclass
class OldRebalance:
    "System A: the count is asked first, and the purchase does not look at the sale"

    max_positions: int = 7

    def swap(self, positions: int, newcomer: float, weakest: float) -> str:
        if positions >= self.max_positions:
            return "MAX_POSITIONS"  # the comparison below is never reached at seven
        return "SWAP" if newcomer > 0 and (weakest < 0 or newcomer > 1.5 * weakest) else "KEEP"

    def positions_after(self, positions: int, sale_filled: bool) -> int:
        return positions - sale_filled + 1


FULL = [90.0] * 7 + [0.0]  # seven positions and a newcomer
FORECASTS = [0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.006, 0.03]


def swapped() -> tuple[Market, Book, Funds, Orders]:
    "Seven are held, the newcomer promises five times what the weakest does"
    market, book = market_of([100.0] * 8, FORECASTS), held(FULL, [100.0] * 8)
    funds = Funds(EQUITY, EQUITY - 63_000.0)
    return market, book, funds, plan(market, book, funds, RULES)


def test_da_12_the_swap_is_reached_at_seven() -> None:
    "DA-12: the old rule says that seven are enough; ours sells the weakest, whole, and buys the newcomer"
    assert OldRebalance().swap(7, FORECASTS[7], FORECASTS[6]) == "MAX_POSITIONS"
    orders = swapped()[3]
    assert (orders.reason[6], orders.quantity[6]) == (Reason.SWAP_OUT, -90.0)
    assert orders.reason[7] == Reason.SWAP_IN and orders.quantity[7] > 0
    assert not orders.quantity[:6].any()


def test_da_12_the_purchase_waits_for_the_sale() -> None:
    "DA-12: with the sale unfilled the old rule holds eight; ours measures again and stays at seven"
    assert OldRebalance().positions_after(7, sale_filled=False) == 8
    market, book, funds, orders = swapped()
    recheck_entries(market, book.quantity, funds, RULES, orders)
    assert (orders.reason[7], orders.quantity[7]) == (Reason.EXIT_NOT_FILLED, 0.0)


def test_da_12_in_the_backtest() -> None:
    "DA-12: the swap is made on the day on which the weakest holding can be sold, and on no other"
    for tradable in (True, False):
        closes = np.full((6, 8), 100.0)
        panel = tape(closes)
        swap_day = WARM_UP + 2
        if not tradable:
            panel.values[:, swap_day, 6] = np.nan
        predicted = np.full(panel.close.shape, 0.0)
        predicted[:, :7], predicted[:, 6] = 0.02, 0.006
        predicted[swap_day - 1 :, 7] = 0.03
        result = walked(panel, predicted)
        bought = rows_of(result, Reason.SWAP_IN)["row"].tolist()
        assert bought == ([swap_day] if tradable else [swap_day + 1])
        assert rows_of(result, Reason.SWAP_OUT)["row"].tolist() == bought


@given(st.lists(st.booleans(), min_size=9, max_size=9), st.lists(st.floats(0.0, 0.05), min_size=12, max_size=12))
def test_da_12_no_unfilled_sale_breaks_a_limit(filled: list[bool], forecasts: list[float]) -> None:
    "DA-12: whichever of the sales are filled, after the purchases there are no more than seven, and no more than 80 %"
    market = market_of([100.0] * 12, [-0.02, -0.02, *forecasts[2:]])
    book = held([95.0] * 7 + [0.0] * 5, [100.0] * 12, age=9)
    funds = Funds(EQUITY, EQUITY - 66_500.0)
    orders = plan(market, book, funds, RULES)
    sold = np.array([*filled, *filled[:3]]) & (orders.quantity < 0.0)
    after = np.where(sold, book.quantity + orders.quantity, book.quantity)
    recheck_entries(market, after, funds, RULES, orders)
    after = after + np.maximum(orders.quantity, 0.0)
    assert np.count_nonzero(after) <= 7
    assert (after * 100.0).sum() <= 0.80 * EQUITY


# --- DB-4: stopped out, and straight back in


def sold_and_back(price: float, average: float, is_top: bool) -> list[str]:
    "System B: one loop, the stop first, then the purchase of whatever ranks high and is not held"
    stopped = (average - price) / average >= 0.05
    return ["SELL", *(["BUY"] if is_top else [])] if stopped else []


def test_db_4_as_it_was() -> None:
    "DB-4: the old loop sells at −6 % and buys back at once; ours sells, and waits out the cool-down"
    assert sold_and_back(94.0, 100.0, is_top=True) == ["SELL", "BUY"]
    market, book = market_of([94.0], [0.02]), held([90.0], [100.0])
    orders = plan(market, book, Funds(EQUITY, EQUITY), RULES)
    assert (orders.reason[0], orders.quantity[0]) == (Reason.STOP_LOSS, -90.0)
    told = []
    for since in range(6):
        later = empty_book(1)._replace(since_stop=np.array([since]))
        told.append(Reason(plan(market, later, Funds(EQUITY, EQUITY), RULES).reason[0]))
    assert told == [Reason.COOL_DOWN] * 4 + [Reason.ENTRY] * 2, "the session of the stop, and three more"


@pytest.mark.parametrize("check", ["bar", "close"])
@pytest.mark.parametrize("cool_down", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_db_4_in_the_backtest(seed: int, cool_down: int, check: str) -> None:
    "DB-4: with a BUY for everything every day, no symbol comes back before its cool-down has passed"
    panel = synthetic_panel(5, 300, seed=seed)
    changes = {"risk.cool_down": cool_down, "risk.stop_check": check, "risk.stop_loss": -0.03, "data.max_move": 0.9}
    result = walked(panel, 0.02, changes)
    stops, entries = rows_of(result, Reason.STOP_LOSS), rows_of(result, Reason.ENTRY)
    waited = []
    for place, stop in stops.iterrows():
        later = entries[(entries["symbol"] == stop["symbol"]) & (entries.index > place)]["row"]
        waited += [row - stop["row"] for row in later[:1]]
    assert len(waited) > 10
    assert min(waited) == cool_down + 1
