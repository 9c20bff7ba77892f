"""The plan and the ledger once more, in plain Python: one event after the other, written from the rules alone

The package walks history with compiled functions over arrays. This is the same account kept the slow way, by somebody
who has read `systems.md` and `architecture.md` but not the compiled code: dictionaries, loops and whole cents. It
shares the settings, the names of the reasons and the scalar functions of `alpha_trader.fills` with it, nothing else.
"""

import math
from dataclasses import dataclass, field

from alpha_trader.fills import (
    CostRules,
    cash_flow,
    dividend_cash,
    exit_level,
    limit_fill,
    market_fill,
    market_value,
    round_trip_cost,
    split_price,
    split_quantity,
    stop_reference,
    target_reference,
)
from alpha_trader.settings import RiskSettings, SignalSettings
from alpha_trader.signals import Reason


@dataclass(frozen=True)
class Bar:
    "One symbol in one session, raw USD per share and shares"

    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True)
class Opinion:
    "What is known about one symbol before a session opens; NaN is unknown"

    predicted: float  # return over the horizon, fraction
    confidence: float  # 0 to 1
    volatility: float  # of a session's returns, fraction


UNKNOWN = Opinion(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Session:
    "One session of the world; a symbol that is missing has no bar, no split, no dividend or no opinion in it"

    bars: dict[str, Bar] = field(default_factory=dict)
    splits: dict[str, float] = field(default_factory=dict)  # shares after per share before, effective at the opening
    dividends: dict[str, float] = field(default_factory=dict)  # USD per share after the split, at the opening
    opinions: dict[str, Opinion] = field(default_factory=dict)  # formed from the bars before this session
    closed: Reason = Reason.NONE  # what forbids every entry, such as `MODEL_EXPIRED`


@dataclass(frozen=True)
class Rules:
    "The settings that plan and ledger obey"

    risk: RiskSettings
    signals: SignalSettings
    costs: CostRules
    horizon: int  # sessions
    max_move: float  # fraction of the last close


@dataclass
class Position:
    "What is held of one symbol"

    shares: float
    average: float  # USD per share paid
    entered: int  # row of the session it was bought in
    taken: bool = False  # has the target sold its share?


@dataclass(frozen=True)
class Entry:
    "A purchase that was planned"

    symbol: str
    shares: float
    value: float  # USD at the mark
    reason: Reason


@dataclass
class Plan:
    "What one decision wants done"

    equity: float
    sales: dict[str, float] = field(default_factory=dict)  # shares to sell, positive
    entries: list[Entry] = field(default_factory=list)  # best first
    reasons: dict[str, Reason] = field(default_factory=dict)  # one for every symbol


@dataclass(frozen=True)
class Fill:
    "What was done"

    row: int
    symbol: str
    quantity: float  # positive bought, negative sold
    price: float  # USD per share
    fee: float  # USD
    reason: Reason


@dataclass
class Journal:
    "Everything that happened to the account"

    fills: list[Fill] = field(default_factory=list)
    reasons: dict[int, dict[str, Reason]] = field(default_factory=dict)  # of the decision, by row and symbol
    planned: dict[int, dict[str, float]] = field(default_factory=dict)  # shares to buy or sell, by row and symbol
    missed: dict[int, dict[str, Reason]] = field(default_factory=dict)  # planned but not done, and why
    income: dict[int, float] = field(default_factory=dict)  # USD of dividends, by row
    cash: dict[int, float] = field(default_factory=dict)  # USD at the close, by row
    equity: dict[int, float] = field(default_factory=dict)  # USD at the close, by row


def in_cents(
    amount: float,  # USD, whole cents
) -> int:
    "The amount as a whole number, which adds up without an error"
    return round(amount * 100)


def whole_units(
    shares: float,  # wanted
    fractional: bool,  # may the account hold fractions?
) -> float:  # shares that can be traded
    "Rounded down to what can be traded: a share, or a millionth of one"
    if fractional:
        return math.floor(shares * 1_000_000 + 1e-9) / 1_000_000
    return float(math.floor(shares + 1e-9))


class Replay:
    "One account, walked through the sessions of a world"

    def __init__(
        self,
        symbols: list[str],
        rules: Rules,
        capital: float,  # USD, whole cents
    ) -> None:
        self.symbols, self.rules = sorted(symbols), rules
        self.cash = in_cents(capital)  # cents
        self.settled = self.cash  # cents that were there before today's sales
        self.positions: dict[str, Position] = {}
        self.last_close: dict[str, float] = {}  # restated for splits; missing before the first bar
        self.blocked: dict[str, Reason] = {symbol: Reason.NO_DATA for symbol in self.symbols}  # by the newest bar
        self.last_stop: dict[str, int] = {}  # row
        self.closing_equity: list[int] = [self.cash]  # cents; the opening capital stands before the first session
        self.journal = Journal()

    # ------------------------------------------------------------------ what both clocks need

    def equity(self) -> int:
        "Cents: cash, and each position to the cent"
        held = self.positions.items()
        return self.cash + sum(in_cents(market_value(one.shares, self.last_close[symbol])) for symbol, one in held)

    def value(self, symbol: str) -> float:
        "USD the position counts for in the limits"
        return self.positions[symbol].shares * self.last_close[symbol]

    def cost(self, symbol: str) -> float:
        "Fraction of the price that a round trip costs"
        return round_trip_cost(self.last_close[symbol], self.rules.costs)

    def target_shares(self, shares: float) -> float:
        "Shares the target sells of so many"
        risk = self.rules.risk
        part = whole_units(shares * risk.take_profit_share, risk.fractional)
        return min(max(part, 1.0), shares)

    def book(self, row: int, symbol: str, quantity: float, price: float, fee: float, reason: Reason) -> None:
        "A fill reaches the account"
        flow = in_cents(cash_flow(quantity, price, fee))
        self.cash += flow
        if quantity > 0:
            self.settled += flow
            self.positions[symbol] = Position(quantity, price, row)
        else:
            position = self.positions[symbol]
            position.shares = round(position.shares + quantity, 9)
            if reason == Reason.TAKE_PROFIT:
                position.taken = True
            if reason == Reason.STOP_LOSS:
                self.last_stop[symbol] = row
            if position.shares <= 0:
                del self.positions[symbol]
        self.journal.fills.append(Fill(row, symbol, quantity, price, fee, reason))

    # ------------------------------------------------------------------ 1. the opening

    def open_session(self, row: int, session: Session) -> None:
        "Splits, then dividends; the cash of yesterday's sales has arrived"
        for symbol, ratio in sorted(session.splits.items()):
            if symbol in self.last_close:
                self.last_close[symbol] = split_price(self.last_close[symbol], ratio)
            if symbol in self.positions:
                position = self.positions[symbol]
                position.shares, fraction = split_quantity(position.shares, ratio, self.rules.risk.fractional)
                position.average = split_price(position.average, ratio)
                if fraction > 0:
                    price = self.last_close[symbol]
                    self.cash += in_cents(market_value(fraction, price))
                    self.journal.fills.append(Fill(row, symbol, -fraction, price, 0.0, Reason.SPLIT_CASH))
                if position.shares <= 0:
                    del self.positions[symbol]
        income = 0
        for symbol, dividend in session.dividends.items():
            if symbol in self.positions:
                income += in_cents(dividend_cash(self.positions[symbol].shares, dividend))
        self.cash += income
        self.settled = self.cash
        self.journal.income[row] = income / 100

    # ------------------------------------------------------------------ 2. to 6. the decision

    def day_loss(self) -> bool:
        "Did the last session lose more than a day may?"
        if len(self.closing_equity) < 2:
            return False
        before, last = self.closing_equity[-2:]
        return last / 100 < (1.0 + self.rules.risk.day_loss) * (before / 100)

    def is_buy(self, opinion: Opinion) -> bool:
        signals = self.rules.signals
        return opinion.predicted > signals.buy and opinion.confidence > signals.confidence

    def held_reason(self, row: int, symbol: str, opinion: Opinion) -> Reason:
        "What to do with a position; no gate is asked"
        risk, signals = self.rules.risk, self.rules.signals
        position, mark = self.positions[symbol], self.last_close[symbol]
        if mark <= position.average * (1.0 + risk.stop_loss) + 1e-9:
            return Reason.STOP_LOSS
        if opinion.predicted < signals.sell and opinion.confidence > signals.confidence:
            return Reason.SELL_SIGNAL
        if row - position.entered >= self.rules.horizon and not self.is_buy(opinion):
            return Reason.HORIZON
        if not position.taken and mark >= position.average * (1.0 + risk.take_profit) - 1e-9:
            return Reason.TAKE_PROFIT
        return Reason.HOLD

    def flat_reason(self, row: int, symbol: str, opinion: Opinion, gate: Reason) -> Reason:
        "Why a symbol that is not held is left alone; `ENTRY` when nothing speaks against it"
        risk, signals = self.rules.risk, self.rules.signals
        if symbol in self.blocked:
            return self.blocked[symbol]
        if math.isnan(opinion.predicted) or math.isnan(opinion.confidence):
            return Reason.NO_PREDICTION
        if signals.sell <= opinion.predicted <= signals.buy:
            return Reason.NO_SIGNAL
        if not opinion.confidence > signals.confidence:
            return Reason.LOW_CONFIDENCE
        if opinion.predicted < signals.sell:
            return Reason.SELL_FLAT
        if symbol in self.last_stop and row - self.last_stop[symbol] <= risk.cool_down:
            return Reason.COOL_DOWN
        return gate or Reason.ENTRY

    def wanted_shares(self, symbol: str, opinion: Opinion, equity: float) -> float:
        "Shares the size of a position allows"
        risk = self.rules.risk
        if math.isnan(opinion.volatility):
            return 0.0
        shrink = max(opinion.volatility / risk.volatility_target, 1.0)
        share = min(risk.max_position * opinion.confidence / shrink, risk.max_position)
        return whole_units(share * equity / self.last_close[symbol], risk.fractional)

    def blocking_limit(self, count: int, exposure: float, value: float, equity: float) -> Reason | None:
        "The limit that one position more would break"
        if count >= self.rules.risk.max_positions:
            return Reason.MAX_POSITIONS
        if exposure + value > self.rules.risk.max_exposure * equity:
            return Reason.MAX_EXPOSURE
        return None

    def weakest_held(self, reasons: dict[str, Reason], opinions: dict[str, Opinion]) -> str | None:
        "The holding that is expected to bring least, among those that nothing else is done with"
        weakest, lowest = None, math.inf
        for symbol in self.symbols:
            if symbol not in self.positions or reasons[symbol] != Reason.HOLD:
                continue
            predicted = opinions.get(symbol, UNKNOWN).predicted
            if not math.isnan(predicted) and predicted < lowest:
                weakest, lowest = symbol, predicted
        return weakest

    def decide(self, row: int, session: Session) -> Plan:
        "The one decision of a session, on bars up to the session before"
        opinions = session.opinions
        plan = Plan(equity=self.equity() / 100)
        gate = Reason.DAY_LOSS if self.day_loss() else session.closed
        candidates = []
        for symbol in self.symbols:
            opinion = opinions.get(symbol, UNKNOWN)
            if symbol not in self.positions:
                reason = self.flat_reason(row, symbol, opinion, gate)
                if reason == Reason.ENTRY:
                    candidates.append(symbol)
            else:
                reason = self.held_reason(row, symbol, opinion)
                shares = self.positions[symbol].shares
                if reason == Reason.TAKE_PROFIT:
                    plan.sales[symbol] = self.target_shares(shares)
                elif reason != Reason.HOLD:
                    plan.sales[symbol] = shares
            plan.reasons[symbol] = reason
        self.plan_entries(plan, candidates, opinions)
        return plan

    def plan_entries(self, plan: Plan, candidates: list[str], opinions: dict[str, Opinion]) -> None:
        "Give the room there is to the best"
        risk = self.rules.risk
        margin = risk.cash == "margin"

        count, exposure, spendable = 0, 0.0, self.cash / 100
        for symbol in sorted(self.positions):
            sold = plan.sales.get(symbol, 0.0)
            rest = self.positions[symbol].shares - sold
            if rest > 1e-9:
                count += 1
                exposure += rest * self.last_close[symbol]
            if margin:
                spendable += sold * self.last_close[symbol] * (1.0 - self.cost(symbol) / 2)

        def merit(symbol: str) -> float:
            return opinions[symbol].predicted - self.cost(symbol)

        for symbol in sorted(candidates, key=lambda each: (-merit(each), each)):
            shares = self.wanted_shares(symbol, opinions[symbol], plan.equity)
            if shares <= 0:
                plan.reasons[symbol] = Reason.TOO_SMALL
                continue
            value = shares * self.last_close[symbol]
            price_paid = value * (1.0 + self.cost(symbol) / 2)
            limit = self.blocking_limit(count, exposure, value, plan.equity)
            if limit is None:
                if price_paid > spendable:
                    plan.reasons[symbol] = Reason.NO_CASH
                    continue
                plan.reasons[symbol] = Reason.ENTRY
                plan.entries.append(Entry(symbol, shares, value, Reason.ENTRY))
                count, exposure, spendable = count + 1, exposure + value, spendable - price_paid
                continue

            weakest = self.weakest_held(plan.reasons, opinions)
            if weakest is None or not self.is_better(merit(symbol), opinions[weakest].predicted):
                plan.reasons[symbol] = limit
                continue
            freed = self.value(weakest)
            if self.blocking_limit(count - 1, exposure - freed, value, plan.equity) is not None:
                plan.reasons[symbol] = limit
                continue
            if not margin:
                plan.reasons[symbol] = Reason.SWAP_WAITS
                plan.reasons[weakest] = Reason.SWAP_OUT
                plan.sales[weakest] = self.positions[weakest].shares
                continue
            proceeds = freed * (1.0 - self.cost(weakest) / 2)
            if price_paid > spendable + proceeds:
                plan.reasons[symbol] = Reason.NO_CASH
                continue
            plan.reasons[symbol] = Reason.SWAP_IN
            plan.reasons[weakest] = Reason.SWAP_OUT
            plan.sales[weakest] = self.positions[weakest].shares
            plan.entries.append(Entry(symbol, shares, value, Reason.SWAP_IN))
            exposure, spendable = exposure - freed + value, spendable + proceeds - price_paid

    def is_better(self, newcomer: float, weakest: float) -> bool:
        "Is what a newcomer promises, after costs, worth the place of the weakest holding?"
        if newcomer <= 0 or weakest > newcomer:
            return False
        return weakest < 0 or newcomer > self.rules.risk.swap_premium * weakest

    # ------------------------------------------------------------------ 7. the opening auction

    def fill_at_open(self, row: int, session: Session, plan: Plan) -> None:
        "Sales, then what is still possible of the entries"
        missed = self.journal.missed.setdefault(row, {})
        for symbol in sorted(plan.sales):
            bar = session.bars.get(symbol)
            if bar is None:
                missed[symbol] = Reason.NOT_FILLED
                continue
            quantity = -plan.sales[symbol]
            price, fee = market_fill(quantity, bar.open, bar.volume, self.rules.costs)
            self.book(row, symbol, quantity, price, fee, plan.reasons[symbol])

        entries = plan.entries if not missed else self.remeasured(plan, missed)
        for entry in entries:
            bar = session.bars.get(entry.symbol)
            if bar is None:
                missed[entry.symbol] = Reason.NOT_FILLED
                continue
            price, fee = market_fill(entry.shares, bar.open, bar.volume, self.rules.costs)
            price_paid = -in_cents(cash_flow(entry.shares, price, fee))
            if price_paid > (self.cash if self.rules.risk.cash == "margin" else self.settled):
                missed[entry.symbol] = Reason.NO_FUNDS
                continue
            self.book(row, entry.symbol, entry.shares, price, fee, entry.reason)

    def remeasured(self, plan: Plan, missed: dict[str, Reason]) -> list[Entry]:
        "The entries that still fit beside what could not be sold"
        count = len(self.positions)
        exposure = sum(self.value(symbol) for symbol in sorted(self.positions))
        fitting = []
        for entry in plan.entries:
            if self.blocking_limit(count, exposure, entry.value, plan.equity) is not None:
                missed[entry.symbol] = Reason.EXIT_NOT_FILLED
                continue
            count, exposure = count + 1, exposure + entry.value
            fitting.append(entry)
        return fitting

    # ------------------------------------------------------------------ 8. within the bar

    def guard(self, row: int, session: Session) -> None:
        "Stop and target within the bar; the stop is believed first"
        risk, costs = self.rules.risk, self.rules.costs
        for symbol in sorted(self.positions):
            bar = session.bars.get(symbol)
            if bar is None:
                continue
            position = self.positions[symbol]
            reference = stop_reference(bar.open, bar.low, exit_level(position.average, risk.stop_loss))
            if not math.isnan(reference):
                price, fee = market_fill(-position.shares, reference, bar.volume, costs)
                self.book(row, symbol, -position.shares, price, fee, Reason.STOP_LOSS)
                continue
            if position.taken:
                continue
            reference = target_reference(bar.open, bar.high, exit_level(position.average, risk.take_profit))
            if not math.isnan(reference):
                quantity = -self.target_shares(position.shares)
                price, fee = limit_fill(quantity, reference, costs)
                self.book(row, symbol, quantity, price, fee, Reason.TAKE_PROFIT)

    # ------------------------------------------------------------------ 9. the close

    def learn_closes(self, session: Session) -> None:
        "The last known closes, and what the next decision must not touch"
        self.blocked = {}
        for symbol in self.symbols:
            bar = session.bars.get(symbol)
            if bar is None:
                self.blocked[symbol] = Reason.NO_DATA
                continue
            before = self.last_close.get(symbol)
            if before is not None and abs(bar.close / before - 1.0) > self.rules.max_move:
                self.blocked[symbol] = Reason.JUMP
            self.last_close[symbol] = bar.close

    def watch(self, session: Session) -> None:
        "A session before the account is opened: only prices are learned"
        for symbol, ratio in session.splits.items():
            if symbol in self.last_close:
                self.last_close[symbol] = split_price(self.last_close[symbol], ratio)
        self.learn_closes(session)

    def trade(self, row: int, session: Session) -> None:
        "One session from its opening to its close"
        self.open_session(row, session)
        plan = self.decide(row, session)
        self.journal.reasons[row] = plan.reasons
        self.journal.planned[row] = {symbol: -shares for symbol, shares in plan.sales.items()}
        self.journal.planned[row].update((entry.symbol, entry.shares) for entry in plan.entries)
        self.fill_at_open(row, session, plan)
        if self.rules.risk.stop_check == "bar":
            self.guard(row, session)
        self.learn_closes(session)
        self.closing_equity.append(self.equity())
        self.journal.cash[row], self.journal.equity[row] = self.cash / 100, self.closing_equity[-1] / 100


def replay(
    symbols: list[str],
    sessions: list[Session],  # oldest first
    rules: Rules,
    capital: float,  # USD, whole cents
    first: int = 0,  # row of the first session that is traded
) -> Journal:
    "Walk an account through the sessions"
    account = Replay(symbols, rules, capital)
    for row, session in enumerate(sessions):
        if row < first:
            account.watch(session)
        else:
            account.trade(row, session)
    return account.journal
