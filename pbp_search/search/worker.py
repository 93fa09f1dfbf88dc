"""A worker: take a rung, train it, tell Optuna and MLflow, one after the other.

What to train next is decided while no other worker decides. First what a dead worker left unfinished, then what was
stopped in good order, then a milestone that has earned its next generation, then a new configuration. Its parameters
are drawn after that, by the worker that trains it. Or, of planned chains, a milestone that is to go on.
"""

import logging
import os
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import optuna
from mlflow.exceptions import MlflowException
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError

from pbp_search.errors import CheckpointError, SettingsError, StorageError, TrainingError, said
from pbp_search.search.checkpoints import Checkpoints
from pbp_search.search.claims import MOST_RESTARTS, Claim, Claims, restarts_of
from pbp_search.search.definition import renamed, same_study
from pbp_search.search.plans import Planned, Plans, is_planned, searched
from pbp_search.search.promotion import next_continuation
from pbp_search.search.recording import record_of
from pbp_search.search.rungs import (
    CHECKPOINT,
    CONFIGURATION,
    DENDRITES,
    FAILURE,
    MILESTONE,
    PARENT,
    PLAN,
    PRUNED,
    STEP,
    STEPS,
    TRACEBACK,
    Outcome,
    Rung,
    Rungs,
    front_of,
    plan_of,
    step_of,
    trials_of,
    values_of,
)
from pbp_search.search.sampler import sampler_of
from pbp_search.search.setup import Setup
from pbp_search.search.sizes import NetworkSizes
from pbp_search.search.space import configuration_seed
from pbp_search.search.stagnation import stagnated
from pbp_search.search.storage import open_storage, patient, tracking_lock
from pbp_search.tracking import Tracker
from pbp_search.training import Checkpoint, EpochRecord, Milestone, Step, TrialConfig, run_rung

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5


class _TimeIsUpError(Exception):
    """The run has ended while a rung was trained."""


class Worker:
    """One worker of a study, in the process that makes it.

    Args:
        setup: The study.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._folder = setup.folder
        self._storage = open_storage(setup.folder.home, setup.storage, create=False)
        sampler = sampler_of(setup.sampler, setup.seed)
        self._study = same_study(setup.study, setup.folder.identity, self._storage, sampler)
        self._claims = Claims(setup.folder, self._study, self._storage)
        self._checkpoints = Checkpoints(setup.folder)
        self._rungs = Rungs()
        self._tracker = Tracker(
            setup.folder, setup.study, setup.tracking_uri, tracking_lock(self._storage, setup.folder)
        )
        self._data = setup.task.data()
        self._sizes = NetworkSizes(setup.task, self._data)
        self._plans = Plans(self._study, self._rungs, setup.seed)
        self._history: list[EpochRecord] = []
        self._recorded: set[int] = set()
        most = {DENDRITES: setup.space.dendrites} | ({PRUNED: setup.space.prunings} if setup.space.prunings else {})
        self._rung_distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, number) for name, number in most.items()
        }

    def run_one(self, trials: int | Planned, deadline: float | None) -> Outcome | None:
        """Train one rung.

        Args:
            trials: No rung is started when this many have finished or are being trained, planned ones apart. Nor is one
                while the front stagnates, if the setup has a number of trials for that. Or the planned ones wanted.
            deadline: No rung is started after this time, in seconds since the epoch, and a running one is stopped at
                the end of its epoch: the next run does it again.

        Returns:
            What came of it, or None if there is nothing more to do.
        """
        while not self._is_over(deadline):
            try:
                claim = self._claim(trials)
                outcome = None if claim is None else self._run(claim, deadline)
            finally:
                self._claims.end()  # whatever has interrupted us, and wherever: this process may live on
            if outcome is not None:
                self._record(outcome.trial)
                self._tidy()
                return outcome
            if claim is None:
                if self._is_done(trials):
                    return None
                # The last ones are being trained by others. If one of those dies, its trial is ours.
                time.sleep(_WAIT_SECONDS)
        return None

    def leave(self) -> NoReturn:
        """End the process, from any thread of it, and let its trial wait: this does not count as a restart."""
        try:
            with self._claims.deciding():
                claim = self._claims.held
                if claim is not None and self._claims.holds(claim):
                    self._storage.set_trial_state_values(claim.trial._trial_id, TrialState.WAITING)
                os._exit(1)  # under the lock: the thread that trains cannot tell of the trial in between
        finally:  # the trial has just finished, or the storage is away
            os._exit(1)

    def _is_over(self, deadline: float | None) -> bool:
        flag = self._setup.flag
        return (deadline is not None and time.time() >= deadline) or (flag is not None and not flag.exists())

    @patient
    def _is_done(self, target: int | Planned) -> bool:
        everything = trials_of(self._study)
        trials = _concerned(everything, target)
        finished = sum(trial.state.is_finished() for trial in trials)
        if isinstance(target, Planned):
            more = self._plans.next_step(target, trials) or self._plans.next_new(target, everything)
            return finished == len(trials) and more is None
        return finished >= target or (finished == len(trials) and self._stagnates(trials))

    def _stagnates(self, trials: Sequence[FrozenTrial]) -> bool:
        window = self._setup.stagnation
        if window is None:
            return False
        own = searched(trials)
        return stagnated(own, self._rungs.of(own), window, self._setup.task.direction, self._setup.size)

    @patient
    def _claim(self, target: int | Planned) -> Claim | None:
        self._history.clear()
        with self._claims.deciding():
            if self._storage.get_study_name_from_id(self._study._study_id) != self._setup.study:
                raise renamed(self._setup.study)
            trials = trials_of(self._study)
            trial = self._claims.next_abandoned(trials)
            if trial is None:
                if self._claims.is_in_doubt(trials):
                    return None
                concerned = _concerned(trials, target)
                begun = sum(each.state.is_finished() or each.state == TrialState.RUNNING for each in concerned)
                if isinstance(target, Planned):
                    trial = self._waiting(concerned) or self._planned(target, trials)
                elif begun >= target:
                    return None
                else:
                    trial = self._waiting(concerned)
            if trial is not None:
                self._checkpoints.discard(trial, self._storage)
            elif not isinstance(target, Planned) and not self._stagnates(trials):
                trial = self._continued(self._promoted(trials)) or self._new()
            return None if trial is None else self._claims.take(self._latest(trial))

    def _latest(self, trial: FrozenTrial) -> FrozenTrial:
        return self._storage.get_trial(trial._trial_id)

    def _waiting(self, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        for trial in trials:
            if trial.state == TrialState.WAITING:
                self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
                return trial
        return None

    def _planned(self, target: Planned, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """What is next of planned chains: those that have begun come first, so that what is planned first is whole."""
        if step := self._plans.next_step(target, trials):
            return self._continued(step)
        new = self._plans.next_new(target, trials)
        return None if new is None else self._created(*new)

    def _promoted(self, trials: Sequence[FrozenTrial]) -> tuple[Rung, Step] | None:
        rungs, setup = self._rungs.of(searched(trials)), self._setup
        return next_continuation(trials, rungs, setup.space.steps, setup.task.direction, setup.size, self._next_size)

    def _continued(self, found: tuple[Rung, Step] | None) -> FrozenTrial | None:
        if found is None:
            return None
        rung, step = found
        # With all its parameters at once: it shall draw none.
        params = {**rung.params, STEPS[step]: rung.params[STEPS[step]] + 1}
        attributes: dict[str, Any] = {CONFIGURATION: rung.configuration, PARENT: rung.trial, STEP: step}
        if rung.plan is not None:
            attributes[PLAN] = rung.plan.to_dict()
        return self._created(params, trials_of(self._study)[rung.trial].distributions, attributes)

    def _next_size(self, step: Step, rung: Rung) -> int | None:
        return self._sizes.after(step, rung.milestone, self._setup.size) if step in self._steps(rung) else None

    def _steps(self, rung: Rung) -> list[Step]:
        return self._sizes.steps(rung.milestone, self._setup.space, self._setup.max_parameters)

    def _new(self) -> FrozenTrial:
        return self._created(dict.fromkeys(self._rung_distributions, 0), self._rung_distributions, {})

    def _created(
        self, params: dict[str, Any], distributions: dict[str, BaseDistribution], attributes: dict[str, Any]
    ) -> FrozenTrial:
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes
        )
        # By the study's own storage, which otherwise would not know the trial when its parameters are drawn.
        return self._storage.get_trial(self._study._storage.create_new_trial(self._study._study_id, trial))

    def _run(self, claim: Claim, deadline: float | None) -> Outcome | None:
        """Train a rung. None if time was up, or if somebody else has its trial by now."""

        def check() -> None:
            if self._is_over(deadline):
                raise _TimeIsUpError

        try:
            checkpoint = self._train(claim.trial, check)
        except _TimeIsUpError:
            self._put_back(claim)
            return None
        except (KeyboardInterrupt, StorageError):
            self._put_back(claim)
            raise
        except StorageInternalError:  # nor can it be told that the trial waits: the run does that in the end, if it can
            raise
        except BaseException as error:  # a user's network, loss or score may raise anything, or exit: the study goes on
            return self._failed(claim, error)
        return self._succeeded(claim, checkpoint)

    def _train(self, claimed: FrozenTrial, check: Callable[[], None]) -> Checkpoint:
        """Train a trial's rung from the milestone before it.

        Raises:
            StorageError: The milestones cannot be read here: no fault of the trial's.
            StorageInternalError: Nor is this: the storage failed.
        """
        if restarts_of(claimed) > MOST_RESTARTS:
            raise TrainingError(f"The worker of this trial died {MOST_RESTARTS + 1} times.")
        trial, setup = self._drawn(claimed), self._setup
        parent = trial.user_attrs.get(PARENT)
        config = self._configuration(trial)
        if parent is None:
            self._check_start(trial, config)
        previous = None if parent is None else self._milestone(parent)
        on_epoch = self._history.append
        return run_rung(setup.task, config, previous, self._data, on_epoch, setup.device, check, step_of(trial))

    def _configuration(self, trial: FrozenTrial) -> TrialConfig:
        plan = plan_of(trial)
        if plan is not None:
            return plan.config
        seed = configuration_seed(self._setup.seed, trial.user_attrs[CONFIGURATION])
        return self._setup.space.suggest(FixedTrial(trial.params), seed)

    def _check_start(self, trial: FrozenTrial, config: TrialConfig) -> None:
        for name in self._rung_distributions:
            if trial.params.get(name, 0) > 0:
                given = trial.params[name]
                raise SettingsError(f"A new configuration starts with {name}=0, not {given}: enqueue that.")
        limit = None if is_planned(trial) else self._setup.max_parameters
        if not self._sizes.fits(config, 0, limit):  # of networks that do not grow with their width
            raise SettingsError(
                f"The network of width {config.width} has {self._sizes.parameters(config, 0):,} parameters, "
                f"more than the limit of {limit:,}."
            )

    @patient
    def _drawn(self, trial: FrozenTrial) -> FrozenTrial:
        """A trial with all its parameters. Those that it does not have yet are drawn, and the same if it is done again.

        Nobody waits for that: it is not done while deciding, but by whoever holds the trial. Workers that draw at the
        same time see each other's trials as far as they were drawn when they began.
        """
        if CONFIGURATION in trial.user_attrs:
            return trial
        for name, distribution in self._rung_distributions.items():
            if name not in trial.params:  # of a trial that a user has enqueued
                given = trial.system_attrs.get("fixed_params", {}).get(name, 0)
                self._storage.set_trial_param(trial._trial_id, name, given, distribution)
        try:
            if not is_planned(trial):
                self._setup.space.suggest(optuna.Trial(self._study, trial._trial_id), seed=0)
        except IntegrityError:  # one is there by now: who had the trial before was silent, and draws too
            return self._drawn(self._latest(trial))
        self._storage.set_trial_user_attr(trial._trial_id, CONFIGURATION, trial.number)
        return self._latest(trial)

    def _milestone(self, number: int) -> Checkpoint:
        try:
            return self._checkpoints.load(self._rung(number))
        except (CheckpointError, OSError) as error:
            folder = self._setup.folder.milestones
            if not isinstance(error.__cause__ or error, OSError) and folder.is_dir():
                raise  # this one is missing or damaged, for everybody: its chain ends here
            raise StorageError(
                f"The milestones in {folder} cannot be read on this machine any more: is the folder mounted, and may "
                "it be read? The same command goes on."
            ) from error

    @patient
    def _rung(self, number: int) -> Rung:
        return self._rungs.of([trials_of(self._study)[number]])[0]

    @patient
    def _put_back(self, claim: Claim) -> None:
        """Let a trial wait that was stopped in good order: this does not count as a restart."""
        with self._claims.deciding():
            if self._claims.holds(claim):
                self._storage.set_trial_state_values(claim.trial._trial_id, TrialState.WAITING)

    def _succeeded(self, claim: Claim, checkpoint: Checkpoint) -> Outcome | None:
        try:
            name = self._saved(claim.trial, checkpoint)
        except UpdateFinishedTrialError:
            self._tell_lost(claim)
            return None
        except OSError:  # no fault of the trial's: the store is full, or gone
            self._put_back(claim)
            raise
        return self._told(claim, checkpoint.milestone, name)

    def _tell_lost(self, claim: Claim) -> None:
        logger.warning("Trial %d has been given to another worker, as this one was silent.", claim.trial.number)

    @patient
    def _saved(self, trial: FrozenTrial, checkpoint: Checkpoint) -> str:
        return self._checkpoints.save(trial, checkpoint, self._storage)

    @patient
    def _told(self, claim: Claim, milestone: Milestone, name: str) -> Outcome | None:
        trial = claim.trial
        with self._claims.deciding():
            if not self._claims.holds(claim):
                self._checkpoints.remove(name)
                self._tell_lost(claim)
                return None
            if not self._latest(trial).state.is_finished():  # or the storage went away right after this
                self._storage.set_trial_user_attr(trial._trial_id, CHECKPOINT, name)
                self._storage.set_trial_user_attr(trial._trial_id, MILESTONE, milestone.to_dict())
                self._study.tell(trial.number, values_of(milestone, self._setup.size))
        return Outcome(trial.number, milestone, None)

    @patient
    def _failed(self, claim: Claim, error: BaseException) -> Outcome | None:
        with self._claims.deciding():
            return self._fail(claim.trial, error) if self._claims.holds(claim) else None

    def _fail(self, trial: FrozenTrial, error: BaseException) -> Outcome:
        failure = said(error)
        if not self._latest(trial).state.is_finished():
            self._storage.set_trial_user_attr(trial._trial_id, FAILURE, failure)
            frames = "".join(traceback.format_tb(error.__traceback__, limit=-8))
            self._storage.set_trial_user_attr(trial._trial_id, TRACEBACK, frames)
            self._study.tell(trial.number, state=TrialState.FAIL)
        return Outcome(trial.number, None, failure)

    @patient
    def _tidy(self) -> None:
        trials = trials_of(self._study)
        rungs = self._rungs.of(trials)
        front = front_of(rungs, self._setup.task.direction, self._setup.size)
        self._checkpoints.tidy(trials, rungs, front, self._steps, self._recorded)

    @patient
    def _record(self, number: int) -> None:
        trial = trials_of(self._study)[number]
        try:
            self._tracker.log_trial(record_of(trial, self._history))
            self._recorded.add(number)
        except MlflowException as error:
            logger.warning("Trial %d is not in MLflow yet, the study's next run records it: %s", number, said(error))


def _concerned(trials: Sequence[FrozenTrial], target: int | Planned) -> list[FrozenTrial]:
    return target.among(trials) if isinstance(target, Planned) else searched(trials)
