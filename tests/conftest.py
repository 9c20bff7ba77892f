"""Shared by all tests: the `--slow` switch and a workspace of one's own"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

settings.register_profile("busy machine", deadline=None)  # no test asserts a time
settings.load_profile("busy machine")
CHECKOUT = Path(__file__).resolve().parents[1]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # many commits, and no power cut to fear


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the full counts (minutes to hours)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs --slow"))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    "A root of its own: the shipped settings and run notebooks, empty data and models"
    shutil.copy(CHECKOUT / "settings.ini", tmp_path / "settings.ini")
    shutil.copytree(CHECKOUT / "nbs" / "runs", tmp_path / "nbs" / "runs")
    for name in ("data", "models"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def folder() -> Iterator[Path]:
    "A folder in memory, gone after the test"
    with TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)
