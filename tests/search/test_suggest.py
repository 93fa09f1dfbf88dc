"""What a space draws: which parameters a trial has, and what of a configuration they become."""

from typing import Any

import optuna
import pytest

from pbp_search.dendrites import DendriteSpec
from pbp_search.search import Choices, SearchSpace
from pbp_search.search.space import configuration_seed
from pbp_search.training import CycleSchedule, Fixed, Plateau, TrialConfig
from tests.quick_studies import quick_space

COMMON = {"width": 3, "learning_rate": 0.05, "acceptance": 5e-9}
PLATEAU = {
    "schedule": "plateau",
    "neuron_patience": 2,
    "neuron_threshold": 0.2,
    "dendrite_patience": 5,
    "dendrite_threshold": 0.04,
}
FIXED = {"schedule": "fixed", "neuron_epochs": 3, "dendrite_epochs": 11}

# Everything that can be searched, searched.
WIDE: dict[str, Any] = {
    "prunings": 2,
    "prune_share": (0.2, 0.8),
    "width": (1, 8),
    "learning_rate": (1e-4, 1e-2),
    "weight_decay": [0.0, 1e-3],
    "batch_size": (8, 64),
    "gradient_clip": ["none", 0.5],
    "mixed_precision": [False, True],
    "schedule": ["plateau", "fixed"],
    "neuron_patience": (1, 5),
    "neuron_threshold": (1e-3, 1e-1),
    "neuron_absolute": (1e-3, 1e-1),
    "neuron_max_epochs": (10, 100),
    "neuron_epochs": (10, 100),
    "dendrites": 3,
    "acceptance": [0.0, 1e-3],
    "tries": (1, 3),
    "variant": ["perforated", "joint", "gradient", "random", "sham"],
    "nonlinearity": ["tanh", "sigmoid", "relu", "gelu"],
    "objective": ["covariance", "correlation"],
    "pool": (3, 6),
    "per_neuron": (1, 3),
    "fan_in": ["all", 4, 8],
    "pattern": ["random", "window", "chosen"],
    "grid": ["line", "8x8"],
    "sees": ["own inputs", "input"],
    "placement": ["all", "head", "0, !1", "head,"],
    "outgoing_scale": (0.01, 0.1),
    "dendrite_learning_rate": (1e-2, 1e-1),
    "dendrite_patience": (1, 5),
    "dendrite_threshold": (1e-3, 1e-1),
    "dendrite_absolute": (1e-3, 1e-1),
    "dendrite_max_epochs": (10, 100),
    "dendrite_epochs": (10, 100),
    "record_budget": (2**20, 2**30),
}


def suggested(space: SearchSpace, params: dict[str, Any]) -> TrialConfig:
    """The configuration of a trial that has these parameters, and is asked for these only."""
    trial = optuna.trial.FixedTrial(params)  # it refuses to be asked for what it does not have
    config = space.suggest(trial, seed=11)
    assert trial.params == params
    return config


def test_plateau_opens_its_own_parameters() -> None:
    config = suggested(quick_space(), {**COMMON, **PLATEAU})
    assert (config.width, config.learning_rate, config.seed) == (3, 0.05, 11)
    assert config.schedule.acceptance == 5e-9
    assert config.schedule.neuron == Plateau(patience=2, relative=(0.2,))
    assert config.schedule.dendrite == Plateau(patience=5, relative=(0.04,), max_epochs=30)


def test_fixed_opens_its_own_parameters() -> None:
    config = suggested(quick_space(), {**COMMON, **FIXED})
    assert config.schedule.neuron == Fixed(epochs=3)
    assert config.schedule.dendrite == Fixed(epochs=11)
    assert config.schedule.acceptance == 5e-9


@pytest.mark.parametrize("schedule", ["plateau", "fixed"])
@pytest.mark.parametrize("form", [str, lambda schedule: [schedule]])
def test_one_schedule_alone(schedule: str, form: Any) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        config = quick_space(schedule=form(schedule)).suggest(study.ask(), seed=0)
        assert config.schedule.neuron.kind == config.schedule.dendrite.kind == schedule


def test_what_is_fixed_is_no_parameter_but_the_width() -> None:
    space = SearchSpace(width=3, learning_rate=0.05, schedule="fixed", neuron_epochs=2, dendrite_epochs=4, acceptance=0)
    config = suggested(space, {"width": 3})
    assert config == TrialConfig(
        width=3,
        learning_rate=0.05,
        schedule=CycleSchedule(neuron=Fixed(epochs=2), dendrite=Fixed(epochs=4), acceptance=0),
        seed=11,
    )


def test_a_range_may_be_one_point() -> None:
    space = quick_space(width=(3, 3), learning_rate=(0.05, 0.05), neuron_epochs=(2, 2), schedule=["fixed"])
    config = space.suggest(optuna.create_study().ask(), seed=0)
    assert (config.width, config.learning_rate, config.schedule.neuron) == (3, 0.05, Fixed(epochs=2))


NETWORK = {"width", "learning_rate", "weight_decay", "batch_size", "gradient_clip", "mixed_precision", "schedule"}
NETWORK |= {"prune_share"}
GROWN = {"variant", "acceptance", "tries"}
MADE = {"nonlinearity", "per_neuron", "fan_in", "sees", "placement", "record_budget"}
LEARNED = {"pool", "dendrite_learning_rate"}


def rule(phase: str, kind: str) -> set[str]:
    names = {"fixed": {"epochs"}, "plateau": {"patience", "threshold", "absolute", "max_epochs"}}[kind]
    return {f"{phase}_{name}" for name in names}


def expected_names(params: dict[str, Any]) -> set[str]:
    """The parameters of a trial of the wide space, as its drawn values open them."""
    names = NETWORK | GROWN | rule("neuron", params["schedule"])
    variant = params["variant"]
    if variant == "sham":
        return names
    names |= MADE
    names |= {"pattern"} if params["fan_in"] != "all" else set()
    names |= {"grid"} if params.get("pattern") == "window" else set()
    names |= {"outgoing_scale"} if variant == "gradient" else set()
    if variant in ("perforated", "joint"):
        names |= LEARNED | rule("dendrite", params["schedule"])
        names |= {"objective"} if params["nonlinearity"] in ("tanh", "sigmoid") else set()
    return names


def test_parameters_are_drawn_where_they_matter_and_lie_within_the_space() -> None:
    space = SearchSpace(**WIDE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn: set[str] = set()
    for _ in range(150):
        trial = study.ask()
        config = space.suggest(trial, seed=0)
        assert trial.params.keys() == expected_names(trial.params)
        assert suggested(space, trial.params) == config.model_copy(update={"seed": 11})
        drawn |= trial.params.keys()
        for name, value in trial.params.items():
            allowed = getattr(space, name)
            assert value in allowed if isinstance(allowed, Choices) else allowed.low <= value <= allowed.high
    assert drawn == SearchSpace.model_fields.keys() - {"dendrites", "prunings"}  # a trial's rung is not drawn


def test_without_dendrites_nothing_of_theirs_is_drawn() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        config = SearchSpace(**{**WIDE, "dendrites": 0}).suggest(trial, seed=0)
        assert trial.params.keys() == NETWORK | rule("neuron", trial.params["schedule"])
        assert config.dendrites == DendriteSpec()
        assert config.schedule == CycleSchedule(neuron=config.schedule.neuron)


# A value of every field, and what of a configuration it becomes.
BECOMES: dict[str, tuple[Any, str, Any]] = {
    "width": (3, "width", 3),
    "learning_rate": (1.0, "learning_rate", 1.0),
    "weight_decay": (0.5, "weight_decay", 0.5),
    "batch_size": (7, "batch_size", 7),
    "gradient_clip": (0.5, "gradient_clip", 0.5),
    "mixed_precision": (True, "mixed_precision", True),
    "schedule": ("fixed", "schedule.neuron.kind", "fixed"),
    "neuron_patience": (3, "schedule.neuron.patience", 3),
    "neuron_threshold": (0.5, "schedule.neuron.relative", (0.5,)),
    "neuron_absolute": (0.5, "schedule.neuron.absolute", 0.5),
    "neuron_max_epochs": (5, "schedule.neuron.max_epochs", 5),
    "neuron_epochs": (5, "schedule.neuron.epochs", 5),
    "acceptance": (0.5, "schedule.acceptance", 0.5),
    "tries": (5, "schedule.tries", 5),
    "variant": ("random", "dendrites.variant", "random"),
    "nonlinearity": ("gelu", "dendrites.nonlinearity", "gelu"),
    "objective": ("covariance", "dendrites.objective", "covariance"),
    "pool": (5, "dendrites.pool", 5),
    "per_neuron": (2, "dendrites.per_neuron", 2),
    "fan_in": (5, "dendrites.fan_in", 5),
    "pattern": ("chosen", "dendrites.pattern", "chosen"),
    "grid": ("4x6", "dendrites.grid", (4, 6)),
    "sees": ("input", "dendrites.sees", "input"),
    "placement": ("encoder.*, !encoder.2", "dendrites.placement", ("encoder.*", "!encoder.2")),
    "outgoing_scale": (0.5, "dendrites.outgoing_scale", 0.5),
    "dendrite_learning_rate": (0.5, "dendrite_learning_rate", 0.5),
    "dendrite_patience": (5, "schedule.dendrite.patience", 5),
    "dendrite_threshold": (0.5, "schedule.dendrite.relative", (0.5,)),
    "dendrite_absolute": (0.5, "schedule.dendrite.absolute", 0.5),
    "dendrite_max_epochs": (5, "schedule.dendrite.max_epochs", 5),
    "dendrite_epochs": (5, "schedule.dendrite.epochs", 5),
    "record_budget": (2**22, "record_budget", 2**22),
    "prune_share": (0.25, "prune_share", 0.25),
}
NEEDS: dict[str, dict[str, Any]] = {
    "prune_share": {"prunings": 1},
    "neuron_epochs": {"schedule": "fixed"},
    "dendrite_epochs": {"schedule": "fixed"},
    "per_neuron": {"pool": 3},
    "pattern": {"fan_in": 3},
    "grid": {"fan_in": 3, "pattern": "window"},
    "outgoing_scale": {"variant": "gradient"},
}


@pytest.mark.parametrize("name", BECOMES)
def test_every_field_reaches_the_core(name: str) -> None:
    value, place, expected = BECOMES[name]
    space = SearchSpace(**{"schedule": "plateau", **NEEDS.get(name, {}), name: value})
    found: Any = space.suggest(optuna.create_study().ask(), seed=0)
    for part in place.split("."):
        found = getattr(found, part)
    assert found == expected


CONTROLS = ("network", "depth")  # of comparisons: not searched


def test_everything_that_the_core_offers_has_a_field() -> None:
    core = {name for name in TrialConfig.model_fields if name not in ("dendrites", "schedule", "seed", *CONTROLS)}
    core |= {f"dendrites.{name}" for name in DendriteSpec.model_fields}
    core |= {"schedule.neuron.kind", "schedule.acceptance", "schedule.tries"}
    names = (Plateau.model_fields.keys() | Fixed.model_fields.keys()) - {"kind"}
    core |= {f"schedule.{phase}.{name}" for phase in ("neuron", "dendrite") for name in names}
    assert {place for _, place, _ in BECOMES.values()} == core
    assert BECOMES.keys() == SearchSpace.model_fields.keys() - {"dendrites", "prunings"}


def test_what_is_fixed_by_default_is_as_the_core_has_it() -> None:
    space = SearchSpace(fan_in=3, pattern="random", variant="perforated", schedule="plateau")
    config = space.suggest(optuna.create_study().ask(), seed=0)
    assert config.dendrites == DendriteSpec(fan_in=3)
    assert config.schedule.tries == CycleSchedule().tries
    for phase in (config.schedule.neuron, config.schedule.dendrite):
        assert isinstance(phase, Plateau)
        assert phase.absolute == Plateau().absolute
    searched = {"width", "learning_rate", "schedule", "dendrites"}
    assert config.model_dump(exclude=searched) == TrialConfig(width=1).model_dump(exclude=searched)


def test_a_word_can_be_a_pattern() -> None:
    def placed(placement: str) -> object:
        return SearchSpace(placement=placement).suggest(optuna.create_study().ask(), seed=0).dendrites.placement

    assert placed("head") == "head"
    assert placed("head,") == ("head",)


def test_every_configuration_has_a_seed_of_its_own() -> None:
    seeds = {configuration_seed(study, root) for study in range(20) for root in range(50)}
    assert len(seeds) == 1000
    assert configuration_seed(3, 4) == configuration_seed(3, 4)
    assert all(0 <= seed < 2**31 for seed in seeds)
