"""Who may trade: the gate, explicit acts, live trading, drift"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from replay import NOW, SMALL, Lab, prepare, write_settings
from sqlalchemy import select

from alpha_trader import promotion
from alpha_trader.cycle import Desk, Observation, decide, drift_now, may_trade_live, newest_inputs, observe
from alpha_trader.desk import champion, open_desk
from alpha_trader.domain import InputError, ModelError
from alpha_trader.pipeline import alarm
from alpha_trader.research import load_bars
from alpha_trader.settings import override
from alpha_trader.signals import Reason
from alpha_trader.store import (
    OutboxRow,
    PromotionRow,
    RiskEventRow,
    last_judgement,
    reading,
    record_judgement,
)
from alpha_trader.training import train

OPEN_MINDED = {"run.paper_sessions": 3, "signals.confidence": 0.1, "signals.buy": 0.0001}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    "A workspace with one model, and the folder a person stands in"
    monkeypatch.chdir(tmp_path)
    yield prepare(tmp_path, SMALL | OPEN_MINDED)


def opening(lab: Lab, **changes: object) -> tuple[Desk, Observation]:
    "The desk of the first session, and what it sees"
    desk = replace(open_desk(str(lab.sessions[0])), **changes)
    return desk, observe(desk)


def drifted(desk: Desk) -> Desk:
    "The same desk, for which any index is too high"
    assert desk.card is not None
    return replace(desk, card=desk.card.model_copy(update={"normal": {**desk.card.normal, "index_limit": 0.0}}))


def test_drift_stops_entries_and_lets_exits_go(lab: Lab) -> None:
    desk, seen = opening(lab)
    assert seen.drift is not None and not seen.drift.alarms and not seen.gates
    assert (decide(desk, seen).orders.quantity > 0).any()
    other = drifted(desk)
    again = observe(other)
    assert [code for code, _ in again.gates] == [Reason.MODEL_DRIFT]
    held = replace(again, positions={})
    orders = decide(other, held).orders
    assert not (orders.quantity > 0).any() and Reason.MODEL_DRIFT in orders.reason
    off = replace(other, settings=override(desk.settings, {"promotion.drift": "false"}))
    assert not observe(off).gates


def test_forecasts_made_with_hindsight_are_no_record(lab: Lab) -> None:
    "Drift of skill counts only the sessions after the newest that the fit knew"
    desk, seen = opening(lab)
    assert desk.card is not None and desk.model is not None
    found = drift_now(desk, seen.panel, seen.inputs)
    assert found is not None and np.isnan(found.ic)  # the fit is a session old: nothing is resolved
    early = desk.card.model_copy(update={"as_of": seen.panel.sessions[-200].item()})
    aged = drift_now(replace(desk, card=early), seen.panel, newest_inputs(desk, seen.panel))
    assert aged is not None and np.isfinite(aged.ic)


def test_an_alarm_is_given_once(lab: Lab) -> None:
    desk, seen = opening(lab)
    found = drift_now(drifted(desk), seen.panel, seen.inputs)
    for _ in range(2):
        alarm(desk, found, NOW)
    with reading(desk.engine) as db:
        assert len(db.scalars(select(RiskEventRow).filter_by(kind="model_drift")).all()) == 1
        assert len(db.scalars(select(OutboxRow).filter_by(kind="alarm")).all()) == 1


def test_live_trading_asks_for_a_pass(lab: Lab) -> None:
    row = champion(lab.settings, lab.engine, load_bars(lab.settings))
    assert row is not None and "never judged" in (may_trade_live(lab.engine, row) or "")
    record_judgement(lab.engine, row, False, "not passed", {}, NOW)
    assert "not passed" in (may_trade_live(lab.engine, row) or "")
    money = lab.settings.model_copy(update={"broker": lab.settings.broker.model_copy(update={"mode": "live"})})
    desk, _ = opening(lab)
    desk = replace(desk, settings=money)
    assert Reason.MODEL_UNPROVEN in [code for code, _ in observe(desk).gates]
    for engine in (lab.engine, desk.engine):  # a rehearsal stands in a copy of the store
        record_judgement(engine, row, True, "passed", {}, NOW)
        assert may_trade_live(engine, row) is None
    assert Reason.MODEL_UNPROVEN not in [code for code, _ in observe(desk).gates]


def test_promotion_is_explicit_and_kept(lab: Lab) -> None:
    settings, engine = lab.settings, lab.engine
    first = champion(settings, engine, load_bars(settings))
    assert first is not None and first.reason == "first model, paper only"
    other = train(override(settings, {"model.lightgbm_rounds": "16"}), engine, lab.sessions[0], NOW).row
    assert other.state.value == "candidate"
    for model, reason, error in (("0" * 12, "why", InputError), (other.id, "", InputError)):
        with pytest.raises(error):
            promotion.promote_by_hand(settings, engine, model, reason, NOW)
    with pytest.raises(InputError, match="no earlier champion"):
        promotion.roll_back(settings, engine, "why", NOW)
    promotion.promote_by_hand(settings, engine, other.id, "an experiment", NOW)
    back = promotion.roll_back(settings, engine, "it failed", NOW)
    assert back.id == first.id
    with reading(engine) as db:
        acts = [(row.model_id, row.reason) for row in db.scalars(select(PromotionRow).order_by(PromotionRow.id))]
    assert acts == [
        (first.id, "first model, paper only"),
        (other.id, "an experiment"),
        (first.id, f"rolled back from {other.id}: it failed"),
    ]


def test_what_trades_is_the_recipe_of_the_champion(lab: Lab) -> None:
    "Changed for the next training, label and features of the settings move no order of the model in use"
    desk, seen = opening(lab)
    before = decide(desk, seen).orders
    assert desk.card is not None and (before.quantity > 0).any()
    changes = {"label.horizon": 3, "features.names": "return_5d", "risk.max_positions": 2}
    write_settings(lab.settings.root, SMALL | OPEN_MINDED | changes)
    desk, seen = opening(lab)
    assert desk.settings.label == desk.card.label and desk.settings.features == desk.card.feature
    after = decide(desk, seen).orders
    assert desk.settings.risk.max_positions == 2 and (after.quantity > 0).sum() <= 2
    same = after.quantity > 0
    np.testing.assert_array_equal(after.quantity[same], before.quantity[same])


def test_a_damaged_model_is_not_promoted(lab: Lab) -> None:
    row = champion(lab.settings, lab.engine, load_bars(lab.settings))
    assert row is not None
    (lab.settings.models_dir / row.id / "meta.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged"):
        promotion.promote_by_hand(lab.settings, lab.engine, row.id, "why", NOW)


@pytest.mark.parametrize("automatic", [False, True])
def test_automatic_promotion_is_a_setting(lab: Lab, automatic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = override(lab.settings, {"promotion.automatic": str(automatic).lower(), "model.xgboost_rounds": "16"})
    other = train(settings, lab.engine, lab.sessions[0], NOW).row
    real = promotion.gate

    def generous(*parts: object, **named: object) -> promotion.Passport:
        found = real(*parts, **named)  # type: ignore[arg-type]
        return replace(found, asked=tuple(question._replace(passed=True) for question in found.asked))

    assert not promotion.judge(settings, lab.engine, other, NOW).passed
    monkeypatch.setattr(promotion, "gate", generous)
    assert promotion.judge(settings, lab.engine, other, NOW).passed
    now_champion, judged = champion(settings, lab.engine, load_bars(settings)), last_judgement(lab.engine, other.recipe)
    assert now_champion is not None and (now_champion.id == other.id) is automatic
    assert judged is not None and judged.passed
