"""What a worker process is given to take part in a study."""

import logging
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import torch

from pbp_search.home import StudyFolder
from pbp_search.search.sampler import Sampler
from pbp_search.search.space import SearchSpace
from pbp_search.training import Size, Task

_package_logger = logging.getLogger("pbp_search")


@dataclass(frozen=True)
class Setup:
    """What a worker process needs to take part in a study. Two are equal if they belong to the same call of ``run``."""

    folder: StudyFolder = field(compare=False)
    study: str = field(compare=False)
    storage: str | None = field(compare=False, repr=False)  # may hold a password
    tracking_uri: str | None = field(compare=False, repr=False)
    task: Task = field(compare=False)
    space: SearchSpace = field(compare=False)
    seed: int = field(compare=False)
    device: str = field(compare=False)
    size: Size = field(compare=False)
    max_parameters: int | None = field(compare=False)
    sampler: Sampler = field(default="auto", compare=False)
    stagnation: int | None = field(default=None, compare=False)
    threads: int = field(default=1, compare=False)
    call: str = field(default_factory=lambda: uuid.uuid4().hex)
    flag: Path | None = field(default=None, compare=False)  # if there is one: the run ends when this file goes
    log_level: int = field(default_factory=_package_logger.getEffectiveLevel, compare=False)

    def settle(self) -> None:
        """Prepare a worker process: as many threads as it shall have, and as much of our log as the run prints."""
        torch.set_num_threads(self.threads)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        _package_logger.setLevel(self.log_level)
