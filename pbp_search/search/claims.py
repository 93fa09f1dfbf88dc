"""Who trains which trial of a study, on one machine or on many, and whose worker is gone.

What to train next is decided under a lock that all workers of the study share: beside an SQLite file, or in the
PostgreSQL server. Whoever trains a trial writes a claim on it, holds a file lock, and sends heartbeats to the storage.
The system frees the lock when the worker dies, however it dies, so on the same machine a running trial whose lock is
free belongs to nobody, at once. From other machines it is told by its heartbeats: when they have stopped for a minute,
in which the storage has answered us all the time. After it was away, everybody's heartbeats are old.
A worker that only was silent for so long finds another's claim on its trial, and drops what it has.
"""

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from pbp_search.errors import StudyError
from pbp_search.home import StudyFolder
from pbp_search.search.definition import same_study
from pbp_search.search.storage import BUSY_SECONDS, HEARTBEAT_SECONDS, is_away, shared_lock

logger = logging.getLogger(__name__)

CLAIM = "claim"
"""The user attribute of a trial that tells whose it is: the ``place`` of its locks, and a ``token``."""

MOST_RESTARTS = 3
"""How often a trial is done again after a death of its worker, before it fails.

One that always kills its worker takes the trials beside it along. Those of its pool die with it twice, and then it is
tried without them: they have restarts left, however often it kills.
"""

_RESTARTS = "restarts"


def restarts_of(trial: FrozenTrial) -> int:
    """How often a trial has been done again because its worker had died."""
    return int(trial.user_attrs.get(_RESTARTS, 0))


class Claim:
    """A trial that is ours from when we begin until we end that, or die.

    Attributes:
        trial: The trial.
        token: Differs from every other claim.
    """

    def __init__(self, trial: FrozenTrial, token: str, lock: FileLock, beat: Callable[[], None]) -> None:
        self.trial = trial
        self.token = token
        self._lock = lock
        self._beat = beat
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)

    def begin(self) -> None:
        """Tell from now on that the trial is ours."""
        self._lock.acquire(timeout=BUSY_SECONDS)  # whoever has just let it wait is about to free it
        self._beat()  # before the claim is written: one without any heartbeat would never be found silent
        self._thread.start()

    def _send(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                self._beat()
            except Exception as error:
                if not is_away(error):
                    raise
                logger.debug("A heartbeat did not arrive: %s", error)

    def end(self) -> None:
        """Stop telling that the trial is ours. It may not have begun, or have ended."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._lock.release()


def monotonic() -> float:
    """Seconds that do not stand still while the machine sleeps, where the system has them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Contact:
    """For how long the storage has answered a worker without a break."""

    def __init__(self) -> None:
        self._since = self._last = -math.inf

    def renew(self) -> None:
        """The storage has just answered."""
        now = monotonic()
        if now - self._last > 2 * HEARTBEAT_SECONDS:  # with what others need to be heard again: less than the grace
            self._since = now
        self._last = now

    @property
    def seconds(self) -> float:
        """From the first answer to the last one."""
        return self._last - self._since


class Claims:
    """The claims of one worker on the trials of a study: one at a time.

    Attributes:
        held: The present one. Whoever takes one also ends it, whatever happens.

    Args:
        folder: The study's; locks are held in it.
        study: The study.
        storage: Its storage.
    """

    def __init__(self, folder: StudyFolder, study: optuna.Study, storage: RDBStorage) -> None:
        self._folder = folder
        self._study = study
        self._storage = storage
        self._place = _place(folder.locks)
        self._contact = Contact()
        self._told = False
        self.held: Claim | None = None

    def deciding(self) -> AbstractContextManager[object]:
        """Held while it is decided what is trained next, or what has become of a trial: by one worker at a time."""
        return shared_lock(self._storage, self._folder.identity)

    def take(self, trial: FrozenTrial) -> Claim:
        """Make a running trial ours, while deciding. The one before must have ended."""

        def beat() -> None:
            self._storage.record_heartbeat(trial._trial_id)
            self._contact.renew()

        token = uuid.uuid4().hex
        # Known before it begins: whatever interrupts us after this, who calls can end it.
        self.held = claim = Claim(trial, token, self._folder.trial_lock(trial.number), beat)
        try:
            claim.begin()
            self._storage.set_trial_user_attr(trial._trial_id, CLAIM, {"place": self._place, "token": token})
        except BaseException:
            self.end()
            raise
        return claim

    def end(self) -> None:
        """End our claim, if there is one."""
        if self.held is not None:
            self.held.end()
            self.held = None

    def holds(self, claim: Claim) -> bool:
        """Whether a trial is still ours: while deciding, that does not change."""
        trial = self._storage.get_trial(claim.trial._trial_id)
        # One that waits has been put back by others, who took us for dead.
        return trial.state != TrialState.WAITING and bool(trial.user_attrs[CLAIM]["token"] == claim.token)

    def abandoned(self, trials: Iterable[FrozenTrial], at_once: bool = False) -> list[FrozenTrial]:
        """The running trials that are nobody's, while deciding: their workers have died, wherever that was.

        Args:
            trials: The study's.
            at_once: Believe old heartbeats from elsewhere although we have not been in contact with the storage for as
                long. If it was away until a moment ago, their workers may be alive.
        """
        silent = self._silent(trials)
        if not at_once and not self._is_in_contact():
            silent = []

        def is_abandoned(trial: FrozenTrial) -> bool:
            if CLAIM not in trial.user_attrs:  # somebody died while deciding, as nobody else is doing now
                return True
            return trial in silent or (self._is_here(trial) and self._is_free(trial))

        return [trial for trial in trials if trial.state == TrialState.RUNNING and is_abandoned(trial)]

    def is_in_doubt(self, trials: Iterable[FrozenTrial]) -> bool:
        """Whether it will soon turn out if a trial is abandoned: new ones wait for that, as it comes before them."""
        in_doubt = not self._is_in_contact() and bool(self._silent(trials))
        if in_doubt and not self._told:
            logger.warning("A worker elsewhere is silent: in a minute it is known whether it has died.")
            self._told = True
        return in_doubt

    def next_abandoned(self, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """The abandoned trial that is to be done again now, if any, while deciding. Its restart is counted.

        A worker that is killed takes the others of its pool along, so a first death is most likely another's fault:
        those trials are done again at once. Of those that have died more often one may be what kills. They are done
        again one at a time and beside new trials only, so that it is not given up together with innocent ones.
        """
        abandoned = self.abandoned(trials)
        nobodys = {trial.number for trial in abandoned}
        running = (trial for trial in trials if trial.state == TrialState.RUNNING and trial.number not in nobodys)
        most = max(map(restarts_of, running), default=0)
        for trial in abandoned:
            if CLAIM not in trial.user_attrs:
                return trial
            restarts = restarts_of(trial)
            if most == 0 or (most == 1 and restarts == 0):
                self._storage.set_trial_user_attr(trial._trial_id, _RESTARTS, restarts + 1)
                return trial
        return None

    def _silent(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """The running trials from elsewhere whose heartbeats are old."""
        running = [trial for trial in trials if trial.state == TrialState.RUNNING and CLAIM in trial.user_attrs]
        elsewhere = [trial for trial in running if not self._is_here(trial)]
        if not elsewhere:
            return []
        silent = self._storage._get_stale_trial_ids(self._study._study_id)
        self._contact.renew()
        # Even if another machine is silent that has taken it over: whoever had it here may still be at it.
        return [trial for trial in elsewhere if trial._trial_id in silent and self._is_free(trial)]

    def _is_in_contact(self) -> bool:
        """Whether the storage has answered for so long that old heartbeats are to be believed."""
        grace = self._storage.grace_period
        assert grace is not None
        return self._contact.seconds > grace

    def _is_here(self, trial: FrozenTrial) -> bool:
        return bool(trial.user_attrs[CLAIM]["place"] == self._place)

    def _is_free(self, trial: FrozenTrial) -> bool:
        lock = self._folder.trial_lock(trial.number)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        return True


def put_back(study: optuna.Study, claims: Claims, storage: RDBStorage) -> None:
    """Let the trials wait whose workers have been stopped with us: that is no restart after a death."""
    with claims.deciding():
        for trial in claims.abandoned(study.get_trials(deepcopy=False)):
            storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def put_in_order(name: str, study: optuna.Study, claims: Claims, storage: RDBStorage, identity: str) -> None:
    """Let the trials of a study wait whose workers have died, while deciding; nobody may be at any other.

    Raises:
        StudyError: Somebody is, or the study has another name by now.
    """
    same_study(name, identity, storage)
    trials = study.get_trials(deepcopy=False)
    abandoned = claims.abandoned(trials, at_once=True)
    running = {trial.number for trial in trials if trial.state == TrialState.RUNNING}
    alive = running - {trial.number for trial in abandoned}
    if alive:
        raise StudyError(
            f"The study {name!r} is running (trial {min(alive)}): stop its workers first, or wait for their end. One "
            "that was killed on another machine counts for a minute."
        )
    for trial in abandoned:
        storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def _place(folder: Path) -> str:
    """Where file locks in a folder are seen: the same for two processes if they share the system and the folder."""
    try:
        system = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        system = f"{uuid.getnode():x}"
    there = folder.stat()
    return f"{system}:{there.st_dev}:{there.st_ino}"
