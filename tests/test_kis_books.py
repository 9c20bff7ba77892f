"""What KIS does without a word: splits, dividends and what trades cost, against a real server and a real store

Two witnesses are needed for a booking, the balance and a table that KIS publishes; each test says what either of them
shows. Amounts are worked out by hand: ten shares at 100 USD, an estimate of 0.1 %, a charge of 0.25 %.
"""

import sqlite3
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from servers.wire import Fault
from sqlalchemy import select
from test_broker import CAPITAL, DAYS, EVER, buy, sell
from test_kis import NUMBER, Bench, Hand, at, bench, hand_at, said

from alpha_trader.domain import IntentStatus
from alpha_trader.fills import CostRules
from alpha_trader.kis_broker import KisBroker, NotedBooks, live_kis, paper_kis
from alpha_trader.sessions import session_close, session_open
from alpha_trader.store import CorporateActionRow, FillRow, get_state, reading

COSTS = CostRules(commission_rate=0.001, commission_per_share=0.0, half_spread=0.0, slippage=0.0, impact=0.0)
STATEMENT, RIGHTS = "inquire-period-trans", "period-rights"


@pytest.fixture(params=["real", "paper"])
def hand(request: pytest.FixtureRequest, folder: Path) -> Hand:
    return hand_at(bench(folder, request.param == "paper"), folder)


def broker_of(of: Bench) -> KisBroker:
    "With the settings' costs, as `open_kis` makes it"
    if of.line.kis.virtual:
        return paper_kis(of.line, of.folder, costs=COSTS)
    return live_kis(of.line, of.folder, NUMBER, costs=COSTS)


def costly(folder: Path, paper: bool = False, **server: object) -> Hand:
    "A hand at a broker that charges 0.25 % where we expect 0.1 %"
    found = hand_at(bench(folder, paper, **server), folder)
    found.of.exchange.fee_rate = Decimal("0.0025")
    found.broker = broker_of(found.of)
    return found


def booked(hand: Hand) -> list[tuple[str, str, Decimal, Decimal]]:
    with reading(hand.engine) as db:
        rows = db.scalars(select(CorporateActionRow).order_by(CorporateActionRow.id)).all()
    return [(row.symbol, row.kind, row.quantity, row.cash) for row in rows]


def fees(hand: Hand) -> list[Decimal]:
    with reading(hand.engine) as db:
        return list(db.scalars(select(FillRow.fee).order_by(FillRow.at)))


def explained_cash(hand: Hand) -> Decimal:
    "What our books say the account has: the capital and everything that was booked"
    with reading(hand.engine) as db:
        fills = sum((row.noun().cash for row in db.scalars(select(FillRow))), Decimal(0))
        return CAPITAL + fills + sum(db.scalars(select(CorporateActionRow.cash)), Decimal(0))


def begin(hand: Hand) -> None:
    hand.reconcile()
    assert hand.submit(buy()) is IntentStatus.FILLED
    hand.reconcile()


def test_a_split_overnight_is_explained_and_freezes_nothing(hand: Hand) -> None:
    begin(hand)
    hand.of.exchange.to(session_open(DAYS[2]))
    seen = hand.reconcile()
    assert (seen.drift, seen.frozen, seen.new_actions, seen.cash_drift) == ({}, {}, 1, 0)
    assert booked(hand) == [("ACME", "split", 10, 0)] and hand.positions() == {"ACME": 20} and hand.alarms() == []
    again = Hand(hand.of, hand.engine, hand.fence, hand.of.broker()).reconcile()
    assert again.new_actions == 0 and hand.positions() == {"ACME": 20}, "another process books nothing again"


def test_shares_that_no_right_explains_freeze_their_symbol(hand: Hand) -> None:
    begin(hand)
    hand.of.exchange.to(session_open(DAYS[1]))
    hand.of.exchange.shares["ACME"] += 10
    seen = hand.reconcile()
    assert seen.drift == {"ACME": (10, 20)} and "ACME" in seen.frozen and booked(hand) == []


def test_a_split_that_kis_has_not_carried_out_is_not_booked(hand: Hand) -> None:
    "The right alone is no witness: KIS takes days over a split"
    begin(hand)
    hand.of.exchange.to(session_open(DAYS[2]))
    hand.of.exchange.shares["ACME"] = Decimal(10)
    assert hand.reconcile().drift == {} and booked(hand) == [] and hand.positions() == {"ACME": 10}
    hand.of.exchange.to(session_open(DAYS[3]))
    hand.of.exchange.shares["ACME"] = Decimal(20)
    hand.reconcile()
    assert ("ACME", "split", Decimal(10), Decimal(0)) in booked(hand) and hand.positions() == {"ACME": 20}


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize(("withheld", "arrives"), [("0.15", "8.50"), ("0", "10.00")])
def test_a_dividend_is_explained_when_it_is_paid(folder: Path, paper: bool, withheld: str, arrives: str) -> None:
    "Twenty shares at 50 cents, paid a session after their date"
    lag = session_open(DAYS[4]) - session_open(DAYS[3])
    hand = hand_at(bench(folder, paper, withheld=Decimal(withheld), lag=lag), folder)
    begin(hand)
    hand.of.exchange.to(session_open(DAYS[2]))
    hand.reconcile()
    hand.of.exchange.to(session_open(DAYS[3]))
    assert hand.reconcile().new_actions == 0, "its date is not its payment"
    hand.of.exchange.to(session_open(DAYS[4]))
    seen = hand.reconcile()
    assert booked(hand)[1:] == [("ACME", "dividend", 0, Decimal(arrives))] and seen.cash_drift == 0
    assert hand.reconcile().new_actions == 0 and hand.alarms() == []
    assert explained_cash(hand) == hand.broker.account().cash


def test_cash_that_no_right_explains_is_for_a_person(hand: Hand) -> None:
    begin(hand)
    hand.of.exchange.cash += Decimal("123.45")
    assert hand.reconcile().cash_drift == Decimal("123.45") and hand.alarms() == ["cash"] and booked(hand) == []


@pytest.mark.parametrize("late_fees", [False, True])
def test_what_a_trade_cost_replaces_the_estimate_once(folder: Path, late_fees: bool) -> None:
    "1,000 USD: 1.00 estimated, 2.50 charged, with the trade or when the statement has it; 1.50 are booked the day after"
    hand = costly(folder, late_fees=late_fees)
    begin(hand)
    assert hand.broker.caps.fees == "later" and fees(hand) == [Decimal("1.00")] and booked(hand) == []
    hand.of.exchange.to(session_open(DAYS[1]))
    hand.broker = broker_of(hand.of)
    assert hand.reconcile().new_actions == 1
    assert booked(hand) == [("ACME", f"fees {DAYS[0]}", 0, Decimal("-1.50"))] and hand.alarms() == []
    assert explained_cash(hand) == hand.broker.account().cash == CAPITAL - 1000 - Decimal("2.50")
    asked = len(hand.of.asked(STATEMENT))
    for _ in range(3):
        assert hand.reconcile().new_actions == 0
    assert len(hand.of.asked(STATEMENT)) == asked, "what is settled is not asked for again"
    with reading(hand.engine) as db:
        assert get_state(db, "demo", "fees open") is None


@pytest.mark.parametrize("late_fees", [False, True])
def test_two_corrections_of_one_day_add_up(folder: Path, late_fees: bool) -> None:
    "One fee was guessed too low and one too high: 10 ACME at 100 and 100 BOLT at their price, the second charged nothing"
    hand = costly(folder, late_fees=late_fees)
    begin(hand)
    hand.of.exchange.fee_rate = Decimal(0)
    assert hand.submit(buy("BOLT")) is IntentStatus.FILLED
    hand.reconcile()
    hand.of.exchange.to(session_open(DAYS[1]))
    hand.reconcile()
    amounts = {symbol: cash for symbol, _, _, cash in booked(hand)}
    assert amounts == {"ACME": Decimal("-1.50"), "BOLT": fees(hand)[1]} and hand.alarms() == []
    assert explained_cash(hand) == hand.broker.account().cash


def test_money_beyond_the_estimates_is_still_missed(folder: Path) -> None:
    hand = costly(folder)
    begin(hand)
    hand.of.exchange.cash -= Decimal(30)
    assert hand.reconcile().cash_drift == -30 and hand.alarms() == ["cash"]


def test_a_paper_account_keeps_its_estimates_and_says_so(folder: Path) -> None:
    hand = costly(folder, paper=True)
    begin(hand)
    hand.of.exchange.to(session_open(DAYS[1]))
    assert hand.reconcile().new_actions == 0 and hand.broker.caps.fees == "never"
    assert fees(hand) == [Decimal("1.00")] and hand.alarms() == [] and hand.of.asked(STATEMENT) == []


def test_an_incomplete_statement_settles_nothing(folder: Path) -> None:
    "Two purchases of five; the statement knows one of them, then both, in rows that look alike and on two pages"
    hand = costly(folder, page=1)
    hand.of.exchange.portion = lambda order: Decimal(5)
    hand.reconcile()
    hand.submit(buy())
    hand.reconcile()
    [order] = hand.of.exchange.orders.values()
    hand.of.exchange.match(order)
    hand.reconcile()
    assert fees(hand) == [Decimal("0.50"), Decimal("0.50")]
    hand.of.exchange.to(session_open(DAYS[1]))
    half = Fault(at(STATEMENT), "reply", change=lambda body: body | {"output1": body["output1"][:1]}, times=9)
    hand.of.service.page = 20
    hand.of.service.fault(half)
    assert hand.reconcile().new_actions == 0
    half.times = 0
    assert hand.reconcile().new_actions == 1 and booked(hand)[0][3] == Decimal("-1.50")


def test_a_sale_pays_the_foreign_fee_too(folder: Path) -> None:
    hand = costly(folder)
    begin(hand)
    assert hand.submit(sell()) is IntentStatus.FILLED
    hand.reconcile()
    hand.of.exchange.to(session_open(DAYS[1]))
    hand.reconcile()
    assert [row[3] for row in booked(hand)] == [Decimal("-3.00")], "two trades of the day in one row, 5.00 less 2.00"
    assert explained_cash(hand) == hand.broker.account().cash


def test_a_quiet_day_asks_neither_page(hand: Hand) -> None:
    hand.reconcile()
    for day in DAYS[1:]:
        hand.of.exchange.to(session_open(day))
        hand.reconcile()
    assert hand.of.asked(STATEMENT) == hand.of.asked(RIGHTS) == []


@pytest.mark.parametrize("page", [STATEMENT, RIGHTS])
def test_a_page_that_answers_nonsense_stops_nothing(folder: Path, page: str) -> None:
    hand = costly(folder)
    begin(hand)
    hand.of.service.fault(Fault(at(page), "reply", False, said("OPSQ0002"), times=99))
    hand.of.exchange.to(session_open(DAYS[2]))
    seen = hand.reconcile()
    assert ("ACME" in seen.frozen) == (page == RIGHTS)


def test_two_processes_that_look_at_the_same_moment_find_a_split_once(hand: Hand) -> None:
    begin(hand)
    hand.of.exchange.to(session_open(DAYS[2]))
    brokers = [hand.of.broker() for _ in range(2)]
    told = [broker.corporate_actions(EVER) for broker in brokers]
    assert told[0] == told[1] and len(told[0]) == 1


def test_a_file_of_an_older_release_is_read(folder: Path) -> None:
    with sqlite3.connect(folder / "fills.db") as file:
        file.execute(
            "CREATE TABLE fills (broker_id TEXT, total TEXT, symbol TEXT, side TEXT, quantity TEXT, price TEXT, at TEXT, "
            "seen TEXT, PRIMARY KEY (broker_id, total))"
        )
        moment = session_close(date(2024, 1, 2)).isoformat()
        file.execute(
            "INSERT INTO fills VALUES ('20240102-1', '10', 'ACME', 'buy', '10', '100', ?, ?)", (moment, moment)
        )
    file.close()
    [fill] = NotedBooks(folder / "fills.db", COSTS).since(EVER)
    assert (fill.quantity, fill.fee) == (10, 0)
    assert NotedBooks(folder / "fills.db", COSTS).books() is None
