"""Shared by all tests: the `--slow` switch and a workspace of one's own"""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("busy machine", deadline=None)  # no test asserts a time
settings.load_profile("busy machine")
CHECKOUT = Path(__file__).resolve().parents[1]


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
