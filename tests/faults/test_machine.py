"""The schedules of `machine.py`, a few of them; `scripts/test --faults N` runs more and prints what it counted"""

import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from servers.wire import Fault

from faults.floor import FIRST, MEMORY, Floor, in_the_end
from faults.machine import Maker, drive

SCHEDULES = 24


@pytest.fixture(scope="module")
def house() -> Iterator[tuple[Floor, Maker]]:
    with TemporaryDirectory(dir=MEMORY) as folder:
        floor = Floor(Path(folder))
        maker = Maker(floor)
        yield floor, maker
        maker.close()
        floor.close()


def test_schedules_of_faults_deaths_and_kills() -> None:
    "I1 to I10 after each step of schedules that are the same every day; some real kills among them"
    counted = drive(SCHEDULES, number=5)
    assert counted["kills"] > 3 and counted["crashes"] + counted["orders"] > 10


@pytest.mark.slow
def test_many_more_schedules() -> None:
    drive(400)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["arrives", "was accepted"])
@pytest.mark.parametrize("which", ["entry", "stop"])
def test_faults_10_30_a_real_process_ends_while_its_order_is_at_the_door(
    house: tuple[Floor, Maker], number: int, moment: str, which: str
) -> None:
    "Rows 10 and 30: SIGTERM or `kill -9` as the POST arrives, or before its answer leaves → resolved"
    floor, maker = house
    floor.reset()
    when = {"now" if moment == "arrives" else "then": lambda: maker.kill(number)}
    floor.wire.faults.append(Fault(lambda r: r.method == "POST" and which in r.body["client_order_id"], "reply", **when))
    job = {"kind": "cycle", "day": FIRST, "wanted": {"ACME": 10}, "path": str(floor.path), "doom": None}
    assert maker.run(job) == -number
    assert sum(order.kind == ("market" if which == "entry" else "stop") for order in floor.ours()) == 1
    with floor.trading() as heir:
        heir.cycle(FIRST, {"ACME": 10})
        in_the_end(floor, heir)
    assert [(order.kind, order.status) for order in floor.ours()] == [("market", "filled"), ("stop", "new")]
    assert len(floor.posts()) == len(set(floor.posts())) == 2
