"""Workers in a Dask cluster that the user has already, through joblib's Dask backend: a rung is a task.

A worker of the cluster belongs to Dask: it outlives the run, and no signal of ours ends it. That is why a run has a
flag, a file in the study's folder: when it goes, rungs that are being trained are put back at the end of their epoch.
Dask itself does a task again whose worker has died.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import joblib

from pbp_search.errors import InputError, StorageError
from pbp_search.search.plans import Planned
from pbp_search.search.rungs import Outcome
from pbp_search.search.setup import Setup
from pbp_search.search.worker import Worker
from pbp_search.tasks import packed, unpacked

_CONNECT_SECONDS = 5
_one_at_a_time = threading.Lock()


class Cluster:
    """A Dask cluster that we are connected to.

    Attributes:
        workers: How many workers it has.

    Args:
        address: Its scheduler's.

    Raises:
        InputError: Dask is not installed, nobody answers there, or there are no workers of one thread each.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise InputError(
                "The backend dask needs the package distributed: pip install 'pbp_search[dask]'."
            ) from None
        try:
            self._client: Client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError):  # a TimeoutError is an OSError
            raise InputError(
                f"There is no Dask scheduler at {address!r}: it should look like tcp://host:8786."
            ) from None
        try:
            self.workers = self._count(address)
        except BaseException:
            self.close()
            raise

    def _count(self, address: str) -> int:
        try:
            self._client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError:
            raise InputError(f"The Dask scheduler at {address} has no workers: start some.") from None
        threads = self._client.nthreads().values()
        if max(threads) > 1:
            raise InputError(
                f"A worker of the Dask cluster has {max(threads)} threads: start them with one thread each "
                "(dask worker --nthreads 1 --nworkers N)."
            )
        return len(threads)

    def backend(self) -> Any:
        """joblib's backend for the cluster."""
        from pbp_search.search.joblib_dask import Backend

        return Backend(client=self._client)

    def close(self) -> None:
        """Leave the cluster, which goes on without us, and let go of all our tasks."""
        self._client.close()


@contextmanager
def flagged(setup: Setup) -> Iterator[Setup]:
    """The setup of a run that lasts as long as this context, whatever becomes of its tasks."""
    flag = setup.folder.locks / f"run-{setup.call}"
    flag.touch()
    try:
        yield replace(setup, flag=flag)
    finally:
        flag.unlink(missing_ok=True)


def call_in_cluster(setup: Setup, trials: int | Planned, deadline: float | None) -> tuple[Callable[..., Any], Any, Any]:
    """The call of joblib's for one rung."""
    # Dask's own serialisation would look for a user's task file, which only this process has loaded, by its name.
    call: tuple[Callable[..., Any], Any, Any] = joblib.delayed(_run_one)(packed(setup), trials, deadline)
    return call


def _run_one(setup: bytes, trials: int | Planned, deadline: float | None) -> Outcome | None:
    """One rung, in a worker of the cluster."""
    with _one_at_a_time:  # should it have several threads after all: the random numbers of torch are the process's
        return _worker(setup).run_one(trials, deadline)


@lru_cache(maxsize=1)
def _worker(sent: bytes) -> Worker:
    """The process's worker: it opens its study once."""
    setup: Setup = unpacked(sent)
    setup.settle()
    here = f"The Dask worker on {socket.gethostname()}"
    for folder in (setup.folder.locks, setup.folder.milestones):
        if not folder.is_dir():
            raise InputError(
                f"{here} does not see the folder {folder}: the home and the artifacts must be there under the same "
                "path on all machines of the cluster."
            )
    try:
        return Worker(setup)
    except StorageError as error:
        raise StorageError(f"{here} cannot take part: {error}") from None
