"""Tasks that train in a fraction of a second. Run as a program, this file continues a milestone elsewhere."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pbp_search.training import (
    Checkpoint,
    ClassificationTask,
    CycleSchedule,
    Data,
    Direction,
    EpochRecord,
    Fixed,
    Split,
    Task,
    TrialConfig,
    run_rung,
)


def splits(inputs: Tensor, targets: Tensor) -> Data:
    """Two fifths to train on, two to validate, one to test."""
    parts = [len(inputs) * 2 // 5, len(inputs) * 2 // 5, len(inputs) - 2 * (len(inputs) * 2 // 5)]
    return Data(*(Split(x, y) for x, y in zip(inputs.split(parts), targets.split(parts), strict=True)))


class Rings(ClassificationTask):
    """Is a point of the plane inside a ring? A narrow network needs dendrites for it."""

    name = "rings"
    widths = (1, 4)

    def data(self) -> Data:
        inputs = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        return splits(inputs, (inputs.norm(dim=1) < 1.1).long())

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))


class CoinToss(Rings):
    """Nothing can be learned here."""

    name = "coin_toss"

    def data(self) -> Data:
        generator = torch.Generator().manual_seed(0)
        return splits(torch.randn(500, 2, generator=generator), torch.randint(2, (500,), generator=generator))


class Bowl:
    """Regression, with the mean squared error as its metric."""

    name = "bowl"
    metric = "error"
    direction: Direction = "minimize"
    widths = (1, 4)

    def data(self) -> Data:
        inputs = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        return splits(inputs, inputs.square().sum(1, keepdim=True))

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return float(self.loss(outputs, targets).double().mean())


class BowlWithDropout(Bowl):
    """The same, with random numbers in the forward pass and statistics of batches."""

    name = "bowl_with_dropout"

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, 1)
        )


class NegatedBowl(Bowl):
    """The same, maximised: all scores are negative."""

    name = "negated_bowl"
    direction: Direction = "maximize"

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return -super().score(outputs, targets)


class ShiftedBowl(Bowl):
    """The same, minimised, and below zero."""

    name = "shifted_bowl"

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return super().score(outputs, targets) - 1000


class ZeroBowl(Bowl):
    """The same, and the score is always zero: nothing is ever better."""

    name = "zero_bowl"

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return 0.0


def config(**changes: Any) -> TrialConfig:
    """A few epochs each, and whatever is better stays."""
    schedule = CycleSchedule(neuron=Fixed(epochs=4), dendrite=Fixed(epochs=20), acceptance=0.0, tries=5)
    return TrialConfig(
        **{
            "width": 1,
            "schedule": schedule,
            "learning_rate": 0.02,
            "dendrite_learning_rate": 0.1,
            "batch_size": 32,
            "seed": 1,
            **changes,
        }
    )


def useless(**changes: object) -> CycleSchedule:
    """No generation is ever good enough."""
    values = {"neuron": Fixed(epochs=3), "dendrite": Fixed(epochs=10), "acceptance": 1e9, "tries": 4}
    return CycleSchedule(**{**values, **changes})


def neuron_epochs(checkpoint: Checkpoint, attempt: int | None = None) -> list[EpochRecord]:
    return [epoch for epoch in checkpoint.history if epoch.phase == "neuron" and attempt in (None, epoch.attempt)]


def weight_bits(checkpoint: Checkpoint) -> bytes:
    """Names, types, shapes and bits of a checkpoint's weights."""
    return save({name: value.contiguous() for name, value in checkpoint.weights.items()})


def figures(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that a rung measured, except for the time it took."""
    history = [epoch.to_dict() for epoch in checkpoint.history]
    return {**checkpoint.milestone.model_dump(exclude={"seconds"}), "history": history}


def assert_same_checkpoint(left: Checkpoint, right: Checkpoint) -> None:
    assert figures(left) == figures(right)
    assert weight_bits(left) == weight_bits(right)


def continue_in(folder: Path, *tasks: Task) -> None:
    """Continue each milestone file of a folder by one rung, of the tasks named."""
    for path in folder.glob("*.before"):
        previous = Checkpoint.load(path)
        task = {task.name: task for task in tasks}[path.stem]
        run_rung(task, previous.milestone.config, previous).save(path.with_suffix(".after"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(12345)  # the global stream of another process is another one
    continue_in(Path(sys.argv[1]), Rings(), Bowl(), BowlWithDropout())
