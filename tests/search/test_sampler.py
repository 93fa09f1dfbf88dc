from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from pbp_search.search.sampler import KeyedSampler

UNIT = FloatDistribution(0.0, 1.0)
NAMES = ("a", "b", "c", "d")


def study_of(*best: float) -> optuna.Study:
    """A study of two objectives, with trials that are the better the nearer all parameters are to ``best``."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    for place in best:
        for step in range(20):
            value = step / 20
            study.add_trial(
                optuna.trial.create_trial(
                    values=[-abs(value - place), abs(value - place)],
                    params=dict.fromkeys(NAMES, value),
                    distributions=dict.fromkeys(NAMES, UNIT),
                )
            )
    return study


def trial_of(number: int, **changes: Any) -> FrozenTrial:
    trial = optuna.trial.create_trial(**{"state": optuna.trial.TrialState.RUNNING, **changes})
    trial.number = number
    return trial


def draw(
    study: optuna.Study, number: int = 30, name: str = "a", seed: int = 3, distribution: BaseDistribution = UNIT
) -> float:
    drawn: float = KeyedSampler(seed).sample_independent(study, trial_of(number), name, distribution)
    return drawn


HISTORIES = pytest.mark.parametrize("history", [(), (0.25,)], ids=["random", "by history"])


@HISTORIES
def test_the_same_key_and_history_give_the_same_draw(history: tuple[float, ...]) -> None:
    assert draw(study_of(*history)) == draw(study_of(*history))
    whole = IntDistribution(1, 10**6, log=True)
    assert draw(study_of(), distribution=whole) == draw(study_of(), distribution=whole)


@HISTORIES
def test_seeds_trials_and_names_have_draws_of_their_own(history: tuple[float, ...]) -> None:
    study = study_of(*history)
    draws = [
        draw(study),
        *(draw(study, number=number) for number in (0, 1, 31, 300)),
        *(draw(study, name=name) for name in NAMES[1:]),
        *(draw(study, seed=seed) for seed in (0, 4, 2**31 - 1, 2**40)),
    ]
    assert len(set(draws)) == len(draws)


@HISTORIES
def test_the_order_of_draws_does_not_matter(history: tuple[float, ...]) -> None:
    study, sampler = study_of(*history), KeyedSampler(3)
    keys = [(number, name) for number in (30, 31) for name in NAMES]
    forth = {key: sampler.sample_independent(study, trial_of(key[0]), key[1], UNIT) for key in keys}
    back = {key: sampler.sample_independent(study, trial_of(key[0]), key[1], UNIT) for key in keys[::-1]}
    assert forth == back
    assert forth == {key: draw(study, *key) for key in keys}


@HISTORIES
def test_what_the_trial_has_drawn_before_does_not_matter(history: tuple[float, ...]) -> None:
    study = study_of(*history)
    begun = trial_of(30, params={"b": 0.5}, distributions={"b": UNIT})
    assert KeyedSampler(3).sample_independent(study, begun, "a", UNIT) == draw(study)


def test_draws_follow_what_was_good() -> None:
    low, high = ([draw(study_of(best), number=number) for number in range(30, 60)] for best in (0.1, 0.9))
    assert sum(low) / len(low) < 0.4 < 0.6 < sum(high) / len(high)


def test_a_study_draws_its_parameters_one_by_one() -> None:
    study = study_of(0.25)
    study.sampler = KeyedSampler(3)
    trial = study.ask()
    drawn = {name: trial.suggest_float(name, 0, 1) for name in NAMES}
    assert drawn == {name: draw(study, number=trial.number, name=name) for name in NAMES}
