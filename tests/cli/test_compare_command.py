"""``pbp-search compare`` on a task where dendrites must help: squares, by networks that are linear without them."""

import json
from pathlib import Path

import pytest

from pbp_search.cli.compare import show, train
from pbp_search.compare import picks_of, plans_of
from pbp_search.compare.arms import best_settings
from pbp_search.errors import PbpSearchError, StudyError
from pbp_search.home import Home
from pbp_search.search import Study
from tests.quick_studies import Dots, quick_space, quick_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = quick_study(Home.at(tmp_path_factory.mktemp("home")))
    study.run(Dots(), 24)
    return study


def test_without_dendrites_there_is_nothing_to_compare(home: Home) -> None:
    study = quick_study(home)
    study.run(Dots(), 1)
    with pytest.raises(StudyError, match="has no network with dendrites yet"):
        plans_of(study, Dots(), Dots().data(), 4)


def test_all_arms_are_paired_and_have_as_many_starts_as_trainings(study: Study) -> None:
    study.plan(plans_of(study, Dots(), Dots().data(), 4))
    plans = list(study.planned(3))
    assert {plan.arm for plan in plans} == {"dendritic", "sham", "gradient", "random", "plain", "pruned", "linear"}
    for replicate in range(3):
        first = {plan.config.seed for plan in plans if plan.replicate == replicate and plan.start == 0}
        assert len(first) == 1
    most = max(pick.milestone.dendrites for pick in picks_of(study, 4))
    assert {plan.start for plan in plans if plan.arm == "plain"} == set(range(1 + most))
    sizes = sorted(pick.milestone.parameters for pick in picks_of(study, 4))
    widths = {plan.config.width for plan in plans if plan.arm == "plain"}
    assert min(widths) * 5 + 2 <= sizes[0] <= sizes[-1] <= max(widths) * 5 + 2


def test_settings_are_those_of_the_front_of_about_that_size(study: Study) -> None:
    plain = [rung for rung in study.rungs() if rung.parent is None]
    best = best_settings(plain, 12, "maximize")
    smaller = [rung for rung in plain if rung.milestone.parameters <= best[0].milestone.parameters]
    assert best[0].milestone.score == max(rung.milestone.score for rung in smaller)


@pytest.mark.slow
def test_dendrites_help_where_they_must(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    enough = quick_space(width=2, schedule="fixed", neuron_epochs=(20, 30), dendrite_epochs=(16, 32), dendrites=1)
    study = quick_study(home, space=enough)
    study.run(Dots(), 12)
    results = train(study, Dots(), 5, workers=2, quiet=True)
    assert {row.replicate for row in results.rows} == set(range(5))
    before = len(study.finished())
    assert show(study, results) == 0
    printed = capsys.readouterr().out
    assert "plain, wider" in printed
    folder = study.folder.path / "comparison"
    assert str(folder) in printed
    (parameters, size_in_bytes) = json.loads((folder / "verdict.json").read_text())
    assert (parameters["kind"], size_in_bytes["kind"]) == ("parameters", "weight_bytes")
    assert "help" in {one["against"]["plain"]["dendrites"] for one in parameters["at"] if "plain" in one["against"]}
    assert Path(folder / "parameters.png").read_bytes()[:4] == b"\x89PNG"
    again = train(study, Dots(), 5, quiet=True)
    assert again == results
    assert len(study.finished()) == before


@pytest.mark.slow
def test_a_budget_that_is_too_small_says_so_and_the_same_command_goes_on(home: Home) -> None:
    study = quick_study(home, space=quick_space(width=2, dendrites=1))
    study.run(Dots(), 12)
    with pytest.raises(PbpSearchError, match="of 2 seeds of the comparison are complete, and two are needed"):
        train(study, Dots(), 2, budget=0.05, quiet=True)
    assert {row.replicate for row in train(study, Dots(), 2, quiet=True).rows} == {0, 1}
