"""Defects of the two systems before that show only at a broker: the old way beside ours, over the same real sockets

Each test first does the damage as the old code did it, then shows that ours cannot. KIS has its own in its own file.
"""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from alpaca.data.historical import StockHistoricalDataClient
from alpaca.data.requests import StockLatestQuoteRequest
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderSide, TimeInForce
from alpaca.trading.requests import MarketOrderRequest
from hypothesis import given
from hypothesis import strategies as st
from servers.alpaca import ACCOUNT, KEY, SECRET
from servers.wire import Reply

from alpha_trader.books import account_fills
from alpha_trader.cycle import day_loss_gate, observe
from alpha_trader.domain import BrokerError, IntentStatus
from alpha_trader.sessions import session_close
from alpha_trader.signals import Reason
from alpha_trader.store import FillRow, PositionRow, connect, move_position, record_equity, writing
from faults.floor import DAYS, FIRST, TAPE, Floor, Trader, entry, in_the_end


def as_they_did(floor: Floor) -> TradingClient:
    "System A's client: as it comes out of the box, impatient only between its tries"
    client = TradingClient(KEY, SECRET, paper=True, url_override=floor.url)
    client._retry_wait = 0
    return client


def market(symbol: str = "ACME", quantity: int = 10) -> MarketOrderRequest:
    "System A's order: without a name"
    return MarketOrderRequest(symbol=symbol, qty=quantity, side=OrderSide.BUY, time_in_force=TimeInForce.DAY)


def test_da_2_a_gateway_that_times_out_doubles_a_nameless_order(floor: Floor) -> None:
    "DA-2: accepted and answered 504, System A's order is there twice, by the library alone; ours is there once"
    floor.fault("POST", "/orders", reply=Reply(504, {"message": "gateway time-out"}))
    as_they_did(floor).submit_order(market())
    assert len(floor.exchange.orders) == 2 and floor.exchange.shares == {"ACME": 20}
    floor.reset()
    floor.fault("POST", "/orders", reply=Reply(504, {"message": "gateway time-out"}))
    with floor.trading() as trader:
        trader.cycle(FIRST, {"ACME": 10})
        in_the_end(floor, trader)
    assert floor.exchange.shares == {"ACME": 10}


def test_da_1_a_signal_that_stays_is_bought_once(floor: Floor) -> None:
    "DA-1: eight runs of one slot; System A buys eight times, ours sends one order"
    for _ in range(8):
        as_they_did(floor).submit_order(market())
    assert floor.exchange.shares == {"ACME": 80}
    floor.reset()
    for _ in range(8):
        with floor.trading() as trader:
            trader.cycle(FIRST, {"ACME": 10})
            in_the_end(floor, trader)
    assert floor.exchange.shares == {"ACME": 10} and floor.posts().count(entry().client_id) == 1


def test_da_11_what_is_accepted_is_not_yet_executed(floor: Floor) -> None:
    "DA-11: System A notes 10 shares at the quoted price when the order is accepted; we note 5 at 101 when they filled"
    floor.exchange.portion = lambda order: Decimal(0)
    order = as_they_did(floor).submit_order(market())
    noted = {"status": "executed", "qty": int(str(order.qty)), "price": 100.0}
    assert noted["qty"] == 10 and floor.exchange.shares == {}
    floor.reset()
    floor.exchange.portion = lambda order: Decimal(0)
    with floor.trading() as trader:
        trader.reconcile()
        [outcome] = [o for o in send_now(trader) if o.intent == entry()]
        assert outcome.status is IntentStatus.OPEN and trader.position() is None
        floor.exchange.execute(floor.ours()[0], Decimal(101), Decimal(5))
        in_the_end(floor, trader)
        row = trader.position()
        assert row and (row.quantity, row.average_price) == (5, 101)


def send_now(trader: Trader) -> list:
    from alpha_trader.execution import record_intents, send

    record_intents(trader.engine, [entry()], 1, trader.clock(), trader.fence)
    return send(trader.engine, trader.broker, [entry()], *trader.acting, trader.clock())


def test_da_11_an_error_of_the_store_does_not_lose_a_sent_order(floor: Floor) -> None:
    "DA-11: System A swallows a database error after sending; ours finds the order again by its name"
    from sqlalchemy import text

    as_they_did(floor).submit_order(market())
    forgotten: list[str] = []  # what System A knows after its INSERT failed
    assert len(floor.exchange.orders) == 1 and not forgotten
    floor.reset()
    with floor.trading() as trader:
        with writing(trader.engine) as db:
            db.execute(text("CREATE TRIGGER full BEFORE INSERT ON orders BEGIN SELECT RAISE(ABORT, 'full'); END"))
        with pytest.raises(Exception, match="full"):
            trader.cycle(FIRST, {"ACME": 10})
        with writing(trader.engine) as db:
            db.execute(text("DROP TRIGGER full"))
        trader.cycle(FIRST, {"ACME": 10})
        in_the_end(floor, trader)
    assert floor.exchange.shares == {"ACME": 10}


def test_da_16_a_quote_that_is_no_table_leaves_a_stale_price(floor: Floor) -> None:
    "DA-16: `.df` of a dictionary never runs, and System A sizes by an old bar; ours refuses to enter on old bars"
    data = StockHistoricalDataClient(KEY, SECRET, url_override=floor.url)
    quote = data.get_stock_latest_quote(StockLatestQuoteRequest(symbol_or_symbols="ACME"))
    assert isinstance(quote, dict) and not hasattr(quote, "df")
    stale_price = float(TAPE.close[0, 0]) if not hasattr(quote, "df") else float(quote["ACME"].ask_price)
    assert stale_price == 100.0, "the close of three sessions ago, whatever the quote says"
    with floor.trading() as trader:
        desk = replace(trader.desk(FIRST), tape=TAPE.upto(DAYS[0]))
        gates = dict(observe(desk).gates)
        assert "newest bar is of 2024-01-02" in gates[Reason.STALE]


def first_buy_again(trades: list[tuple[int, int]]) -> int:
    "System A's profit: every sale is matched with the first purchase, whose shares are never used up"
    first = next(price for shares, price in trades if shares > 0)
    return sum(-shares * (price - first) for shares, price in trades if shares < 0)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(10, 200), st.integers(10, 200)), min_size=1, max_size=8))
def test_da_17_profit_is_what_the_cash_says(rounds: list[tuple[int, int, int]]) -> None:
    "DA-17: bought and sold in rounds; the average cost of our positions gives the profit that the cash shows, always"
    trades = [leg for shares, paid, got in rounds for leg in ((shares, paid), (-shares, got))]
    cash = -sum(shares * price for shares, price in trades)
    row, profit = PositionRow(quantity=Decimal(0), average_price=Decimal(0)), Decimal(0)
    for shares, price in trades:
        if shares < 0:
            profit -= shares * (price - row.average_price)
        move_position(row, Decimal(shares), Decimal(price), DAYS[0])
    assert profit == cash and row.quantity == 0
    if len({paid for _, paid, _ in rounds}) == 1:
        assert first_buy_again(trades) == cash, "the old rule is right only as long as every purchase costs the same"


def test_da_17_as_it_was(floor: Floor) -> None:
    "DA-17: 10 at 100 sold at 110, 10 at 200 sold at 190: nothing was won, System A says 1,000; days are New York's"
    trades = [(10, 100), (-10, 110), (10, 200), (-10, 190)]
    assert first_buy_again(trades) == 1000 and -sum(shares * price for shares, price in trades) == 0
    with floor.trading() as trader:
        trader.cycle(FIRST, {"ACME": 10})
        floor.to_open(FIRST + 1)
        trader.cycle(FIRST + 1, {"ACME": -1})
        in_the_end(floor, trader)
        flows = account_fills(trader.engine, "demo")["flow"]
        assert Decimal(str(round(flows.sum(), 2))) == floor.exchange.cash - 100_000
        assert [row.session for row in trader.rows(FillRow)] == [DAYS[FIRST], DAYS[FIRST + 1]]
    evening = datetime(2024, 1, 5, 0, 30, tzinfo=UTC)
    assert evening.date() != DAYS[FIRST] == evening.astimezone(__import__("zoneinfo").ZoneInfo("America/New_York")).date()


def test_da_20_what_is_written_down_or_shown_names_no_key(floor: Floor, capsys: pytest.CaptureFixture[str]) -> None:
    "DA-20: System A logged the first eight letters of key and secret; ours are in no error, row or output"
    assert KEY[:8] in f"connecting with {KEY[:8]}…", "as it was"
    with floor.trading() as trader:
        floor.fault("POST", "/orders", "reset")
        trader.cycle(FIRST, {"ACME": 10})
        said = ""
        for status in (401, 403, 404, 422, 429, 500):
            floor.fault("GET", "/account", after=False, reply=Reply(status, {"message": "no"}), times=3)
            with pytest.raises(BrokerError) as error:
                trader.broker.account()
            said += f"{error.value!r} {error.value} {error.value.__context__!r} {error.value.__cause__!r}"
            floor.wire.faults.clear()
        in_the_end(floor, trader)
    printed = capsys.readouterr()
    for secret in (KEY, SECRET, KEY[:8], SECRET[:8], ACCOUNT):
        assert secret not in said + printed.out + printed.err


def test_db_8_the_loss_of_a_day_survives_a_restart(floor: Floor) -> None:
    "DB-8: System B adds up today's stops in memory, a restart makes it 0; ours compares two closes in the store"
    lost_in_memory = -2500.0
    lost_in_memory = 0.0  # the process is started again
    assert lost_in_memory == 0.0
    with floor.trading() as trader:
        with writing(trader.engine) as db:
            for day, equity in ((0, 100_000), (1, 97_500)):
                record_equity(db, "demo", DAYS[day], "close", session_close(DAYS[day]), Decimal(0), Decimal(equity))
        trader.engine.dispose()
        again = replace(trader.desk(FIRST), engine=connect(f"sqlite:///{floor.path}/store.db"))
        assert [code for code, _ in day_loss_gate(again)] == [Reason.DAY_LOSS]


def test_db_9_an_order_that_is_not_pending_may_be_cancelled(floor: Floor) -> None:
    "DB-9: System B takes what is not pending for filled, at the price it asked for; ours has the broker's word"
    floor.exchange.portion = lambda order: Decimal(0)
    client = as_they_did(floor)
    client.submit_order(market())
    floor.exchange.end(next(iter(floor.exchange.orders.values())), "canceled")
    pending = [order for order in client.get_orders() if str(order.symbol) == "ACME"]
    believed = "FILLED" if not pending else "PENDING"
    assert believed == "FILLED" and floor.exchange.shares == {}
    floor.reset()
    floor.exchange.portion = lambda order: Decimal(0)
    with floor.trading() as trader:
        trader.reconcile()
        send_now(trader)
        floor.exchange.end(floor.ours()[0], "canceled")
        in_the_end(floor, trader)
        assert trader.status(entry()) is IntentStatus.CANCELED and trader.position() is None


def test_db_9_a_purchase_waits_for_the_sale(floor: Floor) -> None:
    "DB-9: System B sends the purchase before the sale is filled; ours sends it after, and the book says so"
    with floor.trading() as trader:
        trader.cycle(FIRST, {"ACME": 10})
        floor.to_open(FIRST + 1)
        trader.cycle(FIRST + 1, {"ACME": -1, "BOLT": 10})
        in_the_end(floor, trader)
    sides = [(order.symbol, order.side, order.kind) for order in floor.ours()]
    assert sides[2:4] == [("ACME", "sell", "market"), ("BOLT", "buy", "market")]
    assert [e.order.side for e in floor.exchange.executions] == ["buy", "sell", "buy"]


def test_db_1_orders_of_a_paper_account_are_named_so_and_the_live_host_is_refused(floor: Floor) -> None:
    "DB-1: System B shipped with mode: live; a broker of a paper account cannot even be pointed at the live host"
    from alpha_trader.alpaca_broker import LIVE_HOST, paper_broker
    from alpha_trader.domain import AuthFailed

    with floor.trading() as trader:
        trader.cycle(FIRST, {"ACME": 10})
        assert trader.broker.caps.paper and all("-paper-" in order.client_id for order in floor.ours())
        trader.line.client._base_url = LIVE_HOST
        with pytest.raises(AuthFailed, match="pointed at the live host"):
            paper_broker(trader.line)
        trader.line.client._base_url = floor.url
