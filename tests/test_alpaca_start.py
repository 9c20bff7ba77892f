"""`alpha-trader start` at Alpaca in a real process: the real client over real HTTP, judged by Alpaca's specification

The server stands in this process, so the tests move the exchange's clock and look into its books; the program in the
other process knows only an address, a key and the broker's clock.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from commands import AT_A_BROKER, Answer, alpha_trader, alpha_traders, edit_settings, store, watch
from servers.alpaca import KEY, SECRET, Alpaca
from servers.exchange import Exchange
from servers.record import Recorder
from servers.wire import Reply, Request

from alpha_trader.alpaca_broker import LiveBroker, PaperBroker, open_alpaca
from alpha_trader.domain import AlphaTraderError, AuthFailed, OrderIntent, Purpose, Side
from alpha_trader.samples import synthetic_panel
from alpha_trader.sessions import session_close, session_open
from alpha_trader.settings import LIVE_HOST, PAPER_HOST, load_settings

CAPITAL = Decimal(100_000)
TAPE = synthetic_panel(6, 300, seed=3, start=date(2023, 1, 3), drift=0.003)  # so that any model buys
DAYS = [day.item() for day in TAPE.sessions]
FIRST = DAYS[280]  # the session that is traded first
SETTINGS: dict[str, object] = AT_A_BROKER | {
    "data.source": "alpaca",
    "data.since": "2023-01-03",
    "broker.name": "alpaca",
    "run.poll_seconds": 0.2,
}


@dataclass
class Place:
    "A workspace, and the broker it is pointed at, whose clock runs: one at rest would soon seem to be wrong"

    root: Path
    service: Alpaca
    record: Recorder

    def __post_init__(self) -> None:
        answer = self.service.wire.answer

        def in_time(request: Request) -> Reply:
            self.service.exchange.to(self.began + timedelta(seconds=time.monotonic() - self.at))
            return answer(request)

        self.to(self.service.exchange.now)
        self.service.wire.answer = in_time

    def say(self, *words: str) -> Answer:
        return alpha_trader(self.root, *words)

    def to(self, moment: datetime) -> None:
        self.began, self.at = moment, time.monotonic()
        self.service.exchange.to(moment)


def configure(root: Path, url: str, symbols: Sequence[str] = TAPE.symbols, **changes: object) -> None:
    "Point a workspace at a server, with its keys in .env"
    watch(root, symbols)
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
    bought = {order.symbol: order for order in exchange.orders.values() if order.side == "buy"}
    guards = {order.symbol: order for order in exchange.orders.values() if order.kind == "stop"}
    assert bought and all(order.status == "filled" for order in bought.values())
    assert len(bought) + len(guards) == len(exchange.orders) and set(guards) == set(bought)
    assert all(order.tif == "gtc" and order.left == bought[name].quantity for name, order in guards.items())
    assert all(order.client_id.startswith("at-paper-demo-") for order in exchange.orders.values())
    rows = store(place.root)
    assert [(row["id"], row["broker"], row["environment"]) for row in rows["accounts"]] == [
        ("alpaca-paper", "alpaca", "paper")
    ]
    assert {row["symbol"] for row in rows["positions"] if row["quantity"]} == set(bought)
    assert rows["risk_events"] == []
    assert place.service.account_number not in str(rows) + answer.out

    placed = dict(exchange.orders)
    again, plan = alpha_traders(place.root, ["start"], ["plan", "--json"])
    assert again.code == 0 and again.out.count("done before") == 4, again
    assert plan.code == 0 and len(plan.json()) == len(TAPE.symbols), plan
    assert exchange.orders == placed, "neither a second start nor a plan sends anything"

    place.to(session_close(FIRST) + timedelta(minutes=30))
    place.service.charge(FIRST, Decimal("0.03"))
    place.service.charge(FIRST, Decimal("0.01"))
    evening = place.say("start")
    assert evening.code == 0 and "daily_report" in evening.out, evening
    following = DAYS[281]
    place.to(session_open(following) + timedelta(minutes=2))
    second = place.say("start")
    assert second.code == 0 and f"trade         {following} decision" in second.out, second
    rows = store(place.root)
    assert rows["risk_events"] == [], "cash and shares add up"
    assert sorted(row["cash"] for row in rows["corporate_actions"]) == [-3, -1]
    held = {row["symbol"]: row["quantity"] // 10**9 for row in rows["positions"] if row["quantity"]}
    assert held == {symbol: int(shares) for symbol, shares in exchange.shares.items()}
    words = [[name, "--json"] for name in ("positions", "orders", "status", "runs")]
    shown = alpha_traders(place.root, *words)
    assert [answer.code for answer in shown] == [0] * 4, shown
    assert {row["symbol"] for row in shown[0].json()} == set(exchange.shares)
    assert len(shown[1].json()) == len(exchange.orders)
    assert (shown[2].json()["account"], shown[2].json()["last_session"]) == ("alpaca-paper", str(following))
    closed = place.say("close", "--all", "--json")
    assert closed.code == 0 and {row["status"] for row in closed.json()} == {"filled"}, closed
    assert exchange.shares == {}
    assert len({order.client_id for order in exchange.orders.values()}) == len(exchange.orders)
    assert place.record.judge() > 40


# --- the doctor


def wrong(answer: Answer) -> dict[str, str]:
    "What the doctor found wrong, by name"
    assert answer.code in (0, 1) and "Traceback" not in answer.err, answer
    found = answer.json()
    assert (found["status"] == "ok") == (answer.code == 0)
    return {check["name"]: check["found"] for check in found["checks"] if check["state"] == "wrong"}


def test_the_doctor(place: Place) -> None:
    "A healthy account is healthy; each illness is one line with its remedy and exit code 1; nothing is ordered"
    healthy, names = place.say("doctor"), ["mode", "keys", "account", "clock", "symbols", "data", "bars"]
    assert healthy.code == 0, healthy
    assert [line.split()[:2] for line in healthy.out.splitlines()[:7]] == [["ok", name] for name in names]
    assert place.service.account_number not in healthy.out and KEY not in healthy.out
    edit_settings(place.root, {"data.clock": "wall"})
    text = (place.root / "settings.ini").read_text()
    (place.root / "settings.ini").write_text(text.replace("watchlist = SYNA", "watchlist = NOPE, SYNA"))
    found = wrong(place.say("doctor", "--json"))
    assert set(found) == {"clock", "symbols", "data"} and "NOPE" in found["symbols"]
    assert place.record.judge() > 8 and not place.service.exchange.orders


def test_wrong_keys_and_no_server_are_one_line(place: Place) -> None:
    "401 and a server that is down: one line that says what to do, in `start` and at the doctor's"
    env = (place.root / ".env").read_text()
    (place.root / ".env").write_text(env.replace(SECRET, "x" * 40))
    said = place.say("start")
    assert said.code == 1 and said.err.count("\n") == 1, said
    assert "check ALPACA_API_KEY and ALPACA_API_SECRET" in said.err and "x" * 40 not in said.err
    assert set(wrong(place.say("doctor", "--json"))) >= {"account", "data"}
    (place.root / ".env").write_text("")
    said = place.say("start")
    assert (said.code, said.err.count("\n")) == (2, 1), said
    assert "ALPACA_API_KEY and ALPACA_API_SECRET: found nothing" in said.err
    assert set(wrong(place.say("doctor", "--json"))) == {"keys"}
    (place.root / ".env").write_text(env)
    place.service.wire.close()
    said = place.say("start")
    assert (said.code, said.err.count("\n")) == (1, 1), said
    assert "no connection" in said.err and place.service.url in said.err


# --- paper and live


@pytest.mark.parametrize(
    ("mode", "number", "live", "words"),
    [
        ("paper", "123456789", "", "open a live account, but [broker] mode is paper"),
        ("live", "PA3TESTACCT1", "PA3TESTACCT1", "open a paper account, but [broker] mode is live"),
        ("live", "123456789", "", "ALPHA_TRADER_LIVE: found nothing"),
        ("live", "123456789", "987654321", "another account than ALPHA_TRADER_LIVE names"),
    ],
)
def test_two_of_three_are_not_enough(workspace: Path, mode: str, number: str, live: str, words: str) -> None:
    "Without the third agreement nothing is bought and nothing is sold, and the account's number is nowhere"
    exchange = Exchange(TAPE, session_open(FIRST) + timedelta(minutes=1), CAPITAL)
    service = Alpaca(exchange, CAPITAL, account_number=number)
    configure(workspace, service.url, **{"broker.mode": mode})
    settings = load_settings(workspace, {"ALPHA_TRADER_LIVE": live} if live else {})
    with pytest.raises(AlphaTraderError, match=re.escape(words)) as refused:
        broker = open_alpaca(settings, lambda: exchange.now)
        broker.submit(OrderIntent("a", "s", FIRST, "SYNA", Side.BUY, Purpose.ENTRY, Decimal(1), env=mode))
    assert number not in str(refused.value)
    assert not exchange.orders and not [request for request in service.wire.log if request.method == "POST"]
    service.wire.close()


def test_three_that_agree(workspace: Path) -> None:
    "Mode in the file, account in the environment, account at the broker: a live broker, and not a paper one"
    exchange = Exchange(TAPE, session_open(FIRST) + timedelta(minutes=1), CAPITAL)
    service = Alpaca(exchange, CAPITAL, account_number="123456789")
    configure(workspace, service.url, **{"broker.mode": "live"})
    broker = open_alpaca(load_settings(workspace, {"ALPHA_TRADER_LIVE": "123456789"}), lambda: exchange.now)
    assert type(broker) is LiveBroker and not isinstance(broker, PaperBroker) and not broker.caps.paper
    assert "123456789" not in repr(broker.account())
    service.account_number = "555555555"
    with pytest.raises(AuthFailed):
        LiveBroker(broker.line, "123456789").account()
    service.wire.close()


@pytest.mark.parametrize(("mode", "host"), [("paper", LIVE_HOST), ("live", PAPER_HOST)])
def test_a_host_of_the_other_world(workspace: Path, mode: str, host: str) -> None:
    "Refused while the settings are read, before any key is sent anywhere"
    configure(workspace, host, **{"broker.mode": mode, "alpaca.data_url": ""})
    said = alpha_trader(workspace, "doctor")
    assert (said.code, said.err.count("\n")) == (2, 1), said
    assert "[alpaca] trading_url" in said.err and f"mode = {mode}" in said.err


# --- how many requests a cycle needs


@pytest.mark.slow
@pytest.mark.parametrize(("stops", "orders"), [("close", 7), ("bar", 14)])
def test_what_a_cycle_asks(workspace: Path, stops: str, orders: int) -> None:
    """32 symbols, seven purchases, with and without a stop that rests behind each of them: an order is one request, and
    all the questions are these eleven, counted at the server from the opening of the desk to the end of the run. (The
    first cycle of all asks once more, whose account it is.)"""
    tape = synthetic_panel(32, 300, seed=5, start=date(2023, 1, 3), drift=0.003)
    exchange = Exchange(tape, session_open(FIRST) + timedelta(minutes=1), CAPITAL)
    service = Alpaca(exchange, CAPITAL)
    configure(workspace, service.url, tape.symbols, **{"signals.confidence": 0.0001, "risk.stop_check": stops})
    place = Place(workspace, service, Recorder(service.wire))
    work = alpha_traders(workspace, ["run", "ingest"], ["run", "train"], ["close", "--all"])
    assert [answer.code for answer in work] == [0, 0, 0] and not exchange.orders, work
    before = len(place.record.pairs)
    traded = place.say("run", "trade", "--as-of", str(FIRST))
    assert traded.code == 0, traded
    asked = [f"{request.method} {request.path}" for request, _ in place.record.pairs[before:]]
    assert asked.count("POST /v2/orders") == len(exchange.orders) == orders
    asked.remove("GET /v2/clock")  # `clock = broker`, which no person needs
    assert sorted(line.removeprefix("GET ") for line in asked if line.startswith("GET ")) == [
        "/v1/corporate-actions",  # today's splits
        *["/v2/account"] * 2,  # before the decision, and at the end
        *["/v2/account/activities"] * 2,  # before the decision, and what filled
        "/v2/clock",
        *["/v2/orders"] * 3,  # the open ones and the new ones before the decision, and how ours are
        *["/v2/positions"] * 2,  # before the decision, and at the end
    ]
    assert place.record.judge() > 20
    service.wire.close()
