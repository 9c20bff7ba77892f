"""Registry: every way to damage a model, and a process killed at every step of a save"""

import json
import os
import shutil
import signal
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from alpha_trader import registry
from alpha_trader.domain import ModelError
from alpha_trader.features import FeatureSet
from alpha_trader.labels import forward_return
from alpha_trader.models import KINDS, Ensemble, Member, fit_panel, predict_panel
from alpha_trader.registry import (
    ModelCard,
    card_for,
    check_serves,
    damaged_models,
    digest,
    expiry,
    list_models,
    load_model,
    recipe_id,
    save_model,
)
from alpha_trader.samples import synthetic_panel
from alpha_trader.settings import FeatureSettings, LabelSettings, ModelSettings

NOON = datetime(2024, 1, 2, 12, tzinfo=UTC)
MODEL = ModelSettings(lightgbm_rounds=8, xgboost_rounds=8, threads=2)


def trained(seed: int = 7, model: ModelSettings = MODEL) -> tuple[Ensemble, ModelCard, FeatureSet]:
    "A small ensemble on synthetic bars, with its card"
    panel = synthetic_panel(symbols=3, sessions=160, seed=seed)
    values = np.random.default_rng(seed).normal(size=(160, 3, 2)).astype(np.float32)
    features, labels = FeatureSet(names=("a", "b"), values=values), forward_return(panel, 5)
    ensemble = fit_panel(features, labels, 150, LabelSettings(), model)
    scores = {"in_sample": {"rank_ic": 0.2, "rank_ic_t": float("nan")}, "out_of_sample": {"rank_ic": 0.0}}
    sections = FeatureSettings(), LabelSettings(), model
    card = card_for(ensemble, panel, features, labels, 150, *sections, scores, NOON, "test")
    return ensemble, card, features


@pytest.fixture(scope="module")
def fitted() -> tuple[Ensemble, ModelCard, FeatureSet]:
    return trained()


@pytest.fixture(scope="module")
def kept(fitted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("kept") / "models"
    return folder, save_model(fitted[0], folder, fitted[1])


@pytest.fixture
def copy(kept: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    "A models folder to damage"
    shutil.copytree(kept[0], tmp_path / "models")
    return tmp_path / "models", kept[1]


def refused(models_dir: Path, model_id: str, match: str) -> None:
    "Loading fails with one line, and the lists agree"
    with pytest.raises(ModelError, match=match) as caught:
        load_model(models_dir, model_id)
    assert "\n" not in str(caught.value)
    assert list_models(models_dir) == []
    assert damaged_models(models_dir).get(model_id, str(caught.value)) == str(caught.value)


def test_what_is_loaded_is_what_was_saved(fitted, kept) -> None:
    ensemble, card, features = fitted
    restored, found = load_model(*kept)
    assert np.array_equal(predict_panel(restored, features), predict_panel(ensemble, features))
    assert found == card.model_copy(update={"id": kept[1], "files": found.files})
    assert found.scores["in_sample"] == {"rank_ic": 0.2, "rank_ic_t": None}
    assert sorted(path.name for path in (kept[0] / kept[1]).iterdir()) == sorted([*found.files, "meta.json"])
    assert [path.name for path in kept[0].iterdir()] == [kept[1]]


def test_training_again_gives_the_same_id_on_any_threads(kept, tmp_path: Path) -> None:
    ensemble, card, _ = trained(model=MODEL.model_copy(update={"threads": 1}))
    assert save_model(ensemble, tmp_path, card) == kept[1]
    other, other_card, _ = trained(seed=8)
    assert save_model(other, tmp_path, other_card) != kept[1]
    assert recipe_id(other_card) == recipe_id(card)  # more or other data is still the same recipe
    assert len(list_models(tmp_path)) == 2


def test_no_file_holds_a_pickle(kept) -> None:
    for path in (kept[0] / kept[1]).iterdir():
        assert path.suffix in (".txt", ".ubj", ".json")
        assert not path.read_bytes().startswith(b"\x80")  # the first byte of every binary pickle
    source = Path(registry.__file__).read_text()
    assert "import pickle" not in source and "joblib" not in source


@pytest.mark.parametrize("name", ["lightgbm-42.txt", "lightgbm-84.txt", "xgboost-42.ubj", "xgboost-84.ubj"])
@pytest.mark.parametrize("damage", ["cut", "half", "empty", "edit", "append"])
def test_a_member_that_was_touched_is_refused(copy, name: str, damage: str) -> None:
    path = copy[0] / copy[1] / name
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    changed = {
        "cut": content[:-1],
        "half": content[:middle],
        "empty": b"",
        "edit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "append": content + b"\n",
    }
    path.write_bytes(changed[damage])
    refused(*copy, match=f"model {copy[1]}: {name} was truncated or changed after it was saved")


def test_files_that_are_missing_or_do_not_belong_are_named(copy) -> None:
    folder = copy[0] / copy[1]
    (folder / "notes.pkl").write_bytes(b"\x80\x04.")
    refused(*copy, match="notes.pkl does not belong there")
    (folder / "notes.pkl").unlink()
    (folder / "xgboost-42.ubj").unlink()
    refused(*copy, match="xgboost-42.ubj is missing")


EDITED = ["feed", "source", "trained_to", "data_hash", "package_version", "created_for", "rows"]


@pytest.mark.parametrize("field", EDITED)
def test_an_edited_card_is_refused(copy, field: str) -> None:
    path = copy[0] / copy[1] / "meta.json"
    meta = json.loads(path.read_text())
    meta["card"][field] = {"trained_to": "2030-01-02", "rows": 1}.get(field, "iex")
    path.write_text(json.dumps(meta))
    refused(*copy, match="meta.json was changed after it was saved")


def test_a_resealed_card_still_betrays_itself_by_its_name(copy) -> None:
    "Somebody edits the feed and computes the seal anew: the folder's name is the hash of the facts"
    path = copy[0] / copy[1] / "meta.json"
    meta = json.loads(path.read_text())
    meta["card"]["feed"] = "iex"
    meta["seal"] = digest(meta["card"], 16)
    path.write_text(json.dumps(meta))
    refused(*copy, match="the folder holds model")


def test_another_schema_is_named(copy) -> None:
    path = copy[0] / copy[1] / "meta.json"
    meta = json.loads(path.read_text())
    meta["card"]["schema_version"] = 1
    meta["seal"] = digest(meta["card"], 16)
    path.write_text(json.dumps(meta))
    refused(*copy, match="meta.json has schema 1, this version reads 3")


NO_CARDS = [b"", b"{", b"[]", b"null", b'{"seal": 1}', b'{"seal": "x", "card": {}}', b"\xff\xfe\x00"]


@pytest.mark.parametrize("content", NO_CARDS)
def test_a_damaged_card_is_one_line(copy, content: bytes) -> None:
    (copy[0] / copy[1] / "meta.json").write_bytes(content)
    refused(*copy, match="meta.json is damaged")


def test_unknown_fields_and_values_are_refused_even_when_sealed(copy) -> None:
    path = copy[0] / copy[1] / "meta.json"
    meta = json.loads(path.read_text())
    meta["card"] = {**meta["card"], "surprise": 1, "rows": "many"}
    meta["seal"] = digest(meta["card"], 16)
    path.write_text(json.dumps(meta))
    refused(*copy, match="meta.json is damaged, 2 fields are wrong")


def test_a_renamed_folder_is_refused(copy) -> None:
    (copy[0] / copy[1]).rename(copy[0] / ("0" * 12))
    refused(copy[0], "0" * 12, match=f"model {'0' * 12}: the folder holds model {copy[1]}")


STRANGE_IDS = ["", ".", "..", "../models", "a" * 11, "A" * 12, "0" * 12, "x/../y", "0" * 12 + "\n"]


@pytest.mark.parametrize("model_id", STRANGE_IDS)
def test_an_id_that_is_not_ours_never_becomes_a_path(kept, model_id: str) -> None:
    with pytest.raises(ModelError, match="there is no model"):
        load_model(kept[0], model_id)


def test_saving_over_a_damaged_copy_heals_it(fitted, copy) -> None:
    (copy[0] / copy[1] / "xgboost-42.ubj").write_bytes(b"")
    assert save_model(fitted[0], copy[0], fitted[1]) == copy[1]
    assert load_model(*copy)[1].id == copy[1]
    assert [path.name for path in copy[0].iterdir()] == [copy[1]]


def test_a_member_of_an_unknown_kind_cannot_be_loaded(fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "forest", KINDS["lightgbm"])
    ensemble = Ensemble((Member("forest", 1, fitted[0].members[0].booster), *fitted[0].members[1:]), fitted[0].features)
    card = fitted[1].model_copy(update={"members": tuple(member.name for member in ensemble.members)})
    model_id = save_model(ensemble, tmp_path, card)
    monkeypatch.delitem(KINDS, "forest")
    with pytest.raises(ModelError, match="member forest-1: this version knows classifier, lightgbm, xgboost"):
        load_model(tmp_path, model_id)


# -- other data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed": "iex"}, "trained on feed seed-7, not iex"),
        ({"source": "alpaca"}, "trained on source synthetic, not alpaca"),
        ({"universe": ("SYNA", "TSLA")}, "a universe without TSLA"),
        ({"features": ("b", "a")}, "other features"),
    ],
)
def test_a_model_for_other_data_is_refused_in_one_line(kept, change: dict, message: str) -> None:
    card = load_model(*kept)[1]
    own = {"source": card.source, "feed": card.feed, "universe": card.universe, "features": card.features}
    check_serves(card, **own)
    with pytest.raises(ModelError, match=message) as caught:
        check_serves(card, **{**own, **change})
    assert "\n" not in str(caught.value)


def test_a_model_expires_by_sessions_not_by_days(kept) -> None:
    card = load_model(*kept)[1]
    days = synthetic_panel(symbols=1, sessions=200).sessions
    assert days[159].item() == card.as_of
    assert expiry(card, days[169].item(), 10) is None
    assert expiry(card, days[170].item(), 10) == f"model {card.id} is 11 sessions old, it expires after 10"


# -- killed while saving ---------------------------------------------------------------------------


def save_and_die(fitted, models_dir: Path, step: int) -> bool:
    "In a child: save, killed before the `step`-th call that touches the disk's state; True when it came through"
    contents = registry.member_files(fitted[0])  # beforehand: a forked child must not enter a library that ran OpenMP
    child = os.fork()
    if child == 0:
        calls = 0

        def deadly(real):
            def wrapper(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return wrapper

        os.fsync, Path.rename, Path.mkdir = deadly(os.fsync), deadly(Path.rename), deadly(Path.mkdir)  # type: ignore[method-assign]
        registry.member_files, registry.load_model = lambda _: contents, lambda *_: None  # type: ignore[assignment]
        save_model(fitted[0], models_dir, fitted[1])
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_every_step_leaves_all_or_nothing(fitted, kept, tmp_path: Path) -> None:
    outcomes, models_dir = [], tmp_path / "models"
    for step in range(1, 30):
        shutil.rmtree(models_dir, ignore_errors=True)
        models_dir.mkdir()
        survived = save_and_die(fitted, models_dir, step)
        loadable = [card.id for card in list_models(models_dir)]
        assert loadable in ([], [kept[1]]) and damaged_models(models_dir) == {}
        if not loadable:
            with pytest.raises(ModelError):
                load_model(models_dir, kept[1])
        outcomes.append((bool(loadable), survived))
        assert save_model(fitted[0], models_dir, fitted[1]) == kept[1]  # the next run
        assert [path.name for path in models_dir.iterdir()] == [kept[1]]  # and it left no litter
        if survived:
            break
    assert outcomes[0] == (False, False) and outcomes[-1] == (True, True)
    assert (True, False) in outcomes  # killed after the rename: the model is there
    assert len(outcomes) > 7


def test_a_full_disk_is_one_line_and_no_model(fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry, "write_synced", full)
    with pytest.raises(ModelError, match="could not be saved in models/: No space left on device"):
        save_model(fitted[0], tmp_path / "models", fitted[1])
    assert list_models(tmp_path / "models") == []
