"""Compiled code is never served stale: whole processes on a copy of the package"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import alpha_trader
from alpha_trader.kernels import CACHE, PACKAGE, source_hash

LIMIT = """
from alpha_trader.kernels import kernel
LIMIT = {limit}
@kernel
def limit() -> int:
    return LIMIT
"""
CALLER = """
import numba
from alpha_trader.kernels import kernel
from alpha_trader.limit import limit
@kernel
def twice() -> int:
    return 2 * limit()
@numba.njit(cache=True)
def twice_by_numba() -> int:
    return 2 * limit()
"""
ASK = """
from alpha_trader.caller import twice
print(twice(), sum(twice.stats.cache_hits.values()))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    "A checkout with a copy of the package and two small modules, one calling the other"
    package = tmp_path / "alpha_trader"
    package.mkdir()
    (tmp_path / "pyproject.toml").touch()
    for name in ("__init__.py", "kernels.py"):
        shutil.copy(Path(alpha_trader.__file__).parent / name, package / name)
    (package / "limit.py").write_text(LIMIT.format(limit=7))
    (package / "caller.py").write_text(CALLER)
    return tmp_path


def run(checkout: Path, script: str) -> list[str]:
    "Words that a new process prints which uses the copy"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=checkout, env=environ | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_edit_in_another_module_is_seen(checkout):
    "The caller's own file is unchanged; the second process is served from the cache, the third is not"
    assert run(checkout, ASK) == ["14", "0"]
    assert run(checkout, ASK) == ["14", "1"]
    (checkout / "alpha_trader" / "limit.py").write_text(LIMIT.format(limit=8))
    assert run(checkout, ASK) == ["16", "0"]
    (checkout / "alpha_trader" / "limit.py").write_text(LIMIT.format(limit=7))
    assert run(checkout, ASK) == ["14", "1"], "taking the edit back finds the old machine code again"
    assert len(list((checkout / "data" / ".numba").iterdir())) == 2


def test_the_trap_is_real(checkout):
    "numba's own cache serves the old limit: should this test fail one day, `kernel` may become simpler"
    ask = ASK.replace("twice", "twice_by_numba")
    assert run(checkout, ask)[0] == "14"
    (checkout / "alpha_trader" / "limit.py").write_text(LIMIT.format(limit=8))
    assert run(checkout, ask)[0] == "14"


def test_a_process_whose_package_changed_keeps_nothing(checkout):
    "The old `limit` is still loaded when `caller` is imported after the edit: what is compiled then is not kept"
    edit = f"""
from pathlib import Path
import alpha_trader.limit
Path("alpha_trader/limit.py").write_text({LIMIT.format(limit=1000)!r})
"""
    assert run(checkout, edit + ASK) == ["14", "0"]
    assert run(checkout, ASK) == ["2000", "0"]


def test_numba_keeps_its_own_folder_for_others(checkout):
    "Only kernels are redirected; the option is put back"
    script = """
import numba
before = numba.config.CACHE_DIR
from alpha_trader.caller import twice, twice_by_numba
folders = [function._cache.cache_path for function in (twice, twice_by_numba)]
print(numba.config.CACHE_DIR == before, *(".numba" in folder for folder in folders))
"""
    assert run(checkout, script) == ["True", "True", "False"]


def test_options_that_keep_the_digits():
    "No fast maths anywhere: a symbol alone and among others must agree to the last digit"
    from alpha_trader.indicators import step

    options = step.targetoptions
    assert not options.get("fastmath") and not options.get("parallel") and options["nogil"]
    assert options["error_model"] == "numpy"


def test_this_process_uses_the_folder_of_its_sources():
    "The folder's name is the fingerprint of the package in use"
    assert CACHE is None or CACHE.name == source_hash(PACKAGE)
