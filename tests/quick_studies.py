"""Tasks, spaces and studies that take a fraction of a second."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

from pbp_search.home import Home
from pbp_search.search import SearchSpace, Study
from pbp_search.search.checkpoints import Checkpoints
from pbp_search.search.rungs import values_of
from pbp_search.tracking import Tracker
from pbp_search.training import (
    Checkpoint,
    CycleSchedule,
    Data,
    Direction,
    Fixed,
    Milestone,
    Size,
    Split,
    TrialConfig,
    build_network,
)
from pbp_search.training.milestone import weights_of


def splits(inputs: Tensor, targets: Tensor) -> Data:
    """Three parts of the same size."""
    rows = len(inputs) // 3
    return Data(*(Split(x, y) for x, y in zip(inputs.split(rows), targets.split(rows), strict=True)))


class Dots:
    """Squares of two numbers, by a network that is linear: it needs dendrites for them. 120 points a part."""

    name = "dots"
    metric = "fit"
    direction: Direction = "maximize"
    widths = (1, 4)

    def data(self) -> Data:
        inputs = torch.randn(360, 2, generator=torch.Generator().manual_seed(0))
        return splits(inputs, inputs.square())

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return 1 / (1 + float(self.loss(outputs, targets).double().mean()))


def quick_space(**changes: Any) -> SearchSpace:
    """A few epochs a phase; whatever is better stays."""
    return SearchSpace(
        **{
            "width": (1, 4),
            "dendrites": 2,
            "neuron_patience": (1, 2),
            "dendrite_patience": (4, 8),
            "neuron_threshold": (0.1, 0.5),
            "dendrite_threshold": (0.01, 0.1),
            "neuron_epochs": (2, 4),
            "dendrite_epochs": (8, 16),
            "learning_rate": (0.02, 0.1),
            "acceptance": (1e-9, 1e-8),
            **changes,
        }
    )


def quick_study(home: Home, task: Any = None, **arguments: Any) -> Study:
    """The study of the dots in the quick space, or another one."""
    return Study.create(task or Dots(), home=home, **{"space": quick_space(), "seed": 8, **arguments})


def quick_config(**changes: Any) -> TrialConfig:
    schedule = CycleSchedule(neuron=Fixed(epochs=2), dendrite=Fixed(epochs=4), acceptance=0.0)
    return TrialConfig(**{"width": 2, "schedule": schedule, "learning_rate": 0.02, **changes})


def milestone(score: float = 0.5, parameters: int = 12, **changes: Any) -> Milestone:
    """A milestone that nobody trained."""
    values = {
        "config": quick_config(),
        "requested": 0,
        "dendrites": 0,
        "parameters": parameters,
        "weight_bytes": 4 * parameters,
        "macs": 3 * parameters,
        "score": score,
        "train_score": score,
        "epochs": 2,
        "seconds": 0.25,
    }
    return Milestone(**{**values, **changes})


def finished_trial(
    number: int, reached: Milestone, parent: int | None = None, size: Size = "parameters"
) -> FrozenTrial:
    """The trial of a milestone that nobody trained."""
    attributes: dict[str, Any] = {"milestone": reached.to_dict(), "checkpoint": f"checkpoint-{number}"}
    if parent is not None:
        attributes["parent"] = parent
    trial = optuna.trial.create_trial(
        values=values_of(reached, size),
        params={"dendrites": reached.requested, "width": reached.config.width},
        distributions={
            "dendrites": optuna.distributions.IntDistribution(0, 9),
            "width": optuna.distributions.IntDistribution(1, 64),
        },
        user_attrs=attributes,
    )
    trial.number = number
    return trial


def other_trial(number: int, state: TrialState, parent: int | None = None) -> FrozenTrial:
    """A trial that waits, runs or has failed."""
    attributes = {} if parent is None else {"parent": parent}
    trial = optuna.trial.create_trial(state=state, user_attrs=attributes)
    trial.number = number
    return trial


def recorded(home: Home, name: str, uri: str | None = None) -> set[int]:
    """The trials of a study that are in MLflow."""
    return Tracker(Study.load(name, home).folder, name, uri).recorded()


def fill(study: Study, milestones: Sequence[Milestone]) -> Study:
    """Give a study finished trials that nobody trained."""
    for number, reached in enumerate(milestones):
        study._optuna.add_trial(finished_trial(number, reached, size=study.definition.size))
    return study


def checkpoint_file(study: Study, trial: int) -> Path:
    """Where the checkpoint of a trial is, or was, or would be."""
    for rung in study.rungs():
        if rung.trial == trial:
            return Checkpoints(study.folder).file(rung)
    return study.folder.milestones / f"checkpoint-{trial}"


def random_checkpoint(task: Any, generations: int, **changes: Any) -> Checkpoint:
    """A network with dendrites that take part in its outputs, at random weights."""
    config = quick_config(**changes)
    network = build_network(task, config, generations)
    numbers = torch.Generator().manual_seed(generations)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "outgoing" in name or "incoming" in name:
                value.copy_(torch.randn(value.shape, generator=numbers))
    count = sum(value.numel() for value in network.parameters())
    reached = milestone(parameters=count, config=config, requested=generations, dendrites=generations)
    return Checkpoint(reached, weights_of(network))


def weight_bits(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in checkpoint.weights.items()}


def figures(reached: Milestone) -> dict[str, Any]:
    """Everything but the time it took."""
    return reached.model_dump(exclude={"seconds"})


def story(study: Study) -> list[dict[str, Any]]:
    """What a study did, trial by trial, without its times, who did it, and the names of files."""
    told = []
    for trial in study.finished():
        others = ("restarts", "claim", "checkpoint")
        attributes = {name: value for name, value in trial.user_attrs.items() if name not in others}
        reached = attributes.pop("milestone", None)
        told.append(
            {
                "number": trial.number,
                "state": trial.state.name,
                "params": trial.params,
                "values": trial.values,
                "milestone": figures(Milestone.from_dict(reached)) if reached else None,
                **attributes,
            }
        )
    return told
