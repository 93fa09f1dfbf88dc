"""Several workers at once: processes through joblib, one thread each."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import joblib
import optuna
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from pbp_search.errors import TrainingError
from pbp_search.search.rungs import Outcome
from pbp_search.search.worker import Setup, Worker

logger = logging.getLogger(__name__)

_LEAVING_SECONDS = 5
_MOST_FRUITLESS = 5  # more than a trial's restarts: a trial that kills its workers fails, and the study goes on


def run_workers(setup: Setup, trials: int, deadline: float | None, workers: int) -> Iterator[Outcome]:
    """Run rungs until a study has a number of finished trials, and yield each as it finishes.

    Args:
        setup: The study.
        trials: Finished trials to reach, those of earlier runs included.
        deadline: No rung starts after this time, in seconds since the epoch.
        workers: 1 runs in this process, more in processes of their own.
    """
    if workers == 1:
        yield from _here(setup, trials, deadline)
        return
    fruitless = 0
    while True:
        try:
            for outcome in _elsewhere(setup, trials, deadline, workers):
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


def _here(setup: Setup, trials: int, deadline: float | None) -> Iterator[Outcome]:
    threads = torch.get_num_threads()
    worker = Worker(setup)
    while True:
        # One thread, as in the worker processes: results do not depend on how many workers there are.
        torch.set_num_threads(1)
        try:
            outcome = worker.run_one(trials, deadline)
        finally:
            torch.set_num_threads(threads)
        if outcome is None:
            return
        yield outcome


def _elsewhere(setup: Setup, trials: int, deadline: float | None, workers: int) -> Iterator[Outcome]:
    exhausted = False

    def calls() -> Iterator[Any]:
        while not exhausted:
            yield joblib.delayed(_run_one)(setup, os.getpid(), trials, deadline)

    for outcome in pool_of(workers, return_as="generator_unordered", pre_dispatch=workers, batch_size=1)(calls()):
        if outcome is None:
            exhausted = True
        else:
            yield outcome


def pool_of(workers: int, **arguments: Any) -> joblib.Parallel:
    """A pool of processes that end with this one."""
    return joblib.Parallel(workers, backend="loky", initializer=_begin, initargs=(os.getpid(),), **arguments)


def _run_one(setup: Setup, parent: int, trials: int, deadline: float | None) -> Outcome | None:
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
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    worker = Worker(setup)
    _when_gone(parent, worker.leave)
    return worker
