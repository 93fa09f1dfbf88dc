"""How far a study is, and what is told of each of its trials: for people who watch it."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median_high

from optuna.trial import FrozenTrial, TrialState

from pbp_search.front import Front
from pbp_search.search.rungs import DENDRITES, PARENT, TRACEBACK, Rung, front_of, rung_of, step_of
from pbp_search.training import Direction, Milestone, Size
from pbp_search.training.milestone import UNITS

_MARGIN = 0.1
_FIRST = 10


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        finished: Trials that have finished, failed ones included.
        running: Trials that are being trained, or whose worker has died and nobody has noticed yet.
        failed: Trials that have failed.
        waiting: Trials that were stopped in good order or enqueued, and are trained next.
        configurations: Configurations that have been begun.
        promoted: Finished rungs that went on from another, with one dendrite more.
        front_size: Networks on the front.
        hypervolume: What the front dominates of the box around the first ten rungs that finished (see :class:`Box`), in
            units of that box: it never falls, and is above 1 where the front has left the best of both behind. None
            before there are ten.
    """

    finished: int
    running: int
    failed: int
    waiting: int
    configurations: int
    promoted: int
    front_size: int
    hypervolume: float | None


def progress_of(trials: Sequence[FrozenTrial], rungs: Sequence[Rung], direction: Direction, size: Size) -> Progress:
    """How far a study is.

    Args:
        trials: All of the study's trials.
        rungs: Those of them that left a milestone.
        direction: Of the score.
        size: What the front counts.
    """
    states = Counter(trial.state for trial in trials)
    front = front_of(rungs, direction, size)
    begun = (trial for trial in trials if trial.state != TrialState.WAITING)
    return Progress(
        finished=sum(count for state, count in states.items() if state.is_finished()),
        running=states[TrialState.RUNNING],
        failed=states[TrialState.FAIL],
        waiting=states[TrialState.WAITING],
        configurations=sum(PARENT not in trial.user_attrs for trial in begun),
        promoted=sum(rung.parent is not None for rung in rungs),
        front_size=len(front),
        hypervolume=_hypervolume(front, trials, rungs, direction, size),
    )


def by_end(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The finished ones of some trials, in the order in which they finished."""

    def end(trial: FrozenTrial) -> tuple[datetime, int]:
        assert trial.datetime_complete is not None
        return trial.datetime_complete, trial.number

    return sorted((trial for trial in trials if trial.state.is_finished()), key=end)


def _hypervolume(
    front: Front[Rung], trials: Sequence[FrozenTrial], rungs: Sequence[Rung], direction: Direction, size: Size
) -> float | None:
    if len(rungs) < _FIRST:
        return None
    by_trial = {rung.trial: rung for rung in rungs}
    first = [by_trial[trial.number] for trial in by_end(trials) if trial.number in by_trial][:_FIRST]
    return Box.around([front_of(first, direction, size)], first, direction, size).share(front)


@dataclass(frozen=True)
class Box:
    """What hypervolumes are measured in: a rectangle of score and log10 of size.

    It reaches from the best of both on the fronts to the reference point: a tenth of the range beyond the worst of both
    there, as BoTorch's ``infer_reference_point`` has it, so that the most accurate network counts though none is
    larger. A range of nothing counts as 1.

    Besides, the median of all that has been seen counts where it is worse: it gives a front of one network a range, and
    one score that diverged does not move it. A score that diverged on a front, because no network is smaller, sets the
    range until one as small has succeeded.

    Attributes:
        reference: The reference point.
        area: The rectangle's.
    """

    reference: tuple[float, float]
    area: float

    @classmethod
    def around(cls, fronts: Sequence[Front[Rung]], rungs: Sequence[Rung], direction: Direction, size: Size) -> "Box":
        """The box of fronts that are compared.

        Args:
            fronts: The fronts. One of them at least has a point.
            rungs: All that has been seen.
            direction: Of the score.
            size: What the fronts count.
        """
        sign = -1 if direction == "maximize" else 1
        points = [point.payload.milestone for front in fronts for point in front]
        seen = [rung.milestone for rung in rungs]

        def span(measure: Callable[[Milestone], float]) -> tuple[float, float]:
            """Of what is minimised: the best, and the reference."""
            values = [measure(milestone) for milestone in points]
            best, worst = min(values), max(*values, median_high(map(measure, seen)))
            return best, worst + _MARGIN * (worst - best or 1.0)

        best, worst = span(lambda milestone: sign * milestone.score)
        smallest, largest = span(lambda milestone: math.log10(milestone.size(size)))
        return cls((sign * worst, largest), (worst - best) * (largest - smallest))

    def share(self, front: Front[Rung]) -> float:
        """What a front dominates on the good side of the reference point, in areas: at most 1 if it is in the box."""
        return front.hypervolume(self.reference) / self.area


def sentence(trial: FrozenTrial, metric: str, size: Size) -> str:
    """What came of a trial that left a milestone."""
    rung = rung_of(trial)
    assert rung is not None
    milestone = rung.milestone
    if rung.parent is None:
        what = f"is a new configuration of width {milestone.config.width}"
    elif step_of(trial) == "prune":
        what = f"is trial {rung.parent} pruned"
    else:
        what = f"goes on from trial {rung.parent} to dendrite {trial.params[DENDRITES]}"
    refused = "" if milestone.accepted else ", which is not enough better: its chain ends"
    unit = UNITS[size]
    return f"Trial {rung.trial} {what}: {metric} {milestone.score:.4g}, {milestone.size(size):,} {unit}{refused}."


def told(trial: FrozenTrial, metric: str, size: Size) -> str:
    """What came of a finished trial, for the log."""
    failed = trial.state == TrialState.FAIL
    return place_of_failure(trial) if failed else sentence(trial, metric, size)


def place_of_failure(trial: FrozenTrial) -> str:
    """Where a trial failed: its traceback's last frame."""
    frames = str(trial.user_attrs.get(TRACEBACK, "")).splitlines()
    return next((line for line in reversed(frames) if line.startswith("  File ")), "  outside of this program")
