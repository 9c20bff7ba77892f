"""Logs: nothing secret in any form, nothing that stops a run, lines machines and people can read (B-24, DA-20)"""

import dataclasses
import io
import json
import logging
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from alpha_trader.logs import Scrubber, configure_logs, get_log, is_sensitive, plain, readable, release_logs
from alpha_trader.settings import LogSettings, Secrets, Settings

SECRET = 'h9/K+"quoted"\\and=more&é'


@pytest.fixture
def settings(tmp_path: Path):
    "A workspace that knows one secret; its handlers are gone afterwards"
    yield Settings(root=tmp_path, secrets=Secrets(alpaca_api_secret=SecretStr(SECRET)))
    release_logs()
    structlog.contextvars.clear_contextvars()


def entries(settings: Settings) -> list[dict]:
    text = (settings.logs_dir / "alpha_trader.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# names (B-24)


HIDDEN = """
key KEY api_key apiKey apikey APIKey api-key appkey appsecret secret client_secret token access_token accessToken
tokens telegram_bot_token password Password db_passwd authorization Authorization HTTP_AUTHORIZATION credential
credentials aws_credentials_file account_number accountNumber ACCOUNT_NO APCA-API-KEY-ID APCA-API-SECRET-KEY
secret_key_2 password_hash
"""
OPEN = """
symbol symbol_key_counts key_count token_limit tokens_used secret_name monkey keyboard hockey keynote tokenizer
passwordless account number account_id client_id model_id author cash equity event logger __ 123
"""


@pytest.mark.parametrize("name", HIDDEN.split())
def test_sensitive_names(name):
    assert is_sensitive(name)


@pytest.mark.parametrize("name", ["", *OPEN.split()])
def test_names_that_hide_nothing(name):
    assert not is_sensitive(name)


# texts


@pytest.mark.parametrize(
    "text, hidden",
    [
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ("authorization=bearer abcdef123456", "abcdef123456"),
        ('{"authorization": "Basic dXNlcjpwdw=="}', "dXNlcjpwdw"),
        ("headers={'APCA-API-KEY-ID': 'PKABCDEF', 'APCA-API-SECRET-KEY': 'shhhhh'}", "PKABCDEF"),
        ("headers={'APCA-API-KEY-ID': 'PKABCDEF', 'APCA-API-SECRET-KEY': 'shhhhh'}", "shhhhh"),
        ("APCA-API-SECRET-KEY: shhhhh", "shhhhh"),
        ("https://discord.com/api/webhooks/1122/AbC_d-e?wait=true", "AbC_d-e"),
        ("https://discordapp.com/api/webhooks/1122/AbC_d-e", "AbC_d-e"),
        ("https://hooks.slack.com/services/T0/B0/xyz", "xyz"),
        ("https://api.telegram.org/bot123456789:AAE_abcdefghijklmnopqrstuvwxyz12345/getMe", "AAE_abc"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
        ("postgresql+psycopg://trader:hunter2@db/alpha", "hunter2"),
        ("appkey=PSabcdef&appsecret=xyzxyz&x=1", "xyzxyz"),
        ("password: hunter2, user: me", "hunter2"),
        ("KisKey(id='me', appkey='PSabcdef')", "PSabcdef"),
        ("account_number=12345678", "12345678"),
    ],
)
def test_what_looks_like_a_secret_is_struck_out(text, hidden):
    found = Scrubber().scrub(text)
    assert hidden not in found and "***" in found


@pytest.mark.parametrize(
    "text",
    [
        "at-sim-demo-20130301-AAPL-buy-entry-1f2e3d-a1",
        "AAPL: notional 5,500 USD > max_notional 5,000",
        "2013-03-01T14:30:00Z bought 22 AAPL at 430.47, stop=408.95; exposure: 0.62",
        "settings.ini [risk] stop_loss: found 0.05, allowed: a number in (-1, 0)",
        "data/runs/2013/03/01/trade.html",
        "https://example.org/docs/services.html",
        "sqlite:///data/alpha_trader.db",
        "Basic rules for bearer bonds",
        "12:30:45 on 2013-03-01",
    ],
)
def test_what_belongs_to_trading_is_left_alone(text):
    assert Scrubber([SecretStr("unrelated-secret")]).scrub(text) == text


@pytest.mark.parametrize("form", [SECRET, quote(SECRET, safe=""), quote(SECRET), json.dumps(SECRET), repr(SECRET)])
def test_a_known_secret_is_found_in_every_form(form):
    found = Scrubber([SecretStr(SECRET)]).scrub(f"before {form} after")
    assert "h9" not in found and found.startswith("before ") and found.endswith(" after")


def test_the_longer_of_two_secrets_goes_first():
    assert Scrubber([SecretStr("abcdef"), SecretStr("abcdef-ghi")]).scrub("x abcdef-ghi y") == "x *** y"


def test_short_and_empty_secrets_do_not_eat_the_text():
    scrubber = Scrubber([SecretStr(""), SecretStr(" "), SecretStr("AAPL")])
    assert scrubber.scrub("AAPL bought") == "AAPL bought"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
)


@given(json_values, st.sampled_from(["{}", "a{}b", "{}{}"]))
def test_at_any_depth(value, around):
    "However deep a secret lies, in a value or in a key, it does not come out"
    secret = "0f-the-h0use"
    deep = [value, {"x": (around.format(secret, secret), {secret: value, "more": [secret]})}]
    assert secret not in repr(Scrubber([SecretStr(secret)]).scrub(deep))


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers() | st.booleans() | st.none()))
def test_what_holds_no_text_comes_back_equal(value):
    assert Scrubber([SecretStr("0f-the-h0use")]).scrub(value) == value


def test_named_fields_are_masked_with_whatever_they_hold():
    given = {"api_key": ["a", "b"], "password": 12345678, "token": {"x": 1}, "secret": None, "has_key": True, "key": ""}
    masked = {"api_key": "***", "password": "***", "token": "***", "secret": None, "has_key": True, "key": ""}
    assert Scrubber().scrub(given) == masked
    assert Scrubber().scrub((SecretStr("x"), ("y",))) == ("***", ("y",))


# lines


def test_an_entry_is_one_line_of_json_with_time_level_and_name(settings):
    configure_logs(settings, console=False)
    get_log("execution").info("order sent", symbol="AAPL", quantity=Decimal("22"), day=date(2013, 3, 1))
    (entry,) = entries(settings)
    at = datetime.fromisoformat(entry.pop("timestamp"))
    assert at.tzinfo is not None and at.utcoffset() == datetime.now(UTC).utcoffset()
    assert entry == {
        "event": "order sent",
        "level": "info",
        "logger": "alpha_trader.execution",
        "symbol": "AAPL",
        "quantity": "22",
        "day": "2013-03-01",
    }


def test_no_way_of_logging_shows_a_secret(settings, capsys):
    "DA-20: a value, a name, a nested name, an object, an exception, a format, a foreign library, a bound context"
    configure_logs(settings)
    log = get_log("x")

    @dataclasses.dataclass
    class Order:
        note: str

    structlog.contextvars.bind_contextvars(run=7, session_note=SECRET)
    log.info(f"in the event {SECRET}")
    log.info("in a field", where=SECRET)
    log.info("in a dictionary", where={"deep": [SECRET, {"api_key": "PK-only-by-name"}]})
    log.info("in an object", where=Order(SECRET), path=Path(SECRET), error=ValueError(SECRET), hidden=SecretStr(SECRET))
    log.info("formatted %s", SECRET)
    log.bind(token="only-by-name").info("bound")
    try:
        raise ValueError(f"refused: {SECRET}")
    except ValueError as error:
        log.exception("with a traceback")
        log.error("with an error", exc_info=error)
        logging.getLogger("urllib3").warning("GET /?key=%s failed", quote(SECRET, safe=""), exc_info=True)
    written = (settings.logs_dir / "alpha_trader.jsonl").read_text(encoding="utf-8") + capsys.readouterr().err
    for form in (SECRET, quote(SECRET, safe=""), json.dumps(SECRET)[1:-1], repr(SECRET)[1:-1], "only-by-name"):
        assert form not in written
    found = entries(settings)
    assert len(found) == 9 and all(entry["run"] == 7 for entry in found)
    assert [("ValueError: refused: ***" in entry.get("exception", "")) for entry in found[-3:]] == [True] * 3


def test_an_error_kept_for_later_still_shows_where_it_came_from(settings):
    configure_logs(settings, console=False)
    try:
        raise ValueError("of before")
    except ValueError as error:
        kept = error
    get_log("x").error("later", exc_info=kept)
    (entry,) = entries(settings)
    assert entry["exception"].startswith("Traceback") and entry["exception"].endswith("ValueError: of before")


def test_the_console_follows_standard_error(settings, monkeypatch):
    "pytest and notebooks exchange it after the handler was made"
    configure_logs(settings)
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    get_log("x").info("over here")
    assert "over here" in other.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        np.float64("nan"),
        np.float32(1.5),
        np.arange(3),
        {1, 2},
        b"\xff",
        object(),
        print,
        datetime.max,
    ],
)
def test_logging_never_fails_because_of_what_is_logged(settings, value):
    configure_logs(settings, console=False)
    get_log("x").info("odd", value=value, nested={"v": [value], 3: "number as a name"})
    (entry,) = entries(settings)
    assert entry["event"] == "odd" and entry["nested"]["3"] == "number as a name"
    assert "NaN" not in json.dumps(entry["value"]) and "Infinity" not in json.dumps(entry["value"])


def test_the_folder_is_made_and_made_again(settings):
    configure_logs(settings, console=False)
    assert not settings.data_dir.exists()
    get_log("x").info("first")
    assert len(entries(settings)) == 1
    release_logs()
    shutil.rmtree(settings.data_dir)
    configure_logs(settings, console=False)
    get_log("x").info("second")
    assert [entry["event"] for entry in entries(settings)] == ["second"]


def test_a_folder_that_cannot_be_made_costs_the_line_and_not_the_run(settings, capsys):
    settings.data_dir.write_text("a file where the folder should be")
    configure_logs(settings, console=False)
    get_log("x").info("lost")
    assert "Logging error" in capsys.readouterr().err


def test_files_rotate_and_only_so_many_are_kept(settings):
    "B-24, with 10 kB in place of 10 MB"
    small = settings.model_copy(update={"logs": LogSettings(max_bytes=10_000, backups=2)})
    configure_logs(small, console=False)
    for number in range(400):
        get_log("x").info("a line of about a hundred characters", number=number)
    names = sorted(path.name for path in settings.logs_dir.iterdir())
    assert names == ["alpha_trader.jsonl", "alpha_trader.jsonl.1", "alpha_trader.jsonl.2"]
    assert all(path.stat().st_size <= 10_000 for path in settings.logs_dir.iterdir())
    assert entries(settings)[-1]["number"] == 399


def test_the_shipped_rotation_is_that_of_system_b():
    assert (Settings().logs.max_bytes, Settings().logs.backups) == (10_000_000, 5)


def test_the_console_has_its_own_level_and_the_file_keeps_info(settings, capsys):
    quiet = settings.model_copy(update={"logs": LogSettings(level="WARNING")})
    configure_logs(quiet)
    get_log("x").debug("too small")
    get_log("x").info("for the file")
    get_log("x").warning("for both", reason="it is one")
    captured = capsys.readouterr()
    assert [entry["event"] for entry in entries(settings)] == ["for the file", "for both"]
    assert captured.out == ""
    assert captured.err.endswith(' warning x: for both reason="it is one"\n') and "for the file" not in captured.err


def test_debug_reaches_the_file_when_asked_for(settings):
    configure_logs(settings.model_copy(update={"logs": LogSettings(level="DEBUG")}), console=False)
    get_log("x").debug("small")
    assert [entry["event"] for entry in entries(settings)] == ["small"]


def test_libraries_are_heard_from_warnings_on(settings):
    configure_logs(settings, console=False)
    library = logging.getLogger("papermill")
    library.setLevel(logging.INFO)
    library.info("executing cell 3")
    library.warning("passed unknown parameter")
    assert [(entry["logger"], entry["event"]) for entry in entries(settings)] == [
        ("papermill", "passed unknown parameter")
    ]


def test_configuring_twice_writes_once_and_leaves_foreign_handlers(settings):
    foreign = logging.NullHandler()
    logging.getLogger().addHandler(foreign)
    try:
        configure_logs(settings, console=False)
        configure_logs(settings, console=False)
        get_log("x").info("once")
        assert len(entries(settings)) == 1
        release_logs()
        assert foreign in logging.getLogger().handlers
    finally:
        logging.getLogger().removeHandler(foreign)


def test_one_entry_stays_one_line_for_a_person():
    entry = {"timestamp": "2013-03-01T14:30:02.5Z", "level": "info", "logger": "alpha_trader.x", "event": "said"}
    assert "\n" not in readable(None, "info", {**entry, "text": "two\nlines", "n": 1})
    assert "\n" not in readable(None, "info", {**entry, "event": "said\nmuch"})
    assert readable(None, "info", {**entry, "exception": "Traceback"}).endswith("\nTraceback")


def test_plain_is_what_json_has():
    values = {"a": Decimal("1.10"), "b": [date(2013, 3, 1), float("inf")], 3: np.float64(2.5), "s": frozenset({1})}
    assert json.loads(json.dumps(plain(values), allow_nan=False)) == {
        "a": "1.10",
        "b": ["2013-03-01", "inf"],
        "3": 2.5,
        "s": [1],
    }


def test_before_logs_are_configured_warnings_show_masked_and_the_rest_does_not():
    "A fresh process that never configured anything, as in a lesson"
    code = (
        "from alpha_trader.logs import get_log\n"
        "get_log('x').info('quiet', api_key='PK-1')\n"
        "get_log('x').warning('loud', api_key='PK-2', header='Bearer abcdef123456')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and "loud" in done.stderr and "quiet" not in done.stderr
    assert "PK-" not in done.stderr and "abcdef123456" not in done.stderr
