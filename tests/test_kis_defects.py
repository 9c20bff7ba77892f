"""The defects of System B that are KIS's: each old rule does the damage again, through its own library, and ours cannot

System B used python-kis as it comes; so do the old rules here, against the local KIS. Where it read an object for a
number, won for dollars and "not pending" for "filled", the same calls are made and shown to say the wrong thing.
(DB-4 is in `test_defects.py`, DB-7 in `test_cli.py`.)
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from servers.kis import ACCOUNT, HTS_ID, PAPER_KEY, PAPER_SECRET, PRODUCT, RATE, REAL_KEY, REAL_SECRET
from servers.wire import Fault
from sqlalchemy import select
from test_broker import CAPITAL, DAYS, buy, target
from test_kis import LISTS, NUMBER, Bench, at, bench, bench_at, book, hand_at

from alpha_trader.domain import AuthFailed, IntentStatus, OrderStatus
from alpha_trader.kis_broker import LiveKis, PaperKis, live_kis, open_kis, paper_kis
from alpha_trader.kis_data import LIMITS, PAPER, Keys, kis_line
from alpha_trader.risk import day_loss_breached, risk_rules
from alpha_trader.sessions import session_close, session_open
from alpha_trader.settings import BrokerSettings, KisSettings, Secrets, Settings, SettingsError
from alpha_trader.store import IntentRow, reading


@pytest.fixture
def library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Bench, Any]]:
    "A local KIS, and the library as System B used it"
    import pykis.kis
    from pykis.api.account.balance import KisForeignPresentBalance
    from pykis.api.auth.token import KisAccessToken
    from pykis.responses.dynamic import KisObject

    of = bench(folder)
    monkeypatch.setattr(pykis.kis, "REAL_DOMAIN", of.service.url)
    monkeypatch.setattr(pykis.kis, "VIRTUAL_DOMAIN", of.service.paper_url)
    kis = pykis.kis.PyKis(id=HTS_ID, account=NUMBER, appkey=REAL_KEY, secretkey=REAL_SECRET, use_websocket=False)
    of.broker()
    raw = {"access_token": of.line.token("real").value, "token_type": "Bearer", "expires_in": 86400}
    raw["access_token_token_expired"] = "2099-01-01 00:00:00"
    kis.token = KisObject.transform_(raw, KisAccessToken)
    parts = [vars(KisForeignPresentBalance)[name] for name in ("stocks", "deposits")]
    fields = [part.field for part in parts]
    yield of, kis
    for part, name in zip(parts, fields, strict=True):  # writing a deposit out breaks the library's class for good
        part.field = name


def present_balance(kis: Any) -> Any:
    from pykis.api.account.balance import foreign_balance

    return foreign_balance(kis, NUMBER, "US")


# --- DB-1: shipped live


def test_db_1_paper_is_what_you_get_unless_three_things_agree(folder: Path, library: tuple[Bench, Any]) -> None:
    "DB-1: the library without paper keys is live, silently; here paper is the default, and keys decide against a mode"
    of, kis = library
    assert kis.virtual is False, "no paper keys: every order of the library is a real one"
    assert Settings().broker.mode == "paper"
    with pytest.raises(AuthFailed, match="paper was asked for"):
        paper_kis(of.line, folder)
    for number in ("", "50123457-01", "5012345601 "):
        with pytest.raises(AuthFailed, match="not the one of KIS_ACCOUNT_NUMBER") as told:
            live_kis(of.line, folder, number)
        assert ACCOUNT not in str(told.value)
    assert live_kis(of.line, folder, f"{ACCOUNT}{PRODUCT}").caps.paper is False
    with pytest.raises(AuthFailed, match="live was asked for"):
        live_kis(bench(folder / "other", paper=True).line, folder, NUMBER)


def settings_for(of: Bench, root: Path, mode: str = "paper", named: str | None = None) -> Settings:
    "As a person's settings.ini, .env and environment would have it"
    keys = {"kis_app_key": REAL_KEY, "kis_app_secret": REAL_SECRET, "kis_hts_id": HTS_ID, "kis_account_number": NUMBER}
    twin = {"kis_paper_app_key": PAPER_KEY, "kis_paper_app_secret": PAPER_SECRET, "live_account": named}
    secrets = Secrets.model_validate(keys | twin)
    parts = {"secrets": secrets, "broker": BrokerSettings(name="kis", mode=mode), "kis": KisSettings(url=of.service.both_url)}
    return Settings(root=root).model_copy(update=parts)


def test_db_1_the_settings_open_paper_and_live_only_when_three_things_agree(folder: Path) -> None:
    "DB-1: the mode of the settings, the number in the environment, and the account behind the keys"
    of = bench(folder)
    clock = of.line.clock
    paper = open_kis(settings_for(of, folder), clock)
    assert isinstance(paper, PaperKis) and paper.account().cash == CAPITAL
    assert isinstance(open_kis(settings_for(of, folder, named=NUMBER), clock), PaperKis)
    with pytest.raises(SettingsError, match="ALPHA_TRADER_LIVE"):
        open_kis(settings_for(of, folder, "live"), clock)
    with pytest.raises(AuthFailed, match="not the one of KIS_ACCOUNT_NUMBER"):
        open_kis(settings_for(of, folder, "live", "50999999-01"), clock)
    live = open_kis(settings_for(of, folder, "live", NUMBER), clock)
    assert isinstance(live, LiveKis) and not isinstance(live, PaperKis)
    assert not any("/order" in request.path for request in of.service.log)


# --- DB-2, DB-3: no cash, and won for dollars


def old_cash(balance: Any) -> Decimal:
    "System B: the deposit is cast to a number, and what fails is nothing"
    with suppress(Exception):
        return Decimal(str(balance.deposits["USD"]))
    return Decimal(0)


def test_db_2_the_cash_is_there(library: tuple[Bench, Any]) -> None:
    "DB-2: an object was cast to a number, and the cash was zero for ever; a field that is missing is an error here"
    of, kis = library
    assert old_cash(present_balance(kis)) == 0
    assert of.broker().account().cash == CAPITAL
    of.service.fault(Fault(at("present-balance"), "reply", change=without_deposit, times=9))
    with pytest.raises(Exception, match="frcr_dncl_amt_2"):
        of.broker().account()


def without_deposit(body: dict) -> dict:
    return body | {"output2": [{k: v for k, v in body["output2"][0].items() if k != "frcr_dncl_amt_2"}]}


def test_db_3_dollars_are_dollars_and_cash_is_counted(library: tuple[Bench, Any]) -> None:
    "DB-3: 900 USD of shares and 10,000 in cash were a portfolio of 1,260,000 'dollars', 35 % of it for one symbol"
    of, kis = library
    of.broker().submit(buy(quantity=9))
    of.exchange.cash = Decimal(10_000)
    old = present_balance(kis)
    assert old.current_amount == 900 * RATE
    assert int(Decimal("0.35") * old.current_amount / 100) > 110, "more shares than all the cash can buy"
    account = of.broker().account()
    assert (account.cash, account.equity, account.currency) == (10_000, 10_900, "USD")
    assert of.broker().positions()[0].market_value == 900


def test_db_3_a_fresh_account_is_worth_its_cash(library: tuple[Bench, Any]) -> None:
    "DB-3: without shares the old total is zero, so that nothing is ever bought"
    of, kis = library
    assert present_balance(kis).current_amount == 0
    assert of.broker().account().equity == CAPITAL


# --- DB-8: a loss that is estimated, and forgotten


class OldCounter:
    "System B: what its own stop-losses are thought to have cost, in memory"

    def __init__(self) -> None:
        self.lost = Decimal(0)

    def stopped(self, paid: Decimal, now: Decimal, shares: int) -> None:
        if (paid - now) / paid >= Decimal("0.08"):
            self.lost += (paid - now) * shares


def test_db_8_the_loss_of_a_day_is_the_account_s_and_survives_a_restart(folder: Path) -> None:
    "DB-8: the day falls by 4.4 % from the last close; the old counter sees no stop, and zero after every restart"
    of = bench(folder)
    of.broker().submit(buy(quantity=900))
    of.exchange.to(session_close(DAYS[1]))  # 102 at the last close, 96 now, bought at 100
    old = OldCounter()
    old.stopped(Decimal(100), Decimal(96), 900)
    assert old.lost == 0 == OldCounter().lost
    seen = []
    for _ in range(2):
        account = bench_at(of.service, folder, False, lambda: None).broker().account()
        seen.append((account.last_equity, account.equity))
    before, after = Decimal(10_000 + 900 * 102), Decimal(10_000 + 900 * 96)
    assert seen == [(before, after)] * 2
    assert day_loss_breached(float(after), float(before), risk_rules(Settings().risk))
    assert account.day_return < Decimal("-0.05")


def test_db_8_what_was_sold_today_counts_like_what_is_held(folder: Path) -> None:
    "DB-8: sold at the low or still held, the day has cost the same"
    held, sold = bench(folder / "a"), bench(folder / "b")
    losses = []
    for of, sells in ((held, False), (sold, True)):
        of.broker().submit(buy(quantity=100))
        of.exchange.to(session_open(DAYS[1]))  # 102 → 101
        if sells:
            of.exchange.submit("ACME", "sell", Decimal(60), "market")
        losses.append(of.broker().account().day_return)
    assert losses[0] == losses[1] == Decimal(100_100) / Decimal(100_200) - 1


# --- DB-9: what is not pending is filled, at the price we asked for


def old_record(pending: bool, requested: Decimal) -> tuple[str, Decimal | None]:
    "System B: an order that is not among the resting ones has been filled, at the price it asked for"
    return ("PENDING", None) if pending else ("FILLED", requested)


def test_db_9_an_order_that_expired_is_not_a_position(folder: Path) -> None:
    "DB-9: the price never came; the old rule books ten shares at 150, ours none"
    of = bench(folder)
    hand = hand_at(of, folder)
    hand.reconcile()
    hand.submit(buy(quantity=20))
    wish = target(150)
    assert hand.submit(wish) is IntentStatus.OPEN
    of.exchange.to(session_close(DAYS[0]))
    found = hand.reconcile()
    resting = {order.broker_id for order in hand.broker.orders(session_open(DAYS[0]), open_only=True)}
    with reading(hand.engine) as db:
        row = db.scalars(select(IntentRow).where(IntentRow.client_id == wish.client_id)).one()
    assert old_record(row.broker_id in resting, Decimal(150)) == ("FILLED", Decimal(150))
    assert row.status is IntentStatus.EXPIRED and found.drift == {} and hand.positions() == {"ACME": 20}


def test_db_9_a_fill_has_the_broker_s_price_and_number(folder: Path) -> None:
    "DB-9: asked for 101, the collar; filled at 100; the number of the order is kept from the first moment"
    of = bench(folder, paper=True)
    hand = hand_at(of, folder)
    hand.reconcile()
    assert hand.submit(buy()) is IntentStatus.FILLED
    with reading(hand.engine) as db:
        row = db.scalars(select(IntentRow)).one()
    assert row.broker_id == f"20240102-{of.service.book()[0].number}"
    hand.reconcile()
    assert old_record(False, of.exchange.orders[next(iter(of.exchange.orders))].limit or 0) == ("FILLED", Decimal(101))
    assert hand.fills() == ["10 at 100.00"]


def test_db_9_the_second_request_may_fail_and_hides_nothing(folder: Path) -> None:
    "DB-9: the order was placed, the question about it failed, and the old loop knew of no order an hour later"
    of = bench(folder)
    hand = hand_at(of, folder)
    hand.reconcile()
    lists = Fault(lambda request: request.path.endswith(LISTS) and bool(of.exchange.orders), "reset", False, times=3)
    of.service.fault(lists)
    assert hand.submit(buy()) is IntentStatus.OPEN
    of.exchange.move(timedelta(hours=1))
    hand.reconcile()
    assert hand.submit(buy()) is IntentStatus.FILLED and hand.positions() == {"ACME": 10}
    assert book(of) == ["buy 10 ACME"]


# --- DB-19: real keys in the paper world, and five requests a second


def test_db_19_real_keys_are_not_paper_keys(folder: Path) -> None:
    "DB-19: both pairs the same; the server's sentence came at the first order, ours comes before the first word"
    same = Keys(REAL_KEY, REAL_SECRET)
    with pytest.raises(AuthFailed, match="the same as KIS_APP_KEY") as told:
        kis_line(same, same, NUMBER, HTS_ID, folder, lambda: datetime.max)
    assert REAL_KEY not in str(told.value)


@pytest.mark.parametrize(("calls", "refused"), [(5, True), (LIMITS[PAPER][0], False)])
def test_db_19_five_a_second_are_too_many_in_the_paper_world(folder: Path, calls: int, refused: bool) -> None:
    "DB-19: System B's bucket of five against the server's window of two"
    from servers.kis import Wrong

    service, now = bench(folder, paced=True).service, [0.0]
    service.ticks = lambda: now[0]
    answers = []
    for n in range(20):
        now[0] = n // calls * (LIMITS[PAPER][1] if calls == 2 else 1.0) + n % calls * 0.001
        try:
            service.pace(PAPER_KEY, "paper")
            answers.append("yes")
        except Wrong as wrong:
            answers.append(wrong.body["msg_cd"])
    assert ("EGW00201" in answers) is refused


def test_orders_keep_their_state_over_a_restart(folder: Path) -> None:
    "DB-9: a new process knows the resting order and its number"
    of = bench(folder)
    waiting = of.broker().submit(buy(quantity=5))
    again = bench_at(of.service, folder, False, lambda: None).broker()
    assert again.order(waiting.broker_id) == waiting and waiting.status is OrderStatus.FILLED
