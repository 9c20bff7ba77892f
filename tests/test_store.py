"""The memory under fire: real processes race, real kills, exact round trips, migrations that equal the classes"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, inspect, select, text, update
from sqlalchemy.exc import DatabaseError, IntegrityError, StatementError
from sqlalchemy.orm import Session

import alpha_trader.store as store
from alpha_trader.domain import (
    CorporateAction,
    Fill,
    IntentStatus,
    LeaseHeld,
    OrderIntent,
    Purpose,
    RunStatus,
    Side,
)

NOW = datetime(2024, 1, 2, 14, 30, tzinfo=UTC)
DAY = date(2024, 1, 2)
ENTRY = OrderIntent("demo", "demo", DAY, "SPY", Side.BUY, Purpose.ENTRY, Decimal(10))
FILL = Fill("f-1", "b-1", ENTRY.client_id, "SPY", Side.BUY, Decimal(10), Decimal("472.65"), Decimal("4.73"), NOW)


def with_account(url: str) -> Engine:
    engine = store.open_store(url)
    store.open_account(engine, "demo", "sim", "sim", Decimal("100000.00"), NOW)
    return engine


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/data/store.db"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = with_account(url)
    yield engine
    engine.dispose()


# ---------------------------------------------------------------- processes

WORKER = """
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
import alpha_trader.store as store
from alpha_trader.domain import Fill, LeaseHeld, OrderIntent, Purpose, RunError, Side

NOW, DAY, ME = datetime(2024, 1, 2, 14, 30, tzinfo=UTC), date(2024, 1, 2), store.this_process()
ENTRY = OrderIntent("demo", "demo", DAY, "SPY", Side.BUY, Purpose.ENTRY, Decimal(10))
FILL = Fill("f-1", "b-1", ENTRY.client_id, "SPY", Side.BUY, Decimal(10), Decimal("472.65"), Decimal("4.73"), NOW)

def answer(line):
    try:
        return eval(line)
    except (RunError, LeaseHeld, IntegrityError) as error:
        return type(error).__name__
    except BaseException as error:
        return f"unexpected {error!r}"

def opened(url):
    global engine
    engine = store.open_store(url)
    with engine.connect() as connection:
        return store.schema_version(connection)

def began(slot):
    return type(store.begin_run(engine, "trade", slot, "demo", NOW, *ME)).__name__

def leased(account):
    return store.acquire_lease(engine, account, "test", *ME, NOW, timedelta(hours=1))

def written(index):
    with store.writing(engine) as db:
        return store.record_intent(db, ENTRY, NOW + timedelta(seconds=index)).created_at.second

def inserted(day):
    intent = OrderIntent("demo", "demo", date(2024, 2, day), f"S{day}", Side.BUY, Purpose.ENTRY, Decimal(10))
    with Session(engine) as db, db.begin():
        db.add(store.IntentRow(client_id=intent.client_id, status="planned", fence=0, created_at=NOW, updated_at=NOW,
            **{name: getattr(intent, name) for name in OrderIntent.__dataclass_fields__}))
    return "inserted"

def booked():
    with store.writing(engine) as db:
        return store.book_fill(db, "demo", FILL, DAY, NOW)

def promoted(model):
    return store.promote(engine, model, "race", NOW).id

def hang_in_transaction():
    with store.writing(engine) as db:
        store.record_intent(db, ENTRY, NOW)
        store.book_fill(db, "demo", FILL, DAY, NOW)
        print("booked, not committed", flush=True)
        sys.stdin.readline()

for line in sys.stdin:
    print(answer(line), flush=True)
"""


class Worker:
    "A Python process that evaluates one line at a time"

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], text=True, **pipes)

    def tell(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.hear()


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    workers = [Worker() for _ in range(4)]
    for worker in workers:
        assert worker.ask("'ready'") == "ready"
    yield workers
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


def race(workers: list[Worker], *lines: str) -> list[str]:
    "What each process answered when all were told at once; a single line is told to all"
    for worker, line in zip(workers, lines * len(workers) if len(lines) == 1 else lines, strict=True):
        worker.tell(line)
    return sorted(worker.hear() for worker in workers)


def test_four_processes_make_one_store(workers: list[Worker], tmp_path: Path) -> None:
    "The first `scripts/start` and a curious `alpha-trader status` may open a new store in the same moment"
    for i in range(5):
        assert race(workers, f"opened('sqlite:///{tmp_path}/{i}/store.db')") == [store.HEAD] * 4


@pytest.fixture
def racing(workers: list[Worker], engine: Engine, url: str) -> list[Worker]:
    race(workers, f"opened({url!r})")
    return workers


def test_four_processes_begin_one_run(racing: list[Worker]) -> None:
    "DA-2: the schedule, a retry and a person at the same second are one run"
    for slot in range(20):
        assert race(racing, f"began('slot {slot}')") == ["Run", "RunError", "RunError", "RunError"]


def test_four_processes_take_one_lease(racing: list[Worker]) -> None:
    for i in range(20):
        assert race(racing, f"leased('account {i}')") == ["1", "LeaseHeld", "LeaseHeld", "LeaseHeld"]


def test_four_processes_write_one_intent(racing: list[Worker], engine: Engine) -> None:
    "DA-2, DB-9: all four find the same row, and it is the first one's"
    answers = race(racing, *(f"written({i})" for i in range(4)))
    assert len(set(answers)) == 1
    with store.reading(engine) as db:
        assert db.scalar(select(func.count()).select_from(store.IntentRow)) == 1


def test_the_database_itself_refuses_the_second_intent(racing: list[Worker]) -> None:
    "Even code that forgets to look first, and to take the lock, cannot write an intent twice"
    for day in range(1, 21):
        assert race(racing, f"inserted({day})") == ["IntegrityError", "IntegrityError", "IntegrityError", "inserted"]


def test_four_processes_book_one_fill(racing: list[Worker], engine: Engine) -> None:
    "DB-9: the same report of a fill is ten shares, not forty"
    assert race(racing, "booked()") == ["False", "False", "False", "True"]
    with store.reading(engine) as db:
        assert db.get_one(store.PositionRow, ("demo", "SPY")).quantity == 10


def test_four_promotions_leave_one_champion(racing: list[Worker], engine: Engine) -> None:
    for i in range(4):
        store.register_model(engine, f"m{i}", "demo", "sample", "sip-eod", ["SPY"], DAY, DAY, "h", "p", NOW)
    assert race(racing, *(f"promoted('m{i}')" for i in range(4))) == ["m0", "m1", "m2", "m3"]
    with store.reading(engine) as db:
        states = sorted(db.scalars(select(store.ModelRow.state)))
    assert states == ["champion", "retired", "retired", "retired"]


# ---------------------------------------------------------------- kills


@pytest.fixture
def victim(engine: Engine, url: str) -> Iterator[Worker]:
    worker = Worker()
    assert worker.ask(f"opened({url!r})") == store.HEAD
    yield worker
    worker.process.kill()
    worker.process.wait()


def test_kill_inside_a_transaction_leaves_nothing_half(victim: Worker, engine: Engine) -> None:
    assert victim.ask("hang_in_transaction()") == "booked, not committed"
    victim.process.kill()
    with store.writing(engine) as db:  # the lock died with its process
        for table in (store.IntentRow, store.FillRow, store.PositionRow):
            assert db.scalars(select(table)).all() == []
        assert store.book_fill(db, "demo", FILL, DAY, NOW)


def test_kill_after_the_commit_keeps_everything(victim: Worker, engine: Engine) -> None:
    assert victim.ask("booked()") == "True"
    victim.process.kill()
    with store.reading(engine) as db:
        assert db.get_one(store.FillRow, ("demo", "f-1")).noun() == FILL
        assert db.get_one(store.PositionRow, ("demo", "SPY")).average_price == Decimal("472.65")


@pytest.mark.parametrize("buried", [False, True])
def test_a_dead_holder_loses_lease_and_run_at_once(victim: Worker, engine: Engine, buried: bool) -> None:
    "Also while it is a zombie, as a killed child of a process that does not wait for it"
    assert victim.ask("leased('demo')") == "1"
    assert victim.ask("began('slot')") == "Run"
    pid, host = store.this_process()
    with pytest.raises(LeaseHeld) as held:
        store.acquire_lease(engine, "demo", "heir", pid, host, NOW, timedelta(hours=1))
    assert held.value.pid == victim.process.pid
    victim.process.kill()
    if buried:
        victim.process.wait()
    else:
        os.waitid(os.P_PID, victim.process.pid, os.WEXITED | os.WNOWAIT)
    assert store.acquire_lease(engine, "demo", "heir", pid, host, NOW, timedelta(hours=1)) == 2
    run = store.begin_run(engine, "trade", "slot", "demo", NOW, pid, host)
    assert (run.attempt, run.status) == (2, RunStatus.RUNNING)


def test_a_reused_process_id_is_not_the_former_process() -> None:
    pid, host = store.this_process()
    assert store.process_alive(pid, host)
    assert not store.process_alive(pid, f"{socket.gethostname()}/1")
    assert store.process_alive(pid, "elsewhere/1")


def test_the_halt_survives_kill_and_restart(victim: Worker, engine: Engine, url: str) -> None:
    "DB-7: System B's /stop was forgotten by the next start; ours is lifted by a person alone"
    assert victim.ask("store.halt(engine, 'demo', 'stop, said Ada', NOW)") == "None"
    victim.process.kill()
    engine.dispose()
    restarted = with_account(url)  # everything that a start does to the store
    store.use_account(restarted, "demo", NOW)
    store.begin_run(restarted, "trade", "slot", "demo", NOW, 1, "h")
    assert store.halted(restarted, "demo") == "stop, said Ada"
    assert store.resume(restarted, "demo", NOW, "Ada")
    assert store.halted(with_account(url), "demo") is None


# ---------------------------------------------------------------- the file


def test_every_connection_keeps_the_promises(engine: Engine) -> None:
    "Not only the first one of the pool: foreign keys and synchronous belong to the connection"
    connections = [engine.connect() for _ in range(3)]
    for connection in connections:
        asked = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        pragmas = [connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() for pragma in asked]
        assert pragmas == ["wal", 2, 1, 30000]
        connection.close()


def test_readers_and_a_writer_do_not_wait_for_each_other(engine: Engine) -> None:
    "A notebook that was left open never keeps a run from trading, and sees the moment at which it looked"
    with store.reading(engine) as looking:
        assert store.get_state(looking, "demo", "mark") is None
        with store.writing(engine) as db:
            store.set_state(db, "demo", "mark", "new", NOW)
        with store.reading(engine) as later:
            assert store.get_state(later, "demo", "mark") == "new"
        assert looking.scalars(select(store.StateRow)).all() == []


def test_foreign_keys_are_enforced(engine: Engine) -> None:
    for row in (
        store.EquityRow(account="nobody", session=DAY, kind="close", at=NOW, cash=Decimal(1), equity=Decimal(1)),
        store.DecisionRow(account="demo", run_id=99, session=DAY, symbol="SPY", quantity=Decimal(0), code=0, reason=""),
        store.SignalRow(account="demo", model_id="none", session=DAY, symbol="SPY", action="HOLD",
                        members={}, features={}),
    ):
        with pytest.raises(IntegrityError, match="(?i)foreign key"), store.writing(engine) as db:
            db.add(row)
    with pytest.raises(IntegrityError, match="(?i)foreign key"), store.writing(engine) as db:
        store.record_intent(db, ENTRY, NOW)
        db.delete(db.get_one(store.AccountRow, "demo"))


def test_a_store_at_the_newest_version_opens_without_alembic(url: str) -> None:
    "A run pays for migrations only when there are some"
    store.open_store(url)
    code = f"import sys, alpha_trader.store as s; s.open_store({url!r}); print('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_tables_of_somebody_else_are_not_touched(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/theirs.db"
    theirs = store.connect(url)
    with theirs.begin() as connection:
        connection.execute(text("CREATE TABLE orders (dish TEXT)"))
    with pytest.raises(store.StoreError, match="has a table 'orders' that alpha_trader did not make"):
        store.open_store(url)
    assert inspect(theirs).get_table_names() == ["orders"]


def test_a_password_in_the_address_is_not_told(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    monkeypatch.setattr(engine, "url", store.make_url("postgresql://ada:s3cret@host/db"))
    with pytest.raises(store.StoreError) as error, engine.connect() as connection:
        store.refuse_foreign(connection, "0099", {"0001", "0002", "0003"})
    assert "s3cret" not in str(error.value) and "ada:***@host" in str(error.value)


def test_secrets_never_reach_the_file(engine: Engine, tmp_path: Path) -> None:
    "Every text that may come from outside passes the scrubber it was given"

    def scrub(words: str) -> str:
        return words.replace("PK-s3cret", "***")

    run = store.begin_run(engine, "trade", "slot", "demo", NOW, 1, "h")
    store.finish_run(engine, run.id, RunStatus.FAILED, NOW, error="401 for\nPK-s3cret", scrub=scrub)
    store.halt(engine, "demo", "broker refused PK-s3cret", NOW, scrub=scrub)
    with store.writing(engine) as db:
        store.record_risk(db, "demo", "auth", "key PK-s3cret", NOW, scrub=scrub)
    with store.reading(engine) as db:
        assert db.get_one(store.RunRow, run.id).error == "401 for ***"
    for file in (tmp_path / "data").iterdir():
        assert b"s3cret" not in file.read_bytes()


# ---------------------------------------------------------------- migrations


def described(engine: Engine) -> dict:
    "Everything that the database knows about its tables, but for Alembic's own"
    seen = inspect(engine)
    return {
        name: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in seen.get_columns(name)],
            "primary key": seen.get_pk_constraint(name),
            "foreign keys": sorted(seen.get_foreign_keys(name), key=lambda k: k["name"]),
            "uniques": sorted(seen.get_unique_constraints(name), key=lambda u: u["name"]),
            "indexes": sorted((i["name"], i["column_names"], i["unique"], str(i["dialect_options"].get("sqlite_where")))
                              for i in seen.get_indexes(name)),
        }
        for name in seen.get_table_names() if name != "alembic_version"
    }


def test_migrations_make_the_mapped_classes(engine: Engine, tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, store.Base.metadata) == []
    direct = store.connect(f"sqlite:///{tmp_path}/direct.db")
    store.Base.metadata.create_all(direct)
    assert described(engine) == described(direct)
    assert len(described(direct)) == 18


def test_there_is_one_newest_migration_and_the_code_names_it() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "alpha_trader:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [store.HEAD]


def test_downgrade_to_base_and_up_again(engine: Engine) -> None:
    store.migrate(engine, target="base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    with engine.connect() as connection:
        assert store.schema_version(connection) is None
    store.migrate(engine)
    assert len(described(engine)) == len(store.Base.metadata.tables)


def test_a_migration_that_fails_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    engine = store.connect(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE risk_events (stumbling BLOCK)"))
    monkeypatch.setattr(store, "refuse_foreign", lambda *args: None)
    with pytest.raises(DatabaseError, match="already exists"):
        store.open_store(url)
    assert inspect(engine).get_table_names() == ["risk_events"]


# ---------------------------------------------------------------- exactness

LIMITS = {2: 10**16, 6: 10**12, 9: 10**9}
moments = st.datetimes(
    datetime(1900, 1, 1), datetime(2200, 1, 1),
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m))),
)


def decimals(places: int) -> st.SearchStrategy[Decimal]:
    return st.decimals(-LIMITS[places], LIMITS[places], allow_nan=False, allow_infinity=False, places=places)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return with_account(f"sqlite:///{tmp_path_factory.mktemp('exact')}/store.db")


@hypothesis_settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(quantity=decimals(9), price=decimals(6), cash=decimals(2), at=moments)
def test_what_is_read_is_what_was_written(
    shared: Engine, quantity: Decimal, price: Decimal, cash: Decimal, at: datetime
) -> None:
    "Through the real database and back: equal as numbers, the moment in UTC to the microsecond"
    with store.writing(shared) as db:
        row = store.FillRow(account="demo", fill_id="x", broker_id="b", symbol="SPY", side=Side.BUY, quantity=quantity,
                            price=price, fee=cash, at=at, session=DAY, booked_at=NOW)
        db.add(row)
    with store.writing(shared) as db:
        read = db.get_one(store.FillRow, ("demo", "x"))
        assert (read.quantity, read.price, read.fee, read.at) == (quantity, price, cash, at)
        assert read.at.utcoffset() == timedelta(0)
        assert -read.fee.as_tuple().exponent == 2
        assert db.scalar(select(func.sum(store.FillRow.price))) == price
        db.delete(read)


@given(st.decimals(allow_nan=True, allow_infinity=True), st.sampled_from([2, 6, 9]))
def test_scaling_is_exact_or_refused(value: Decimal, places: int) -> None:
    try:
        scaled = store.scale(value, places)
    except ValueError:
        return
    assert Fraction(scaled) == Fraction(value) * 10**places
    assert store.unscale(scaled, places, 0) == value


@pytest.mark.parametrize("wrong", [1.0, "1.00", True, Decimal("0.001"), Decimal("NaN"), Decimal(10) ** 17])
def test_what_is_not_exact_money_is_refused(shared: Engine, wrong: object) -> None:
    with pytest.raises(StatementError), store.writing(shared) as db:
        store.record_equity(db, "demo", DAY, "close", NOW, Decimal(1), wrong)


def test_a_naive_moment_is_refused(shared: Engine) -> None:
    with pytest.raises(StatementError, match="no time zone"), store.writing(shared) as db:
        store.record_equity(db, "demo", DAY, "close", datetime(2024, 1, 2), Decimal(1), Decimal(1))


def test_words_outside_the_list_are_refused(shared: Engine) -> None:
    with pytest.raises(StatementError), store.writing(shared) as db:
        store.record_intent(db, ENTRY, NOW).status = "perhaps"
        db.flush()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.decimals(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_json(value: object) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(store.to_json(value), parse_constant=refuse)


# ---------------------------------------------------------------- books


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 500_00)), max_size=12), st.data())
def test_a_position_is_the_sum_of_its_fills(buys: list[tuple[int, int]], data: st.DataObject) -> None:
    "Buys average the price, sells leave it, flat forgets it; exact arithmetic as the oracle"
    row = store.PositionRow(quantity=Decimal(0), average_price=Decimal(0), half_taken=False)
    held, average = 0, Fraction(0)
    for shares, cents in buys:
        store.move_position(row, Decimal(shares), Decimal(cents).scaleb(-2), DAY)
        average = (held * average + shares * Fraction(cents, 100)) / (held + shares)
        held += shares
        sold = data.draw(st.integers(0, held))
        if sold:
            store.move_position(row, Decimal(-sold), Decimal(1), DAY)
            held -= sold
        average = average if held else Fraction(0)
        assert row.quantity == held
        assert abs(Fraction(row.average_price) - average) <= Fraction(len(buys), 10**6)
        assert (row.entry_session is None) == (held == 0)


def test_a_short_by_hand_is_recorded_as_it_happened() -> None:
    row = store.PositionRow(quantity=Decimal(0), average_price=Decimal(0), half_taken=False)
    averages = []
    for change, price in ((10, 100), (-15, 90), (-5, 80), (10, 70), (-3, 60)):
        store.move_position(row, Decimal(change), Decimal(price), DAY)
        averages.append((int(row.quantity), int(row.average_price)))
    assert averages == [(10, 100), (-5, 90), (-10, 85), (0, 0), (-3, 60)]


def test_a_manual_fill_moves_shares_and_no_flags(engine: Engine) -> None:
    by_hand = Fill("f-hand", "b-9", None, "KO", Side.BUY, Decimal("0.5"), Decimal("60"), Decimal(0), NOW)
    with store.writing(engine) as db:
        store.book_fill(db, "demo", by_hand, DAY, NOW)
        row = db.get_one(store.PositionRow, ("demo", "KO"))
    assert (row.quantity, row.half_taken, row.last_stop_session) == (Decimal("0.5"), False, None)


def test_a_reverse_split_and_its_cash(engine: Engine) -> None:
    "One for three on ten shares at 3.00: three shares at 9.00, the third of a share in cash"
    with store.writing(engine) as db:
        store.move_position(store.position_row(db, "demo", "T", NOW), Decimal(10), Decimal(3), DAY)
        split = CorporateAction("T", DAY, "split", Decimal(1) / Decimal(3), Decimal(-7), Decimal(0))
        cash = CorporateAction("T", DAY, "cash_in_lieu", Decimal(9), Decimal(0), Decimal("3.00"))
        assert [store.book_action(db, "demo", action, NOW) for action in (split, cash, split)] == [True, True, False]
        row = db.get_one(store.PositionRow, ("demo", "T"))
    assert (row.quantity, row.average_price, row.entry_session) == (Decimal(3), Decimal(9), DAY)


def test_only_one_open_intent_for_a_purpose(engine: Engine) -> None:
    "DA-1: a second entry cannot be written while the first is open; an exit can, and so can another account's entry"
    store.open_account(engine, "demo-2", "sim", "sim", Decimal(1), NOW)
    allowed = [
        OrderIntent("demo", "demo", DAY, "SPY", Side.SELL, Purpose.STOP, Decimal(10)),
        OrderIntent("demo-2", "demo", DAY, "SPY", Side.BUY, Purpose.ENTRY, Decimal(10)),
    ]
    refused = [
        OrderIntent("demo", "demo", DAY, "SPY", Side.BUY, Purpose.ENTRY, Decimal(10), attempt=2),
        OrderIntent("demo", "other", DAY, "SPY", Side.BUY, Purpose.ENTRY, Decimal(10)),
    ]
    with store.writing(engine) as db:
        for intent in (ENTRY, *allowed):
            store.record_intent(db, intent, NOW)
    for status in IntentStatus:
        with store.writing(engine) as db:
            db.get_one(store.IntentRow, ENTRY.client_id).status = status
        for intent in refused:
            if status.terminal:
                with store.writing(engine) as db:
                    store.record_intent(db, intent, NOW)
                    db.execute(text("DELETE FROM intents WHERE client_id = :id"), {"id": intent.client_id})
            else:
                with pytest.raises(IntegrityError, match="(?i)unique"), store.writing(engine) as db:
                    store.record_intent(db, intent, NOW)


def test_the_day_loss_is_measured_from_a_yardstick_that_stands(engine: Engine) -> None:
    "DA-8: looking again, thirty-six times on the way down, does not move what the loss is measured from"
    equity = Decimal(100000)
    for _ in range(36):
        with store.writing(engine) as db:
            store.record_equity(db, "demo", DAY, "close", NOW, Decimal(0), equity)
        equity -= 500
    assert store.closing_equity(engine, "demo", DAY) == Decimal(100000)
    assert equity / store.closing_equity(engine, "demo", DAY) - 1 == Decimal("-0.18")


def test_an_update_behind_an_old_fence_changes_nothing(engine: Engine) -> None:
    "Step 2 of the exactly-once submission: PLANNED becomes SENDING only under the newest lease"
    pid, host = store.this_process()
    old = store.acquire_lease(engine, "demo", "sleeper", pid, host, NOW, timedelta(minutes=1))
    with store.writing(engine) as db:
        store.record_intent(db, ENTRY, NOW, fence=old)
    late = NOW + timedelta(minutes=2)
    new = store.acquire_lease(engine, "demo", "heir", 4242, "elsewhere", late, timedelta(minutes=1))
    changed = []
    for fence in (old, new):
        with store.writing(engine) as db:
            mine = update(store.IntentRow).where(store.IntentRow.client_id == ENTRY.client_id)
            send = mine.where(store.holds_fence("demo", fence)).values(status=IntentStatus.SENDING)
            changed.append(db.execute(send).rowcount)
    assert changed == [0, 1]
    assert not store.renew_lease(engine, "demo", old, late, timedelta(minutes=1))
    assert not store.release_lease(engine, "demo", old)


def test_a_plain_session_works_too(engine: Engine) -> None:
    with Session(engine) as db, db.begin():
        store.record_intent(db, ENTRY, NOW)
    with Session(engine) as db:
        assert [row.noun() for row in store.live_intents(db, "demo")] == [ENTRY]
