"""What may import what, read what and how much of it: the boundaries of the house, by the syntax tree"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from commands import python
from conftest import CHECKOUT

PACKAGE = {path.stem: path for path in sorted((CHECKOUT / "alpha_trader").glob("*.py")) if path.stem[0] != "_"}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PACKAGE.items()}
HEAVY = {"sklearn", "vectorbt", "matplotlib", "optuna"}
OUTSIDE = {  # a package of somebody else's → the only modules that may import it
    "vectorbt": {"backtest"},
    "papermill": {"runner"},
    "alpaca": {"alpaca_line"},
    "pykis": {"kis_data", "kis_broker"},
}
DOORS = {  # function → why it may read the clock on the wall or the environment by itself
    "load_settings": "the environment is read once, with the settings",
    "library": "waiting threads of OpenMP are told to sleep before the library is loaded",
    "by_revision": "a child of another revision gets the few variables that any process needs",
    "utc_now": "the command line's clock",
    "wall": "processes of one search know by it who is alive, and when the hours are over",
    "RateLimit": "a default that a test replaces: processes that share a limit share no other clock",
    "machine_time": "a line to a broker measures its waits, and a person who works by hand means now",
    "desk_at": "a lease is measured by the clock on the wall, also where a replay's stands still",
}
NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
CLOCKS = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.time_ns"}
PICKLES = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    "Every imported module anywhere in a tree, our own as `alpha_trader.name`, and its line"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"alpha_trader.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            yield module, node.lineno
            if module == "alpha_trader":
                yield from ((f"alpha_trader.{alias.name}", node.lineno) for alias in node.names)


def functions_around(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    "Every node with the name of the innermost function or class it stands in"
    def inside(node: ast.AST, name: str) -> Iterator[tuple[ast.AST, str]]:
        for child in ast.iter_child_nodes(node):
            yield child, name
            yield from inside(child, child.name if isinstance(child, NAMED) else name)

    yield from inside(tree, "")


def number_of(name: str) -> str:
    "The notebook's number of a module: 00, 09a, 12c …; strings of it sort in the order of the house"
    text = PACKAGE[name].read_text(encoding="utf-8")
    header = re.search(r"^# %% \.\./nbs/(\d\d[a-z]?)_\w+\.ipynb", text, re.MULTILINE)
    assert header, f"{name}.py names no notebook"
    return header[1]


# --- light


def test_the_trading_path_is_light(tmp_path: Path) -> None:
    """Done-when 4 of the first issue: what a live cycle imports costs no second of vectorbt, and no plots. No module is
    heavy by itself: the functions that need models, papermill or nbconvert load them"""
    line = f"import alpha_trader.pipeline, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    modules = ", ".join(f"alpha_trader.{name}" for name in PACKAGE)
    lazy = HEAVY | {"lightgbm", "xgboost", "papermill", "nbconvert"}
    answer = python(tmp_path, f"{line}\nimport {modules}\nprint(sorted({lazy!r} & set(sys.modules)))")
    assert (answer.code, answer.out) == (0, "[]\n[]\n"), answer


# --- boundaries


@pytest.mark.parametrize("package", OUTSIDE)
def test_one_door_to_each_foreign_package(package: str) -> None:
    "vectorbt only in 10_backtest, papermill only in 14_runner, each broker's library only in its adapters"
    found = {name for name, tree in TREES.items() for module, _ in imports_of(tree) if module.split(".")[0] == package}
    assert found <= OUTSIDE[package]


def reads_outside(node: ast.AST) -> bool:
    "Is this the environment, or the clock on the wall?"
    if isinstance(node, ast.Attribute):
        text = ast.unparse(node)
        return text.startswith("os.environ") or text in ("os.getenv", *CLOCKS) or text.endswith(".datetime.now")
    return isinstance(node, ast.ImportFrom) and node.module in ("os", "time") and bool(
        {alias.name for alias in node.names} & {"environ", "getenv", "time", "time_ns"}
    )


def test_time_and_environment_come_in_by_named_doors() -> None:
    "No other function reads the clock or the environment; so everything else can be replayed"
    found = {
        f"{name}.py:{node.lineno}: {around or 'the module'}": around
        for name, tree in TREES.items()
        for node, around in functions_around(tree)
        if reads_outside(node)
    }
    strangers = [place for place, around in found.items() if around not in DOORS]
    assert strangers == []
    assert set(found.values()) == set(DOORS), "a door nobody uses is closed"


def test_no_pickle_anywhere() -> None:
    "DA-20: a model file must not be able to run code"
    found = []
    for name, tree in TREES.items():
        found += [f"{name}.py:{line}: {module}" for module, line in imports_of(tree) if module.split(".")[0] in PICKLES]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("to_pickle", "read_pickle"):
                found.append(f"{name}.py:{node.lineno}: {node.attr}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                found.append(f"{name}.py:{node.lineno}: allow_pickle")
    assert found == []


def test_imports_point_downwards() -> None:
    "A module imports only lower-numbered ones, also inside functions and for types"
    upwards = [
        f"{name}.py:{line}: {number_of(name)} imports {target} ({number_of(target)})"
        for name, tree in TREES.items()
        for module, line in imports_of(tree)
        for target in [module.removeprefix("alpha_trader.")]
        if module.startswith("alpha_trader.") and target in PACKAGE and number_of(target) >= number_of(name)
    ]
    assert upwards == []


def test_each_module_is_one_notebook() -> None:
    "nbdev lets a later notebook of the same `default_exp` win silently, and leaves the module of a deleted one behind"
    exports = {}
    for path in sorted((CHECKOUT / "nbs").glob("*.ipynb")):
        [name] = re.findall(r"#\| default_exp (\w+)", path.read_text(encoding="utf-8"))
        assert name not in exports, f"{path.name} and {exports[name]} both export {name}"
        exports[name] = path.name
    assert set(exports) == set(PACKAGE)


# --- the size of a cell


def exported_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    "Place and lines of the exported cells of a notebook, without the directives"
    for place, cell in enumerate(nbformat.read(path, as_version=4).cells):
        lines = cell.source.splitlines()
        if cell.cell_type == "code" and lines and re.match(r"#\| *exports?\b", lines[0]):
            yield place, [line for line in lines if not line.startswith("#|")]


def test_no_exported_cell_is_a_file_in_disguise() -> None:
    "At most 60 lines a cell: one definition that the lesson after it can explain"
    sizes = {
        f"{path.name} cell {place}": len(lines)
        for path in sorted((CHECKOUT / "nbs").glob("*.ipynb"))
        for place, lines in exported_cells(path)
    }
    assert {place: size for place, size in sizes.items() if size > 60} == {}
    assert len(sizes) > 300
