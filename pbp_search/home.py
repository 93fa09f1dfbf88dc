"""The folder that holds the state of all studies, and the names and locks in it.

mlruns/
  optuna.db               Optuna's storage: the truth about studies and trials
  mlflow.db               MLflow's tracking store: the record people look at
  artifacts/              MLflow's artifacts
  studies/NAME/           one folder a study
    identity              tells which study's folder this is, wherever its storage lies
    milestones/           a file for each finished trial
    locks/                held while a trial is being trained
"""

import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from sqlalchemy.engine import URL

from pbp_search.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Home:
    """Paths below the folder of all studies. Building one touches no file."""

    folder: Path

    @classmethod
    def at(cls, folder: str | os.PathLike[str]) -> "Home":
        """The home in a folder, by its absolute path."""
        return cls(Path(folder).absolute())

    def create(self) -> "Home":
        """Make the folder.

        Raises:
            InputError: It cannot be made or written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".writable.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"The folder {self.folder} cannot be written to ({error.strerror}): "
                "name another one with --home, or run the command elsewhere."
            ) from None
        return self

    @property
    def storage_url(self) -> str:
        """Optuna's default storage."""
        return _sqlite_url(self.folder / "optuna.db")

    @property
    def tracking_uri(self) -> str:
        """MLflow's default store."""
        return _sqlite_url(self.folder / "mlflow.db")

    @property
    def artifacts(self) -> Path:
        """Where MLflow's artifacts lie."""
        return self.folder / "artifacts"

    def opening_lock(self) -> FileLock:
        """Held while a store may be created: two processes that create one at once corrupt it."""
        return FileLock(self.folder / "opening.lock")

    def study(self, name: str) -> "StudyFolder":
        """The folder of a study.

        Raises:
            InputError: The name cannot be a folder's.
        """
        return StudyFolder(self.folder / "studies" / check_name(name))


@dataclass(frozen=True)
class StudyFolder:
    """Paths below the folder of one study."""

    folder: Path

    def milestone(self, trial: int) -> Path:
        """The file of a trial's milestone."""
        return self.folder / "milestones" / f"trial-{trial:05d}.safetensors"

    def identify(self) -> str:
        """Give the folder a new random identity, which its study remembers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = uuid.uuid4().hex
        (self.folder / "identity").write_text(identity)
        return identity

    def identity(self) -> str | None:
        """The folder's identity, if it has one."""
        file = self.folder / "identity"
        return file.read_text() if file.is_file() else None

    def claim_lock(self) -> FileLock:
        """Held while a worker decides what to train next."""
        return self._lock("claim")

    def tracking_lock(self) -> FileLock:
        """Held while a run is written to MLflow."""
        return self._lock("tracking")

    def trial_lock(self, trial: int) -> FileLock:
        """Held by the worker that trains a trial. The system frees it when the worker dies, however it dies."""
        return self._lock(f"trial-{trial:05d}")

    def _lock(self, name: str) -> FileLock:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock")


def _sqlite_url(file: Path) -> str:
    # Not pasted together: a path may hold a question mark or a percent sign.
    return URL.create("sqlite", database=str(file)).render_as_string()


def check_name(name: str) -> str:
    """A study's name, if it can be one.

    Raises:
        InputError: It is empty, too long or has other characters than letters, digits, ``.``, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"The study name {name!r} is not allowed: use up to 100 letters, digits, '.', '_' and '-', "
            "and begin with a letter or digit."
        )
    return name
