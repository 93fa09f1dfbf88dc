"""Database URLs: their secrets stay secret, and nobody else's database is written to."""

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from pbp_search.errors import StorageError


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
        except ArgumentError:
            # The text is not shown: it may hold a password.
            raise StorageError(
                f"The {what} is not a database URL: it should look like sqlite:///path/to/file.db or "
                "postgresql://user:password@host/database."
            ) from None
        if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise StorageError(f"A {what} in memory is lost when the command ends: use sqlite:///path/to/file.db.")
        return cls(what, parsed)

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        return Path(str(self.url.database)) if self.url.get_backend_name() == "sqlite" else None

    @property
    def shown(self) -> str:
        """The URL without its password, for people."""
        return self.url.render_as_string(hide_password=True)

    @property
    def secret_url(self) -> str:
        """The URL with its password, for drivers."""
        return self.url.render_as_string(hide_password=False)

    def prepare(self, own_tables: set[str]) -> None:
        """Make sure that the database is empty or has the tables of the store it is meant for.

        An SQLite file is made, and switched to write-ahead logging: readers (dashboards) go on beside a writer.

        Raises:
            StorageError: It is another program's.
            sqlalchemy.exc.SQLAlchemyError: It cannot be opened.
        """
        engine = sqlalchemy.create_engine(self.url)
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
            return StorageError(
                f"The {self.what} {self.shown} needs a database driver that is not installed: install the one for "
                f"{self.url.get_backend_name()} (for PostgreSQL: pip install psycopg2-binary)."
            )
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        if self.url.password:
            reason = reason.replace(str(self.url.password), "***")
        return StorageError(f"The {self.what} {self.shown} cannot be opened: {reason}")
