"""`alpha-trader start` at KIS's paper world, in a real process, with the real library over real HTTP

The server stands in this process, so the tests move the exchange's clock and look into its books; the program in the
other process knows only an address, keys, and the date in the header of each answer.
"""

import re
import threading
import time
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from commands import AT_A_BROKER, alpha_trader, edit_settings, store, watch
from servers.exchange import Exchange
from servers.kis import ACCOUNT, HTS_ID, PAPER_KEY, PAPER_SECRET, PRODUCT, REAL_KEY, REAL_SECRET, Kis

from alpha_trader.samples import synthetic_panel
from alpha_trader.sessions import session_open

CAPITAL = Decimal(100_000)
TAPE = synthetic_panel(6, 560, seed=3, start=date(2022, 1, 3))
DAYS = [day.item() for day in TAPE.sessions]
FIRST = DAYS[540]  # the session that is traded first
SETTINGS: dict[str, object] = AT_A_BROKER | {
    "data.source": "kis",
    "data.since": "2022-01-03",
    "broker.name": "kis",
    "run.poll_seconds": 5.0,
}
SECRETS = {
    "KIS_APP_KEY": REAL_KEY,
    "KIS_APP_SECRET": REAL_SECRET,
    "KIS_HTS_ID": HTS_ID,
    "KIS_ACCOUNT_NUMBER": f"{ACCOUNT}-{PRODUCT}",
    "KIS_PAPER_APP_KEY": PAPER_KEY,
    "KIS_PAPER_APP_SECRET": PAPER_SECRET,
}


@pytest.fixture
def service(workspace: Path) -> Iterator[Kis]:
    exchange = Exchange(TAPE, session_open(FIRST) + timedelta(minutes=1), CAPITAL)
    service = Kis(exchange, CAPITAL, where={TAPE.symbols[1]: "NYSE"}, paced=True)
    watch(workspace, TAPE.symbols)
    text = (workspace / "settings.ini").read_text()
    (workspace / "settings.ini").write_text(re.sub(r"(\[kis\][^\[]*?\nurl =)", rf"\1 {service.both_url}", text))
    edit_settings(workspace, SETTINGS)
    (workspace / ".env").write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    over = threading.Event()
    threading.Thread(target=tick, args=(exchange, over), daemon=True).start()
    yield service
    over.set()
    service.close()


def tick(exchange: Exchange, over: threading.Event) -> None:
    "Let the exchange's clock run: a paper account is asked so slowly that a clock at rest would seem to be wrong"
    begin, started = exchange.now, time.monotonic()
    while not over.wait(0.2):
        exchange.to(begin + timedelta(seconds=time.monotonic() - started))


def test_the_whole_way_at_kis(service: Kis, workspace: Path) -> None:
    """Bars, model, backtest, one session traded on paper at two requests a second; a second start and a plan send
    nothing; no order was sent twice or refused, no secret is in the store, the log or on the screen"""
    exchange = service.exchange
    answer = alpha_trader(workspace, "start")
    assert answer.code == 0, answer
    for word in ("ingest", "train", "backtest", f"trade         {FIRST} decision"):
        assert word in answer.out, answer.out
    bought = {order.symbol: order.quantity for order in exchange.orders.values()}
    assert bought and all(order.status == "filled" for order in exchange.orders.values()), answer.out
    rows = store(workspace)
    assert [(row["id"], row["broker"], row["environment"]) for row in rows["accounts"]] == [("kis-paper", "kis", "paper")]
    assert {row["symbol"] for row in rows["positions"] if row["quantity"]} == set(bought)
    assert rows["risk_events"] == []
    assert sum(request.path.endswith("/trading/order") for request in service.log) == len(exchange.orders)

    placed = dict(exchange.orders)
    again = alpha_trader(workspace, "start")
    assert again.code == 0 and again.out.count("done before") == 4, again
    assert exchange.orders == placed, "a second start sends nothing"

    status, facts, doctor = (alpha_trader(workspace, *words) for words in (["status"], ["status", "--json"], ["doctor"]))
    found = facts.json()
    assert (found["equity_krw"], found["krw_per_usd"]) == (round(found["equity"] * 1400), 1400), facts
    assert found["cash_krw"] == round(found["cash"] * 1400) and found["cash"] == float(exchange.cash)
    assert f"₩{found['equity_krw']:,}" in status.out and f"₩{found['cash_krw']:,}" in status.out
    assert doctor.out.count("₩") == 2 and f"cash {exchange.cash:,.2f} USD (₩{exchange.cash * 1400:,.0f})" in doctor.out

    logs = "".join(path.read_text() for path in (workspace / "data" / "logs").glob("*"))
    kept = str(rows) + answer.out + again.out + status.out + doctor.out + logs
    assert not [name for name, secret in SECRETS.items() if name != "KIS_HTS_ID" and secret in kept]
    assert ACCOUNT not in kept


@pytest.mark.parametrize("missing", ["KIS_PAPER_APP_KEY", "KIS_ACCOUNT_NUMBER"])
def test_a_missing_key_is_named_before_anything_is_asked(service: Kis, workspace: Path, missing: str) -> None:
    lines = (workspace / ".env").read_text().splitlines(keepends=True)
    (workspace / ".env").write_text("".join(line for line in lines if not line.startswith(missing)))
    answer = alpha_trader(workspace, "start")
    assert answer.code != 0 and missing in answer.err + answer.out, answer
    assert service.log == [] and "Traceback" not in answer.err
