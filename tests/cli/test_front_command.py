import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.tasks import load_task
from tests.cli.commands import Called

Call = Callable[..., Called]
SIZES = {"parameters", "weight_bytes", "macs"}
KEYS = SIZES | {"trial", "width", "dendrites", "pruned", "score", "train_score", "epochs", "seconds"}


def test_json(call: Call, study: Study) -> None:
    called = call("front", "own", "--format", "json")
    assert (called.code, called.err) == (0, "")
    rows = json.loads(called.out)
    assert [set(row) for row in rows] == [KEYS, KEYS]
    assert [row["score"] for row in rows] == [0.5, 0.75]
    assert [row["dendrites"] for row in rows] == [0, 2]
    assert rows == [point.payload.row() for point in study.front()]


def test_csv(call: Call, study: Study) -> None:
    called = call("front", "own", "--format", "csv")
    assert (called.code, called.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(called.out)))
    assert [set(row) for row in rows] == [KEYS, KEYS]
    assert [float(row["score"]) for row in rows] == [0.5, 0.75]
    assert not called.out.endswith("\n\n")


@pytest.mark.usefixtures("study")
def test_the_table_is_the_default(call: Call) -> None:
    called = call("front", "own")
    assert (called.code, called.err) == (0, "")
    assert called.out == call("front", "own", "--format", "table").out
    assert "Front of own: 2 of 2 networks (validation accuracy)" in called.out
    assert "0.7500" in called.out


@pytest.mark.usefixtures("study")
def test_the_task_is_not_needed(call: Call, folder: Path) -> None:
    (folder / "own.py").unlink()
    assert call("front", "own").code == 0
    assert call("studies").code == 0


def test_a_study_that_has_not_begun(call: Call, folder: Path, place: Home) -> None:
    Study.create(load_task("own.py:Own"), home=place)
    assert json.loads(call("front", "own", "--format", "json").out) == []
    assert call("front", "own", "--format", "csv").out.count("\n") == 1
    assert call("front", "own").code == 0


def test_studies_are_listed(call: Call, study: Study, place: Home) -> None:
    Study.create(load_task("own.py:Own"), "another", place)
    called = call("studies")
    assert (called.code, called.err) == (0, "")
    rows = [line.split() for line in called.out.splitlines() if line.strip() and "─" not in line]
    assert rows == [
        ["study", "task", "metric", "trials", "failed", "front"],
        ["another", "own", "accuracy", "0", "0", "0"],
        ["own", "own", "accuracy", "2", "0", "2"],
    ]


def test_long_names_are_shown_whole(call: Call, place: Home) -> None:
    name = "a-long-name-" * 8
    Study.create(load_task("own.py:Own"), name, place)
    assert name in call("studies").out


@pytest.mark.parametrize("command", [["front", "own"], ["studies"]])
def test_looking_makes_nothing(call: Call, folder: Path, command: list[str]) -> None:
    called = call(*command)
    assert called.code == 2
    assert called.err.startswith("Error: There is no study storage ")
    assert [file.name for file in folder.iterdir()] == ["own.py"]
