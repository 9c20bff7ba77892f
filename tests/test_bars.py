"""The panel and its cache: what holds for every history, not only for the lesson's"""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alpha_trader.bars import (
    COLUMNS,
    FIELDS,
    FolderSource,
    Panel,
    adjusted,
    adjustment,
    bars_frame,
    load_panel,
    panel_of,
    previous_close,
    read_bars,
    read_card,
    read_user_file,
    universe,
    write_atomically,
    write_bars,
)
from alpha_trader.domain import DataError, InputError
from alpha_trader.samples import Events, SampleSource, SyntheticSource, sample_frames, sample_panel, synthetic_panel
from alpha_trader.sessions import open_index, sessions_between

NOON = datetime(2024, 7, 9, 12, tzinfo=UTC)
DAYS = sessions_between(date(2024, 1, 2), date(2024, 3, 28))


@st.composite
def panels(draw, most_rows: int = 12) -> Panel:
    "Random histories: halts, late listings, splits and dividends anywhere, on rows with and without a bar"
    rows, columns = draw(st.integers(1, most_rows)), draw(st.integers(1, 3))
    price = st.floats(5, 500)
    close = draw(arrays(float, (rows, columns), elements=price | st.just(np.nan)))
    splits = draw(arrays(float, (rows, columns), elements=st.sampled_from([1.0, 1.0, 1.0, 2.0, 1.5, 0.1, 7.0])))
    dividends = draw(arrays(float, (rows, columns), elements=st.sampled_from([0.0, 0.0, 0.01, 0.25])))
    values = np.stack([close, close * 1.01, close * 0.99, close, close * 10])
    # an amount no price before it could have paid is refused; see test_a_dividend_above_the_price
    dividends = np.where(dividends >= previous_close(close, splits), 0.0, dividends)
    symbols = tuple(f"S{number}" for number in range(columns))
    return Panel(open_index(DAYS[:rows]), symbols, values, splits, dividends, "random", "hypothesis")


@given(panels())
def test_cutting_off_the_future_changes_no_bit(panel):
    whole = adjusted(panel)
    for row, day in enumerate(panel.sessions.tolist()):
        np.testing.assert_array_equal(adjusted(panel.upto(day)), whole[:, : row + 1])


@given(panels())
def test_the_first_bar_keeps_its_printed_price(panel):
    factor = adjustment(panel)
    for column in range(len(panel.symbols)):
        bars = np.flatnonzero(~np.isnan(panel.close[:, column]))
        assert (factor[: bars[0] + 1 if len(bars) else None, column] == 1.0).all()


def wealth(panel: Panel, column: int) -> list[float]:
    "An investor with one share, bar by bar: the shares he holds times the printed price"
    shares, last, split, out = 1.0, np.nan, 1.0, []
    for row in range(len(panel.index)):
        close = panel.close[row, column]
        if not np.isnan(last):
            split *= panel.splits[row, column]
            shares *= panel.splits[row, column]
            worth = last / split  # the evening's price in today's shares
            shares *= worth / (worth - panel.dividends[row, column])  # paid, and reinvested at the price without it
        if not np.isnan(close):
            last, split = close, 1.0
        out.append(shares * close)
    return out


@given(panels())
def test_the_adjusted_close_is_the_wealth_of_who_reinvests(panel):
    for column in range(len(panel.symbols)):
        np.testing.assert_allclose(adjusted(panel)[3, :, column], wealth(panel, column), rtol=1e-12)


@given(panels(), st.sampled_from([2.0, 7.0, 0.5]))
def test_a_restated_history_has_the_same_returns(panel, ratio):
    "All prices / 7, volume x 7, dividends / 7: the same company, counted in other shares"
    values = panel.values / ratio
    values[4] = panel.values[4] * ratio
    restated = replace(panel, values=values, dividends=panel.dividends / ratio)
    np.testing.assert_allclose(adjusted(restated)[:4] * ratio, adjusted(panel)[:4], rtol=1e-12)


def test_a_dividend_above_the_price_is_refused():
    panel = synthetic_panel(symbols=1, sessions=5)
    dividends = panel.dividends.copy()
    dividends[3, 0] = 1e6
    with pytest.raises(DataError, match=r"SYNA 2015-01-07: dividend 1e\+06 USD"):
        adjustment(replace(panel, dividends=dividends))


def test_views_are_no_copies_and_cuts_are():
    panel = synthetic_panel(symbols=2, sessions=10)
    assert np.shares_memory(panel.close, panel.values)
    cut = panel.upto(panel.sessions[4].item())
    assert not np.shares_memory(cut.values, panel.values) and cut.values.flags.c_contiguous


def test_the_hash_is_the_same_in_another_process():
    code = "from alpha_trader.samples import sample_panel; print(sample_panel().hash)"
    environ = os.environ | {"PYTHONHASHSEED": "12345"}
    answer = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == sample_panel().hash == "4fbc33abea918a6eaf38a293b40db343"


@given(panels())
def test_the_hash_sees_every_number_and_no_nan_payload(panel):
    sign_flipped = np.where(np.isnan(panel.values), -np.nan, panel.values)
    assert replace(panel, values=sign_flipped).hash == panel.hash
    splits = panel.splits.copy()
    splits[-1, -1] += 1e-12
    assert replace(panel, splits=splits).hash != panel.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros((4, 3, 2))}, r"float64\[5, 3, 2\] is needed, found float64\[4, 3, 2\]"),
        ({"dividends": np.zeros((3, 2), "float32")}, "found float32"),
        ({"symbols": ("SYNB", "SYNA")}, "sorted and different"),
        ({"symbols": ("SYNA", "SYNA")}, "sorted and different"),
        ({"index": pd.DatetimeIndex(["2015-01-02", "2015-01-05", "2015-01-06"])}, "UTC"),
    ],
)
def test_a_panel_whose_parts_do_not_fit_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(synthetic_panel(symbols=2, sessions=3), **change)


def test_asking_outside_of_the_panel_says_what_it_holds():
    panel = synthetic_panel(symbols=2, sessions=3)
    for ask in (lambda: panel.row(date(2015, 1, 3)), lambda: panel.row(date(2030, 1, 2))):
        with pytest.raises(InputError, match="2015-01-02 to 2015-01-06"):
            ask()
    with pytest.raises(InputError, match="TSLA: not in the panel, which holds SYNA, SYNB"):
        panel.select(["SYNA", "TSLA"])


# --- the cache --------------------------------------------------------------------------------------------------------


@st.composite
def frames(draw) -> pd.DataFrame:
    rows = draw(st.integers(1, 8))
    numbers = st.floats(allow_nan=True, allow_infinity=False)
    return bars_frame(DAYS[:rows], {name: draw(arrays(float, rows, elements=numbers)) for name in COLUMNS})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(frame=frames())
def test_what_goes_into_the_cache_comes_out(tmp_path, frame):
    write_bars(tmp_path, "ACME", frame, "test", "one", NOON)
    pd.testing.assert_frame_equal(read_bars(tmp_path, "ACME"), frame, check_exact=True)
    assert write_bars(tmp_path, "ACME", frame, "test", "one", NOON) is False


def test_the_card_says_what_the_file_holds(tmp_path):
    write_bars(tmp_path, "IBM", sample_frames()["IBM"], "sample", "sip-eod", NOON)
    card = read_card(tmp_path / "IBM.parquet")
    assert (card.symbol, card.source, card.feed, card.fetched_at) == ("IBM", "sample", "sip-eod", NOON)
    assert (card.rows, card.adjustment) == (3270, "raw")


def test_every_truncation_is_noticed_and_healed(tmp_path):
    frame = sample_frames()["META"]
    write_bars(tmp_path, "META", frame, "sample", "sip-eod", NOON)
    path = tmp_path / "META.parquet"
    whole = path.read_bytes()
    for kept in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=r"META\.parquet"):
            read_bars(tmp_path, "META")
    assert write_bars(tmp_path, "META", frame, "sample", "sip-eod", NOON) is True
    pd.testing.assert_frame_equal(read_bars(tmp_path, "META"), frame)


def test_edited_bars_are_noticed(tmp_path):
    write_bars(tmp_path, "META", sample_frames()["META"], "sample", "sip-eod", NOON)
    table = pq.read_table(tmp_path / "META.parquet")
    more = pa.array(table["close"].to_numpy() + 1)
    pq.write_table(table.set_column(table.schema.get_field_index("close"), "close", more), tmp_path / "META.parquet")
    with pytest.raises(DataError, match="not the bars of META that were written"):
        read_bars(tmp_path, "META")


def test_a_writer_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    write_bars(tmp_path, "META", sample_frames()["META"], "sample", "sip-eod", NOON)
    before = (tmp_path / "META.parquet").read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "META.parquet", pa.table({"x": [1]}))
    assert [path.name for path in tmp_path.iterdir()] == ["META.parquet"]
    assert (tmp_path / "META.parquet").read_bytes() == before


def test_one_folder_holds_one_feed(tmp_path):
    frame = sample_frames()["META"]
    write_bars(tmp_path, "META", frame, "sample", "sip-eod", NOON)
    with pytest.raises(DataError, match=r"holds bars of sample/sip-eod \(as in META\.parquet\); alpaca/iex needs"):
        write_bars(tmp_path, "AAPL", frame, "alpaca", "iex", NOON)
    assert not (tmp_path / "AAPL.parquet").exists()
    (tmp_path / "AAAA.parquet").write_bytes(b"broken")  # cannot say whose it is, so it does not object
    write_bars(tmp_path, "IBM", frame, "sample", "sip-eod", NOON)


def test_a_panel_of_two_feeds_is_refused(tmp_path):
    frame = sample_frames()["META"]
    write_bars(tmp_path / "a", "META", frame, "sample", "sip-eod", NOON)
    write_bars(tmp_path / "b", "AAPL", frame, "alpaca", "iex", NOON)
    os.replace(tmp_path / "b" / "AAPL.parquet", tmp_path / "a" / "AAPL.parquet")
    with pytest.raises(DataError, match="found alpaca/iex, sample/sip-eod"):
        load_panel(tmp_path / "a", ["META", "AAPL"])


def test_load_panel_answers_with_the_panel_that_was_written(tmp_path):
    source = SyntheticSource(symbols=4, sessions=60, events=Events(halts=(("SYNB", 20, 5),), listings=(("SYNC", 30),)))
    for symbol, frame in source.bars(source.symbols(), None, None).items():
        write_bars(tmp_path, symbol, frame, source.name, source.feed, NOON)
    panel = load_panel(tmp_path, source.symbols())
    assert panel.hash == panel_of(source.frames, "x", "y").hash
    cut = load_panel(tmp_path, source.symbols(), end=panel.sessions[40].item())
    assert cut.hash == panel.upto(panel.sessions[40].item()).hash
    with pytest.raises(DataError, match=r"NONE\.parquet: no bars of NONE here"):
        load_panel(tmp_path, ["SYNA", "NONE"])


def test_no_symbol_leaves_the_folder(tmp_path):
    with pytest.raises(InputError):
        write_bars(tmp_path, "../EVIL", sample_frames()["META"], "sample", "sip-eod", NOON)


# --- a user's own files -----------------------------------------------------------------------------------------------

HEADER = "date,open,high,low,close,volume"


def written(folder: Path, text: str | bytes, name: str = "ACME.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column date, open, high, low, close, volume is missing"),
        ("date,open,high,low,price,volume\n", "column close is missing; needed are date, open, high, low, close, vol"),
        (f"{HEADER},Close\n", "column close is there twice"),
        (f"{HEADER}\n2024-07-01,1,1,1,1\n", "line 2: 6 cells are needed, as in the header, found 5"),
        (f"{HEADER}\n2024-07-01,1,1,1,1,9\n\n2024-13-01,1,1,1,1,9\n", "line 4, column date: found '2024-13-01'"),
        (f"{HEADER}\n07/01/2024,1,1,1,1,9\n", "line 2, column date: found '07/01/2024', allowed is a date such as"),
        (f"{HEADER}\n2024-07-01 16:00:00,1,1,1,1,9\n", "line 2, column date"),
        (f"{HEADER}\n,1,1,1,1,9\n", "line 2, column date: found ''"),
        (f"{HEADER}\n2024-07-01,1,1,1,1,\"1,000\"\n", "line 2, column volume: found '1,000'"),
        (f"{HEADER}\n2024-07-01,1,n/a,1,1,9\n", "line 2, column high: found 'n/a', allowed is a number such as 1234.5"),
        (f"{HEADER},split\n2024-07-01,1,1,1,1,9,2:1\n", "line 2, column split: found '2:1'"),
        (b"\xff\xfe\x00date", "cannot be read as CSV in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        read_user_file(written(tmp_path, text))
    assert "ACME.csv" in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_in_any_order_and_case_with_others_among_them(tmp_path):
    header = "\ufeffVolume,DATE, Close ,low,High,Open,adj_close,Split,dividend"
    text = f"{header}\r\n9,2024-07-02,4,3,5,4,1,0,\r\n8,2024-07-01,8,7,9,8,1,,0.5\r\n"
    frame = read_user_file(written(tmp_path, text))
    assert frame.index.day.tolist() == [1, 2]  # newest first is turned round
    assert frame["close"].tolist() == [8, 4]
    assert frame["split"].tolist() == [1, 1] and frame["dividend"].tolist() == [0.5, 0]


@pytest.mark.parametrize("how", ["index", "column", "date32", "text"])
def test_parquet_in_the_shapes_people_have(tmp_path, how):
    bars = sample_frames()["META"].rename_axis("Date")
    plain = bars.reset_index()
    given = {
        "index": bars,
        "column": plain,
        "date32": plain.assign(Date=plain["Date"].dt.date),
        "text": plain.assign(Date=plain["Date"].dt.strftime("%Y-%m-%d")),
    }[how]
    given.to_parquet(tmp_path / "META.parquet")
    pd.testing.assert_frame_equal(read_user_file(tmp_path / "META.parquet"), sample_frames()["META"])


def test_a_moment_is_not_a_date(tmp_path):
    bars = sample_frames()["META"].tz_localize("UTC").rename_axis("date")
    bars.to_parquet(tmp_path / "META.parquet")
    with pytest.raises(DataError, match=r"META\.parquet, row 1, column date: found '2012-05-18 00:00:00\+00:00'"):
        read_user_file(tmp_path / "META.parquet")


def test_a_folder_says_what_it_lacks(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        FolderSource(tmp_path / "nowhere").symbols()
    written(tmp_path, HEADER, "readme.csv")
    with pytest.raises(DataError, match=r"no file such as AAPL\.csv"):
        FolderSource(tmp_path).symbols()
    written(tmp_path, f"{HEADER}\n", "AAPL.csv")
    written(tmp_path, b"", "AAPL.parquet")
    with pytest.raises(DataError, match="one file a symbol"):
        FolderSource(tmp_path).symbols()


def test_the_clock_of_a_folder_is_a_session_and_survives_slips(tmp_path):
    written(tmp_path, f"{HEADER}\n2024-07-05,1,1,1,1,9\n2024-07-06,1,1,1,1,9\n9999-01-01,1,1,1,1,9\n", "SAT.csv")
    written(tmp_path, f"{HEADER}\n2024-07-08,1,1,1,x,9\n", "BAD.csv")
    assert FolderSource(tmp_path).last_session() == date(2024, 7, 5)
    (tmp_path / "SAT.csv").unlink()
    with pytest.raises(DataError, match="column close: found 'x'"):
        FolderSource(tmp_path).last_session()


def test_the_universe_is_the_watchlist_unless_the_source_is_a_demonstration(tmp_path):
    written(tmp_path, f"{HEADER}\n2024-07-05,1,1,1,1,9\n", "AAPL.csv")
    written(tmp_path, f"{HEADER}\n2024-07-05,1,1,1,1,9\n", "XYZ.csv")
    symbols, line = universe(FolderSource(tmp_path), ["MSFT", "AAPL"])
    assert symbols == ("AAPL",) and line == "folder/files: AAPL; of the watchlist not on offer: MSFT"
    assert universe(SampleSource(), ["MSFT", "AAPL"])[0] == ("AAPL", "GOOGL", "IBM", "META", "MSFT")
    with pytest.raises(InputError, match="folder offers AAPL, XYZ"):
        universe(FolderSource(tmp_path), ["MSFT"])


def test_columns_begin_with_the_fields():
    assert COLUMNS[: len(FIELDS)] == FIELDS
