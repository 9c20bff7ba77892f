"""settings.ini, .env and the environment: every default, every slip, every place a secret could leak (B-23, DB-1)"""

import configparser
import json
import pickle
import re
from pathlib import Path

import pytest
from dotenv import dotenv_values

from alpha_trader.settings import (
    SECRET_NAMES,
    SECTIONS,
    Settings,
    SettingsError,
    allowed,
    as_text,
    find_root,
    ini_layer,
    load_settings,
    override,
    settings_table,
)

CHECKOUT = Path(__file__).parent.parent
KEYS = [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    "A workspace whose settings.ini is empty"
    (tmp_path / "settings.ini").write_text("", encoding="utf-8")
    return tmp_path


def ini(root: Path, text: str) -> None:
    (root / "settings.ini").write_text(text, encoding="utf-8")


def refusal(root: Path, **environ: str) -> str:
    "The one line a person reads"
    with pytest.raises(SettingsError) as caught:
        load_settings(root, environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# the file as shipped


def test_shipped_file_holds_every_default_and_nothing_else():
    shipped = load_settings(CHECKOUT, {})
    written = {name for name in ini_layer(CHECKOUT / "settings.ini").values}
    assert written == set(KEYS)
    if not (CHECKOUT / ".env").exists():
        assert shipped == Settings(root=CHECKOUT.resolve())
        assert not [row for row in settings_table(shipped) if row.changed]


def test_every_shipped_key_has_a_comment_above_it_or_above_its_group():
    commented = False
    for line in (CHECKOUT / "settings.ini").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            commented = False
        elif line.startswith("#"):
            commented = True
        elif re.match(r"\w+ =", line) and line.split(" =")[0] not in {"kind", "lightgbm_rounds"}:
            assert commented, line


def test_env_example_names_every_secret_and_sets_nothing():
    example = dotenv_values(CHECKOUT / ".env.example", interpolate=False)
    assert set(example) == SECRET_NAMES
    assert set(example.values()) == {""}


def test_env_example_copied_as_it_is_changes_nothing(root):
    (root / ".env").write_text((CHECKOUT / ".env.example").read_text(encoding="utf-8"), encoding="utf-8")
    assert load_settings(root, {}) == Settings(root=root.resolve())


def test_defaults_are_those_of_the_two_systems():
    "A-01, A-08, A-11, A-13 to A-17"
    s = Settings()
    assert len(s.data.watchlist) == 32 and s.data.benchmark == "SPY"
    assert (s.signals.buy, s.signals.sell, s.signals.confidence) == (0.005, -0.005, 0.7)
    assert (s.risk.max_position, s.risk.max_exposure, s.risk.max_positions) == (0.10, 0.80, 7)
    assert (s.risk.stop_loss, s.risk.take_profit, s.risk.take_profit_share) == (-0.05, 0.10, 0.5)
    assert (s.risk.day_loss, s.risk.volatility_target, s.risk.swap_premium) == (-0.02, 0.015, 1.5)
    assert s.model.seeds == (42, 84) and s.costs.commission_rate == 0.001
    assert s.broker.mode == "paper" and s.broker.name == "sim"


@pytest.mark.parametrize("section, key", KEYS)
def test_every_default_survives_being_written_and_read(root, section, key):
    default = getattr(getattr(Settings(), section), key)
    ini(root, f"[{section}]\n{key} = {as_text(default)}\n")
    assert getattr(getattr(load_settings(root, {}), section), key) == default


@pytest.mark.parametrize("section, key", KEYS)
def test_every_setting_says_what_is_allowed(section, key):
    words = allowed(section, key)
    assert len(words) >= 8 and "\n" not in words
    if words == "a number":
        pytest.fail(f"{section}.{key} has no range")


# one line for every slip (B-23)

SLIPS = [
    ("[risk]\nstop_loss = 0.05", "settings.ini [risk] stop_loss: found 0.05, allowed: a number in (-1, 0)"),
    ("[risk]\nstop_loss = -1", "settings.ini [risk] stop_loss: found -1, allowed: a number in (-1, 0)"),
    ("[risk]\nstop_loss =", "settings.ini [risk] stop_loss: found nothing, allowed: a number in (-1, 0)"),
    ("[risk]\nstop_loss = five", "settings.ini [risk] stop_loss: found five, allowed: a number in (-1, 0)"),
    ("[risk]\nday_loss = nan", "settings.ini [risk] day_loss: found nan, allowed: a number in (-1, 0)"),
    ("[risk]\nmax_exposure = 80", "settings.ini [risk] max_exposure: found 80, allowed: a number in (0, 1]"),
    ("[risk]\nmax_positions = 2.5", "settings.ini [risk] max_positions: found 2.5, allowed: a whole number >= 1"),
    ("[risk]\nfractional = perhaps", "settings.ini [risk] fractional: found perhaps, allowed: true or false"),
    ("[risk]\nstop_check = tick", "settings.ini [risk] stop_check: found tick, allowed: one of bar, close"),
    ("[risk]\ntake_profit = inf", "settings.ini [risk] take_profit: found inf, allowed: a number > 0"),
    ("[signals]\nbuy = -0.005", "settings.ini [signals] buy: found -0.005, allowed: a number in (0, 1)"),
    ("[signals]\nsell = 0", "settings.ini [signals] sell: found 0, allowed: a number in (-1, 0)"),
    ("[model]\nrefit = hourly", "settings.ini [model] refit: found hourly, allowed: one of weekly, monthly, yearly"),
    ("[model]\nthreads = -1", "settings.ini [model] threads: found -1, allowed: a whole number >= 0"),
    (
        "[model]\nexpires_after = 252",
        "settings.ini [model] expires_after: found 252, allowed: >= 253 sessions, because refit = yearly",
    ),
    (
        "[model]\nseeds = 42, 42",
        "settings.ini [model] seeds: found 42, 42, allowed: each entry once; 42 is repeated",
    ),
    (
        "[data]\nwatchlist = AAPL, TOO-LONG",
        "settings.ini [data] watchlist: found TOO-LONG, allowed: ticker symbols such as AAPL or BRK.B, "
        "separated by commas, each once",
    ),
    ("[data]\nwatchlist =", "settings.ini [data] watchlist: found nothing, allowed: at least one entry"),
    (
        "[data]\nsource = folder",
        "settings.ini [data] folder: found nothing (the default), allowed: a folder of CSV or Parquet files, "
        "because source = folder",
    ),
    (
        "[costs]\ncommission_rate = 0\nhalf_spread = 0\nslippage = 0",
        "settings.ini [costs] commission_rate: found 0, allowed: more than 0, because the other costs are 0 too: "
        "costs are never zero",
    ),
    (
        "[broker]\nmode = live",
        "settings.ini [broker] mode: found live, allowed: paper: the simulated broker is paper only",
    ),
    ("[broker]\ncapital = 0.001", "settings.ini [broker] capital: found 0.001, allowed: a number > 0"),
    (
        "[broker]\naccount = My Account",
        "settings.ini [broker] account: found My Account, allowed: 1 to 31 small letters, digits or dashes",
    ),
    ("[risk]\nstop_los = -0.05", "settings.ini [risk] stop_los: unknown key, did you mean stop_loss?"),
    ("[rsik]\nstop_loss = -0.05", "settings.ini [rsik]: unknown section, did you mean risk?"),
    ("[logs]\nlevel = LOUD", "settings.ini [logs] level: found LOUD, allowed: one of DEBUG, INFO, WARNING, ERROR"),
]


@pytest.mark.parametrize("text, line", SLIPS)
def test_a_slip_in_the_file_gives_one_line(root, text, line):
    ini(root, text)
    assert refusal(root).startswith(line)


@pytest.mark.parametrize(
    "text, line",
    [
        (
            "[risk]\nstop_loss = -0.05\nstop_loss = -0.5",
            "settings.ini [risk] stop_loss: found twice (line 3), allowed: once",
        ),
        ("[risk]\n[risk]", "settings.ini [risk]: found twice (line 2), allowed: once"),
        ("stop_loss = -0.05", "settings.ini line 1: found a line before the first section, allowed: [section] first"),
        ("[risk]\nstop_loss: -0.05", "settings.ini line 2: found something else, allowed: key = value"),
        (
            "[risk\nstop_loss = -0.05",
            "settings.ini line 1: found a line before the first section, allowed: [section] first",
        ),
        ("[DEFAULT]\nstop_loss = -0.05", "settings.ini [DEFAULT]: unknown section"),
        ("[empty]", "settings.ini [empty]: unknown section"),
        ("[broker]\n[secrets]\nalpaca_api_key = PK0123456789", "settings.ini [secrets]: refused, allowed: secrets"),
        ("[root]", "settings.ini [root]: refused"),
    ],
)
def test_a_malformed_file_gives_one_line(root, text, line):
    ini(root, text)
    assert refusal(root).startswith(line)


def test_a_line_that_cannot_be_read_is_not_quoted(root):
    "It may be a secret pasted into the wrong file"
    for text in (
        "[broker]\nALPACA_API_SECRET: hush-hush-hush",
        "ALPACA_API_SECRET hush-hush-hush",
        "[data]\nkey=hush-hush-hush",
    ):
        ini(root, text)
        assert "hush" not in refusal(root)


def test_a_limit_itself_is_allowed(root):
    ini(root, "[model]\nexpires_after = 253\n[risk]\nmax_position = 0.8\n[costs]\ncommission_rate = 0")
    settings = load_settings(root, {})
    assert (settings.model.expires_after, settings.risk.max_position) == (253, settings.risk.max_exposure)


def test_several_slips_are_counted(root):
    ini(root, "[risk]\nstop_loss = 1\ntake_profit = -1\ncool_downs = 3")
    assert refusal(root) == "settings.ini [risk] cool_downs: unknown key, did you mean cool_down? (and 2 more)"


def test_a_missing_file_is_said_in_one_line(tmp_path):
    assert refusal(tmp_path / "nowhere").startswith("settings.ini: found no such file in ")


def test_bytes_that_are_no_text(root):
    (root / "settings.ini").write_bytes(b"[data]\nsource = \xff\xfe")
    assert refusal(root) == "settings.ini: found bytes that are no text, allowed: UTF-8"


def test_comments_marks_and_percent_signs_are_harmless(root):
    "A file saved by a Windows editor, with comments everywhere"
    ini(root, "[store]\nurl = sqlite:///100%(sure).db")
    assert load_settings(root, {}).store_url.endswith("100%(sure).db")
    text = (
        "\ufeff; top\r\n[risk] # all of it\r\nstop_loss = -0.03 ; three % \r\n# between\r\ncool_down = 4 # sessions\r\n"
    )
    (root / "settings.ini").write_bytes(text.encode("utf-8"))
    settings = load_settings(root, {})
    assert (settings.risk.stop_loss, settings.risk.cool_down) == (-0.03, 4)


# places and their order


def test_environment_over_dotenv_over_file_over_default(root):
    ini(root, "[risk]\nstop_loss = -0.01\ncool_down = 1\nmax_positions = 1")
    (root / ".env").write_text("ALPHA_TRADER_RISK__STOP_LOSS=-0.02\nALPHA_TRADER_RISK__COOL_DOWN=2\n", encoding="utf-8")
    risk = load_settings(root, {"ALPHA_TRADER_RISK__STOP_LOSS": "-0.03"}).risk
    assert (risk.stop_loss, risk.cool_down, risk.max_positions, risk.take_profit) == (-0.03, 2, 1, 0.10)


def test_a_list_is_replaced_and_not_mixed(root):
    ini(root, "[data]\nwatchlist = AAPL, MSFT\n")
    assert load_settings(root, {"ALPHA_TRADER_DATA__WATCHLIST": "spy"}).data.watchlist == ("SPY",)


def test_the_process_environment_is_read_only_by_the_default(root, monkeypatch):
    monkeypatch.setenv("ALPHA_TRADER_RISK__STOP_LOSS", "-0.03")
    monkeypatch.setenv("RISK", '{"stop_loss": -0.5}')
    monkeypatch.setenv("DATA", "anything")
    assert Settings().risk.stop_loss == -0.05
    assert load_settings(root, {}).risk.stop_loss == -0.05
    assert load_settings(root).risk.stop_loss == -0.03


def test_lower_case_variables_count(root):
    assert load_settings(root, {"alpha_trader_risk__stop_loss": "-0.03"}).risk.stop_loss == -0.03


@pytest.mark.parametrize(
    "name, line",
    [
        ("ALPHA_TRADER_RISK__STOP_LOS", ": unknown key, did you mean stop_loss?"),
        ("ALPHA_TRADER_RISK", ": unknown key, allowed: max_position"),
        ("ALPHA_TRADER_LEVEL", ": unknown section"),
        ("ALPHA_TRADER_LIFE", ": unknown section"),
        ("ALPHA_TRADER_", ": unknown section"),
        ("ALPHA_TRADER_BROKER__MODE", ": refused, allowed: [broker] mode in settings.ini alone"),
        ("ALPHA_TRADER_SECRETS__ALPACA_API_KEY", ": refused, allowed: secrets under their own names"),
    ],
)
@pytest.mark.parametrize("origin", ["environment", ".env"])
def test_unknown_variables_of_ours_are_refused(root, origin, name, line):
    (root / ".env").write_text(f"{name}=paper\n" if origin == ".env" else "", encoding="utf-8")
    found = refusal(root, **({name: "paper"} if origin == "environment" else {}))
    assert found.startswith(f"{origin} {name}{line}")


def test_live_and_root_belong_to_the_process_alone(root):
    assert (
        load_settings(root, {"ALPHA_TRADER_LIVE": "12345678", "ALPHA_TRADER_ROOT": "/elsewhere"}).root == root.resolve()
    )
    for name in ("LIVE", "ROOT"):
        (root / ".env").write_text(f"ALPHA_TRADER_{name}=12345678\n", encoding="utf-8")
        assert refusal(root).startswith(f".env ALPHA_TRADER_{name}: refused, allowed: in the process environment alone")


def test_foreign_names_are_none_of_our_business(root):
    (root / ".env").write_text("EDITOR=vi\nexport AWS_REGION='eu'\nEDITOR=emacs\nFLAG\n", encoding="utf-8")
    assert load_settings(root, {"PATH": "/bin", "ALPHA": "1"}) == Settings(root=root.resolve())


@pytest.mark.parametrize(
    "text, line",
    [
        ("ALPHA_TRADER_RISK__STOP_LOSS=1", ".env ALPHA_TRADER_RISK__STOP_LOSS: found 1, allowed: a number in (-1, 0)"),
        (
            "ALPHA_TRADER_RISK__STOP_LOSS",
            ".env ALPHA_TRADER_RISK__STOP_LOSS: found nothing, allowed: a number in (-1, 0)",
        ),
        ("# x\nALPHA_TRADER_RISK__STOP_LOSS -0.1", ".env line 2: found something else, allowed: NAME=value"),
        (
            "ALPACA_API_KEY=first-one\nALPACA_API_KEY=second-one",
            ".env ALPACA_API_KEY: found twice (line 2), allowed: once",
        ),
    ],
)
def test_a_slip_in_dotenv_gives_one_line(root, text, line):
    (root / ".env").write_text(text, encoding="utf-8")
    assert refusal(root) == line


def test_root_is_the_nearest_settings_file_or_what_the_environment_says(root, tmp_path, monkeypatch):
    below = root / "nbs" / "runs"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert load_settings(environ={}).root == find_root(below) == root
    other = tmp_path / "other"
    other.mkdir()
    (other / "settings.ini").write_text("[risk]\ncool_down = 9", encoding="utf-8")
    assert load_settings(environ={"ALPHA_TRADER_ROOT": str(other)}).risk.cool_down == 9


def test_paths_hang_below_the_root(root):
    settings = load_settings(root, {"ALPHA_TRADER_DATA__FOLDER": "mine", "ALPHA_TRADER_DATA__SOURCE": "folder"})
    assert settings.source_folder == settings.root / "mine"
    for path in (settings.bars_dir, settings.runs_dir, settings.logs_dir, settings.sim_dir):
        assert path.parent == settings.data_dir == settings.root / "data"
    assert settings.models_dir == settings.root / "models"
    assert Settings(root=root, data={"folder": root / "bars"}).source_folder == root / "bars"


# secrets

SECRET = "PK-0123456789-very-secret"


def test_secrets_never_show(root):
    (root / ".env").write_text(f"ALPACA_API_SECRET={SECRET}\n", encoding="utf-8")
    settings = load_settings(root, {"ALPACA_API_KEY": SECRET[::-1], "ALPACA_API_SECRET": ""})
    assert settings.secrets.alpaca_api_secret is not None
    assert settings.secrets.alpaca_api_secret.get_secret_value() == SECRET
    assert {s.get_secret_value() for s in settings.secrets.known()} == {SECRET, SECRET[::-1]}
    everywhere = f"{settings!r}{settings}{settings.secrets}{settings.model_dump()}{settings.model_dump_json()}"
    everywhere += f"{settings.secrets.model_dump()}{settings.secrets.model_dump_json()}{settings_table(settings)}"
    assert SECRET not in everywhere and SECRET[::-1] not in everywhere
    assert "secrets" not in json.loads(settings.model_dump_json())


def test_a_database_password_does_not_show_and_is_put_in_last(root):
    ini(root, "[store]\nurl = postgresql+psycopg://trader:hunter2@db/alpha")
    line = refusal(root)
    assert "hunter2" not in line and "DATABASE_PASSWORD" in line
    ini(root, "[store]\nurl = postgresql+psycopg://trader@db/alpha")
    settings = load_settings(root, {"DATABASE_PASSWORD": "a/b@c"})
    assert settings.store_url == "postgresql+psycopg://trader:a%2Fb%40c@db/alpha"
    assert "a/b@c" not in repr(settings) and "a%2Fb" not in repr(settings)


def test_the_store_is_sqlite_in_the_workspace_by_default(root):
    settings = load_settings(root, {})
    assert settings.store_url == f"sqlite:///{settings.data_dir.as_posix()}/alpha_trader.db"
    ini(root, "[store]\nurl = mysql://somewhere")
    assert "found mysql://somewhere, allowed: nothing, sqlite:///file.db or postgresql" in refusal(root)


# frozen, and changed only into something new


def test_frozen_equal_hashable_and_pickled():
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.risk = settings.risk  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        settings.risk.stop_loss = -0.5  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(settings) == hash(Settings())


@pytest.mark.parametrize("section, key", [name for name in KEYS if name != ("broker", "mode")])
def test_override_with_the_default_changes_nothing(section, key):
    settings = Settings()
    assert override(settings, {f"{section}.{key}": as_text(getattr(getattr(settings, section), key))}) == settings


def test_override_keeps_everything_else(root):
    ini(root, "[broker]\naccount = second\n[data]\nwatchlist = AAPL")
    settings = load_settings(root, {"ALPACA_API_KEY": SECRET})
    changed = override(settings, {"risk.stop_loss": "-0.01", "model.seeds": [1, 2]})
    assert (changed.risk.stop_loss, changed.model.seeds) == (-0.01, (1, 2))
    assert (changed.root, changed.secrets, changed.broker, changed.data) == (
        settings.root,
        settings.secrets,
        settings.broker,
        settings.data,
    )
    assert settings.risk.stop_loss == -0.05


@pytest.mark.parametrize(
    "name, value, line",
    [
        ("broker.mode", "live", "override broker.mode: refused, allowed: [broker] mode in settings.ini alone"),
        ("broker.mode", "paper", "override broker.mode: refused"),
        ("secrets.alpaca_api_key", SECRET, "override secrets.alpaca_api_key: refused"),
        ("root", "/", "override root.: refused"),
        ("stop_loss", "-0.05", "override stop_loss.: unknown section"),
        ("risk.stop_loss", "1", "override risk.stop_loss: found 1, allowed: a number in (-1, 0)"),
        (
            "risk.max_exposure",
            "0.05",
            "settings.ini [risk] max_position: found 0.1, allowed: a number in (0, max_exposure = 0.05]",
        ),
    ],
)
def test_override_is_checked_like_everything_else(name, value, line):
    with pytest.raises(SettingsError) as caught:
        override(Settings(), {name: value})
    assert str(caught.value).startswith(line)
    assert SECRET not in str(caught.value)


def test_the_table_shows_what_was_changed():
    rows = settings_table(override(Settings(), {"risk.stop_loss": "-0.01"}))
    assert [(row.section, row.key) for row in rows] == KEYS
    assert [row for row in rows if row.changed] == [("risk", "stop_loss", "-0.01", "-0.05", True)]


def test_the_shipped_file_is_one_python_can_read():
    "No dialect of ours is needed to read what we ship"
    stock = configparser.ConfigParser(interpolation=None)
    stock.read_string((CHECKOUT / "settings.ini").read_text(encoding="utf-8"))
    assert stock["risk"]["stop_loss"] == "-0.05"
