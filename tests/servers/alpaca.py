"""A local Alpaca: the trading and market-data endpoints we use, as its OpenAPI says, over the small exchange

Only what the official specification (2.4.0) and the documents describe. Every request and reply of a test is judged by
that specification from outside; see `judge.py`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import pandas as pd

from servers.exchange import Event, Exchange, Execution, Order, Refused, closing, next_session, opening, session_of
from servers.wire import Reply, Request, Wire

KEY, SECRET, ACCOUNT = "PKTESTTESTTESTTEST01", "secretsecretsecretsecretsecretsecret0001", "PA3TESTACCT1"
NEW_YORK = "America/New_York"
REFUSALS = {  # reason -> status, code
    "duplicate": (422, 40010001),
    "symbol": (422, 42210000),
    "quantity": (422, 42210000),
    "price": (422, 42210000),
    "held": (403, 40310000),
    "funds": (403, 40310000),
    "wash": (403, 40310000),
}


def stamp(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def error(status: int, code: int, message: str, **more: object) -> Reply:
    return Reply(status, {"code": code, "message": message, **more})


def number(value: Decimal | None) -> str | None:
    return None if value is None else format(value.normalize(), "f")


@dataclass
class Alpaca:
    "The service: an exchange, an account, and the two hosts in one"

    exchange: Exchange
    capital: Decimal
    feed: str = "sip"
    calls: list[datetime] = field(default_factory=list)  # when the last ones came, by the exchange's clock
    limit: int = 200  # requests a minute
    most: int = 0  # requests within any minute so far
    page: int = 10_000  # bars on a page, at most
    lag: dict[str, int] = field(default_factory=dict)  # client id -> lookups still answered 404
    account_number: str = ACCOUNT
    actions_page: int = 1_000  # corporate actions on a page, at most
    amended: str = "replaced"  # how the list of fills shows an amendment (undocumented): replaced, beside, untold

    def __post_init__(self) -> None:
        self.wire = Wire(self.answer)
        self.url = self.wire.url

    # ---------------------------------------------------------------- routing

    def answer(self, request: Request) -> Reply:
        headers = {name.lower(): value for name, value in request.headers.items()}
        if (headers.get("apca-api-key-id"), headers.get("apca-api-secret-key")) != (KEY, SECRET):
            return Reply(401, {"message": "unauthorized."})
        with self.exchange.lock:
            now = self.exchange.now
            self.calls = [at for at in self.calls if at > now - timedelta(minutes=1)] + [now]
            self.most = max(self.most, len(self.calls))
            if len(self.calls) > self.limit:
                reset = int((self.calls[0] + timedelta(minutes=1)).timestamp())
                limits = {
                    "X-RateLimit-Limit": str(self.limit),
                    "X-RateLimit-Remaining": "0",
                    "X-RateLimit-Reset": str(reset),
                }
                return Reply(429, {"message": "too many requests."}, limits)
            return self.route(request)

    def route(self, request: Request) -> Reply:
        method, path, query = request.method, request.path, request.query
        parts = path.strip("/").split("/")
        if parts[0] == "v1":
            return Reply(body=self.actions(query))
        if parts == ["v2beta1", "events", "activities"]:
            return self.told(query)
        match method, parts[1:]:
            case "GET", ["account"]:
                return Reply(body=self.account())
            case "GET", ["clock"]:
                return Reply(body=self.clock())
            case "GET", ["assets"]:
                return Reply(body=[self.asset(symbol) for symbol in self.exchange.tape.symbols])
            case "GET", ["assets", symbol]:
                known = symbol in self.exchange.tape.symbols
                return (
                    Reply(body=self.asset(symbol)) if known else error(404, 40410000, f"asset not found for {symbol}")
                )
            case "GET", ["positions"]:
                return Reply(body=[self.position(symbol) for symbol in sorted(self.exchange.shares)])
            case "GET", ["orders:by_client_order_id"]:
                return self.by_client_id(query["client_order_id"])
            case "GET", ["orders"]:
                return Reply(body=[self.order(order) for order in self.listed(query)])
            case "POST", ["orders"]:
                return self.place(request.body)
            case "GET", ["orders", name]:
                order = self.exchange.orders.get(name)
                return Reply(body=self.order(order)) if order else error(404, 40410000, f"order not found for {name}")
            case "DELETE", ["orders", name]:
                return self.cancel(name)
            case "GET", ["account", "activities"]:
                return Reply(body=self.activities(query))
            case "GET", ["stocks", "bars"]:
                return self.bars(query)
            case "GET", ["stocks", "trades", "latest"]:
                trades = {s: self.trade(s) for s in query["symbols"].split(",") if self.known(s)}
                return Reply(body={"trades": trades})
            case "GET", ["stocks", "snapshots"]:
                return Reply(body={s: self.snapshot(s) for s in query["symbols"].split(",") if self.known(s)})
            case "GET", ["stocks", "quotes", "latest"]:
                quotes = {s: self.quote(s) for s in query["symbols"].split(",") if self.known(s)}
                return Reply(body={"quotes": quotes})
        return error(404, 40410000, f"endpoint not found: {path}")

    def known(self, symbol: str) -> bool:
        return symbol in self.exchange.tape.symbols and self.exchange.price(symbol) is not None

    # ---------------------------------------------------------------- trading

    def account(self) -> dict[str, Any]:
        exchange = self.exchange
        equity, cash = exchange.equity(), exchange.cash
        held = number(equity - cash)
        return {
            "id": "904837e3-3b76-47ec-b432-046db621571b",
            "account_number": self.account_number,
            "status": "ACTIVE",
            "currency": "USD",
            "cash": number(cash),
            "equity": number(equity),
            "last_equity": number(exchange.last_equity(self.capital)),
            "portfolio_value": number(equity),
            "buying_power": number(exchange.buying_power()),
            "non_marginable_buying_power": number(exchange.buying_power()),
            "regt_buying_power": number(exchange.buying_power()),
            "long_market_value": held,
            "short_market_value": "0",
            "initial_margin": "0",
            "maintenance_margin": "0",
            "multiplier": "1",
            "trading_blocked": False,
            "transfers_blocked": False,
            "account_blocked": False,
            "trade_suspended_by_user": False,
            "shorting_enabled": False,
            "created_at": "2020-01-01T00:00:00Z",
            "sma": "0",
            "accrued_fees": "0",
        }

    def clock(self) -> dict[str, Any]:
        now = self.exchange.now
        session, following = session_of(now), next_session(now)
        return {
            "timestamp": pd.Timestamp(now).tz_convert(NEW_YORK).isoformat(),
            "is_open": session is not None,
            "next_open": pd.Timestamp(opening(following)).tz_convert(NEW_YORK).isoformat(),
            "next_close": pd.Timestamp(closing(session or following)).tz_convert(NEW_YORK).isoformat(),
        }

    def asset(self, symbol: str) -> dict[str, Any]:
        return {
            "id": f"00000000-0000-4000-8000-{self.exchange.tape.symbols.index(symbol):012d}",
            "class": "us_equity",
            "exchange": "NASDAQ",
            "symbol": symbol,
            "name": f"{symbol} Inc.",
            "status": "active",
            "tradable": True,
            "marginable": True,
            "maintenance_margin_requirement": 30,
            "shortable": True,
            "easy_to_borrow": True,
            "fractionable": True,
            "attributes": [],
            "price_increment": "0.01" if (self.exchange.price(symbol) or 1) >= 1 else "0.0001",
        }

    def position(self, symbol: str) -> dict[str, Any]:
        exchange = self.exchange
        quantity, average, price = (
            exchange.shares[symbol],
            exchange.average[symbol],
            exchange.price(symbol) or Decimal(0),
        )
        value, cost = quantity * price, quantity * average
        return {
            "asset_id": self.asset(symbol)["id"],
            "symbol": symbol,
            "exchange": "NASDAQ",
            "asset_class": "us_equity",
            "asset_marginable": True,
            "avg_entry_price": number(round(average, 6)),
            "qty": number(quantity),
            "qty_available": number(exchange.free(symbol)),
            "side": "long",
            "market_value": number(value),
            "cost_basis": number(cost),
            "unrealized_pl": number(value - cost),
            "unrealized_plpc": "0",
            "unrealized_intraday_pl": "0",
            "unrealized_intraday_plpc": "0",
            "current_price": number(price),
            "lastday_price": number(price),
            "change_today": "0",
        }

    def order(self, order: Order) -> dict[str, Any]:
        ended = {
            name: stamp(order.ended) if order.status == name.removesuffix("_at") else None
            for name in ("canceled_at", "expired_at", "filled_at")
        }
        return {
            "id": order.id,
            "client_order_id": order.client_id,
            "created_at": stamp(order.submitted),
            "updated_at": stamp(order.updated),
            "submitted_at": stamp(order.submitted),
            **ended,
            "failed_at": stamp(order.ended) if order.status == "rejected" else None,
            "replaced_at": None,
            "replaced_by": None,
            "replaces": None,
            "asset_id": self.asset(order.symbol)["id"],
            "symbol": order.symbol,
            "asset_class": "us_equity",
            "notional": None,
            "qty": number(order.quantity),
            "filled_qty": number(order.filled),
            "filled_avg_price": number(order.average),
            "order_class": "",
            "order_type": order.kind,
            "type": order.kind,
            "side": order.side,
            "time_in_force": order.tif,
            "limit_price": number(order.limit),
            "stop_price": number(order.stop),
            "status": order.status,
            "extended_hours": False,
            "legs": None,
            "trail_percent": None,
            "trail_price": None,
            "hwm": None,
        }

    def place(self, body: dict[str, Any]) -> Reply:
        try:
            prices = {
                name: Decimal(body[f"{name}_price"]) if body.get(f"{name}_price") else None
                for name in ("limit", "stop")
            }
            order = self.exchange.submit(
                body["symbol"],
                body["side"],
                Decimal(body["qty"]),
                body["type"],
                body["time_in_force"],
                **prices,
                client_id=body.get("client_order_id") or "",
            )
        except Refused as refused:
            status, code = REFUSALS[refused.reason]
            return error(status, code, refused.detail, **refused.more)
        except (KeyError, InvalidOperation) as wrong:
            return error(422, 42210000, f"invalid request: {wrong}")
        return Reply(body=self.order(order))

    def cancel(self, name: str) -> Reply:
        if name not in self.exchange.orders:
            return error(404, 40410000, f"order not found for {name}")
        if self.exchange.cancel(name):
            return Reply(204)
        return error(422, 42210000, f'order is already in "{self.exchange.orders[name].status}" state')

    def by_client_id(self, client_id: str) -> Reply:
        if self.lag.get(client_id, 0) > 0:
            self.lag[client_id] -= 1
            return error(404, 40410000, f"order not found for {client_id}")
        for order in self.exchange.orders.values():
            if order.client_id == client_id:
                return Reply(body=self.order(order))
        return error(404, 40410000, f"order not found for {client_id}")

    def listed(self, query: dict[str, str]) -> Iterable[Order]:
        wanted = query.get("status", "open")
        after, until = (pd.Timestamp(query[name]) if name in query else None for name in ("after", "until"))
        found = [
            order
            for order in self.exchange.orders.values()
            if (wanted == "all" or (order.left > 0) == (wanted == "open"))
            and (after is None or order.submitted > after)
            and (until is None or order.submitted < until)
        ]
        found.sort(key=lambda order: order.number, reverse=query.get("direction", "desc") == "desc")
        return found[: min(int(query.get("limit", 50)), 500)]

    def activities(self, query: dict[str, str]) -> list[dict[str, Any]]:
        kinds = query["activity_types"].split(",")
        rows = [self.fill(execution) for execution in self.fills_told()] if "FILL" in kinds else []
        rows += [self.event(event) for event in self.exchange.events if self.word(event) in kinds]
        if "after" in query:
            after = pd.Timestamp(query["after"])
            rows = [
                row
                for row in rows
                if pd.Timestamp(row.get("transaction_time") or row["date"]).tz_localize(None) > after.tz_localize(None)
            ]
        if query.get("direction", "desc") == "desc":
            rows.reverse()
        if "page_token" in query:
            ids = [row["id"] for row in rows]
            rows = rows[ids.index(query["page_token"]) + 1 :] if query["page_token"] in ids else []
        return rows[: int(query.get("page_size", 100))]

    def fills_told(self) -> list[Execution]:
        "Fills as the list of activities has them"
        found, amendments = list(self.exchange.executions), self.exchange.amendments
        if self.amended != "untold":
            found += [one.instead for one in amendments if one.instead]
        gone = {one.of.id for one in amendments} if self.amended == "replaced" else set()
        return [execution for execution in found if execution.id not in gone]

    def told(self, query: dict[str, str]) -> Reply:
        "Activity events of a time that has passed, as a stream that ends: fills, and what does not stand"
        if "until" not in query or "since" not in query:
            return error(422, 42210000, "since and until are needed")
        since, until = (pd.Timestamp(query[name]) for name in ("since", "until"))
        events = [self.trade_event(one.at, "fill", one, one.id) for one in self.exchange.executions]
        for one in self.exchange.amendments:
            kind = "trade_correct" if one.instead else "trade_bust"
            named = one.instead.id if one.instead else one.id
            events.append(self.trade_event(one.at, kind, one.instead or one.of, named, one.of.id))
        rows = [event for event in events if since <= pd.Timestamp(event["at"]) <= until]
        lines = [f"id: {event['event_id']}\ndata: {json.dumps(event)}\n\n" for event in rows]
        return Reply(body=(": heartbeat\n\n" + "".join(lines)).encode(), headers={"Content-Type": "text/event-stream"})

    def trade_event(self, at: datetime, kind: str, execution: Execution, name: str, previous: str = "") -> dict[str, Any]:
        order = execution.order
        details = {
            "execution_type": kind,
            "order_id": order.id,
            "client_order_id": order.client_id,
            "asset_id": self.asset(order.symbol)["id"],
            "symbol": order.symbol,
            "side": order.side,
            "leaves_qty": number(order.quantity - execution.total),
            "cum_qty": number(execution.total),
            "order_status": order.status,
        }
        event = {
            "event_id": f"01HZZZZZZZ{name[-16:].replace('-', '0').upper()}",
            "at": stamp(at),
            "activity_type": "TRD",
            "executed_at": stamp(execution.at),
            "status": "executed",
            "settle_date": str(execution.at.date()),
            "currency": "USD",
            "ref_id": name.rpartition("::")[2],
            "qty": number(execution.quantity),
            "price": number(execution.price),
            "details": details,
        }
        return event | ({"previous_id": previous.rpartition("::")[2]} if previous else {})

    def fill(self, execution: Execution) -> dict[str, Any]:
        order = execution.order
        return {
            "id": execution.id,
            "activity_type": "FILL",
            "transaction_time": stamp(execution.at),
            "type": "fill" if execution.total == order.quantity else "partial_fill",
            "price": number(execution.price),
            "qty": number(execution.quantity),
            "side": order.side,
            "symbol": order.symbol,
            "leaves_qty": number(order.quantity - execution.total),
            "order_id": order.id,
            "cum_qty": number(execution.total),
            "order_status": "filled" if execution.total == order.quantity else "partially_filled",
        }

    @staticmethod
    def word(event: Event) -> str:
        return {"split": "SPLIT", "dividend": "DIV", "fee": "FEE"}[event.kind]

    def charge(self, session: date, amount: Decimal) -> None:
        "Book a fee, as the broker does in the night after the trades"
        with self.exchange.lock:
            self.exchange.cash -= amount
            name = f"fee-{session}-{len(self.exchange.events)}"
            self.exchange.events.append(
                Event(name, "", session, "fee", Decimal(0), Decimal(0), -amount, self.exchange.now)
            )

    def event(self, event: Event) -> dict[str, Any]:
        shares = self.exchange.shares.get(event.symbol, Decimal(0))
        if event.kind == "fee":
            return {
                "id": f"{event.at:%Y%m%d}000000000::{event.id}",
                "activity_type": "FEE",
                "date": str(event.session),
                "net_amount": number(event.cash),
                "description": "TAF fee",
                "status": "executed",
            }
        return {
            "id": f"{event.at:%Y%m%d}000000000::{event.id}",
            "activity_type": self.word(event),
            "date": str(event.session),
            "net_amount": number(event.cash),
            "symbol": event.symbol,
            "qty": number(event.quantity if event.kind == "split" else shares),
            "per_share_amount": number(event.amount) if event.kind == "dividend" else None,
            "status": "executed",
        }

    # ---------------------------------------------------------------- market data

    def bars(self, query: dict[str, str]) -> Reply:
        if query.get("feed", "sip") not in ("sip", "iex", "otc", "boats"):
            return Reply(400, {"message": "invalid feed"})
        start, end = (pd.Timestamp(query[name]) if name in query else None for name in ("start", "end"))
        newest = self.exchange.now - timedelta(minutes=15)
        if query.get("feed", "sip") == "sip" and (end is None or end.tz_convert(UTC) > newest):
            return Reply(403, {"message": "subscription does not permit querying recent SIP data"})
        wanted = sorted(query["symbols"].split(","))
        if wrong := [symbol for symbol in wanted if not symbol.replace(".", "").isalnum()]:
            return Reply(400, {"message": f"invalid symbol(s): {', '.join(wrong)}"})
        rows = [row for symbol in wanted for row in self.history(symbol, start, end)]
        first = int(query.get("page_token") or 0)
        size = min(int(query.get("limit", 1000)), self.page)
        bars: dict[str, list[dict[str, Any]]] = {}
        for symbol, bar in rows[first : first + size]:
            bars.setdefault(symbol, []).append(bar)
        following = str(first + size) if first + size < len(rows) else None
        return Reply(body={"bars": bars, "next_page_token": following})

    def history(
        self, symbol: str, start: pd.Timestamp | None, end: pd.Timestamp | None
    ) -> Iterable[tuple[str, dict[str, Any]]]:
        tape = self.exchange.tape
        if symbol not in tape.symbols:
            return
        values = tape.values[:, :, tape.symbols.index(symbol)]
        for row, day in enumerate(tape.sessions.tolist()):
            at = pd.Timestamp(day, tz=NEW_YORK)
            if np.isnan(values[3, row]) or opening(day) > self.exchange.now:
                continue
            if (start is None or at >= start) and (end is None or at <= end):
                o, h, low, c, v = (float(value) for value in values[:, row])
                yield (
                    symbol,
                    {
                        "t": at.tz_convert(UTC).isoformat().replace("+00:00", "Z"),
                        "o": o,
                        "h": h,
                        "l": low,
                        "c": c,
                        "v": int(v),
                        "n": 100,
                        "vw": c,
                    },
                )

    def trade(self, symbol: str) -> dict[str, Any]:
        return {
            "t": stamp(self.exchange.now),
            "x": "V",
            "p": float(self.exchange.price(symbol) or 0),
            "s": 100,
            "c": ["@"],
            "i": 1,
            "z": "C",
        }

    def snapshot(self, symbol: str) -> dict[str, Any]:
        bars = [bar for _, bar in self.history(symbol, None, None)][-2:]
        parts = {"latestTrade": self.trade(symbol), "latestQuote": self.quote(symbol)}
        return parts | dict(zip(("dailyBar", "prevDailyBar"), reversed(bars), strict=False))

    def quote(self, symbol: str) -> dict[str, Any]:
        price = float(self.exchange.price(symbol) or 0)
        return {
            "t": stamp(self.exchange.now),
            "ax": "V",
            "ap": price,
            "as": 100,
            "bx": "V",
            "bp": price,
            "bs": 100,
            "c": ["R"],
            "z": "C",
        }

    def actions(self, query: dict[str, str]) -> dict[str, Any]:
        tape, found = self.exchange.tape, {"forward_splits": [], "reverse_splits": [], "cash_dividends": []}
        wanted = query["symbols"].split(",") if "symbols" in query else list(tape.symbols)
        for n, symbol in enumerate(tape.symbols):
            for row, day in enumerate(tape.sessions.tolist()):
                ratio, dividend = float(tape.splits[row, n]), float(tape.dividends[row, n])
                if symbol not in wanted or (ratio, dividend) == (1.0, 0.0):
                    continue
                processed = str(day + timedelta(days=14) if dividend else day)  # a dividend: when it is paid
                if not query.get("start", "0") <= processed <= query.get("end", "9"):
                    continue
                common = {
                    "id": str(uuid5(NAMESPACE_URL, f"{day}-{symbol}")),
                    "symbol": symbol,
                    "ex_date": str(day),
                    "process_date": processed,
                    "cusip": "000000000",
                }
                if ratio != 1:
                    kind = "forward_splits" if ratio > 1 else "reverse_splits"
                    rates = (
                        {"new_rate": ratio, "old_rate": 1.0} if ratio > 1 else {"new_rate": 1.0, "old_rate": 1 / ratio}
                    )
                    cusips = {} if ratio > 1 else {"old_cusip": "000000000", "new_cusip": "000000001"}
                    found[kind].append(
                        {k: v for k, v in common.items() if not (cusips and k == "cusip")} | rates | cusips
                    )
                if dividend:
                    found["cash_dividends"].append(common | {"rate": dividend, "special": False, "foreign": False})
        flat = [(kind, row) for kind, rows in found.items() for row in rows]
        first, size = int(query.get("page_token") or 0), min(int(query.get("limit", 100)), self.actions_page)
        page: dict[str, list[dict[str, Any]]] = {}
        for kind, row in flat[first : first + size]:
            page.setdefault(kind, []).append(row)
        following = str(first + size) if first + size < len(flat) else None
        return {"corporate_actions": page, "next_page_token": following}
