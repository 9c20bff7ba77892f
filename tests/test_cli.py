"""Every command in a process of its own: a table for a person, JSON for a program, one line for a wrong input"""

import shutil
from pathlib import Path

import pytest
from commands import (
    Answer,
    alpha_trader,
    alpha_traders,
    book,
    edit_settings,
    first_start,
    memory,
    refused,
    store,
)


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A started workspace that nobody changes"
    root, answer = first_start(tmp_path_factory)
    assert answer.code == 0, answer
    return root


@pytest.fixture
def started(first: Path, tmp_path: Path) -> Path:
    "A copy of that workspace, to be changed"
    return Path(shutil.copytree(first, tmp_path / "started"))


# --- what only looks

LOOKS = {  # command → keys of its JSON, words of its table
    "plan": ({"symbol", "signal", "predicted", "confidence", "held", "order", "reason"}, "session 2013-03-04"),
    "backtest --days 90": ({"status", "performance", "buy_and_hold", "verdict", "symbols", "capital"}, "sharpe_ratio"),
    "backtest --symbols AAPL,MSFT --days 30 --capital 5000": ({"status", "performance", "costs_doubled"}, "AAPL, MSFT"),
    "backtest --start 2012-06-01 --end 2012-08-31": ({"first", "last", "performance"}, "sharpe_ratio"),
    "signal aapl": ({"symbol", "session", "model", "signal", "predicted", "confidence", "reason"}, "AAPL"),
    "bars AAPL --limit 3": ({"session", "open", "high", "low", "close", "volume", "split", "dividend"}, "2013-03-01"),
    "price AAPL": ({"symbol", "price", "currency", "at", "kind", "source"}, "430.47"),
    "positions": ({"symbol", "quantity", "average_price", "entry_session"}, "positions of demo"),
    "status": ({"mode", "account", "halted", "equity", "last_session", "next_slot"}, "2013-03-04 09:30 New York"),
    "orders": ({"client_id", "intent", "fills", "reason", "status"}, "STOP_LOSS"),
    "orders --all": ({"client_id", "intent", "fills", "reason", "status"}, "expired"),
    "runs --limit 4": ({"id", "notebook", "slot", "status", "report", "error"}, "daily_report"),
    "models": ({"id", "state", "reason", "recipe", "scores"}, "first model, paper only"),
}


def forgetful(found: dict[str, object]) -> dict[str, object]:
    "Without the ledger of tries: a backtest that was looked at is counted, and that is all it writes"
    kept = dict(found)
    for name, content in found.items():
        if isinstance(content, dict):
            kept[name] = {table: rows for table, rows in content.items() if table != "trials"}
    return kept


@pytest.fixture(scope="session")
def looked(first: Path) -> dict[str, tuple[Answer, Answer]]:
    "What each of them told a person and a program, and that nothing was changed by it"
    before = forgetful(memory(first))
    words = [command.split() for command in LOOKS]
    answers = alpha_traders(first, *words, *([*command, "--json"] for command in words))
    assert forgetful(memory(first)) == before, "a command that looks must not write"
    return dict(zip(LOOKS, zip(answers[: len(words)], answers[len(words) :], strict=True), strict=True))


def test_looking(first: Path, looked: dict[str, tuple[Answer, Answer]]) -> None:
    "Exit code 0, a table with the words that matter, and JSON with the keys that a program may rely on"
    for command, (table, program) in looked.items():
        keys, word = LOOKS[command]
        assert (table.code, table.err, program.code, program.err) == (0, "", 0, ""), (command, table, program)
        assert word in table.out and "{" not in table.out, (command, table.out)
        said = program.json()
        rows = said if isinstance(said, list) else [said]
        assert rows and all(keys <= set(row) for row in rows), (command, rows[:1])
    said = {command: program.json() for command, (_, program) in looked.items()}
    assert [len(said[name]) for name in ("plan", "bars AAPL --limit 3", "runs --limit 4", "models")] == [5, 3, 4, 1]
    wanted = {"total_return", "annualized_return", "sharpe_ratio", "max_drawdown", "win_rate"}
    for name in ("backtest --days 90", "backtest --symbols AAPL,MSFT --days 30 --capital 5000"):
        assert said[name]["status"] == "success" and wanted <= set(said[name]["performance"])
    summer = said["backtest --start 2012-06-01 --end 2012-08-31"]
    assert (summer["first"], summer["last"]) == ("2012-06-01", "2012-08-31")
    small = said["backtest --symbols AAPL,MSFT --days 30 --capital 5000"]
    assert (small["symbols"], small["capital"], small["performance"]["sessions"]) == (["AAPL", "MSFT"], 5000.0, 30)


def test_orders_are_the_books(first: Path, looked: dict[str, tuple[Answer, Answer]]) -> None:
    "`orders --json` is every order of the broker's book with its fills; `positions` is what it holds"
    theirs = book(first, "demo")
    ours = looked["orders --all"][1].json()
    assert [row["client_id"] for row in ours] != [] and len({row["client_id"] for row in ours}) == len(ours)
    assert {row["client_id"] for row in ours} == {row["client_id"] for row in theirs["orders"]}
    assert sum(len(row["fills"]) for row in ours) == len(theirs["fills"])
    assert {row["purpose"] for row in looked["orders"][1].json()} >= {"entry", "exit", "stop", "target"}
    held = {row["symbol"]: int(row["quantity"]) for row in looked["positions"][1].json()}
    bought = {symbol: 0 for symbol in held}
    for row in ours:
        sign = 1 if row["side"] == "buy" else -1
        bought[row["symbol"]] = bought.get(row["symbol"], 0) + sign * int(row["filled"])
    assert {symbol: quantity for symbol, quantity in bought.items() if quantity} == held != {}


# --- wrong input

WRONG = {  # command → words of the one line
    "signal ZZZ": ("ZZZ", "AAPL"),
    "bars ZZZ": ("ZZZ", "AAPL"),
    "price ZZZ": ("ZZZ", "AAPL"),
    "backtest --symbols AAPL,ZZZ": ("ZZZ", "AAPL"),
    "backtest --days 99999": ("99999", "allowed"),
    "backtest --capital inf": ("capital was inf", "allowed"),
    "backtest --start 2012-13-01": ("2012-13-01", "allowed"),
    "backtest --start 2013-02-01 --end 2012-02-01": ("the end 2012-02-01 is before the start 2013-02-01",),
    "backtest --start 2030-01-02": ("the start 2030-01-02 is after the newest session, 2013-03-01",),
    "backtest --end 1999-12-31": ("the end 1999-12-31 is before the first session",),
    "close": ("name one symbol, or --all",),
    "close AAPL --all": ("name one symbol, or --all",),
    "close ZZZ": ("ZZZ", "AAPL"),
    "close AAPL": ("the market is closed", "2013-03-04 09:30 New York"),
    "close --all": ("the market is closed", "2013-03-04 09:30 New York"),
    "run nope": ("nope", "trade"),
    "run trade --as-of 2013-02-30": ("2013-02-30", "allowed"),
    "run train -p nope 1": ("nope", "session"),
    "run train -p session": ("-p session", "allowed"),
    "run train -p session yesterday": ("yesterday", "allowed"),
    "start --fresh demo": ("--fresh", "demo", "allowed"),
    "start --fresh UPPER": ("UPPER", "allowed"),
}
MISUSED = [  # refused by the parser of the command line
    "nonsense", "plan extra", "plan --nope", "halt", "bars", "bars AAPL --limit x", "bars AAPL --limit 0",
    "runs --limit -1", "backtest --days -5", "backtest --days x", "backtest --capital -5", "backtest --capital nan",
]  # fmt: skip


def test_wrong_input_is_one_line_and_changes_nothing(first: Path) -> None:
    "A wrong symbol, date, number, name or moment: exit code 2, one clear line on stderr, nothing written"
    before = memory(first)
    for command, answer in zip(WRONG, alpha_traders(first, *map(str.split, WRONG)), strict=True):
        refused(answer, *WRONG[command])
    for command, answer in zip(MISUSED, alpha_traders(first, *map(str.split, MISUSED)), strict=True):
        assert (answer.code, answer.out) == (2, ""), (command, answer)
        assert answer.err and "Traceback" not in answer.err, (command, answer)
    assert memory(first) == before


def test_in_a_process_of_its_own(first: Path) -> None:
    "The same without the driver that the other tests use: a shell sees this"
    refused(alpha_trader(first, "price", "ZZZ"), "ZZZ", "AAPL")
    assert alpha_trader(first, "price", "AAPL", "--json").json()["price"] == 430.47


def test_wrong_settings_are_one_line(started: Path) -> None:
    "Every command begins with the settings, so a wrong one stops every command, before anything is written"
    edit_settings(started, {"risk.max_position": "11"})
    before = memory(started)
    for answer in alpha_traders(started, ["start"], ["halt", "x"], ["status", "--json"]):
        refused(answer, "settings.ini", "risk", "max_position", "11", "allowed")
    assert memory(started) == before


# --- what acts


def test_a_halt_survives_and_stops_entries(started: Path) -> None:
    "DB-7: a halt is in the store, so neither a new process nor a new `start` forgets it; exits go on"
    answers = alpha_traders(
        started, ["plan", "--json"], ["halt", "too hot"], ["start"], ["plan"], ["plan", "--json"],
        ["halt", "even hotter"], ["status", "--json"], ["resume"], ["resume"], ["plan", "--json"],
    )  # fmt: skip
    assert {answer.code for answer in answers} == {0}, answers
    before, halted, _, table, plan, _, status, resumed, twice, after = answers
    free = before.json()
    wanted = {row["symbol"] for row in free if row["order"] > 0}
    assert "too hot" in halted.out and status.json()["halted"] == "too hot"
    stopped = {row["symbol"]: (row["order"], row["reason"]) for row in plan.json()}
    assert wanted and all(stopped[symbol] == (0.0, "HALTED") for symbol in wanted)
    assert {row["symbol"]: row["order"] for row in free if row["order"] <= 0}.items() <= {
        symbol: order for symbol, (order, _) in stopped.items()
    }.items()
    assert "no entries" in table.out and "too hot" in table.out
    assert "trades again" in resumed.out and "was not halted" in twice.out
    assert after.json() == free
    assert [row["kind"] for row in store(started)["risk_events"]] == ["halt", "halt", "resume"]


def test_closing_by_hand(started: Path) -> None:
    "While the market is open a position is sold through an intent, and `--all` sells the rest; twice is refused"
    edit_settings(started, {"broker.account": "hand"})
    traded, positions = alpha_traders(started, ["run", "trade", "--as-of", "2013-02-22"], ["positions", "--json"])
    assert (traded.code, positions.code) == (0, 0), traded
    held = {row["symbol"]: row["quantity"] for row in positions.json()}
    one, *rest = held
    assert rest, "two positions are needed to tell one from all"
    first, again, others, none, orders = alpha_traders(
        started, ["close", one, "--json"], ["close", one], ["close", "--all"], ["positions"], ["orders", "--json"],
    )  # fmt: skip
    [sold] = first.json()
    assert (first.code, sold["symbol"], sold["filled"], sold["status"]) == (0, one, held[one], "filled")
    refused(again, one, "not held", *rest)
    assert others.code == 0 and all(symbol in others.out for symbol in rest)
    assert none.out == "positions of hand: none\n"
    closed = [row for row in orders.json() if row["purpose"] == "close"]
    assert {row["symbol"]: row["filled"] for row in closed} == held
    assert [row["reason"] for row in closed] == ["CLOSED_BY_HAND"] * len(held)
    assert {row["client_id"] for row in closed} <= {row["client_id"] for row in book(started, "hand")["orders"]}


def test_a_run_by_hand(started: Path) -> None:
    "`run` says where the report is; a run that fails says why, and ends with exit code 1"
    bars = started / "data" / "bars" / "sample-sip-eod" / "AAPL.parquet"
    whole = bars.read_bytes()
    bars.write_bytes(whole[:1000])
    failed, done = alpha_traders(started, ["run", "backtest"], ["run", "ingest", "--json"])
    assert (done.code, done.err) == (0, ""), done
    assert done.json()["status"] == "succeeded" and Path(done.json()["report"]).is_file()
    assert bars.stat().st_size > len(whole) // 2, "ingest replaces a broken file"
    assert failed.code in (1, 2) and "Traceback" not in failed.err
    assert "AAPL.parquet" in failed.out + failed.err
