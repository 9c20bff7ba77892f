"""A sweep is many backtests: the same numbers to the bit, resumable, and refused in one line when it makes no sense"""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from replay import NOW, SMALL, write_settings

from alpha_trader import sweep as module
from alpha_trader.backtest import History, closed_positions, fills_frame, history_of, split_ratios, walk_history
from alpha_trader.bars import Panel
from alpha_trader.domain import AlphaTraderError, InputError
from alpha_trader.fills import free_of_costs
from alpha_trader.pipeline import backtest, ingest
from alpha_trader.runner import run_notebook
from alpha_trader.samples import synthetic_panel
from alpha_trader.settings import Settings, override
from alpha_trader.statistics import performance
from alpha_trader.store import open_store
from alpha_trader.sweep import (
    Grid,
    SweepResult,
    Views,
    check_prices,
    parse_grid,
    parse_range,
    point_settings,
    run_sweep,
    walked_sets,
)
from alpha_trader.sweeps import sweep

CAPITAL, SPAN = 100_000.0, (30, 250)
CHOICES: dict[str, list[Any]] = {
    "signals.buy": [0.001, 0.005, 0.02],
    "signals.sell": [-0.001, -0.02],
    "signals.confidence": [0.0, 0.7],
    "risk.max_positions": [1, 3, 20],
    "risk.max_exposure": [0.3, 1.0],
    "risk.stop_loss": [-0.01, -0.05, -0.3],
    "risk.take_profit": [0.01, 0.1],
    "risk.day_loss": [-0.2, -0.005],
    "risk.swap_premium": [1.0, 3.0],
    "risk.cool_down": [0, 10],
    "risk.stop_check": ["bar", "close"],
    "risk.fractional": [True, False],
    "risk.cash": ["t1", "margin"],
    "costs.commission_per_share": [0.0, 0.01],
    "costs.impact": [0.0, 0.1],
}


def rough_panel(seed: int) -> Panel:
    "Synthetic bars with gaps, splits and dividends that nobody would list"
    panel, chance = synthetic_panel(symbols=8, sessions=250, seed=seed), np.random.default_rng(seed)
    shape = panel.close.shape
    panel.values[:, chance.random(shape) < 0.03] = np.nan
    hit = chance.random(shape) < 0.01
    panel.splits[hit] = chance.choice([2.0, 1.5, 0.1], int(hit.sum()))
    panel.dividends[chance.random(shape) < 0.01] = 0.25
    return panel


OPEN = np.zeros(250, dtype=np.int64)  # nothing stops entries


def views(panel: Panel, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Predictions that trade a lot"
    chance = np.random.default_rng(seed)
    return chance.normal(0.0, 0.01, panel.close.shape), chance.uniform(0.5, 1.0, panel.close.shape)


@pytest.fixture(scope="module")
def history() -> History:
    panel = rough_panel(3)
    return history_of(panel, *views(panel), 0.25)


def run(history: History, grid: Grid, folder: Path, **options: Any) -> SweepResult:
    told = options.pop("progress", None)
    predictor = options.pop("predictor", lambda point: (*views(history.panel), OPEN))
    return run_sweep(history.panel, grid, Settings(), predictor, CAPITAL, SPAN, folder, told, **options)


@pytest.mark.parametrize("seed", range(6))
def test_a_set_is_its_backtest(seed: int) -> None:
    "Random sets on random worlds: equity to the bit, and the numbers of the statistics page"
    draw, panel = random.Random(seed), rough_panel(seed)
    history = history_of(panel, *views(panel, seed), 0.25)
    points = [{path: draw.choice(some) for path, some in CHOICES.items() if draw.random() < 0.5} for _ in range(12)]
    sets = [point_settings(Settings(), point) for point in points]
    measures, returns = walked_sets(history, sets, CAPITAL, *SPAN)
    for one, row, daily in zip(sets, measures, returns, strict=True):
        result = walk_history(history, one, CAPITAL, *SPAN)
        equity = result.equity.to_numpy()
        assert row[0] == equity[-1] / CAPITAL - 1.0
        assert (daily == equity / np.concatenate([[CAPITAL], equity[:-1]]) - 1.0).all()
        fills = fills_frame(result)
        profits = closed_positions(fills, split_ratios(panel))["profit"].to_numpy()
        numbers = performance(result.equity, CAPITAL, profits)
        measured = dict(zip(module.Measures._fields, row.tolist(), strict=True))
        for name in ("annualized_return", "volatility", "sharpe_ratio", "max_drawdown", "closed_positions", "win_rate"):
            np.testing.assert_allclose(measured[name], getattr(numbers, name), rtol=1e-9, atol=1e-12, err_msg=name)
        assert measured["trades"] == len(fills)
        np.testing.assert_allclose(measured["exposure"], result.exposure.mean(), rtol=1e-9)
        traded = float((fills["quantity"] * fills["price"]).abs().sum())
        turnover = traded / 2 / equity.mean() / (len(equity) / 252)
        np.testing.assert_allclose(measured["turnover"], turnover, rtol=1e-9)


def test_order_of_sets_is_no_matter(history: History) -> None:
    "A set leaves nothing behind for the next one"
    sets = [point_settings(Settings(), {"risk.stop_loss": stop}) for stop in (-0.01, -0.05, -0.3)]
    forwards, backwards = (walked_sets(history, some, CAPITAL, *SPAN)[0] for some in (sets, sets[::-1]))
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_sets_abreast(history: History) -> None:
    "More sets than stand side by side, more sessions than a stretch, and other thresholds on the way"
    stops, buys = np.linspace(-0.01, -0.3, 2 * module.ABREAST + 3).tolist(), (0.001, 0.01)
    points = [{"signals.buy": buys[number // 25], "risk.stop_loss": stop} for number, stop in enumerate(stops)]
    sets = [point_settings(Settings(), point) for point in points]
    assert SPAN[1] - SPAN[0] > module.STRETCH and len({number // 25 for number in range(len(sets))}) == 2
    expected = [walk_history(history, one, CAPITAL, *SPAN).equity.iloc[-1] / CAPITAL - 1.0 for one in sets]
    assert walked_sets(history, sets, CAPITAL, *SPAN)[0][:, 0].tolist() == expected
    assert len(set(expected)) > 5


def test_goes_on_where_it_stopped(history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "What was finished before an interruption is not walked again, and the result is that of an undisturbed sweep"
    monkeypatch.setattr(module, "CHUNK", 4)
    grid = parse_grid("risk.stop_loss=-0.01:-0.1:10 signals.buy=0.001,0.005", Settings())
    undisturbed = run(history, grid, tmp_path / "whole")

    def interrupt(done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(history, grid, tmp_path / "torn", progress=interrupt, threads=1)
    parts = sorted((tmp_path / "torn").rglob("part-*.parquet"))
    assert len(parts) == 2
    stamps = [part.stat().st_mtime_ns for part in parts]
    told: list[int] = []
    again = run(history, grid, tmp_path / "torn", progress=lambda done, total: told.append(done), threads=2)
    assert told == [12, 16, 20]
    assert [part.stat().st_mtime_ns for part in parts] == stamps
    assert again.table.equals(undisturbed.table)
    np.testing.assert_array_equal(again.returns(), undisturbed.returns())


@pytest.mark.parametrize("damage", ["torn", "gone", "short"])
def test_damaged_part_is_walked_again(history: History, tmp_path: Path, damage: str) -> None:
    "Half a file is no file"
    grid = parse_grid("risk.stop_loss=-0.01:-0.1:4", Settings())
    before = run(history, grid, tmp_path)
    (part,) = tmp_path.rglob("part-*.parquet")
    if damage == "gone":
        part.unlink()
    elif damage == "torn":
        os.truncate(part, part.stat().st_size // 2)
    else:
        module.keep_part(part.parent, 0, np.zeros((3, 10)), None)
    assert run(history, grid, tmp_path).table.equals(before.table)


def test_other_inputs_other_folder(history: History, tmp_path: Path) -> None:
    "A sweep never takes what another one left"
    grid = parse_grid("risk.stop_loss=-0.01,-0.1", Settings())
    folders = {run(history, grid, tmp_path).folder}
    folders.add(run(history, parse_grid("risk.stop_loss=-0.01,-0.2", Settings()), tmp_path).folder)
    folders.add(run(history, grid, tmp_path, predictor=lambda point: (*views(history.panel, 1), OPEN)).folder)
    free = run(history, grid, tmp_path, costless=True)
    folders.add(free.folder)
    assert len(folders) == 4
    assert free.costless
    expected = walk_history(history, free_of_costs(point_settings(Settings(), grid.point(0))), CAPITAL, *SPAN)
    assert expected.costless
    assert free.table.total_return[0] == expected.equity.iloc[-1] / CAPITAL - 1.0


def test_trained_settings_are_an_outer_loop(history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "One call for each trained point, and each set is walked on the predictions of its own, over the limits of chunks"
    monkeypatch.setattr(module, "CHUNK", 4)
    grid = parse_grid("risk.stop_loss=-0.02,-0.05,-0.2 label.horizon=2,5,9", Settings())
    asked: list[int] = []

    def predict(point: Settings) -> Views:
        asked.append(point.label.horizon)
        return *views(history.panel, point.label.horizon), OPEN

    result = run(history, grid, tmp_path, predictor=predict)
    assert asked == [2, 5, 9]
    for number in range(grid.size):
        point = grid.point(number)
        own = history_of(history.panel, *views(history.panel, point["label.horizon"]), 0.25)
        equity = walk_history(own, point_settings(Settings(), point), CAPITAL, *SPAN).equity
        assert result.table.total_return[number] == equity.iloc[-1] / CAPITAL - 1.0
        assert result.table["label.horizon"][number] == point["label.horizon"]


def test_returns_too_large_to_keep(history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Above the limit the measures stay and the daily returns do not"
    monkeypatch.setattr(module, "RETURNS", 100)
    result = run(history, parse_grid("risk.stop_loss=-0.02,-0.05", Settings()), tmp_path)
    assert len(result.table) == 2
    with pytest.raises(InputError, match="no daily returns"):
        result.returns()


WRONG = {
    "": "nothing to vary",
    "risk.stop_loss": "allowed: section.key=first:last:count",
    "risk.stop_loss=": "allowed: section.key=first:last:count",
    "broker.capital=1,2": "unknown section",
    "risk.stop_los=-0.1,-0.2": "did you mean stop_loss",
    "risk.stop_loss=0.1:0.2:3": r"risk.stop_loss: found 0.1, allowed: a number in \(-1, 0\)",
    "risk.stop_loss=-0.1:-0.1:3": "two different ends",
    "risk.stop_loss=-0.1:-0.2:0": "two different ends",
    "risk.stop_loss=-0.1:-0.2:-3": "two different ends",
    "risk.stop_loss=-0.1:nan:3": "two different ends",
    "risk.stop_loss=-0.1:-0.2": "two different ends",
    "risk.stop_loss=a,b": "risk.stop_loss: found a",
    "risk.stop_loss=-0.1,-0.1": "each value once",
    "risk.max_positions=1:4:3": "whole numbers only",
    "risk.stop_check=bar,never": "one of bar, close",
    "risk.fractional=maybe": "true or false",
    "risk.max_position=0.5 risk.max_exposure=0.2,0.8": r"max_position: found 0.5, allowed: a number in \(0, max_exp",
    "risk.stop_loss=-0.1 risk.stop_loss=-0.2": "given twice",
    "costs.commission_rate=0,0.1": "costs.commission_rate: found 0.1",
    "costs.commission_rate=0 costs.half_spread=0 costs.slippage=0": "costs are never zero",
    "risk.stop_loss=-0.01:-0.9:2000 signals.buy=0.001:0.1:1000": "2,000,000 sets",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_ranges(text: str, tmp_path: Path) -> None:
    "One line, and nothing is written"
    with pytest.raises(AlphaTraderError, match=WRONG[text]) as caught:
        sweep(Settings(root=tmp_path), text)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@given(first=st.floats(-0.9, -0.01), last=st.floats(-0.9, -0.01), count=st.integers(2, 20))
@hypothesis(max_examples=100)
def test_ranges_include_both_ends(first: float, last: float, count: int) -> None:
    "`count` values, in order, from one end to the other"
    first, last = round(first, 6), round(last, 6)
    if first == last:
        return
    path, values = parse_range(f"risk.stop_loss={first}:{last}:{count}")
    assert (path, len(values), values[0], values[-1]) == ("risk.stop_loss", count, first, last)
    assert list(values) == sorted(values, reverse=last < first)


def test_yes_means_yes() -> None:
    "More than a million sets are walked when somebody insists"
    ranges = "risk.stop_loss=-0.01:-0.9:1001 signals.buy=0.001:0.1:1000"
    assert parse_grid(ranges, Settings(), yes=True).size == 1_001_000


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_prices_that_are_none(value: float) -> None:
    "A bar is whole or not there"
    panel = synthetic_panel(symbols=3, sessions=100, seed=1)
    panel.values[1, 50, 2] = value
    with pytest.raises(InputError, match=f"{panel.symbols[2]} on {panel.sessions[50]} is incomplete"):
        check_prices(panel)
    panel.values[:, :, 2] = np.nan
    with pytest.raises(InputError, match=f"no bar at all of {panel.symbols[2]}"):
        check_prices(panel)


# ---------------------------------------------------------------------- the workspace's own bars and predictions
@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    "A workspace with bars, in which a walk forward takes seconds"
    root = tmp_path_factory.mktemp("sweep")
    settings = write_settings(root, SMALL)
    ingest(settings, open_store(settings.store_url), NOW)
    shutil.copytree(CHECKOUT / "nbs" / "runs", root / "nbs" / "runs")
    return settings


def test_whole_way(lab: Settings) -> None:
    "Each row is what `backtest` answers with these settings; nothing is trained for it a second time"
    told: list[tuple[int, int]] = []
    ranges = "risk.stop_loss=-0.02,-0.08 signals.buy=0.001,0.004"
    result = sweep(lab, ranges, sessions=60, progress=lambda *pair: told.append(pair))
    assert told[-1] == (4, 4)
    for number in range(4):
        study = backtest(point_settings(lab, result.grid.point(number)), sessions=60)
        assert result.table.total_return[number] == study.performance.total_return
        assert result.table.closed_positions[number] == study.performance.closed_positions
    assert len(list((lab.data_dir / "predictions").iterdir())) == 1


REFUSED: dict[str, dict[str, Any]] = {
    "unknown symbol NOPE": {"symbols": ("NOPE",)},
    "allowed: more than 0": {"capital": -1.0},
    "is before the start": {"start": "2013-02-01", "end": "2013-01-02"},
    "is before the first session that is predicted": {"end": "1999-01-04"},
    "ISO dates": {"start": "1.2.2013"},
    "is after the newest session": {"start": "2033-01-03"},
    "sessions asked for": {"sessions": 100_000},
}


@pytest.mark.parametrize("line", REFUSED)
def test_wrong_input(lab: Settings, line: str) -> None:
    "One line, and no folder for results"
    before = set(lab.data_dir.rglob("sweeps/*"))
    with pytest.raises(AlphaTraderError, match=line) as caught:
        sweep(lab, "risk.stop_loss=-0.02,-0.08", **REFUSED[line])
    assert "\n" not in str(caught.value)
    assert set(lab.data_dir.rglob("sweeps/*")) == before


def test_too_little_history(lab: Settings) -> None:
    "Fewer bars than the walk forward needs"
    with pytest.raises(AlphaTraderError, match="min_train"):
        sweep(override(lab, {"model.min_train": 100_000}), "risk.stop_loss=-0.02,-0.08")


def test_notebook(lab: Settings) -> None:
    "The run notebook shows the best sets, and says that costs were left out"
    given = {"ranges": "risk.stop_loss=-0.02,-0.08", "sessions": 60, "costless": True}
    result = run_notebook(lab, "sweep", given, "2013-03-01 sweep", "", open_store(lab.store_url), lambda: NOW)
    assert result.status == "succeeded"
    page = result.report_html.read_text()
    assert "WITHOUT COSTS" in page
    assert "max drawdown" in page and "plotly" in page
