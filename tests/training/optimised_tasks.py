"""A task with any of torch's optimisers and schedules. Run as a program, this file continues milestones elsewhere."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

from pbp_search.training import Data
from tests.training.tiny_tasks import Rings, continue_in

OPTIMISERS: dict[str, Callable[[Any, float], optim.Optimizer]] = {
    "SGD": lambda groups, rate: optim.SGD(groups, rate, momentum=0.9, nesterov=True),
    "AdamW": lambda groups, rate: optim.AdamW(groups, rate),
    "RMSprop": lambda groups, rate: optim.RMSprop(groups, rate, momentum=0.5),
    "NAdam": lambda groups, rate: optim.NAdam(groups, rate),
}
SCHEDULES: dict[str, Callable[[Any, int], Any]] = {
    "ReduceLROnPlateau": lambda of, epochs: lr_scheduler.ReduceLROnPlateau(of, "max", factor=0.3, patience=0),
    "OneCycleLR": lambda of, epochs: lr_scheduler.OneCycleLR(of, max_lr=0.05, total_steps=epochs),
    "CosineAnnealingLR": lambda of, epochs: lr_scheduler.CosineAnnealingLR(of, epochs),
    "ExponentialLR": lambda of, epochs: lr_scheduler.ExponentialLR(of, 0.9),
}


class Stream(IterableDataset[Any]):
    """Samples one after the other, each shaken a little."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.pairs = list(zip(inputs, targets, strict=True))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.pairs:
            yield x + 0.01 * torch.randn(2), y


class Streamed(Rings):
    """Rings from a loader without a length."""

    def __init__(self, optimiser: str | None, schedule: str | None) -> None:
        self.name = f"{optimiser}-{schedule}"
        if optimiser is not None:
            self.optimiser = lambda groups, config: OPTIMISERS[optimiser](groups, config.learning_rate)
        if schedule is not None:
            self.scheduler = lambda of, config: SCHEDULES[schedule](of, config.schedule.neuron.epochs)

    def data(self) -> Any:
        data = super().data()
        return Data(DataLoader(Stream(data.train.inputs, data.train.targets), 32), data.validation, data.test)


TASKS = [
    *(Streamed(optimiser, None) for optimiser in OPTIMISERS),
    *(Streamed("SGD", schedule) for schedule in SCHEDULES),
    Streamed(None, "ExponentialLR"),
]

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(12345)
    continue_in(Path(sys.argv[1]), *TASKS)
