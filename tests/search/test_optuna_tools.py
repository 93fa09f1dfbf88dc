"""Optuna's own tools read a study's storage."""

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from pbp_search.home import Home
from pbp_search.search import Study
from tests.quick_studies import Dots, fill, milestone

MILESTONES = [milestone(0.5, 10), milestone(0.6, 100, dendrites=1, requested=1)]


def test_optunas_command_line_lists_the_trials(home: Home) -> None:
    command = Path(sys.executable).with_name("optuna")
    if not command.exists():
        pytest.skip("the command optuna is not beside this interpreter")
    fill(Study.create(Dots(), home=home), MILESTONES)
    arguments = ["trials", "--study-name", "dots", "--storage", home.storage_url, "--format", "json"]
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=True)
    trials = json.loads(done.stdout)
    assert [trial["number"] for trial in trials] == [0, 1]
    assert [
        trial["params_dendrites"] if "params_dendrites" in trial else trial["params"]["dendrites"] for trial in trials
    ]
    assert {trial["state"] for trial in trials} == {"COMPLETE"}


def test_it_is_an_ordinary_study_of_two_objectives(home: Home) -> None:
    fill(Study.create(Dots(), home=home), MILESTONES)
    study = optuna.load_study(study_name="dots", storage=home.storage_url)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["fit", "log10_parameters"]
    assert [trial.values for trial in study.best_trials] == [[0.5, 1.0], [0.6, 2.0]]


def test_the_dashboard_reads_the_storage(home: Home) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    fill(Study.create(Dots(), home=home), MILESTONES)
    application = dashboard.wsgi(home.storage_url)
    status: list[str] = []
    environment = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "x", "wsgi.url_scheme": "http"}
    body = b"".join(application(environment, lambda line, *_: status.append(line)))
    assert status[0].startswith("200")
    (summary,) = json.loads(body)["study_summaries"]
    assert summary["study_name"] == "dots"
    assert summary["directions"] == ["maximize", "minimize"]
