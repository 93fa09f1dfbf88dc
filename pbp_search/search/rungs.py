"""Rungs: what a finished trial of a study left, read back from Optuna's storage.

An Optuna trial is one rung: a configuration at d dendrites, continued from the milestone that it has at d - 1. Its
parameters are the configuration's and ``dendrites``; its values are the score and log10 of the parameters.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pbp_search.front import Front, Point
from pbp_search.training import Direction, Milestone

# Names of the user attributes of our trials.
PARENT = "parent"
CONFIGURATION = "configuration"  # the first trial of a configuration, on its promoted rungs
MILESTONE = "milestone"
FAILURE = "failure"

# The parameter that says which rung a trial is.
DENDRITES = "dendrites"


@dataclass(frozen=True)
class Rung:
    """A finished rung.

    Attributes:
        trial: The number of its trial.
        parent: The trial whose milestone it continued; None for the first of a configuration.
        params: The trial's parameters.
        milestone: What it reached.
    """

    trial: int
    parent: int | None
    params: dict[str, Any]
    milestone: Milestone

    def row(self) -> dict[str, int | float]:
        """The rung's figures, as tables and JSON show them."""
        milestone = self.milestone
        return {
            "trial": self.trial,
            "width": milestone.config.width,
            "dendrites": milestone.dendrites,
            "parameters": milestone.parameters,
            "weight_bytes": milestone.weight_bytes,
            "score": milestone.score,
            "train_score": milestone.train_score,
            "epochs": milestone.epochs,
            "seconds": round(milestone.seconds, 3),
        }


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: a milestone, or the reason of its failure."""

    trial: int
    milestone: Milestone | None
    failure: str | None


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """All trials, not copied."""
    return study.get_trials(deepcopy=False)


def rungs_of(trials: Iterable[FrozenTrial]) -> list[Rung]:
    """The rungs that are finished and left a milestone."""
    return [
        Rung(
            trial=trial.number,
            parent=trial.user_attrs.get(PARENT),
            params=dict(trial.params),
            milestone=Milestone.from_dict(trial.user_attrs[MILESTONE]),
        )
        for trial in trials
        if trial.state == TrialState.COMPLETE and MILESTONE in trial.user_attrs
    ]


def front_of(rungs: Iterable[Rung], direction: Direction) -> Front[Rung]:
    """The front of validation score against parameters."""
    points = (Point(rung.milestone.score, rung.milestone.parameters, rung) for rung in rungs)
    return Front(points, direction)
