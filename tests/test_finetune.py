"""A-20: trees added on weekdays, full fits when the calendar turns; the walk-forward and the evening run do the same"""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import LIVELY, alpha_trader, edit_settings, store
from replay import NOW, SMALL, Lab, prepare

from alpha_trader.cycle import before_the_open
from alpha_trader.desk import champion
from alpha_trader.domain import InputError, ModelError
from alpha_trader.evidence import Criterion
from alpha_trader.features import FeatureSet
from alpha_trader.models import (
    Ensemble,
    fine_tune_panel,
    fit_panel,
    predict_panel,
    specs,
    usable_folds,
    walk_forward_predict,
    walk_forward_said,
)
from alpha_trader.promotion import fine_tune, promote_by_hand, retrain, tidy_models, tuned_models
from alpha_trader.registry import load_model, read_meta, recipe_id
from alpha_trader.research import lesson, load_bars
from alpha_trader.sessions import next_session, previous_session
from alpha_trader.settings import LabelSettings, ModelSettings, override
from alpha_trader.splits import trainable_rows
from alpha_trader.store import RiskEventRow, SignalRow, open_account, reading, writing
from alpha_trader.training import train

LABEL = LabelSettings(band=0.005)
MODEL = ModelSettings(
    members="lightgbm, xgboost, classifier", seeds="42", lightgbm_rounds=10, xgboost_rounds=10, classifier_rounds=6,
    min_train=240, threads=2, refit="monthly", fine_tune=4, fine_tune_sessions=120, feature_share=0.7,
)  # fmt: skip


def world(sessions: int = 300, seed: int = 0) -> tuple[FeatureSet, np.ndarray, np.ndarray]:
    "Features, labels that follow the first of them, and business days"
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(sessions, 2, 3)).astype(np.float32)
    labels = 0.01 * values[:, :, 0] + rng.normal(0, 0.005, size=(sessions, 2))
    days = pd.bdate_range("2001-01-02", periods=sessions).to_numpy().astype("datetime64[D]")
    return FeatureSet(("lean", "calm", "noise"), values), labels, days


@pytest.mark.parametrize("pooled", [True, False])
def test_every_session_of_the_walk_is_the_evening_run(pooled: bool) -> None:
    "Each forecast of the walk-forward is that of a full fit and of trees learned until the evening before, by hand"
    features, labels, days = world()
    model = MODEL.model_copy(update={"pooled": pooled})
    walked = walk_forward_predict(features, labels, days, LABEL, model)
    folds = usable_folds(features, labels, days, LABEL, model)
    plain = walk_forward_predict(features, labels, days, LABEL, model.model_copy(update={"fine_tune": 0}))
    assert len(folds) >= 2 and not np.array_equal(walked, plain, equal_nan=True)
    for fold in folds:
        full = fit_panel(features, labels, fold.train_stop, LABEL, model, symbols=("A", "B"))
        for row in range(fold.test_start, fold.test_stop, 7):
            stop = trainable_rows(row + 1, LABEL.horizon, model.embargo)  # as of the evening after the close of `row`
            tuned = fine_tune_panel(full, features, labels, stop, LABEL, model, specs(model), ("A", "B"))
            tonight = FeatureSet(features.names, features.values[row : row + 1])
            said = predict_panel(tuned, tonight, symbols=("A", "B"))[:, 0]
            assert np.array_equal(walked[:, row], said), row


def test_no_evening_knows_its_future() -> None:
    features, labels, days = world()
    before = walk_forward_said(features, labels, days, LABEL, MODEL)
    fold = usable_folds(features, labels, days, LABEL, MODEL)[-1]
    row = fold.test_start + 8
    known = trainable_rows(row + 1, LABEL.horizon, MODEL.embargo)
    for first, same in ((known, True), (known - 1, False)):  # one label earlier is one that it learned
        changed = labels.copy()
        changed[first:] = 1.0
        after = walk_forward_said(features, changed, days, LABEL, MODEL)
        assert np.array_equal(before.returns[:, row], after.returns[:, row]) is same
        assert np.array_equal(before.probabilities[:, row], after.probabilities[:, row]) is same


def test_a_member_sees_the_features_it_always_saw_and_nothing_is_changed_in_place() -> None:
    features, labels, _ = world()
    full = fit_panel(features, labels, 200, LABEL, MODEL)
    said = full.predict(features.values.reshape(-1, 3))
    tuned = fine_tune_panel(full, features, -labels, 290, LABEL, MODEL, specs(MODEL))
    again = fine_tune_panel(full, features, -labels, 290, LABEL, MODEL, specs(MODEL))
    assert np.array_equal(full.predict(features.values.reshape(-1, 3)), said)
    assert np.array_equal(tuned.predict(features.values[-1]), again.predict(features.values[-1]))
    for old, new in zip(full.members, tuned.members, strict=True):
        alone = [Ensemble((member,), features.names).predict(np.eye(3, dtype=np.float32)) for member in (old, new)]
        assert not np.array_equal(*alone)
    shown = [
        {int(n) for n in np.flatnonzero(np.array(member.booster.feature_importance()) > 0)}
        for member in (full.members[0], tuned.members[0])
    ]
    assert shown[1] <= shown[0], "a feature that was hidden while it learned stays hidden"


# --- the evening run


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    "A workspace whose champion learns on weekdays"
    monkeypatch.chdir(tmp_path)
    few = {"model.min_train": 3200, "model.fine_tune": 3, "model.fine_tune_sessions": 60}
    return prepare(tmp_path, SMALL | few)


def test_a_fine_tuned_fit_takes_over_and_answers_as_the_walk_does(lab: Lab) -> None:
    settings, engine, panel = lab.settings, lab.engine, load_bars(lab.settings)
    first = champion(settings, engine, panel)
    assert first is not None
    done = [fine_tune(settings, engine, session, NOW) for session in (*lab.sessions[1:4], lab.sessions[3])]
    assert [one.row.state.value for one in done] == ["champion"] * 4 and done[2].card.id == done[3].card.id
    assert {one.card.parent for one in done} == {first.id} and {one.row.recipe for one in done} == {first.recipe}
    assert done[0].row.reason == f"scheduled refit of {first.id} (first model, paper only)"
    assert done[2].row.reason == f"scheduled refit of {done[1].card.id} (first model, paper only)"
    base = read_meta(settings.models_dir / first.id)
    assert done[2].card.calibration == base.calibration and done[2].card.normal == base.normal
    assert done[2].card.trained_to > base.trained_to and done[2].card.as_of > base.as_of
    known = before_the_open(panel, lab.sessions[3])[0]
    inputs = lesson(known, settings).features
    tonight = FeatureSet(inputs.names, inputs.values[-1:])
    by_hand = fine_tune_panel(
        load_model(settings.models_dir, first.id)[0], inputs, lesson(known, settings).label,
        trainable_rows(len(known.index), settings.label.horizon, settings.model.embargo), settings.question,
        settings.model, specs(settings.model),
    )  # fmt: skip
    kept = load_model(settings.models_dir, done[2].card.id)[0]
    assert np.array_equal(predict_panel(kept, tonight), predict_panel(by_hand, tonight))


def test_the_next_full_fit_replaces_what_was_tuned(lab: Lab) -> None:
    "Also on the evening of a fine-tuning, when both have learned up to the same session"
    settings, engine = lab.settings, lab.engine
    tuned = fine_tune(settings, engine, lab.sessions[3], NOW)
    full = retrain(override(settings, {"model.lightgbm_rounds": "9"}), engine, lab.sessions[3], NOW)
    assert full.row.trained_to == tuned.row.trained_to and full.row.recipe == tuned.row.recipe
    assert full.row.state.value == "champion" and full.card.parent == "" and all(c.passed for c in full.checks)
    later = fine_tune(settings, engine, lab.sessions[4], NOW)
    assert later.card.parent == full.card.id


def test_a_fit_that_fails_its_checks_stays_a_candidate(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, engine = lab.settings, lab.engine
    before = champion(settings, engine, load_bars(settings))
    no = [Criterion("correlation with the fit before", "-0.30", "above 0", False)]
    monkeypatch.setattr("alpha_trader.training.refit_checks", lambda *parts: no)
    tuned = fine_tune(settings, engine, lab.sessions[2], NOW)
    now = champion(settings, engine, load_bars(settings))
    assert tuned.row.state.value == "candidate" and before is not None and now is not None and now.id == before.id
    with reading(engine) as db:
        assert not db.query(RiskEventRow).all(), "nobody has opened the account yet"
    open_account(engine, "demo", "sim", "sim", settings.broker.capital, NOW)
    fine_tune(settings, engine, lab.sessions[3], NOW)
    with reading(engine) as db:
        assert [row.kind for row in db.query(RiskEventRow)] == ["refit_refused"]


def test_the_recipe_of_the_champion_counts_not_the_settings(lab: Lab) -> None:
    settings, engine = override(lab.settings, {"model.fine_tune": "0"}), lab.engine
    tuned = fine_tune(settings, engine, lab.sessions[2], NOW)
    assert tuned.card.model.fine_tune == 3 and tuned.row.state.value == "champion"
    other = train(settings, engine, lab.sessions[2], NOW)
    assert other.row.state.value == "candidate"
    promote_by_hand(settings, engine, other.row.id, "no more trees", NOW)
    with pytest.raises(InputError, match="adds no trees between full fits"):
        fine_tune(lab.settings, engine, lab.sessions[3], NOW)


# --- the whole way


@pytest.mark.slow
def test_start_tunes_before_each_session_and_parity_holds(workspace: Path) -> None:
    edit_settings(workspace, LIVELY | {"model.fine_tune": 3, "model.fine_tune_sessions": 60, "model.min_train": 3200})
    answer = alpha_trader(workspace, "start")
    assert answer.code == 0, answer
    runs = store(workspace)["runs"]
    tuned = [run for run in runs if run["notebook"] == "finetune"]
    assert len(tuned) == 5 and {run["status"] for run in tuned} == {"succeeded"}
    models = store(workspace)["models"]
    assert len(models) == 6 and [row["state"] for row in models].count("champion") == 1
    again = alpha_trader(workspace, "start")
    assert again.code == 0 and "done before" in again.out and len(store(workspace)["models"]) == 6
    equal = alpha_trader(workspace, "parity", "--json")
    assert equal.code == 0, equal
    by_hand = alpha_trader(workspace, "run", "finetune", "--as-of", "2013-03-04", "--json")
    assert by_hand.code == 0 and by_hand.json()["status"] == "succeeded", by_hand
    report = Path(by_hand.json()["report"]).read_text()
    for words in ("full fit", "correlation with the fit before", "scheduled refit of", "Out of sample"):
        assert words in report, words


@pytest.mark.slow
def test_retraining_by_hand_and_a_recipe_without_trees(workspace: Path) -> None:
    edit_settings(workspace, LIVELY)
    assert alpha_trader(workspace, "run", "ingest").code == 0
    empty = alpha_trader(workspace, "run", "finetune")
    assert empty.code == 1 and "there is no champion" in empty.out and "Traceback" not in empty.out + empty.err
    assert alpha_trader(workspace, "run", "train", "-p", "session", "2013-02-01").code == 0
    plain = alpha_trader(workspace, "run", "finetune", "--as-of", "2013-03-04")
    assert plain.code == 2 and "adds no trees between full fits" in plain.out
    assert "Traceback" not in plain.out + plain.err
    edit_settings(workspace, {"model.min_train": 5000})
    nothing = alpha_trader(workspace, "run", "train", "-p", "session", "2013-02-04")
    assert nothing.code == 2 and "more than [model] min_train = 5000" in nothing.out, "nothing trainable at all"
    assert len(store(workspace)["models"]) == len(list((workspace / "models").glob("[0-9a-f]*"))) == 1
    edit_settings(workspace, {"model.min_train": 2900, "model.lightgbm_rounds": 7})
    done = alpha_trader(workspace, "run", "retrain", "--as-of", "2013-03-04", "--json")
    assert done.code == 0, done
    rows = store(workspace)["models"]
    assert len(rows) == 2 and len({row["recipe"] for row in rows}) == 1, "the champion's recipe, not the settings'"
    assert [row["state"] for row in rows].count("champion") == 1
    report = Path(done.json()["report"]).read_text()
    for words in ("answers on the newest sessions", "Sharpe ratio of the excess over buy-and-hold"):
        assert words in report, words


# --- what stays on the disk


def tuned_on(lab: Lab) -> set[str]:
    return set(tuned_models(lab.settings))


def test_old_fits_go_and_what_is_needed_stays(lab: Lab) -> None:
    "Champion, way back, what signed lately, full fits, young candidates and damaged folders stay; the rest goes, once"
    settings, engine = lab.settings, lab.engine
    first = champion(settings, engine, load_bars(settings))
    assert first is not None
    done = [fine_tune(settings, engine, day, NOW + timedelta(days=n)).card for n, day in enumerate(lab.sessions[1:7])]
    ids = [card.id for card in done]
    damaged = settings.models_dir / "0123456789ab"
    damaged.mkdir()
    open_account(engine, "demo", "sim", "sim", settings.broker.capital, NOW)
    with writing(engine) as db:
        day = lab.sessions[2]
        db.add(SignalRow(account="demo", session=day, symbol="A", action="HOLD", members={}, features={}, model_id=ids[1]))
    short = override(settings, {"model.keep_tuned": "5"})
    within = next_session(day, 5)
    assert tidy_models(short, engine, lab.sessions[5]) == {"fits with added trees": "6 kept"}
    tidy_models(short, engine, within)
    assert tuned_on(lab) == set(ids[1:]), "the second is as old as the first was, and signed"
    later = next_session(lab.sessions[6], 40)
    told = tidy_models(short, engine, later)
    assert tuned_on(lab) == {ids[4], ids[5]}, "the champion and the one before it"
    assert " removed (" in str(told) and f"before {previous_session(later, 5)}" in str(told)
    assert tidy_models(short, engine, later) == {"fits with added trees": "2 kept"} and damaged.is_dir()
    assert read_meta(settings.models_dir / first.id).parent == "" and not list(settings.models_dir.glob(".*removed*"))
    assert promote_by_hand(settings, engine, ids[4], "back", NOW).state.value == "champion"
    with pytest.raises(ModelError, match="there is no model"):
        promote_by_hand(settings, engine, ids[0], "too late", NOW)


def test_keeping_more_or_less_is_no_other_recipe(lab: Lab) -> None:
    before = champion(lab.settings, lab.engine, load_bars(lab.settings))
    other = override(lab.settings, {"model.keep_tuned": "9"})
    card = read_meta(lab.settings.models_dir / before.id) if before else None
    assert card is not None and recipe_id(card.model_copy(update={"model": other.model})) == recipe_id(card)
