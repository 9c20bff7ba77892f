"""The parity report names what was tampered with, by its cause, to the cent; a clean account says zero"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT
from replay import NOW, Lab, close, prepare, write_settings
from sqlalchemy import delete, select

from alpha_trader.bars import bars_path, read_bars, write_bars
from alpha_trader.books import fills_of
from alpha_trader.context import RunContext, using_run
from alpha_trader.cycle import Desk
from alpha_trader.desk import open_broker, open_desk
from alpha_trader.domain import InputError, OrderIntent, Purpose, Rejected, RejectReason, Side
from alpha_trader.models import Ensemble
from alpha_trader.parity import Cause, Parity, parity, raise_alarms
from alpha_trader.pipeline import close_by_hand, trade_cycle
from alpha_trader.research import load_bars
from alpha_trader.runner import run_notebook
from alpha_trader.sessions import previous_session
from alpha_trader.settings import override
from alpha_trader.simulated import FaultPlan, SimBroker
from alpha_trader.store import (
    RiskEventRow,
    RunRow,
    StateRow,
    begin_run,
    finish_run,
    open_store,
    reading,
    this_process,
    writing,
)

CHANGES: dict[str, object] = {
    "data.source": "synthetic", "data.synthetic_symbols": 4, "data.synthetic_sessions": 330, "data.synthetic_seed": 11,
    "model.lightgbm_rounds": 20, "model.xgboost_rounds": 20, "model.min_train": 200, "model.refit": "monthly",
    "signals.buy": 0.0002, "signals.sell": -0.002, "signals.confidence": 0.1, "label.horizon": 2,
    "risk.stop_loss": -0.02, "risk.take_profit": 0.02, "run.paper_sessions": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A workspace with bars and a model, not yet traded"
    root = tmp_path_factory.mktemp("trained")
    prepare(root, CHANGES).engine.dispose()
    return root


@pytest.fixture
def lab(trained: Path, tmp_path: Path) -> Lab:
    "A copy of it of one's own"
    root = tmp_path / "workspace"
    shutil.copytree(trained, root)
    settings = write_settings(root, CHANGES)
    days = load_bars(settings).sessions[-10:].tolist()
    return Lab(settings, open_store(settings.store_url), tuple(days))


def same(desk: Desk) -> Desk:
    return desk


def trade(lab: Lab, session: date, changed: Callable[[Desk], Desk] = same) -> None:
    "One session's decision, at a desk that may be tampered with"
    run = begin_run(lab.engine, "trade", f"{session} decision", "demo", NOW, *this_process())
    context = RunContext(run.id, "trade", f"{session} decision", "demo", lab.settings, lab.engine, lambda: NOW)
    with using_run(context):
        trade_cycle(changed(open_desk(str(session), "demo")))
    finish_run(lab.engine, run.id, "succeeded", NOW)


def trade_all(lab: Lab, odd: date | None = None, changed: Callable[[Desk], Desk] = same) -> None:
    "Every session with its report; the desk of one is tampered with"
    for session in lab.sessions:
        trade(lab, session, changed if session == odd else same)
        close(lab, session)


def amounts(found: Parity) -> dict[str, float]:
    "USD by cause, where there are any"
    table = found.attribution()
    causes, gap = table[:-1], float(table["usd"].iloc[-1])
    assert round(float(causes["usd"].sum()), 2) == gap == found.gap
    for each in found.sessions:
        assert round(sum(each.causes.values()), 2) == each.gap
    return {cause: usd for cause, usd in zip(causes["cause"], causes["usd"], strict=True) if usd}


def other_broker(desk: Desk, **changes: float) -> Desk:
    "The same book, with other costs than the settings say"
    assert isinstance(desk.broker, SimBroker)
    rules = desk.broker.desk.rules
    desk.broker.desk = desk.broker.desk._replace(rules=rules._replace(costs=rules.costs._replace(**changes)))
    return desk


def entry_days(root: Path, trained: Path) -> list[date]:
    "The sessions on which the clean account buys something"
    shutil.copytree(trained, root)
    settings = write_settings(root, CHANGES)
    lab = Lab(settings, open_store(settings.store_url), tuple(load_bars(settings).sessions[-10:].tolist()))
    trade_all(lab)
    bought = fills_of(lab.engine, "demo").query("side == 'buy'")["session"].tolist()
    return sorted({day for day in bought if lab.sessions[0] < day < lab.sessions[-2]})


@pytest.fixture(scope="module")
def odd(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> date:
    "A session in the middle on which something is bought"
    return entry_days(tmp_path_factory.mktemp("probe") / "workspace", trained)[0]


def rewrite(lab: Lab, symbol: str, change: Callable[[object], object]) -> None:
    "Change the kept bars of one symbol, as a later ingest would"
    folder = next(lab.settings.bars_dir.iterdir())
    source, feed = folder.name.split("-", 1)
    frame = change(read_bars(folder, symbol).copy())
    assert bars_path(folder, symbol).exists() and write_bars(folder, symbol, frame, source, feed, NOW)


# --- the clean account


def test_a_clean_account_has_no_difference(lab: Lab) -> None:
    trade_all(lab)
    found = parity(lab.settings, lab.engine)
    assert amounts(found) == {} and found.alarms == () and found.decisions().empty
    assert [each.session for each in found.sessions] == list(lab.sessions)
    assert {each.predictions_moved for each in found.sessions} == {0.0}
    assert all(not each.changed for each in found.sessions)
    assert raise_alarms(lab.engine, found, NOW) == 0
    assert parity(lab.settings, lab.engine, "demo", lab.sessions[3], lab.sessions[3]).facts()["gap"] == "+0.00 USD"


def test_a_clean_account_without_evening_reports_has_no_difference(lab: Lab) -> None:
    for session in lab.sessions:
        trade(lab, session)
    found = parity(lab.settings, lab.engine)
    assert amounts(found) == {} and found.alarms == ()
    assert found.sessions[-1].session == lab.sessions[-2]  # the last one has no close yet


def test_other_settings_today_do_not_change_what_was_decided_with_the_old_ones(lab: Lab) -> None:
    trade_all(lab)
    today = override(lab.settings, {"signals.buy": 0.09, "risk.max_positions": 1, "costs.half_spread": 0.02})
    found = parity(today, lab.engine)
    assert amounts(found) == {} and found.alarms == ()


def test_accounts_from_before_the_inputs_were_written_down_are_rebuilt(lab: Lab) -> None:
    trade_all(lab)
    with writing(lab.engine) as db:
        db.execute(delete(StateRow).where(StateRow.key.startswith("inputs ")))
    found = parity(lab.settings, lab.engine)
    assert amounts(found) == {} and found.alarms == ()


# --- tampering


def test_a_revised_close_is_a_data_revision(lab: Lab, odd: date) -> None:
    trade_all(lab)
    before = previous_session(odd)

    def higher(frame):  # type: ignore[no-untyped-def]
        frame.loc[str(before), ["high", "close"]] *= 1.04
        return frame

    rewrite(lab, load_bars(lab.settings).symbols[0], higher)
    found = parity(lab.settings, lab.engine)
    assert set(amounts(found)) <= {Cause.REVISION}
    changed = {each.session for each in found.sessions if each.changed}
    assert changed == {day for day in lab.sessions if day >= odd}
    assert set(found.decisions()["cause"]) <= {Cause.REVISION}
    assert found.alarms and all(Cause.REVISION in text for _, text in found.alarms)


def test_a_revised_open_is_a_data_revision_of_the_fills(lab: Lab, odd: date) -> None:
    trade_all(lab)
    before = {each.session: each.actual for each in parity(lab.settings, lab.engine).sessions}
    symbols = load_bars(lab.settings).symbols

    def lower(frame):  # type: ignore[no-untyped-def]
        frame.loc[str(odd), ["open", "low"]] *= 0.97
        return frame

    for symbol in symbols:
        rewrite(lab, symbol, lower)
    found = parity(lab.settings, lab.engine, "", odd, odd)
    assert set(amounts(found)) == {Cause.REVISION} and found.alarms == ()
    assert found.sessions[0].actual == before[odd] != found.sessions[0].expected


def test_a_bar_that_came_after_the_decision_is_bar_timing(lab: Lab, odd: date) -> None:
    folder, away = lab.settings.bars_dir, lab.settings.root / "away"
    for session in lab.sessions:
        if session == odd:
            shutil.copytree(folder, away)
            for symbol in load_bars(lab.settings).symbols:
                rewrite(lab, symbol, lambda frame: frame.drop(str(previous_session(odd))))
        trade(lab, session)
        if session == odd:
            shutil.copytree(away, folder, dirs_exist_ok=True)
        close(lab, session)
    found = parity(lab.settings, lab.engine)
    late = next(each for each in found.sessions if each.session == odd)
    assert set(late.changed.values()) == {Cause.TIMING} and set(late.differences["cause"]) == {Cause.TIMING}
    assert set(amounts(found)) == {Cause.TIMING} and [session for session, _ in found.alarms] == [odd]


def test_a_session_nobody_decided_is_a_missed_run(lab: Lab, odd: date) -> None:
    for session in lab.sessions:
        if session != odd:
            trade(lab, session)
        close(lab, session)
    found = parity(lab.settings, lab.engine)
    assert set(amounts(found)) == {Cause.MISSED}
    assert [each.session for each in found.sessions if each.missed] == [odd]
    assert found.alarms == ((odd, f"{odd}: no decision was made"),)


def test_a_missed_session_without_a_close_is_found_too(lab: Lab, odd: date) -> None:
    for session in lab.sessions:
        if session != odd:
            trade(lab, session)
    close(lab, lab.sessions[-1])
    found = parity(lab.settings, lab.engine)
    assert set(amounts(found)) == {Cause.MISSED} and found.facts()["missed runs"] == 1


def test_another_fee_is_fees(lab: Lab, odd: date) -> None:
    trade_all(lab, odd, lambda desk: other_broker(desk, commission_rate=0.003))
    found = parity(lab.settings, lab.engine)
    assert set(amounts(found)) == {Cause.FEES} and amounts(found)[Cause.FEES] < 0 and found.alarms == ()
    assert [each.session for each in found.sessions if each.gap] == [odd]


def test_a_worse_price_is_price(lab: Lab, odd: date) -> None:
    trade_all(lab, odd, lambda desk: other_broker(desk, half_spread=0.004))
    found = parity(lab.settings, lab.engine)
    assert set(amounts(found)) == {Cause.PRICE} and amounts(found)[Cause.PRICE] < 0 and found.alarms == ()


def refusing(desk: Desk) -> Desk:
    "A broker that refuses every purchase"

    def refuse(call: int, intent: OrderIntent) -> None:
        if intent.side is Side.BUY:
            raise Rejected(RejectReason.BLOCKED, "not today")

    assert isinstance(desk.broker, SimBroker)
    desk.broker.faults = FaultPlan(before_accept=refuse)
    return desk


def test_a_refused_order_is_a_partial_fill(lab: Lab, odd: date) -> None:
    trade_all(lab, odd, refusing)
    found = parity(lab.settings, lab.engine)
    assert set(amounts(found)) == {Cause.PARTIAL} and found.alarms == ()
    assert [each.session for each in found.sessions if each.gap] == [odd]


@pytest.mark.parametrize("how", ["command", "broker"])
def test_a_sale_by_hand_is_a_manual_trade(lab: Lab, odd: date, how: str) -> None:
    for session in lab.sessions:
        trade(lab, session)
        if session == odd and how == "command":
            assert close_by_hand(lab.settings, lab.engine, (), NOW)
        elif session == odd:
            broker = owner(lab)
            for order in broker.orders(NOW, open_only=True):
                broker.cancel(order.broker_id)
            for position in broker.positions():
                key = ("demo", "hand", session, position.symbol)
                broker.by_hand(OrderIntent(*key, Side.SELL, Purpose.CLOSE, position.quantity))
        close(lab, session)
    found = parity(lab.settings, lab.engine)
    assert set(amounts(found)) == {Cause.MANUAL} and found.alarms == ()
    assert [each.session for each in found.sessions if each.gap] == [odd]


def owner(lab: Lab) -> SimBroker:
    "The account's own book, as its owner sees it"
    return open_broker(lab.settings, "demo", load_bars(lab.settings), None)


def test_another_plan_of_the_same_bars_is_another_decision(lab: Lab, odd: date) -> None:
    class Mirror(Ensemble):
        def predict(self, *inputs: Any, **words: Any) -> np.ndarray:
            return -super().predict(*inputs, **words)

    def bolder(desk: Desk) -> Desk:
        assert desk.model is not None
        return replace(desk, model=Mirror(**vars(desk.model)))

    trade_all(lab, odd, bolder)
    found = parity(lab.settings, lab.engine)
    assert [session for session, _ in found.alarms] == [odd] and set(found.decisions()["cause"]) == {Cause.DECISION}
    assert set(amounts(found)) == {Cause.DECISION}
    assert next(each for each in found.sessions if each.session == odd).predictions_moved > 0


def test_an_alarm_is_a_risk_event_once(lab: Lab, odd: date) -> None:
    for session in lab.sessions:
        if session != odd:
            trade(lab, session)
        close(lab, session)
    found = parity(lab.settings, lab.engine)
    assert (raise_alarms(lab.engine, found, NOW), raise_alarms(lab.engine, found, NOW)) == (1, 0)
    with reading(lab.engine) as db:
        event = db.scalars(select(RiskEventRow).filter_by(kind="parity")).one()
        assert (event.session, event.account) == (odd, "demo")
        assert db.scalars(select(RunRow)).first() is not None


def test_the_run_notebook_reports_and_alarms(lab: Lab, odd: date) -> None:
    shutil.copytree(CHECKOUT / "nbs" / "runs", lab.settings.root / "nbs" / "runs")
    for session in lab.sessions:
        if session != odd:
            trade(lab, session)
        close(lab, session)
    result = run_notebook(lab.settings, "parity", {"last": str(odd)}, f"{odd} parity", "demo", lab.engine, lambda: NOW)
    page = result.report_html.read_text(encoding="utf-8")
    assert "missed run" in page and "alarm: decisions differ" in page and str(odd) in page
    with reading(lab.engine) as db:
        assert db.scalars(select(RiskEventRow).filter_by(kind="parity")).one().session == odd


def test_what_cannot_be_judged_is_one_line(lab: Lab) -> None:
    with pytest.raises(InputError, match="'demo' has never been opened"):
        parity(lab.settings, lab.engine)
    trade(lab, lab.sessions[0])
    with pytest.raises(InputError, match="no session has been traded and closed yet"):
        parity(lab.settings, lab.engine)
    close(lab, lab.sessions[0])
    with pytest.raises(InputError, match="allowed: from .* to "):
        parity(lab.settings, lab.engine, "demo", lab.sessions[1])
