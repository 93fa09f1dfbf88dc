"""Several machines at one study, over a real PostgreSQL server and a real Dask scheduler."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pbp_search.errors import InputError
from pbp_search.home import Home
from pbp_search.search import Study, claims
from pbp_search.search.claims import CLAIM
from pbp_search.search.setup import Setup
from pbp_search.search.worker import Worker
from tests.postgresql import Server
from tests.quick_studies import Dots, quick_space, quick_study, recorded, story
from tests.search import machines
from tests.search.crashing import Mortal
from tests.search.machines import Frozen, Network, Slow, assert_recorded_once, is_stopped

pytestmark = pytest.mark.slow

Start = Callable[..., ForkServerProcess]


@pytest.fixture
def network(postgresql: Server, tmp_path: Path) -> Network:
    (tmp_path / "artifacts").mkdir()
    return Network(tmp_path, postgresql.new_database(), postgresql.new_database())


@pytest.fixture
def start(processes: ForkServerContext) -> Iterator[Start]:
    """Starts a process; it does not outlive the test."""
    started = []

    def start(target: Callable[..., object], *arguments: object) -> ForkServerProcess:
        process = processes.Process(target=target, args=arguments)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def trials_of(network: Network, machine: str) -> list[Any]:
    """All trials, once there is a study."""
    try:
        return network.study(machine)._trials()
    except InputError:
        return []


def places(study: Study) -> set[str]:
    """Where the trials were trained."""
    return {trial.user_attrs[CLAIM]["place"] for trial in study.finished()}


def assert_done_once(network: Network, trials: int) -> Study:
    """Every trial is done and recorded once, and every network of the front is there, from either home."""
    for machine in ("a", "b"):
        study = network.study(machine)
        assert [trial.number for trial in study.finished()] == [trial.number for trial in study._trials()]
        assert len(study.finished()) == trials
        assert study.failures() == {}
        continued = [rung.parent for rung in study.rungs() if rung.parent is not None]
        assert len(set(continued)) == len(continued)
        assert len(study.front()) > 0
        for point in study.front():
            assert study.checkpoint(point.payload.trial).milestone == point.payload.milestone
    assert_recorded_once(network, study)
    return study


def test_two_machines_and_one_database_server(
    network: Network, start: Start, processes: ForkServerContext, postgresql: Server
) -> None:
    barrier = processes.Barrier(2)
    both = [start(machines.command, network, machine, 12, barrier) for machine in ("a", "b")]
    for process in both:
        process.join(100)
    output = "".join(network.output(machine).read_text() for machine in ("a", "b"))
    assert [process.exitcode for process in both] == [0, 0], output
    study = assert_done_once(network, 12)
    assert len(places(study)) == 2
    assert "12 in all." in output
    assert postgresql.password not in output
    for file in network.folder.rglob("*"):
        assert not file.is_file() or postgresql.password.encode() not in file.read_bytes(), file


def test_a_database_server_that_is_restarted(network: Network, start: Start, postgresql: Server) -> None:
    both = [start(machines.run, network, machine, 16, Slow()) for machine in ("a", "b")]
    for trials in (4, 8):
        wait_for(lambda least=trials: len(trials_of(network, "a")) >= least)  # type: ignore[misc]
        time.sleep(random.Random(trials).random() / 5)
        postgresql.stop("immediate")
        time.sleep(1)
        assert all(process.is_alive() for process in both)
        postgresql.start()
    for process in both:
        process.join(100)
    output = "".join(network.output(machine).read_text() for machine in ("a", "b"))
    assert [process.exitcode for process in both] == [0, 0], output
    assert "The storage does not answer: trying again." in output
    assert postgresql.password not in output
    assert len(places(assert_done_once(network, 16))) == 2


GRACE = 3


def test_a_machine_that_vanishes(network: Network, start: Start, finished: Study) -> None:
    gone = start(machines.run, network, "a", 7, Mortal(30), GRACE)
    gone.join(60)
    assert gone.exitcode == -signal.SIGKILL
    (left,) = [trial.number for trial in network.study("a")._trials() if not trial.state.is_finished()]
    time.sleep(GRACE + 1)  # what is silent already when another one comes is done again before anything new
    other = start(machines.run, network, "b", 7, Dots(), GRACE)
    other.join(60)
    assert other.exitcode == 0, network.output("b").read_text()
    study = assert_done_once(network, 7)
    assert study.finished()[left].user_attrs["restarts"] == 1
    assert story(study) == story(finished)


def test_a_machine_that_was_only_silent_drops_what_it_has(network: Network, start: Start) -> None:
    silent = start(machines.run, network, "a", 7, Frozen(30), GRACE)
    assert silent.pid is not None
    wait_for(lambda: is_stopped(silent.pid or 0))
    (left,) = [trial for trial in network.study("a")._trials() if not trial.state.is_finished()]
    other = start(machines.run, network, "b", 7, Dots(), GRACE)
    other.join(60)
    assert other.exitcode == 0, network.output("b").read_text()
    os.kill(silent.pid, signal.SIGCONT)
    silent.join(60)
    assert silent.exitcode == 0, network.output("a").read_text()
    assert f"Trial {left.number} has been given to another worker" in network.output("a").read_text()
    study = assert_done_once(network, 7)
    assert study.finished()[left.number].user_attrs[CLAIM]["place"] != left.user_attrs[CLAIM]["place"]
    kept = {rung.checkpoint for rung in study.rungs()}
    assert {file.name for file in study.folder.milestones.iterdir()} <= kept


def test_a_worker_holds_few_connections_to_the_server_and_keeps_them(
    network: Network, postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 3600)  # otherwise at any moment
    study = Study.create(Dots(), home=network.home("a"), space=quick_space(), seed=8, storage=network.storage)
    setup = Setup(
        study.folder, "dots", network.storage, network.tracking, Dots(), quick_space(), 8, "cpu", "parameters", None
    )
    urls = {"storage": network.storage, "tracking": network.tracking}
    before = {which: postgresql.connections(url) for which, url in urls.items()}
    worker = Worker(setup)
    seen = []
    for _ in range(3):
        assert worker.run_one(3, None) is not None
        seen.append({which: postgresql.connections(url) - before[which] for which, url in urls.items()})
    assert len(seen[0]["storage"]) == 2
    assert len(seen[-1]["tracking"]) <= 2
    assert seen[0]["storage"] == seen[1]["storage"] == seen[2]["storage"]
    with contextlib.ExitStack() as at_once:  # a heartbeat while it decides
        for _ in range(3):
            at_once.enter_context(worker._storage.engine.connect())
    wait_for(lambda: len(postgresql.connections(network.storage) - before["storage"]) == 2)


class Watched(Slow):
    """Leaves a file for each process that trains it. One of them is killed, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parent = os.getpid()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if os.getpid() != self.parent and len(outputs) > 2 and outputs.requires_grad:
            (self.folder / str(os.getpid())).touch()
            both = len(list(self.folder.iterdir())) == 2
            if both and not (self.folder.parent / "killed").exists():
                (self.folder.parent / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(outputs, targets)


@pytest.fixture
def scheduler(processes: ForkServerContext, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a real Dask scheduler with two workers of one thread each."""
    distributed = pytest.importorskip("distributed")
    for module in ("nanny", "process"):  # its own would load torch anew in each worker
        monkeypatch.setattr(f"distributed.{module}.get_mp_context", lambda: processes)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


def test_a_dask_cluster_one_of_whose_workers_is_killed(home: Home, scheduler: str, tmp_path: Path) -> None:
    folder = tmp_path / "processes"
    folder.mkdir()
    study = quick_study(home, Watched(folder))
    study.run(Watched(folder), 8, backend="dask", scheduler=scheduler)
    assert (tmp_path / "killed").exists()
    assert len(list(folder.iterdir())) == 3, "two workers, and the one that Dask started for the one that was killed"
    assert [trial.number for trial in study._trials()] == list(range(8))
    assert study.failures() == {}
    assert recorded(home, "dots") == set(range(8))
    assert sorted(trial.user_attrs.get("restarts", 0) for trial in study.finished()) == [0] * 7 + [1]

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(Watched(folder), 100, backend="dask", scheduler=scheduler, on_outcome=stop)
    wait_for(lambda: all(trial.state.name != "RUNNING" for trial in study._trials()))
    assert not list(study.folder.locks.glob("run-*"))
    done = len(study.finished())
    time.sleep(1)
    assert len(study.finished()) == done < 20, "nothing goes on"
    study.run(Watched(folder), done + 2, backend="dask", scheduler=scheduler, workers=1)  # the cluster is still there
    assert len(study.finished()) == done + 2


class Deadly(Dots):
    """Kills every process that trains it, but for this one."""

    def __init__(self) -> None:
        self.parent = os.getpid()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if os.getpid() != self.parent and len(outputs) > 2 and outputs.requires_grad:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(outputs, targets)


def test_a_trial_that_kills_every_dask_worker_fails(
    home: Home, scheduler: str, caplog: pytest.LogCaptureFixture
) -> None:
    study = quick_study(home, Deadly())
    study.run(Deadly(), 1, backend="dask", scheduler=scheduler, workers=1)
    assert study.failures() == {0: "The worker of this trial died 4 times."}
    assert "A worker was killed: its trial is done again." in caplog.text  # Dask had given the task up
