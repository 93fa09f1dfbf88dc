"""The record of a study in MLflow: a run for the study, and below it a child run for each finished trial.

Optuna's storage and the milestone files are the truth. A child run is written in one go when its trial has finished,
under a lock, so that each trial is recorded once; what a crash left half written is written anew.
"""

import hashlib
import posixpath
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from pbp_search.databases import Database
from pbp_search.errors import StorageError
from pbp_search.home import Home, StudyFolder
from pbp_search.training import EpochRecord, Milestone

_PARENT = "mlflow.parentRunId"
_TRIAL = "pbp_search.trial"
_STUDY = "pbp_search.study"  # on the experiment and on the study's run: the identity of the study's folder
_METRICS_A_BATCH = 1000
_TAG_LENGTH = 5000
_NAME_LENGTH = 250


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial, as it is recorded.

    Attributes:
        number: The trial's number.
        params: Its parameters.
        started: Milliseconds since the epoch.
        ended: The same.
        milestone: What it reached, if it did not fail.
        failure: Why it failed.
        history: Its epochs.
    """

    number: int
    params: dict[str, Any]
    started: int
    ended: int
    milestone: Milestone | None = None
    failure: str | None = None
    history: tuple[EpochRecord, ...] = field(default=())


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, MlflowException) and error.error_code == "TEMPORARILY_UNAVAILABLE"


_when_busy = retry(
    retry=retry_if_exception(_is_busy), stop=stop_after_attempt(6), wait=wait_random_exponential(max=10), reraise=True
)


class Tracker:
    """The record of one study.

    Args:
        folder: The study's; it names the study in the store, and its home holds the default store.
        name: The study's name. Its experiment gets it too, if no other has it.
        uri: Another tracking store: a database URL, or the address of an MLflow server.
        lock: Makes the lock under which is written; one in the study's folder by default. Writers on several machines
            need one that they share.

    Raises:
        StorageError: The store cannot be opened.
    """

    def __init__(
        self,
        folder: StudyFolder,
        name: str,
        uri: str | None = None,
        lock: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> None:
        self._identity = folder.identity
        self._name = name
        self._lock = lock or folder.tracking_lock
        uri = uri or folder.home.tracking_uri
        with self._lock(), opening(folder.home, uri) as self._client:
            # To a database the place of artifacts must be named; a server gives its experiments one of its own.
            self._experiment = self._find_experiment(None if is_server(uri) else folder.artifacts.as_uri())

    def _find_experiment(self, artifacts: str | None) -> Experiment:
        found = self._client.search_experiments(ViewType.ALL, filter_string=f"tags.`{_STUDY}` = '{self._identity}'")
        if not found:
            return self._client.get_experiment(self._create_experiment(artifacts))
        if found[0].lifecycle_stage == "deleted":
            raise StorageError(
                f"The MLflow experiment {found[0].name!r} has been deleted: restore it "
                f"(mlflow experiments restore --experiment-id {found[0].experiment_id}) or use another study name."
            )
        return found[0]

    def _create_experiment(self, location: str | None) -> str:
        # The kind makes the UI open on runs, not on traces of language models.
        tags = {"mlflow.experimentKind": "custom_model_development", _STUDY: self._identity}
        # MLflow keeps the names of deleted experiments too.
        taken = self._client.get_experiment_by_name(self._name) is not None
        return self._client.create_experiment(self._identity if taken else self._name, location, tags)

    @cached_property
    def _study_run(self) -> str:
        """The id of the study's run; made on first use, restored if somebody has deleted it."""
        with self._lock():
            for run in self._runs(f"tags.`{_STUDY}` = '{self._identity}'", ViewType.ALL):
                if run.info.lifecycle_stage == "deleted":
                    self._client.restore_run(run.info.run_id)
                return str(run.info.run_id)
            tags = {_STUDY: self._identity}
            run = self._client.create_run(self._experiment.experiment_id, run_name=self._name, tags=tags)
            return str(run.info.run_id)

    @_when_busy
    def begin(self, params: dict[str, Any]) -> None:
        """Mark the study's run as running, and record what the study is."""
        run = self._study_run
        with self._lock():
            self._client.update_run(run, status="RUNNING")
            self._client.log_batch(run, params=[Param(name, str(value)) for name, value in params.items()])

    @_when_busy
    def end(self, status: Literal["FINISHED", "KILLED", "FAILED"], figures: dict[str, float]) -> None:
        """Mark the study's run as ended, with its final figures."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in figures.items()]
        self._client.log_batch(self._study_run, metrics=metrics)
        self._client.set_terminated(self._study_run, status=status)

    @_when_busy
    def status(self) -> str | None:
        """That of the study's run; None if this store has none. One that runs and that nobody is at has been killed."""
        return next((str(run.info.status) for run in self._runs(f"tags.`{_STUDY}` = '{self._identity}'")), None)

    @_when_busy
    def log_files(self, folder: Path) -> None:
        """Store all files of a folder on the study's run."""
        self._client.log_artifacts(self._study_run, str(folder))

    @_when_busy
    def recorded(self) -> set[int]:
        """The numbers of the trials that are recorded."""
        runs = self._runs(f"tags.`{_PARENT}` = '{self._study_run}'")
        return {int(run.data.tags[_TRIAL]) for run in runs if run.info.status in ("FINISHED", "FAILED")}

    @_when_busy
    def log_trial(self, record: TrialRecord) -> None:
        """Record a finished trial, unless it is recorded already."""
        parent = self._study_run
        with self._lock():
            for run in self._runs(f"tags.`{_PARENT}` = '{parent}' and tags.`{_TRIAL}` = '{record.number}'"):
                if run.info.status in ("FINISHED", "FAILED"):
                    return
                # Only a writer that died under the lock leaves a run like this. Deleted runs can be shown too.
                self._client.set_terminated(run.info.run_id, status="KILLED")
                self._client.delete_run(run.info.run_id)
            self._write(record, parent)

    def _write(self, record: TrialRecord, parent: str) -> None:
        tags = {_PARENT: parent, _TRIAL: str(record.number)}
        if record.failure is not None:
            tags["failure"] = record.failure[:_TAG_LENGTH]
        run = self._client.create_run(
            self._experiment.experiment_id,
            start_time=record.started,
            run_name=f"trial {record.number}",
            tags=tags,
        )
        run_id = run.info.run_id
        metrics = _metrics(record)
        params = [Param(name, str(value)) for name, value in record.params.items()]
        self._client.log_batch(run_id, metrics=metrics[:_METRICS_A_BATCH], params=params)
        for start in range(_METRICS_A_BATCH, len(metrics), _METRICS_A_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_BATCH])
        if record.milestone is not None:
            self._client.log_dict(run_id, record.milestone.to_dict(), "milestone.json")
        status = "FINISHED" if record.failure is None else "FAILED"
        self._client.set_terminated(run_id, status=status, end_time=record.ended)

    def _runs(self, filter_string: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment.experiment_id], filter_string, view, max_results=1000, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def rename(self, name: str) -> None:
        """Give the study's experiment another name, and its run if there is one."""
        if self.status() is not None:
            self._client.set_tag(self._study_run, "mlflow.runName", name)
        self._client.rename_experiment(self._experiment.experiment_id, name)


def is_server(uri: str) -> bool:
    """Whether a tracking store is a server's address; otherwise it is a database's."""
    return uri.startswith(("http://", "https://"))


@contextmanager
def opening(home: Home, uri: str) -> Iterator[MlflowClient]:
    """Open a tracking store, and hold a database locked meanwhile: it may be made now.

    Raises:
        StorageError: It cannot be opened.
    """
    if is_server(uri):
        try:
            yield MlflowClient(uri)
        except MlflowException as error:
            raise StorageError(f"The tracking server cannot be reached, or refuses: {error.error_code}.") from None
        return
    database = Database.parse("tracking store", uri)
    try:
        with database.opening(home.create().creation_lock(), {"experiments", "runs", "alembic_version"}):
            yield MlflowClient(database.secret_url)
    except MlflowException as error:
        raise _refused(error, database) from None
    except (SQLAlchemyError, OSError, ImportError, ValueError, TypeError) as error:
        raise database.error(error) from None


def check_store(home: Home, uri: str | None = None) -> None:
    """Make sure that a tracking store can be opened.

    Raises:
        StorageError: It cannot.
    """
    with opening(home, uri or home.tracking_uri) as client:
        client.search_experiments(max_results=1)


def _refused(error: MlflowException, database: Database) -> StorageError:
    if "schema" in str(error) or "revision" in str(error):
        return StorageError(
            f"The tracking store {database.shown} was made by another version of MLflow: use that version or, if it is "
            f"an older one, back the store up and run: mlflow db upgrade {database.shown}"
        )
    return database.error(error)


def _allowed(name: str) -> str:
    """A metric's name as MLflow takes it: certain characters, no empty parts, not too long. Modules may have any."""
    allowed = posixpath.normpath(re.sub(r"[^\w\-. :/]", "_", name))
    if len(allowed) <= _NAME_LENGTH:
        return allowed
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return f"{allowed[: _NAME_LENGTH - len(digest) - 1]}_{digest}"


def _metrics(record: TrialRecord) -> list[Metric]:
    """Every epoch's figures, then the milestone's."""
    metrics = [
        Metric(_allowed(name), value, record.ended, step)
        for step, epoch in enumerate(record.history)
        for name, value in epoch.values.items()
    ]
    milestone = record.milestone
    if milestone is not None:
        figures = {
            "score": milestone.score,
            "train_score": milestone.train_score,
            "parameters": milestone.parameters,
            "weight_bytes": milestone.weight_bytes,
            "macs": milestone.macs,
            "dendrites_achieved": milestone.dendrites,
            "epochs": milestone.epochs,
            "seconds": milestone.seconds,
        }
        for growth in milestone.growth:
            figures[f"growth/{growth.module}/try_{growth.attempt}/score"] = growth.score
            figures[f"growth/{growth.module}/try_{growth.attempt}/floor"] = growth.floor
        figures = {_allowed(name): value for name, value in figures.items()}
        metrics += [Metric(name, float(value), record.ended, 0) for name, value in figures.items()]
    return metrics
