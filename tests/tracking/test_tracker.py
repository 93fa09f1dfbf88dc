import contextlib
import hashlib
import json
import socket
import sqlite3
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Literal

import mlflow
import pytest
from mlflow.entities import Run, ViewType

from pbp_search.errors import InputError, StorageError
from pbp_search.home import Home, StudyFolder
from pbp_search.tracking import Tracker
from pbp_search.training import EpochRecord, GrowthRecord
from tests.quick_studies import milestone
from tests.tracking import recording
from tests.tracking.recording import record, tracker_of


def client_of(home: Home) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(home.tracking_uri)


def runs_of(home: Home, study: str = "dots", view: int = ViewType.ACTIVE_ONLY) -> tuple[Run, dict[int, list[Run]]]:
    """The study's run, and its children by trial."""
    client = client_of(home)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], run_view_type=view)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children: dict[int, list[Run]] = {}
    for run in runs:
        if run.info.run_id != parent.info.run_id:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            children.setdefault(int(run.data.tags["pbp_search.trial"]), []).append(run)
    return parent, children


def only_run(home: Home, trial: int) -> Run:
    (run,) = runs_of(home)[1][trial]
    return run


def test_an_empty_home_gets_a_store(empty_home: Home) -> None:
    tracker_of(empty_home, "dots")
    with contextlib.closing(sqlite3.connect(empty_home.folder / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    experiment = client_of(empty_home).get_experiment_by_name("dots")
    assert experiment is not None
    assert experiment.artifact_location == (empty_home.artifacts / "dots").as_uri()


@pytest.mark.parametrize("attempt", range(3))
def test_two_processes_open_an_empty_home_at_once(empty_home: Home, processes: ForkServerContext, attempt: int) -> None:
    barrier = processes.Barrier(2)
    both = [
        processes.Process(target=recording.open_and_record, args=(empty_home.folder, "dots", barrier, [0, mine]))
        for mine in (1, 2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    with contextlib.closing(sqlite3.connect(empty_home.folder / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert {trial: len(runs) for trial, runs in runs_of(empty_home)[1].items()} == {0: 1, 1: 1, 2: 1}
    assert tracker_of(empty_home, "dots").recorded() == {0, 1, 2}


def test_two_processes_record_the_same_trials(home: Home, processes: ForkServerContext) -> None:
    barrier = processes.Barrier(2)
    numbers = list(range(6))
    both = [
        processes.Process(target=recording.open_and_record, args=(home.folder, "dots", barrier, order))
        for order in (numbers, numbers[::-1])
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    children = runs_of(home, view=ViewType.ALL)[1]
    assert {trial: len(runs) for trial, runs in children.items()} == dict.fromkeys(numbers, 1)
    assert {runs[0].info.status for runs in children.values()} == {"FINISHED"}


def test_a_trial_is_recorded_once(home: Home) -> None:
    tracker = tracker_of(home, "dots")
    for _ in range(2):
        tracker.log_trial(record(3))
        tracker_of(home, "dots").log_trial(record(3, milestone=milestone(0.1, 5)))
    assert only_run(home, 3).data.metrics["score"] == 0.53
    assert tracker.recorded() == {3}


def test_a_run_holds_what_the_trial_is(home: Home) -> None:
    growth = GrowthRecord(module="0", generation=1, attempt=0, score=0.25, floor=0.125, noise=0.01, above_floor=True)
    reached = milestone(0.75, 40, dendrites=1, requested=1, train_score=0.8, growth=(growth,))
    tracker_of(home, "dots").log_trial(record(7, milestone=reached))
    run = only_run(home, 7)
    assert run.info.run_name == "trial 7"
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, 1_700_000_005_000)
    assert run.data.params == {"width": "2", "learning_rate": "0.01", "schedule": "fixed"}
    assert run.data.metrics == {
        "train_loss": 0.5,
        "validation_score": 0.5001,
        "score": 0.75,
        "train_score": 0.8,
        "parameters": 40,
        "weight_bytes": 160,
        "macs": 120,
        "dendrites_achieved": 1,
        "epochs": 2,
        "seconds": 0.25,
        "growth/0/try_0/score": 0.25,
        "growth/0/try_0/floor": 0.125,
    }
    assert "failure" not in run.data.tags
    history = client_of(home).get_metric_history(run.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5)]


ODD_NAMES = {
    "block(1)": "block_1_",
    "conv[3x3]@left": "conv_3x3__left",
    "weiß und schwarz": "weiß und schwarz",
    "a+b=c": "a_b_c",
    "two\nlines": "two_lines",
    "quote'\"": "quote__",
    "stage.0/inner:x-y_z": "stage.0/inner:x-y_z",
    "\U0001f600": "_",
}


@pytest.mark.parametrize("module", ODD_NAMES)
def test_modules_of_any_name_are_recorded(home: Home, module: str) -> None:
    growth = GrowthRecord(module=module, generation=1, attempt=2, score=0.25, floor=0.125, noise=0.01, above_floor=True)
    epochs = tuple(
        EpochRecord(phase="dendrite", generation=1, attempt=2, epoch=epoch, values={f"correlation/{module}": epoch / 8})
        for epoch in range(3)
    )
    reached = milestone(0.75, 40, dendrites=1, requested=1, growth=(growth,))
    tracker_of(home, "dots").log_trial(record(0, milestone=reached, history=epochs))
    run = only_run(home, 0)
    assert run.info.status == "FINISHED"
    allowed = ODD_NAMES[module]
    assert run.data.metrics[f"growth/{allowed}/try_2/score"] == 0.25
    assert run.data.metrics[f"growth/{allowed}/try_2/floor"] == 0.125
    history = client_of(home).get_metric_history(run.info.run_id, f"correlation/{allowed}")
    assert [point.value for point in history] == [0, 0.125, 0.25]
    (file,) = home.artifacts.rglob("milestone.json")
    assert json.loads(file.read_text())["growth"][0]["module"] == module


NO_PATHS = {
    "a//b": "growth/a/b/try_0/score",
    "/a": "growth/a/try_0/score",
    "a/": "growth/a/try_0/score",
    "x." * 150 + "y": "growth/"
    + "x." * 113
    + "_"
    + hashlib.blake2b(b"growth/" + b"x." * 150 + b"y/try_0/score", digest_size=8).hexdigest(),
}


@pytest.mark.parametrize("module", NO_PATHS)
def test_modules_whose_names_are_no_paths_are_recorded(home: Home, module: str) -> None:
    growth = GrowthRecord(module=module, generation=1, attempt=0, score=0.25, floor=0.125, noise=0.01, above_floor=True)
    tracker_of(home, "dots").log_trial(record(0, milestone=milestone(growth=(growth,))))
    assert only_run(home, 0).data.metrics[NO_PATHS[module]] == 0.25


def test_the_milestone_is_an_artifact_in_the_home(home: Home) -> None:
    tracker_of(home, "dots").log_trial(record(7))
    run = only_run(home, 7)
    assert [file.path for file in client_of(home).list_artifacts(run.info.run_id)] == ["milestone.json"]
    (file,) = home.artifacts.rglob("milestone.json")
    assert json.loads(file.read_text()) == record(7).milestone.to_dict()  # type: ignore[union-attr]
    assert run.info.run_id in file.parts


def test_a_failed_trial_keeps_its_reason(home: Home) -> None:
    tracker = tracker_of(home, "dots")
    tracker.log_trial(record(1, milestone=None, failure="The training loss became nan.", history=()))
    tracker.log_trial(record(2, milestone=None, failure="long " * 5000, history=()))
    run = only_run(home, 1)
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "The training loss became nan."
    assert run.data.metrics == {}
    assert client_of(home).list_artifacts(run.info.run_id) == []
    assert only_run(home, 2).data.tags["failure"].startswith("long long")
    assert tracker.recorded() == {1, 2}


def test_long_histories_are_kept_whole(home: Home) -> None:
    tracker_of(home, "dots").log_trial(record(0, epochs=1203))
    run = only_run(home, 0)
    for name in ("train_loss", "validation_score"):
        points = client_of(home).get_metric_history(run.info.run_id, name)
        assert sorted(point.step for point in points) == list(range(1203))
    assert run.data.metrics["validation_score"] == 0.5 + 1202 / 10_000
    assert run.data.metrics["score"] == 0.5


def test_a_half_written_run_is_written_anew(home: Home) -> None:
    tracker = tracker_of(home, "dots")
    tracker.log_trial(record(0))
    parent, _ = runs_of(home)
    client = client_of(home)
    tags = {"mlflow.parentRunId": parent.info.run_id, "pbp_search.trial": "4"}
    half = client.create_run(parent.info.experiment_id, tags=tags)
    client.log_metric(half.info.run_id, "score", -1.0)
    assert tracker.recorded() == {0}
    tracker.log_trial(record(4))
    run = only_run(home, 4)
    assert run.info.run_id != half.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.metrics["score"] == 0.54
    assert tracker.recorded() == {0, 4}


def test_many_trials_are_all_seen(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = tracker_of(home, "dots")
    for number in range(5):
        tracker.log_trial(record(number, epochs=0))
    search_runs = mlflow.MlflowClient.search_runs

    def small_pages(self: mlflow.MlflowClient, *arguments: object, **options: object) -> object:
        return search_runs(self, *arguments, **{**options, "max_results": 2})  # type: ignore[arg-type]

    monkeypatch.setattr(mlflow.MlflowClient, "search_runs", small_pages)
    assert tracker.recorded() == set(range(5))


def test_only_missing_trials_are_written(home: Home) -> None:
    tracker = tracker_of(home, "dots")
    tracker.log_trial(record(1))
    for number in range(3):
        tracker.log_trial(record(number))
    assert {trial: len(runs) for trial, runs in runs_of(home)[1].items()} == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("status", ["FINISHED", "KILLED", "FAILED"])
def test_the_studys_run_tells_how_it_is(home: Home, status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
    for _ in range(2):  # a study may be gone on with
        tracker = tracker_of(home, "dots")
        tracker.begin({"task": "dots", "seed": 3})
        assert runs_of(home)[0].info.status == "RUNNING"
        tracker.end(status, {"trials": 5.0, "front_size": 2.0})
        run, _ = runs_of(home)
        assert run.info.status == status
        assert run.info.run_name == "dots"
        assert run.data.params == {"task": "dots", "seed": "3"}
        assert run.data.metrics == {"trials": 5.0, "front_size": 2.0}


def test_studies_have_experiments_of_their_own(home: Home) -> None:
    tracker_of(home, "dots").log_trial(record(0))
    other = tracker_of(home, "other")
    assert other.recorded() == set()
    other.log_trial(record(1))
    assert tracker_of(home, "dots").recorded() == {0}


def test_files_are_stored_on_the_studys_run(home: Home, tmp_path: Path) -> None:
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "front.csv").write_text("trial\n")
    tracker_of(home, "dots").log_files(tmp_path / "front")
    run, _ = runs_of(home)
    assert [file.path for file in client_of(home).list_artifacts(run.info.run_id)] == ["front.csv"]


def test_a_study_can_be_renamed(home: Home) -> None:
    tracker = tracker_of(home, "dots")
    tracker.log_trial(record(0))
    tracker.rename("dots-old")
    assert runs_of(home, "dots-old")[0].info.run_name == "dots-old"
    # It is found by its folder, whatever the name; another study of the old name begins with nothing.
    for name in ("dots-old", "dots"):
        assert Tracker(StudyFolder(home, "dots"), name).recorded() == {0}
    assert Tracker(StudyFolder(home, "dots-2").create(), "dots").recorded() == set()
    assert client_of(home).get_experiment_by_name("dots") is not None


def test_a_name_that_another_experiment_has(home: Home) -> None:
    client = client_of(home)
    client.create_experiment("dots")
    tracker = Tracker(StudyFolder(home, "dots-1a2b3c4d").create(), "dots")
    tracker.log_trial(record(0))
    assert len(runs_of(home, "dots-1a2b3c4d")[1]) == 1
    theirs = client.get_experiment_by_name("dots")
    assert theirs is not None
    assert client.search_runs([theirs.experiment_id]) == []


def test_a_deleted_run_of_a_study_comes_back(home: Home) -> None:
    tracker_of(home, "dots").log_trial(record(0))
    parent, _ = runs_of(home)
    client_of(home).delete_run(parent.info.run_id)
    tracker = tracker_of(home, "dots")
    tracker.log_trial(record(0))
    tracker.log_trial(record(1))
    again, children = runs_of(home)
    assert again.info.run_id == parent.info.run_id
    assert {trial: len(runs) for trial, runs in children.items()} == {0: 1, 1: 1}


def test_a_deleted_experiment_is_named_with_what_helps(home: Home) -> None:
    tracker_of(home, "dots")
    client = client_of(home)
    experiment = client.get_experiment_by_name("dots")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(StorageError) as caught:
        tracker_of(home, "dots")
    assert str(caught.value) == (
        "The MLflow experiment 'dots' has been deleted: restore it "
        f"(mlflow experiments restore --experiment-id {experiment.experiment_id}) or use another study name."
    )


def test_foreign_databases_are_refused_and_left_alone(empty_home: Home, tmp_path: Path) -> None:
    file = tmp_path / "recipes.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.commit()
    before = file.read_bytes()
    with pytest.raises(StorageError, match=r"^The tracking store sqlite:///.* is another program's database"):
        tracker_of(empty_home, "dots", f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_optunas_storage_is_no_tracking_store(home: Home) -> None:
    with pytest.raises(StorageError, match="is another program's database"):
        tracker_of(home, "dots", home.storage_url)


def test_a_store_of_another_version_names_the_command_that_helps(home: Home) -> None:
    with contextlib.closing(sqlite3.connect(home.folder / "mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        connection.commit()
    with pytest.raises(StorageError) as caught:
        tracker_of(home, "dots")
    assert "another version of MLflow" in str(caught.value)
    assert f"mlflow db upgrade {home.tracking_uri}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("./mlruns", "The tracking store is not a database URL"),
        ("databricks", "The tracking store is not a database URL"),
        ("sqlite://", "A tracking store in memory is lost"),
        ("file:///tmp/mlruns", "The tracking store file:///tmp/mlruns cannot be opened"),
        ("sqlite:////no/such/folder/anywhere/file.db", "cannot be opened: there is no folder"),
    ],
)
def test_uris_that_cannot_be_used(empty_home: Home, uri: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        tracker_of(empty_home, "dots", uri)
    assert "\n" not in str(caught.value)


def test_a_text_file_is_no_store(empty_home: Home, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Not a database, but a text of some length, longer than the header of one would be.\n" * 20)
    before = file.read_bytes()
    with pytest.raises(StorageError, match="cannot be opened: file is not a database"):
        tracker_of(empty_home, "dots", f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_a_server_that_is_not_there_is_a_sentence(empty_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(StorageError, match=r"^The tracking server cannot be reached") as caught:
        tracker_of(empty_home, "dots", f"http://user:hunter2@127.0.0.1:{port}")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
