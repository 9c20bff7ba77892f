"""Signal diff between real git revisions: other code gives other orders, the same code none, old code one clear line"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT
from replay import NOW, write_settings

from alpha_trader.diff import git, signal_diff
from alpha_trader.domain import InputError
from alpha_trader.pipeline import ingest
from alpha_trader.settings import Settings, SettingsError
from alpha_trader.store import open_store

CHANGES: dict[str, object] = {
    "data.source": "synthetic", "data.synthetic_symbols": 3, "data.synthetic_sessions": 330, "data.synthetic_seed": 11,
    "model.lightgbm_rounds": 10, "model.xgboost_rounds": 10, "model.min_train": 200, "model.refit": "monthly",
    "signals.buy": 0.0002, "signals.confidence": 0.1, "label.horizon": 2,
}  # fmt: skip


def commit(root: Path, message: str) -> None:
    for words in (
        ("add", "."),
        ("-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-q", "-m", message),
    ):
        assert git(root, *words) is not None


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    "A repository with three revisions: the package as it is, a changed feature, and a package that is too old"
    root = tmp_path_factory.mktemp("repository")
    settings = write_settings(root, CHANGES)
    shutil.copytree(CHECKOUT / "alpha_trader", root / "alpha_trader", ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".gitignore").write_text("data/\nmodels/\n__pycache__/\n")
    assert git(root, "init", "-q") is not None
    commit(root, "As it is")
    assert git(root, "tag", "start") is not None
    code = root / "alpha_trader" / "research.py"
    text = code.read_text()
    assert text.count("inputs = features(panel,") == 1
    code.write_text(text.replace("inputs = features(panel,", "inputs = features(panel.select(panel.symbols),"))
    with (root / "alpha_trader" / "confidence.py").open("a") as file:
        file.write("\n\n_consensus = consensus\n\n\ndef consensus(members):\n    return -_consensus(members)\n")
    commit(root, "Believe the opposite")
    assert git(root, "tag", "opposite") is not None
    (root / "alpha_trader" / "research.py").unlink()
    commit(root, "Forget the past")
    assert git(root, "tag", "old") is not None
    ingest(settings, open_store(settings.store_url), NOW)
    return settings


@pytest.mark.slow  # each revision compiles its own kernels
def test_the_same_code_makes_the_same_orders(workspace: Settings) -> None:
    found = signal_diff(workspace, "start", "settings.ini", 60)
    assert found.facts()["orders"] == "0 of 60 sessions would have had different orders"
    assert found.sessions().empty and not found.other_predictions.any()
    np.testing.assert_array_equal(found.old.equity, found.new.equity)
    assert found.features()["change"].max() == 0.0 and (found.numbers()["change"] == 0.0).all()
    assert np.count_nonzero(found.old.planned) >= 5


@pytest.mark.slow
def test_other_code_makes_other_orders(workspace: Settings) -> None:
    found = signal_diff(workspace, "start", "opposite", 60)
    np.testing.assert_array_equal(found.old.predicted, -found.new.predicted)
    assert found.other_orders.sum() > 5 and found.features()["change"].max() == 0.0
    assert len(found.sessions()["session"].unique()) == found.other_orders.sum()


def test_a_settings_file_may_move_features_in_and_out(workspace: Settings) -> None:
    names = sorted(signal_diff(workspace, "settings.ini", "settings.ini", 20).old.features)
    (workspace.root / "fewer.ini").write_text(
        (workspace.root / "settings.ini").read_text() + f"\n[features]\nnames = {', '.join(names[2:])}\n"
    )
    found = signal_diff(workspace, "settings.ini", "fewer.ini", 20)
    assert set(found.features().iloc[:2]["feature"]) == set(names[:2])
    assert found.features().iloc[:2]["note"].tolist() == ["gone", "gone"]


def test_what_cannot_be_compared_is_one_line(workspace: Settings) -> None:
    with pytest.raises(
        InputError, match="revision 'old' cannot be measured: ModuleNotFoundError: .*alpha_trader.research"
    ):
        signal_diff(workspace, "old", "settings.ini", 20)
    with pytest.raises(InputError, match="'--all' is neither a settings file nor a revision of the git repository in "):
        signal_diff(workspace, "--all", "settings.ini", 20)
    with pytest.raises(InputError, match="10000 sessions, allowed: 2 to "):
        signal_diff(workspace, "start", "old", 10000)
    (workspace.root / "wrong.ini").write_text("[signals]\nbuy = much\n")
    with pytest.raises(SettingsError, match=r"^wrong.ini \[signals\] buy: found much"):
        signal_diff(workspace, "settings.ini", "wrong.ini", 20)


@pytest.mark.slow
def test_the_checkout_is_left_alone(workspace: Settings) -> None:
    status = git(workspace.root, "status", "--porcelain")
    signal_diff(workspace, "start", "settings.ini", 20)
    assert git(workspace.root, "status", "--porcelain") == status
