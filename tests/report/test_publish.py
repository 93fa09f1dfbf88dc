import csv
import io
import json
import shutil
from pathlib import Path

import mlflow
import pytest
from rich.console import Console

from pbp_search.home import Home
from pbp_search.report import front_csv, front_json, front_table, publish_front, write_front
from pbp_search.search import Study
from pbp_search.training import Size
from tests.quick_studies import Dots, fill, milestone, quick_config
from tests.training.tiny_tasks import Bowl

COLUMNS = ["trial", "width", "dendrites", "pruned", "parameters", "weight_bytes", "macs"]
COLUMNS += ["score", "train_score", "epochs", "seconds"]


def wide(width: int) -> dict[str, object]:
    return {"config": quick_config(width=width)}


MILESTONES = [
    milestone(0.5, 12, train_score=0.55, **wide(1)),
    milestone(0.1 + 0.2, 5000, **wide(64)),  # dominated
    milestone(2 / 3, 1234, dendrites=1, requested=1, seconds=61.98765, epochs=1500, **wide(2)),
    milestone(0.96789, 123456, dendrites=3, requested=3, train_score=1.0, seconds=3600.0, **wide(64)),
]


@pytest.fixture
def study(home: Home) -> Study:
    return fill(Study.create(Dots(), home=home), MILESTONES)


@pytest.fixture
def empty(home: Home) -> Study:
    return Study.create(Dots(), home=home)


def test_json_rows_are_the_front_smallest_first(study: Study) -> None:
    rows = json.loads(front_json(study.front()))
    assert [list(row) for row in rows] == [COLUMNS] * 3
    assert [row["trial"] for row in rows] == [0, 2, 3]
    assert rows[1] == {
        "trial": 2,
        "width": 2,
        "dendrites": 1,
        "pruned": 0,
        "parameters": 1234,
        "weight_bytes": 4936,
        "macs": 3702,
        "score": 2 / 3,
        "train_score": 2 / 3,
        "epochs": 1500,
        "seconds": 61.988,
    }


def test_csv_and_json_agree(study: Study) -> None:
    text = front_csv(study.front())
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert "\r" not in text
    rows = [{name: json.loads(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(text))]
    assert rows == json.loads(front_json(study.front()))


def test_a_front_without_points(empty: Study, tmp_path: Path) -> None:
    assert json.loads(front_json(empty.front())) == []
    assert front_csv(empty.front()).split() == [",".join(COLUMNS)]
    assert front_table(empty).row_count == 0
    write_front(empty, tmp_path / "front")
    assert len(list((tmp_path / "front").iterdir())) == 4


def shown(study: Study, width: int) -> str:
    written = io.StringIO()
    Console(file=written, width=width, force_terminal=False).print(front_table(study))
    return written.getvalue()


def test_the_table_shows_all_of_it_on_80_columns(study: Study) -> None:
    text = shown(study, 80)
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert text.startswith("Front of dots: 3 of 4 networks (validation fit)")
    assert lines[1] == [
        "trial",
        "width",
        "dendrites",
        "parameters",
        "bytes",
        "macs",
        "score",
        "train",
        "epochs",
        "seconds",
    ]
    rows = [line for line in lines if line[0].isdigit()]
    assert rows == [
        ["0", "1", "0", "12", "48", "36", "0.5000", "0.5500", "2", "0.2"],
        ["2", "2", "1", "1,234", "4,936", "3,702", "0.6667", "0.6667", "1,500", "62.0"],
        ["3", "64", "3", "123,456", "493,824", "370,368", "0.9679", "1.0000", "2", "3600.0"],
    ]
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_minimised_metric(home: Home) -> None:
    study = fill(Study.create(Bowl(), home=home), MILESTONES)
    assert [row["trial"] for row in json.loads(front_json(study.front()))] == [0, 1]
    assert "2 of 4 networks (validation error)" in shown(study, 80)


def test_the_size_of_a_study_decides_its_front(home: Home) -> None:
    milestones = [milestone(0.5, 12, macs=90), milestone(0.6, 20, macs=80, weight_bytes=7)]
    fronts: dict[Size, list[int]] = {"parameters": [0, 1], "weight_bytes": [1], "macs": [1]}
    for size, trials in fronts.items():
        study = fill(Study.create(Dots(), size, home, size=size), milestones)
        assert [row["trial"] for row in json.loads(front_json(study.front()))] == trials
        assert f"{len(trials)} of 2 networks" in shown(study, 80)


def test_publishing_puts_the_files_beside_the_study_and_on_its_run(study: Study) -> None:
    folder = publish_front(study)
    names = ["front.csv", "front.html", "front.json", "front.png"]
    assert folder == study.folder.path / "front"
    assert sorted(file.name for file in folder.iterdir()) == names
    assert (folder / "front.csv").read_text() == front_csv(study.front())
    assert json.loads((folder / "front.json").read_text()) == json.loads(front_json(study.front()))
    client = mlflow.MlflowClient(study.folder.home.tracking_uri)
    experiment = client.get_experiment_by_name("dots")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == names
    (stored,) = study.folder.home.artifacts.rglob("front.png")
    assert stored.read_bytes() == (folder / "front.png").read_bytes()


def test_publishing_again_replaces_the_files(study: Study) -> None:
    publish_front(study)
    fill(study, [milestone(0.99, 11)])
    folder = publish_front(study)
    assert len(json.loads((folder / "front.json").read_text())) == 1
    (stored,) = study.folder.home.artifacts.rglob("front.json")
    assert stored.read_bytes() == (folder / "front.json").read_bytes()


def test_publishing_to_another_store(study: Study, stores: Path) -> None:
    other = shutil.copy(stores / "mlflow.db", study.folder.home.folder / "other.db")
    publish_front(study, f"sqlite:///{other}")
    assert mlflow.MlflowClient(f"sqlite:///{other}").get_experiment_by_name("dots") is not None
    assert mlflow.MlflowClient(study.folder.home.tracking_uri).get_experiment_by_name("dots") is None
