"""Studies that die, run in processes of their own."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import optuna
import sqlalchemy
import torch
from optuna.artifacts import FileSystemArtifactStore
from sqlalchemy import event
from torch import Tensor

from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.search.checkpoints import Checkpoints
from pbp_search.search.claims import Claims
from pbp_search.search.sampler import KeyedSampler
from pbp_search.search.storage import open_storage
from pbp_search.tracking import Tracker
from pbp_search.training import Checkpoint
from tests.quick_studies import Dots, quick_space
from tests.tracking.recording import tracker_of


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal(Dots):
    """The same task. Its process is killed at the n-th batch."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def die(self) -> None:
        die()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.batches -= len(outputs) > 2 and outputs.requires_grad  # not the checks of the task
        if self.batches == 0:
            self.die()
        return super().loss(outputs, targets)


def run(folder: Path, trials: int, batches: int = -1, barrier: Any = None) -> None:
    """Run a study until it is done, or until a number of batches."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if barrier is not None:
        barrier.wait()
    task = Mortal(batches)
    Study.create(task, home=Home.at(folder), space=quick_space(), seed=8).run(task, trials)


def _killed_before(function: Callable[..., Any], nth: int) -> Callable[..., Any]:
    left = nth

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            die()
        return function(*args, **kwargs)

    return killed


def run_and_die_before(folder: Path, trials: int, place: str, nth: int) -> None:
    """Run a study, killed right before a step of the nth trial."""
    owner, name = {
        "sampling": (KeyedSampler, "sample_independent"),
        "claim": (Claims, "take"),
        "milestone": (Checkpoint, "save"),
        "upload": (FileSystemArtifactStore, "write"),
        "uploaded": (Claims, "holds"),
        "tell": (optuna.Study, "tell"),
        "record": (Tracker, "log_trial"),
        "metrics": (mlflow.MlflowClient, "log_dict"),
        "ended": (mlflow.MlflowClient, "set_terminated"),
        "tidy": (Checkpoints, "tidy"),
    }[place]
    setattr(owner, name, _killed_before(getattr(owner, name), nth))
    run(folder, trials)


def open_and_die(folder: Path, database: str, statements: int) -> None:
    """Open both stores for the first time, killed before the nth statement to one of them."""

    def before_statement(connection: Any, *_: object) -> None:
        nonlocal statements
        statements -= Path(connection.engine.url.database).name.startswith(database)
        if statements == 0:
            die()

    event.listen(sqlalchemy.Engine, "before_cursor_execute", before_statement)
    home = Home.at(folder)
    open_storage(home)
    tracker_of(home, "dots")


def random_batches(seed: int) -> int:
    """When to die: somewhere in the first few trials."""
    return random.Random(seed).randint(1, 60)
