"""A trading run killed at any moment, and run again: no order twice, none lost, our positions are the broker's"""

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import CHECKOUT
from replay import SMALL, Lab, closes, fills, prepare, trade

KILLS = 20  # with --slow; fewer by default
BUSY = {
    "data.source": "synthetic",
    "data.synthetic_symbols": 10,
    "data.synthetic_sessions": 1100,
    "model.min_train": 900,
    "label.horizon": 2,
    "signals.buy": 0.0001,
    "signals.sell": -0.0001,
    "signals.confidence": 0.2,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("kill")
    shutil.copytree(CHECKOUT / "nbs" / "runs", root / "nbs" / "runs")
    return prepare(root, SMALL | BUSY | {"run.paper_sessions": KILLS + 12})


def drive(lab: Lab, account: str, kills: int, seed: int = 1) -> list[dict]:
    "Trade all sessions in real processes, killing the first `kills` of them"
    driver = CHECKOUT / "tests" / "kill_driver.py"
    command = [sys.executable, *map(str, (driver, lab.settings.root, account, seed, kills))]
    environment = {**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_twenty_kills_change_nothing(lab: Lab, request: pytest.FixtureRequest) -> None:
    """DA-2, DB-9: the broker's book has each of our orders once, and the account ends as if nothing had happened"""
    kills = KILLS if request.config.getoption("--slow") else KILLS // 4
    *steps, last = drive(lab, "killed", kills)
    assert last["kills"] == kills, "the killed runs must have been running"
    for step in steps:
        assert step["status"] in ("succeeded", "already"), step  # killed after its last word, it was done already
        assert step["ours"] == step["theirs"], step
        assert (step["twice"], step["lost"], step["strangers"], step["open_ended"]) == ([], [], 0, []), step
    trade(lab, [day for day in lab.sessions if str(day) <= steps[-1]["session"]], "calm")
    assert len(fills(lab, "calm")) > kills
    pd.testing.assert_frame_equal(fills(lab, "killed"), fills(lab, "calm"))
    pd.testing.assert_series_equal(closes(lab, "killed"), closes(lab, "calm"))
