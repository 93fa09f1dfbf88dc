"""Several workers at once: processes through joblib, on this machine or in a Dask cluster."""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Literal

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from pbp_search.errors import SettingsError, TrainingError
from pbp_search.search.cluster import Cluster, call_in_cluster, flagged
from pbp_search.search.plans import Planned
from pbp_search.search.rungs import Outcome
from pbp_search.search.setup import Setup
from pbp_search.search.worker import Worker

logger = logging.getLogger(__name__)

Backend = Literal["loky", "dask"]

_LEAVING_SECONDS = 5
_MOST_FRUITLESS = 5  # more than a trial's restarts: a trial that kills its workers fails, and the study goes on


def cluster_of(backend: Backend, scheduler: str | None) -> Cluster | None:
    """The cluster that a run is to use, if any: connected, and to be closed.

    Raises:
        SettingsError: There is no such backend, or a scheduler is missing or makes no sense.
        InputError: The cluster cannot be used.
    """
    if backend not in ("loky", "dask"):
        raise SettingsError(f"There is no backend {backend!r}: use loky or dask.")
    if (backend == "dask") != (scheduler is not None):
        raise SettingsError("The backend dask needs the address of its scheduler, and no other backend takes one.")
    return None if scheduler is None else Cluster(scheduler)


def run_workers(
    setup: Setup, trials: int | Planned, deadline: float | None, workers: int | None, cluster: Cluster | None = None
) -> Iterator[Outcome]:
    """Run rungs until a study has a number of finished trials, and yield each as it finishes.

    Args:
        setup: The study.
        trials: Finished trials to reach, those of earlier runs included; or the planned ones.
        deadline: No rung starts after this time, in seconds since the epoch.
        workers: How many at a time. 1, the default, runs in this process, more in processes of their own.
        cluster: Where they run instead; in all its workers by default.
    """
    workers = workers or (1 if cluster is None else cluster.workers)
    if workers == 1 and cluster is None:
        yield from _here(setup, trials, deadline)
        return
    fruitless = 0
    with nullcontext(setup) if cluster is None else flagged(setup) as setup:
        while True:
            try:
                for outcome in _elsewhere(setup, trials, deadline, workers, cluster):
                    fruitless = 0
                    yield outcome
            except TerminatedWorkerError:
                # One killed worker takes its whole pool along. The others' trials are free again: go on in a new pool.
                fruitless += 1
                if fruitless > _MOST_FRUITLESS:
                    raise TrainingError(
                        f"The workers were killed {fruitless} times without finishing a trial: is there memory for "
                        f"{workers} of them? The same command with fewer --workers goes on."
                    ) from None
                logger.warning("A worker was killed: its trial is done again.")
            else:
                return


def _here(setup: Setup, trials: int | Planned, deadline: float | None) -> Iterator[Outcome]:
    threads = torch.get_num_threads()
    worker = Worker(setup)
    while True:
        # As many as in the worker processes: results do not depend on how many workers there are.
        torch.set_num_threads(setup.threads)
        try:
            outcome = worker.run_one(trials, deadline)
        finally:
            torch.set_num_threads(threads)
        if outcome is None:
            return
        yield outcome


def _elsewhere(
    setup: Setup, trials: int | Planned, deadline: float | None, workers: int, cluster: Cluster | None
) -> Iterator[Outcome]:
    exhausted = False
    arguments = {"return_as": "generator_unordered", "pre_dispatch": workers, "batch_size": 1}
    if cluster is None:
        call = joblib.delayed(_run_one)(setup, os.getpid(), trials, deadline)
        pool = pool_of(workers, **arguments)
    else:
        call = call_in_cluster(setup, trials, deadline)
        pool = joblib.Parallel(workers, backend=cluster.backend(), **arguments)

    def calls() -> Iterator[Any]:
        while not exhausted:
            yield call

    outcomes = pool(calls())
    try:
        for outcome in outcomes:
            if outcome is None:
                exhausted = True
            else:
                yield outcome
    finally:
        with warnings.catch_warnings():  # that tasks are dropped, if the run is stopped: so they shall be
            warnings.simplefilter("ignore", UserWarning)
            outcomes.close()


def pool_of(workers: int, **arguments: Any) -> joblib.Parallel:
    """A pool of processes that end with this one."""
    return joblib.Parallel(workers, backend="loky", initializer=_begin, initargs=(os.getpid(),), **arguments)


def _run_one(setup: Setup, parent: int, trials: int | Planned, deadline: float | None) -> Outcome | None:
    """One rung, in a worker process."""
    return _worker(setup, parent).run_one(trials, deadline)


def _begin(parent: int) -> None:
    """The start of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers

    def end() -> None:
        time.sleep(_LEAVING_SECONDS)
        os._exit(1)  # it has no worker yet, or one that cannot leave

    _when_gone(parent, end)


def _when_gone(parent: int, end: Callable[[], None]) -> None:
    """Do something when the process that started this one is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.1)
        end()

    threading.Thread(target=watch, daemon=True).start()


@lru_cache(maxsize=1)
def _worker(setup: Setup, parent: int) -> Worker:
    """The process's worker: it opens its study once."""
    setup.settle()
    worker = Worker(setup)
    _when_gone(parent, worker.leave)
    return worker
