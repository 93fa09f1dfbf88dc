"""Database URLs: their secrets stay secret, nobody else's database is written to, and none is left half made."""

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy
from filelock import FileLock
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from pbp_search.errors import StorageError

_HIDDEN = "***"

# How we find out that a server has vanished or cannot be reached, in a minute and not in hours. The names are libpq's.
_CONNECTION_SETTINGS = {
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "4",
    "tcp_user_timeout": "60000",
}
_LIBPQ = ("psycopg", "psycopg2")

# Where a user is a person's name. Elsewhere one without a password may be a token.
_WITH_USERS = ("postgresql", "mysql", "mssql")
_SECRET_OPTION = r"[^=&]*(?:pass|pwd|token|secret|key|sig|auth|credential|odbc_connect)[^=&]*"
_SECRET = re.compile(
    rf"://[^@]*:[^@]*@|(?<![\w+.-])(?!(?:{'|'.join(_WITH_USERS)})\b)[\w+.-]+://[^/@]*@|[?&]{_SECRET_OPTION}=",
    re.IGNORECASE,
)


def holds_secret(text: str) -> bool:
    """Whether a URL in a text holds a password or a token, as far as can be told of any URL."""
    return _SECRET.search(text) is not None


# How a server finds out that the machine that holds a lock has vanished, or has stopped while it holds one.
_LOCK_SETTINGS = (
    "tcp_keepalives_idle = 20",
    "tcp_keepalives_interval = 10",
    "tcp_keepalives_count = 4",
    "idle_in_transaction_session_timeout = '5min'",
)


@dataclass(frozen=True)
class Database:
    """A database that a store lies in.

    Attributes:
        what: What it is to the user: the storage, the tracking store.
        url: Where it is.
    """

    what: str
    url: URL

    @classmethod
    def parse(cls, what: str, url: str) -> "Database":
        """Read a database URL.

        Raises:
            StorageError: It is none, or lies in memory.
        """
        try:
            parsed = make_url(url)
            if "@" in (parsed.host or ""):
                raise ValueError("a password with an @ in it must be written with %40")
        except (ArgumentError, ValueError):
            # The text is not shown: it may hold a password.
            raise StorageError(
                f"The {what} is not a database URL: it should look like sqlite:///path/to/file.db or "
                "postgresql://user:password@host/database."
            ) from None
        in_memory = ":memory:" in (parsed.database or ":memory:") or parsed.query.get("mode") == "memory"
        if parsed.get_backend_name() == "sqlite" and in_memory:
            raise StorageError(f"A {what} in memory is lost when the command ends: use sqlite:///path/to/file.db.")
        if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).name:
            raise StorageError(f"The {what} {parsed.database!r} is a folder: use sqlite:///path/to/file.db.")
        return cls(what, parsed)

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        return Path(str(self.url.database)) if self.url.get_backend_name() == "sqlite" else None

    @property
    def shown(self) -> str:
        """The URL without its secrets, for people."""
        hidden = self.url.update_query_dict(dict.fromkeys(self._secret_options(), _HIDDEN))
        if self._has_secret_user:
            hidden = hidden.set(username=_HIDDEN)
        return hidden.render_as_string(hide_password=True)

    @property
    def secret_url(self) -> str:
        """The URL with its password, for drivers. PostgreSQL's are told when to give a connection up."""
        return self._driven_url.render_as_string(hide_password=False)

    @property
    def _driven_url(self) -> URL:
        """The URL with the driver that is there: of PostgreSQL's two, SQLAlchemy alone looks for the older one only."""
        url = self.url
        if url.drivername == "postgresql" and find_spec("psycopg2") is None:
            url = url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() == "postgresql" and url.get_driver_name() in _LIBPQ:
            url = url.set(query={**_CONNECTION_SETTINGS, **url.query})
        return url

    def unwritable_url(self) -> str | None:
        """The URL for reading an SQLite file whose folder cannot be written to; None for all others.

        SQLite opens no database with write-ahead logging there, unless it is told that nobody writes to it.
        """
        if self.file is None or os.access(self.file.absolute().parent, os.W_OK):
            return None
        query = {"mode": "ro"} if _beside(self.file, "-wal").exists() else {"immutable": "1"}
        file = self.file.absolute().as_uri()
        return URL.create("sqlite", database=file, query={**query, "uri": "true"}).render_as_string()

    @contextmanager
    def opening(self, lock: FileLock, own_tables: set[str]) -> Iterator[None]:
        """Hold a lock while a store is opened in the database, and perhaps made: for a file one beside it.

        The database must be empty or have the tables of the store it is meant for. An SQLite file is switched to
        write-ahead logging, so that readers (dashboards) go on beside a writer; one whose maker died half-way is made
        anew.

        Args:
            lock: Held if the database is on a server that has no locks for us.
            own_tables: The tables of the store.

        Raises:
            StorageError: It is another program's.
            sqlalchemy.exc.SQLAlchemyError: It cannot be opened.
            OSError: Its folder is not there, or cannot be written to.
        """
        file = self.file
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder {file.absolute().parent}")
        if file is None:
            with self._locked_in_server() if self.url.get_backend_name() == "postgresql" else lock:
                self._prepare(own_tables)
                yield
            return
        unfinished = _beside(file, ".unfinished")
        if file.exists() and not unfinished.exists():  # in this order: one that is being made has no tables yet
            self._prepare(own_tables)  # first, so that no lock stays beside what is refused
        with FileLock(_beside(file, ".lock")):
            if unfinished.exists():
                _set_aside(file)
            elif not file.exists():
                unfinished.touch()
            self._prepare(own_tables)
            yield
            unfinished.unlink(missing_ok=True)

    @contextmanager
    def _locked_in_server(self) -> Iterator[None]:
        engine = sqlalchemy.create_engine(self._driven_url)
        try:
            with server_lock(engine, "opening"):
                yield
        finally:
            engine.dispose()

    def _prepare(self, own_tables: set[str]) -> None:
        engine = sqlalchemy.create_engine(self._driven_url)
        try:
            tables = set(sqlalchemy.inspect(engine).get_table_names())
            if tables and not own_tables <= tables:
                raise StorageError(
                    f"The {self.what} {self.shown} is another program's database (it has the table {min(tables)!r}): "
                    "name an empty one."
                )
            if self.file is not None:
                with engine.connect() as connection:
                    connection.execute(sqlalchemy.text("PRAGMA journal_mode=WAL"))
        finally:
            engine.dispose()

    def error(self, cause: Exception) -> StorageError:
        """The sentence for a failure to open the database."""
        if isinstance(cause, StorageError):
            return cause
        if isinstance(cause, ImportError):
            backend = self.url.get_backend_name()
            command = " (pip install 'psycopg[binary]')" if backend == "postgresql" else ""
            return StorageError(
                f"The {self.what} {self.shown} needs a database driver that is not installed: install the one for "
                f"{backend}{command}."
            )
        text = str(getattr(cause, "orig", None) or cause) or type(cause).__name__
        reason = text.splitlines()[0]
        user = self.url.username if self._has_secret_user else None
        for secret in (user, self.url.password, *self._secret_options().values()):
            if secret:
                reason = reason.replace(str(secret), _HIDDEN)
        return StorageError(f"The {self.what} {self.shown} cannot be opened: {reason}")

    def _secret_options(self) -> dict[str, str]:
        options = self.url.query.items()
        return {name: str(value) for name, value in options if re.fullmatch(_SECRET_OPTION, name, re.IGNORECASE)}

    @property
    def _has_secret_user(self) -> bool:
        lone = self.url.username is not None and self.url.password is None
        return lone and self.url.get_backend_name() not in _WITH_USERS


@contextmanager
def server_lock(engine: Engine, name: str) -> Iterator[None]:
    """Hold a lock in a PostgreSQL database: one thread at a time of all that use it, on whatever machine.

    The server frees the lock when our connection ends, so also when it is restarted, when this machine has vanished for
    a minute, and when this process is stopped for five. From then on this thread gets no connection from the engine
    until it has left: what was decided under the lock is not written without it.

    Raises:
        sqlalchemy.exc.DBAPIError: The server does not answer, or the lock has been lost.
    """
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)
    owner = threading.get_ident()
    with engine.connect() as holder:
        for setting in _LOCK_SETTINGS:
            holder.execute(sqlalchemy.text(f"SET LOCAL {setting}"))
        holder.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})

        lost: DBAPIError | None = None

        def still_held(*_: object) -> None:
            nonlocal lost
            if threading.get_ident() != owner:
                return
            if lost is not None:  # Optuna tries some things again by itself
                raise lost
            try:
                holder.execute(sqlalchemy.text("SELECT 1"))
            except DBAPIError as error:
                lost = error
                raise

        event.listen(engine, "checkout", still_held)
        try:
            yield
        finally:
            event.remove(engine, "checkout", still_held)
            with suppress(DBAPIError):  # then the server has freed it already
                holder.rollback()


def _set_aside(file: Path) -> None:
    """Rename a half-made database with its write-ahead log. It is kept: whoever wrote to it may miss it."""
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ("", "-wal", "-shm"):
        part = _beside(file, suffix)
        if part.exists():
            part.rename(_beside(file, f".unfinished-{stamp}{suffix}"))


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)
