"""Opening Optuna's storage: locked while it may be created, and never somebody else's database."""

import logging
import sqlite3
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import optuna
import sqlalchemy
from filelock import FileLock
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError, SQLAlchemyError
from tenacity import RetryCallState, retry, retry_if_exception, stop_after_delay, wait_random_exponential

from pbp_search.databases import Database, server_lock
from pbp_search.errors import StorageError, said
from pbp_search.home import POLL_SECONDS, Home, StudyFolder

logger = logging.getLogger(__name__)

BUSY_SECONDS = 60
"""How long a writer waits for another one's turn on SQLite."""

HEARTBEAT_SECONDS = 15
"""How often a worker tells that it is alive."""

GRACE_SECONDS = 60
"""How long a worker on another machine may be silent before its trial is somebody else's."""

PATIENCE_SECONDS = 300
"""How long a worker waits for a database that has gone away, for example because its server is restarted."""

_SERVERS = ("postgresql",)
_CONNECTION_LOST = "8s2b"  # SQLAlchemy's, among the reasons for a pending rollback
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_LASTING = ("full", "No space left", "readonly", "password", "authentication", "pg_hba.conf", "does not exist")


def is_away(error: BaseException) -> bool:
    """Whether a database may answer again by itself: it is restarted or locked.

    Not if a disk is full, a table or the whole database is not there, or a password is wrong.
    """
    for cause in (error, error.__cause__):
        if isinstance(cause, DBAPIError) and cause.connection_invalidated:
            return True
        # Optuna asks once more, otherwise, in a session that has lost its connection.
        if isinstance(cause, PendingRollbackError) and cause.code == _CONNECTION_LOST:
            return True
        if isinstance(cause, OperationalError) and _may_pass(cause.orig):
            return True
    return False


def _may_pass(error: BaseException | None) -> bool:
    """Whether waiting helps against what a driver calls an operational error."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _LOCKED  # the other bits say what kind of locked
    # PostgreSQL gives no code to a connection that it refuses. What says none of these is waited for, in vain at worst.
    return not any(reason in str(error) for reason in _LASTING)


def _tell(_: RetryCallState) -> None:
    logger.warning("The storage does not answer: trying again.")


def _out_of_patience(state: RetryCallState) -> bool:
    return stop_after_delay(PATIENCE_SECONDS)(state)


patient = retry(
    retry=retry_if_exception(is_away),
    stop=_out_of_patience,
    wait=wait_random_exponential(max=10),
    before_sleep=_tell,
    reraise=True,
)
"""Does again what failed because the database is away. What is decorated must bear being done twice."""


@contextmanager
def if_possible() -> Iterator[None]:
    """Around what is done after an error or a signal: that is what the user is told, not what then fails too."""
    try:
        yield
    except Exception as error:
        logger.warning("The run could not end in good order, the next one goes on: %s", said(error))


def open_storage(home: Home, url: str | None = None, create: bool = True) -> optuna.storages.RDBStorage:
    """Open the storage of studies.

    Args:
        home: Holds the default storage, and the lock around creating one.
        url: Another storage: a database URL as SQLAlchemy takes it.
        create: Make the database if it is not there. Otherwise one in a folder that cannot be written to is read.

    Raises:
        StorageError: It cannot be opened, is not there, or is not Optuna's.
    """
    database = Database.parse("storage", url or home.storage_url)
    file = database.file
    if file is not None and not create and not file.exists():
        raise StorageError(f"There is no study storage {file}: name the folder of the studies with --home.")
    if file is None and database.url.get_backend_name() not in _SERVERS:
        raise StorageError(
            f"The storage {database.shown} is of another kind: studies are kept in SQLite (one machine) or PostgreSQL."
        )
    try:
        unwritable = None if create else database.unwritable_url()
        if unwritable is not None:
            return _storage(unwritable, in_file=True)
        with database.opening(home.create().creation_lock(), {"studies", "trials", "version_info"}):
            return _storage(database.secret_url, in_file=file is not None)
    except (ImportError, SQLAlchemyError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise database.error(error) from None


def _storage(url: str, in_file: bool) -> optuna.storages.RDBStorage:
    # In a server a worker needs two connections at a time: for a lock, and for what is done under it. A third one, when
    # a heartbeat is sent just then, is closed again: a server has few, 100 by default.
    in_server = {"pool_pre_ping": True, "pool_size": 2, "pool_use_lifo": True}
    arguments = {"connect_args": {"timeout": BUSY_SECONDS}} if in_file else in_server
    with warnings.catch_warnings():  # heartbeats are experimental in Optuna
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.RDBStorage(
            url, engine_kwargs=arguments, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
        )
    # Optuna leaves connections to a server open when a storage is no longer used.
    weakref.finalize(storage, storage.engine.dispose).atexit = False
    return storage


def shared_lock(storage: optuna.storages.RDBStorage, name: str) -> AbstractContextManager[object]:
    """A lock that all who use a storage share: beside an SQLite file, or in the PostgreSQL server."""
    url = storage.engine.url
    if url.get_backend_name() == "sqlite":
        return FileLock(f"{url.database}.{name}.lock", poll_interval=POLL_SECONDS)
    return server_lock(storage.engine, name)


def tracking_lock(
    storage: optuna.storages.RDBStorage, folder: StudyFolder
) -> Callable[[], AbstractContextManager[object]]:
    """What makes the lock for writing a study's runs to MLflow: a file, or in the server that its machines share."""
    if storage.engine.url.get_backend_name() == "sqlite":
        return folder.tracking_lock
    return partial(shared_lock, storage, f"{folder.identity}.tracking")


def rename_study(storage: optuna.storages.RDBStorage, name: str, new_name: str) -> None:
    """Rename a study in one transaction: Optuna itself can only copy and delete."""
    statement = sqlalchemy.text("UPDATE studies SET study_name = :new_name WHERE study_name = :name")
    with storage.engine.begin() as connection:
        connection.execute(statement, {"name": name, "new_name": new_name})
