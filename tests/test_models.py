"""Models and confidence: sameness, absences and leaks of `07_models` and `07a_confidence`"""

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alpha_trader.confidence import agreement, answers, consensus, rank_ic, scores, spaced_t
from alpha_trader.domain import DataError, InputError, ModelError
from alpha_trader.features import FeatureSet
from alpha_trader.labels import forward_return
from alpha_trader.models import (
    KINDS,
    LIGHTGBM,
    XGBOOST,
    Ensemble,
    Kind,
    Member,
    Rows,
    Spec,
    complete_rows,
    feature_gain,
    fit_member,
    fit_panel,
    library,
    predict_panel,
    run_jobs,
    specs,
    train_ensemble,
    training_rows,
    usable_folds,
    walk_forward_predict,
)
from alpha_trader.samples import synthetic_panel
from alpha_trader.settings import LabelSettings, ModelSettings
from alpha_trader.splits import trainable_rows

LABEL = LabelSettings()
SMALL = ModelSettings(lightgbm_rounds=12, xgboost_rounds=12, min_train=200, threads=2)


def tiny_world(sessions: int = 520, symbols: int = 3, seed: int = 0) -> tuple[FeatureSet, np.ndarray, np.ndarray]:
    "Features, labels that follow the first of them, and business days"
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(sessions, symbols, 3)).astype(np.float32)
    labels = 0.01 * values[:, :, 0] + rng.normal(0, 0.005, size=(sessions, symbols))
    labels[-6:] = np.nan  # not known yet
    days = pd.bdate_range("2001-01-02", periods=sessions).to_numpy().astype("datetime64[D]")
    return FeatureSet(names=("lean", "calm", "noise"), values=values), labels, days


# -- the recipe of System A ------------------------------------------------------------------------


def test_a_06_and_a_07_parameters_to_the_digit() -> None:
    a06 = {"objective": "regression", "metric": "rmse", "num_leaves": 20, "learning_rate": 0.05,
           "feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l1": 0.1, "lambda_l2": 0.1,
           "max_depth": 7, "min_child_samples": 20}  # fmt: skip
    a07 = {"objective": "reg:squarederror", "learning_rate": 0.05, "max_depth": 5, "subsample": 0.8,
           "colsample_bytree": 0.8}  # fmt: skip
    assert {key: LIGHTGBM[key] for key in a06} == a06
    assert {key: XGBOOST[key] for key in a07} == a07
    assert (ModelSettings().lightgbm_rounds, ModelSettings().xgboost_rounds) == (500, 300)


def test_the_libraries_took_our_parameters() -> None:
    features, labels, _ = tiny_world()
    rows = training_rows(features, labels, 500, LABEL)
    light, _, xtreme, _ = train_ensemble(rows, specs(ModelSettings(lightgbm_rounds=7, xgboost_rounds=9))).members
    text = KINDS["lightgbm"].dump(light.booster).decode()
    for line in ("num_leaves: 20", "max_depth: 7", "lambda_l1: 0.1", "bagging_freq: 1", "seed: 42", "num_threads: 1",
                 "feature_names=lean calm noise"):  # fmt: skip
        assert line in text
    assert light.booster.num_trees() == 7
    assert xtreme.booster.num_boosted_rounds() == 9
    assert '"max_depth":"5"' in xtreme.booster.save_config()


def test_a_08_two_of_each_in_a_fixed_order() -> None:
    names = [f"{spec.kind}-{spec.seed}" for spec in specs(ModelSettings())]
    assert names == ["lightgbm-42", "lightgbm-84", "xgboost-42", "xgboost-84"]


# -- sameness ----------------------------------------------------------------------------------------


def test_threads_and_repetition_change_no_byte() -> None:
    features, labels, _ = tiny_world()
    rows, wanted = training_rows(features, labels, 500, LABEL), specs(SMALL)
    runs = [train_ensemble(rows, wanted, threads) for threads in (1, 2, 4, 2)]
    dumps = [[KINDS[member.kind].dump(member.booster) for member in run.members] for run in runs]
    assert dumps.count(dumps[0]) == len(dumps)
    assert len({bytes(dump) for dump in dumps[0]}) == 4  # four different members


@pytest.mark.parametrize("threads", [1, 3])
def test_walk_forward_is_the_same_on_any_number_of_threads(threads: int) -> None:
    features, labels, days = tiny_world()
    expected = walk_forward_predict(features, labels, days, LABEL, SMALL)
    again = walk_forward_predict(features, labels, days, LABEL, SMALL.model_copy(update={"threads": threads}))
    assert np.array_equal(expected, again, equal_nan=True)
    assert np.isfinite(expected[:, -1]).all()


def test_walk_forward_and_fit_panel_are_one_training() -> None:
    "What is sold on the walk-forward's score is what is fitted for tomorrow"
    features, labels, days = tiny_world()
    walked = walk_forward_predict(features, labels, days, LABEL, SMALL)
    fold = usable_folds(features, labels, days, LABEL, SMALL)[-1]
    alone = predict_panel(fit_panel(features, labels, fold.train_stop, LABEL, SMALL), features)
    assert np.array_equal(walked[:, fold.test_start :], alone[:, fold.test_start :])


def test_threads_of_a_prediction_change_nothing() -> None:
    features, labels, _ = tiny_world()
    ensemble = fit_panel(features, labels, 500, LABEL, SMALL)
    assert np.array_equal(predict_panel(ensemble, features, 1), predict_panel(ensemble, features, 2))


def test_importing_the_modules_imports_no_library() -> None:
    code = (
        "import sys, alpha_trader.models, alpha_trader.registry, alpha_trader.confidence;"
        "print(sorted({'lightgbm', 'xgboost', 'sklearn', 'matplotlib', 'vectorbt'} & set(sys.modules)))"
    )
    root = Path(sys.modules["alpha_trader"].__file__ or "").parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_the_users_own_wait_policy_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    library("lightgbm")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    library("lightgbm")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


# -- no leaks ----------------------------------------------------------------------------------------


def test_nothing_after_the_cut_reaches_a_fold() -> None:
    features, labels, days = tiny_world()
    first = usable_folds(features, labels, days, LABEL, SMALL)[0]
    before = walk_forward_predict(features, labels, days, LABEL, SMALL)
    values, changed = features.values.copy(), labels.copy()
    values[first.train_stop : first.test_start] = 9.0  # the gap
    changed[first.train_stop :] = 1.0  # every later label
    after = walk_forward_predict(FeatureSet(features.names, values), changed, days, LABEL, SMALL)
    rows = slice(first.test_start, first.test_stop)
    assert np.array_equal(before[:, rows], after[:, rows])
    changed[first.train_stop - 1] = 1.0  # one row earlier does reach it
    reached = walk_forward_predict(FeatureSet(features.names, values), changed, days, LABEL, SMALL)
    assert not np.array_equal(before[:, rows], reached[:, rows])


def test_cutting_off_the_future_changes_no_forecast() -> None:
    features, labels, days = tiny_world()
    full = walk_forward_predict(features, labels, days, LABEL, SMALL)
    cut = FeatureSet(features.names, features.values[:-60])
    known = labels[:-60].copy()
    known[-6:] = np.nan
    assert np.array_equal(
        walk_forward_predict(cut, known, days[:-60], LABEL, SMALL), full[:, :-60], equal_nan=True
    )


def test_da_5_nothing_is_filled_in() -> None:
    features, labels, _ = tiny_world()
    features.values[:20] = np.nan  # warm-up
    features.values[30, 1, 2] = np.inf
    labels[40, 0] = np.nan
    rows = training_rows(features, labels, 100, LabelSettings(clip=0.0))
    x, y = rows.x, rows.y
    assert x.shape == (80 * 3 - 2, 3) and y.shape == (80 * 3 - 2,)
    assert x.flags["C_CONTIGUOUS"] and x.dtype == np.float32
    assert np.isfinite(x).all() and np.isfinite(y).all()
    assert np.array_equal(y, labels[:100][complete_rows(features, labels)[:100]])


def test_a_05_clipping_is_per_symbol_and_on_used_rows_only() -> None:
    features, labels, _ = tiny_world()
    labels[:, 2] *= 50  # a wild symbol must not widen the others' limits
    labels[10, 0] = 5.0
    features.values[10, 0, 0] = np.nan  # unusable row: its label must not count
    y = training_rows(features, labels, 400, LABEL).y
    used = complete_rows(features, labels)[:400]
    column = np.broadcast_to(np.arange(3), used.shape)[used]
    for symbol in range(3):
        raw = labels[:400, symbol][used[:, symbol]]
        low, high = np.quantile(raw, [0.02, 0.98])
        assert np.allclose(y[column == symbol], np.clip(raw, low, high), rtol=1e-12)


def test_da_13_a_walk_forward_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    features, labels, days = tiny_world()
    walk_forward_predict(features, labels, days, LABEL, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_on_a_random_walk_the_walk_forward_finds_little() -> None:
    "DA-4: in sample the same ensemble looks brilliant on pure noise"
    panel = synthetic_panel(symbols=6, sessions=800, seed=3)
    labels = forward_return(panel, 5)
    noise = np.random.default_rng(3).normal(size=(800, 6, 8)).astype(np.float32)
    features = FeatureSet(names=tuple(f"noise_{n}" for n in range(8)), values=noise)
    model = SMALL.model_copy(update={"lightgbm_rounds": 80, "xgboost_rounds": 80})
    outside = scores(consensus(walk_forward_predict(features, labels, panel.sessions, LABEL, model)), labels, 5)
    fitted = fit_panel(features, labels, trainable_rows(800, 5, 2), LABEL, model)
    inside = scores(consensus(predict_panel(fitted, features)), labels, 5)
    assert inside["rank_ic"] > 0.3
    assert abs(outside["rank_ic_t"]) < 3


# -- absences ----------------------------------------------------------------------------------------


def failing(*_: object) -> np.ndarray:
    raise RuntimeError("out of order\nand a second line")


@pytest.fixture
def odd_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    "Kinds that fail, answer infinity, or always say the same"
    def kind(predict):
        return Kind(lambda *_: None, predict, lambda _: {}, lambda _: b"", lambda _: None, "txt", {})

    monkeypatch.setitem(KINDS, "broken", kind(failing))
    monkeypatch.setitem(KINDS, "endless", kind(lambda _, x, __: np.full(len(x), np.inf)))
    monkeypatch.setitem(KINDS, "flat", kind(lambda _, x, __: np.full(len(x), 0.01)))


@pytest.mark.parametrize("absent", ["broken", "endless"])
def test_da_3_a_failed_member_is_absent_and_never_zero(odd_kinds: None, absent: str) -> None:
    members = tuple(Member(kind, 1, None) for kind in ("flat", "flat", "flat", absent))
    warned = pytest.warns(RuntimeWarning, match=r"broken-1 gave no answer: out of order$")
    with warned if absent == "broken" else nullcontext():
        found = Ensemble(members, ("a",)).predict(np.zeros((5, 1), np.float32))
    assert answers(found).tolist() == [3] * 5
    assert np.allclose(consensus(found), 0.01)
    assert not np.allclose(np.nan_to_num(found).mean(axis=0), 0.01)  # the old rule
    assert np.allclose(agreement(found), 0.95)


@pytest.mark.filterwarnings("ignore:broken-1")
def test_da_3_a_lone_survivor_has_no_agreement(odd_kinds: None) -> None:
    members = tuple(Member(kind, 1, None) for kind in ("flat", "broken", "broken", "broken"))
    found = Ensemble(members, ("a",)).predict(np.zeros((2, 1), np.float32))
    assert np.isnan(agreement(found)).all()
    present = found[np.isfinite(found)]
    assert 1 - min(np.std(present) / 0.01, 0.9) > 0.7  # the old rule trusts it (and writes 0.95)


def test_a_member_that_cannot_be_fitted_stops_the_training(odd_kinds: None) -> None:
    KINDS["broken"] = Kind(failing, failing, dict, bytes, bytes, "txt", {})
    with pytest.raises(ModelError, match=r"broken-1 could not be fitted on 3 rows: out of order$"):
        fit_member(Spec("broken", 1, 10), Rows(np.zeros((3, 1), np.float32), np.zeros(3), ("a",)))


def test_a_row_with_a_hole_gets_no_forecast_and_disturbs_no_other() -> None:
    features, labels, _ = tiny_world()
    ensemble = fit_panel(features, labels, 500, LABEL, SMALL)
    whole = predict_panel(ensemble, features)
    values = features.values.copy()
    values[3, 1, 2], values[4, 0, 0] = np.nan, -np.inf
    holed = predict_panel(ensemble, FeatureSet(features.names, values))
    same = np.ones(whole.shape, bool)
    same[:, 3, 1] = same[:, 4, 0] = False
    assert np.isnan(holed[~same]).all()
    assert np.array_equal(holed[same], whole[same])


def test_a_symbol_without_history_is_left_out_and_the_rest_goes_on() -> None:
    features, labels, days = tiny_world()
    features.values[:, 2] = np.nan
    walked = walk_forward_predict(features, labels, days, LABEL, SMALL)
    assert np.isnan(walked[:, :, 2]).all()
    assert np.isfinite(walked[:, -1, :2]).all()


def test_constant_features_train_and_have_no_gain() -> None:
    features, labels, _ = tiny_world()
    flat = FeatureSet(features.names, np.ones_like(features.values))
    ensemble = fit_panel(flat, labels, 500, LABEL, SMALL)
    assert feature_gain(ensemble) == {"calm": 0.0, "lean": 0.0, "noise": 0.0}
    assert np.ptp(predict_panel(ensemble, flat)[0]) == 0.0


def test_nothing_to_learn_from_is_one_line() -> None:
    features, labels, days = tiny_world()
    empty = np.full_like(labels, np.nan)
    for attempt in (
        partial(fit_panel, features, empty, 500, LABEL, SMALL),
        partial(walk_forward_predict, features, empty, days, LABEL, SMALL),
        partial(fit_panel, features, labels, 20, LABEL, SMALL),
    ):
        with pytest.raises(DataError) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="519 sessions, 520 labels"):
        walk_forward_predict(features, labels, days[:-1], LABEL, SMALL)


def test_folds_without_rows_are_left_out_at_the_start() -> None:
    features, labels, days = tiny_world()
    assert len(usable_folds(features, labels, days, LABEL, SMALL)) == 1
    early = SMALL.model_copy(update={"refit": "monthly"})
    folds = usable_folds(features, labels, days, LABEL, early)
    features.values[:400] = np.nan  # listed late
    late = usable_folds(features, labels, days, LABEL, early)
    assert late == [fold for fold in folds if fold.train_stop >= 434]  # 34 sessions of 3 symbols are 102 rows


def test_an_interrupted_training_stops_at_once() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.002)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([partial(work, n) for n in range(2_000)], 1, stop)
    assert len(begun) < 1_000


# -- confidence --------------------------------------------------------------------------------------

RETURNS = st.floats(-0.5, 0.5).filter(lambda value: value == 0 or abs(value) > 1e-6)


@settings(max_examples=200)
@given(arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=RETURNS))
def test_a_10_is_system_as_formula_on_complete_answers(predictions: np.ndarray) -> None:
    spread = np.std(predictions, axis=0)
    identical = (predictions == predictions[0]).all(axis=0)
    expected = np.where(identical, 0.95, 1 - np.minimum(spread / 0.01, 0.9))
    assert np.allclose(agreement(predictions), expected, atol=1e-9)
    assert ((agreement(predictions) >= 0.1 - 1e-12) & (agreement(predictions) <= 1)).all()


@settings(max_examples=100)
@given(arrays(np.float64, (4, 3), elements=RETURNS), arrays(np.bool_, (4, 3)))
def test_absent_members_count_for_nothing(predictions: np.ndarray, absent: np.ndarray) -> None:
    predictions[absent] = np.nan
    for column in range(3):
        present = predictions[~absent[:, column], column]
        mean, close = consensus(predictions)[column], agreement(predictions)[column]
        assert np.isnan(mean) if len(present) == 0 else np.isclose(mean, present.mean())
        assert np.isnan(close) if len(present) < 2 else np.isclose(close, agreement(present[:, None])[0])


@settings(max_examples=60)
@given(st.integers(0, 9999), st.integers(1, 8))
def test_rank_ic_is_pandas_spearman(seed: int, symbols: int) -> None:
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, 4, size=(12, symbols)).astype(float)  # ties
    label = rng.normal(size=(12, symbols))
    predicted[rng.random(predicted.shape) < 0.2] = np.nan
    label[rng.random(label.shape) < 0.2] = np.nan
    for row, found in enumerate(rank_ic(predicted, label)):
        both = pd.DataFrame({"a": predicted[row], "b": label[row]}).dropna()
        ranks = both.rank()
        usable = len(both) >= 3 and both["a"].nunique() > 1
        expected = np.corrcoef(ranks["a"], ranks["b"])[0, 1] if usable else np.nan
        assert np.isclose(found, expected, equal_nan=True)


def test_overlap_does_not_inflate_the_t_value() -> None:
    "Under no skill, |t| > 1.96 must be rare, though five-session labels overlap"
    rng = np.random.default_rng(5)
    honest, naive = [], []
    for _ in range(300):
        values = np.convolve(rng.normal(size=504), np.ones(5), "valid")  # each value shares 4/5 with the next
        honest.append(abs(spaced_t(values, 5)) > 1.96)
        naive.append(abs(spaced_t(values, 1)) > 1.96)
    assert np.mean(honest) < 0.07
    assert np.mean(naive) > 0.25  # the usual way sees "evidence" every third time


def test_scores_of_a_planted_signal() -> None:
    features, labels, days = tiny_world(symbols=8)
    walked = consensus(walk_forward_predict(features, labels, days, LABEL, SMALL))
    found = scores(walked, labels, 5)
    assert found["rank_ic"] > 0.5 and found["rank_ic_t"] > 5 and found["hit_rate"] > 0.65
    assert found["hit_n"] == int((np.isfinite(walked) & np.isfinite(labels)).sum()) // 5
