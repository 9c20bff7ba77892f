"""Features of many symbols"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pandas as pd

from alpha_trader.bars import Panel
from alpha_trader.features import FEATURES, features, indicators
from alpha_trader.samples import synthetic_panel
from benchmarks import peer_features
from benchmarks.measure import Case, Row, Size, row

FIELDS = ("high", "low", "close", "volume")
SEEDED = 500  # bars after which no digit of TA-Lib's other seeding is left


def fields(panel: Panel, column: int) -> dict[str, np.ndarray]:
    "High, low, close and volume of one symbol, each in one piece"
    return dict(zip(FIELDS, (np.ascontiguousarray(panel.values[k, :, column]) for k in (1, 2, 3, 4)), strict=True))


def ours(panel: Panel) -> dict[str, np.ndarray]:  # [T, N] by name
    "Our features before they are rounded to float32"
    raw = indicators(panel)
    return peer_features.against_close({name: raw[name] for name in FEATURES}, panel.close)


def check_ta(panel: Panel, columns: range) -> str:
    "Every feature of some symbols against `ta`, at all bars where both answer, within 1e-9"
    expected = ours(panel)
    for column in columns:
        found = peer_features.ta_features(pd.DataFrame(fields(panel, column)))
        for name in FEATURES:
            theirs, mine = found[name].to_numpy()[60:], expected[name][60:, column]
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9, err_msg=f"{name} against ta")
    return f"25 features = ta after 60 bars, {len(columns)} symbols, 1e-9"


def check_talib(panel: Panel, columns: range) -> str:
    "Every feature of some symbols against TA-Lib, where its other seeding has faded, within 1e-9"
    expected = ours(panel)
    for column in columns:
        found = peer_features.talib_features(**fields(panel, column))
        for name in FEATURES:
            np.testing.assert_allclose(
                expected[name][SEEDED:, column],
                found[name][SEEDED:],
                rtol=1e-9,
                atol=1e-9,
                err_msg=f"{name} against TA-Lib",
            )
    return f"= TA-Lib after {SEEDED} bars, {len(columns)} symbols, 1e-9"


def check_float32(panel: Panel) -> str:
    "What the models get is the rounded double"
    expected, found = ours(panel), features(panel)
    for name in FEATURES:
        np.testing.assert_allclose(found[name][60:], expected[name][60:], rtol=1e-6, atol=1e-8, err_msg=name)
    return "float32 = the double, rounded"


def wide_frames(panel: Panel) -> list[pd.DataFrame]:
    "High, low, close and volume as frames [T, N]"
    return [pd.DataFrame(panel.values[k]) for k in (1, 2, 3, 4)]


def check_pandas(panel: Panel) -> str:
    "pandas wide against ours; its rolling sums drift, so to 1e-6"
    expected, found = ours(panel), peer_features.pandas_features(*wide_frames(panel))
    for name in FEATURES:
        late = slice(SEEDED, None)
        np.testing.assert_allclose(
            found[name].to_numpy()[late], expected[name][late], rtol=1e-6, atol=1e-6, err_msg=f"{name} against pandas"
        )
    return f"= pandas wide after {SEEDED} bars, all symbols, 1e-6 (its rolling sums drift)"


def tall_frame(panel: Panel):  # polars.DataFrame
    "One line a bar, symbol by symbol"
    import polars as pl

    columns = {name: panel.values[k].T.ravel() for k, name in enumerate(FIELDS, start=1)}
    return pl.DataFrame({"symbol": np.repeat(np.arange(len(panel.symbols)), len(panel.index)), **columns})


def check_polars(panel: Panel) -> str:
    "polars against ours, to 1e-6"
    expected, found = ours(panel), peer_features.polars_features(tall_frame(panel))
    for name in FEATURES:
        theirs = found[name].to_numpy().reshape(len(panel.symbols), -1).T
        np.testing.assert_allclose(
            theirs[SEEDED:], expected[name][SEEDED:], rtol=1e-6, atol=1e-6, err_msg=f"{name} against polars"
        )
    return f"= polars after {SEEDED} bars, all symbols, 1e-6"


@numba.njit(nogil=True)
def traffic(values: np.ndarray, start: int, stop: int, out: np.ndarray) -> None:
    "Read the four fields once and write 25 columns once: no arithmetic to speak of"
    for t in range(values.shape[1]):
        for n in range(start, stop):
            number = np.float32(values[1, t, n] + values[2, t, n] + values[3, t, n] + values[4, t, n])
            for k in range(out.shape[2]):
                out[t, n, k] = number


def memory_bound(panel: Panel, threads: int) -> Callable[[], np.ndarray]:
    "The traffic of the features alone, into a new array as `features` makes one"
    size, width = panel.close.shape, len(FEATURES)
    edges = np.linspace(0, size[1], threads + 1).astype(int)

    def call() -> np.ndarray:
        out = np.empty((*size, width), np.float32)
        with ThreadPoolExecutor(threads) as pool:
            for work in [pool.submit(traffic, panel.values, a, b, out) for a, b in zip(edges, edges[1:], strict=False)]:
                work.result()
        return out

    return call


@row("features")
def feature_row(size: Size) -> Row:
    """The 25 shipped features of all symbols at all bars

    Ours answers with one float32 array [T, N, 25]; the others with 25 columns in double precision, in whatever form
    is natural to them (frames, columns, arrays for one symbol after the other), not stacked. All start from bars in
    memory, without gaps or events. `ta` works on a frame per symbol: some symbols are done, the time is scaled. TA-
    Lib does all symbols in a loop. The bound reads and writes the same memory, and nothing else.
    """
    import importlib.util

    panel = synthetic_panel(symbols=size.symbols, sessions=size.sessions, seed=3)
    sampled, some = range(size.sampled), size.symbols / size.sampled
    checks = [check_float32(panel), check_pandas(panel)]
    checks += [check_ta(panel, sampled)] if importlib.util.find_spec("ta") else []
    checks += [check_talib(panel, sampled)] if importlib.util.find_spec("talib") else []
    has_polars = importlib.util.find_spec("polars") is not None
    checks += [check_polars(panel)] if has_polars else []
    frames, tall = wide_frames(panel), tall_frame(panel) if has_polars else None
    single = [fields(panel, column) for column in range(size.symbols)]
    few = [pd.DataFrame(single[column]) for column in sampled]
    return Row(
        f"25 features, {size.symbols:,} symbols × {size.sessions:,} bars",
        Case("ours, 2 threads", lambda: features(panel, threads=2)),
        [
            Case("ours, 1 thread", lambda: features(panel, threads=1)),
            Case("TA-Lib", lambda: [peer_features.talib_features(**one) for one in single], needs="talib", bar=5),
            Case("polars", lambda: peer_features.polars_features(tall), needs="polars"),
            Case("pandas wide", lambda: peer_features.pandas_features(*frames), bar=15),
            Case(
                "ta per symbol",
                lambda: [peer_features.ta_features(one) for one in few],
                scale=some,
                needs="ta",
                bar=400,
            ),
        ],
        checks,
        [
            Case("memory bound, 2 threads", memory_bound(panel, 2)),
            Case("memory bound, 1 thread", memory_bound(panel, 1)),
        ],
    )
