"""A local Korea Investment & Securities (KIS): the overseas-stock pages we use, over the small exchange

Written from the broker's documents and its official samples: the codes of the services, the names of the fields in
requests and replies, what the paper world refuses, the clocks (New York for dates of orders, Seoul for their times).
A request that lacks a field, has one too many, or a value of the wrong kind is refused, as theirs refuses it.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from servers.exchange import Exchange, Execution, Order, Refused, closing, opening, session_of
from servers.wire import Reply, Request, Wire

SEOUL, NEW_YORK = ZoneInfo("Asia/Seoul"), ZoneInfo("America/New_York")
REAL_KEY, REAL_SECRET = "PSREAL" + "r" * 30, "s" * 170 + "REALSECRET"
PAPER_KEY, PAPER_SECRET = "PSPAPER" + "p" * 29, "s" * 169 + "PAPERSECRET"
KEYS = {REAL_KEY: ("real", REAL_SECRET), PAPER_KEY: ("paper", PAPER_SECRET)}
HTS_ID, ACCOUNT, PRODUCT = "tester", "50123456", "01"
RATE = Decimal("1400")  # KRW for a dollar
PLACE = {"NASD": "NAS", "NYSE": "NYS", "AMEX": "AMS"}

TRADING, QUOTES = "/uapi/overseas-stock/v1/trading/", "/uapi/overseas-price/v1/quotations/"
CURSOR = "CTX_AREA_FK200 CTX_AREA_NK200"
OWNER = "CANO ACNT_PRDT_CD"
ORDER = f"{OWNER} OVRS_EXCG_CD PDNO ORD_QTY OVRS_ORD_UNPR CTAC_TLNO MGCO_APTM_ODNO SLL_TYPE ORD_SVR_DVSN_CD ORD_DVSN"
CHANGE = (
    f"{OWNER} OVRS_EXCG_CD PDNO ORGN_ODNO RVSE_CNCL_DVSN_CD ORD_QTY OVRS_ORD_UNPR MGCO_APTM_ODNO ORD_SVR_DVSN_CD"
)
LISTED = (
    f"{OWNER} PDNO ORD_STRT_DT ORD_END_DT SLL_BUY_DVSN CCLD_NCCS_DVSN OVRS_EXCG_CD SORT_SQN ORD_DT ORD_GNO_BRNO "
    f"ODNO {CURSOR}"
)
STATEMENT = (
    f"{OWNER} ERLM_STRT_DT ERLM_END_DT OVRS_EXCG_CD PDNO SLL_BUY_DVSN_CD LOAN_DVSN_CD CTX_AREA_FK100 CTX_AREA_NK100"
)
RIGHTS = "RGHT_TYPE_CD INQR_DVSN_CD INQR_STRT_DT INQR_END_DT PDNO PRDT_TYPE_CD CTX_AREA_NK50 CTX_AREA_FK50"
MINUTES = "AUTH EXCD SYMB NMIN PINC NEXT NREC FILL KEYB"
# path → (service in the real world, in the paper world, fields)
PAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    TRADING + "order": (("TTTT1002U", "TTTT1006U"), ("VTTT1002U", "VTTT1001U"), ORDER),
    TRADING + "order-rvsecncl": (("TTTT1004U",), ("VTTT1004U",), CHANGE),
    TRADING + "inquire-nccs": (("TTTS3018R",), (), f"{OWNER} OVRS_EXCG_CD SORT_SQN {CURSOR}"),
    TRADING + "inquire-ccnl": (("TTTS3035R",), ("VTTS3035R",), LISTED),
    TRADING + "inquire-balance": (("TTTS3012R",), ("VTTS3012R",), f"{OWNER} OVRS_EXCG_CD TR_CRCY_CD {CURSOR}"),
    TRADING + "inquire-present-balance": (
        ("CTRP6504R",),
        ("VTRP6504R",),
        f"{OWNER} WCRC_FRCR_DVSN_CD NATN_CD TR_MKET_CD INQR_DVSN_CD",
    ),
    TRADING + "inquire-psamount": (("TTTS3007R",), ("VTTS3007R",), f"{OWNER} OVRS_EXCG_CD OVRS_ORD_UNPR ITEM_CD"),
    TRADING + "inquire-period-trans": (("CTOS4001R",), (), STATEMENT),
    QUOTES + "period-rights": (("CTRGT011R",), (), RIGHTS),
    QUOTES + "price-detail": (("HHDFS76200200",), (), "AUTH EXCD SYMB"),
    QUOTES + "dailyprice": (("HHDFS76240000",), ("HHDFS76240000",), "AUTH EXCD SYMB GUBN BYMD MODP"),
    QUOTES + "inquire-time-itemchartprice": (("HHDFS76950200",), (), MINUTES),
    "/uapi/overseas-stock/v1/quotations/countries-holiday": (("CTOS5011R",), (), "TRAD_DT CTX_AREA_NK CTX_AREA_FK"),
}
REFUSALS = {  # reason of the exchange → code and sentence
    "symbol": ("APBK0656", "해당종목정보가 없습니다."),
    "quantity": ("APBK0400", "주문 가능한 수량을 초과했습니다."),
    "price": ("APBK1507", "주문단가를 확인하시기 바랍니다."),
    "held": ("APBK0400", "주문 가능한 수량을 초과했습니다."),
    "funds": ("APBK0952", "주문가능금액을 초과 했습니다"),
}


Said = tuple[str, dict[str, Any]]  # how the list goes on, and the body


class Wrong(Exception):
    "A refusal of the gateway or of a service"

    def __init__(self, code: str, sentence: str, status: int = 200):
        super().__init__(code)
        self.body, self.status = {"rt_cd": "1", "msg_cd": code, "msg1": sentence}, status


@dataclass
class Entry:
    "A line of the day's order book: an order, or the cancelling of one"

    day: date  # in New York
    number: str  # unique on its day alone
    order: Order
    at: datetime
    kind: str = "00"  # 02: cancels `origin`
    origin: str = ""
    quantity: Decimal = Decimal(0)


def amount(value: Decimal, places: int = 8) -> str:
    return f"{value:.{places}f}"


def new_york(moment: datetime) -> date:
    return moment.astimezone(NEW_YORK).date()


@dataclass
class Kis:
    "The service: an exchange, an account, and the two worlds on two ports (and both on a third)"

    exchange: Exchange
    capital: Decimal
    where: dict[str, str] = field(default_factory=dict)  # symbol → NASD, NYSE or AMEX; NASD where nothing is said
    page: int = 20  # rows on a page of a list
    paced: bool = False  # whether too many requests in a second are refused
    limit_status: int = 500  # of that refusal; sometimes it is 200
    pays: bool = False  # whether adjusted prices take dividends out, too
    late_fees: bool = False  # whether fees leave the cash when the statement has them, and not at the trade
    withheld: Decimal = Decimal(0)  # of a dividend
    lag: timedelta = timedelta(0)  # from a dividend's date to its payment
    entries: list[Entry] = field(default_factory=list)
    tokens: dict[str, tuple[str, datetime, datetime]] = field(default_factory=dict)  # token → world, issued, until
    asked: dict[str, datetime] = field(default_factory=dict)  # world → when a token was last issued
    calls: dict[str, deque[float]] = field(default_factory=dict)
    ticks: Callable[[], float] = time.monotonic
    late: timedelta = timedelta(0)  # by how much the answer to an order is later than its row
    refused: list[str] = field(default_factory=list)  # codes
    known_days: dict[tuple[str, bool, datetime], list[tuple[Any, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.worlds = {world: Wire(lambda request, world=world: self.answer(request, world)) for world in KINDS}
        for wire in self.worlds.values():
            wire.clock = lambda: self.exchange.now.timestamp()
        self.url, self.paper_url, self.both_url = (self.worlds[world].url for world in KINDS)

    @property
    def log(self) -> list[Request]:
        "Every request, whichever port it came by"
        return [request for wire in self.worlds.values() for request in wire.log]

    def fault(self, fault: Any) -> None:
        "The same fault, counted once, behind every port"
        for wire in self.worlds.values():
            wire.faults.append(fault)

    def close(self) -> None:
        for wire in self.worlds.values():
            wire.close()

    # ---------------------------------------------------------------- the gateway

    def answer(self, request: Request, port: str) -> Reply:
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self.exchange.lock:
            try:
                if request.path == "/oauth2/tokenP":
                    return self.issue(request, port)
                return self.service(request, headers, port)
            except Wrong as wrong:
                self.refused.append(wrong.body["msg_cd"])
                return self.reply(wrong.body, headers, "", wrong.status)

    def reply(self, body: dict[str, Any], headers: dict[str, str], more: str = "D", status: int = 200) -> Reply:
        sent = {"tr_id": headers.get("tr_id", ""), "tr_cont": more, "gt_uid": f"{len(self.log):032d}"}
        return Reply(status, body, sent | {"Content-Type": "application/json;charset=UTF-8"})

    def world_of(self, key: str, secret: str, port: str) -> str:
        world, right = KEYS.get(key, ("", ""))
        if port != "both" and world and world != port:
            there, here = ("실전", "모의") if port == "real" else ("모의", "실전")
            raise Wrong("EGW02004", f"{there}투자 도메인은 {here}투자 앱키로 호출하실 수 없습니다.", 500)
        if not world:
            raise Wrong("EGW00103", "유효하지 않은 AppKey입니다.", 403)
        if secret != right:
            raise Wrong("EGW00105", "유효하지 않은 AppSecret입니다.", 403)
        return world

    def issue(self, request: Request, port: str) -> Reply:
        body = request.body or {}
        if set(body) != {"grant_type", "appkey", "appsecret"} or body["grant_type"] != "client_credentials":
            return Reply(403, {"error_description": "잘못된 요청입니다.", "error_code": "EGW00102"})
        try:
            world = self.world_of(body["appkey"], body["appsecret"], port)
        except Wrong as wrong:
            said = {"error_description": wrong.body["msg1"], "error_code": wrong.body["msg_cd"]}
            return Reply(403 if wrong.status == 403 else 500, said)
        now = self.exchange.now
        if world in self.asked and now - self.asked[world] < timedelta(minutes=1):
            words = "접근토큰 발급 잠시 후 다시 시도하세요(1분당 1회)"
            return Reply(403, {"error_description": words, "error_code": "EGW00133"})
        self.asked[world] = now
        known = [name for name, (of, at, _) in self.tokens.items() if of == world and now - at < timedelta(hours=6)]
        if not known:
            known = [f"eyJ-{world}-{len(self.tokens)}-" + "t" * 40]
            self.tokens[known[0]] = (world, now, now + timedelta(days=1))
        until = self.tokens[known[0]][2].astimezone(SEOUL)
        return Reply(
            body={
                "access_token": known[0],
                "access_token_token_expired": f"{until:%Y-%m-%d %H:%M:%S}",
                "token_type": "Bearer",
                "expires_in": 86400,
            }
        )

    def check_token(self, headers: dict[str, str], world: str) -> None:
        of, _, until = self.tokens.get(headers.get("authorization", "").removeprefix("Bearer "), ("", None, None))
        if of != world:
            raise Wrong("EGW00121", "유효하지 않은 token 입니다.", 500)
        if until is not None and self.exchange.now >= until:
            raise Wrong("EGW00123", "기간이 만료된 token 입니다.", 500)

    def pace(self, key: str, world: str) -> None:
        if not self.paced:
            return
        seen, now = self.calls.setdefault(key, deque()), self.ticks()
        while seen and now - seen[0] >= 1.0:
            seen.popleft()
        if len(seen) >= (2 if world == "paper" else 20):
            raise Wrong("EGW00201", "초당 거래건수를 초과하였습니다.", self.limit_status)
        seen.append(now)

    def service(self, request: Request, headers: dict[str, str], port: str) -> Reply:
        world = self.world_of(headers.get("appkey", ""), headers.get("appsecret", ""), port)
        self.check_token(headers, world)
        self.pace(headers["appkey"], world)
        if request.path not in PAGES:
            raise Wrong("OPSQ0002", "없는 서비스 코드 입니다.")
        real, paper, fields = PAGES[request.path]
        if headers.get("tr_id") not in (real if world == "real" else paper):
            if world == "paper" and not paper:
                raise Wrong("90000000", "모의투자에서는 해당업무가 제공되지 않습니다.")
            raise Wrong("OPSQ0002", "없는 서비스 코드 입니다.")
        given = request.body if request.method == "POST" else {k.upper(): v for k, v in request.query.items()}
        self.check_fields(given, fields)
        name = request.path.rsplit("/", 1)[1].replace("-", "_")
        more, body = getattr(self, name)(given, headers["tr_id"], world)
        return self.reply({"rt_cd": "0", "msg_cd": "KIOK0510", "msg1": "조회가 완료되었습니다"} | body, headers, more)

    def check_fields(self, given: Any, fields: str) -> None:
        wanted = fields.split()
        if not isinstance(given, dict) or any(not isinstance(value, str) for value in given.values()):
            raise Wrong("OPSQ2002", "ERROR INVALID INPUT FIELD")
        if missing := [name for name in wanted if name not in given]:
            raise Wrong("OPSQ2001", f"ERROR INPUT FIELD NOT FOUND [{missing[0]}]")
        if strange := sorted(set(given) - set(wanted)):
            raise Wrong("OPSQ2002", f"ERROR INVALID INPUT FIELD [{strange[0]}]")
        if "CANO" in given and (given["CANO"], given["ACNT_PRDT_CD"]) != (ACCOUNT, PRODUCT):
            raise Wrong("OPSQ2000", "ERROR : INPUT INVALID_CHECK_ACNO")

    def pages(self, rows: list[dict[str, str]], given: dict[str, str], name: str, size: int = 200) -> Said:
        first = int(given[f"CTX_AREA_NK{size}"].strip() or 0)
        last = first + self.page
        more = last < len(rows)
        ahead = last if more else ""
        cursors = {f"ctx_area_fk{size}": f"{name:<{size}}", f"ctx_area_nk{size}": f"{ahead:<{size}}"}
        word = ("M" if first else "F") if more else ("E" if first else "D")
        return word, cursors | {"output": rows[first:last]}

    # ---------------------------------------------------------------- orders

    def exchange_of(self, symbol: str) -> str:
        return self.where.get(symbol, "NASD")

    def symbol(self, given: dict[str, str]) -> str:
        symbol = given["PDNO"].replace("/", ".")
        if symbol not in self.exchange.tape.symbols or given["OVRS_EXCG_CD"] != self.exchange_of(symbol):
            raise Wrong(*REFUSALS["symbol"])
        return symbol

    def next_number(self, day: date) -> str:
        "Numbers begin anew every day"
        return f"{30_138_291 + sum(entry.day == day for entry in self.entries):010d}"

    def book(self) -> list[Entry]:
        "All lines, with the orders that came in by another way"
        known = {entry.order.id for entry in self.entries}
        for order in self.exchange.orders.values():
            if order.id not in known:
                day = new_york(order.submitted)
                self.entries.append(Entry(day, self.next_number(day), order, order.submitted, quantity=order.quantity))
        return self.entries

    def accepted(self, entry: Entry) -> Said:
        seoul = (entry.at + self.late).astimezone(SEOUL)
        output = {"KRX_FWDG_ORD_ORGNO": "01790", "ODNO": entry.number, "ORD_TMD": f"{seoul:%H%M%S}"}
        return "", {"msg_cd": "APBK0013", "msg1": "주문 전송 완료 되었습니다.", "output": output}

    def order(self, given: dict[str, str], service: str, world: str) -> Said:
        sells = service in ("TTTT1006U", "VTTT1001U")
        if not re.fullmatch(r"[1-9]\d*", given["ORD_QTY"]):
            raise Wrong(*REFUSALS["quantity"])
        if given["SLL_TYPE"] != ("00" if sells else "") or given["ORD_SVR_DVSN_CD"] != "0":
            raise Wrong("OPSQ2002", "ERROR INVALID INPUT FIELD [SLL_TYPE]")
        if given["ORD_DVSN"] != "00":
            raise Wrong("APBK1680", "지정가만 가능합니다." if world == "paper" else "지원하지 않는 주문구분입니다.")
        if not re.fullmatch(r"\d+(\.\d+)?", given["OVRS_ORD_UNPR"]) or not Decimal(given["OVRS_ORD_UNPR"]):
            raise Wrong(*REFUSALS["price"])
        if session_of(self.exchange.now) is None:
            raise Wrong("APBK1664", "장운영시간이 아닙니다.")
        symbol, price = self.symbol(given), Decimal(given["OVRS_ORD_UNPR"])
        self.book()
        side = "sell" if sells else "buy"
        try:
            order = self.exchange.submit(symbol, side, Decimal(given["ORD_QTY"]), "limit", "day", limit=price)
        except Refused as refused:
            raise Wrong(*REFUSALS[refused.reason]) from None
        return self.accepted(self.book()[-1] if self.book()[-1].order is order else self.entries[-1])

    def order_rvsecncl(self, given: dict[str, str], service: str, world: str) -> Said:
        today, symbol = new_york(self.exchange.now), self.symbol(given)
        found = [e for e in self.book() if (e.day, e.number, e.kind) == (today, given["ORGN_ODNO"], "00")]
        if not found or found[0].order.symbol != symbol:
            raise Wrong("APBK0344", "원주문정보가 존재하지 않습니다.")
        if given["RVSE_CNCL_DVSN_CD"] != "02" or given["OVRS_ORD_UNPR"] != "0":
            raise Wrong("OPSQ2002", "ERROR INVALID INPUT FIELD [RVSE_CNCL_DVSN_CD]")
        left = found[0].order.left
        if not left or not self.exchange.cancel(found[0].order.id):
            raise Wrong("APBK0927", "정정취소 가능수량이 없습니다.")
        number = self.next_number(today)
        entry = Entry(today, number, found[0].order, self.exchange.now, "02", found[0].number, left)
        self.entries.append(entry)
        return self.accepted(entry)

    def row(self, entry: Entry) -> dict[str, str]:
        "A line as both lists show it"
        order, seoul, sells = entry.order, entry.at.astimezone(SEOUL), entry.order.side == "sell"
        own = entry.kind == "00"
        filled, left = (order.filled, order.left) if own else (Decimal(0), Decimal(0))
        refused = own and order.status == "rejected"
        return {
            "ord_dt": f"{entry.day:%Y%m%d}",
            "ord_gno_brno": "01790",
            "odno": entry.number,
            "orgn_odno": entry.origin,
            "sll_buy_dvsn_cd": "01" if sells else "02",
            "sll_buy_dvsn_cd_name": "매도" if sells else "매수",
            "pdno": order.symbol.replace(".", "/"),
            "prdt_name": order.symbol,
            "ft_ord_qty": str(int(order.quantity if own else entry.quantity)),
            "ft_ord_unpr3": amount(order.limit or Decimal(0)),
            "ft_ccld_qty": str(int(filled)),
            "ft_ccld_unpr3": amount(order.average or Decimal(0) if own else Decimal(0)),
            "ft_ccld_amt3": amount(order.paid if own else Decimal(0), 5),
            "nccs_qty": str(int(left)),
            "rjct_rson": "99" if refused else "",
            "rjct_rson_name": order.reason if refused else "",
            "ord_tmd": f"{seoul:%H%M%S}",
            "tr_mket_name": "나스닥",
            "tr_crcy_cd": "USD",
            "ovrs_excg_cd": self.exchange_of(order.symbol),
            "prcs_stat_name": "거부" if refused else "접수" if left else "완료",
        }

    def inquire_nccs(self, given: dict[str, str], service: str, world: str) -> Said:
        rows = [self.row(e) | {"rvse_cncl_dvsn_cd": "00"} for e in self.book() if e.kind == "00" and e.order.left]
        return self.pages(rows, given, "nccs")

    def inquire_ccnl(self, given: dict[str, str], service: str, world: str) -> Said:
        if (given["SLL_BUY_DVSN"], given["CCLD_NCCS_DVSN"], given["ODNO"]) != ("00", "00", ""):
            raise Wrong("OPSQ2002", "ERROR INVALID INPUT FIELD")
        if world == "paper" and (given["PDNO"], given["OVRS_EXCG_CD"]) != ("", ""):
            raise Wrong("90000000", "모의투자에서는 전체 조회만 가능합니다.")
        if world == "real" and (given["PDNO"] != "%" or given["OVRS_EXCG_CD"] not in ("NASD", "%")):
            raise Wrong("OPSQ2002", "ERROR INVALID INPUT FIELD [PDNO]")
        rows = []
        for entry in sorted(self.book(), key=lambda entry: (entry.at, entry.number)):
            if given["ORD_STRT_DT"] <= f"{entry.day:%Y%m%d}" <= given["ORD_END_DT"]:
                seoul = entry.at.astimezone(SEOUL)
                more = {"rvse_cncl_dvsn": entry.kind, "rvse_cncl_dvsn_name": "취소" if entry.kind == "02" else ""}
                more |= {"dmst_ord_dt": f"{seoul:%Y%m%d}", "thco_ord_tmd": f"{seoul:%H%M%S}", "tr_natn": "840"}
                rows.append(self.row(entry) | more)
        return self.pages(rows, given, "ccnl")

    # ---------------------------------------------------------------- the account

    def holdings(self) -> Iterator[tuple[str, Decimal, Decimal, Decimal, Decimal]]:
        "Symbol, shares, free ones, what they cost each, price"
        for symbol in sorted(self.exchange.shares):
            quantity, cost = self.exchange.shares[symbol], self.exchange.average[symbol]
            yield symbol, quantity, self.exchange.free(symbol), cost, self.exchange.price(symbol) or Decimal(0)

    def inquire_present_balance(self, given: dict[str, str], service: str, world: str) -> Said:
        if (given["WCRC_FRCR_DVSN_CD"], given["NATN_CD"], given["TR_MKET_CD"]) != ("02", "840", "00"):
            raise Wrong("OPSQ2002", "ERROR INVALID INPUT FIELD [WCRC_FRCR_DVSN_CD]")
        rows = [
            {
                "prdt_name": symbol,
                "cblc_qty13": amount(quantity),
                "ccld_qty_smtl1": amount(quantity),
                "ord_psbl_qty1": amount(free),
                "frcr_pchs_amt": amount(quantity * cost, 5),
                "frcr_evlu_amt2": amount(quantity * price, 6),
                "pdno": symbol.replace(".", "/"),
                "bass_exrt": amount(RATE),
                "buy_crcy_cd": "USD",
                "evlu_pfls_amt2": amount(quantity * (price - cost), 5),
                "pchs_rmnd_wcrc_amt": str(int(quantity * cost * RATE)),
                "tr_mket_name": "나스닥",
                "natn_kor_name": "미국",
                "prdt_type_cd": "512",
                "item_lnkg_excg_cd": PLACE[self.exchange_of(symbol)],
                "ovrs_now_pric1": amount(price, 5),
                "avg_unpr3": amount(cost, 4),
                "ovrs_excg_cd": self.exchange_of(symbol),
            }
            for symbol, quantity, free, cost, price in self.holdings()
        ]
        cash, power, value = self.cash(), self.exchange.buying_power(), self.exchange.equity()
        dollars = {
            "crcy_cd": "USD",
            "crcy_cd_name": "미국 달러",
            "frcr_dncl_amt_2": amount(cash, 6),
            "frcr_buy_mgn_amt": amount(cash - power, 6),
            "frcr_drwg_psbl_amt_1": amount(power, 6),
            "nxdy_frcr_drwg_psbl_amt": amount(power, 6),
            "frst_bltn_exrt": amount(RATE),
        }
        won = {
            "evlu_amt_smtl": str(int((value - cash) * RATE)),
            "tot_asst_amt": str(int(value * RATE)),
            "ustl_buy_amt_smtl": "0",
            "ustl_sll_amt_smtl": "0",
        }
        return "", {"output1": [] if world == "paper" else rows, "output2": [dollars], "output3": won}

    def cash(self) -> Decimal:
        "What KIS shows: dividends when they are paid, less tax, and fees when it takes them"
        cash, now = self.exchange.cash, self.exchange.now
        for event in self.exchange.events:
            cash -= event.cash if now < event.at + self.lag else (event.cash * self.withheld).quantize(Decimal("0.01"))
        late = [each.fee for each in self.exchange.executions if self.late_fees and not self.stated(each, now)]
        return cash + sum(late, Decimal(0))

    def stated(self, execution: Execution, now: datetime) -> bool:
        "Whether the statement has it: from the day after"
        return new_york(now) > new_york(execution.at)

    def inquire_period_trans(self, given: dict[str, str], service: str, world: str) -> Said:
        "The statement: trades with what they cost, without numbers of orders"
        if given["SLL_BUY_DVSN_CD"] not in ("00", "01", "02") or given["LOAN_DVSN_CD"] not in ("", "01", "02"):
            raise Wrong("OPSQ2002", "ERROR INVALID INPUT FIELD [SLL_BUY_DVSN_CD]")
        rows = []
        for each in self.exchange.executions:
            day, sells = f"{new_york(each.at):%Y%m%d}", each.order.side == "sell"
            if not self.stated(each, self.exchange.now) or not given["ERLM_STRT_DT"] <= day <= given["ERLM_END_DT"]:
                continue
            foreign = min(each.fee, Decimal("0.01")) if sells else Decimal(0)
            value = each.quantity * each.price
            rows.append(
                {
                    "trad_dt": day,
                    "sttl_dt": f"{new_york(each.at) + timedelta(days=1):%Y%m%d}",
                    "sll_buy_dvsn_cd": "01" if sells else "02",
                    "sll_buy_dvsn_name": "매도" if sells else "매수",
                    "pdno": each.order.symbol.replace(".", "/"),
                    "ovrs_item_name": each.order.symbol,
                    "ccld_qty": amount(each.quantity, 10),
                    "amt_unit_ccld_qty": "0.000000000000000",
                    "ft_ccld_unpr2": amount(each.price),
                    "ovrs_stck_ccld_unpr": amount(each.price),
                    "tr_frcr_amt2": amount(value, 2),
                    "tr_amt": str(int(value * RATE)),
                    "frcr_excc_amt_1": amount(value - each.fee if sells else value + each.fee, 2),
                    "wcrc_excc_amt": str(int((value - each.fee if sells else value + each.fee) * RATE)),
                    "dmst_frcr_fee1": amount(each.fee - foreign, 3),
                    "frcr_fee1": amount(foreign, 3),
                    "dmst_wcrc_fee": "0",
                    "ovrs_wcrc_fee": "0",
                    "crcy_cd": "USD",
                    "std_pdno": "",
                    "erlm_exrt": amount(RATE, 4),
                    "loan_dvsn_cd": "",
                    "loan_dvsn_name": "",
                }
            )
        more, body = self.pages(rows, given, "statement", 100)
        return more, {("output1" if name == "output" else name): part for name, part in body.items()} | {"output2": {}}

    def period_rights(self, given: dict[str, str], service: str, world: str) -> Said:
        "Splits and dividends; a split is told twice, with the Korean date of the second a day later"
        if given["INQR_DVSN_CD"] not in ("02", "03", "04"):
            raise Wrong("OPSQ2002", "ERROR INVALID INPUT FIELD [INQR_DVSN_CD]")
        tape, symbol, rows = self.exchange.tape, given["PDNO"].replace("/", "."), []
        columns = [n for n, name in enumerate(tape.symbols) if symbol in ("", name)]
        for row, day in enumerate(tape.sessions.tolist()):
            for n in columns:
                ratio, paid = Decimal(repr(float(tape.splits[row, n]))), Decimal(repr(float(tape.dividends[row, n])))
                if ratio != 1:
                    right = {"stck_alct_rt": amount(ratio * 100, 12), "cash_alct_rt": "", "alct_frcr_unpr": ""}
                    rows += [self.right(tape.symbols[n], day, "14" if ratio > 1 else "15", late, right) for late in (0, 1)]
                if paid:
                    right = {"stck_alct_rt": "", "cash_alct_rt": "1", "alct_frcr_unpr": amount(paid, 5)}
                    rows.append(self.right(tape.symbols[n], day, "03", 0, right))
        kinds = (given["RGHT_TYPE_CD"],) if given["RGHT_TYPE_CD"] != "%%" else ("03", "14", "15")
        dates = given["INQR_STRT_DT"], given["INQR_END_DT"]
        chosen = [r for r in rows if r["rght_type_cd"] in kinds and dates[0] <= r["acpl_bass_dt"] <= dates[1]]
        return self.pages(chosen, given, "rights", 50)

    def right(self, symbol: str, day: date, kind: str, late: int, more: dict[str, str]) -> dict[str, str]:
        return {
            "bass_dt": f"{day + timedelta(days=late):%Y%m%d}",
            "rght_type_cd": kind,
            "pdno": symbol.replace(".", "/"),
            "prdt_name": symbol,
            "prdt_type_cd": "512",
            "std_pdno": "",
            "acpl_bass_dt": f"{day:%Y%m%d}",
            "sbsc_strt_dt": "",
            "sbsc_end_dt": "",
            "crcy_cd": "USD",
            "dfnt_yn": "Y",
        } | more

    def inquire_balance(self, given: dict[str, str], service: str, world: str) -> Said:
        place = given["OVRS_EXCG_CD"]
        rows = [
            {
                "cano": ACCOUNT,
                "acnt_prdt_cd": PRODUCT,
                "ovrs_pdno": symbol.replace(".", "/"),
                "ovrs_item_name": symbol,
                "ovrs_cblc_qty": str(int(quantity)),
                "ord_psbl_qty": str(int(free)),
                "pchs_avg_pric": amount(cost, 4),
                "now_pric2": amount(price, 6),
                "frcr_pchs_amt1": amount(quantity * cost, 5),
                "tr_crcy_cd": "USD",
                "ovrs_excg_cd": self.exchange_of(symbol),
            }
            for symbol, quantity, free, cost, price in self.holdings()
            if self.exchange_of(symbol) == place or (world == "real" and place == "NASD")
        ]
        more, body = self.pages(rows, given, "balance")
        return more, {("output1" if name == "output" else name): part for name, part in body.items()} | {"output2": {}}

    def inquire_psamount(self, given: dict[str, str], service: str, world: str) -> Said:
        power = amount(self.exchange.buying_power(), 2)
        return "", {
            "output": {
                "tr_crcy_cd": "USD",
                "ord_psbl_frcr_amt": power,
                "sll_ruse_psbl_amt": "0.00",
                "ovrs_ord_psbl_amt": power,
                "max_ord_psbl_qty": "0",
                "frcr_ord_psbl_amt1": power,
                "exrt": amount(RATE, 2),
            }
        }

    # ---------------------------------------------------------------- market data

    def listed(self, given: dict[str, str]) -> str | None:
        symbol = given["SYMB"].replace("/", ".")
        there = symbol in self.exchange.tape.symbols and PLACE[self.exchange_of(symbol)] == given["EXCD"]
        return symbol if there and self.days(symbol, False) else None

    def price_detail(self, given: dict[str, str], service: str, world: str) -> Said:
        symbol = self.listed(given)
        names = ("open", "high", "low", "last", "base", "tvol", "e_ordyn", "e_hogau", "zdiv", "curr", "t_rate")
        if symbol is None:
            return "", {"output": {"rsym": ""} | dict.fromkeys(names, "")}
        price = self.exchange.price(symbol) or Decimal(0)
        rows = [row for row in self.days(symbol, adjusted=True) if row[0] < new_york(self.exchange.now)]
        base = Decimal(repr(round(rows[-1][4], 4))) if rows else price
        tick = "0.0100" if price >= 1 else "0.0001"
        said = (price, price, price, price, base)
        output = dict(zip(names, [*(amount(value, 4) for value in said)], strict=False))
        output |= {"tvol": "1000", "e_ordyn": "매매 가능", "e_hogau": tick, "zdiv": "4", "curr": "USD"}
        return "", {"output": {"rsym": f"D{given['EXCD']}{given['SYMB']}", "t_rate": amount(RATE, 2)} | output}

    def days(self, symbol: str, adjusted: bool) -> list[tuple[Any, ...]]:
        "Date, open, high, low, close, volume of the sessions so far, oldest first"
        key = (symbol, adjusted, self.exchange.now)
        if key not in self.known_days:
            self.known_days = {key: self.walked_days(symbol, adjusted)} | dict(list(self.known_days.items())[:7])
        return self.known_days[key]

    def walked_days(self, symbol: str, adjusted: bool) -> list[tuple[Any, ...]]:
        tape, column = self.exchange.tape, self.exchange.tape.symbols.index(symbol)
        rows, factor, later = [], 1.0, None
        for row in range(len(tape.sessions) - 1, -1, -1):
            day = tape.sessions[row].item()
            if opening(day) > self.exchange.now:
                continue
            o, h, low, c, v = (float(value) for value in tape.values[:, row, column])
            if adjusted and later is not None:
                dividend = float(tape.dividends[later, column]) if self.pays else 0.0
                factor *= (1.0 - dividend / (c / float(tape.splits[later, column]))) / float(tape.splits[later, column])
            if not np.isnan(c):
                if closing(day) > self.exchange.now:
                    h = low = c = o
                rows.append((day, o * factor, h * factor, low * factor, c * factor, v))
                later = row
        return rows[::-1]

    def dailyprice(self, given: dict[str, str], service: str, world: str) -> Said:
        symbol = self.listed(given)
        if given["GUBN"] != "0" or given["MODP"] not in ("0", "1"):
            raise Wrong("OPSQ2002", "ERROR INVALID INPUT FIELD [GUBN]")
        until = given["BYMD"] or f"{new_york(self.exchange.now):%Y%m%d}"
        rows = [] if symbol is None else self.days(symbol, given["MODP"] == "1")
        chosen = [row for row in rows if f"{row[0]:%Y%m%d}" <= until][::-1][:100]
        output = [
            {"xymd": f"{day:%Y%m%d}", "tvol": str(int(volume))}
            | {name: f"{value:.4f}" for name, value in zip(("open", "high", "low", "clos"), prices, strict=True)}
            for day, *prices, volume in chosen
        ]
        head = {"rsym": f"D{given['EXCD']}{given['SYMB']}", "zdiv": "4", "nrec": str(len(output)) if output else ""}
        return "", {"output1": head, "output2": output}

    def inquire_time_itemchartprice(self, given: dict[str, str], service: str, world: str) -> Said:
        symbol, step, size = self.listed(given), int(given["NMIN"]), min(int(given["NREC"]), 120)
        rows = []
        for day, o, _, _, c, v in [] if symbol is None else self.days(symbol, adjusted=False):
            at, last = opening(day), min(closing(day), self.exchange.now)
            while at < last:
                price = o + (c - o) * ((at - opening(day)) / (closing(day) - opening(day)))
                rows.append((at, price, int(v / 390 * step)))
                at += timedelta(minutes=step)
        if given["NEXT"] == "1":
            rows = [row for row in rows if f"{row[0].astimezone(NEW_YORK):%Y%m%d%H%M%S}" <= given["KEYB"]]
        output = [
            {"tymd": f"{at.astimezone(NEW_YORK):%Y%m%d}", "xymd": f"{at.astimezone(NEW_YORK):%Y%m%d}"}
            | {"xhms": f"{at.astimezone(NEW_YORK):%H%M%S}", "kymd": f"{at.astimezone(SEOUL):%Y%m%d}"}
            | {"khms": f"{at.astimezone(SEOUL):%H%M%S}", "evol": str(volume)}
            | dict.fromkeys(("open", "high", "low", "last"), f"{price:.4f}")
            for at, price, volume in rows[::-1][:size]
        ]
        more = "1" if len(rows) > size else "0"
        return "", {"output1": {"zdiv": "4", "next": more, "more": more, "nrec": str(len(output))}, "output2": output}

    def countries_holiday(self, given: dict[str, str], service: str, world: str) -> Said:
        day = given["TRAD_DT"]
        rows = [{"prdt_type_cd": "512", "tr_natn_cd": "840", "tr_natn_name": "미국", "dmst_sttl_dt": day}]
        return "", {"ctx_area_fk": "", "ctx_area_nk": "", "output": rows}


KINDS = ("real", "paper", "both")
