"""Runs as the runner makes them: strict, once, scrubbed, recorded, and readable without a network"""

import builtins
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pydantic import SecretStr
from sqlalchemy import Engine, select

from alpha_trader import runner
from alpha_trader.context import current_run
from alpha_trader.domain import InputError, RunError, RunStatus
from alpha_trader.runner import POINTS, RunResult, decoded, run_notebook, shared_plotly, spawn_run
from alpha_trader.settings import Secrets, Settings
from alpha_trader.store import RunRow, begin_run, open_store, reading, this_process

NOTEBOOKS = Path(__file__).parent / "notebooks"
SLOT = "2013-03-01 decision"
SECRET = "PKsomeverysecretvalue99"
NOW = partial(datetime, 2013, 3, 1, 14, 30, tzinfo=UTC)  # picklable, unlike a lambda
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    "A workspace that holds the sample notebooks and knows one secret"
    shutil.copytree(NOTEBOOKS, tmp_path / "nbs" / "runs")
    return Settings(root=tmp_path, secrets=Secrets(alpaca_api_secret=SecretStr(SECRET)))


@pytest.fixture
def store(settings: Settings) -> Iterator[Engine]:
    engine = open_store(settings.store_url)
    yield engine
    engine.dispose()


@pytest.fixture
def run(settings: Settings, store: Engine) -> Callable[..., RunResult]:
    "Run a notebook of the workspace for `SLOT`"

    def run(notebook: str, account: str = "demo", slot: str = SLOT, **parameters: object) -> RunResult:
        return run_notebook(settings, notebook, parameters, slot, account, store, NOW)

    return run


@pytest.fixture
def run_cells(settings: Settings, run: Callable[..., RunResult]) -> Callable[..., RunResult]:
    "Run a notebook made of these code cells, after a parameters cell"

    def run_cells(*sources: str, parameters: str = "days: int = 20  # sessions", **given: object) -> RunResult:
        cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(new_code_cell, sources)]
        nbformat.write(new_notebook(cells=cells), settings.root / "nbs" / "runs" / "cells.ipynb")
        return run("cells", **given)

    return run_cells


def rows(store: Engine) -> list[RunRow]:
    with reading(store) as db:
        return list(db.scalars(select(RunRow).order_by(RunRow.id)))


def outputs(result: RunResult) -> list[Any]:
    notebook = nbformat.read(result.executed, as_version=4)
    nbformat.validate(notebook)
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def words(result: RunResult) -> str:
    return result.report_html.read_text(encoding="utf-8")


# --- what is refused before anything is written


@pytest.mark.parametrize(
    ("notebook", "parameters", "message"),
    [
        ("sample", {"day": 5}, "sample: unknown parameter 'day', did you mean days? (allowed: session, days, share, "),
        ("sample", {"zzz": 5}, "sample: unknown parameter 'zzz' (allowed: session"),
        ("untagged", {}, "untagged: 0 cells carry the tag 'parameters', allowed: exactly one"),
        ("sample", {"days": "5"}, "sample: parameter days: found '5' (str), allowed: int"),
        ("sample", {"days": True}, "found True (bool), allowed: int"),
        ("sample", {"days": 2.5}, "found 2.5 (float), allowed: int"),
        ("sample", {"days": None}, "found None (NoneType), allowed: int"),
        ("sample", {"share": float("nan")}, "found nan (float), allowed: float"),
        ("sample", {"limit": "all"}, "found 'all' (str), allowed: int or None"),
        ("sample", {"symbols": [{"a": 1}]}, "allowed: list"),
        ("sample", {"session": SECRET}, "parameter session: looks like a secret"),
        ("sample", {"symbols": ["AAPL", f"x{SECRET}x"]}, "parameter symbols: looks like a secret"),
        ("sampel", {}, "no notebook 'sampel', did you mean sample?"),
        ("nowhere/else.ipynb", {}, "no notebook 'nowhere/else.ipynb'"),
    ],
)
def test_refused(
    run: Callable[..., RunResult], store: Engine, settings: Settings, notebook: str, parameters: dict, message: str
) -> None:
    "An unknown, wrong or secret parameter is one clear line, and leaves no trace"
    with pytest.raises(RunError) as caught:
        run(notebook, **parameters)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)
    assert rows(store) == [] and not settings.runs_dir.exists()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("days = 20", "line 1 of the parameters cell is not a typed assignment"),
        ("days: int = 20\nfor n in []: pass", "line 2 of the parameters cell is not a typed assignment"),
        ("days: int = len('ab')", "parameters cell, days: allowed is one line"),
        ("days: dict = {}", "parameters cell, days: allowed is one line"),
        ("days: int = 20\nwhen: int | None = None", "line 2 of the parameters cell, when: allowed is one line"),
        ("days: int =", "line 1 of the parameters cell is not Python"),
        ("days: int = 'many'", "parameter days: found 'many' (str), allowed: int"),
        ("api_key: str = ''", "parameter api_key: looks like a secret"),
    ],
)
def test_refused_cells(run_cells: Callable[..., RunResult], store: Engine, cell: str, message: str) -> None:
    "A parameters cell that papermill would read half is refused"
    with pytest.raises(RunError, match=re.escape(message)):
        run_cells("1", parameters=cell)
    assert rows(store) == []


def test_refused_slot_and_file(run: Callable[..., RunResult], settings: Settings) -> None:
    "A slot begins with its session, and a notebook is a notebook"
    with pytest.raises(RunError, match="slot 'today': allowed is a name that begins with its session"):
        run("sample", slot="today")
    (settings.root / "nbs" / "runs" / "bad.ipynb").write_text("no json")
    with pytest.raises(RunError, match=r"bad\.ipynb: not a notebook"):
        run("bad")


def test_defaults_are_kept_and_values_arrive(run_cells: Callable[..., RunResult]) -> None:
    "Strange text arrives as it was given, an int where a float is declared becomes one"
    text = "quote ' double \" back \\ newline \n { } <b> € 漢"
    cell = "days: int = 20\nshare: float = 0.5\ntext: str = ''\nsymbols: list = []\nlimit: int = None"
    result = run_cells(
        "[days, share, text, symbols, limit]", parameters=cell, text=text, share=1, symbols=("A", "B"), limit=-3
    )
    assert eval(outputs(result)[-1].data["text/plain"]) == [20, 1.0, text, ["A", "B"], -3]
    assert "&lt;b&gt;" in words(result) and "<b>" not in words(result)


# --- what a run leaves


def test_a_run_is_written_down(run: Callable[..., RunResult], store: Engine, settings: Settings) -> None:
    "Row, executed copy and report belong together and lie under the session's date"
    result = run("sample", days=300)
    (row,) = rows(store)
    assert (result.status, result.error, result.run_id) == ("succeeded", "", row.id)
    assert (row.status, row.attempt, row.error) == (RunStatus.SUCCEEDED, 1, "")
    assert row.parameters == {
        "session": "2013-03-01",
        "days": 300,
        "share": 0.5,
        "symbols": ["AAPL", "IBM"],
        "limit": None,
    }
    assert row.report == "data/runs/2013/03/01/sample-2013-03-01-decision-demo-a1.html"
    assert settings.root / row.report == result.report_html and result.executed == result.report_html.with_suffix(
        ".ipynb"
    )
    assert row.package_hash in words(result) and row.settings_hash in words(result)
    assert "(&#39;sample&#39;, &#39;2013-03-01 decision&#39;, &#39;demo&#39;)" in words(
        result
    )  # current_run() in the cell
    assert current_run() is None
    assert not [p for p in settings.runs_dir.rglob("*") if p.name.startswith(".")]


def test_already_done(
    run: Callable[..., RunResult], run_cells: Callable[..., RunResult], store: Engine, settings: Settings
) -> None:
    "DA-1: a slot that succeeded is not run again; another account or slot is another run"
    count = "from pathlib import Path\nwith Path('count').open('a') as file:\n    file.write('x')"
    first, second = run_cells(count), run_cells(count)
    assert (first.status, second.status) == ("succeeded", "already")
    assert (second.report_html, second.executed, second.run_id) == (first.report_html, first.executed, first.run_id)
    assert (settings.root / "count").read_text() == "x"  # and the working directory was the root
    assert run("cells", account="other").status == run("cells", slot="2013-02-28 decision").status == "succeeded"
    assert (settings.root / "count").read_text() == "xxx"
    assert len(rows(store)) == 3


def test_a_failed_cell(run: Callable[..., RunResult], store: Engine) -> None:
    "The report shows the error before anything else; the next run is attempt 2 in files of its own"
    result = run("fails")
    (row,) = rows(store)
    line = "Decide: ZeroDivisionError: division by zero"
    assert (result.status, result.error, row.status, row.error) == ("failed", line, RunStatus.FAILED, line)
    page = words(result)
    assert page.index(line) < page.index("seen before the failure") < page.index("Traceback")
    assert "never reached" in page and "never reached\n</pre>" not in page  # its code is there, its output is not
    assert [output.output_type for output in outputs(result)] == ["stream", "error"]
    again = run("fails")
    assert [r.attempt for r in rows(store)] == [1, 2] and again.report_html != result.report_html
    assert result.report_html.exists() and again.report_html.name.endswith("-a2.html")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("days +", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("input('sure? ')", "EOFError"),
        ("%nosuchmagic", "UsageError"),
        ("raise ExceptionGroup('two', [ValueError(1)])", "ExceptionGroup"),
    ],
)
def test_all_ways_to_fail(run_cells: Callable[..., RunResult], source: str, name: str) -> None:
    "Whatever stops a cell fails the run, also what IPython only prints, and nothing waits for a keyboard"
    result = run_cells(source, "print('never')")
    assert result.status == "failed" and name in result.error
    assert [o.ename for o in outputs(result) if o.output_type == "error"] == [name]


def test_interrupted(run_cells: Callable[..., RunResult], store: Engine) -> None:
    "Ctrl-C in a cell is written down as a failed run, then goes on"
    with pytest.raises(KeyboardInterrupt):
        run_cells("raise KeyboardInterrupt")
    (row,) = rows(store)
    assert row.status is RunStatus.FAILED and "KeyboardInterrupt" in row.error and row.report


def test_a_report_that_cannot_be_written(run: Callable[..., RunResult], store: Engine, settings: Settings) -> None:
    "A full disk or a file in the way leaves no row that says running"
    settings.data_dir.mkdir(exist_ok=True)
    settings.runs_dir.write_text("in the way")
    with pytest.raises(OSError):
        run("dies", deadly=False)
    assert [r.status for r in rows(store)] == [RunStatus.FAILED]


def test_nothing_is_left_behind(run: Callable[..., RunResult]) -> None:
    "Working directory, display, streams, modules and plotly's renderer are as before"
    import plotly.io as pio

    def state() -> tuple:
        main = (sys.modules["__main__"], "__notebook__" in sys.modules)
        return (
            os.getcwd(),
            InteractiveShell._instance,
            sys.stdout,
            sys.stderr,
            sys.stdin,
            sys.displayhook,
            sys.excepthook,
            main,
            vars(builtins).get("display"),
            vars(builtins).get("get_ipython"),
            pio.renderers.default,
            list(sys.path),
        )

    before = state()
    run("sample")
    run("fails")
    assert state() == before


# --- outputs


def test_outputs_keep_their_order(run_cells: Callable[..., RunResult]) -> None:
    "Text, displays and the result stand in the order in which they came; a progress bar shows its end"
    result = run_cells(
        "import sys\nfrom IPython.display import display\n"
        "print('one')\nhandle = display('two', display_id=True)\nprint('three', file=sys.stderr)\n"
        "handle.update('TWO')\nprint('10 %\\r50 %\\r100 %')\n7"
    )
    assert [(o.output_type, o.get("name")) for o in outputs(result)] == [
        ("stream", "stdout"),
        ("display_data", None),
        ("stream", "stderr"),
        ("stream", "stdout"),
        ("execute_result", None),
    ]
    assert outputs(result)[1].data["text/plain"] == "'TWO'"
    assert outputs(result)[3].text == "100 %\n"
    assert outputs(result)[4].execution_count == 2


def test_frames_and_pictures(run_cells: Callable[..., RunResult]) -> None:
    "A frame has HTML, a picture is base64, a semicolon hides a result, a class of the notebook works with dataclasses"
    picture = "from IPython.display import Image\nImage(data=bytes.fromhex('89504e470d0a1a0a'), format='png')"
    frame = "import pandas as pd\npd.DataFrame({'a': [1.5]})"
    klass = "from dataclasses import dataclass\n@dataclass\nclass Pair:\n    a: int\n    b: 'int' = 2\nPair(1)"
    result = run_cells(frame, picture, "8;", klass, "import asyncio\nawait asyncio.sleep(0, 'awaited')")
    found = outputs(result)
    assert "<table" in found[0].data["text/html"] and found[1].data["image/png"] == "iVBORw0KGgo="
    assert [o.data["text/plain"] for o in found[2:]] == ["Pair(a=1, b=2)", "'awaited'"]


def test_text_is_not_markup(run_cells: Callable[..., RunResult]) -> None:
    "Printed text, values and errors that contain HTML are shown, never interpreted"
    attack = "<script>alert('gotcha')</script><img src=x onerror=alert(1)>"
    result = run_cells(f"print({attack!r})", f"{attack!r}", f"raise ValueError({attack!r})")
    page = words(result)
    assert "<script>alert" not in page and "<img src=x" not in page
    assert page.count("&lt;script&gt;alert") >= 4


def test_a_figure_cannot_close_its_script(run_cells: Callable[..., RunResult]) -> None:
    "The JSON of a figure is data, whatever its titles say"
    result = run_cells(
        "import plotly.graph_objects as go\ngo.Figure(layout={'title': '</script><script>alert(1)</script>'})"
    )
    assert "<script>alert(1)" not in words(result)


def test_figures_are_thinned(run_cells: Callable[..., RunResult]) -> None:
    "A line of 20,000 points keeps 500, its extremes with their hover texts among them; a huge heat map is named only"
    result = run_cells(
        "import numpy as np, plotly.graph_objects as go\nn = np.arange(20_000)\ny = np.where(n == 12_345, 9.0, 0.0)\n"
        "go.Figure(go.Scatter(y=y, x=n, text=[f't{k}' for k in n], marker={'size': n.tolist()}))",
        "go.Figure(go.Heatmap(z=np.random.default_rng(0).random((300, 300)))).show()",
    )
    line, heat = outputs(result)
    (trace,) = line.data[runner.PLOTLY]["data"]
    spike = list(decoded(trace["y"])).index(9.0)
    assert len(trace["y"]) <= POINTS
    assert (trace["x"][spike], trace["text"][spike], trace["marker"]["size"][spike]) == (12_345, "t12345", 12_345)
    assert heat.data["text/plain"].startswith("a figure of ") and runner.PLOTLY not in heat.data


# --- secrets


def test_secrets_are_struck_out(run: Callable[..., RunResult], settings: Settings, store: Engine) -> None:
    "B-24: a secret that a cell prints, shows or raises reaches no file and no row"
    result = run("leaks")
    assert result.status == "failed"
    for path in [result.executed, result.report_html, *settings.data_dir.glob("alpha_trader.db*")]:
        assert SECRET.encode() not in path.read_bytes(), path.name
    assert SECRET not in result.error and "refused ***" in result.error
    assert words(result).count("***") >= 4
    assert "shown" in words(result)  # the rest is still there


# --- processes that die


def die_in_run(settings: Settings) -> None:
    run_notebook(settings, "dies", {}, SLOT, "demo", open_store(settings.store_url), NOW)


def test_dead_predecessor(run: Callable[..., RunResult], settings: Settings, store: Engine) -> None:
    "A run that a dead process left running is abandoned, and retried as the next attempt"
    process = multiprocessing.get_context("fork").Process(target=die_in_run, args=(settings,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert [r.status for r in rows(store)] == [RunStatus.RUNNING]
    assert not list(settings.runs_dir.rglob("*.html"))
    result = run("dies", deadly=False)
    assert (result.status, [r.status for r in rows(store)]) == ("succeeded", [RunStatus.ABANDONED, RunStatus.SUCCEEDED])
    assert result.report_html.name == "dies-2013-03-01-decision-demo-a2.html"


def test_living_predecessor(run: Callable[..., RunResult], store: Engine) -> None:
    "A run that is still going on is not run a second time beside it"
    begin_run(store, "dies", SLOT, "demo", NOW(), *this_process())
    with pytest.raises(RunError, match="is being run by process"):
        run("dies", deadly=False)
    assert len(rows(store)) == 1


def test_spawned_run(settings: Settings, store: Engine) -> None:
    "In a child: the same result, progress on the way, errors under their own class"
    steps: list[tuple] = []
    result = spawn_run(settings, "sample", {"days": 300}, SLOT, "demo", NOW, lambda *step: steps.append(step))
    (row,) = rows(store)
    assert (result.status, result.run_id) == ("succeeded", row.id) and row.pid != os.getpid()
    assert steps[0] == (0, len(steps), "A sample report") and steps[-1][0] == len(steps) - 1
    assert spawn_run(settings, "sample", {}, SLOT, "demo", NOW).status == "already"
    assert spawn_run(settings, "fails", {}, SLOT, "demo", NOW).error == "Decide: ZeroDivisionError: division by zero"
    with pytest.raises(RunError, match="unknown parameter 'day'"):
        spawn_run(settings, "sample", {"day": 1}, SLOT, "demo", NOW)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_connection_crosses_the_fork(settings: Settings, store: Engine) -> None:
    "SQLite forbids it: the caller's connections are closed first, and the caller's store works afterwards"
    count = (
        f"import os\nfrom pathlib import Path\nbook = {str(settings.root.resolve() / 'data' / 'alpha_trader.db')!r}\n"
        "links = [os.readlink(p) for p in Path('/proc/self/fd').iterdir() if p.is_symlink() and os.path.exists(p)]\n"
        "links.count(book)"
    )
    cells = [new_code_cell("a: int = 1", metadata={"tags": ["parameters"]}), new_code_cell(count)]
    nbformat.write(new_notebook(cells=cells), settings.root / "nbs" / "runs" / "count.ipynb")
    assert rows(store) == []  # the caller has a connection open
    result = spawn_run(settings, "count", {}, SLOT, "demo", NOW, engine=store)
    assert [o.data["text/plain"] for o in outputs(result)] == ["1"]  # the child's own
    assert len(rows(store)) == 1


def test_spawned_run_is_killed(settings: Settings, store: Engine) -> None:
    "kill -9 in the middle: a failed run with a report, and the next one is attempt 2"
    result = spawn_run(settings, "dies", {}, SLOT, "demo", NOW)
    (row,) = rows(store)
    assert (result.status, result.error) == ("failed", "its process was killed by SIGKILL")
    assert (row.status, row.error, settings.root / row.report) == (RunStatus.FAILED, result.error, result.report_html)
    assert "killed by SIGKILL" in words(result) and "A notebook whose process is killed" in words(result)
    again = spawn_run(settings, "dies", {"deadly": False}, SLOT, "demo", NOW)
    assert (again.status, [r.attempt for r in rows(store)]) == ("succeeded", [1, 2])


def test_spawned_run_interrupted(settings: Settings, store: Engine) -> None:
    "Ctrl-C in the child ends the parent's call in the same way"
    cells = [new_code_cell("a: int = 1", metadata={"tags": ["parameters"]}), new_code_cell("raise KeyboardInterrupt")]
    nbformat.write(new_notebook(cells=cells), settings.root / "nbs" / "runs" / "stop.ipynb")
    with pytest.raises(KeyboardInterrupt):
        spawn_run(settings, "stop", {}, SLOT, "demo", NOW)
    assert [r.status for r in rows(store)] == [RunStatus.FAILED]


def test_spawned_without_fork(settings: Settings, store: Engine) -> None:
    "Where processes cannot be forked a fresh one is started: slower, and otherwise the same"
    assert spawn_run(settings, "dies", {"deadly": False}, SLOT, "demo", NOW, method="spawn").status == "succeeded"


def test_errors_cross_processes() -> None:
    "Errors with arguments of their own are raised again without asking their constructor"
    from alpha_trader.domain import LeaseHeld

    error = runner.restored(LeaseHeld, "account is being traded")
    assert isinstance(error, LeaseHeld) and str(error) == "account is being traded"


# --- the report in a browser


def test_report_is_small_and_offline(run: Callable[..., RunResult], settings: Settings) -> None:
    "Below 500 KB with eight figures of ten years, and nothing in it asks for a network"
    result = run("sample")
    page = words(result)
    assert result.report_html.stat().st_size < 500_000
    assert not re.search(r"""(?:src|href|data|action|poster)\s*=\s*["']?\s*(?:https?:)?//|url\(|@import""", page)
    assert re.findall(r'<script src="([^"]+)"', page) == ["../../../_static/plotly.min.js"]
    assert (result.report_html.parent / "../../../_static/plotly.min.js").resolve() == shared_plotly(settings.runs_dir)
    assert "default-src 'none'" in page and page.startswith("<!DOCTYPE html>")
    assert page.count('<figure class="plotly"') == 8


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_report_draws_without_network(run: Callable[..., RunResult], tmp_path: Path) -> None:
    "Opened from the disk with every host name unknown, each figure is drawn, and the browser complains about nothing"
    result = run("sample")
    switches = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=8000",
    )
    command = [
        str(CHROMIUM),
        *switches,
        f"--user-data-dir={tmp_path / 'chromium'}",
        "--dump-dom",
        result.report_html.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    figures = re.findall(r'<figure class="plotly".*?</figure>', shown.stdout, re.DOTALL)
    assert len(figures) == 8
    assert all('class="main-svg"' in figure and "which lies beside the reports" not in figure for figure in figures)
    assert len(re.findall('class="barlayer', shown.stdout)) >= 4 and "scatterlayer" in shown.stdout
    assert not re.search(r"CONSOLE|Content Security|ERR_", shown.stderr), shown.stderr


def test_plotly_is_copied_once(tmp_path: Path) -> None:
    "The shared script is written when it is missing or of another version, and not otherwise"
    path = shared_plotly(tmp_path)
    first = path.stat().st_mtime_ns
    assert shared_plotly(tmp_path).stat().st_mtime_ns == first
    path.write_text("/** plotly.js v0.0.1 */")
    assert shared_plotly(tmp_path).stat().st_size > 1_000_000


# --- the package


def test_the_template_is_package_data() -> None:
    "The template is a file of the package, so a wheel has it"
    from importlib.resources import files

    folder = files("alpha_trader") / "templates" / "report"
    assert {"conf.json", "index.html.j2", "style.css", "figures.js"} <= {p.name for p in folder.iterdir()}


def test_importing_the_runner_is_light() -> None:
    "Papermill, nbconvert, plotly and the learning libraries are imported when a run needs them"
    heavy = {"papermill", "nbconvert", "plotly", "matplotlib", "sklearn", "lightgbm", "xgboost", "vectorbt", "optuna"}
    code = f"import alpha_trader.runner, sys, json; print(json.dumps(sorted({heavy!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_run_stays_light(settings: Settings, tmp_path: Path) -> None:
    "A run with tables and plotly figures imports no matplotlib and leaves the home directory alone"
    code = (
        "import sys\nfrom datetime import UTC, datetime\nfrom pathlib import Path\n"
        "from alpha_trader.runner import run_notebook\n"
        "from alpha_trader.settings import Settings\nfrom alpha_trader.store import open_store\n"
        f"settings = Settings(root=Path({str(settings.root)!r}))\nstore = open_store(settings.store_url)\n"
        f"run_notebook(settings, 'sample', {{}}, {SLOT!r}, '', store, lambda: datetime(2013, 3, 1, tzinfo=UTC))\n"
        "heavy = {'matplotlib', 'matplotlib_inline', 'sklearn', 'vectorbt', 'optuna', 'ipykernel'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
    assert not list(home.iterdir())


def test_command_line_texts() -> None:
    "A wrong text at the command line is an InputError, which means exit code 2"
    declared = runner.declared_parameters(nbformat.read(NOTEBOOKS / "sample.ipynb", as_version=4), "sample")
    assert runner.from_text(declared["share"], "0.25") == 0.25
    with pytest.raises(InputError, match="parameter days: found 'ten', allowed: int"):
        runner.from_text(declared["days"], "ten")


def test_titles() -> None:
    "A notebook without a heading is called by its file, and a later heading is not mistaken for a title"
    plain = new_notebook(cells=[new_markdown_cell("no heading"), new_markdown_cell("# later")])
    assert runner.titled(plain, "plain") == ("plain", "")
    assert plain.cells[0].source == "no heading"
