"""The bench measures what it says: agreement with the peers installed here, at small sizes; no time is judged"""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import CHECKOUT

sys.path.insert(0, str(CHECKOUT))
from alpha_trader.samples import synthetic_panel
from alpha_trader.settings import Settings
from benchmarks import bench, peer_features, rows_backtest, rows_data, rows_features
from benchmarks.measure import ROWS, TINY, Case, Row, figures, timings


def test_features_agree() -> None:
    "Ours, `ta` and pandas"
    panel = synthetic_panel(symbols=2, sessions=620, seed=8)
    assert rows_features.check_ta(panel, range(2)).startswith("25 features = ta")
    assert rows_features.check_pandas(panel) and rows_features.check_float32(panel)


def test_a_difference_stops_the_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    "The checks can fail: one feature of one peer is off by a millionth"
    honest = peer_features.ta_features

    def wrong(frame: pd.DataFrame) -> dict[str, pd.Series]:
        found = honest(frame)
        return found | {"rsi_14": found["rsi_14"] * (1 + 1e-6)}

    monkeypatch.setattr(peer_features, "ta_features", wrong)
    assert bench.main(["--tiny", "--only", "features", "--json", "-"]) == 1
    said = capsys.readouterr()
    assert "features: left out, the results differ" in said.err and json.loads(said.out)["rows"] == {}
    with pytest.raises(AssertionError, match="rsi_14 against ta"):
        rows_features.check_ta(synthetic_panel(symbols=1, sessions=120, seed=8), range(1))


@pytest.mark.slow  # compiles the callbacks of the peer
def test_backtests_agree() -> None:
    "The common rules: ours and vectorbt, every day's equity"
    checks = rows_backtest.check_common(synthetic_panel(symbols=16, sessions=200, seed=9))
    assert checks[0].startswith("common rules") and int(checks[0].split()[2]) > 50


def test_decisions_agree() -> None:
    "The usual way, symbol by symbol, predicts what ours predicts"
    assert rows_data.cycle_row(TINY, 3).checks == ["the same predictions for 3 symbols"]


def test_our_side_of_every_row_runs() -> None:
    "The walk and the sweep are called as they are today"
    assert len(rows_backtest.walk_only(synthetic_panel(symbols=4, sessions=300, seed=9), Settings())().equity) == 299
    assert rows_backtest.sweep_ours(synthetic_panel(symbols=4, sessions=300, seed=9), 20).grid.size == 20


def test_missing_peers_are_left_out_and_bounds_are_no_peers() -> None:
    "A case without its library is skipped; scales and ratios are computed as told"
    clock = {"times_itself": True}
    others = [Case("x", lambda: 0.5, scale=10, bar=2, **clock), Case("y", int, needs="no_such")]
    row = Row("w", Case("ours", lambda: 2.0, **clock), others)
    found = figures(row, timings(row, repeat=3))
    assert [case["name"] for case in found["cases"]] == ["ours", "x"]
    ours, peer = found["cases"]
    assert [ours["ratio"], *(peer[key] for key in ("ratio", "median", "runs"))] == [1.0, 2.5, 5.0, 3]
    assert bench.target_text(peer) == "≥ 2×: reached"


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    "One row as JSON, the names of all, and one clear line for a wrong one"
    assert bench.main(["--tiny", "--only", "load", "--repeat", "2", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["rows"]) == ["load"] and found["rows"]["load"]["checks"] == ["the same array, bit for bit"]
    assert np.isfinite([case["ratio"] for case in found["rows"]["load"]["cases"]]).all()
    assert bench.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ROWS)
    assert bench.main(["--only", "fetures"]) == 2
    assert capsys.readouterr().err == f"--only fetures: unknown; there are {', '.join(ROWS)}\n"
