"""Figures and tables: small, honest about extremes, and safe to put on a page"""

import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpha_trader import figures
from alpha_trader.domain import InputError
from alpha_trader.figures import Table, canvas, facts_table, heat_maps, monthly_table, thin
from alpha_trader.runner import POINTS, extremes
from alpha_trader.statistics import drawdown
from alpha_trader.tearsheet import MONTHS, monthly_returns

SESSIONS = 5_000
EQUITY = pd.Series(
    100_000.0 * np.exp(np.cumsum(np.random.default_rng(3).normal(0.0002, 0.01, SESSIONS))),
    index=pd.bdate_range("1994-01-03", periods=SESSIONS),
)
SIGNALS = pd.DataFrame(
    {
        "symbol": [f"S{n}" for n in range(600)],
        "predicted": np.linspace(-0.02, 0.02, 600),
        "confidence": np.linspace(0.0, 1.0, 600),
        "action": np.repeat(["SELL", "HOLD", "BUY"], 200),
    }
)
GROUPS = pd.DataFrame(
    {"symbol": [f"S{n}" for n in range(40)], "positions": 3, "profit": np.arange(40.0) - 20, "win_rate": 0.5}
)
SWEEP = pd.DataFrame(
    [(a, b, c, a * b - c) for a in range(40) for b in range(30) for c in range(3)],
    columns=["risk.stop_loss", "signals.buy", "risk.cool_down", "sharpe_ratio"],
)
PAIR = ("risk.stop_loss", "signals.buy")
NOTE = "Costs are switched off"
NOTED: dict[str, Callable[[str], go.Figure]] = {  # what shows results takes a note
    "equity": lambda note: figures.equity_figure(EQUITY, {"buy and hold": EQUITY * 0.9, "SPY": EQUITY * 2}, note),
    "drawdown": lambda note: figures.drawdown_figure(EQUITY, EQUITY * 0.9, 1e5, note),
    "exposure": lambda note: figures.exposure_figure(EQUITY / EQUITY.max(), 0.8, note),
    "rolling sharpe": lambda note: figures.rolling_sharpe_figure([EQUITY.rename("a"), EQUITY.rename("b")], note),
    "turnover": lambda note: figures.turnover_figure(EQUITY * 0 + 0.1, note),
    "returns": lambda note: figures.returns_figure(EQUITY.pct_change().dropna().to_numpy(), note),
    "profit": lambda note: figures.profit_figure(GROUPS, note),
    "one swept": lambda note: heat_maps(SWEEP, PAIR[:1], note=note),
    "two swept": lambda note: heat_maps(SWEEP, PAIR, note=note),
    "three swept": lambda note: heat_maps(SWEEP, (*PAIR, "risk.cool_down"), note=note),
}
ALL: dict[str, Callable[[], go.Figure]] = {
    **{name: lambda make=make: make("") for name, make in NOTED.items()},  # type: ignore[misc]
    "prediction": lambda: figures.prediction_figure(SIGNALS, 0.005, -0.005),
    "confidence": lambda: figures.confidence_figure(SIGNALS, 0.005, -0.005, 0.7),
    "gain": lambda: figures.feature_gain_figure({f"f{n}": float(n) for n in range(600)}),
    "freshness": lambda: figures.freshness_figure(pd.Series({"AAPL": 0.0, "META": np.nan}), 1),
    "limits": lambda: figures.limits_figure({"positions": 7}, {"positions": 7}),
}


@pytest.mark.parametrize("name", ALL)
def test_figures_are_small_and_serious(name: str) -> None:
    "Every figure stays within 500 points a trace, uses the common look and is small as JSON"
    figure = ALL[name]()
    assert figure.data
    for trace in figure.data:
        assert (np.size(trace.z) if trace.type == "heatmap" else len(trace.y)) <= POINTS
    assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"
    assert len(figure.to_json()) < 60_000


@pytest.mark.parametrize("name", NOTED)
def test_every_picture_can_say_it(name: str) -> None:
    "A note stands in the title, and there is none without one"
    assert NOTE in NOTED[name](NOTE).layout.title.text
    assert NOTE not in (NOTED[name]("").layout.title.text or "")


def test_the_best_set_is_marked() -> None:
    "A star in every map of a sweep, where the best set is; the median over what is not shown is said in the title"
    figure = heat_maps(SWEEP, (*PAIR, "risk.cool_down"))
    stars = [trace for trace in figure.data if trace.type == "scatter"]
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(stars) == len(maps) == 3
    for star, cells in zip(stars, maps, strict=True):
        assert star.x[0] in cells.x and star.y[0] in cells.y
    first = maps[0]
    assert first.z.max() == first.z[list(first.y).index(stars[0].y[0])][list(first.x).index(stars[0].x[0])]
    assert "median" in figure.layout.title.text and "at stop_loss 39, buy 29, cool_down 0" in figure.layout.title.text
    small = heat_maps(SWEEP[SWEEP["risk.cool_down"] == 1].query("`signals.buy` < 3 and `risk.stop_loss` < 20"), PAIR)
    assert small.data[0].z[2][19] == 19 * 2 - 1 and "median" not in small.layout.title.text


def test_a_sweep_without_results_is_a_figure() -> None:
    "All results missing: empty maps and no star; a wrong name is one clear line"
    nothing = SWEEP.assign(sharpe_ratio=np.nan)[:50]
    for swept in (PAIR[:1], PAIR, (*PAIR, "risk.cool_down")):
        assert all(trace.name != "best" for trace in heat_maps(nothing, swept).data)
    with pytest.raises(InputError, match="no column risk.stop; allowed: risk.stop_loss, "):
        heat_maps(SWEEP, ("risk.stop",))
    with pytest.raises(InputError, match="no setting was swept"):
        heat_maps(SWEEP, ())


def test_growth_is_drawn_in_percent() -> None:
    "More than threefold: a logarithmic axis"
    ramp = pd.Series(np.linspace(100.0, 299.0, 50), index=EQUITY.index[:50])
    assert figures.equity_figure(ramp).layout.yaxis.type is None
    assert figures.equity_figure(ramp, {"held": ramp * 1.1}).layout.yaxis.type == "log"


def test_the_worst_day_survives() -> None:
    "Thinning keeps the deepest drawdown, the highest equity and both ends"
    line = figures.drawdown_figure(EQUITY).data[0]
    worst = drawdown(EQUITY, EQUITY.iloc[0])
    assert min(line.y) == pytest.approx(worst.min(), abs=1e-6)
    assert line.x[int(np.argmin(line.y))] == str(worst.idxmin().date())
    account = figures.equity_figure(EQUITY).data[0]
    assert max(account.y) == pytest.approx(EQUITY.max())
    assert (account.x[0], account.x[-1]) == (str(EQUITY.index[0].date()), str(EQUITY.index[-1].date()))


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=300), st.integers(4, 60))
def test_extremes(values: list[float], most: int) -> None:
    "Never more points than asked for, in order, with both ends, the lowest and the highest"
    line = np.array(values)
    kept = extremes(line, most)
    assert len(kept) <= max(most, 4) and (np.diff(kept) > 0).all()
    assert kept[0] == 0 and kept[-1] == len(line) - 1
    if not np.isnan(line).all():
        assert np.nanmin(line[kept]) == np.nanmin(line) and np.nanmax(line[kept]) == np.nanmax(line)


def test_thin_keeps_points_together() -> None:
    "Value, date and hover text of a point stay the same point; short traces and other kinds are left alone"
    n = 2_000
    figure = canvas().add_bar(
        x=np.arange(n), y=np.sin(np.arange(n)), text=[str(k) for k in range(n)], customdata=np.arange(n)
    )
    figure.add_scatter(y=[1.0, 2.0]).add_heatmap(z=[[1.0, 2.0]])
    thin(figure)
    bar = figure.data[0]
    assert len(bar.y) == len(bar.x) == len(bar.text) == len(bar.customdata) <= POINTS
    points = zip(bar.x, bar.y, bar.text, bar.customdata, strict=True)
    assert all(y == np.sin(x) and t == str(x) and c == x for x, y, t, c in points)
    assert list(figure.data[1].y) == [1.0, 2.0] and figure.data[2].z is not None


def test_empty_inputs() -> None:
    "A day without signals, gains or bars still gives a figure and a table"
    none = SIGNALS[:0]
    for figure in (
        figures.prediction_figure(none, 0.005, -0.005),
        figures.confidence_figure(none, 0.005, -0.005, 0.7),
        figures.feature_gain_figure({}),
        figures.freshness_figure(pd.Series(dtype=float), 1),
        figures.limits_figure({}, {}),
    ):
        assert isinstance(figure, go.Figure)
    assert figures.decisions_table(none)._repr_html_() == '<p class="empty">no decisions</p>'
    assert figures.orders_table(none)._repr_html_() == '<p class="empty">no orders</p>'
    assert len(facts_table({})) == 0


def test_missing_is_not_zero() -> None:
    "DA-3: a NaN prediction is not drawn, and in a table it is a dash"
    signals = pd.DataFrame(
        {"symbol": ["A", "B"], "predicted": [np.nan, 0.01], "confidence": [np.nan, 0.9], "action": ["HOLD", "BUY"]}
    )
    drawn = [s for trace in figures.prediction_figure(signals, 0.005, -0.005).data for s in trace.y]
    assert drawn == ["B"]
    assert sum(len(trace.y) for trace in figures.confidence_figure(signals, 0.005, -0.005, 0.7).data) == 1
    row = Table(signals)._repr_html_().split("<tr>")[2]
    assert re.findall(r">([^<>]*)</td>", row) == ["A", "–", "–", "HOLD"]


def test_tables_write_by_name() -> None:
    "Money, shares, returns, moments and decimals are written as what they are, numbers to the right"
    frame = pd.DataFrame(
        {
            "symbol": ["AAPL"],
            "quantity": [Decimal("12.500000000")],
            "price": [Decimal("430.123")],
            "pnl": [-1234.5],
            "session": [date(2013, 3, 1)],
            "at": [datetime(2013, 3, 1, 14, 30, tzinfo=UTC)],
            "flag": [True],
            "something": [0.123456],
        }
    )
    page = Table(frame)._repr_html_()
    cells = re.findall(r">([^<>]*)</td>", page)
    assert cells == ["AAPL", "12.5", "430.12", "-1,234.50", "2013-03-01", "2013-03-01 14:30", "True", "0.1235"]
    assert re.findall(r'<td style="text-align:(\w)', page) == list("lrrrlllr")
    assert page.count("var(--loss") == 1


def test_tables_escape() -> None:
    "Names of columns, values and the sentence of an empty table are text"
    attack = "<img src=x onerror=alert(1)>"
    for page in (
        Table(pd.DataFrame({attack: [attack]}))._repr_html_(),
        Table(pd.DataFrame(), empty=attack)._repr_html_(),
        facts_table({attack: attack})._repr_html_(),
    ):
        assert "<img" not in page and "&lt;img" in page


def test_decisions_put_orders_first() -> None:
    "Orders first, each group in the order it came; a missing quantity is none"
    frame = pd.DataFrame({"symbol": list("ABCDE"), "quantity": [0, -5, None, Decimal(3), 0]}, dtype=object)
    assert figures.decisions_table(frame).frame["symbol"].tolist() == ["B", "D", "A", "C", "E"]
    assert figures.decisions_table(frame[["symbol"]]).frame["symbol"].tolist() == list("ABCDE")


def test_months_compound_to_the_total() -> None:
    "All months together, and all years together, are the whole result; months without a session are empty"
    start = EQUITY.iloc[0]
    returns = monthly_returns(EQUITY, start)
    total = EQUITY.iloc[-1] / EQUITY.iloc[0]
    assert (1 + returns["year"]).prod() == pytest.approx(total)
    assert np.nanprod(1 + returns[list(MONTHS)].to_numpy()) == pytest.approx(total)
    first = monthly_returns(EQUITY[EQUITY.index >= "1994-03-01"], start)
    assert first.loc[1994, ["Jan", "Feb"]].isna().all()
    assert "<td></td>" in monthly_table(EQUITY[EQUITY.index >= "1994-03-01"])._repr_html_()


def test_dates_may_be_dates() -> None:
    "A series by plain dates, as the store gives it, works like one by timestamps"
    plain = EQUITY[:60].set_axis([day.date() for day in EQUITY.index[:60]])
    assert list(figures.equity_figure(plain).data[0].x) == list(figures.equity_figure(EQUITY[:60]).data[0].x)
    pd.testing.assert_frame_equal(monthly_returns(plain, 1e5), monthly_returns(EQUITY[:60], 1e5))


def test_figures_import_lightly() -> None:
    "Neither matplotlib nor a template engine nor scikit-learn is needed for figures and tables"
    code = (
        "import sys, pandas as pd\nfrom alpha_trader.figures import Table, equity_figure\n"
        "Table(pd.DataFrame({'a': [1]}))._repr_html_()\n"
        "equity_figure(pd.Series([1.0, 2.0], index=pd.bdate_range('2013-01-01', periods=2)))\n"
        "heavy = {'matplotlib', 'jinja2', 'sklearn', 'vectorbt', 'papermill', 'nbconvert', 'lightgbm'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tables_forgive() -> None:
    "A value that is not what its column's name says is written as Python would, and nothing is minus nothing"
    frame = pd.DataFrame({"price": [430.1, "market", date(2013, 3, 1)], "pnl": [-0.0, None, "n/a"]}, dtype=object)
    cells = re.findall(r">([^<>]*)</td>", Table(frame)._repr_html_())
    assert cells == ["430.10", "-0.00", "market", "–", "2013-03-01", "n/a"]
    assert re.findall(r">([^<>]*)</td>", Table(pd.DataFrame({"order": [-0.0, -323.0]}))._repr_html_()) == ["0", "-323"]


def test_measures_have_their_own_kinds() -> None:
    "Each row of a comparison is written as its measure; what is missing stays missing"
    frame = pd.DataFrame(
        {"measure": ["max_drawdown", "win_rate"], "ours": [-0.05215, 0.5401], "held": [-0.5781, np.nan]}
    )
    page = figures.measures_table(frame)._repr_html_()
    assert re.findall(r">([^<>]*)</td>", page) == ["max drawdown", "-5.21%", "-57.81%", "win rate", "54.0%", "–"]
    assert page.count("var(--loss") == 2


def test_facts_read_from_the_left() -> None:
    "No header, everything left, money to the cent, unknown is a dash, nothing to say is left out"
    page = facts_table({"previous close": 100_140.294, "equity": None, "remember": "", "orders": 3})._repr_html_()
    assert re.findall(r">([^<>]*)</td>", page) == ["previous close", "100,140.29", "equity", "–", "orders", "3"]
    assert "<th" not in page and "right" not in page
