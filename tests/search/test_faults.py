"""Faults at any moment: killed workers and parents, signals, locked databases, full disks. Nothing is lost."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import click
import pytest
from optuna.trial import TrialState
from torch import Tensor

from pbp_search.cli.main import _run, main
from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.search.rungs import trials_of
from tests.quick_studies import Dots, quick_study, story
from tests.search import crashing
from tests.search.faulty import Parent, assert_nothing_lost, claims, running, strike, wait_until

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("PBP_SEARCH_FAULT_SEED", "1"))
TRIALS = 7
ENDLESS = 10_000
FAULTS = {  # the signal, who gets it, and the exit code of the parent
    "a worker is killed": (signal.SIGKILL, "worker", None),
    "the parent is killed": (signal.SIGKILL, "parent", -signal.SIGKILL),
    "the parent is terminated": (signal.SIGTERM, "parent", 143),
    "the parent is interrupted": (signal.SIGINT, "parent", 130),
}


def test_two_workers_under_faults_at_random_moments(home: Home, processes: ForkServerContext) -> None:
    numbers = random.Random(SEED)
    faults = 4 * list(FAULTS) + 6 * list(FAULTS)[1:]  # new workers beside an old parent take longest to start
    numbers.shuffle(faults)
    landed: Counter[str] = Counter()
    while_training = 0
    earlier: set[str] = set()
    parent = Parent(processes, home, ENDLESS).start()
    for fault in faults:
        number, whom, code = FAULTS[fault]
        if numbers.random() < 0.6:  # otherwise soon after the start of whatever runs now
            assert wait_until(lambda: bool(claims(home) - earlier))  # noqa: B023
        time.sleep(numbers.uniform(0, 1.5))
        if whom == "worker":
            assert wait_until(lambda: bool(parent.workers()))
        while_training += bool(claims(home) - earlier) and running(home) > 0
        target = numbers.choice(parent.workers()) if whom == "worker" else parent.pid
        landed[fault] += strike(parent, number, target)
        if code is not None:
            assert parent.end() == code, fault
        earlier = claims(home)
        if code is not None:
            parent.start()
    assert strike(parent, signal.SIGKILL, parent.pid)
    parent.end()
    assert landed.total() >= 30, landed
    assert landed.keys() == FAULTS.keys()
    assert while_training >= 10

    parent.trials = len(Study.load("dots", home).finished()) + 4
    assert parent.start().end() == 0
    assert parent.left_over() == []
    study = Study.load("dots", home)
    assert len(study.finished()) == parent.trials
    assert_nothing_lost(home, study)


def test_a_signal_in_the_middle_of_garbage_collection_is_not_lost(processes: ForkServerContext) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = processes.Process(target=interrupted_in_garbage, args=(number,))
        process.start()
        process.join(60)
        assert process.exitcode == code


def interrupted_in_garbage(number: signal.Signals) -> None:
    class Garbage:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def command() -> None:
        Garbage()
        time.sleep(30)

    sys.argv = ["pbp-search"]
    main(click.Command("run", callback=command))


def test_one_worker_killed_at_random_moments_does_what_it_would_have_done(
    home: Home, processes: ForkServerContext, tmp_path: Path
) -> None:
    numbers = random.Random(SEED)
    for fault in range(8):
        finished = len(quick_study(home).finished())
        process = processes.Process(target=crashing.run, args=(home.folder, ENDLESS))
        process.start()
        if fault % 3 == 2:  # a trial that is hit four times is given up: on a slow machine it would be
            assert wait_until(lambda: len(quick_study(home).finished()) > finished)  # noqa: B023
        time.sleep(numbers.uniform(0.2, 2))
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    study = quick_study(home)
    trials = len(study.finished()) + 2
    study.run(Dots(), trials)
    assert_nothing_lost(home, study)
    undisturbed = quick_study(Home.at(tmp_path / "undisturbed"))
    undisturbed.run(Dots(), trials)
    assert story(study) == story(undisturbed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_study_with_two_workers_waits(
    home: Home, processes: ForkServerContext, number: signal.Signals, code: int
) -> None:
    parent = Parent(processes, home, ENDLESS).start()
    assert wait_until(lambda: running(home) == 2 and bool(parent.workers()))
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as Ctrl-C does
    else:
        os.kill(parent.pid, number)
    assert parent.end() == code
    assert parent.left_over() == []
    study = Study.load("dots", home)
    trials = trials_of(study._optuna)
    assert all(trial.state == TrialState.WAITING or trial.state.is_finished() for trial in trials)
    assert not any("restarts" in trial.user_attrs for trial in trials)
    parent.trials = len(trials) + 2
    assert parent.start().end() == 0
    assert_nothing_lost(home, study)


class Hindered(Dots):
    """Something happens to the machine at a batch."""

    def __init__(self, batches: int, happens: Callable[[], object]) -> None:
        self.batches = batches
        self.happens = happens

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.batches -= len(outputs) > 2 and outputs.requires_grad  # not the checks of the task
        if self.batches == 0:
            self.happens()
        return super().loss(outputs, targets)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[Home, Dots], int]:
    """The program in this process, with a study in a home; its exit code."""

    def run(home: Home, task: Dots) -> int:
        monkeypatch.setattr(sys, "argv", ["pbp-search"])
        return _run(click.Command("run", callback=lambda: quick_study(home, task).run(task, TRIALS) and None))

    return run


class Lock:
    """Another program's on an SQLite file."""

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(file, timeout=60, isolation_level=None, check_same_thread=False)

    def hold(self) -> None:
        self._connection.execute("BEGIN EXCLUSIVE")

    def release(self) -> None:
        self._connection.execute("ROLLBACK")

    def hold_for(self, seconds: float) -> None:
        self.hold()
        threading.Timer(seconds, self.release).start()


@pytest.fixture
def lock(home: Home) -> Iterator[Lock]:
    lock = Lock(home.folder / "optuna.db")
    with contextlib.closing(lock._connection):
        yield lock


def test_a_locked_storage_is_waited_for(
    home: Home, lock: Lock, finished: Study, program: Callable[[Home, Dots], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbp_search.search.storage.BUSY_SECONDS", 0.2)
    task = Hindered(20, lambda: lock.hold_for(3))
    assert program(home, task) == 0
    assert task.batches < 0
    study = quick_study(home)
    assert story(study) == story(finished)
    assert_nothing_lost(home, study)


def test_a_storage_that_stays_locked_ends_the_run(
    home: Home,
    lock: Lock,
    finished: Study,
    program: Callable[[Home, Dots], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pbp_search.search.storage.BUSY_SECONDS", 0.2)
    monkeypatch.setattr("pbp_search.search.storage.PATIENCE_SECONDS", 0.5)
    assert program(home, Hindered(20, lock.hold)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "Error: A store failed: OperationalError: database is locked. The same command goes on."
    lock.release()
    before = len(quick_study(home).finished())
    assert 0 < before < TRIALS
    assert program(home, Dots()) == 0
    study = quick_study(home)
    assert story(study) == story(finished)
    assert_nothing_lost(home, study)


class Disk:
    """A small disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk can be mounted by root only")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("what", ["checkpoints", "everything"])
def test_a_full_disk_ends_the_run_and_loses_nothing(
    empty_home: Home,
    disk: Disk,
    finished: Study,
    program: Callable[[Home, Dots], int],
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    home = Home.at(empty_home.folder, disk.folder) if what == "checkpoints" else Home.at(disk.folder / "home")
    # The same trial again and again: one whose worker dies 4 times is given up. If the storage is on that disk, it
    # cannot be told of the difference.
    for batches in (20, 1, 1, 1, 1) if what == "checkpoints" else (20, 1):
        quick_study(home)
        capsys.readouterr()
        assert program(home, Hindered(batches, disk.fill)) == 1
        *_, line = capsys.readouterr().err.splitlines()  # the stores may have told of it before
        assert line.startswith("Error: ")
        assert "full" in line or "No space left on device" in line
        before = story(quick_study(home))
        assert before == story(finished)[: len(before)]
        disk.free()
    assert 0 < len(before) < TRIALS
    assert program(home, Dots()) == 0
    study = quick_study(home)
    assert story(study) == story(finished)
    assert_nothing_lost(home, study)
