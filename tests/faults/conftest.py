"""The floor that the tests of faults share, and somebody who trades there"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from faults.floor import MEMORY, Floor, Trader


@pytest.fixture(scope="module")
def house() -> Iterator[Floor]:
    with TemporaryDirectory(dir=MEMORY) as folder:
        floor = Floor(Path(folder))
        yield floor
        floor.close()


@pytest.fixture
def floor(house: Floor) -> Iterator[Floor]:
    house.reset()
    yield house
    house.reset()


@pytest.fixture
def trader(floor: Floor) -> Iterator[Trader]:
    with floor.trading() as trader:
        trader.reconcile()
        yield trader
