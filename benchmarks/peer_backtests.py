"""The plan's rules, as other libraries can hold them

`decide` is the part of our rules that a library with one order per symbol and session can follow: sizes by
volatility and confidence, at most so many positions and so much exposure, the best prediction first, stop and half
take-profit judged at the close, sell signal, horizon. It is written from the description of the rules, not from the
package's kernel, and it is compiled, so that no peer loses time in it.
"""

import warnings
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd

from alpha_trader.settings import Settings


class Rules(NamedTuple):
    "The settings as numbers"

    buy: float
    sell: float
    confidence: float
    max_position: float
    max_exposure: float
    max_positions: int
    stop_loss: float
    take_profit: float
    take_profit_share: float
    volatility_target: float
    horizon: int


def rules_of(settings: Settings) -> Rules:
    "The rules that settings describe"
    signals, risk = settings.signals, settings.risk
    return Rules(
        signals.buy,
        signals.sell,
        signals.confidence,
        risk.max_position,
        risk.max_exposure,
        risk.max_positions,
        risk.stop_loss,
        risk.take_profit,
        risk.take_profit_share,
        risk.volatility_target,
        settings.label.horizon,
    )


class Views(NamedTuple):
    "What every implementation is given, each [T, N], known after the close"

    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    volatility: np.ndarray


@numba.njit
def exits(row, views, rules, shares, paid, entered, halved, orders):
    "Write the sales decided after bar `row`; answers whether each symbol is sold out"
    for n in range(shares.size):
        orders[n] = 0.0
        if shares[n] <= 0.0:
            continue
        price, sure = views.close[row, n], views.confidence[row, n] > rules.confidence
        stopped = price <= paid[n] * (1.0 + rules.stop_loss)
        signal = sure and views.predicted[row, n] < rules.sell
        late = row + 1 - entered[n] >= rules.horizon and not (sure and views.predicted[row, n] > rules.buy)
        if stopped or signal or late:
            orders[n] = -shares[n]
        elif not halved[n] and price >= paid[n] * (1.0 + rules.take_profit):
            orders[n] = -min(max(np.floor(shares[n] * rules.take_profit_share + 1e-9), 1.0), shares[n])
            halved[n] = True


@numba.njit
def decide(row, views, rules, cash, shares, paid, entered, halved, orders, sequence):
    "Write the orders decided after bar `row`, and the sequence in which they are sent: sales, then the best"
    exits(row, views, rules, shares, paid, entered, halved, orders)
    count, exposure, equity, sent = 0, 0.0, cash, 0
    for n in range(shares.size):
        price, left = views.close[row, n], shares[n] + orders[n]
        equity += shares[n] * price
        cash -= orders[n] * price
        if left > 0.0:
            count, exposure = count + 1, exposure + left * price
        if orders[n] < 0.0:
            sequence[sent], sent = n, sent + 1
    ranked = np.argsort(-views.predicted[row], kind="mergesort")
    for n in ranked:
        wanted = views.predicted[row, n] > rules.buy and views.confidence[row, n] > rules.confidence
        if orders[n] != 0.0 or shares[n] > 0.0 or not wanted or np.isnan(views.volatility[row, n]):
            continue
        swing = max(views.volatility[row, n] / rules.volatility_target, 1.0)
        share = min(rules.max_position * views.confidence[row, n] / swing, rules.max_position)
        bought = np.floor(share * equity / views.close[row, n] + 1e-9)
        value = bought * views.close[row, n]
        if (
            bought > 0.0
            and count < rules.max_positions
            and exposure + value <= rules.max_exposure * equity
            and value <= cash
        ):
            orders[n], count, exposure, cash = bought, count + 1, exposure + value, cash - value
            entered[n], halved[n], sequence[sent], sent = row + 1, False, n, sent + 1
    for n in range(shares.size):
        if orders[n] == 0.0:
            sequence[sent], sent = n, sent + 1


def blank(n: int) -> tuple[np.ndarray, ...]:
    "Paid, entered, halved, orders, sequence: nothing held"
    return np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.bool_), np.zeros(n), np.arange(n)


def order_functions() -> tuple[Any, Any]:
    "vectorbt's two callbacks; compiled in each process anew, because numba cannot cache functions that are arguments"
    from vectorbt.portfolio import nb

    @numba.njit
    def before_row(c, views, rules, paid, entered, halved, orders, sequence):
        if c.i == 0:
            paid[:], entered[:], halved[:], orders[:] = 0.0, 0, False, 0.0
            return ()
        shares = c.last_position[c.from_col : c.to_col]
        decide(c.i - 1, views, rules, c.last_cash[c.group], shares, paid, entered, halved, orders, sequence)
        for n in range(orders.size):
            c.call_seq_now[n] = sequence[n]
            if orders[n] > 0.0:
                paid[n] = views.open[c.i, n]
        return ()

    @numba.njit
    def one_order(c, views, orders):
        if orders[c.col] == 0.0:
            return nb.order_nothing_nb()
        return nb.order_nb(size=orders[c.col], price=views.open[c.i, c.col])

    return before_row, one_order


def vectorbt_orders(views: Views, rules: Rules, capital: float, functions: tuple[Any, Any]) -> Any:  # Portfolio
    "vectorbt, `Portfolio.from_order_func`: every rule of `decide`, one account"
    import vectorbt

    before_row, one_order = functions
    paid, entered, halved, orders, sequence = blank(views.close.shape[1])
    return vectorbt.Portfolio.from_order_func(
        pd.DataFrame(views.close),
        one_order,
        views,
        orders,
        init_cash=capital,
        cash_sharing=True,
        group_by=True,
        row_wise=True,
        pre_segment_func_nb=before_row,
        pre_segment_args=(views, rules, paid, entered, halved, orders, sequence),
    )


def vectorbt_signals(views: Views, rules: Rules, capital: float, engine: str) -> Any:  # Portfolio
    "vectorbt, `Portfolio.from_signals`: entries, exits, stop, full take-profit, shared cash; no limit on positions"
    import vectorbt

    sure = views.confidence > rules.confidence
    entries, exits = sure & (views.predicted > rules.buy), sure & (views.predicted < rules.sell)
    later = [pd.DataFrame(np.vstack([np.zeros_like(signal[:1]), signal[:-1]])) for signal in (entries, exits)]
    return vectorbt.Portfolio.from_signals(
        pd.DataFrame(views.close),
        *later,
        size=rules.max_position,
        size_type="percent",
        price=views.open,
        open=views.open,
        high=views.high,
        low=views.low,
        sl_stop=-rules.stop_loss,
        tp_stop=rules.take_profit,
        fees=0.001,
        init_cash=capital,
        cash_sharing=True,
        group_by=True,
        engine=engine,
    )


def backtrader_run(views: Views, rules: Rules, capital: float) -> float:  # USD at the last close
    "backtrader: every rule of `decide` in `next`, market orders at the next open"
    import backtrader

    days = pd.bdate_range("2000-01-03", periods=len(views.close))
    paid, entered, halved, orders, sequence = blank(views.close.shape[1])

    class Plan(backtrader.Strategy):
        def next(self) -> None:
            positions = [self.getposition(data) for data in self.datas]
            shares = np.array([position.size for position in positions], dtype=np.float64)
            paid[:] = [position.price for position in positions]
            row, cash = len(self) - 1, self.broker.getcash()
            decide(row, views, rules, cash, shares, paid, entered, halved, orders, sequence)
            for n in sequence:
                if orders[n] > 0.0:
                    self.buy(self.datas[n], size=orders[n])
                elif orders[n] < 0.0:
                    self.sell(self.datas[n], size=-orders[n])

    cerebro = backtrader.Cerebro(stdstats=False)
    for n in range(views.close.shape[1]):
        columns = {name: getattr(views, name)[:, n] for name in ("open", "high", "low", "close", "volume")}
        cerebro.adddata(backtrader.feeds.PandasData(dataname=pd.DataFrame(columns, index=days)))
    cerebro.addstrategy(Plan)
    cerebro.broker.setcash(capital)
    cerebro.broker.set_checksubmit(False)
    cerebro.run()
    return float(cerebro.broker.getvalue())


def backtesting_run(views: Views, rules: Rules, capital: float, column: int) -> float:  # USD at the last close
    "backtesting.py: the rules of `decide` for one symbol with an account of its own; it knows no portfolio"
    import backtesting

    one = Views(*(np.ascontiguousarray(array[:, column : column + 1]) for array in views))
    paid, entered, halved, orders, sequence = blank(1)

    class Plan(backtesting.Strategy):
        def init(self) -> None:
            pass

        def next(self) -> None:
            shares, row = float(self.position.size), len(self.data) - 1
            if self.trades:
                paid[0] = self.trades[0].entry_price
            cash = self.equity - shares * one.close[row, 0]
            decide(row, one, rules, cash, np.array([shares]), paid, entered, halved, orders, sequence)
            if orders[0] > 0.0:
                self.buy(size=int(orders[0]))
            elif orders[0] < 0.0:
                self.sell(size=int(-orders[0]))

    names = ("open", "high", "low", "close", "volume")
    days = pd.bdate_range("2000-01-03", periods=len(one.close))
    frame = pd.DataFrame({name.capitalize(): getattr(one, name)[:, 0] for name in names}, index=days)
    with warnings.catch_warnings():  # an open position at the end is none of its business
        warnings.simplefilter("ignore", UserWarning)
        found = backtesting.Backtest(frame, Plan, cash=capital, finalize_trades=False).run()
    return float(found["_equity_curve"]["Equity"].iloc[-1])
