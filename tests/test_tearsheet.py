"""The tear sheet against accountants of its own: vectorbt, cost functions, and arithmetic by other means"""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress

from alpha_trader import tearsheet
from alpha_trader.backtest import (
    Backtest,
    buy_and_hold,
    closed_positions,
    fills_frame,
    portfolio,
    run_backtest,
    split_ratios,
)
from alpha_trader.fills import cost_rules, price_concession
from alpha_trader.samples import synthetic_panel
from alpha_trader.settings import Settings, load_settings
from alpha_trader.statistics import daily_returns

EQUITIES = st.lists(st.floats(0.9, 1.1), min_size=2, max_size=80).map(
    lambda moves: pd.Series(100.0 * np.cumprod(moves), index=pd.bdate_range("2012-11-20", periods=len(moves)))
)


@pytest.fixture(scope="module")
def shipped() -> Settings:
    return load_settings()


@pytest.fixture(scope="module")
def result(shipped: Settings) -> Backtest:
    "Five synthetic symbols, three years, a forecaster that peeks; no dividends, since vectorbt knows none"
    panel = synthetic_panel(symbols=5, sessions=820, seed=4)
    panel = type(panel)(
        panel.index, panel.symbols, panel.values, panel.splits, panel.dividends * 0.0, panel.source, panel.feed
    )
    tomorrow = np.vstack([np.diff(np.log(panel.close), axis=0), np.zeros((1, len(panel.symbols)))])
    said = 0.3 * np.nan_to_num(tomorrow) + np.random.default_rng(1).normal(0.0, 0.01, panel.close.shape)  # some skill
    return run_backtest(panel, said, np.full(said.shape, 0.9), shipped, start=panel.sessions[60].item())


@pytest.fixture(scope="module")
def theirs(result: Backtest) -> pd.Series:
    "vectorbt's own equity of our fills"
    return portfolio(result).value()


def by_vectorbt(equity: pd.Series, capital: float) -> pd.Series:
    "The curve with the capital in front of it, which vectorbt has no other way to know"
    before = equity.index[0] - pd.Timedelta(days=1)
    return pd.concat([pd.Series([capital], index=[before]), equity])


def test_drawdowns_are_vectorbts(result: Backtest, theirs: pd.Series) -> None:
    "Depth, start, trough, recovery and length of every drawdown"
    import vectorbt

    curve = by_vectorbt(theirs, result.capital)
    records = vectorbt.Drawdowns.from_ts(curve, freq="1D").records
    over = records["status"].to_numpy() == 1
    ours = tearsheet.drawdown_periods(theirs, result.capital, len(theirs)).sort_values("start")
    assert len(ours) == len(records) > 5
    np.testing.assert_allclose(ours["depth"], records["valley_val"] / records["peak_val"] - 1.0, rtol=1e-12)
    assert list(ours["start"]) == list(curve.index[records["start_idx"]])
    assert list(ours["trough"]) == list(curve.index[records["valley_idx"]])
    assert list(ours["recovery"].dropna()) == list(curve.index[records["end_idx"][over]])
    lengths = records["end_idx"] - records["start_idx"] + np.where(over, 0, 1)
    assert list(ours["sessions"]) == list(lengths)


def test_months_are_vectorbts(result: Backtest, theirs: pd.Series) -> None:
    "The return of each month, and the product of all of them"
    import vectorbt  # noqa: F401, its accessor

    daily = by_vectorbt(theirs, result.capital).pct_change().dropna()
    peer = daily.groupby(daily.index.to_period("M")).apply(lambda month: month.vbt.returns(freq="1D").total())
    monthly = peer.to_numpy()
    ours = tearsheet.monthly_returns(theirs, result.capital)
    np.testing.assert_allclose(ours[list(tearsheet.MONTHS)].stack().dropna(), monthly, rtol=1e-9, atol=1e-12)
    assert (1 + ours["year"]).prod() == pytest.approx(theirs.iloc[-1] / result.capital)


def test_risk_is_vectorbts(result: Backtest, theirs: pd.Series) -> None:
    "Value at risk, expected shortfall, Sortino, Calmar, beta and the rolling Sharpe ratio"
    import vectorbt

    vectorbt.settings.returns["year_freq"] = "252 days"
    holding = buy_and_hold(result.panel, result.first, result.stop, result.capital, cost_rules(load_settings().costs))
    days = pd.Series(daily_returns(theirs, result.capital), index=theirs.index)
    held = pd.Series(daily_returns(holding, result.capital), index=theirs.index)
    peer = days.vbt.returns(freq="1D")
    ours = tearsheet.curve_measures(theirs, result.capital, holding)
    line = linregress(held, days)
    for name, value in {
        "value_at_risk": peer.value_at_risk(0.05),
        "expected_shortfall": peer.cond_value_at_risk(0.05),
        "sortino_ratio": peer.sortino_ratio(),
        "calmar_ratio": peer.calmar_ratio(),
        "annualized_return": peer.annualized(),
        "sharpe_ratio": peer.sharpe_ratio(),
        "beta": line.slope,
        "correlation": line.rvalue,
    }.items():
        assert ours[name] == pytest.approx(value, rel=1e-9), name
    rolled = tearsheet.rolling_sharpe(theirs, result.capital, 126)
    windows = [tearsheet.sharpe_ratio(days.to_numpy()[k - 126 : k]) for k in (126, 300, len(days))]
    np.testing.assert_allclose(rolled.iloc[[125, 299, -1]], windows, rtol=1e-6)
    assert rolled.iloc[:125].isna().all()


def test_positions_are_vectorbts(result: Backtest) -> None:
    "Entry, exit and profit of every closed position, and the profit by symbol"
    positions = portfolio(result).positions.records
    positions = positions[positions["status"] == 1].sort_values(["exit_idx", "col"])
    closed = closed_positions(fills_frame(result), split_ratios(result.panel))
    trades = tearsheet.trades_frame(result, closed)
    ours = trades.assign(col=[result.panel.symbols.index(s) for s in trades["symbol"]]).sort_values(["exit", "col"])
    assert len(ours) == len(positions) > 50
    assert list(ours["sessions"]) == list(positions["exit_idx"] - positions["entry_idx"])
    np.testing.assert_allclose(ours["profit"], positions["pnl"], atol=0.02)
    by_symbol = tearsheet.profit_by(trades, "symbol").set_index("symbol")["profit"]
    for n, symbol in enumerate(result.panel.symbols):
        assert by_symbol[symbol] == pytest.approx(positions.loc[positions["col"] == n, "pnl"].sum(), abs=0.5)


def test_groups_lose_nothing(result: Backtest) -> None:
    "By reason, symbol or decile: the positions and the profit are always all of them"
    closed = closed_positions(fills_frame(result), split_ratios(result.panel))
    sure = np.random.default_rng(5).uniform(size=result.panel.close.shape)
    trades = tearsheet.trades_frame(result, closed, sure)
    tables = [tearsheet.profit_by(trades, name) for name in ("reason", "symbol")]
    for table in [*tables, tearsheet.profit_by_confidence(trades)]:
        assert table["positions"].sum() == len(closed)
        assert table["profit"].sum() == pytest.approx(closed["profit"].sum())
    sizes = tearsheet.profit_by_confidence(trades)["positions"]
    assert len(sizes) == 10 and sizes.max() - sizes.min() <= 1


def test_each_fill_pays_what_the_fill_rules_say(result: Backtest, shipped: Settings) -> None:
    "A market order's price is its reference moved by spread, slippage and impact; met targets pay a commission only"
    fills, panel, rules = fills_frame(result), result.panel, cost_rules(shipped.costs)
    paid = tearsheet.fill_costs(result, fills, shipped)
    both = fills.assign(**paid.drop(columns=["session", "symbol", "reason"]))
    assert {"TAKE_PROFIT", "STOP_LOSS", "ENTRY"} <= set(both["reason"])
    for fill in both.itertuples():
        row, n = panel.row(fill.session.date()), panel.symbols.index(fill.symbol)
        inside = fill.spread + fill.slippage + fill.impact
        if fill.reason in ("TAKE_PROFIT", "SPLIT_CASH"):
            assert inside == 0.0
            continue
        share = price_concession(fill.quantity, panel.volume[row, n], rules)
        reference = fill.price - inside / fill.quantity
        assert inside == pytest.approx(abs(fill.quantity) * reference * share, rel=1e-9)
        if fill.reason != "STOP_LOSS":
            assert reference == pytest.approx(panel.open[row, n], abs=0.0051)


def test_targets_judged_at_the_close_are_market_orders(result: Backtest, shipped: Settings) -> None:
    "With `stop_check = close` a target is sold at the next open and pays the spread"
    at_close = shipped.model_copy(update={"risk": shipped.risk.model_copy(update={"stop_check": "close"})})
    fills = fills_frame(result)
    taken = fills["reason"] == "TAKE_PROFIT"
    assert (tearsheet.fill_costs(result, fills, at_close).loc[taken, "spread"] > 0.0).all()


def test_the_parts_are_the_whole(result: Backtest) -> None:
    "Closed and open positions and dividends explain the account to the cent"
    fills = fills_frame(result)
    parts = tearsheet.profit_parts(result, fills, closed_positions(fills, split_ratios(result.panel)))
    assert parts["profit"].iloc[-1] == pytest.approx(result.equity.iloc[-1] - result.capital, abs=0.011)
    assert parts["profit"].iloc[:-1].sum() == pytest.approx(parts["profit"].iloc[-1], abs=0.021)


@given(st.floats(100, 1e6), st.floats(0, 1e5), st.floats(1, 1e5), st.floats(0.1, 0.9))
def test_impact_capacity_solves_its_equation(gross: float, proportional: float, impact: float, share: float) -> None:
    "At the capital that is answered, the costs are exactly that share of the gross profit"
    answer = tearsheet.impact_capacity(gross, proportional, impact, 1.0, share)
    if share * gross <= proportional:
        assert answer == 0.0
    else:
        assert answer * proportional + answer**1.5 * impact == pytest.approx(share * answer * gross, rel=1e-6, abs=1e-9)


@given(EQUITIES)
def test_any_curve(equity: pd.Series) -> None:
    "Months compound to the whole; drawdown periods do not overlap, and their sessions are those below the peak"
    months = tearsheet.monthly_returns(equity, 100.0)
    assert (1 + months["year"]).prod() == pytest.approx(equity.iloc[-1] / 100.0)
    falls = tearsheet.drawdown_periods(equity, 100.0, len(equity)).sort_values("start", ignore_index=True)
    below = equity < np.maximum(equity.cummax(), 100.0)
    assert falls["sessions"].sum() == below.sum()
    assert all(falls["start"].iloc[1:].to_numpy() > falls["trough"].iloc[:-1].to_numpy())
    returns = daily_returns(equity, 100.0)
    assert tearsheet.expected_shortfall(returns) <= tearsheet.value_at_risk(returns)


def test_nothing_traded(shipped: Settings) -> None:
    "Without a single fill there are empty tables and unknown numbers, and no error"
    panel = synthetic_panel(symbols=2, sessions=120, seed=2)
    idle = run_backtest(panel, np.zeros(panel.close.shape), np.zeros(panel.close.shape), shipped)
    fills = fills_frame(idle)
    trades = tearsheet.trades_frame(idle, closed_positions(fills))
    paid = tearsheet.fill_costs(idle, fills, shipped)
    assert len(trades) == len(tearsheet.profit_by(trades, "reason")) == len(tearsheet.profit_by_confidence(trades)) == 0
    assert tearsheet.cost_table(paid, 0.0)["paid"].sum() == 0.0
    assert len(tearsheet.drawdown_periods(idle.equity, idle.capital)) == 0
    assert tearsheet.turnover(fills, idle.equity).sum() == 0.0
    assert math.isnan(tearsheet.capacity(paid, 0.0, idle.capital)["capital_at_1_percent_participation"])
    table = tearsheet.risk_table({"ours": idle.equity}, idle.capital).set_index("measure")["ours"]
    assert table["max_drawdown"] == 0.0 and math.isnan(table["sharpe_ratio"])
    assert list(tearsheet.profit_parts(idle, fills, trades)["profit"]) == [0.0, 0.0, 0.0, 0.0]


def test_benchmark_needs_bars(result: Backtest, shipped: Settings) -> None:
    "A benchmark without a bar on the first session is left out; one of a larger panel is found"
    wide = synthetic_panel(symbols=5, sessions=820, seed=4)
    symbol = wide.symbols[0]
    mine = shipped.model_copy(update={"data": shipped.data.model_copy(update={"benchmark": symbol})})
    curves = tearsheet.yardsticks(result, result.equity, wide, mine)
    assert list(curves) == ["buy and hold", symbol]
    assert curves[symbol].index.equals(result.equity.index)
    values = wide.values.copy()
    values[:, : result.first + 1, 0] = np.nan
    late = type(wide)(wide.index, wide.symbols, values, wide.splits, wide.dividends, wide.source, wide.feed)
    assert list(tearsheet.yardsticks(result, result.equity, late, mine)) == ["buy and hold"]
