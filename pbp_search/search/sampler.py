"""The samplers: Optuna's, with every draw keyed by what it is for, over configurations and not rungs."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    GPSampler,
    GridSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from pbp_search.errors import SettingsError
from pbp_search.search.configurations import Collapsed, ConfigurationView, without_rung
from pbp_search.search.rungs import PARENT
from pbp_search.training.streams import key

Make = Callable[[int], BaseSampler]
Sampler = str | BaseSampler | Make

MOST_FOR_GP = 250
"""Configurations with which ``auto`` turns from GP to TPE: a draw by GP takes the longer the more there are."""

_RUNGS = 8  # of the ladder: with two random ones that is TPE's own start-up phase
_WIDTH = "width"
_POPULATION = 20  # Optuna's 50 is drawn at random: more than many studies have


class KeyedSampler(BaseSampler):
    """Makes a sampler anew for each thing it draws, seeded by (study's seed, trial, parameter).

    Workers never draw the same points, a continued study does not repeat its first ones, and with one worker a trial
    that was interrupted between two parameters draws the rest as it would have. The samplers see configurations, not
    rungs: see :class:`ConfigurationView`. What they are to remember from trial to trial they must write to the storage.

    Args:
        make: Makes a sampler from a seed.
        seed: The study's.
    """

    def __init__(self, make: Make, seed: int) -> None:
        self._make = make
        self._seed = seed
        self._collapsed = Collapsed()
        self._asked: ConfigurationView | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that the trial's sampler draws together."""
        return self._sampler(trial).infer_relative_search_space(self._view(study, trial), without_rung(trial))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the parameters that are drawn together."""
        sampler, view, asking = self._sampler(trial), self._view(study, trial), without_rung(trial)
        sampler.infer_relative_search_space(view, asking)  # TPE notes its groups here
        return sampler.sample_relative(view, asking, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter."""
        sampler, view = self._sampler(trial, param_name), self._view(study, trial)
        return sampler.sample_independent(view, without_rung(trial), param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Told of each configuration."""
        if PARENT not in trial.user_attrs:
            self._sampler(trial).before_trial(self._view(study, trial), without_rung(trial))

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Told of each configuration's first rung."""
        if PARENT not in trial.user_attrs:
            self._sampler(trial).after_trial(self._view(study, trial), without_rung(trial), state, values)

    def _sampler(self, trial: FrozenTrial, *parts: str) -> BaseSampler:
        return self._make(key(self._seed, "sampler", trial.number, *parts) % 2**32)

    def _view(self, study: Study, trial: FrozenTrial) -> ConfigurationView:
        if self._asked is None or (self._asked.study, self._asked.asking) != (study, trial.number):
            self._asked = ConfigurationView(study, trial.number, self._collapsed)
        return self._asked


class AutoSampler(BaseSampler):
    """A ladder of widths, then GP where it is ahead and TPE everywhere else.

    The first configurations are those that one would train by hand: widths that cover their range, with all else
    in the middle of its range, or at the first of its choices. So there is a front that is hard to better after a few
    trials: see benchmarks/search.py.

    GP (log expected hypervolume improvement: S. Daulton et al., arXiv 2006.05078; S. Ament et al., arXiv 2310.20708)
    draws while all configurations have the same parameters, all of them numbers, and configurations are few. Where a
    choice opens parameters it finds no more than TPE does, in many times the time.

    Args:
        seed: Of both.
    """

    def __init__(self, seed: int) -> None:
        self._tpe = _tpe(seed)
        self._gp = _gp(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters if GP draws, none if TPE does, which draws one by one, or while the ladder lasts."""
        space = self._gp.infer_relative_search_space(study, trial) if _suits_gp(study) else {}
        on_ladder = _WIDTH in space and _place(study, trial) < len(_ladder(space[_WIDTH]))
        return {} if on_ladder else space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw by GP."""
        return self._gp.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw by the ladder or by TPE."""
        widths = {**trial.distributions, param_name: param_distribution}.get(_WIDTH)
        if widths is not None:  # it is drawn first
            ladder, place = _ladder(widths), _place(study, trial)
            if place < len(ladder):
                return ladder[place] if param_name == _WIDTH else _middle(param_distribution)
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)


def _place(study: Study, trial: FrozenTrial) -> int:
    """How many configurations there were before."""
    return sum(other.number < trial.number for other in study.get_trials(deepcopy=False))


def _ladder(widths: BaseDistribution) -> list[Any]:
    """Different widths that cover their range evenly, however few of them are taken (J. G. van der Corput)."""
    if widths.single():
        return []
    bits = _RUNGS.bit_length() - 1
    places = (int(f"{rung:0{bits}b}"[::-1], 2) for rung in range(_RUNGS))
    return list(dict.fromkeys(_at(widths, (place + 0.5) / _RUNGS) for place in places))


def _middle(distribution: BaseDistribution) -> Any:
    return _at(distribution, 0.0 if isinstance(distribution, CategoricalDistribution) else 0.5)


def _at(distribution: BaseDistribution, place: float) -> Any:
    """The value at a place between 0 and 1 in a range, or in a list of choices."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(place * len(distribution.choices))]
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):  # each number has the same share
        low, high = low - 0.5, high + 0.5
    value = low * (high / low) ** place if distribution.log else low + (high - low) * place
    return round(value) if isinstance(distribution, IntDistribution) else value


def _suits_gp(study: Study) -> bool:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not 0 < len(complete) < MOST_FOR_GP:
        return False
    space = complete[0].distributions
    numbers = all(one.single() or not isinstance(one, CategoricalDistribution) for one in space.values())
    return numbers and all(trial.distributions == space for trial in complete)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, independent_sampler=_tpe(seed), warn_independent_sampling=False)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed, population_size=_POPULATION)


SAMPLERS: dict[str, Make] = {"auto": AutoSampler, "tpe": _tpe, "nsga2": _nsga2, "gp": _gp, "random": RandomSampler}


def sampler_of(which: Sampler, seed: int) -> KeyedSampler:
    """A study's sampler, for one worker.

    Args:
        which: One of the names in ``SAMPLERS``; a function that makes an Optuna sampler from a seed; or an Optuna
            sampler. The last is copied, for each worker, and its random stream seeded anew from the system, so that
            neither workers nor continuations repeat each other's draws: such a study is not reproducible.
        seed: The study's.

    Raises:
        SettingsError: There is no such sampler, or it counts points of a grid.
    """
    if isinstance(which, BaseSampler):
        own = copy.deepcopy(_usable(which))
        own.reseed_rng()
        return KeyedSampler(lambda _: own, seed)
    if isinstance(which, str):
        if which not in SAMPLERS:
            raise SettingsError(f"There is no sampler {which!r}: available are {', '.join(SAMPLERS)}.")
        return KeyedSampler(SAMPLERS[which], seed)
    if not callable(which):
        raise SettingsError(
            f"{which!r} is neither the name of a sampler ({', '.join(SAMPLERS)}), nor an Optuna sampler, "
            "nor a function that makes one from a seed."
        )
    made = which(seed % 2**32)
    if not isinstance(made, BaseSampler):
        raise SettingsError(f"The sampler's function makes a {type(made).__name__}, not an Optuna sampler.")
    _usable(made)
    return KeyedSampler(which, seed)


def _usable(sampler: BaseSampler) -> BaseSampler:
    if isinstance(sampler, (GridSampler, BruteForceSampler)):
        raise SettingsError(
            f"A {type(sampler).__name__} stops a study when each of its points has been a trial, but here trials are "
            "rungs: use the sampler random, and lists of choices in the space."
        )
    return sampler
