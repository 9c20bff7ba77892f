"""Members: estimators of every kind, the forest's bits, shared bins, and the barriers against the fills page"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trader.confidence import consensus
from alpha_trader.domain import DataError, InputError, ModelError
from alpha_trader.features import FeatureSet
from alpha_trader.fills import stop_reference, target_reference
from alpha_trader.forest import ask, lightgbm_forest, xgboost_forest
from alpha_trader.labels import (
    barrier_returns,
    check_contract,
    classes,
    contract,
    label_returns,
    open_to_open,
    uniqueness,
)
from alpha_trader.models import (
    FORESTS,
    KINDS,
    Ensemble,
    Member,
    Rows,
    Spec,
    findings,
    first_bins,
    fit_member,
    fit_panel,
    library,
    predict_panel,
    predict_xgboost,
    specs,
    training_rows,
    usable_folds,
    walk_forward_predict,
    walk_forward_said,
)
from alpha_trader.registry import card_for, damaged_models, list_models, load_model, save_model
from alpha_trader.samples import Events, synthetic_panel
from alpha_trader.settings import FeatureSettings, LabelSettings, ModelSettings, load_settings, override
from alpha_trader.splits import Fold, gap

LABEL = LabelSettings(band=0.005)
SMALL = ModelSettings(lightgbm_rounds=10, xgboost_rounds=10, classifier_rounds=6, min_train=150, threads=2)
BARRIERS = LabelSettings(kind="triple_barrier", horizon=5, stop=-0.05, target=0.10)


def world(sessions: int = 400, symbols: int = 3, seed: int = 0) -> tuple[FeatureSet, np.ndarray, np.ndarray]:
    "Features, labels that follow the first of them, and business days"
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(sessions, symbols, 3)).astype(np.float32)
    labels = 0.01 * values[:, :, 0] + rng.normal(0, 0.005, size=(sessions, symbols))
    days = pd.bdate_range("2001-01-02", periods=sessions).to_numpy().astype("datetime64[D]")
    return FeatureSet(names=("lean", "calm", "noise"), values=values), labels, days


# -- the label's contract ----------------------------------------------------------------------------


def test_every_width_follows_from_the_label() -> None:
    for horizon in (1, 5, 21):
        label = LabelSettings(horizon=horizon)
        agreed = contract(label)
        assert agreed.purge == agreed.lag + agreed.holding == gap(horizon, 0)
        labels = open_to_open(np.arange(1.0, 101)[:, None], horizon)
        assert np.isfinite(labels[: 100 - agreed.purge]).all() and np.isnan(labels[100 - agreed.purge :]).all()


@pytest.mark.parametrize(
    "claim", [{"starts": 0}, {"starts": -5}, {"holding": 4}, {"holding": 6}, {"gap": 5}, {"gap": 0}]
)
def test_a_contradiction_refuses_in_one_line(claim: dict) -> None:
    with pytest.raises(InputError) as caught:
        check_contract(LabelSettings(horizon=5), **claim)
    assert "\n" not in str(caught.value)


def test_a_training_whose_gap_is_too_short_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, days = world()
    monkeypatch.setattr("alpha_trader.models.walk_forward", lambda *_: [Fold(200, 205, 400)])
    with pytest.raises(InputError, match="5 rows between training and test are too few"):
        walk_forward_predict(features, labels, days, LABEL, SMALL)


def test_the_plans_exits_are_the_labels_barriers() -> None:
    base = override(
        load_settings(), {"label.kind": "triple_barrier", "risk.stop_loss": "-0.03", "risk.take_profit": "0.2"}
    )
    assert (base.question.stop, base.question.target) == (-0.03, 0.2)
    assert override(base, {"label.stop": "-0.01"}).question.stop == -0.01
    assert override(base, {"risk.stop_loss": "-0.04"}).question.stop == -0.04  # nothing was frozen in between


def by_the_fills_page(opens, highs, lows, first: int, last: int, stop: float, target: float) -> float:
    "The same trade, judged bar by bar with the functions that backtest and broker use"
    low, high = opens[first] * (1 + stop), opens[first] * (1 + target)
    for row in range(first, last):
        for sold in (stop_reference(opens[row], lows[row], low), target_reference(opens[row], highs[row], high)):
            if not np.isnan(sold):
                return sold / opens[first] - 1
    return opens[last] / opens[first] - 1


@settings(max_examples=60)
@given(
    st.integers(0, 9999), st.integers(1, 8), st.floats(-0.2, -0.005), st.floats(0.005, 0.2), st.floats(0.005, 0.08)
)
def test_barriers_are_those_of_the_fills(seed: int, horizon: int, stop: float, target: float, wild: float) -> None:
    rng = np.random.default_rng(seed)
    opens = 50 * np.exp(np.cumsum(rng.normal(0, wild, size=(30, 2)), axis=0))
    closes = opens * np.exp(rng.normal(0, wild, size=opens.shape))
    highs = np.maximum(opens, closes) * (1 + rng.random(opens.shape) * wild)
    lows = np.minimum(opens, closes) * (1 - rng.random(opens.shape) * wild)
    holes = rng.random(opens.shape) < 0.1
    for prices in (opens, highs, lows):
        prices[holes] = np.nan
    found = barrier_returns(opens, highs, lows, horizon, stop, target)
    assert np.array_equal(np.isnan(found), np.isnan(open_to_open(opens, horizon)))
    for row, n in zip(*np.nonzero(np.isfinite(found)), strict=True):
        told = by_the_fills_page(opens[:, n], highs[:, n], lows[:, n], row + 1, row + 1 + horizon, stop, target)
        assert np.isclose(found[row, n], told, rtol=0, atol=1e-12)


def test_barriers_ignore_splits_and_other_symbols_and_the_future() -> None:
    quiet = synthetic_panel(symbols=3, sessions=120)
    split = synthetic_panel(symbols=3, sessions=120, events=Events(splits=(("SYNA", 60, 2.0),)))
    plain, eventful = label_returns(quiet, BARRIERS), label_returns(split, BARRIERS)
    assert np.nanmax(np.abs(plain - eventful)) < 2e-3
    cut = label_returns(split.upto(split.sessions[80].item()), BARRIERS)
    known = 81 - contract(BARRIERS).purge
    assert np.array_equal(cut[:known], eventful[:known], equal_nan=True) and np.isnan(cut[known:]).all()


def test_db_11_barriers_and_excess_never_stack_symbols() -> None:
    levels = np.outer(np.ones(40), [10.0, 500.0])
    assert np.nanmax(np.abs(barrier_returns(levels, levels, levels, 5, -0.05, 0.1))) == 0
    stacked = levels.T.reshape(-1, 1)
    assert (
        np.nanmax(np.abs(barrier_returns(stacked, stacked, stacked, 5, -0.05, 0.1))) > 40
    )  # the old rule: a level jump


def test_classes_by_barrier_are_stop_time_and_target() -> None:
    returns = label_returns(synthetic_panel(symbols=4, sessions=400), BARRIERS)
    known = returns[np.isfinite(returns)]
    found = classes(known, BARRIERS)
    assert (known[found == 0] <= -0.05).all() and (known[found == 2] >= 0.10).all()
    assert ((known[found == 1] > -0.05) & (known[found == 1] < 0.10)).all()


@settings(max_examples=40)
@given(st.integers(0, 9999), st.integers(1, 6))
def test_uniqueness_by_its_definition(seed: int, horizon: int) -> None:
    known = np.random.default_rng(seed).random((25, 2)) < 0.6
    spans = [[set(range(t + 1, t + 1 + horizon)) for t in np.flatnonzero(known[:, n])] for n in range(2)]
    for n in range(2):
        expected = [np.mean([1 / sum(row in other for other in spans[n]) for row in span]) for span in spans[n]]
        assert np.allclose(uniqueness(known, horizon)[known[:, n], n], expected)
    assert (uniqueness(known, horizon)[~known] == 0).all()


# -- the forest ----------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.integers(0, 9999), st.sampled_from([2, 20, 32]), st.booleans(), st.sampled_from(["regression", "multiclass"])
)
def test_lightgbm_to_the_last_bit(seed: int, leaves: int, holes: bool, objective: str) -> None:
    rng = np.random.default_rng(seed)
    x = (
        rng.integers(-3, 4, size=(600, 4)).astype(np.float32) * np.float32(0.1)
        if seed % 2
        else rng.normal(size=(600, 4)).astype(np.float32)
    )
    y = rng.integers(0, 3, 600) if objective == "multiclass" else x[:, 0] + rng.normal(size=600)
    learnt = np.where(rng.random(x.shape) < 0.2, np.nan, x) if holes else x
    lightgbm = library("lightgbm")
    parameters = {
        "objective": objective,
        "num_leaves": leaves,
        "min_child_samples": 2,
        "verbosity": -1,
        "num_threads": 1,
        "seed": seed,
    }
    parameters |= {"num_class": 3} if objective == "multiclass" else {}
    booster = lightgbm.train(parameters, lightgbm.Dataset(learnt, y), num_boost_round=7)
    forest = lightgbm_forest(booster.model_to_string())
    assert forest is not None
    assert np.array_equal(ask(forest, x), booster.predict(x, raw_score=True).reshape(600, -1).T)
    edges = np.repeat(forest.threshold, 4).reshape(-1, 4)[:500]  # rows on the very thresholds, and one float beside
    for beside in (edges, np.nextafter(edges, np.float32(9)), np.nextafter(edges, np.float32(-9))):
        if len(beside):
            assert np.array_equal(
                ask(forest, beside), booster.predict(beside, raw_score=True).reshape(len(beside), -1).T
            )


@pytest.mark.parametrize(
    "change", [{"zero_as_missing": True}, {"num_leaves": 40}, {"linear_tree": True}, {"reg_sqrt": True}]
)
def test_what_a_forest_cannot_say_stays_with_lightgbm(change: dict) -> None:
    rng = np.random.default_rng(0)
    x = np.where(rng.random((900, 3)) < 0.3, 0.0, rng.normal(size=(900, 3))).astype(np.float32)
    lightgbm = library("lightgbm")
    parameters = {"objective": "regression", "verbosity": -1, "min_child_samples": 2, "num_threads": 1, **change}
    y = np.abs(x).sum(axis=1)
    booster = lightgbm.train(parameters, lightgbm.Dataset(x, y, params=parameters), num_boost_round=4)
    content = KINDS["lightgbm"].dump(booster)
    assert lightgbm_forest(content.decode()) is None
    loaded = KINDS["lightgbm"].load(content)
    assert np.array_equal(Member("lightgbm", 1, loaded).predict(x), booster.predict(x))


@settings(max_examples=25)
@given(st.integers(0, 9999), st.integers(1, 5), st.booleans())
def test_xgboost_to_the_last_bit(seed: int, depth: int, holes: bool) -> None:
    rng = np.random.default_rng(seed)
    x = (
        rng.integers(-3, 4, size=(600, 4)).astype(np.float32) * np.float32(0.1)
        if seed % 2
        else rng.normal(size=(600, 4)).astype(np.float32)
    )
    learnt = np.where(rng.random(x.shape) < 0.2, np.nan, x) if holes else x
    xgboost = library("xgboost")
    data = xgboost.DMatrix(learnt, x[:, 0] + rng.normal(size=600))
    booster = xgboost.train(
        {"max_depth": depth, "nthread": 1, "seed": seed, "tree_method": "hist"}, data, num_boost_round=7
    )
    forest = xgboost_forest(bytes(booster.save_raw("json")))
    assert forest is not None and np.array_equal(ask(forest, x)[0], booster.inplace_predict(x))
    edges = np.repeat(forest.threshold, 4).reshape(-1, 4)
    for beside in (edges, np.nextafter(edges, np.float32(9)), np.nextafter(edges, np.float32(-9))):
        if len(beside):
            assert np.array_equal(ask(forest, beside)[0], booster.inplace_predict(beside))


@pytest.mark.parametrize("change", [{"max_depth": 7}, {"booster": "dart"}, {"objective": "reg:pseudohubererror"}])
def test_what_a_forest_cannot_say_stays_with_xgboost(change: dict) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3)).astype(np.float32)
    xgboost = library("xgboost")
    booster = xgboost.train({"nthread": 1, **change}, xgboost.DMatrix(x, rng.normal(size=4000)), num_boost_round=3)
    loaded = KINDS["xgboost"].load(KINDS["xgboost"].dump(booster))
    assert FORESTS[loaded] is None
    assert np.array_equal(predict_xgboost(loaded, x, 1), booster.inplace_predict(x))


def test_a_loaded_ensemble_answers_bit_for_bit_as_the_fitted_one() -> None:
    features, labels, _ = world()
    model = SMALL.model_copy(update={"members": ("lightgbm", "xgboost", "classifier")})
    fitted = fit_panel(features, labels, 350, LABEL, model)
    members = tuple(
        Member(old.kind, old.seed, KINDS[old.kind].load(KINDS[old.kind].dump(old.booster))) for old in fitted.members
    )
    again = Ensemble(members, fitted.features)
    before, after = predict_panel(fitted, features), predict_panel(again, features)
    assert np.array_equal(before[:4], after[:4])
    assert np.allclose(before[4:], after[4:], rtol=0, atol=1e-15)  # the softmax is ours
    assert np.array_equal(predict_panel(again, FeatureSet(features.names, features.values[-1:]))[:, 0], after[:, -1])


# -- bins ------------------------------------------------------------------------------------------------


def test_no_bin_knows_anything_later() -> None:
    features, labels, days = world()
    before = walk_forward_predict(features, labels, days, LABEL, SMALL)
    fold = usable_folds(features, labels, days, LABEL, SMALL)[0]
    values, changed = features.values.copy(), labels.copy()
    values[fold.test_stop :], changed[fold.train_stop :] = 1e6, 1.0
    after = walk_forward_predict(FeatureSet(features.names, values), changed, days, LABEL, SMALL)
    rows = slice(fold.test_start, fold.test_stop)
    assert np.isfinite(before[:, rows]).all() and np.array_equal(before[:, rows], after[:, rows])


def test_a_walk_forward_finds_its_bins_afresh() -> None:
    "Borders of a quiet first window would put all values of a wild market into the outermost bins"
    features, labels, days = world(sessions=900, seed=4)
    wild = features.values.copy()
    wild[:300] *= 0.01  # a hundred times as quiet
    labels[:300] = labels[300:600]
    inputs = FeatureSet(features.names, wild)
    model = SMALL.model_copy(update={"lightgbm_rounds": 60, "xgboost_rounds": 60, "min_train": 250})
    walked = consensus(walk_forward_predict(inputs, labels, days, LABEL, model))
    fold = usable_folds(inputs, labels, days, LABEL, model)[-1]
    test = slice(fold.test_start, fold.test_stop)
    shared = training_rows(inputs, labels, fold.train_stop, LABEL, bins=first_bins(inputs, labels, model))
    stale = Ensemble(tuple(fit_member(spec, shared) for spec in specs(model)), inputs.names)
    others = consensus(stale.predict(wild[test].reshape(-1, 3))).reshape(-1, 3)
    ours, theirs = (np.corrcoef(said.ravel(), wild[test, :, 0].ravel())[0, 1] for said in (walked[test], others))
    assert ours > 0.95 > 0.85 > theirs


def test_seeds_of_a_kind_share_one_copy_of_the_rows_and_nothing_changes() -> None:
    features, labels, days = world()
    fold = usable_folds(features, labels, days, LABEL, SMALL)[0]
    walked = walk_forward_predict(features, labels, days, LABEL, SMALL)
    for layer, spec in enumerate(specs(SMALL)):
        member = fit_member(spec, training_rows(features, labels, fold.train_stop, LABEL))
        test = features.values[fold.test_start : fold.test_stop]
        said = member.predict(test.reshape(-1, 3)).reshape(test.shape[:2])
        assert np.array_equal(walked[layer, fold.test_start : fold.test_stop], said)


def test_a_studys_bins_are_of_the_first_window_alone() -> None:
    features, labels, _ = world()
    whole, early = (
        first_bins(FeatureSet(features.names, features.values[:stop]), labels[:stop], SMALL) for stop in (400, 200)
    )
    assert whole["lightgbm"].num_data() == early["lightgbm"].num_data() == 450
    assert np.array_equal(whole["xgboost"].get_quantile_cut()[1], early["xgboost"].get_quantile_cut()[1])


# -- diversity, weights, classes -----------------------------------------------------------------------


def test_windows_features_and_thinning_make_different_members() -> None:
    features, labels, _ = world()
    plain = predict_panel(fit_panel(features, labels, 350, LABEL, SMALL), features)
    for change in ({"windows": (60,)}, {"feature_share": 0.4}, {"max_rows": 300}, {"uniqueness": True}):
        other = SMALL.model_copy(update=change)
        first, again = (predict_panel(fit_panel(features, labels, 350, LABEL, other), features) for _ in range(2))
        assert np.array_equal(first, again) and not np.array_equal(first, plain), change
        walked = walk_forward_predict(features, labels, world()[2], LABEL, other)
        assert np.isfinite(walked[:, -1]).all()


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost", "classifier"])
def test_rows_without_weight_teach_nothing(kind: str) -> None:
    "Half of the rows say the opposite; what is learned follows the half that weighs something"
    rng = np.random.default_rng(1)
    x = rng.normal(size=(800, 2)).astype(np.float32)
    truth = np.where(np.arange(800) < 400, x[:, 0], -x[:, 0]).astype(np.float64)
    for heavy in (np.arange(800) < 400, np.arange(800) >= 400):
        weight = np.where(heavy, 1.0, 1e-6).astype(np.float32)
        rows = Rows(x, truth, ("a", "b"), classes(truth, LABEL), weight=weight)
        said = KINDS[kind].predict(KINDS[kind].fit(rows, Spec(kind, 1, 30)), x, 1)
        assert np.corrcoef(said[heavy], truth[heavy])[0, 1] > 0.7


def test_the_classifier_answers_with_the_sum_of_probability_times_worth() -> None:
    features, labels, days = world()
    model = SMALL.model_copy(update={"members": ("classifier", "lightgbm")})
    ensemble = fit_panel(features, labels, 350, LABEL, model)
    x = features.values.reshape(-1, 3)
    likely = ensemble.probabilities(x)
    assert likely.shape == (2, 1200, 3) and np.allclose(likely.sum(axis=2), 1)
    rows = training_rows(features, labels, 350, LABEL)
    worth = [rows.y[rows.way == way].mean() for way in range(3)]
    assert np.allclose(ensemble.members[0].booster.worth, worth)
    assert np.allclose(ensemble.predict(x)[0], likely[0] @ worth)
    said = walk_forward_said(features, labels, days, LABEL, model)
    assert said.returns.shape == (4, 400, 3) and said.probabilities.shape == (2, 400, 3, 3)
    assert np.array_equal(np.isnan(said.probabilities[0, ..., 0]), np.isnan(said.returns[0]))


def test_db_13_probabilities_are_not_rebalanced() -> None:
    "Balanced class weights make a rare class as likely as a common one; ours answers with its base rate"
    rng = np.random.default_rng(2)
    features = FeatureSet(("a",), rng.normal(size=(800, 3, 1)).astype(np.float32))
    labels = np.where(rng.random((800, 3)) < 0.05, 0.05, 0.0)  # up in one case of twenty, from nothing
    model = SMALL.model_copy(update={"members": ("classifier",), "classifier_rounds": 20})
    likely = fit_panel(features, labels, 800, LabelSettings(clip=0.0), model).probabilities(
        features.values.reshape(-1, 1)
    )
    assert abs(likely[..., 2].mean() - 0.05) < 0.02


# -- odd rows ------------------------------------------------------------------------------------------


def test_troubles_are_named_by_symbol_and_the_rest_goes_on() -> None:
    features, labels, days = world(symbols=6)
    values = features.values
    values[:, 0] = np.nan  # nothing at all
    values[:, 1, 1] = 3.0  # stuck
    values[7, 2, 2] = np.inf
    values[40:, 3, 0] = np.nan  # a handful of rows
    labels[:, 4] = 0.0  # one class
    odd = findings(features, labels, 350, tuple("ABCDEF"), LABEL)
    said = odd.groupby("symbol")["finding"].apply("; ".join).to_dict()
    assert said == {
        "A": "no value of lean, calm, noise; no complete row, it is left out",
        "B": "calm never changes",
        "C": "1 rows with infinite values are left out",
        "D": "only 40 complete rows",
        "E": "every label is of one class",
    }
    assert np.isfinite(walk_forward_predict(features, labels, days, LABEL, SMALL)[:, -1, 5]).all()


@pytest.mark.parametrize("pooled", [True, False])
def test_nothing_trainable_is_a_data_error(pooled: bool) -> None:
    features, labels, days = world()
    model = SMALL.model_copy(update={"pooled": pooled})
    for values, known in (
        (np.full_like(features.values, np.nan), labels),
        (features.values, np.full_like(labels, np.nan)),
    ):
        with pytest.raises(DataError) as caught:
            fit_panel(FeatureSet(features.names, values), known, 350, LABEL, model, symbols=("A", "B", "C"))
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError):
            walk_forward_predict(FeatureSet(features.names, values), known, days, LABEL, model)


def test_one_class_everywhere_refuses_the_classifier_by_name() -> None:
    features, labels, _ = world()
    with pytest.raises(
        ModelError, match=r"classifier-\d+ could not be fitted on 1,050 rows: all labels are of one class"
    ):
        fit_panel(
            features, labels, 350, LabelSettings(band=0.9), SMALL.model_copy(update={"members": ("classifier",)})
        )


def test_each_symbol_by_itself_learns_from_nobody_else() -> None:
    features, labels, days = world()
    apart = SMALL.model_copy(update={"pooled": False})
    before = walk_forward_predict(features, labels, days, LABEL, apart)
    assert before.shape == (4, 400, 3) and np.isfinite(before[:, -1]).all()
    stranger, other = labels.copy(), FeatureSet(features.names, features.values.copy())
    stranger[:, 1:], other.values[:, 1:] = 1.0, 5.0
    assert np.array_equal(
        before[:, :, 0], walk_forward_predict(other, stranger, days, LABEL, apart)[:, :, 0], equal_nan=True
    )
    with pytest.raises(InputError, match="needs the 3 symbols' names"):
        fit_panel(features, labels, 350, LABEL, apart)


# -- registry --------------------------------------------------------------------------------------------

TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_members import saved_model
print("ready", flush=True)
for seed in range(1000):
    saved_model(Path({folder!r}), seed)
"""


def saved_model(folder: Path, seed: int) -> str:
    "Fit and save one model of every kind, pooled or not"
    from datetime import UTC, datetime

    panel = synthetic_panel(symbols=3, sessions=160, seed=7)
    features, labels = FeatureSet(("a", "b", "c"), world(160, seed=seed)[0].values), label_returns(panel, LABEL)
    model = SMALL.model_copy(
        update={"members": ("lightgbm", "xgboost", "classifier"), "pooled": bool(seed % 2), "threads": 1}
    )
    ensemble = fit_panel(features, labels, 150, LABEL, model, symbols=panel.symbols)
    card = card_for(
        ensemble, panel, features, labels, 150, FeatureSettings(), LABEL, model, {}, datetime(2024, 1, 2, tzinfo=UTC)
    )
    return save_model(ensemble, folder, card)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_kind_of_member_comes_back_from_the_registry(tmp_path: Path, seed: int) -> None:
    ensemble, card = load_model(tmp_path, saved_model(tmp_path, seed))
    assert card.reference["a"].quantiles == tuple(sorted(card.reference["a"].quantiles))
    assert card.libraries.keys() == {"lightgbm", "xgboost"}
    features = FeatureSet(("a", "b", "c"), world(160, seed=seed)[0].values)
    said = predict_panel(ensemble, features, symbols=("SYNA", "SYNB", "SYNC"))
    assert said.shape == (6, 160, 3) and np.isfinite(said).all()
    meta = json.loads((tmp_path / card.id / "meta.json").read_text())
    assert meta["card"]["trials"] == 0 and meta["card"]["calibration"] == {}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_da_13_kill_9_in_the_middle_of_trainings_leaves_only_whole_models(tmp_path: Path) -> None:
    "System A deleted the old files before the new ones were valid; here everything listed loads, whenever the run died"
    code = TRAIN.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    root = Path(sys.modules["alpha_trader"].__file__ or "").parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for delay in (0.3, 0.7, 1.1):
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        before = set(tmp_path.iterdir())
        while len(set(tmp_path.iterdir()) - before) < 1 and child.poll() is None and delay > 1:
            time.sleep(0.01)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert damaged_models(tmp_path) == {}
        for card in list_models(tmp_path):
            assert load_model(tmp_path, card.id)[1] == card
    assert list_models(tmp_path)
