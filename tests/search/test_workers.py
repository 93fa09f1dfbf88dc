"""Several workers at once. Starting processes that load torch takes seconds: one test does it."""

import asyncio
import logging
import os
import pickle
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import mlflow
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from torch import Tensor

from pbp_search.errors import InputError, TrainingError
from pbp_search.home import Home
from pbp_search.search import Outcome, Study, cluster, workers
from pbp_search.search.joblib_dask import lost
from pbp_search.search.setup import Setup
from pbp_search.search.workers import cluster_of, run_workers
from pbp_search.tasks import packed
from tests.quick_studies import Dots, checkpoint_file, quick_space, quick_study, recorded
from tests.search.faulty import assert_nothing_lost

pytestmark = pytest.mark.slow


@pytest.fixture
def _no_processes_left() -> Iterator[None]:
    yield
    get_reusable_executor().shutdown(wait=True)


class Watched(Dots):
    """Leaves a file for each process that trains it. The first one of the third trial is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) > 2 and outputs.requires_grad:
            (self.folder / str(os.getpid())).touch()
            self._die_once()
        return super().loss(outputs, targets)

    def _die_once(self) -> None:
        milestones = len(list((self.folder.parent / "home/artifacts").glob("*/milestones/*")))
        if milestones >= 2:
            try:
                (self.folder / "killed").touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("_no_processes_left")
def test_two_workers_of_which_one_is_killed(home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "processes"
    folder.mkdir()
    study = Study.create(Watched(folder), home=home, space=quick_space(), seed=8)
    outcomes: list[Outcome] = []
    front = study.run(Watched(folder), 8, workers=2, on_outcome=outcomes.append)

    assert (folder / "killed").exists()
    assert "A worker was killed: its trial is done again." in caplog.text
    processes = {int(file.name) for file in folder.iterdir() if file.name != "killed"}
    assert len(processes) >= 3
    assert os.getpid() not in processes

    assert [trial.number for trial in study.finished()] == list(range(8))
    assert study.failures() == {}
    assert len({outcome.trial for outcome in outcomes}) == len(outcomes)
    assert recorded(home, "dots") == set(range(8))
    assert len(front) > 0

    assert any(rung.parent is not None for rung in study.rungs())
    assert_nothing_lost(home, study)
    assert all(checkpoint_file(study, point.payload.trial).exists() for point in front)


DIES = "a pool that dies"
GIVEN_UP = (
    "The workers were killed 6 times without finishing a trial: is there memory for 3 of them? "
    "The same command with fewer --workers goes on."
)


class Pools:
    """Stands for pools of workers: each tells its outcomes, and is done or dies after them."""

    def __init__(self, *pools: tuple[Outcome | str, ...]) -> None:
        self.left = list(pools)

    def __call__(self, *_: object) -> Iterator[Outcome]:
        for outcome in self.left.pop(0):
            if isinstance(outcome, str):
                raise TerminatedWorkerError("a worker was killed")
            yield outcome


def outcomes_of(monkeypatch: pytest.MonkeyPatch, pools: Pools) -> Iterator[Outcome]:
    monkeypatch.setattr("pbp_search.search.workers._elsewhere", pools)
    return run_workers(cast(Setup, None), 100, None, 3)


def test_pools_that_die_again_and_again_without_an_outcome_are_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pools = Pools(*[(DIES,)] * 20)
    with pytest.raises(TrainingError) as caught:
        next(outcomes_of(monkeypatch, pools))
    assert str(caught.value) == GIVEN_UP
    assert len(pools.left) == 14
    assert caplog.messages == ["A worker was killed: its trial is done again."] * 5


def test_an_outcome_makes_the_deaths_before_it_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [Outcome(trial, None, "failed") for trial in range(5)]
    pools = Pools(
        *[(DIES,)] * 5,
        (told[0], told[1], DIES),  # the first death since
        *[(DIES,)] * 4,
        (told[2], DIES),
        (told[3], DIES),
        *[(DIES,)] * 4,
        (told[4],),
    )
    assert list(outcomes_of(monkeypatch, pools)) == told
    assert pools.left == []


def test_deaths_are_counted_from_the_last_outcome_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Outcome(0, None, "failed")
    pools = Pools(*[(DIES,)] * 5, (told, DIES), *[(DIES,)] * 20)
    outcomes = outcomes_of(monkeypatch, pools)
    assert next(outcomes) == told
    with pytest.raises(TrainingError) as caught:
        next(outcomes)
    assert str(caught.value) == GIVEN_UP
    assert len(pools.left) == 15


def test_workers_have_as_many_threads_as_they_are_told(home: Home) -> None:
    class Counting(Dots):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            seen.add(torch.get_num_threads())
            return super().loss(outputs, targets)

    study = quick_study(home, Counting())
    before = torch.get_num_threads()
    seen: set[int] = set()
    study.run(Counting(), 1, threads=2)
    assert 2 in seen
    assert torch.get_num_threads() == before


@pytest.fixture
def level() -> Iterator[Callable[[int], None]]:
    """Sets how much of our log is printed."""
    logger = logging.getLogger("pbp_search")
    before = logger.level
    yield logger.setLevel
    logger.setLevel(before)


@pytest.mark.parametrize("where", ["a process of ours", "a process of Dask's"])
def test_workers_print_as_much_as_the_run_does(
    home: Home, monkeypatch: pytest.MonkeyPatch, level: Callable[[int], None], where: str
) -> None:
    for module in (workers, cluster):
        monkeypatch.setattr(module, "Worker", Mock())
        module._worker.cache_clear()
    folder = quick_study(home).folder
    for wanted in (logging.ERROR, logging.INFO):
        level(wanted)
        setup = Setup(folder, "dots", None, None, Dots(), quick_space(), 8, "cpu", "parameters", None)
        level(logging.WARNING)  # as in a new process
        if where == "a process of ours":
            workers._worker(pickle.loads(pickle.dumps(setup)), os.getppid())
        else:
            cluster._worker(packed(setup))
        assert logging.getLogger("pbp_search.search.worker").getEffectiveLevel() == wanted
        for module in (workers, cluster):
            module._worker.cache_clear()


def test_dask_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError) as caught:
        cluster_of("dask", "tcp://127.0.0.1:8786")
    assert str(caught.value) == "The backend dask needs the package distributed: pip install 'pbp_search[dask]'."


@pytest.mark.usefixtures("level")
def test_a_dask_worker_that_does_not_see_the_artifacts_says_so(home: Home) -> None:
    folder = quick_study(home).folder
    shutil.rmtree(folder.artifacts)
    setup = Setup(folder, "dots", None, None, Dots(), quick_space(), 8, "cpu", "parameters", None)
    with pytest.raises(InputError) as caught:
        cluster._worker(packed(setup))
    assert str(caught.value) == (
        f"The Dask worker on {socket.gethostname()} does not see the folder {folder.milestones}: the home and the "
        "artifacts must be there under the same path on all machines of the cluster."
    )


def test_what_dask_loses_is_a_death_or_a_sentence() -> None:
    class KilledWorker(Exception):  # noqa: N818  # as Dask calls it
        pass

    assert isinstance(lost(KilledWorker()), TerminatedWorkerError)
    assert str(lost(asyncio.CancelledError("gone"))) == (
        "The Dask cluster has lost a task (CancelledError: gone). The same command goes on."
    )


def test_a_study_whose_workers_are_given_up_has_failed_in_mlflow(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbp_search.search.workers._elsewhere", Pools(*[(DIES,)] * 6))
    study = quick_study(home)
    with pytest.raises(TrainingError, match="The workers were killed 6 times"):
        study.run(Dots(), 3, workers=3)
    client = mlflow.MlflowClient(home.tracking_uri)
    experiment = client.get_experiment_by_name("dots")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_errors_of_workers_other_than_their_death_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Any:
        raise TrainingError("A sentence.")
        yield

    monkeypatch.setattr("pbp_search.search.workers._elsewhere", failing)
    with pytest.raises(TrainingError, match=r"^A sentence\.$"):
        list(run_workers(cast(Setup, None), 100, None, 3))
