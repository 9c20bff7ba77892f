"""The nouns: ids that survive a crash, money that survives arithmetic, statuses that agree with the protocol"""

from dataclasses import fields, replace
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alpha_trader.domain as domain
from alpha_trader.domain import (
    AlphaTraderError,
    InputError,
    IntentStatus,
    OrderIntent,
    OrderStatus,
    OrderType,
    Purpose,
    Side,
    check_symbol,
    rounded,
    usd,
)

ENTRY = OrderIntent("demo", "demo", date(2024, 1, 2), "SPY", Side.BUY, Purpose.ENTRY, Decimal(10))

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", fullmatch=True)
symbols = st.from_regex(r"[A-Z][A-Z0-9.]{0,9}", fullmatch=True)
intents = st.builds(
    OrderIntent,
    account=st.sampled_from(["demo", "demo-2", "x"]),
    strategy=names,
    session=st.dates(date(1990, 1, 1), date(2100, 1, 1)),
    symbol=symbols,
    side=st.sampled_from(Side),
    purpose=st.sampled_from(Purpose),
    quantity=st.decimals("0.000000001", "1e9", places=9),
    attempt=st.integers(1, 999),
)


IDENTITY = ("account", "strategy", "session", "symbol", "side", "purpose", "attempt")


@given(intents, intents)
def test_every_part_of_the_identity_is_in_the_name(one: OrderIntent, other: OrderIntent) -> None:
    "DA-2: change any one part and the name changes; no name is too long for Alpaca"
    for name in IDENTITY:
        mixed = replace(one, **{name: getattr(other, name)})
        assert (one.client_id == mixed.client_id) == (one.identity == mixed.identity)
    assert len(one.client_id) <= 128


def test_a_name_with_dashes_cannot_be_read_in_two_ways() -> None:
    "A strategy may end in what looks like a session and a symbol"
    sly = replace(ENTRY, strategy="demo-20240102-SPY")
    assert sly.client_id != ENTRY.client_id
    assert sly.client_id.count("SPY") == 2


@given(intents)
def test_only_the_identity_names_an_order(intent: OrderIntent) -> None:
    "DA-2: quantity, price, type, reason and group of a re-run may differ, the name may not"
    again = replace(intent, quantity=intent.quantity + 1, order_type=OrderType.LIMIT, limit_price=Decimal(1),
                    reason="later", reference_price=Decimal(2), oco_group="g")
    assert again.client_id == intent.client_id


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"symbol": "spy"}, "symbol 'spy'"),
        ({"symbol": "SPY\n"}, "symbol 'SPY"),
        ({"account": "de mo"}, "account 'de mo'"),
        ({"strategy": ""}, "strategy ''"),
        ({"strategy": "a" * 41}, "strategy"),
        ({"env": "prod"}, "sim, paper or live"),
        ({"attempt": 0}, "attempt 0"),
        ({"quantity": Decimal(-1)}, "quantity"),
        ({"quantity": Decimal("Infinity")}, "quantity"),
        ({"quantity": 1}, "quantity"),
        ({"limit_price": Decimal(1)}, "limit_price belongs to limit orders"),
        ({"stop_price": Decimal(1)}, "stop_price belongs to stop orders"),
        ({"order_type": OrderType.STOP}, "stop_price belongs to stop orders"),
        ({"order_type": OrderType.LIMIT, "limit_price": Decimal(0)}, "limit_price must be a positive"),
    ],
)
def test_nonsense_is_refused_when_the_intent_is_made(change: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(ENTRY, **change)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-10**12, max_value=10**12))
def test_rounding_moves_by_half_a_cent_at_most(x: Decimal) -> None:
    assert abs(usd(x) - x) <= Decimal("0.005")
    assert usd(x).as_tuple().exponent == -2


@given(st.integers(-(10**12), 10**12), st.integers(1, 9))
def test_floats_cross_the_bridge_by_their_text(units: int, places: int) -> None:
    "What a person writes with up to 13 digits arrives as written, and its half cents are rounded as written"
    exact = Decimal(units).scaleb(-places)
    assert rounded(float(exact), places) == exact
    assert rounded(float(exact), places - 1) == rounded(exact, places - 1)


@pytest.mark.parametrize("x", [float("nan"), float("inf"), Decimal("NaN"), "ten", ""])
def test_what_is_no_number_is_refused(x: float | Decimal | str) -> None:
    with pytest.raises(InputError):
        usd(x)


def test_a_symbol_with_a_line_break_is_refused() -> None:
    with pytest.raises(InputError):
        check_symbol("SPY\n")


def test_intent_statuses_that_end_are_a_part_of_those_of_orders() -> None:
    "An intent's row may carry any final status of its order, except REPLACED, which goes on under another id"
    orders = {s.value for s in OrderStatus if s.terminal}
    assert orders - {s.value for s in IntentStatus if s.terminal} == {"replaced"}


def test_every_error_is_told_in_one_line() -> None:
    now = datetime(2024, 1, 2, tzinfo=UTC)
    special = {"Rejected": ("funds",), "RateLimited": ("slow", now), "LeaseHeld": ("a", "h", 1, "x", now)}
    errors = [e for e in vars(domain).values() if isinstance(e, type) and issubclass(e, AlphaTraderError)]
    assert len(errors) >= 14
    for error in errors:
        assert "\n" not in str(error(*special.get(error.__name__, ("one line",))))


def test_nouns_cannot_be_changed() -> None:
    nouns = [n for n in vars(domain).values() if isinstance(n, type) and hasattr(n, "__dataclass_fields__")]
    assert len(nouns) >= 10
    for noun in nouns:
        assert noun.__dataclass_params__.frozen, noun
        assert fields(noun)
