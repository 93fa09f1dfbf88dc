import json
import math
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbp_search.errors import SettingsError
from pbp_search.search import SearchSpace
from pbp_search.search.space import configuration_seed
from pbp_search.training import Fixed, Plateau
from tests.quick_studies import Dots, quick_space

COMMON = {"width": 3, "learning_rate": 0.05, "acceptance": 5e-9}
PLATEAU = {
    "schedule": "plateau",
    "neuron_patience": 2,
    "neuron_threshold": 0.2,
    "dendrite_patience": 5,
    "dendrite_threshold": 0.04,
}
FIXED = {"schedule": "fixed", "neuron_epochs": 3, "dendrite_epochs": 11}

whole = st.tuples(st.integers(1, 500), st.integers(0, 500)).map(lambda pair: (pair[0], pair[0] + pair[1]))
real = st.tuples(st.floats(1e-12, 10), st.floats(1, 10)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@given(st.builds(dict, width=whole, neuron_epochs=whole, learning_rate=real, acceptance=real))
def test_spaces_survive_json(values: dict[str, Any]) -> None:
    space = SearchSpace(**values)
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"width": (4, 2)}, r"SearchSpace: width is \(4, 2\): it must be \(lowest, highest\)"),
        (
            {"learning_rate": (0.1, 0.01)},
            r"SearchSpace: learning_rate is \(0.1, 0.01\): it must be \(lowest, highest\)",
        ),
        ({"width": (0, 4)}, "SearchSpace: width.0 is 0: input should be greater than or equal to 1"),
        ({"width": (1.5, 4)}, "SearchSpace: width.0 is 1.5: input should be a valid integer"),
        ({"width": 4}, "SearchSpace: width is 4: input should be a valid tuple"),
        ({"width": (1, 2, 3)}, "SearchSpace: width is .*: tuple should have at most 2 items"),
        ({"acceptance": (0.0, 0.1)}, "SearchSpace: acceptance.0 is 0.0: input should be greater than 0"),
        ({"acceptance": (0.1, math.inf)}, "SearchSpace: acceptance.1 is inf: input should be a finite number"),
        ({"neuron_threshold": (math.nan, 1.0)}, "SearchSpace: neuron_threshold.0 is nan: input should be"),
        ({"dendrites": -1}, "SearchSpace: dendrites is -1: input should be greater than or equal to 0"),
        ({"schedules": ()}, r"SearchSpace: schedules is \(\): tuple should have at least 1 item"),
        ({"schedules": ("cosine",)}, "SearchSpace: schedules.0 is 'cosine': input should be 'plateau' or 'fixed'"),
        ({"depth": (1, 2)}, "SearchSpace: there is no setting 'depth'"),
    ],
)
def test_bad_bounds_are_sentences(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        SearchSpace(**values)


def test_the_default_space_is_over_the_tasks_widths() -> None:
    assert SearchSpace.for_task(Dots()) == SearchSpace(width=(1, 4))


def test_plateau_opens_its_own_parameters() -> None:
    # A fixed trial refuses to be asked for what it does not have.
    trial = optuna.trial.FixedTrial({**COMMON, **PLATEAU})
    config = quick_space().suggest(trial, seed=11)  # type: ignore[arg-type]
    assert trial.params == {**COMMON, **PLATEAU}
    assert (config.width, config.learning_rate, config.seed) == (3, 0.05, 11)
    assert config.schedule.acceptance == 5e-9
    assert config.schedule.neuron == Plateau(patience=2, relative=(0.2,))
    assert config.schedule.dendrite == Plateau(patience=5, relative=(0.04,))


def test_fixed_opens_its_own_parameters() -> None:
    trial = optuna.trial.FixedTrial({**COMMON, **FIXED})
    config = quick_space().suggest(trial, seed=11)  # type: ignore[arg-type]
    assert trial.params == {**COMMON, **FIXED}
    assert config.schedule.neuron == Fixed(epochs=3)
    assert config.schedule.dendrite == Fixed(epochs=11)
    assert config.schedule.acceptance == 5e-9


@pytest.mark.parametrize("schedule", ["plateau", "fixed"])
def test_one_schedule_alone(schedule: str) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        config = quick_space(schedules=(schedule,)).suggest(study.ask(), seed=0)
        assert config.schedule.neuron.kind == config.schedule.dendrite.kind == schedule


def test_what_is_drawn_lies_within_the_bounds() -> None:
    space = quick_space()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = set()
    for _ in range(30):
        trial = study.ask()
        kinds.add(space.suggest(trial, seed=0).schedule.neuron.kind)
        for name, value in trial.params.items():
            bounds = {"schedule": space.schedules}.get(name) or getattr(space, name)
            assert value in bounds if name == "schedule" else bounds[0] <= value <= bounds[1]
    assert kinds == {"plateau", "fixed"}


def test_a_space_may_be_one_point() -> None:
    space = quick_space(width=(3, 3), learning_rate=(0.05, 0.05), neuron_epochs=(2, 2), schedules=("fixed",))
    config = space.suggest(optuna.create_study().ask(), seed=0)
    assert (config.width, config.learning_rate, config.schedule.neuron) == (3, 0.05, Fixed(epochs=2))


def test_every_configuration_has_a_seed_of_its_own() -> None:
    seeds = {configuration_seed(study, root) for study in range(20) for root in range(50)}
    assert len(seeds) == 1000
    assert configuration_seed(3, 4) == configuration_seed(3, 4)
    assert all(0 <= seed < 2**31 for seed in seeds)
