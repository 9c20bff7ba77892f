"""Helpers of the command-line tests: the real command in a real process, and what a workspace remembers"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT
from replay import SMALL

# a broker of a test: a small model that acts on anything
AT_A_BROKER: dict[str, object] = {
    "data.clock": "broker",
    "label.horizon": 2,
    "model.min_train": 200,
    "model.lightgbm_rounds": 8,
    "model.xgboost_rounds": 8,
    "signals.buy": 0.0001,
    "signals.sell": -0.0001,
    "signals.confidence": 0.01,
}
# six sessions with entries, stops, a target taken, an exit at the horizon, cool-downs and new entries
LIVELY: dict[str, object] = SMALL | {
    "label.horizon": 2,
    "risk.stop_loss": -0.015,
    "risk.take_profit": 0.015,
    "run.paper_sessions": 6,
}
Tables = dict[str, list[dict[str, Any]]]


def clean_environment(home: Path) -> dict[str, str]:
    "What a process needs to run, and nothing of the person who runs the tests"
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "TMP", "TEMP", "SYSTEMROOT") if name in os.environ}
    fixed = {"HOME": str(home), "LANG": "C.UTF-8", "TZ": "UTC", "OMP_WAIT_POLICY": "PASSIVE"}
    return kept | fixed | {"PYTHONPATH": str(CHECKOUT)}


@dataclass(frozen=True)
class Answer:
    "How a command ended"

    code: int
    out: str
    err: str

    def json(self) -> Any:
        "The one JSON value that was printed"
        return json.loads(self.out)


def python(root: Path, code: str, *words: str) -> Answer:
    "Run some Python in a process of its own, in a workspace"
    command = [sys.executable, "-c", code, *words]
    environment = clean_environment(root / "home")
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def alpha_trader(root: Path, *words: str) -> Answer:
    "Run the command `alpha-trader` in a process of its own, in a workspace"
    return python(root, "from alpha_trader.cli import main; main()", *words)


MANY = """
import importlib, json, os, sys, tempfile, traceback
from alpha_trader.cli import main
from alpha_trader.runner import LIBRARIES
from alpha_trader.sessions import calendar

for name in LIBRARIES:
    importlib.import_module(name)
calendar()

def answer(words):
    files = [tempfile.TemporaryFile() for _ in range(2)]
    pid = os.fork()
    if pid == 0:
        for number, file in enumerate(files, start=1):
            os.dup2(file.fileno(), number)
        sys.argv, code = ["alpha-trader", *words], 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    code, texts = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode())
    return code, *texts

print(json.dumps([answer(words) for words in json.loads(sys.argv[1])]))
"""


def alpha_traders(root: Path, *commands: Sequence[str]) -> list[Answer]:
    "Several commands, one after the other, each in a process of its own; a common parent has paid the imports"
    parent = python(root, MANY, json.dumps(commands))
    assert (parent.code, parent.err) == (0, ""), parent.err
    return [Answer(*said) for said in json.loads(parent.out)]


def edit_settings(root: Path, changes: dict[str, object]) -> None:
    "Change single lines of the shipped `settings.ini`"
    path = root / "settings.ini"
    text = path.read_text()
    for name, value in changes.items():
        key = name.split(".")[1]
        text, count = re.subn(rf"^{key} =.*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, f"settings.ini has {count} lines of {name}"
    path.write_text(text)


def watch(root: Path, symbols: Sequence[str]) -> None:
    "Put these symbols on the watchlist"
    path = root / "settings.ini"
    text, listed = path.read_text(), ", ".join(symbols)
    start, end = text.index("watchlist ="), text.index("# what results are compared with")
    path.write_text(text[:start] + f"watchlist = {listed}\n" + text[end:])


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    "Let one process at a time through: pytest-xdist gives the tests of one file to several"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def first_start(factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    "A workspace of the shipped settings, made small and lively, after its first `start`; one for all test files"
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root, told = base / "first-start", base / "first-start.json"
    with alone(base / "first-start.lock"):
        if not told.exists():
            shutil.copytree(CHECKOUT / "nbs" / "runs", root / "nbs" / "runs")
            shutil.copy(CHECKOUT / "settings.ini", root)
            edit_settings(root, LIVELY)
            told.write_text(json.dumps(vars(alpha_trader(root, "start"))))
    return root, Answer(**json.loads(told.read_text()))


def tables(path: Path) -> Tables:
    "Every row of an SQLite file, by table"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        names = [row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {name: [dict(row) for row in db.execute(f"SELECT * FROM {name} ORDER BY rowid")] for name in names}


def store(root: Path) -> Tables:
    "Every row of a workspace's store"
    return tables(root / "data" / "alpha_trader.db")


def book(root: Path, account: str) -> Tables:
    "Every row of the simulated broker's book"
    return tables(root / "data" / "sim" / f"{account}.sqlite")


def memory(root: Path) -> dict[str, object]:
    "All that a workspace remembers: rows of databases and contents of files, without its logs"
    found: dict[str, object] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        if path.suffix in (".db", ".sqlite"):
            found[name] = tables(path)
        elif not (name.startswith("data/logs/") or name.endswith(("-wal", "-shm"))):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def of_account(rows: Tables, account: str) -> Tables:
    "The rows that belong to one account"
    return {name: [row for row in table if row.get("account") == account] for name, table in rows.items()}


def refused(answer: Answer, *words: str) -> None:
    "A wrong input: exit code 2, nothing on stdout, one line on stderr that says what was wrong"
    assert (answer.code, answer.out) == (2, ""), answer
    assert answer.err.startswith("alpha-trader: ") and answer.err.count("\n") == 1, answer.err
    for word in words:
        assert word in answer.err, answer.err
