"""A study as a sampler should see it: one trial for each configuration, not one for each rung."""

import copy
from collections.abc import Container, Sequence
from typing import NamedTuple

import moocore
import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pbp_search.search.plans import searched
from pbp_search.search.rungs import CONFIGURATION, DENDRITES, PARENT, PRUNED

_RUNG = (DENDRITES, PRUNED)


class ConfigurationView(optuna.Study):
    """A study whose trials are its configurations; all else, and all that is written, is the study's own.

    A configuration is its first trial, without the rung in its parameters. Rungs that were promoted are not seen, but
    for their values: a configuration has those of the first of its rungs that is on the study's front, and its first
    rung's if none is. So a promotion changes nothing until its outcome moves the front; a rung that another rung or
    configuration dominates or equals says nothing; and what a configuration can become with dendrites is not held
    back by what it was without.

    Args:
        study: The study.
        asking: The number of the trial that asks. It is not among those seen: one that is done again after an
            interruption would take its own first draw for another's. What it sees stays as it first was.
        collapsed: What is known of the study's finished trials, kept between views.
    """

    def __init__(self, study: optuna.Study, asking: int, collapsed: "Collapsed") -> None:
        # Not by Study.__init__, which asks the storage again for what the study knows.
        self.__dict__.update(study.__dict__)
        self.study = study
        self.asking = asking
        self._collapsed = collapsed
        self._trials: list[FrozenTrial] | None = None

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        if self._trials is None:  # read once for all parameters of a trial: reading takes longer than drawing
            trials = self.study._get_trials(deepcopy=False)
            self._trials = self._collapsed.configurations(trials, self.study.directions)
        others = (trial for trial in self._trials if trial.number != self.asking)
        seen = [trial for trial in others if states is None or trial.state in states]
        return copy.deepcopy(seen) if deepcopy else seen


class Collapsed:
    """The finished configurations of a study, looked at again only when another trial has finished."""

    def __init__(self) -> None:
        self._finished: list[FrozenTrial] = []
        self._configurations: dict[int, _Collapse] = {}

    def configurations(self, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
        """The configurations among all trials, by number."""
        trials = searched(trials)
        finished = [trial for trial in trials if trial.state.is_finished()]
        if finished != self._finished:  # cheap: the storage hands out the same objects again
            self._update(finished, directions)
        return [
            self._configurations[trial.number].configuration if trial.state.is_finished() else without_rung(trial)
            for trial in trials
            if PARENT not in trial.user_attrs
        ]

    def _update(self, finished: list[FrozenTrial], directions: Sequence[StudyDirection]) -> None:
        values = _values_on_front(finished, directions)
        for trial in finished:
            if PARENT not in trial.user_attrs:
                known, wanted = self._configurations.get(trial.number), values.get(trial.number)
                if known is None or known.first is not trial or known.values != wanted:
                    self._configurations[trial.number] = _Collapse(trial, wanted, without_rung(trial, wanted))
        self._finished = finished


class _Collapse(NamedTuple):
    first: FrozenTrial
    values: Sequence[float] | None
    configuration: FrozenTrial


def without_rung(trial: FrozenTrial, values: Sequence[float] | None = None) -> FrozenTrial:
    """A configuration's first trial without its rung, and with other values if there are any."""
    changed = copy.copy(trial)
    changed.params = {name: value for name, value in trial.params.items() if name not in _RUNG}
    changed.distributions = {name: value for name, value in trial.distributions.items() if name not in _RUNG}
    if values is not None:
        changed.values = values
    return changed


def _values_on_front(
    finished: Sequence[FrozenTrial], directions: Sequence[StudyDirection]
) -> dict[int, Sequence[float]]:
    """Of each configuration that has rungs on the front the first one's values; nothing if no rung was promoted."""
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    if not any(PARENT in trial.user_attrs for trial in complete):
        return {}
    signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
    costs = np.array([trial.values for trial in complete]) * signs
    values: dict[int, Sequence[float]] = {}
    for trial, on_front in zip(complete, moocore.is_nondominated(costs, keep_weakly=True), strict=True):
        if on_front:
            values.setdefault(trial.user_attrs.get(CONFIGURATION, trial.number), trial.values)
    return values
