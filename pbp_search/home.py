"""The folder that holds the state of all studies, and the names and locks in it.

mlruns/
  optuna.db               Optuna's storage: the truth about studies and trials
  mlflow.db               MLflow's tracking store: the record people look at
  artifacts/              what may be large, and what machines share: may lie elsewhere
    NAME-1a2b3c4d/        one folder a study; its own name stays when the study is renamed
      milestones/         Optuna's artifact store: the checkpoints of milestones
      .../artifacts/      MLflow's artifacts, by run
  studies/NAME-1a2b3c4d/  the same for what is small
    locks/                held while a trial is being trained
    incoming/             checkpoints that are being written
    front/                the front as CSV, JSON, HTML and PNG
"""

import os
import re
import uuid
from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock
from sqlalchemy.engine import URL

from pbp_search.errors import InputError

POLL_SECONDS = 0.01
"""How often who waits for a lock tries again: it is held for some hundredths of a second, many times a rung."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Home:
    """Paths below the folder of all studies. Building one touches no file.

    Attributes:
        folder: The home.
        elsewhere: Where artifacts lie if not in the home: a folder that several machines share.
    """

    folder: Path
    elsewhere: Path | None = None

    @classmethod
    def at(cls, folder: str | os.PathLike[str], artifacts: str | os.PathLike[str] | None = None) -> "Home":
        """The home in a folder, and artifacts in it or elsewhere, by their absolute paths."""
        return cls(Path(folder).absolute(), None if artifacts is None else Path(artifacts).absolute())

    def create(self) -> "Home":
        """Make the folder.

        Raises:
            InputError: It cannot be made or written to.
        """
        _make_writable(self.folder, "another home with --home")
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
        """Where checkpoints and MLflow's artifacts lie."""
        return self.folder / "artifacts" if self.elsewhere is None else self.elsewhere

    def creation_lock(self) -> FileLock:
        """Held while a store may be created that has no lock of its own: two processes at once corrupt it."""
        return FileLock(self.folder / "creation.lock")

    def new_study(self, name: str) -> "StudyFolder":
        """A folder for a new study, by an identity that no other study has."""
        return StudyFolder(self, f"{name[:80]}-{uuid.uuid4().hex[:8]}")


@dataclass(frozen=True)
class StudyFolder:
    """Paths below the folder of one study.

    Attributes:
        home: The home that it lies in.
        identity: Its name in the home. Names the study in MLflow too, wherever the study is renamed to.
    """

    home: Home
    identity: str

    @property
    def path(self) -> Path:
        """The folder."""
        return self.home.folder / "studies" / self.identity

    def create(self) -> "StudyFolder":
        """Make the folder, with those inside that are written to later. Not those that machines share.

        Raises:
            InputError: It cannot be made or written to.
        """
        for folder in (self.path, self.locks, self.incoming):
            _make_writable(folder, "another home with --home")
        return self

    def create_artifacts(self) -> "StudyFolder":
        """Make the folders that machines share: once, with the study. Where they are missing, it is another place.

        Raises:
            InputError: They cannot be made or written to.
        """
        own = self.home.elsewhere is None
        _make_writable(self.milestones, "another home with --home" if own else "another folder with --artifacts")
        return self

    @property
    def artifacts(self) -> Path:
        """Where the artifacts of the study's MLflow runs lie."""
        return self.home.artifacts / self.identity

    @property
    def milestones(self) -> Path:
        """Optuna's artifact store of the study's checkpoints."""
        return self.artifacts / "milestones"

    @property
    def incoming(self) -> Path:
        """Where a checkpoint is written before it is stored."""
        return self.path / "incoming"

    @property
    def locks(self) -> Path:
        """Where locks are held."""
        return self.path / "locks"

    def tracking_lock(self) -> FileLock:
        """Held while a run is written to MLflow."""
        return self._lock("tracking")

    def trial_lock(self, trial: int) -> FileLock:
        """Held by the worker that trains a trial. The system frees it when the worker dies, however it dies."""
        return self._lock(f"trial-{trial:05d}")

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.locks / f"{name}.lock", poll_interval=POLL_SECONDS)


def _make_writable(folder: Path, otherwise: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"The folder {folder} cannot be written to ({error.strerror}): "
            f"name {otherwise}, or run the command elsewhere."
        ) from None


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


def dated_name(name: str, taken: Container[str]) -> str:
    """The name under which a study is kept that is archived now: one that is not taken."""
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    names = (f"{name[:80]}-{stamp}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 100))))
    return next(dated for dated in names if dated not in taken)
