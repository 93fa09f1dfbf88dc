"""A study: an Optuna study over a search space, its milestones, and its front."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial, TrialState

from pbp_search.errors import CheckpointError, SettingsError, StudyError
from pbp_search.front import Front, Point
from pbp_search.home import Home, StudyFolder, check_name, dated_name
from pbp_search.search.checkpoints import Checkpoints
from pbp_search.search.claims import Claims, put_back, put_in_order
from pbp_search.search.definition import DEFINITION, FOLDER, Definition, define, same_study
from pbp_search.search.plans import Chain, Planned, chains_of, comparison_of, planned_chains, searched, write_plans
from pbp_search.search.progress import Progress, progress_of, told
from pbp_search.search.recording import record_end, record_missing
from pbp_search.search.rungs import FAILURE, Outcome, Plan, Rung, Rungs, best_of, front_of, trials_of
from pbp_search.search.sampler import Sampler, sampler_of
from pbp_search.search.setup import Setup
from pbp_search.search.sizes import NetworkSizes
from pbp_search.search.space import SearchSpace
from pbp_search.search.storage import if_possible, open_storage, patient, rename_study, shared_lock, tracking_lock
from pbp_search.tasks import check_sendable
from pbp_search.training import Checkpoint, Size, Step, Task, check_task
from pbp_search.training.device import device_of

if TYPE_CHECKING:
    from pbp_search.search.workers import Backend

# MLflow takes seconds to import. Only what writes to it does, not what reads a study: the imports stand inside.

logger = logging.getLogger(__name__)


class Study:
    """A study in a storage. Make one with :meth:`create` or :meth:`load`.

    Attributes:
        name: Its name.
        folder: Holds its milestones and front.
        definition: What it searches.
    """

    def __init__(self, study: optuna.Study, home: Home, storage: str | None) -> None:
        attributes = study.user_attrs
        if DEFINITION not in attributes:
            raise StudyError(f"The study {study.study_name!r} was not made by pbp-search: choose another name.")
        self.name = study.study_name
        self.folder = StudyFolder(home, attributes[FOLDER])
        self.definition = Definition.from_dict(attributes[DEFINITION])
        self._optuna = study
        self._storage = storage
        self._rungs = Rungs()

    @classmethod
    def load(cls, name: str, home: Home, storage: str | None = None) -> "Study":
        """Open an existing study.

        Raises:
            StudyError: There is none of this name, or another program made it.
            StorageError: The storage cannot be opened.
        """
        opened = open_storage(home, storage, create=False)
        names = sorted(optuna.get_all_study_names(opened))
        if name not in names:
            raise StudyError(f"There is no study {name!r}: available are {', '.join(names) or 'none'}.")
        return cls(optuna.load_study(study_name=name, storage=opened), home, storage)

    @classmethod
    def create(
        cls,
        task: Task,
        name: str | None = None,
        home: Home | None = None,
        *,
        space: SearchSpace | None = None,
        seed: int | None = None,
        size: Size | None = None,
        max_parameters: int | None = None,
        storage: str | None = None,
    ) -> "Study":
        """Make a study of a task, or open the one of that name if it is the same.

        Args:
            task: What is learned.
            name: The study's name; the task's by default.
            home: The folder that holds its state; ``mlruns`` by default.
            space: What is searched; the task's default space for a new study, the study's own for an existing one.
            seed: Keys every random stream; 0 for a new study, the study's own for an existing one.
            size: What the second objective counts: ``parameters``, ``weight_bytes`` or ``macs`` (multiply-accumulates
                for one sample); parameters for a new study, the study's own for an existing one.
            max_parameters: No larger network is trained, and no width is drawn whose base network is larger; no limit
                for a new study, the study's own for an existing one.
            storage: A database URL; an SQLite file in the home by default.

        Raises:
            StudyError: A study of this name differs in its task, space, objectives, limit or seed.
            TaskError: A network of the task that is needed here does not work, or its own space.
            StorageError: The storage cannot be opened.
            InputError: Even the smallest network of the space is above the limit, or it prunes what the size ignores.
        """
        name = check_name(task.name if name is None else name)
        home = home or Home.at("mlruns")
        sizes = NetworkSizes(task)
        default = space or SearchSpace.for_task(task)
        new = define(task, default, seed or 0, size or "parameters", max_parameters, sizes)
        opened = open_storage(home, storage)
        with shared_lock(opened, "creation"):
            study = optuna.create_study(
                study_name=name, storage=opened, directions=[task.direction, "minimize"], load_if_exists=True
            )
            # An empty study without a definition is new, or was left by a crash right here.
            same_directions = [direction.name.lower() for direction in study.directions] == [task.direction, "minimize"]
            if DEFINITION not in study.user_attrs and not trials_of(study) and same_directions:
                with warnings.catch_warnings():  # names for the dashboard; experimental in Optuna
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    study.set_metric_names([task.metric, f"log10_{new.size}"])
                study.set_user_attr(FOLDER, home.new_study(name).create().create_artifacts().identity)
                study.set_user_attr(DEFINITION, new.to_dict())
        created = cls(study, home, storage)
        own = created.definition
        wanted = define(
            task,
            space or own.space,
            own.seed if seed is None else seed,
            size or own.size,
            own.max_parameters if max_parameters is None else max_parameters,
            sizes,
        )
        difference = own.difference(wanted)
        if difference:
            raise StudyError(
                f"The study {name!r} exists and differs ({'; '.join(difference)}): "
                "give the new one another name (--study), or keep the old one under a dated name (--fresh)."
            )
        return created

    def plan(self, plans: Mapping[Plan, int]) -> None:
        """Let chains be those of the study's comparison from now on: a run for it trains them.

        Args:
            plans: Those of the first replicate of one comparison, each with a trial that has the same settings.
        """
        storage = open_storage(self.folder.home, self._storage, create=False)
        with shared_lock(storage, self.folder.identity):
            same_study(self.name, self.folder.identity, storage)
            write_plans(self._optuna, plans)

    def planned(self, replicates: int) -> dict[Plan, int]:
        """The chains of the study's comparison for some replicates, each with a trial that has the same settings."""
        return planned_chains(self._optuna, replicates, self.definition.seed)

    def comparison(self) -> str | None:
        """The comparison that was planned last, as a whole."""
        return comparison_of(self._optuna)

    def chains(self) -> dict[Plan, Chain]:
        """All planned chains that have begun."""
        return chains_of(self._trials(), self._rungs)

    def run(
        self,
        task: Task,
        trials: int | Planned,
        *,
        timeout: float | None = None,
        stagnation: int | None = None,
        workers: int | None = None,
        threads: int = 1,
        backend: "Backend" = "loky",
        scheduler: str | None = None,
        device: str = "auto",
        sampler: Sampler = "auto",
        tracking_uri: str | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> Front[Rung]:
        """Go on until the study has a number of finished trials in all.

        What an earlier run left unfinished is done again first, and what it left unrecorded is recorded. Several
        processes may run the same study at the same time.

        Args:
            task: The study's task.
            trials: Finished trials to reach, failed ones included and planned ones apart; or planned ones.
            timeout: No rung starts after this many seconds, and running ones are stopped at the end of their epoch, be
                it the neurons' or a module's dendrites'; the next run does those again.
            stagnation: No rung starts when as many trials have finished since the front last got better: see
                :func:`pbp_search.search.stagnation.stagnated`. Running ones are finished.
            workers: Rungs that are trained at a time. 1, the default, trains in this process, more in processes of
                their own; with ``dask`` in the cluster's, by default in all of them.
            threads: Threads of each worker.
            backend: What runs the workers: ``loky`` on this machine, or ``dask`` in a cluster that is there already.
            scheduler: The address of its scheduler.
            device: Where to train: ``auto`` (CUDA, else MPS, else the CPU), or torch's name of a device.
            sampler: What draws configurations: ``auto`` (see AutoSampler), ``tpe``, ``nsga2``, ``gp`` or ``random``; an
                Optuna sampler, whose draws are not reproducible; or a function that makes one from a seed.
            tracking_uri: MLflow's store; an SQLite file in the home by default.
            on_outcome: Told each finished rung.

        Returns:
            The study's front.

        Raises:
            TaskError: The task is incomplete or does not fit together.
            StorageError: A store cannot be opened.
            StudyError: The task is not the study's, or the milestones of the study lie elsewhere.
            InputError: There is no such device, sampler or cluster.
        """
        from pbp_search.search.workers import cluster_of, run_workers
        from pbp_search.tracking import Tracker

        counts = {
            "trials": trials.replicates if isinstance(trials, Planned) else trials,
            "workers": workers,
            "timeout": timeout,
            "stagnation": stagnation,
            "threads": threads,
        }
        for what, count in counts.items():
            if count is not None and count <= 0:
                raise SettingsError(f"{what} ({count}) must be greater than 0.")
        device_of(device)
        sampler_of(sampler, self.definition.seed)  # refused here, not in the workers
        deadline = None if timeout is None else time.time() + timeout
        checkpoints = self._checkpoints()
        check_task(task)
        if backend != "loky" or (workers or 1) > 1:
            check_sendable(task)
        self.folder.create()
        same = {"task": task.name, "metric": task.metric, "direction": task.direction}
        difference = self.definition.difference(self.definition.model_copy(update=same))
        if difference:
            raise StudyError(f"The study {self.name!r} is of another task ({'; '.join(difference)}).")
        storage = open_storage(self.folder.home, self._storage, create=False)
        same_study(self.name, self.folder.identity, storage)
        tracker = Tracker(self.folder, self.name, tracking_uri, tracking_lock(storage, self.folder))
        setup = Setup(
            folder=self.folder,
            study=self.name,
            storage=self._storage,
            tracking_uri=tracking_uri,
            task=task,
            space=self.definition.space,
            seed=self.definition.seed,
            device=device,
            size=self.definition.size,
            max_parameters=self.definition.max_parameters,
            sampler=sampler,
            stagnation=stagnation,
            threads=threads,
        )
        cluster = cluster_of(backend, scheduler)
        with nullcontext() if cluster is None else closing(cluster):
            try:
                tracker.begin(self.definition.flat())
                record_missing(self, tracker)
                for outcome in run_workers(setup, trials, deadline, workers, cluster):
                    self._tell(outcome)
                    if on_outcome is not None:
                        on_outcome(outcome)
                recorded = record_missing(self, tracker)
                self._tidy(checkpoints, NetworkSizes(task), recorded)  # what a worker that was killed did not
            except BaseException as error:
                with if_possible():
                    put_back(self._optuna, Claims(self.folder, self._optuna, storage), storage)
                with if_possible():
                    interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
                    record_end(self, tracker, "KILLED" if interrupted else "FAILED")
                raise
        record_end(self, tracker, "FINISHED")
        return self.front()

    def _tidy(self, checkpoints: Checkpoints, sizes: NetworkSizes, recorded: set[int]) -> None:
        own = self.definition

        def steps(rung: Rung) -> list[Step]:
            return sizes.steps(rung.milestone, own.space, own.max_parameters)

        checkpoints.tidy(self._trials(), self.rungs(), self.front(), steps, recorded)

    def _tell(self, outcome: Outcome) -> None:
        # Here and not in the workers: those may be other processes, whose logs nobody sees.
        if outcome.failure is not None:
            logger.warning("Trial %d failed: %s", outcome.trial, outcome.failure)
        if logger.isEnabledFor(logging.INFO):  # or the storage would be read for nothing
            own = self.definition
            logger.info("%s", told(self._trials()[outcome.trial], own.metric, own.size))

    def progress(self) -> Progress:
        """How far the search is, whoever runs it."""
        trials = searched(self._trials())
        return progress_of(trials, self._rungs.of(trials), self.definition.direction, self.definition.size)

    def finished(self) -> list[FrozenTrial]:
        """The finished trials, failed ones included."""
        return [trial for trial in self._trials() if trial.state.is_finished()]

    @patient
    def _trials(self) -> list[FrozenTrial]:
        return trials_of(self._optuna)

    def failures(self) -> dict[int, str]:
        """The failed trials and their reasons."""
        return {
            trial.number: str(trial.user_attrs.get(FAILURE, "failed outside of this program"))
            for trial in self._trials()
            if trial.state == TrialState.FAIL
        }

    def rungs(self) -> list[Rung]:
        """The rungs that left a milestone, by trial."""
        return self._rungs.of(self._trials())

    def front(self) -> Front[Rung]:
        """The front of validation score against the study's size."""
        return front_of(self.rungs(), self.definition.direction, self.definition.size)

    def best(self, max_parameters: int | None = None, min_score: float | None = None) -> Point[Rung]:
        """The best point of the front with at most a number of parameters, whatever the study's size is.

        With ``min_score`` that is the smallest one that reaches the score.

        Raises:
            NothingFitsError: No point fits. The message names the nearest.
        """
        return best_of(self.front(), self.definition.size, max_parameters, min_score)

    def checkpoint(self, trial: int) -> Checkpoint:
        """The milestone of a trial, with its weights. Those of the front are there, and not all others.

        Raises:
            StudyError: The milestones of the study lie elsewhere.
            CheckpointError: The trial left none, or it has been removed, is missing or is damaged.
        """
        for rung in self.rungs():
            if rung.trial == trial:
                return self.checkpoint_of(rung)
        raise CheckpointError(f"Trial {trial} of the study {self.name!r} has left no milestone.")

    def checkpoint_of(self, rung: Rung) -> Checkpoint:
        """The milestone of a rung, with its weights: see :meth:`checkpoint`."""
        return self._checkpoints().load(rung)

    def _checkpoints(self) -> Checkpoints:
        if not self.folder.milestones.is_dir():
            raise StudyError(
                f"The milestones of the study {self.name!r} are not in {self.folder.milestones}: name the home that "
                "the study was made in with --home, or the folder that its machines share with --artifacts."
            )
        return Checkpoints(self.folder)

    def archive(self, tracking_uri: str | None = None) -> str:
        """Keep the study under a dated name, so that a new one can take its name.

        What processes that died have left is put in order: their trials wait, what is missing in MLflow is recorded,
        and the study's run there ends as killed.

        Returns:
            The dated name.

        Raises:
            StudyError: A worker is training one of its trials, or another process has given it another name.
            StorageError: A store cannot be opened.
        """
        from pbp_search.tracking import Tracker

        storage = open_storage(self.folder.home, self._storage, create=False)
        folder = self.folder.create()
        tracker = Tracker(folder, self.name, tracking_uri, tracking_lock(storage, folder))
        claims = Claims(self.folder, self._optuna, storage)
        with claims.deciding():
            put_in_order(self.name, self._optuna, claims, storage, self.folder.identity)
        # Before the name is given up: whatever fails, the same command does it again.
        status = tracker.status()
        if status is not None:
            record_missing(self, tracker)
        if status == "RUNNING":
            record_end(self, tracker, "KILLED")
        with claims.deciding():
            put_in_order(self.name, self._optuna, claims, storage, self.folder.identity)
            dated = dated_name(self.name, optuna.get_all_study_names(storage))
            # One transaction. The folder keeps its name, and MLflow's experiment is found by the folder's: a crash here
            # leaves nothing in between.
            rename_study(storage, self.name, dated)
        tracker.rename(dated)
        return dated
