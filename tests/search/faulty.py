"""Studies with two worker processes, the faults that hit them, and what is counted afterwards."""

import contextlib
import os
import signal
import sqlite3
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import click
import joblib
import mlflow
import torch
from filelock import FileLock
from joblib.externals.loky.backend.context import set_start_method
from joblib.externals.loky.process_executor import _python_exit
from mlflow.entities import ViewType
from optuna.trial import TrialState

from pbp_search.cli.main import main
from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.search.rungs import trials_of
from pbp_search.search.workers import pool_of
from pbp_search.training import Checkpoint, run_rung
from tests.quick_studies import Dots, checkpoint_file, figures, quick_study, weight_bits


def two_workers(folder: Path, trials: int, started: Event) -> None:
    """The program, in a process and a process group of its own, with a study and two workers."""
    os.setsid()
    torch.set_num_threads(1)
    os.dup2(os.open(folder / "err.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    # As loky starts workers they import everything anew, which takes many times as long as their work here. The first
    # two are forks, from before there is a database: SQLite does not bear it. Those after a death are started as ever.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        set_start_method("fork", force=True)
        pool_of(2)(joblib.delayed(time.sleep)(0) for _ in range(2))
        set_start_method("loky", force=True)

    @click.command()
    def command() -> None:
        started.set()
        quick_study(Home.at(folder)).run(Dots(), trials, workers=2)

    sys.argv = ["pbp-search"]
    try:
        main(command)
    finally:
        _python_exit()  # at its end every interpreter does this, but not a process of multiprocessing


@dataclass
class Parent:
    """The process that runs a study with two workers, started again after each of its deaths.

    Attributes:
        seen: All processes that it has started.
    """

    processes: ForkServerContext
    home: Home
    trials: int
    seen: set[int] = field(default_factory=set)

    def start(self) -> "Parent":
        started = self.processes.Event()
        self._process: ForkServerProcess = self.processes.Process(
            target=two_workers, args=(self.home.folder, self.trials, started)
        )
        self._process.start()
        assert started.wait(60)
        return self

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def workers(self) -> list[int]:
        """Its worker processes that live."""
        pids = [pid for pid in _children(self.pid) if b"resource_tracker" not in _read(pid, "cmdline")]
        self.seen.update(pids)
        return [pid for pid in pids if is_alive(pid)]

    def runs(self) -> bool:
        self.workers()
        return self._process.is_alive()

    def end(self) -> int | None:
        """Wait for its end, and tell its exit code."""
        self._process.join(60)
        return self._process.exitcode

    def left_over(self) -> list[int]:
        """Its workers that outlive it, a few seconds later."""
        wait_until(lambda: not any(map(is_alive, self.seen)), 20)
        return list(filter(is_alive, self.seen))


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended
        return b""


def _children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*")
    return [int(child) for thread in threads for child in _read(pid, f"task/{thread.name}/children").split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that nobody has waited for does not."""
    return _read(pid, "stat").rpartition(b")")[2].split()[:1] not in ([], [b"Z"], [b"X"])


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def running(home: Home) -> int:
    """How many trials are being trained, as the storage knows."""
    with contextlib.closing(sqlite3.connect(home.folder / "optuna.db", timeout=60)) as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM trials WHERE state = 'RUNNING'").fetchone()
    return int(count)


def claims(home: Home) -> set[str]:
    """The last claims on all trials."""
    with contextlib.closing(sqlite3.connect(home.folder / "optuna.db", timeout=60)) as connection:
        rows = connection.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'claim'").fetchall()
    return {claim for (claim,) in rows}


def strike(parent: Parent, number: signal.Signals, pid: int) -> bool:
    """Send a signal. False if there was nothing to send it to any more."""
    if not parent.runs() or not is_alive(pid):
        return False
    os.kill(pid, number)
    return True


def assert_recorded_once(home: Home, study: Study) -> None:
    """MLflow has exactly one ended child run for each trial, and no other."""
    client = mlflow.MlflowClient(home.tracking_uri)
    experiment = client.get_experiment_by_name(study.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    numbers = sorted(int(run.data.tags["pbp_search.trial"]) for run in children)
    assert numbers == [trial.number for trial in study.finished()]
    for run in children:
        trial = study.finished()[int(run.data.tags["pbp_search.trial"])]
        assert run.info.status == ("FINISHED" if trial.values else "FAILED")
        assert run.data.metrics["score"] == trial.values[0]
    everything = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    assert [run.info.status for run in everything if run.info.status in ("RUNNING", "SCHEDULED")] == []


def assert_nothing_lost(home: Home, study: Study) -> None:
    """Trials, checkpoints, MLflow's runs and locks of a study whose last run ended undisturbed."""
    trials = trials_of(study._optuna)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}, study.failures()
    rungs = study.rungs()
    chains = [(rung.configuration, rung.milestone.requested) for rung in rungs]
    assert len(set(chains)) == len(chains)
    assert_figures_are_true(study)

    on_front = {point.payload.trial for point in study.front()}
    ended = {rung.parent for rung in rungs}
    ended |= {rung.trial for rung in rungs if rung.milestone.dendrites == study.definition.space.dendrites}
    kept = {
        rung.checkpoint
        for rung in rungs
        if rung.trial in on_front or (rung.trial not in ended and rung.milestone.accepted)
    }
    assert {file.name for file in study.folder.milestones.iterdir()} == kept
    assert list(study.folder.incoming.iterdir()) == []

    assert_recorded_once(home, study)
    for file in (*study.folder.locks.iterdir(), *home.folder.glob("*.lock")):
        with FileLock(file, timeout=0):
            pass


def assert_figures_are_true(study: Study) -> None:
    """Every rung is what its configuration and its parent make of it, whoever trained it."""
    expected: dict[int | None, Checkpoint | None] = {None: None}
    for rung in study.rungs():
        again = expected[rung.trial] = run_rung(Dots(), rung.milestone.config, expected[rung.parent])
        assert figures(rung.milestone) == figures(again.milestone)
        if checkpoint_file(study, rung.trial).exists():
            assert weight_bits(study.checkpoint(rung.trial)) == weight_bits(again)
