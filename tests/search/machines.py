"""Machines that share a database server and a folder: processes, each with a home of its own."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from torch import Tensor

from pbp_search.cli.main import main
from pbp_search.databases import Database
from pbp_search.home import Home
from pbp_search.search import Study, claims, storage
from tests.quick_studies import Dots, quick_space
from tests.search.crashing import Mortal


class Slow(Dots):
    """The same task, a little slower: there is time to see two machines at it."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) > 2 and outputs.requires_grad:
            time.sleep(0.003)
        return super().loss(outputs, targets)


class Frozen(Mortal):
    """The same task. Its process is stopped at the n-th batch, until somebody wakes it."""

    def die(self) -> None:
        self.batches = -1  # once
        os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True)
class Network:
    """What machines share.

    Attributes:
        folder: Holds the artifacts, and the homes.
        storage: The storage's URL.
        tracking: MLflow's.
    """

    folder: Path
    storage: str
    tracking: str

    def home(self, machine: str) -> Home:
        """A machine's home."""
        return Home.at(self.folder / machine, self.folder / "artifacts")

    def study(self, machine: str) -> Study:
        """The study, as a machine sees it."""
        return Study.load("dots", self.home(machine), self.storage)

    def output(self, machine: str) -> Path:
        """What the processes of a machine have written."""
        return self.folder / f"{machine}.txt"


def run(network: Network, machine: str, trials: int, task: Any, grace: int | None = None) -> None:
    """Run the study on a machine."""
    _write_to(network.output(machine))
    if grace is not None:
        patch = pytest.MonkeyPatch()  # for the rest of this process
        patch.setattr(storage, "GRACE_SECONDS", grace)
        for module in (storage, claims):
            patch.setattr(module, "HEARTBEAT_SECONDS", 1)
    study = Study.create(task, home=network.home(machine), space=quick_space(), seed=8, storage=network.storage)
    study.run(task, trials, tracking_uri=network.tracking)


def command(network: Network, machine: str, trials: int, barrier: Any) -> None:
    """Call ``pbp-search run`` on a machine."""
    _write_to(network.output(machine))
    home = network.home(machine)
    space = network.folder / f"{machine}.toml"
    space.write_text(quick_space().to_toml())
    sys.argv = ["pbp-search", "run", f"{__file__}:Slow", "--trials", str(trials), "--seed", "8", "--space", str(space)]
    sys.argv += ["--home", str(home.folder), "--artifacts", str(home.artifacts)]
    sys.argv += ["--storage", network.storage, "--tracking-uri", network.tracking]
    barrier.wait()
    main()


def _write_to(file: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def assert_recorded_once(network: Network, study: Study) -> None:
    """MLflow has exactly one ended run for each trial, and no run that goes on."""
    client = mlflow.MlflowClient(Database.parse("tracking store", network.tracking).secret_url)
    experiment = client.get_experiment_by_name(study.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) - len(children) == 1
    numbers = sorted(int(run.data.tags["pbp_search.trial"]) for run in children)
    assert numbers == [trial.number for trial in study.finished()]
