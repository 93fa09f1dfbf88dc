import string
from pathlib import Path

import pytest
from filelock import Timeout
from hypothesis import given
from hypothesis import strategies as st

from pbp_search.errors import InputError
from pbp_search.home import Home, StudyFolder, check_name

ALLOWED = string.ascii_letters + string.digits


@pytest.mark.parametrize("name", ["a", "digits_mlp", "A.b-c_1", "7", "x" * 100, "a..b"])
def test_names_of_studies(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "x" * 101, ".hidden", "..", "-x", "_x", "a b", "a\n", "\x00", "ä", "a\\b", "a:b", "~"]
)
def test_names_that_no_study_can_have(name: str) -> None:
    with pytest.raises(InputError) as caught:
        check_name(name)
    assert str(caught.value) == (
        f"The study name {name!r} is not allowed: use up to 100 letters, digits, '.', '_' and '-', "
        "and begin with a letter or digit."
    )


@given(st.text(min_size=1, max_size=110))
def test_a_study_is_always_a_folder_of_the_home(name: str) -> None:
    home = Home.at("somewhere")
    try:
        folder = home.new_study(check_name(name))
    except InputError:
        assert len(name) > 100 or name[0] not in ALLOWED or set(name) - set(ALLOWED + "._-")
    else:
        assert folder.path.parent == home.folder / "studies"
        assert folder.path.name == folder.identity
        assert folder.identity.startswith(name[:80] + "-")
        assert folder != home.new_study(name)


def test_building_a_home_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = Home.at("runs/here")
    assert home.folder == tmp_path / "runs" / "here"
    assert home.storage_url == f"sqlite:///{tmp_path}/runs/here/optuna.db"
    assert home.tracking_uri == f"sqlite:///{tmp_path}/runs/here/mlflow.db"
    assert home.artifacts == tmp_path / "runs" / "here" / "artifacts"
    assert StudyFolder(home, "a").milestones == home.folder / "artifacts" / "a" / "milestones"
    assert StudyFolder(home, "a").locks == home.folder / "studies" / "a" / "locks"
    shared = Home.at("runs/here", artifacts="shared")
    assert shared.folder == home.folder
    assert StudyFolder(shared, "a").milestones == tmp_path / "shared" / "a" / "milestones"
    monkeypatch.chdir("/")
    assert home.folder == tmp_path / "runs" / "here"
    assert not list(tmp_path.iterdir())


def test_creating_a_home_leaves_an_empty_folder(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "a" / "b")
    assert home.create() is home
    assert home.create() is home
    assert home.folder.is_dir()
    assert not list(home.folder.iterdir())


def test_a_home_below_a_file_is_bad_input(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    for folder in (file, file / "below"):
        with pytest.raises(
            InputError, match=r"The folder .* cannot be written to \(.+\): name another home with --home"
        ):
            Home.at(folder).create()
    assert file.read_text() == "kept"


def test_folders_that_machines_share_are_made_with_the_study_only(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home", tmp_path / "shared")
    folder = StudyFolder(home, "a").create()
    assert not (tmp_path / "shared").exists()
    assert folder.create_artifacts() is folder
    assert folder.milestones.is_dir()
    assert not home.artifacts.is_relative_to(home.folder)


def test_artifacts_below_a_file_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"The folder .* cannot be written to \(.+\): name another folder"):
        StudyFolder(Home.at(tmp_path, tmp_path / "file"), "a").create_artifacts()


def test_locks_are_held_once(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    study = StudyFolder(home, "a").create()
    for make in (study.tracking_lock, lambda: study.trial_lock(1), home.creation_lock):
        with make(), pytest.raises(Timeout):
            make().acquire(timeout=0)
        with make().acquire(timeout=0):
            pass


def test_locks_of_trials_and_studies_are_their_own(tmp_path: Path) -> None:
    one, other = (StudyFolder(Home.at(tmp_path), name).create() for name in "ab")
    with (
        one.trial_lock(1).acquire(timeout=0),
        one.trial_lock(2).acquire(timeout=0),
    ):
        lock = other.trial_lock(1)
        lock.acquire(timeout=0)
        assert lock.is_locked
        lock.release()
