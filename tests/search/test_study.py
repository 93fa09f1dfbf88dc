import math
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from torch import Tensor

from pbp_search.errors import (
    InputError,
    NothingFitsError,
    SettingsError,
    StorageError,
    StudyError,
    TaskError,
)
from pbp_search.home import Home
from pbp_search.search import Outcome, SearchSpace, Study, list_studies
from pbp_search.search.values import Range
from pbp_search.training import Checkpoint, Direction, run_rung
from tests.quick_studies import (
    Dots,
    checkpoint_file,
    figures,
    fill,
    milestone,
    quick_space,
    quick_study,
    recorded,
    story,
    weight_bits,
)
from tests.training.tiny_tasks import Bowl

TRIALS = 7


def test_every_trial_is_one_rung(finished: Study) -> None:
    trials = finished.finished()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    rungs = finished.rungs()
    assert len(rungs) == TRIALS
    assert {rung.parent is None for rung in rungs} == {True, False}, "a study without promotions tests nothing"
    assert max(rung.milestone.dendrites for rung in rungs) > 0
    for rung, trial in zip(rungs, trials, strict=True):
        assert trial.values == [rung.milestone.score, math.log10(rung.milestone.parameters)]
        assert trial.params["dendrites"] == rung.milestone.requested
        assert trial.params["width"] == rung.milestone.config.width
        assert trial.params["learning_rate"] == rung.milestone.config.learning_rate
        assert trial.params["schedule"] == rung.milestone.config.schedule.neuron.kind
        assert rung.params == trial.params


def test_promoted_rungs_go_on_from_their_parents(finished: Study) -> None:
    rungs = finished.rungs()
    parents = [rung.parent for rung in rungs if rung.parent is not None]
    assert len(parents) == len(set(parents))
    for rung in rungs:
        if rung.parent is None:
            assert rung.milestone.requested == 0
            continue
        parent = rungs[rung.parent]
        assert rung.parent < rung.trial
        assert parent.milestone.accepted
        assert rung.milestone.requested == parent.milestone.dendrites + 1
        assert rung.milestone.config == parent.milestone.config
        assert {**rung.params, "dendrites": 0} == {**parent.params, "dendrites": 0}
        assert rung.milestone.epochs > parent.milestone.epochs
        assert rung.milestone.seconds > parent.milestone.seconds


def test_a_rung_is_what_the_training_core_makes_of_it(finished: Study) -> None:
    chains: dict[int | None, Checkpoint | None] = {None: None}
    for rung in finished.rungs():
        expected = chains[rung.trial] = run_rung(Dots(), rung.milestone.config, chains[rung.parent])
        assert figures(rung.milestone) == figures(expected.milestone)
        if checkpoint_file(finished, rung.trial).exists():
            kept = finished.checkpoint(rung.trial)
            assert weight_bits(kept) == weight_bits(expected)
            assert kept.history == expected.history
            assert kept.milestone == rung.milestone


def test_what_is_needed_again_is_kept_and_nothing_else(finished: Study) -> None:
    continued = {rung.parent for rung in finished.rungs()}
    front = {point.payload.trial for point in finished.front()}
    for rung in finished.rungs():
        grows = rung.milestone.accepted and rung.milestone.dendrites < finished.definition.space.dendrites
        needed = rung.trial in front or (grows and rung.trial not in continued)
        assert checkpoint_file(finished, rung.trial).exists() == needed
    kept = {file.name for file in finished.folder.milestones.iterdir()}
    assert kept <= {rung.checkpoint for rung in finished.rungs()}
    assert not list(finished.folder.incoming.iterdir())


def test_configurations_have_seeds_of_their_own(finished: Study) -> None:
    seeds = [rung.milestone.config.seed for rung in finished.rungs() if rung.parent is None]
    assert len(seeds) > 2
    assert len(set(seeds)) == len(seeds)


def test_every_trial_is_recorded_once(finished: Study) -> None:
    assert recorded(finished.folder.home, finished.name) == set(range(TRIALS))


def test_the_front_is_that_of_its_rungs(finished: Study) -> None:
    front = finished.front()
    best = max(rung.milestone.score for rung in finished.rungs())
    assert front.best().score == best
    assert {point.payload.trial for point in front} <= set(range(TRIALS))
    loaded = Study.load(finished.name, finished.folder.home)
    assert loaded.definition == finished.definition
    assert list(loaded.front()) == list(front)


def test_the_same_seed_is_the_same_study(finished: Study, home: Home) -> None:
    study = quick_study(home)
    study.run(Dots(), TRIALS)
    assert story(study) == story(finished)


def test_another_seed_is_another_study(finished: Study, home: Home) -> None:
    study = quick_study(home, seed=4)
    study.run(Dots(), 2)
    assert story(study) != story(finished)[:2]  # the configurations of the ladder are the same, their networks are not
    study.run(Dots(), 3, sampler="random")
    assert study.finished()[2].params != finished.finished()[2].params


def test_going_on_equals_never_having_stopped(finished: Study, home: Home) -> None:
    for trials in (1, 4):
        quick_study(home).run(Dots(), trials)
    front = Study.load("dots", home).run(Dots(), TRIALS)
    study = Study.load("dots", home)
    assert story(study) == story(finished)
    assert [point.payload.trial for point in front] == [point.payload.trial for point in finished.front()]


def test_a_finished_study_does_nothing_more(finished: Study) -> None:
    before = story(finished)
    outcomes: list[Outcome] = []
    finished.run(Dots(), TRIALS, on_outcome=outcomes.append)
    finished.run(Dots(), 1, on_outcome=outcomes.append)
    assert outcomes == []
    assert story(finished) == before


def test_outcomes_are_told_as_they_come(home: Home) -> None:
    study = quick_study(home)
    told: list[tuple[Outcome, int]] = []
    study.run(Dots(), 3, on_outcome=lambda outcome: told.append((outcome, len(study.finished()))))
    assert [(outcome.trial, done) for outcome, done in told] == [(0, 1), (1, 2), (2, 3)]
    assert [outcome.milestone for outcome, _ in told] == [rung.milestone for rung in study.rungs()]


def test_no_rung_starts_after_the_timeout(home: Home) -> None:
    study = quick_study(home)
    assert len(study.run(Dots(), 50, timeout=1e-9)) == 0
    assert study.finished() == []


@pytest.mark.parametrize(
    "arguments",
    [{"trials": 0}, {"workers": 0}, {"threads": 0}, {"timeout": 0}, {"timeout": -1.0}, {"stagnation": 0}],
)
def test_bad_numbers_are_refused(home: Home, arguments: dict[str, Any]) -> None:
    study = quick_study(home)
    with pytest.raises(SettingsError, match="must be greater than 0"):
        study.run(Dots(), **{"trials": 1, **arguments})
    assert study.finished() == []


class Downwards(Dots):
    """The same name, another objective."""

    metric = "misses"
    direction: Direction = "minimize"


class WithOtherName(Dots):
    name = "other_dots"


@pytest.mark.parametrize(
    ("task", "arguments", "difference"),
    [
        (
            Dots(),
            {"space": quick_space(width=(1, 5))},
            "space.width: { low = 1, high = 4, log = true }, not { low = 1, high = 5, log = true }",
        ),
        (Dots(), {"space": quick_space(schedule="fixed")}, 'space.schedule: ["plateau", "fixed"], not "fixed"'),
        (Dots(), {"seed": 4}, "seed: 8, not 4"),
        (Dots(), {"seed": 0}, "seed: 8, not 0"),
        (Downwards(), {}, "metric: fit, not misses; direction: maximize, not minimize"),
        (WithOtherName(), {}, "task: dots, not other_dots"),
        (Dots(), {"size": "macs"}, "size: parameters, not macs"),
        (Dots(), {"max_parameters": 999}, "max_parameters: None, not 999"),
        (
            Dots(),
            {"max_parameters": 20},
            "max_parameters: None, not 20; "
            "space.width: { low = 1, high = 4, log = true }, not { low = 1, high = 3, log = true }",
        ),
        (Dots(), {"space": quick_space(dendrites=0), "seed": 9}, "space.dendrites: 2, not 0; seed: 8, not 9"),
    ],
)
def test_other_studies_of_the_name_are_refused(
    home: Home, task: Any, arguments: dict[str, Any], difference: str
) -> None:
    quick_study(home)
    with pytest.raises(StudyError) as caught:
        quick_study(home, task, name="dots", **arguments)
    assert str(caught.value) == (
        f"The study 'dots' exists and differs ({difference}): "
        "give the new one another name (--study), or keep the old one under a dated name (--fresh)."
    )
    assert quick_study(home).definition.to_dict() == quick_study(home).definition.to_dict()
    assert Study.load("dots", home).definition.seed == 8


def test_without_a_seed_the_studys_own_counts(home: Home) -> None:
    assert quick_study(home, seed=None).definition.seed == 0
    assert quick_study(home, name="b", seed=7).definition.seed == 7
    assert quick_study(home, name="b", seed=None).definition.seed == 7


def test_without_a_space_the_studys_own_counts(home: Home) -> None:
    quick_study(home, space=quick_space(pool=3))
    assert quick_study(home, space=None).definition.space == quick_space(pool=3)


def test_without_a_size_or_a_limit_the_studys_own_counts(home: Home) -> None:
    plain = quick_study(home).definition
    assert (plain.size, plain.max_parameters, plain.space.width) == ("parameters", None, Range(1, 4, log=True))
    limited = quick_study(home, name="b", size="macs", max_parameters=20).definition
    assert (limited.size, limited.max_parameters, limited.space.width) == ("macs", 20, Range(1, 3, log=True))
    assert quick_study(home, name="b").definition == limited
    assert Study.load("b", home)._optuna.metric_names == ["fit", "log10_macs"]


def test_a_study_that_was_made_without_a_size_has_parameters(home: Home) -> None:
    study = quick_study(home)
    kept = {name: value for name, value in study.definition.to_dict().items() if name not in ("size", "max_parameters")}
    study._optuna.set_user_attr("pbp_search", kept)
    assert Study.load("dots", home).definition == study.definition
    assert quick_study(home).definition == study.definition


def test_a_limit_below_the_smallest_network_makes_nothing(home: Home) -> None:
    with pytest.raises(InputError) as caught:
        quick_study(home, max_parameters=6)
    assert str(caught.value) == (
        "The smallest network of the task 'dots', of width 1, has 7 parameters, more than the limit of 6: "
        "raise the limit, or lower the smallest width."
    )
    assert list_studies(home) == []


def test_the_best_under_a_limit_of_parameters(home: Home) -> None:
    reached = [milestone(0.5, 12, macs=90), milestone(0.6, 20, macs=80), milestone(0.7, 30, macs=100)]
    study = fill(quick_study(home, size="macs"), reached)
    assert [study.best(limit).payload.trial for limit in (None, 29, 20)] == [2, 1, 1]
    with pytest.raises(
        NothingFitsError, match="No network has at most 19 parameters: the smallest on the front has 20"
    ):
        study.best(19)


def test_the_default_is_a_study_of_the_tasks_name(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.folder.parent)
    home.folder.rename("mlruns")
    study = Study.create(Dots())
    assert study.name == "dots"
    assert study.folder.home == Home.at("mlruns")
    assert study.definition.space == SearchSpace(width=(1, 4))
    assert [found.name for found in list_studies(Home.at("mlruns"))] == ["dots"]


def test_trials_that_were_enqueued_count_too(home: Home) -> None:
    study = quick_study(home)
    for width in (1, 2, 3):
        study._optuna.enqueue_trial({"width": width})
    study.run(Dots(), 2)
    assert [trial.params["width"] for trial in study.finished()] == [1, 2]


def test_a_bad_task_starts_nothing(home: Home) -> None:
    class Broken(Dots):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs, targets).mean()

    study = quick_study(home)
    with pytest.raises(TaskError, match="one loss per sample"):
        study.run(Broken(), 3)
    assert study.finished() == []


def test_a_minimised_study(home: Home) -> None:
    study = quick_study(home, Bowl())
    study.run(Bowl(), 6)
    assert study.definition.direction == "minimize"
    scores = [rung.milestone.score for rung in study.rungs()]
    assert study.front().best().score == min(scores)
    assert [direction.name for direction in study._optuna.directions] == ["MINIMIZE", "MINIMIZE"]


def test_a_study_without_dendrites(home: Home) -> None:
    study = quick_study(home, space=quick_space(dendrites=0))
    study.run(Dots(), 4)
    assert all(rung.parent is None and rung.milestone.dendrites == 0 for rung in study.rungs())
    assert len(study.rungs()) == 4


def test_another_tracking_store_gets_all_records(home: Home, stores: Path) -> None:
    study = quick_study(home)
    study.run(Dots(), 3)
    other = shutil.copy(stores / "mlflow.db", home.folder / "other.db")
    study.run(Dots(), 3, tracking_uri=f"sqlite:///{other}")
    assert recorded(home, "dots", f"sqlite:///{other}") == {0, 1, 2}


def test_studies_that_are_not_there(empty_home: Home, home: Home) -> None:
    quick_study(home)
    quick_study(home, name="b")
    with pytest.raises(StudyError) as caught:
        Study.load("c", home)
    assert str(caught.value) == "There is no study 'c': available are b, dots."
    with pytest.raises(StorageError, match="There is no study storage"):
        Study.load("c", Home.at(home.folder / "elsewhere"))


def test_studies_of_other_programs_are_left_alone(home: Home) -> None:
    import optuna

    quick_study(home)
    optuna.create_study(study_name="theirs", storage=home.storage_url)
    assert [study.name for study in list_studies(home)] == ["dots"]
    with pytest.raises(StudyError, match="The study 'theirs' was not made by pbp-search"):
        Study.load("theirs", home)
    with pytest.raises(StudyError, match="The study 'theirs' was not made by pbp-search"):
        quick_study(home, name="theirs")
    theirs = optuna.load_study(study_name="theirs", storage=home.storage_url)
    assert theirs.user_attrs == {}
    assert theirs.trials == []


def test_a_study_trains_no_other_task(home: Home) -> None:
    study = Study.create(Dots(), home=home)

    class Other(Dots):
        name = "other"

    with pytest.raises(StudyError, match=r"is of another task \(task: dots, not other\)"):
        study.run(Other(), 1)
    assert study.finished() == []


def test_a_study_goes_on_only_in_the_folder_of_its_milestones(home: Home, tmp_path: Path) -> None:
    study = quick_study(home)
    study.run(Dots(), 1)
    elsewhere = Study.create(
        Dots(), home=Home.at(tmp_path / "elsewhere"), space=quick_space(), seed=8, storage=home.storage_url
    )
    with pytest.raises(StudyError, match=r"The milestones of the study 'dots' are not in .*elsewhere"):
        elsewhere.run(Dots(), 2)
    assert len(study.finished()) == 1
    moved = home.folder.rename(tmp_path / "moved")
    assert len(Study.load("dots", Home.at(moved)).rungs()) == 1


def test_a_task_that_cannot_be_sent_to_workers_is_refused(home: Home) -> None:
    class Locked(Dots):
        def __init__(self) -> None:
            self.lock = threading.Lock()

    with pytest.raises(TaskError, match=r"Locked cannot be sent to worker processes .*use one worker"):
        quick_study(home).run(Locked(), 2, workers=2)


def test_an_unknown_sampler_is_refused_before_anything_runs(home: Home) -> None:
    study = quick_study(home)
    with pytest.raises(SettingsError, match="no sampler 'bayes': available are auto"):
        study.run(Dots(), 1, sampler="bayes")
    assert study.finished() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_draw_by_the_sampler_that_they_are_given(home: Home, workers: int) -> None:
    class Lowest(RandomSampler):
        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return param_distribution.to_external_repr(getattr(param_distribution, "low", 0))

    study = quick_study(home)
    study.run(Dots(), 2, workers=workers, sampler=lambda seed: Lowest(seed))
    assert {rung.milestone.config.width for rung in study.rungs()} == {1}
