"""A PostgreSQL server for the tests: Debian's package, on loopback, with a password, in a folder of its own."""

import getpass
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy

_DEBIAN = "/usr/lib/postgresql"
_USER = "postgres"  # Debian's package makes it. The server refuses to be run by root.


class Server:
    """A server that is up, until it is stopped.

    Attributes:
        password: The secret in its URLs.
    """

    def __init__(self) -> None:
        self.password = secrets.token_urlsafe()
        self._bin = _programs()
        self._folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        secret = self._folder / "secret"
        secret.write_text(self.password)
        if os.geteuid() == 0:
            for path in (self._folder, secret):
                shutil.chown(path, _USER, _USER)
        self._data = self._folder / "data"
        self._call("initdb", "--auth=scram-sha-256", f"--username={_USER}", f"--pwfile={secret}", "--no-sync")
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '127.0.0.1'\nport = {self._port}\nunix_socket_directories = ''\nfsync = off\n"
            )
        self.start()

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), f"--pgdata={self._data}", *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", *command]
        with (self._folder / "output").open("a") as output:  # not a pipe: the server keeps it open
            done = subprocess.run(command, cwd=self._folder, stdout=output, stderr=output, check=False)
        assert done.returncode == 0, (self._folder / "output").read_text()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._call("pg_ctl", "start", "--wait", f"--log={self._folder / 'log'}")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; ``immediate`` is like a power cut."""
        self._call("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def remove(self) -> None:
        """Stop it for good."""
        self.stop()
        shutil.rmtree(self._folder)

    def url(self, database: str) -> str:
        """The URL of a database, with the password."""
        return f"postgresql://{_USER}:{self.password}@127.0.0.1:{self._port}/{database}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{secrets.token_hex(4)}"
        with self._connected() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        return self.url(name)

    def connections(self, url: str) -> set[int]:
        """The connections to a database: the server's processes for them."""
        statement = sqlalchemy.text("SELECT pid FROM pg_stat_activity WHERE datname = :name")
        with self._connected() as connection:
            return set(connection.execute(statement, {"name": url.rpartition("/")[2]}).scalars())

    @contextmanager
    def _connected(self) -> Iterator[sqlalchemy.Connection]:
        engine = sqlalchemy.create_engine(
            self.url("postgres").replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            yield connection
        engine.dispose()


def reason_to_skip() -> str | None:
    """Why there can be no server here, if so."""
    if not (_programs() / "initdb").exists():
        return "PostgreSQL is not installed (Debian's package postgresql)"
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            return "PostgreSQL cannot be run by root, and there is no setpriv"
        try:
            pwd.getpwnam(_USER)
        except KeyError:
            return f"PostgreSQL cannot be run by {getpass.getuser()}, and there is no user {_USER}"
    return None


def _programs() -> Path:
    """The folder of the server's programs: the newest of Debian's, or the one on the path."""
    found = sorted(Path(_DEBIAN).glob("*/bin/initdb"), key=lambda file: int(file.parts[-3]))
    return (found[-1] if found else Path(shutil.which("initdb") or "/nowhere/initdb")).parent
