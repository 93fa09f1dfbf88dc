from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from pbp_search.errors import SettingsError
from pbp_search.search import sampler
from pbp_search.search.rungs import CONFIGURATION, DENDRITES, PARENT
from pbp_search.search.sampler import SAMPLERS, sampler_of

UNIT = FloatDistribution(0.0, 1.0)
NAMES = ("a", "b", "c", "d")

every_sampler = pytest.mark.parametrize("which", SAMPLERS)
HISTORIES = pytest.mark.parametrize("history", [(), (0.25,)], ids=["random", "by history"])


def empty_study() -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize"])


def study_of(*best: float) -> optuna.Study:
    """A study of two objectives, with trials that are the better the nearer all parameters are to ``best``."""
    study = empty_study()
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
    trial = optuna.trial.create_trial(**{"state": TrialState.RUNNING, **changes})
    trial.number = number
    return trial


def draw(
    study: optuna.Study,
    number: int = 30,
    name: str = "a",
    seed: int = 3,
    distribution: BaseDistribution = UNIT,
    which: str = "auto",
) -> float:
    drawn: float = sampler_of(which, seed).sample_independent(study, trial_of(number), name, distribution)
    return drawn


@every_sampler
@HISTORIES
def test_the_same_key_and_history_give_the_same_draw(history: tuple[float, ...], which: str) -> None:
    assert draw(study_of(*history), which=which) == draw(study_of(*history), which=which)
    whole = IntDistribution(1, 10**6, log=True)
    assert draw(study_of(), distribution=whole, which=which) == draw(study_of(), distribution=whole, which=which)


@every_sampler
@HISTORIES
def test_seeds_trials_and_names_have_draws_of_their_own(history: tuple[float, ...], which: str) -> None:
    study = study_of(*history)
    draws = [
        draw(study, which=which),
        *(draw(study, number=number, which=which) for number in (0, 1, 31, 300)),
        *(draw(study, name=name, which=which) for name in NAMES[1:]),
        *(draw(study, seed=seed, which=which) for seed in (0, 4, 2**31 - 1, 2**40)),
    ]
    assert len(set(draws)) == len(draws)


@every_sampler
@HISTORIES
def test_the_order_of_draws_does_not_matter(history: tuple[float, ...], which: str) -> None:
    study, shared = study_of(*history), sampler_of(which, 3)
    keys = [(number, name) for number in (30, 31) for name in NAMES]
    forth = {key: shared.sample_independent(study, trial_of(key[0]), key[1], UNIT) for key in keys}
    back = {key: shared.sample_independent(study, trial_of(key[0]), key[1], UNIT) for key in keys[::-1]}
    assert forth == back
    assert forth == {key: draw(study, *key, which=which) for key in keys}


@every_sampler
@HISTORIES
def test_what_the_trial_has_drawn_before_does_not_matter(history: tuple[float, ...], which: str) -> None:
    study = study_of(*history)
    begun = trial_of(30, params={"b": 0.5}, distributions={"b": UNIT})
    assert sampler_of(which, 3).sample_independent(study, begun, "a", UNIT) == draw(study, which=which)


@pytest.mark.parametrize("which", ["auto", "tpe", "gp"])
def test_draws_follow_what_was_good(which: str) -> None:
    low, high = ([draw(study_of(best), number=number, which=which) for number in range(30, 60)] for best in (0.1, 0.9))
    assert sum(low) / len(low) < 0.4 < 0.6 < sum(high) / len(high)


@pytest.mark.parametrize("which", ["tpe", "nsga2", "random"])
def test_a_study_draws_its_parameters_one_by_one(which: str) -> None:
    study = study_of(0.25)
    study.sampler = sampler_of(which, 3)
    trial = study.ask()
    drawn = {name: trial.suggest_float(name, 0, 1) for name in NAMES}
    assert drawn == {name: draw(study, number=trial.number, name=name, which=which) for name in NAMES}


# What follows draws configurations of a conditional space as a worker does.


def configuration(trial: optuna.Trial) -> dict[str, Any]:
    """Draw one, its rung first as a worker does."""
    trial.suggest_int(DENDRITES, 0, 3)
    trial.suggest_int("width", 2, 16, log=True)
    if trial.suggest_categorical("schedule", ("plateau", "fixed")) == "plateau":
        trial.suggest_float("threshold", 1e-4, 1e-2, log=True)
    else:
        trial.suggest_float("length", 20, 120)
    trial.suggest_float("rate", 0, 1)
    return {name: value for name, value in trial.params.items() if name != DENDRITES}


def outcome(drawn: dict[str, Any]) -> list[float]:
    return [drawn["width"] ** 0.5 - drawn.get("length", 70) / 100, drawn["width"]]


def ask(study: optuna.Study) -> optuna.Trial:
    study.enqueue_trial({DENDRITES: 0})
    return study.ask()


def promote(study: optuna.Study, root: int, values: list[float]) -> None:
    """Add the next rung of the configuration that started with trial ``root``."""
    first = study.get_trials(deepcopy=False)[root]
    dendrites = 1 + sum(trial.user_attrs.get(CONFIGURATION) == root for trial in study.get_trials(deepcopy=False))
    study.add_trial(
        optuna.trial.create_trial(
            values=values,
            params={**first.params, DENDRITES: dendrites},
            distributions=first.distributions,
            user_attrs={PARENT: root, CONFIGURATION: root},
        )
    )


def nothing(study: optuna.Study, root: int, values: list[float]) -> None:
    """Use up a trial's number, as :func:`promote` does."""
    attributes = {PARENT: root, CONFIGURATION: root}
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attributes))


Follow = Callable[[optuna.Study, int, list[float]], None]


def go_on(
    study: optuna.Study, which: sampler.Sampler, configurations: int, follow: Follow | None = None, rungs: int = 2
) -> list[dict[str, Any]]:
    """Draw and finish configurations; each is followed by rungs."""
    study.sampler = sampler_of(which, 3)
    found = []
    for _ in range(configurations):
        trial = ask(study)
        found.append(configuration(trial))
        values = outcome(found[-1])
        study.tell(trial, values)
        for rung in range(rungs if follow else 0):
            assert follow is not None
            follow(study, trial.number, [values[0], values[1] + rung])  # the score of the first rung, or worse
    return found


@every_sampler
def test_rungs_that_are_no_better_change_no_draw(which: str) -> None:
    # 16 configurations are fewer than NSGA-II's population and more than the start-up of the others; each has three
    # rungs. Neither start-up phases, nor generations, nor what is learned may see them.
    assert go_on(empty_study(), which, 16, promote) == go_on(empty_study(), which, 16, nothing)


@every_sampler
def test_the_start_up_phase_counts_configurations(which: str) -> None:
    ladder = 8 if which == "auto" else 0
    assert go_on(empty_study(), which, 10, promote)[ladder:] == go_on(empty_study(), "random", 10, nothing)[ladder:]


def test_the_generations_of_nsga2_count_configurations() -> None:
    study = empty_study()
    drawn = go_on(study, "nsga2", 45, promote)
    attribute = "NSGAIISampler:generation"
    firsts = [trial for trial in study.trials if CONFIGURATION not in trial.user_attrs]
    assert [trial.system_attrs[attribute] for trial in firsts] == [0] * 20 + [1] * 20 + [2] * 5
    rungs = [trial for trial in study.trials if CONFIGURATION in trial.user_attrs]
    assert not any(attribute in trial.system_attrs for trial in rungs)
    assert drawn == go_on(empty_study(), "nsga2", 45, nothing)


@pytest.mark.parametrize("which", ["tpe", "gp"])
def test_a_rung_that_moves_the_front_counts(which: str) -> None:
    next_ones = []
    for values in ([100.0, 1.0], [-100.0, 100.0]):
        study = empty_study()
        go_on(study, which, 14)
        promote(study, 0, values)
        next_ones.append(go_on(study, which, 3))
    assert next_ones[0] != next_ones[1]


@every_sampler
def test_a_conditional_study_of_two_objectives_runs_and_a_continuation_repeats_no_point(which: str) -> None:
    study = empty_study()
    points = [*go_on(study, which, 20), *go_on(study, which, 20)]
    assert len({repr(point) for point in points}) == len(points)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


@every_sampler
@pytest.mark.parametrize("before", [0, 24])
@pytest.mark.parametrize("drawn", [0, 1, 2])
def test_a_trial_interrupted_between_two_parameters_draws_the_rest_as_it_would_have(
    which: str, before: int, drawn: int
) -> None:
    def prepared() -> optuna.Study:
        study = empty_study()
        go_on(study, "nsga2", before)  # cheap, and leaves the generations that NSGA-II goes by
        study.sampler = sampler_of(which, 3)
        return study

    undisturbed = configuration(ask(prepared()))
    study = prepared()
    trial = ask(study)
    trial.suggest_int(DENDRITES, 0, 3)
    if drawn > 0:
        trial.suggest_int("width", 2, 16, log=True)
    if drawn > 1:
        trial.suggest_categorical("schedule", ("plateau", "fixed"))
    study.sampler = sampler_of(which, 3)  # as a worker does that starts anew
    assert configuration(optuna.Trial(study, trial._trial_id)) == undisturbed


@every_sampler
def test_workers_that_ask_at_the_same_time_draw_points_of_their_own(which: str) -> None:
    study = empty_study()
    go_on(study, "random", 14)
    points = []
    for _ in range(4):
        study.sampler = sampler_of(which, 3)
        points.append(configuration(ask(study)))
    assert len({repr(point) for point in points}) == len(points)


def next_draw(which: str, space: dict[str, BaseDistribution], configurations: int = 12) -> dict[str, Any]:
    """What is drawn from a space of no conditions when there have been so many configurations."""
    study = empty_study()
    study.sampler = sampler_of("random", 3)
    for _ in range(configurations):
        study.tell(trial := study.ask(space), [trial.params["x"], -trial.params["y"]])
    study.sampler = sampler_of(which, 3)
    return study.ask(space).params


PLANE: dict[str, BaseDistribution] = {"x": UNIT, "y": IntDistribution(1, 9)}


def test_auto_is_gp_for_numbers_while_configurations_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next_draw("auto", PLANE) == next_draw("gp", PLANE) != next_draw("tpe", PLANE)
    with_one_choice = {**PLANE, "schedule": CategoricalDistribution(("plateau",))}
    assert next_draw("auto", with_one_choice) == next_draw("gp", with_one_choice)
    monkeypatch.setattr(sampler, "MOST_FOR_GP", 12)
    assert next_draw("auto", PLANE) == next_draw("tpe", PLANE)


def test_auto_is_tpe_where_there_are_choices_and_conditions() -> None:
    with_choices = {**PLANE, "schedule": CategoricalDistribution(("plateau", "fixed"))}
    assert next_draw("auto", with_choices) == next_draw("tpe", with_choices) != next_draw("gp", with_choices)
    draws = []
    for which in ("auto", "tpe"):
        study = empty_study()
        go_on(study, "random", 12)
        draws.append(go_on(study, which, 4))
    assert draws[0] == draws[1]


def test_auto_starts_with_a_ladder_of_widths_whatever_the_seed_and_with_all_else_in_the_middle() -> None:
    study = empty_study()
    first, *others = go_on(study, "auto", 3, promote) + go_on(study, "auto", 4, promote)
    assert first == {"width": 2, "schedule": "plateau", "threshold": pytest.approx(1e-3), "rate": 0.5}
    assert [drawn["width"] for drawn in others] == [6, 3, 11, 8, 4, 14]
    assert all({**drawn, "width": 2} == first for drawn in others)
    assert go_on(study, "auto", 1)[0]["rate"] != 0.5


@pytest.mark.parametrize(
    ("widths", "ladder"),
    [
        (IntDistribution(4, 6), [4, 5, 6]),
        (IntDistribution(1, 100), [7, 57, 32, 82, 19, 69, 44, 94]),
        (CategoricalDistribution((16, 4, 64)), [16, 4, 64]),
        (CategoricalDistribution(tuple(range(1, 17))), [2, 10, 6, 14, 4, 12, 8, 16]),
        (IntDistribution(5, 5), []),
    ],
)
@pytest.mark.parametrize("more", [{}, {"choice": CategoricalDistribution(("tanh", "relu"))}], ids=["gp", "tpe"])
def test_the_ladder_has_no_width_twice(
    widths: BaseDistribution, ladder: list[int], more: dict[str, BaseDistribution]
) -> None:
    study = empty_study()
    study.sampler = sampler_of("auto", 3)
    drawn = []
    for _ in range(len(ladder) + 1):
        trial = study.ask({"width": widths, "rate": UNIT, **more})
        study.tell(trial, [trial.params["rate"], trial.params["width"]])
        drawn.append(trial.params)
    assert [params["width"] for params in drawn[:-1]] == ladder
    assert [params["rate"] == 0.5 for params in drawn] == [True] * len(ladder) + [False]
    assert {params.get("choice", "tanh") for params in drawn[:-1]} <= {"tanh"}


class Told(RandomSampler):
    """Keeps what it is told."""

    def __init__(self, seed: int, told: list[tuple[Any, ...]]) -> None:
        super().__init__(seed)
        self.told = told

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.told.append(("before", trial.number))

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.told.append(("after", trial.number, state, values, trial.params))


def test_a_sampler_is_told_of_configurations_and_of_no_other_rung() -> None:
    told: list[tuple[Any, ...]] = []
    study = empty_study()
    (drawn,) = go_on(study, lambda seed: Told(seed, told), 1)
    study.enqueue_trial({**study.trials[0].params, DENDRITES: 1}, user_attrs={PARENT: 0, CONFIGURATION: 0})
    rung = study.ask()
    assert configuration(rung) == drawn
    study.tell(rung, outcome(drawn))
    assert told == [("before", 0), ("after", 0, TrialState.COMPLETE, outcome(drawn), drawn)]


@pytest.mark.parametrize("one", [RandomSampler(seed=1), TPESampler(seed=1), NSGAIISampler(seed=1, population_size=5)])
def test_optunas_samplers_may_be_used_as_they_are(one: BaseSampler) -> None:
    # Made from one setup, but each worker's draws are its own; the user's object is not touched.
    firsts = [go_on(empty_study(), one, 15) for _ in range(2)]
    assert firsts[0] != firsts[1]
    untouched = RandomSampler(seed=1)
    sampler_of(untouched, 0).sample_independent(empty_study(), trial_of(0), "a", UNIT)
    once = RandomSampler(seed=1).sample_independent(empty_study(), trial_of(0), "a", UNIT)
    assert untouched.sample_independent(empty_study(), trial_of(0), "a", UNIT) == once


def test_a_factory_makes_a_sampler_for_each_key() -> None:
    def make(seed: int) -> BaseSampler:
        return TPESampler(seed=seed, n_startup_trials=5)

    assert go_on(empty_study(), make, 12) == go_on(empty_study(), make, 12)


@pytest.mark.parametrize("which", ["TPE", "", "bayes"])
def test_unknown_names_are_refused(which: str) -> None:
    with pytest.raises(SettingsError, match=rf"no sampler '{which}': available are auto, tpe, nsga2, gp, random"):
        sampler_of(which, 0)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("make", [BruteForceSampler, lambda: GridSampler({"width": [2, 4]})])
def test_samplers_that_count_the_points_of_a_grid_are_refused(make: Callable[[], BaseSampler]) -> None:
    one = make()
    for which in (one, lambda seed: one):
        with pytest.raises(SettingsError, match=f"A {type(one).__name__} stops a study when each of its points"):
            sampler_of(which, 0)


def test_what_is_no_sampler_is_refused() -> None:
    with pytest.raises(SettingsError, match="is neither the name of a sampler"):
        sampler_of(5, 0)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="makes a str, not an Optuna sampler"):
        sampler_of(lambda seed: "tpe", 0)  # type: ignore[arg-type, return-value]
