"""Keeping a study under a dated name, so that a new one can take its name."""

import shutil
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pbp_search.errors import StorageError, StudyError
from pbp_search.home import Home
from pbp_search.search import Study, list_studies
from pbp_search.search.claims import Claims
from pbp_search.search.setup import Setup
from pbp_search.search.storage import open_storage
from pbp_search.search.worker import Worker
from pbp_search.tracking import Tracker
from tests.quick_studies import Dots, fill, milestone, quick_study, recorded, story
from tests.search import crashing
from tests.search.faulty import assert_nothing_lost


@pytest.fixture
def archived(home: Home) -> tuple[Study, str, list[dict[str, Any]]]:
    study = quick_study(home)
    study.run(Dots(), 4)
    before = story(study)
    return study, study.archive(), before


def test_an_archived_study_keeps_everything(archived: tuple[Study, str, list[dict[str, Any]]], home: Home) -> None:
    _, dated, before = archived
    assert dated.startswith("dots-2")
    old = Study.load(dated, home)
    assert [found.name for found in list_studies(home)] == [dated]
    assert story(old) == before
    assert old.definition.seed == 8
    for rung in old.rungs():
        assert old.checkpoint(rung.trial).milestone == rung.milestone
    assert recorded(home, dated) == set(range(4))


def test_a_new_study_takes_the_name(archived: tuple[Study, str, list[dict[str, Any]]], home: Home) -> None:
    _, dated, before = archived
    study = quick_study(home, seed=5)
    assert study.finished() == []
    study.run(Dots(), 2)
    assert recorded(home, "dots") == {0, 1}
    assert recorded(home, dated) == set(range(4))
    assert story(Study.load(dated, home)) == before
    # The old one can be gone on with, and adds to its own record.
    old = Study.load(dated, home)
    old.run(Dots(), 5)
    assert story(old)[:4] == before
    assert recorded(home, dated) == set(range(5))
    assert len(old.checkpoint(4).weights) > 0


def test_a_running_study_is_not_archived(home: Home) -> None:
    study = quick_study(home)
    storage = open_storage(home)
    claims = Claims(study.folder, study._optuna, storage)
    trial = storage.get_trial(storage.create_new_trial(study._optuna._study_id))
    with claims.deciding():
        claim = claims.take(trial)
    with pytest.raises(StudyError, match=r"is running \(trial 0\)"):
        study.archive()
    claim.end()
    assert [found.name for found in list_studies(home)] == ["dots"]


def test_archiving_twice_in_a_second(home: Home) -> None:
    names = set()
    for _ in range(3):
        study = fill(quick_study(home), [milestone()])
        names.add(study.archive())
    assert len(names) == 3
    assert {found.name for found in list_studies(home)} == names
    assert all(len(found.finished()) == 1 for found in list_studies(home))


def test_a_study_of_the_longest_name_can_be_archived(home: Home) -> None:
    study = fill(quick_study(home, name="x" * 100), [milestone()])
    dated = study.archive()
    assert [found.name for found in list_studies(home)] == [dated]
    assert len(Study.load(dated, home).finished()) == 1


def test_a_tracking_store_that_cannot_be_opened_stops_archiving_before_it_begins(home: Home) -> None:
    study = quick_study(home)
    study.run(Dots(), 2)
    (home.folder / "notes.txt").write_text("A text that is no database. " * 100)
    with pytest.raises(StorageError):
        study.archive(f"sqlite:///{home.folder}/notes.txt")
    assert [found.name for found in list_studies(home)] == ["dots"]
    assert len(Study.load("dots", home).finished()) == 2
    assert len(list(study.folder.milestones.iterdir())) == 2
    assert recorded(home, "dots") == {0, 1}


@pytest.mark.parametrize("step", ["status", "recorded", "end"])
def test_what_fails_before_the_renaming_is_done_again(home: Home, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    study = quick_study(home)
    study.run(Dots(), 2)
    tracker = Tracker(study.folder, study.name)
    tracker.begin({})  # as of a process that was killed

    def fails(*_: object) -> None:
        raise StorageError("MLflow is away.")

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, step, fails)
        with pytest.raises(StorageError, match="MLflow is away"):
            study.archive()
    assert [found.name for found in list_studies(home)] == ["dots"]
    assert study.archive().startswith("dots-2")
    assert tracker.status() == "KILLED"


def test_another_tracking_store_does_not_get_the_study_that_is_archived(home: Home, tmp_path: Path) -> None:
    study = quick_study(home)
    study.run(Dots(), 2)
    other = f"sqlite:///{tmp_path}/other.db"
    study.archive(other)
    assert Tracker(study.folder, study.name, other).status() is None
    assert Tracker(study.folder, study.name).status() == "FINISHED"


class DiesError(BaseException):
    """Stands for a signal that ends the process: nothing catches it."""


def test_a_process_that_dies_after_the_renaming_leaves_both_studies_whole(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = quick_study(home)
    study.run(Dots(), 4)
    before, milestones = story(study), sorted(study.folder.milestones.iterdir())

    def die(*_: object) -> None:
        raise DiesError

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "rename", die)
        with pytest.raises(DiesError):
            study.archive()

    (old,) = list_studies(home)
    assert old.name.startswith("dots-2")
    assert story(old) == before
    assert sorted(old.folder.milestones.iterdir()) == milestones
    assert [old.checkpoint(trial).milestone for trial in range(4)] == [rung.milestone for rung in old.rungs()]

    new = quick_study(home, seed=5)
    assert new.finished() == []
    assert new.folder != old.folder
    new.run(Dots(), 2)
    assert recorded(home, "dots") == {0, 1}
    assert recorded(home, old.name) == set(range(4))

    old.run(Dots(), 5)
    assert story(old)[:4] == before
    assert recorded(home, old.name) == set(range(5))
    assert recorded(home, "dots") == {0, 1}
    # Each has an experiment of its own.
    experiments = mlflow.MlflowClient(home.tracking_uri).search_experiments()
    assert len(experiments) == 3, "the default one of MLflow, the old study's and the new one's"


def test_after_archiving_the_new_study_changes_between_tracking_stores(home: Home, stores: Path) -> None:
    other = f"sqlite:///{shutil.copy(stores / 'mlflow.db', home.folder / 'other.db')}"
    first = quick_study(home)
    first.run(Dots(), 2)
    dated = first.archive()
    new = quick_study(home, seed=5)
    new.run(Dots(), 1, tracking_uri=other)
    assert recorded(home, "dots", other) == {0}
    assert recorded(home, "dots") == set()
    new.run(Dots(), 3)
    assert recorded(home, "dots") == {0, 1, 2}
    assert recorded(home, "dots", other) == {0}
    new.run(Dots(), 3, tracking_uri=other)
    assert recorded(home, "dots", other) == {0, 1, 2}
    assert recorded(home, dated) == {0, 1}
    assert recorded(home, dated, other) == set()


@pytest.mark.slow
def test_what_a_killed_process_left_is_put_in_order(home: Home, processes: ForkServerContext) -> None:
    # Right before the end of the second trial's run in MLflow is written.
    process = processes.Process(target=crashing.run_and_die_before, args=(home.folder, 7, "ended", 2))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    study = quick_study(home)
    open_storage(home).create_new_trial(study._optuna._study_id)  # and right after a trial was made
    client = mlflow.MlflowClient(home.tracking_uri)
    experiment = client.get_experiment_by_name("dots")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])].count("RUNNING") == 2
    assert recorded(home, "dots") == {0}

    old = Study.load(study.archive(), home)
    assert [trial.state.name for trial in old._trials()] == ["COMPLETE", "COMPLETE", "WAITING"]
    assert not any("restarts" in trial.user_attrs for trial in old._trials())
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags.get("pbp_search.trial"): run.info.status for run in runs} == {
        None: "KILLED",
        "0": "FINISHED",
        "1": "FINISHED",
    }
    assert len(runs) == 3
    (run,) = (run for run in runs if "pbp_search.trial" not in run.data.tags)
    assert run.data.metrics["trials"] == 2
    old.run(Dots(), 4)
    assert_nothing_lost(home, old)


def test_a_study_that_has_ended_stays_what_it_was(
    archived: tuple[Study, str, list[dict[str, Any]]], home: Home
) -> None:
    client = mlflow.MlflowClient(home.tracking_uri)
    experiment = client.get_experiment_by_name(archived[1])
    assert experiment is not None
    assert {run.info.status for run in client.search_runs([experiment.experiment_id])} == {"FINISHED"}


def test_nobody_takes_part_in_another_study_of_the_name(home: Home) -> None:
    study, same = quick_study(home), quick_study(home)
    setup = Setup(study.folder, "dots", None, None, Dots(), study.definition.space, 8, "cpu", "parameters", None)
    study.archive()
    gone = r"The study 'dots' has been kept under a dated name meanwhile \(--fresh\): the same command"
    for _ in range(2):  # the second time there is a new one
        with pytest.raises(StudyError, match=gone):
            Worker(setup)
        with pytest.raises(StudyError, match=gone):
            study.run(Dots(), 1)
        with pytest.raises(StudyError, match=gone):
            same.archive()
        new = quick_study(home)
    assert new.finished() == []
    assert len(list_studies(home)) == 2
    new.run(Dots(), 1)
