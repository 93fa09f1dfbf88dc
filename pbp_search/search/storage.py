"""Opening Optuna's storage: locked while it may be created, and never somebody else's database."""

import optuna
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from pbp_search.databases import Database
from pbp_search.errors import StorageError
from pbp_search.home import Home

BUSY_SECONDS = 60
"""How long a writer waits for another one's turn on SQLite."""


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
    arguments = {"connect_args": {"timeout": BUSY_SECONDS}} if file is not None else {"pool_pre_ping": True}
    try:
        unwritable = None if create else database.unwritable_url()
        if unwritable is not None:
            return optuna.storages.RDBStorage(unwritable, engine_kwargs=arguments)
        with database.opening(home.create().creation_lock(), {"studies", "trials", "version_info"}):
            return optuna.storages.RDBStorage(database.secret_url, engine_kwargs=arguments)
    except (ImportError, SQLAlchemyError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise database.error(error) from None


def rename_study(storage: optuna.storages.RDBStorage, name: str, new_name: str) -> None:
    """Rename a study in one transaction: Optuna itself can only copy and delete."""
    statement = sqlalchemy.text("UPDATE studies SET study_name = :new_name WHERE study_name = :name")
    with storage.engine.begin() as connection:
        connection.execute(statement, {"name": name, "new_name": new_name})
