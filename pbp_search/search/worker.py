"""A worker: claim a rung, train it, tell Optuna and MLflow, one after the other.

What to train next is decided under a lock. While a trial is trained its own lock is held; the system frees it when
the worker dies, however it dies, so a running trial whose lock is free belongs to nobody: the next worker does it
again, under the same number and parameters.
"""

import logging
import math
import time
import traceback
import uuid
from dataclasses import dataclass, field, replace

import optuna
from filelock import FileLock, Timeout
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial, TrialState

from pbp_search.errors import CheckpointError, PbpSearchError, SettingsError, TrainingError, said
from pbp_search.home import StudyFolder
from pbp_search.search.promotion import next_promotion
from pbp_search.search.rungs import CONFIGURATION, DENDRITES, FAILURE, MILESTONE, PARENT, Outcome, trials_of
from pbp_search.search.sampler import Sampler, sampler_of
from pbp_search.search.space import SearchSpace, configuration_seed
from pbp_search.search.storage import open_storage
from pbp_search.tracking import Tracker, TrialRecord
from pbp_search.training import Checkpoint, EpochRecord, Milestone, Task, run_rung

logger = logging.getLogger(__name__)

_RESTARTS = "restarts"
_TRACEBACK = "traceback"
_MOST_RESTARTS = 3
_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Setup:
    """What a worker process needs to take part in a study. Two are equal if they belong to the same call of ``run``."""

    folder: StudyFolder = field(compare=False)
    study: str = field(compare=False)
    storage: str | None = field(compare=False, repr=False)  # may hold a password
    tracking_uri: str | None = field(compare=False, repr=False)
    task: Task = field(compare=False)
    space: SearchSpace = field(compare=False)
    seed: int = field(compare=False)
    device: str = field(compare=False)
    sampler: Sampler = field(default="auto", compare=False)
    call: str = field(default_factory=lambda: uuid.uuid4().hex)


class Worker:
    """One worker of a study, in the process that makes it.

    Args:
        setup: The study.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._history: list[EpochRecord] = []
        self._folder = setup.folder
        storage = open_storage(setup.folder.home, setup.storage, create=False)
        sampler = sampler_of(setup.sampler, setup.seed)
        self._study = optuna.load_study(study_name=setup.study, storage=storage, sampler=sampler)
        self._tracker = Tracker(setup.folder, setup.study, setup.tracking_uri)
        self._data = setup.task.data()

    def run_one(self, trials: int, deadline: float | None) -> Outcome | None:
        """Train one rung.

        Args:
            trials: No rung is started when this many have finished or are being trained.
            deadline: No rung is started after this time, in seconds since the epoch.

        Returns:
            What came of it, or None if there is nothing more to start.
        """
        while deadline is None or time.time() < deadline:
            claimed = self._claim(trials)
            if claimed is not None:
                return self._run_locked(*claimed)
            if sum(trial.state.is_finished() for trial in trials_of(self._study)) >= trials:
                return None
            # The last ones are being trained by others. If one of those dies, its trial is ours.
            time.sleep(_WAIT_SECONDS)
        return None

    def _run_locked(self, trial: optuna.Trial, lock: FileLock) -> Outcome:
        try:
            return self._run(trial)
        finally:
            lock.release()

    def _claim(self, target: int) -> tuple[optuna.Trial, FileLock] | None:
        """The next trial with its lock, acquired once."""
        with self._folder.claim_lock():
            trials = trials_of(self._study)
            active = 0
            for trial in trials:
                if trial.state == TrialState.RUNNING:
                    lock = self._acquire(trial.number)
                    if lock is not None and self._is_running(trial):
                        return self._adopt(trial), lock
                    if lock is not None:  # it has finished since the trials were read
                        lock.release()
                    active += 1
            if sum(trial.state.is_finished() for trial in trials) + active >= target:
                return None
            waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
            if not waiting:
                self._enqueue(trials)
            asked = self._study.ask()
            lock = self._acquire(asked.number)
            if lock is None:
                raise PbpSearchError(f"The lock of the new trial {asked.number} is held: who else uses its folder?")
            return asked, lock

    def _acquire(self, trial: int) -> FileLock | None:
        lock = self._folder.trial_lock(trial)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def _is_running(self, trial: FrozenTrial) -> bool:
        state: TrialState = self._study._storage.get_trial(trial._trial_id).state
        return state == TrialState.RUNNING

    def _adopt(self, trial: FrozenTrial) -> optuna.Trial:
        adopted = optuna.Trial(self._study, trial._trial_id)
        adopted.set_user_attr(_RESTARTS, trial.user_attrs.get(_RESTARTS, 0) + 1)
        return adopted

    def _enqueue(self, trials: list[FrozenTrial]) -> None:
        promoted = next_promotion(trials, self._setup.task.direction, self._setup.space.dendrites)
        if promoted is None:
            self._study.enqueue_trial({DENDRITES: 0})
            return
        root = trials[promoted.trial].user_attrs.get(CONFIGURATION, promoted.trial)
        self._study.enqueue_trial(
            {**promoted.params, DENDRITES: promoted.milestone.dendrites + 1},
            user_attrs={PARENT: promoted.trial, CONFIGURATION: root},
        )

    def _run(self, trial: optuna.Trial) -> Outcome:
        self._history.clear()
        try:
            checkpoint = self._train(trial)
        except KeyboardInterrupt:
            # Stopped, not dead: this does not count as a restart when the trial is done again.
            trial.set_user_attr(_RESTARTS, trial.user_attrs.get(_RESTARTS, 0) - 1)
            raise
        except BaseException as error:  # a user's network, loss or score may raise anything, or exit: the study goes on
            failure = said(error)
            trial.set_user_attr(FAILURE, failure)
            trial.set_user_attr(_TRACEBACK, "".join(traceback.format_tb(error.__traceback__, limit=-8)))
            failed = record_of(self._study.tell(trial, state=TrialState.FAIL), self._folder)
            self._record(replace(failed, history=tuple(self._history)))
            return Outcome(trial.number, None, failure)
        milestone = checkpoint.milestone
        checkpoint.save(self._folder.milestone(trial.number))
        trial.set_user_attr(MILESTONE, milestone.to_dict())
        finished = self._study.tell(trial, [milestone.score, math.log10(milestone.parameters)])
        self._record(record_of(finished, self._folder))
        return Outcome(trial.number, milestone, None)

    def _train(self, trial: optuna.Trial) -> Checkpoint:
        """Train a trial's rung from the milestone before it."""
        parent = trial.user_attrs.get(PARENT)
        dendrites = trial.suggest_int(DENDRITES, 0, self._setup.space.dendrites)
        root = trial.user_attrs.get(CONFIGURATION, trial.number)
        config = self._setup.space.suggest(trial, configuration_seed(self._setup.seed, root))
        if trial.user_attrs.get(_RESTARTS, 0) > _MOST_RESTARTS:
            raise TrainingError(f"The worker of this trial died {_MOST_RESTARTS + 1} times.")
        previous = None
        if parent is not None:
            previous = Checkpoint.load(self._folder.milestone(parent))
        elif dendrites > 0:
            raise SettingsError(f"A new configuration starts with 0 dendrites, not {dendrites}: enqueue dendrites=0.")
        return run_rung(self._setup.task, config, previous, self._data, self._history.append, self._setup.device)

    def _record(self, record: TrialRecord) -> None:
        try:
            self._tracker.log_trial(record)
        except MlflowException as error:
            logger.warning("Trial %d is not in MLflow yet, the study's next run records it: %s", record.number, error)


def record_of(trial: FrozenTrial, folder: StudyFolder) -> TrialRecord:
    """What MLflow keeps of a finished trial, from Optuna's storage and the milestone's file."""
    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    milestone = trial.user_attrs.get(MILESTONE) if trial.state == TrialState.COMPLETE else None
    return TrialRecord(
        number=trial.number,
        params=trial.params,
        started=int(trial.datetime_start.timestamp() * 1000),
        ended=int(trial.datetime_complete.timestamp() * 1000),
        milestone=None if milestone is None else Milestone.from_dict(milestone),
        # A trial that was done again after a failure, because its worker died in between, has the reason still.
        failure=trial.user_attrs.get(FAILURE) if milestone is None else None,
        history=() if milestone is None else _history(trial.number, folder),
    )


def _history(trial: int, folder: StudyFolder) -> tuple[EpochRecord, ...]:
    try:
        return Checkpoint.load(folder.milestone(trial)).history
    except CheckpointError as error:
        logger.warning("Trial %d is recorded without its epochs: %s", trial, error)
        return ()
