"""Skill that is measured live: of a model, of a line of models that grows by trees every evening, and in parity

The windows of drift are shortened so that a dozen sessions are enough: what is compared are live trading, the parity
report and a calculation by hand, which must agree to the last bit.
"""

import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from replay import NOW, Lab, close, prepare, trade, write_settings
from sqlalchemy import select

import alpha_trader.cycle
import alpha_trader.drift
import alpha_trader.research
from alpha_trader.confidence import rank_ic
from alpha_trader.cycle import before_the_open
from alpha_trader.desk import champion
from alpha_trader.domain import ModelError
from alpha_trader.drift import Normal
from alpha_trader.labels import label_returns, purge
from alpha_trader.parity import gate_at, memory_of, model_then, parity, world_of
from alpha_trader.promotion import fine_tune, retrain
from alpha_trader.research import load_bars
from alpha_trader.settings import override
from alpha_trader.signals import Reason
from alpha_trader.store import SignalRow, open_store, reading

SHORT, FEW = 6, 3  # sessions of a window, and of it with a known outcome
CHANGES: dict[str, object] = {
    "data.source": "synthetic", "data.synthetic_symbols": 4, "data.synthetic_sessions": 330, "data.synthetic_seed": 11,
    "model.lightgbm_rounds": 20, "model.xgboost_rounds": 20, "model.min_train": 200, "model.refit": "monthly",
    "model.fine_tune": 3, "model.fine_tune_sessions": 60,
    "signals.buy": 0.0002, "signals.sell": -0.002, "signals.confidence": 0.1, "label.horizon": 2,
    "run.paper_sessions": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lineage")
    prepare(root, CHANGES).engine.dispose()
    return root


@pytest.fixture
def lab(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    "A workspace of one's own, in which a few sessions say something about skill and inputs never drift"
    for module in (alpha_trader.drift, alpha_trader.research, alpha_trader.cycle):
        monkeypatch.setattr(module, "WINDOW", SHORT)
    monkeypatch.setattr(alpha_trader.drift, "LEAST", FEW)
    learned = Normal.from_dict.__func__  # type: ignore[attr-defined]

    def strict(cls: type[Normal], found: dict) -> Normal:
        return replace(learned(cls, found), index_limit=np.inf, ic_low=0.2)

    monkeypatch.setattr(Normal, "from_dict", classmethod(strict))
    root = tmp_path / "workspace"
    shutil.copytree(trained, root)
    settings = write_settings(root, CHANGES)
    days = load_bars(settings).sessions[-16:].tolist()
    return Lab(settings, open_store(settings.store_url), tuple(days))


def live(lab: Lab, tuned: bool, left_out: tuple[date, ...] = ()) -> list[Reason]:
    "Trade the sessions, each with trees added the evening before, or none; what stopped entries"
    for session in lab.sessions:
        if session in left_out:
            continue
        if tuned and session > lab.sessions[0]:
            fine_tune(lab.settings, lab.engine, session, NOW)
        trade(lab, [session])
        close(lab, session)
    inputs = memory_of(lab.engine, "demo").inputs
    return [Reason(inputs[day]["gate"]) for day in lab.sessions if day in inputs]


def gates_again(lab: Lab) -> list[Reason]:
    "What would have stopped entries, worked out afterwards"
    memory, panel = memory_of(lab.engine, "demo"), load_bars(lab.settings)
    worlds = {day: world_of(panel, lab.settings, model_then(memory, day), memory) for day in memory.inputs}
    return [gate_at(worlds[day], memory, day) for day in sorted(worlds)]


def by_hand(lab: Lab, session: date) -> float:
    "Mean rank IC of the signals whose outcome was known before a session opened, of a window of sessions"
    panel = before_the_open(load_bars(lab.settings), session)[0]
    label = label_returns(panel, lab.settings.question)
    last = len(panel.index) - purge(lab.settings.label.horizon)  # row after the newest known outcome
    found = []
    for row in range(last - SHORT, last):
        day = load_bars(lab.settings).sessions[row + 1].item()
        with reading(lab.engine) as db:
            rows = db.scalars(select(SignalRow).filter_by(account="demo", session=day)).all()
        said = {one.symbol: one.predicted for one in rows}
        if said:
            made = np.array([[said.get(symbol, np.nan) for symbol in panel.symbols]], dtype=float)
            found.append(float(rank_ic(made, label[row : row + 1])[0]))
    known = [one for one in found if np.isfinite(one)]
    return float(np.mean(known)) if len(known) >= FEW else float("nan")


@pytest.mark.parametrize("tuned", [False, True])
def test_live_skill_is_that_of_the_signals_and_parity_agrees(lab: Lab, tuned: bool) -> None:
    gates = live(lab, tuned)
    assert {Reason.NONE, Reason.MODEL_DRIFT} <= set(gates), "the limit must part the sessions, or nothing is proved"
    if tuned:
        for session, gate in zip(lab.sessions, gates, strict=True):
            assert (by_hand(lab, session) < 0.2) == (gate is Reason.MODEL_DRIFT), session
    assert gates_again(lab) == gates
    found = parity(lab.settings, lab.engine)
    assert found.alarms == () and len(found.sessions) == len(lab.sessions)
    assert {one.predictions_moved for one in found.sessions} == {0.0}


def test_a_new_full_fit_begins_a_new_line(lab: Lab) -> None:
    "What the line before it has said counts no more"
    live(lab, tuned=True, left_out=lab.sessions[12:])
    other = retrain(override(lab.settings, {"model.lightgbm_rounds": "21"}), lab.engine, lab.sessions[12], NOW)
    assert other.row.state.value == "champion" and other.card.parent == ""
    for session in lab.sessions[12:]:
        fine_tune(lab.settings, lab.engine, session, NOW)
        trade(lab, [session])
        close(lab, session)
    memory = memory_of(lab.engine, "demo")
    assert len(set(memory.lines.values())) == 2 and memory.lines[lab.sessions[12]] == other.card.id
    assert Reason(memory.inputs[lab.sessions[13]]["gate"]) is Reason.NONE, "it has no record of its own yet"
    assert parity(lab.settings, lab.engine).alarms == ()
    assert gates_again(lab) == [Reason(memory.inputs[day]["gate"]) for day in lab.sessions]


def test_a_session_nobody_decided_leaves_a_gap(lab: Lab) -> None:
    gates = live(lab, tuned=True, left_out=lab.sessions[5:7])
    assert gates_again(lab) == gates and Reason.MODEL_DRIFT in gates
    found = parity(lab.settings, lab.engine)
    assert [each.session for each in found.sessions if each.missed] == list(lab.sessions[5:7])
    assert [day for day, _ in found.alarms] == list(lab.sessions[5:7]), "they were missed, the others are the backtest's"


def test_parity_names_the_models_that_are_gone(lab: Lab) -> None:
    live(lab, tuned=True, left_out=lab.sessions[4:])
    row = champion(lab.settings, lab.engine, load_bars(lab.settings))
    with reading(lab.engine) as db:
        signed = dict(db.execute(select(SignalRow.session, SignalRow.model_id)).all())
    shutil.rmtree(lab.settings.models_dir / signed[lab.sessions[1]])
    found = parity(lab.settings, lab.engine)
    assert found.gone == ((lab.sessions[1], signed[lab.sessions[1]]),) and found.alarms == ()
    words = f"1, {lab.sessions[1]} to {lab.sessions[1]}: decided by model {signed[lab.sessions[1]]}, which the disk"
    assert found.facts()["not compared"].startswith(words)  # type: ignore[attr-defined]
    for model in set(signed.values()):
        shutil.rmtree(lab.settings.models_dir / model, ignore_errors=True)
    with pytest.raises(ModelError, match=r"^parity: no session can be compared; 4, .* models that the disk"):
        parity(lab.settings, lab.engine)
    assert row is not None
