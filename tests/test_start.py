"""`alpha-trader start` in a real process: the whole way, again, anew, on the clock on the wall, and after a failure"""

import re
import shutil
import subprocess
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import nbformat
import pytest
from commands import (
    LIVELY,
    Answer,
    Tables,
    alpha_trader,
    book,
    edit_settings,
    first_start,
    memory,
    of_account,
    refused,
    store,
)

from alpha_trader.samples import synthetic_frames
from alpha_trader.schedule import next_slot, wall_work
from alpha_trader.sessions import NEW_YORK, last_completed_session, previous_session, session_open, slot_at
from alpha_trader.settings import load_settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SESSIONS = ("2013-02-22", "2013-02-25", "2013-02-26", "2013-02-27", "2013-02-28", "2013-03-01")


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    "A started workspace that nobody changes"
    return first_start(tmp_path_factory)


@pytest.fixture
def started(first: tuple[Path, Answer], tmp_path: Path) -> Path:
    "A copy of that workspace, to be changed"
    root, answer = first
    assert answer.code == 0, answer.err
    return Path(shutil.copytree(root, tmp_path / "started"))


def work_of(answer: Answer) -> list[tuple[str, str, str]]:
    "The lines about runs: notebook, slot, what became of it"
    notebook, slot = r"(ingest|train|backtest|trade|daily_report)", r"(\d{4}-\d\d-\d\d \w+(?: \w+)?)"
    return re.findall(rf"^{notebook} +{slot} +(\w.*)$", answer.out, re.MULTILINE)


def reports_of(answer: Answer) -> list[Path]:
    "The paths that were printed last"
    return [Path(line.strip()) for line in answer.out.partition("\nreports\n")[2].splitlines()]


def trades_of(rows: Tables, account: str) -> list[tuple[object, ...]]:
    "The fills of an account, without the names and moments that differ from one account to the next"
    names = ("session", "symbol", "side", "quantity", "price", "fee")
    return sorted(tuple(row[name] for name in names) for row in rows["fills"] if row["account"] == account)


# --- the first time


def test_the_whole_way(first: tuple[Path, Answer]) -> None:
    "Exit code 0; ingest, train, backtest, one run a session and a report, each recorded with its report"
    root, answer = first
    assert answer.code == 0, answer.err
    assert "Traceback" not in answer.err
    expected = ["ingest", "train", "backtest", *["trade"] * len(SESSIONS), "daily_report"]
    work = work_of(answer)
    assert [notebook for notebook, _, _ in work] == expected
    assert {status for _, _, status in work} == {"succeeded"}
    assert [slot.split()[0] for notebook, slot, _ in work if notebook == "trade"] == list(SESSIONS)
    runs = store(root)["runs"]
    assert [(row["notebook"], row["slot"], row["status"]) for row in runs] == work
    for row in runs:
        assert (row["attempt"], row["error"]) == (1, "")
        assert row["started_at"] <= row["finished_at"]
        assert (root / row["report"]).is_file() and (root / row["report"]).with_suffix(".ipynb").is_file()


def test_the_summary(first: tuple[Path, Answer]) -> None:
    "What was trained, out-of-sample numbers beside holding, orders, equity, refusals, the verdict, the next slot"
    root, answer = first
    rows = store(root)
    [model] = rows["models"]
    assert (model["state"], model["reason"]) == ("champion", "first model, paper only")
    filled = [row for row in rows["intents"] if row["status"] == "filled"]
    purposes = ("entry", "exit", "stop", "target")
    count = {purpose: sum(row["purpose"] == purpose for row in filled) for purpose in purposes}
    assert all(count.values()), "the window must show entries and all kinds of exits"
    closed = [row["equity"] for row in rows["equity_snapshots"] if row["kind"] == "close"][-1]
    for words in (
        f"model     {model['id']}, champion: first model, paper only",
        "evidence of skill",
        "five companies that survived: nothing about the future follows from them",
        f"account   demo: 100,000.00 → {closed / 100:,.2f} USD",
        ", ".join(f"{n} {purpose}" for purpose, n in sorted(count.items())),
        "next      decision slot Monday 2013-03-04 09:30 New York",
    ):
        assert words in answer.out, words
    assert re.search(r"this strategy +[+-][\d.]+% a year .*\n +buy and hold +[+-][\d.]+% a year", answer.out)
    assert re.search(r"refused   \d+× \w", answer.out)


def test_reports_are_small_and_offline(first: tuple[Path, Answer]) -> None:
    "Every report is below 500 KB and asks for nothing but the script that lies beside the reports"
    root, answer = first
    printed = reports_of(answer)
    assert [path.name.split("-")[0] for path in printed] == ["ingest", "train", "backtest", "daily_report", "trade"]
    pages = sorted((root / "data" / "runs").rglob("*.html"))
    assert set(printed) <= set(pages) and len(pages) == 4 + len(SESSIONS)
    for path in pages:
        page = path.read_text(encoding="utf-8")
        assert path.stat().st_size < 500_000, path
        elsewhere = r"""(?:src|href|data|action|poster)\s*=\s*["']?\s*(?:https?:)?//|url\(|@import"""
        assert not re.search(elsewhere, page), path
        for script in re.findall(r'<script src="([^"]+)"', page):
            assert (path.parent / script).resolve() == root / "data" / "runs" / "_static" / "plotly.min.js"
        assert "This run failed" not in page and 'id="failure"' not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_reports_open_without_network(first: tuple[Path, Answer], tmp_path: Path) -> None:
    "In headless Chromium with every host name unknown: tables with rows, each figure drawn, no complaint"
    for number, path in enumerate(reports_of(first[1])):
        switches = (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=8000", "--dump-dom",
        )  # fmt: skip
        command = [str(CHROMIUM), *switches, f"--user-data-dir={tmp_path / str(number)}", path.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        figures = re.findall(r'<figure class="plotly".*?</figure>', shown.stdout, re.DOTALL)
        assert figures and all('class="main-svg"' in figure for figure in figures), path
        assert len(re.findall(r"<tr[ >]", shown.stdout)) > 5, path
        assert not re.search(r"CONSOLE|Content Security|ERR_", shown.stderr), shown.stderr


# --- again


def test_again_does_nothing_twice(first: tuple[Path, Answer], started: Path) -> None:
    "A second `start` trains nothing, orders nothing, changes no row and no file, and says what was done before"
    before = memory(started)
    again = alpha_trader(started, "start")
    assert again.code == 0, again.err
    assert {status for _, _, status in work_of(again)} == {"done before"}
    assert {notebook for notebook, _, _ in work_of(again)} == {"ingest", "train", "backtest", "trade", "daily_report"}
    assert memory(started) == before
    assert closing(again, started) == closing(first[1], first[0])


def closing(answer: Answer, root: Path) -> list[str]:
    "The summary without the verdict: other tests look at backtests of the first workspace, and every look counts"
    lines = answer.out.partition("\nmodel ")[2].replace(str(root), "").splitlines()
    return [line for line in lines if "evidence of skill" not in line]


def test_fresh_is_another_account(started: Path) -> None:
    "`--fresh` trades the same sessions with the same fills in a book of its own; the first account stays as it was"
    before, old_book = store(started), book(started, "demo")
    fresh = alpha_trader(started, "start", "--fresh", "second", "--json")
    assert fresh.code == 0, fresh.err
    said = fresh.json()
    assert (said["status"], said["account"]) == ("success", "second")
    assert all(Path(path).is_file() for path in said["reports"]) and len(said["reports"]) == 5
    assert said["next_slot"] == "2013-03-04 14:30:00+00:00"
    for numbers in (said["out_of_sample"], said["buy_and_hold"]):
        assert {"annualized_return", "sharpe_ratio", "max_drawdown"} <= set(numbers)
    after = store(started)
    assert of_account(after, "demo") == of_account(before, "demo") and book(started, "demo") == old_book
    assert trades_of(after, "second") == trades_of(before, "demo") != []
    assert book(started, "second")["fills"] and len(book(started, "second")["fills"]) == len(old_book["fills"])
    assert after["models"] == before["models"]
    new = [row for row in after["runs"] if row not in before["runs"]]
    assert [(row["notebook"], row["account"]) for row in new] == [
        *[("trade", "second")] * len(SESSIONS),
        ("daily_report", "second"),
    ]
    kept = memory(started)
    refused(alpha_trader(started, "start", "--fresh", "demo"), "--fresh", "demo", "exists already", "allowed")
    assert memory(started) == kept


# --- after a failure


def insert_cell(notebook: Path, after: str, source: str) -> None:
    "Put a cell behind the one that begins with `after`"
    node = nbformat.read(notebook, as_version=4)
    [place] = [n for n, cell in enumerate(node.cells) if cell.source.startswith(after)]
    node.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    nbformat.write(node, notebook)


def run_rows(root: Path, account: str) -> list[tuple[str, str, int]]:
    "Session, status and attempt of an account's trading runs"
    rows = [row for row in store(root)["runs"] if (row["notebook"], row["account"]) == ("trade", account)]
    return [(row["slot"].split()[0], row["status"], row["attempt"]) for row in rows]


@pytest.mark.slow
def test_a_failure_stops_and_the_next_start_goes_on(started: Path) -> None:
    """A cell that raises after the orders were sent, then a broken bars file: exit code 1, the report shows the error,
    the row says failed, nothing is half-written; after the repair every session ends as in the untroubled account"""
    notebook = started / "nbs" / "runs" / "trade.ipynb"
    bars = started / "data" / "bars" / "sample-sip-eod" / "AAPL.parquet"
    whole = notebook.read_bytes()
    trouble = f'if session == "{SESSIONS[1]}":\n    raise RuntimeError("the lights went out")'
    insert_cell(notebook, "outcomes = commit", trouble)
    failed = alpha_trader(started, "start", "--fresh", "third")
    assert failed.code == 1 and "Traceback" not in failed.err, failed
    assert work_of(failed)[-1] == ("trade", f"{SESSIONS[1]} decision", "failed")
    assert "the lights went out" in failed.out and "stopped" in failed.out
    assert run_rows(started, "third") == [(SESSIONS[0], "succeeded", 1), (SESSIONS[1], "failed", 1)]
    row = store(started)["runs"][-1]
    assert "the lights went out" in row["error"] and "\n" not in row["error"] and row["finished_at"]
    page = (started / row["report"]).read_text(encoding="utf-8")
    assert "This run failed" in page and 'id="failure"' in page and "the lights went out" in page
    nbformat.validate(nbformat.read((started / row["report"]).with_suffix(".ipynb"), as_version=4))
    assert started / row["report"] in reports_of(failed)

    notebook.write_bytes(whole)
    with bars.open("r+b") as file:
        file.truncate(bars.stat().st_size // 2)
    orders, intents = book(started, "third"), of_account(store(started), "third")["intents"]
    failed = alpha_trader(started, "start")
    assert failed.code in (1, 2) and "Traceback" not in failed.err, failed
    assert "AAPL.parquet" in failed.out + failed.err
    assert run_rows(started, "third")[2:] == [(SESSIONS[1], "failed", 2)]
    assert book(started, "third") == orders and of_account(store(started), "third")["intents"] == intents != []
    left = [path for path in started.rglob("*") if path.name.startswith(".") or path.suffix in (".part", ".tmp")]
    assert [path.name for path in left] == [".notest"]

    assert alpha_trader(started, "run", "ingest").code == 0
    mended = alpha_trader(started, "start")
    assert mended.code == 0, mended.out
    rest = SESSIONS[1:]
    assert [status for notebook, _, status in work_of(mended) if notebook == "trade"] == ["succeeded"] * len(rest)
    assert run_rows(started, "third")[3:] == [(day, "succeeded", 3 if day == rest[0] else 1) for day in rest]
    rows = store(started)
    assert trades_of(rows, "third") == trades_of(rows, "demo") != []
    names = [row["client_id"] for row in book(started, "third")["orders"]]
    assert len(names) == len(set(names)) == len(book(started, "demo")["orders"])


# --- the clock on the wall


def test_wall_clock(workspace: Path) -> None:
    "With a person's own files up to the newest session and `clock = wall`: the due work, the next slot, exit code 0"
    now = datetime.now(UTC)
    newest = last_completed_session(now)
    edit_settings(workspace, LIVELY | {"data.source": "folder", "data.folder": "mine", "data.clock": "wall"})
    edit_settings(workspace, {"model.min_train": 200})  # two years always hold a 2 January after 200 sessions
    (workspace / "mine").mkdir()
    frames = synthetic_frames(2, 500, start=previous_session(newest, 499))
    for symbol, frame in zip(("AAPL", "MSFT"), frames.values(), strict=True):
        frame.rename_axis("date").to_csv(workspace / "mine" / f"{symbol}.csv")
    settings = load_settings(workspace, {})
    answer = alpha_trader(workspace, "start")
    assert answer.code == 0, answer
    possible = {next_slot(settings, moment).astimezone(NEW_YORK) for moment in (now, datetime.now(UTC))}
    assert any(f"next      decision slot {moment:%A %Y-%m-%d %H:%M} New York" in answer.out for moment in possible)
    work = [(notebook, status) for notebook, _, status in work_of(answer)]
    assert work[:3] == [("ingest", "succeeded"), ("train", "succeeded"), ("backtest", "succeeded")]
    if {slot_at(moment).kind for moment in (now, datetime.now(UTC))}.isdisjoint({"decision"}):
        assert work[3:] == []
        assert store(workspace)["intents"] == []
    assert "survived" not in answer.out, "these are not the sample's five companies"


@pytest.mark.parametrize(
    ("now", "decided", "also", "following"),
    [
        ("2026-11-21 12:00", None, [], "2026-11-23 14:30"),  # a Saturday
        ("2026-11-21 12:00", date(2026, 11, 20), ["daily_report 2026-11-20 close"], "2026-11-23 14:30"),
        ("2026-11-20 17:00", date(2026, 11, 20), [], "2026-11-23 14:30"),  # in the middle of a session
        ("2026-11-20 14:31", date(2026, 11, 19), ["trade 2026-11-20 decision", "daily_report 2026-11-19 close"], None),
        ("2026-11-20 13:00", date(2026, 11, 19), ["daily_report 2026-11-19 close"], "2026-11-20 14:30"),  # early
        ("2026-11-26 16:00", None, [], "2026-11-27 14:30"),  # Thanksgiving
        ("2026-11-27 18:30", None, [], "2026-11-30 14:30"),  # after an early close
        ("2026-03-06 21:30", None, [], "2026-03-09 13:30"),  # over the weekend that sets the clocks forward
    ],
)
def test_what_is_due(workspace: Path, now: str, decided: date | None, also: list[str], following: str | None) -> None:
    "Trading only in the decision slot, a report once a decided session has closed, and the right next slot"
    edit_settings(workspace, {"data.clock": "wall", "data.source": "synthetic"})
    settings = load_settings(workspace, {})
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    work = wall_work(settings, "demo", moment, decided)
    assert [due.notebook for due in work[:3]] == ["ingest", "train", "backtest"]
    assert [f"{due.notebook} {due.slot}" for due in work[3:]] == also
    expected = datetime.fromisoformat(following).replace(tzinfo=UTC) if following else session_open(date(2026, 11, 23))
    assert next_slot(settings, moment) == expected
    later = wall_work(settings, "demo", moment + timedelta(seconds=1), decided)
    assert [due.slot for due in later] == [due.slot for due in work], "a slot's name is the same for all its moments"
