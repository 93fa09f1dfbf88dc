import contextlib
import os
import shutil
import socket
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError

from pbp_search.databases import Database
from pbp_search.errors import InputError, StorageError
from pbp_search.home import Home
from pbp_search.search.storage import is_away, open_storage
from tests.postgresql import Server


def test_an_empty_home_gets_a_storage(empty_home: Home) -> None:
    storage = open_storage(empty_home)
    assert optuna.get_all_study_names(storage) == []
    connection = sqlite3.connect(empty_home.folder / "optuna.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    again = open_storage(empty_home, create=False)
    assert optuna.get_all_study_names(again) == []


def test_a_storage_elsewhere(empty_home: Home, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    optuna.create_study(study_name="a", storage=open_storage(empty_home, url))
    assert optuna.get_all_study_names(url) == ["a"]
    assert not (empty_home.folder / "optuna.db").exists()


@pytest.mark.parametrize("name", ["a b", "ä%20", "a#b", "a?b=c", "a%b", "a+b;c"])
def test_homes_of_any_name(tmp_path: Path, name: str) -> None:
    home = Home.at(tmp_path / name)
    open_storage(home)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (home.folder / "optuna.db").is_file()
    open_storage(home, create=False)


def test_reading_makes_nothing(empty_home: Home, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(empty_home, create=False)
    assert str(caught.value) == (
        f"There is no study storage {empty_home.folder}/optuna.db: name the folder of the studies with --home."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["home", "a b", "a#b", "a?b=c", "a%20b"])
def test_a_folder_that_cannot_be_written_to_is_read(
    tmp_path: Path, name: str, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / name)
    home.create()
    shutil.copy(stores / "optuna.db", home.folder)
    optuna.create_study(study_name="a", storage=open_storage(home))
    for lock in home.folder.glob("*.lock"):
        lock.unlink()
    before = {file.name: file.read_bytes() for file in home.folder.iterdir()}
    access = os.access  # the tests may run as root, who may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    storage = open_storage(home, create=False)
    assert optuna.get_all_study_names(storage) == ["a"]
    with pytest.raises(StorageInternalError):
        optuna.create_study(study_name="b", storage=storage)
    storage.engine.dispose()
    assert {file.name: file.read_bytes() for file in home.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (OperationalError("", {}, Exception("server closed the connection")), True),
        (OperationalError("", {}, Exception("database or disk is full")), False),
        (DBAPIError("", {}, Exception("terminated"), connection_invalidated=True), True),
        (DBAPIError("", {}, Exception("no such column")), False),
        (PendingRollbackError("reconnect", code="8s2b"), True),
        (PendingRollbackError("a flush failed", code="7s2a"), False),
        (OperationalError("", {}, Exception('FATAL:  password authentication failed for user "pbp"')), False),
        (OperationalError("", {}, Exception("fe_sendauth: no password supplied")), False),
        (OperationalError("", {}, Exception('FATAL:  database "study" does not exist')), False),
        (OperationalError("", {}, Exception('FATAL:  no pg_hba.conf entry for host "10.0.0.9"')), False),
        (OperationalError("", {}, Exception("FATAL:  sorry, too many clients already")), True),
        (OperationalError("", {}, Exception("FATAL:  the database system is starting up")), True),
        (ValueError(), False),
    ],
    ids=str,
)
def test_what_may_pass_by_itself(error: Exception, away: bool) -> None:
    assert is_away(error) == away
    wrapped = StorageInternalError()
    wrapped.__cause__ = error
    assert is_away(wrapped) == away


def failure(url: str, statement: str = "SELECT 1", **arguments: Any) -> DBAPIError:
    """What a database answers."""
    engine = sqlalchemy.create_engine(url, **arguments)
    try:
        with pytest.raises(DBAPIError) as caught, engine.connect() as connection:
            connection.execute(sqlalchemy.text(statement))
    finally:
        engine.dispose()
    return caught.value


def test_sqlite_is_waited_for_while_it_is_locked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/file.db"
    with contextlib.closing(sqlite3.connect(tmp_path / "file.db", isolation_level=None)) as other:
        other.execute("CREATE TABLE things (id INTEGER)")
        other.execute("BEGIN EXCLUSIVE")
        assert is_away(failure(url, "SELECT * FROM things", connect_args={"timeout": 0}))
    assert not is_away(failure(url, "SELECT * FROM nothing"))
    assert not is_away(failure(f"sqlite:///{tmp_path}/no/folder/file.db"))


@pytest.mark.slow
def test_a_server_that_refuses_is_not_waited_for(postgresql: Server) -> None:
    url = Database.parse("storage", postgresql.url("postgres")).secret_url
    assert not is_away(failure(url.replace(postgresql.password, "wrong")))
    assert not is_away(failure(url.replace(f":{postgresql.password}", "")))
    assert not is_away(failure(Database.parse("storage", postgresql.url("nothing")).secret_url))
    assert not is_away(failure(url, "SELECT * FROM nothing"))
    with contextlib.closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        assert is_away(failure(f"postgresql+psycopg://u@127.0.0.1:{nobody.getsockname()[1]}/d"))


def test_foreign_storage_is_refused_and_left_alone(empty_home: Home, tmp_path: Path) -> None:
    file = tmp_path / "recipes.db"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.commit()
    connection.close()
    before = file.read_bytes()
    for create in (True, False):
        with pytest.raises(StorageError, match="is another program's database"):
            open_storage(empty_home, f"sqlite:///{file}", create=create)
    assert file.read_bytes() == before


def test_mlflows_database_is_no_storage(home: Home) -> None:
    with pytest.raises(StorageError, match="is another program's database"):
        open_storage(home, home.tracking_uri)


def test_an_optuna_schema_of_another_version_is_a_sentence(home: Home) -> None:
    connection = sqlite3.connect(home.folder / "optuna.db")
    connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    connection.execute("UPDATE version_info SET schema_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match=r"^The storage sqlite:///.*optuna.db cannot be opened: .+"):
        open_storage(home)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("hunter2", "is not a database URL"),
        ("sqlite://", "in memory is lost"),
        ("hunter2db://user:hunter2@host/database", "is of another kind: studies are kept in SQLite"),
        ("sqlite:////no/such/folder/anywhere/file.db", "cannot be opened: there is no folder"),
    ],
)
def test_urls_that_cannot_be_used(empty_home: Home, url: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        open_storage(empty_home, url)
    assert ":hunter2@" not in str(caught.value)
    assert "\n" not in str(caught.value)
