"""joblib's Dask backend, with two of its gaps closed. Importing it needs the package ``distributed``."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from joblib._dask import DaskDistributedBackend
from joblib.externals.loky.process_executor import TerminatedWorkerError

from pbp_search.errors import TrainingError, said


class Backend(DaskDistributedBackend):  # type: ignore[misc]  # joblib has no types
    """joblib's backend, that tells when Dask has given a task up, and that sends tasks to a single worker too."""

    def effective_n_jobs(self, n_jobs: int) -> int:
        """More than 1, or joblib would run the tasks in this process. How many run at once, what dispatches them says.

        joblib's own asks the cluster, and fails while all its workers are being started anew.
        """
        return max(2, n_jobs)

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> "Future[Any]":
        """Submit a batch. joblib itself calls back only for tasks that Dask has run, and waits for others for ever."""
        future: Future[Any] = super().submit(func, callback)

        def on_done(done: "Future[Any]") -> None:
            error = done.exception()
            if error is not None and callback is not None:
                callback(error)

        future.add_done_callback(on_done)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        """The result of a batch, or raise its error."""
        if isinstance(out, BaseException):
            raise lost(out)
        return super().retrieve_result_callback(out)


def lost(error: BaseException) -> Exception:
    """What it means that Dask itself has failed with a task, not the task."""
    if type(error).__name__ == "KilledWorker":
        killed: Exception = TerminatedWorkerError(str(error))
        return killed
    return TrainingError(f"The Dask cluster has lost a task ({said(error)}). The same command goes on.")
