"""What a trial of a parameter search costs"""

from dataclasses import replace
from functools import partial

import numpy as np

from alpha_trader.features import FeatureSet
from alpha_trader.models import Spec, cores, run_jobs
from alpha_trader.samples import synthetic_panel
from alpha_trader.settings import LabelSettings, ModelSettings
from alpha_trader.tuning import Exam, shipped_point, sit_fold, skill
from alpha_trader.tuning import exams as written
from benchmarks.measure import Case, Row, Size, row

TREES, WIDTH = 100, 25


def afresh(one: Exam) -> Exam:
    "The same exam without the library's copy of its rows"
    return replace(one, rows=replace(one.rows, made={}))


@row("tuning")
def tuning_row(size: Size) -> Row:
    """One trial of a search: a walk-forward with yearly refits, 25 features, 100 trees of LightGBM

    Ours: rows, labels and bins of all folds are made once in a study; the folds work side by side, one thread each.
    The usual way: each trial makes them again and fits one fold after the other, with a thread for each core inside a
    model. Both use the borders of the first training window, so both have the same scores.
    """
    label, rng = LabelSettings(), np.random.default_rng(7)
    model = ModelSettings(lightgbm_rounds=TREES, min_train=min(750, size.history // 3), max_rows=0)
    sessions = synthetic_panel(1, size.history, 7).sessions
    values = rng.normal(size=(size.history, size.portfolio, WIDTH)).astype(np.float32)
    labels = 0.01 * values[:, :, 0] + rng.normal(0.0, 0.02, size=values.shape[:2])
    make = partial(written, FeatureSet(tuple(f"f{n}" for n in range(WIDTH)), values), labels, sessions, label, model)
    point = shipped_point("lightgbm")
    own = Spec("lightgbm", 42, TREES, parameters=tuple(point.items()))
    usual = own._replace(parameters=(*point.items(), ("num_threads", cores())))
    folds = make("lightgbm")

    def ours() -> list[float]:
        return [skill(said) for said in run_jobs([partial(sit_fold, fold, own) for fold in folds], 0)]

    def again() -> list[float]:
        return [skill(sit_fold(fold, usual)) for fold in make("lightgbm")]

    def bins_again() -> list[float]:
        fresh = [[afresh(one) for one in fold] for fold in folds]
        return [skill(said) for said in run_jobs([partial(sit_fold, fold, own) for fold in fresh], 0)]

    np.testing.assert_allclose(ours(), again(), rtol=1e-9)
    return Row(
        f"one trial of a search, {size.portfolio} symbols × {size.history:,} sessions, {len(folds)} folds",
        Case("ours, exams made once", ours),
        [
            Case("everything made again, threads inside a model", again, bar=1.5),
            Case("bins made again, folds side by side", bins_again),
        ],
        checks=("scores equal within 1e-9",),
    )
