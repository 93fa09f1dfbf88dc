"""Rungs: what a finished trial of a study left, read back from Optuna's storage.

An Optuna trial is one rung: a configuration at d dendrites, continued from the milestone that it has at d - 1; or one
of its milestones after a pruning step. Its parameters are the configuration's, ``dendrites`` and, where there are
pruning steps, ``pruned``; its values are the score and log10 of the study's
kind of size.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pbp_search.front import Front, Point
from pbp_search.settings import Settings
from pbp_search.training import Direction, Milestone, Size, Step, TrialConfig
from pbp_search.training.milestone import UNITS

# Names of the user attributes of our trials.
CONFIGURATION = "configuration"  # the first trial of it; written when all parameters are drawn
PARENT = "parent"
STEP = "step"  # what led here from the parent
MILESTONE = "milestone"
CHECKPOINT = "checkpoint"
FAILURE = "failure"
PLAN = "plan"
COMPARISON = "comparison"  # of the study
TRACEBACK = "traceback"

# The parameters that say which rung a trial is; the second one is there where the space has pruning steps.
DENDRITES = "dendrites"
PRUNED = "pruned"

STEPS: dict[Step, str] = {"grow": DENDRITES, "prune": PRUNED}
"""The parameter that each kind of step counts."""


class Plan(Settings):
    """A chain that is wanted. Two that are equal are one.

    Attributes:
        comparison: What it is trained for.
        arm: Its part there.
        group: Tells the networks of an arm apart.
        replicate: Chains of different arms with the same number are compared with each other.
        start: Tells the starts of one network and replicate apart.
        config: The configuration.
        steps: What is done to the network without dendrites, one after the other. After a generation that is thrown
            away there are no others, but it is pruned all the same.
    """

    comparison: str
    arm: str
    group: int
    replicate: int
    start: int
    config: TrialConfig
    steps: tuple[Step, ...] = ()

    def step_after(self, milestone: Milestone) -> Step | None:
        """What follows a milestone of the chain; None at its end."""
        taken: dict[Step, int] = {"grow": milestone.requested, "prune": milestone.pruned}
        for step in self.steps:
            if taken[step]:
                taken[step] -= 1
            elif step == "prune" or milestone.accepted:
                return step
        return None


@dataclass(frozen=True)
class Rung:
    """A finished rung.

    Attributes:
        trial: The number of its trial.
        configuration: The first trial of its configuration.
        parent: The trial whose milestone it continued; None for the first of a configuration.
        params: The trial's parameters.
        milestone: What it reached.
        checkpoint: The name of the milestone's checkpoint in the artifact store.
        plan: The planned chain that it belongs to, if the search has not made it.
    """

    trial: int
    configuration: int
    parent: int | None
    params: dict[str, Any]
    milestone: Milestone
    checkpoint: str
    plan: Plan | None = None

    def row(self) -> dict[str, int | float]:
        """The rung's figures, as tables and JSON show them."""
        milestone = self.milestone
        return {
            "trial": self.trial,
            "width": milestone.config.width,
            "dendrites": milestone.dendrites,
            "pruned": milestone.pruned,
            "parameters": milestone.parameters,
            "weight_bytes": milestone.weight_bytes,
            "macs": milestone.macs,
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


def step_of(trial: FrozenTrial) -> Step:
    """What leads from a continuation's parent to it."""
    step: Step = trial.user_attrs.get(STEP, "grow")
    return step


def continued_by(trials: Iterable[FrozenTrial]) -> set[tuple[int, Step]]:
    """Which trials some trials continue, and by what step."""
    return {(trial.user_attrs[PARENT], step_of(trial)) for trial in trials if PARENT in trial.user_attrs}


def plan_of(trial: FrozenTrial) -> Plan | None:
    """The planned chain that a trial belongs to, if it does."""
    plan: dict[str, Any] | None = trial.user_attrs.get(PLAN)
    return None if plan is None else Plan.from_dict(plan)


def rung_of(trial: FrozenTrial) -> Rung | None:
    """The rung of a finished trial, if it left a milestone."""
    attributes = trial.user_attrs
    if trial.state != TrialState.COMPLETE or MILESTONE not in attributes:
        return None
    return Rung(
        trial=trial.number,
        configuration=attributes.get(CONFIGURATION, trial.number),
        parent=attributes.get(PARENT),
        params=dict(trial.params),
        milestone=Milestone.from_dict(attributes[MILESTONE]),
        checkpoint=attributes.get(CHECKPOINT, ""),
        plan=plan_of(trial),
    )


class Rungs:
    """The rungs of a study, each read once: trials that have finished do not change."""

    def __init__(self) -> None:
        self._known: dict[int, Rung | None] = {}

    def of(self, trials: Iterable[FrozenTrial]) -> list[Rung]:
        """The rungs among trials, in their order."""
        finished = [trial for trial in trials if trial.state.is_finished()]
        for trial in finished:
            if trial.number not in self._known:
                self._known[trial.number] = rung_of(trial)
        return [rung for trial in finished if (rung := self._known[trial.number]) is not None]


def values_of(milestone: Milestone, size: Size) -> list[float]:
    """The values of a trial: the validation score, and log10 of the size."""
    return [milestone.score, math.log10(milestone.size(size))]


def front_of(rungs: Iterable[Rung], direction: Direction, size: Size = "parameters") -> Front[Rung]:
    """The front of validation score against a kind of size."""
    points = (Point(rung.milestone.score, rung.milestone.size(size), rung) for rung in rungs)
    return Front(points, direction, UNITS[size])


def best_of(front: Front[Rung], size: Size, max_parameters: int | None, min_score: float | None) -> Point[Rung]:
    """The best point of a front under a limit of parameters, whatever its sizes are: see :meth:`Front.best`.

    Raises:
        NothingFitsError: No point fits. The message names the nearest.
    """
    if max_parameters is None:
        return front.best(min_score=min_score)
    rungs = [point.payload for point in front]
    front_of(rungs, front.direction).best(max_parameters, min_score)  # where nothing fits, it says so in parameters
    small = [rung for rung in rungs if rung.milestone.parameters <= max_parameters]
    return front_of(small, front.direction, size).best(min_score=min_score)
