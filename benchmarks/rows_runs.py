"""What it costs to run a notebook"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from benchmarks.measure import Case, Row, Size, row

FOLDER = tempfile.TemporaryDirectory(prefix="bench-")
CELLS = (
    "import lightgbm\nimport numpy as np\nimport pandas as pd\n\nfrom alpha_trader.pipeline import trade_cycle",
    "pd.Series(np.arange(days))",
)
SERVER = """
import sys, time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from alpha_trader.runner import spawn_run, warm
from alpha_trader.settings import Settings
root = Path(sys.argv[1])
warm([root / "nbs" / "runs" / "probe.ipynb"])
now, settings, run = partial(datetime, 2013, 3, 1, 14, 30, tzinfo=UTC), Settings(root=root), 0
print("ready", flush=True)
for line in sys.stdin:
    run += 1
    start = time.perf_counter()
    result = spawn_run(settings, "probe", {"days": 30}, f"2013-03-01 {run}", "", now)
    print(time.perf_counter() - start if result.status == "succeeded" else result.error, flush=True)
"""  # a scheduler in small: it has imported everything, and forks a child for each run


def probe(root: Path) -> Path:
    "A notebook that imports what a trading run imports, and shows a small table"
    path = root / "nbs" / "runs" / "probe.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        new_code_cell("days: int = 20  # rows shown", metadata={"tags": ["parameters"]}),
        *map(new_code_cell, CELLS),
    ]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    return path


def scheduler(root: Path) -> Callable[[], float]:
    "Ask a warm process for one run; answers with the seconds it took there"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    asking, telling = server.stdin, server.stdout
    assert asking and telling and telling.readline() == "ready\n"

    def call() -> float:
        asking.write("run\n")
        asking.flush()
        return float(telling.readline())

    return call


def papermill(path: Path) -> Callable[[], None]:
    "The papermill command, as a scheduler would call it"
    command = [sys.executable, "-m", "papermill", str(path), str(path.with_name("executed.ipynb")), "-p", "days", "30"]
    return lambda: subprocess.run(command, check=True, capture_output=True) and None


@row("notebook")
def notebook_row(size: Size) -> Row:
    """A scheduled run of a notebook that imports the trading path and shows one table

    Ours: `spawn_run` in a process that has imported everything once, as the scheduler does: a forked child executes
    the notebook, records the run in the store and writes the executed notebook and its HTML. papermill: its
    command, which starts an interpreter and a kernel and writes the executed notebook only.
    """
    root = Path(FOLDER.name)
    path = probe(root)
    return Row(
        "overhead of a scheduled notebook run",
        Case("ours, spawn_run", scheduler(root), times_itself=True),
        [Case("papermill command", papermill(path), needs="papermill", bar=20, moonshot=80)],
    )
