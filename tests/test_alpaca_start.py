"""`alpha-trader start` at Alpaca in a real process: the real client over real HTTP, judged by Alpaca's specification

The server stands in this process, so the tests move the exchange's clock and look into its books; the program in the
other process knows only an address, a key and the broker's clock.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from commands import Answer, alpha_trader, edit_settings, store
from servers.alpaca import KEY, SECRET, Alpaca
from servers.exchange import Exchange
from servers.record import Recorder

from alpha_trader.samples import synthetic_panel
from alpha_trader.sessions import session_close, session_open

CAPITAL = Decimal(100_000)
TAPE = synthetic_panel(6, 560, seed=3, start=date(2022, 1, 3))
DAYS = [day.item() for day in TAPE.sessions]
FIRST = DAYS[540]  # the session that is traded first
SETTINGS: dict[str, object] = {
    "data.source": "alpaca",
    "data.clock": "broker",
    "data.since": "2022-01-03",
    "broker.name": "alpaca",
    "label.horizon": 2,
    "model.min_train": 200,
    "model.lightgbm_rounds": 8,
    "model.xgboost_rounds": 8,
    "signals.buy": 0.0001,
    "signals.sell": -0.0001,
    "signals.confidence": 0.01,
    "run.poll_seconds": 0.2,
}


@dataclass
class Place:
    "A workspace, and the broker it is pointed at"

    root: Path
    service: Alpaca
    record: Recorder

    def say(self, *words: str) -> Answer:
        return alpha_trader(self.root, *words)

    def to(self, moment: datetime) -> None:
        self.service.exchange.to(moment)


def configure(root: Path, url: str, **changes: object) -> None:
    "Point a workspace at a server, with its keys in .env"
    watchlist = ", ".join(TAPE.symbols)
    text = (root / "settings.ini").read_text()
    start, end = text.index("watchlist ="), text.index("# what results are compared with")
    (root / "settings.ini").write_text(text[:start] + f"watchlist = {watchlist}\n" + text[end:])
    edit_settings(root, SETTINGS | {"alpaca.trading_url": url, "alpaca.data_url": url} | changes)
    (root / ".env").write_text(f"ALPACA_API_KEY={KEY}\nALPACA_API_SECRET={SECRET}\n")


@pytest.fixture
def place(workspace: Path) -> Iterator[Place]:
    exchange = Exchange(TAPE, session_open(FIRST) + timedelta(minutes=1), CAPITAL)
    service = Alpaca(exchange, CAPITAL)
    configure(workspace, service.url)
    yield Place(workspace, service, Recorder(service.wire))
    service.wire.close()


def test_the_whole_way(place: Place) -> None:
    """Bars, model, backtest, one session traded on paper, its report after the close, the next session; every request
    and reply as the specification says; a plan and a second start place nothing"""
    exchange = place.service.exchange
    answer = place.say("start")
    assert answer.code == 0, answer
    for word in ("ingest", "train", "backtest", f"trade         {FIRST} decision"):
        assert word in answer.out, answer.out
    assert "daily_report" not in answer.out
    bought = {order.symbol: order.quantity for order in exchange.orders.values()}
    assert bought and all(order.status == "filled" for order in exchange.orders.values())
    assert all(order.client_id.startswith("at-paper-demo-") for order in exchange.orders.values())
    rows = store(place.root)
    assert [(row["id"], row["broker"], row["environment"]) for row in rows["accounts"]] == [
        ("alpaca-paper", "alpaca", "paper")
    ]
    assert {row["symbol"] for row in rows["positions"] if row["quantity"]} == set(bought)
    assert rows["risk_events"] == []
    assert place.service.account_number not in str(rows) + answer.out

    placed = dict(exchange.orders)
    again = place.say("start")
    assert again.code == 0 and again.out.count("done before") == 4, again
    plan = place.say("plan", "--json")
    assert plan.code == 0 and len(plan.json()) == len(TAPE.symbols), plan
    assert exchange.orders == placed, "neither a second start nor a plan sends anything"

    place.to(session_close(FIRST) + timedelta(minutes=30))
    place.service.charge(FIRST, Decimal("0.03"))
    place.service.charge(FIRST, Decimal("0.01"))
    evening = place.say("start")
    assert evening.code == 0 and "daily_report" in evening.out, evening
    following = DAYS[541]
    place.to(session_open(following) + timedelta(minutes=2))
    second = place.say("start")
    assert second.code == 0 and f"trade         {following} decision" in second.out, second
    rows = store(place.root)
    assert rows["risk_events"] == [], "cash and shares add up"
    assert sorted(row["cash"] for row in rows["corporate_actions"]) == [-3, -1]
    held = {row["symbol"]: row["quantity"] // 10**9 for row in rows["positions"] if row["quantity"]}
    assert held == {symbol: int(shares) for symbol, shares in exchange.shares.items()}
    assert place.record.judge() > 50
