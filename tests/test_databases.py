import os
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from filelock import FileLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from pbp_search import databases
from pbp_search.databases import Database, server_lock
from pbp_search.errors import StorageError
from pbp_search.search.storage import is_away
from tests.postgresql import Server

OWN = {"studies", "trials"}


def prepare(database: Database) -> None:
    with database.opening(FileLock("server.lock"), OWN):
        pass


def tables(file: Path, *names: str) -> None:
    connection = sqlite3.connect(file)
    for name in names:
        connection.execute(f"CREATE TABLE {name} (id INTEGER)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "./some/hunter2",
        "postgresql:hunter2@host/database",
        "postgresql://user:hunter2@host:hunter2/database",
        "postgresql://user:hunter2@host:54x2/database",
        "://user:hunter2@host/database",
    ],
)
def test_what_is_no_url_is_not_repeated(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        Database.parse("storage", url)
    assert str(caught.value) == (
        "The storage is not a database URL: it should look like sqlite:///path/to/file.db or "
        "postgresql://user:password@host/database."
    )
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite+pysqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file:shared?mode=memory&cache=shared&uri=true",
    ],
)
def test_memory_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="A storage in memory is lost when the command ends: use sqlite:///"):
        Database.parse("storage", url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@host/database",
        "postgresql+psycopg2://user:hunter2@host:5432/database?sslmode=require",
        "mysql+pymysql://user:hunter2@host/database",
        "postgresql://user@host/database?password=hunter2",
        "mysql+pymysql://user@host/database?passwd=hunter2",
        "postgresql://user@host/database?Token=hunter2",
        "mlflow://hunter2@host/database",
    ],
)
def test_passwords_are_never_shown(url: str) -> None:
    database = Database.parse("storage", url)
    assert "hunter2" not in database.shown
    assert "host" in database.shown
    assert "database" in database.shown
    assert "hunter2" in database.secret_url
    for cause in (
        OperationalError("SELECT 1", {}, Exception(f"cannot connect to {url}\nhunter2 refused")),
        ImportError("no module hunter2"),
        OSError("hunter2"),
    ):
        error = database.error(cause)
        assert "hunter2" not in str(error)
        assert "\n" not in str(error)
        assert str(error).startswith(f"The storage {database.shown} ")


def test_a_missing_driver_is_named() -> None:
    error = Database.parse("storage", "postgresql://user:hunter2@host/database").error(ModuleNotFoundError("psycopg2"))
    assert str(error) == (
        "The storage postgresql://user:***@host/database needs a database driver that is not installed: install the "
        "one for postgresql (pip install 'psycopg[binary]')."
    )


def test_an_error_of_ours_stays(tmp_path: Path) -> None:
    database = Database.parse("tracking store", f"sqlite:///{tmp_path}/file.db")
    ours = StorageError("A sentence.")
    assert database.error(ours) is ours
    assert str(database.error(OSError("disk is full"))) == (
        f"The tracking store sqlite:///{tmp_path}/file.db cannot be opened: disk is full"
    )
    assert str(database.error(OSError())).startswith(
        f"The tracking store sqlite:///{tmp_path}/file.db cannot be opened"
    )


def test_the_file_of_a_database(tmp_path: Path) -> None:
    assert Database.parse("storage", f"sqlite:///{tmp_path}/file.db").file == tmp_path / "file.db"
    assert Database.parse("storage", "postgresql://host/database").file is None


def test_an_empty_database_is_made_ready(tmp_path: Path) -> None:
    file = tmp_path / "file.db"
    prepare(Database.parse("storage", f"sqlite:///{file}"))
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_our_own_database_is_accepted(tmp_path: Path) -> None:
    tables(tmp_path / "file.db", *OWN, "another")
    database = Database.parse("storage", f"sqlite:///{tmp_path}/file.db")
    prepare(database)
    prepare(database)
    connection = sqlite3.connect(tmp_path / "file.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_file_whose_maker_died_is_made_anew_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "file.db"
    database = Database.parse("storage", f"sqlite:///{file}")
    with pytest.raises(sqlite3.OperationalError), database.opening(FileLock("server.lock"), OWN):
        tables(file, "studies", "no name")
    with database.opening(FileLock("server.lock"), OWN):
        tables(file, *OWN)
    before = file.read_bytes()
    prepare(database)
    assert file.read_bytes() == before


@pytest.mark.parametrize("names", [["recipes"], ["studies", "recipes"], ["zebras", "recipes", "yaks"]])
def test_foreign_databases_are_refused_and_left_alone(tmp_path: Path, names: list[str]) -> None:
    file = tmp_path / "file.db"
    tables(file, *names)
    before = file.read_bytes()
    with pytest.raises(StorageError) as caught:
        prepare(Database.parse("storage", f"sqlite:///{file}"))
    assert str(caught.value) == (
        f"The storage sqlite:///{file} is another program's database (it has the table 'recipes'): name an empty one."
    )
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {file.name}


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Not a database, but a text of some length, longer than the header of one would be.\n" * 20)
    before = file.read_bytes()
    database = Database.parse("storage", f"sqlite:///{file}")
    with pytest.raises(SQLAlchemyError) as caught:
        prepare(database)
    sentence = str(database.error(caught.value))
    assert sentence == f"The storage sqlite:///{file} cannot be opened: file is not a database"
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {file.name}


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    database = Database.parse("storage", f"sqlite:///{tmp_path}")
    with pytest.raises(SQLAlchemyError) as caught:
        prepare(database)
    assert str(database.error(caught.value)).endswith("cannot be opened: unable to open database file")


@pytest.mark.parametrize(
    ("has_psycopg2", "url", "driver"),
    [
        (False, "postgresql://u@host/d", "postgresql+psycopg"),
        (True, "postgresql://u@host/d", "postgresql"),
        (False, "postgresql+asyncpg://u@host/d", "postgresql"),
    ],
)
def test_the_driver_of_postgresql_is_the_one_that_is_there(
    monkeypatch: pytest.MonkeyPatch, has_psycopg2: bool, url: str, driver: str
) -> None:
    monkeypatch.setattr(databases, "find_spec", lambda name: has_psycopg2 or None)
    database = Database.parse("storage", url)
    driven = make_url(database.secret_url)
    assert driven.set(query={}).render_as_string() == url.replace("postgresql", driver)
    assert driven.query == ({} if "asyncpg" in url else databases._CONNECTION_SETTINGS), "asyncpg does not know them"
    assert database.shown == url


@pytest.mark.slow
def test_a_server_that_vanishes_is_noticed_within_a_minute(postgresql: Server) -> None:
    url = make_url(postgresql.url("postgres")).update_query_dict({"keepalives_idle": "30"})
    url = make_url(Database.parse("storage", url.render_as_string(hide_password=False)).secret_url)
    assert url.query["connect_timeout"] == "10"
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection, socket.socket(fileno=os.dup(driver_of(connection).fileno())) as ours:
        options = {
            name: ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
            for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")
        }
    engine.dispose()
    assert options == {"KEEPIDLE": 30, "KEEPINTVL": 10, "KEEPCNT": 4, "USER_TIMEOUT": 60_000}, "a user's own is kept"


def driver_of(connection: sqlalchemy.Connection) -> Any:
    return connection.connection.driver_connection


@pytest.mark.slow
def test_a_lock_in_the_server_is_held_by_one_thread(postgresql: Server) -> None:
    engine = sqlalchemy.create_engine(Database.parse("storage", postgresql.new_database()).secret_url)
    order: list[str] = []
    first_is_in = threading.Event()

    def second() -> None:
        first_is_in.wait(30)
        with server_lock(engine, "other"):
            order.append("another lock")
        with server_lock(engine, "same"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with server_lock(engine, "same"):
        first_is_in.set()
        thread.join(0.5)
        order.append("first")
    thread.join(30)
    assert order == ["another lock", "first", "second"]
    engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["the server is restarted", "we are stopped for too long"])
def test_nothing_is_written_after_a_lock_has_been_lost(
    postgresql: Server, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "we are stopped for too long":
        monkeypatch.setattr(databases, "_LOCK_SETTINGS", ("idle_in_transaction_session_timeout = '200ms'",))
    url = Database.parse("storage", postgresql.new_database()).secret_url
    engine = sqlalchemy.create_engine(url, pool_pre_ping=True)
    with server_lock(engine, "lock"):
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE written (id INTEGER)"))
        if how == "the server is restarted":
            postgresql.stop()
            postgresql.start()
        else:
            time.sleep(0.5)
        other = sqlalchemy.create_engine(url)
        with server_lock(other, "lock"):
            pass  # it is free
        other.dispose()
        for _ in range(2):
            with pytest.raises(DBAPIError) as caught, engine.begin():
                pass
            assert is_away(caught.value), "who was deciding decides anew"
    with engine.begin() as connection:
        assert connection.execute(sqlalchemy.text("SELECT count(*) FROM written")).scalar() == 0
    engine.dispose()
