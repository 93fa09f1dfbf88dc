import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click
import mlflow
import pytest

from pbp_search.cli.run import run
from pbp_search.home import Home
from pbp_search.search import Study, list_studies
from pbp_search.search.sampler import SAMPLERS
from pbp_search.search.values import Range
from pbp_search.training import Size
from tests.cli.commands import Called
from tests.quick_studies import recorded

Call = Callable[..., Called]


def test_a_task_becomes_a_front(call: Call, folder: Path, place: Home) -> None:
    called = call("run", "own.py:Own", "--trials", 3, "--seed", 5)
    assert called.code == 0
    study = Study.load("own", place)
    assert [trial.number for trial in study.finished()] == [0, 1, 2]
    assert study.definition.seed == 5
    assert re.search(r"^3 trials in \d+ s, 3 in all\.$", called.err, re.MULTILINE)
    progress = study.progress()
    assert f"Target reached: {progress.configurations} configurations, 0 promoted rungs." in called.err.splitlines()
    (line,) = [line for line in called.err.splitlines() if line.startswith("3/3 rungs, 0 running, 0 failed, ")]
    assert re.search(r", in 0:0\d:\d\d$", line)
    assert "Front of own: " in called.out
    page = Study.load("own", place).folder.path / "front" / "front.html"
    assert f"Front: {page}" in called.out
    assert page.is_file()
    assert re.search(rf"^MLflow: .* ui --home {re.escape(str(place.folder))}$", called.out, re.MULTILINE)
    assert recorded(place, "own") == {0, 1, 2}
    assert sorted(file.name for file in folder.iterdir() if file.name != "__pycache__") == ["mlruns", "own.py"]

    # Again: nothing is done twice.
    before = {file: file.stat().st_mtime_ns for file in Study.load("own", place).folder.milestones.iterdir()}
    again = call("run", "own.py:Own", "--trials", 3)
    assert again.code == 0
    assert re.search(r"^0 trials in \d+ s, 3 in all\.$", again.err, re.MULTILINE)
    assert again.out == called.out
    assert {file: file.stat().st_mtime_ns for file in Study.load("own", place).folder.milestones.iterdir()} == before

    # On from there.
    more = call("run", "own.py:Own", "--trials", 4, "--seed", 5)
    assert more.code == 0
    assert re.search(r"^1 trials? in \d+ s, 4 in all\.$", more.err, re.MULTILINE)
    assert len(study.finished()) == 4

    # Anew: the old one is kept.
    fresh = call("run", "own.py:Own", "--trials", 1, "--seed", 6, "--fresh")
    assert fresh.code == 0
    kept = re.search(r"^The old study is kept as (own-\S+)\.$", fresh.err, re.MULTILINE)
    assert kept is not None
    assert [found.name for found in list_studies(place)] == ["own", kept[1]]
    assert len(Study.load(kept[1], place).finished()) == 4
    assert len(Study.load("own", place).finished()) == 1
    assert Study.load("own", place).definition.seed == 6
    assert recorded(place, kept[1]) == {0, 1, 2, 3}
    assert recorded(place, "own") == {0}


def test_sizes_and_limits(call: Call, place: Home) -> None:
    options = ["--size", "macs", "--max-params", 12]
    assert call("run", "own.py:Own", "--trials", 2, *options).code == 0
    definition = Study.load("own", place).definition
    # Of width w it has 5 w + 2 parameters.
    assert (definition.size, definition.max_parameters, definition.space.width) == ("macs", 12, Range(1, 2, log=True))
    assert call("run", "own.py:Own", "--trials", 2).code == 0
    assert Study.load("own", place).definition == definition


def test_the_sizes_to_choose_from_are_all_there_are() -> None:
    (option,) = [option for option in run.params if option.name == "size"]
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == get_args(Size)


def test_fresh_without_an_old_study(call: Call, place: Home) -> None:
    called = call("run", "own.py:Own", "--trials", 1, "--fresh")
    assert called.code == 0
    assert "is kept" not in called.err
    assert len(list_studies(place)) == 1


@pytest.mark.parametrize("options", [[], ["--fresh"], ["--space", "space.toml"], ["--space", "space.toml", "--fresh"]])
def test_the_default_space_is_made_once(
    call: Call, monkeypatch: pytest.MonkeyPatch, folder: Path, place: Home, options: list[str]
) -> None:
    made: list[object] = []

    def counted(network: object) -> str:
        made.append(network)
        return "perceptron"

    (folder / "space.toml").write_text("dendrites = 1")
    monkeypatch.setattr("pbp_search.search.space.family_of", counted)
    monkeypatch.setattr("pbp_search.cli.session.run_and_show", lambda *_, **__: 0)
    assert call("run", "own.py:Own", *options).code == 0
    assert len(made) == 1
    assert Study.load("own", place).definition.space.dendrites == (1 if "--space" in options else 3)


@pytest.mark.parametrize(
    ("options", "dendrites", "prunings"),
    [
        (["--rungs", "grow"], 3, 0),
        (["--rungs", "prune"], 0, 5),
        (["--rungs", "grow,prune"], 3, 5),
        (["--rungs", "grow,prune", "--space", "space.toml"], 1, 2),
        (["--space", "space.toml"], 1, 2),
    ],
)
def test_kinds_of_rungs(
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    place: Home,
    options: list[str],
    dendrites: int,
    prunings: int,
) -> None:
    (folder / "space.toml").write_text("dendrites = 1\nprunings = 2\n")
    monkeypatch.setattr("pbp_search.cli.session.run_and_show", lambda *_, **__: 0)
    assert call("run", "own.py:Own", *options).code == 0
    space = Study.load("own", place).definition.space
    assert (space.dendrites, space.prunings) == (dendrites, prunings)
    assert call("run", "own.py:Own").code == 0  # with its own
    assert call("run", "own.py:Own", "--rungs", "prune,grow").code == 2


def test_stores_elsewhere(call: Call, folder: Path, stores: Path, tmp_path: Path) -> None:
    storage, tracking = f"sqlite:///{tmp_path}/trials.db", f"sqlite:///{tmp_path}/runs.db"
    (tmp_path / "runs.db").write_bytes((stores / "mlflow.db").read_bytes())
    home = tmp_path / "state" / "of" / "studies"
    options = ["--home", home, "--storage", storage]
    called = call("run", "own.py:Own", "--study", "mine", "--trials", 1, *options, "--tracking-uri", tracking)
    assert called.code == 0
    assert not (folder / "mlruns").exists()
    assert not (home / "mlflow.db").exists()
    assert not (home / "optuna.db").exists()
    assert len(list((home / "artifacts").glob("mine-*/milestones/*"))) == 1
    experiment = mlflow.MlflowClient(tracking).get_experiment_by_name("mine")
    assert experiment is not None
    assert "MLflow: " in called.out
    assert json.loads(call("front", "mine", "--format", "json", *options).out)[0]["trial"] == 0
    assert "mine" in call("studies", *options).out


def test_a_timeout_ends_the_study_early(call: Call, place: Home) -> None:
    assert call("run", "own.py:Own", "--trials", 1).code == 0
    called = call("run", "own.py:Own", "--trials", 5000, "--timeout", "1s")
    assert called.code == 0
    assert 1 <= len(Study.load("own", place).finished()) < 5000
    assert re.search(r"^Time is up: \d+ configurations?, \d+ promoted rungs?[.,]", called.err, re.MULTILINE)


def test_a_study_without_progress_ends_early(call: Call, place: Home) -> None:
    called = call("run", "own.py:Own", "--trials", 5000, "--stagnation", 2)
    assert called.code == 0
    assert 3 <= len(Study.load("own", place).finished()) < 5000
    assert re.search(r"^No progress in the last 2 trials: \d+ configurations", called.err, re.MULTILINE)


def test_quiet_prints_nothing_but_errors(call: Call, folder: Path, place: Home) -> None:
    assert call("run", "own.py:Own", "--trials", 1, "--quiet") == Called(0, "", "")
    assert (Study.load("own", place).folder.path / "front" / "front.html").is_file()
    assert call("run", "own.py:Own", "--trials", 1, "--fresh", "--quiet") == Called(0, "", "")
    (folder / "failing.py").write_text(FAILING)
    called = call("run", "failing.py:Failing", "--study", "b", "--trials", 1, "--quiet")
    assert called == Called(1, "", "Error: No trial has succeeded, so there is no front.\n")


def test_verbose_tells_what_came_of_each_trial(call: Call, folder: Path, place: Home) -> None:
    (folder / "marked.py").write_text(MARKED)
    failing = call("run", "marked.py:Failing", "--study", "a", "--trials", 1, "--verbose")
    told = failing.err.splitlines()
    assert told[0] == "Trial 0 failed: ValueError: [red]not[/] [today] [/]"
    assert re.fullmatch(r'  File ".*marked\.py", line 10, in loss', told[1])
    called = call("run", "marked.py:Marked", "--study", "a", "--trials", 5, "--verbose")
    told = [line for line in called.err.splitlines() if re.match(r"Trial \d (is|goes)", line)]
    assert len(told) == 4
    assert re.fullmatch(
        r"Trial 1 is a new configuration of width \d: \[b\]share\[/b\] [\d.]+, \d+ parameters\.", told[0]
    )
    assert "goes on from trial" in told[-1]


def test_the_last_of_quiet_and_verbose_counts(call: Call, place: Home) -> None:
    assert call("run", "own.py:Own", "--trials", 1, "--verbose", "--quiet") == Called(0, "", "")
    assert "Trial 1 is" in call("run", "own.py:Own", "--trials", 2, "--quiet", "--verbose").err


FAILING = """
import torch
from own import Own


class Failing(Own):
    def loss(self, outputs, targets):
        losses = super().loss(outputs, targets)
        return losses * float("nan") if len(outputs) > 2 and outputs.requires_grad else losses
"""


def test_a_study_of_which_nothing_succeeds(call: Call, folder: Path, place: Home) -> None:
    (folder / "failing.py").write_text(FAILING)
    called = call("run", "failing.py:Failing", "--trials", 7)
    assert called.code == 1
    lines = called.err.splitlines()
    assert lines[-1] == "Error: No trial has succeeded, so there is no front."
    assert "Trial 0 failed: The training loss became nan: try a smaller learning rate." in lines
    assert "... and 2 more failed trials." in lines
    assert "Traceback" not in called.err
    assert len(Study.load("own", place).failures()) == 7


MARKED = """
from own import Own


class Marked(Own):
    name, metric = "[red]x[/]", "[b]share[/b]"

    def loss(self, outputs, targets):
        if outputs.shape[0] > 2 and outputs.requires_grad and self.fails:
            raise ValueError("[red]not[/] [today] [/]")
        return super().loss(outputs, targets)

    fails = False


class Failing(Marked):
    fails = True
"""


def test_whatever_looks_like_markup_is_printed_as_it_is(call: Call, folder: Path, place: Home) -> None:
    (folder / "marked.py").write_text(MARKED)
    failing = call("run", "marked.py:Failing", "--study", "a", "--trials", 1)
    assert failing.code == 1
    assert "Trial 0 failed: ValueError: [red]not[/] [today] [/]" in failing.err.splitlines()
    called = call("run", "marked.py:Marked", "--study", "a", "--trials", 2)
    assert called.code == 0
    assert "Trial 0 failed: ValueError: [red]not[/] [today] [/]" in called.err.splitlines()
    title = "Front of a: 1 of 1 networks (validation [b]share[/b])"
    assert title in called.out
    assert title in call("front", "a").out
    (row,) = (line.split() for line in call("studies").out.splitlines() if "red" in line)
    assert row == ["a", "[red]x[/]", "[b]share[/b]", "2", "1", "1"]


def test_interrupting_is_no_error(call: Call, folder: Path, place: Home) -> None:
    (folder / "failing.py").write_text(FAILING.replace('losses * float("nan")', "stop()") + STOP)
    called = call("run", "failing.py:Failing", "--fresh", "--trials", 2, "--seed", 3)
    assert called.code == 130
    (command,) = re.findall(r"^Stopped\. Go on with: (.*)$", called.err, re.MULTILINE)
    assert "Traceback" not in called.err
    program, *arguments = shlex.split(command)
    assert (program, arguments) == ("pbp-search", ["run", "failing.py:Failing", "--trials", "2", "--seed", "3"])
    (folder / "failing.py").write_text("from own import Own as Failing\n")
    assert call(*arguments).code == 0
    study = Study.load("own", place)
    assert study.failures() == {}
    assert len(study.finished()) == 2
    assert len(list_studies(place)) == 1


STOP = """

def stop():
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1.5m", 90), (" 3s ", 3)]
)
def test_time_spans(call: Call, monkeypatch: pytest.MonkeyPatch, place: Home, text: str, seconds: float) -> None:
    given: list[object] = []
    monkeypatch.setattr("pbp_search.cli.session.run_and_show", lambda *_, **options: given.append(options["timeout"]))
    assert call("run", "own.py:Own", "--timeout", text).code == 0
    assert given == [seconds]


def test_the_samplers_that_may_be_named_are_those_there_are(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr("pbp_search.cli.session.run_and_show", lambda *_, **options: given.append(options["sampler"]))
    for name in SAMPLERS:
        call("run", "own.py:Own", "--sampler", name)
    call("run", "own.py:Own")
    assert given == [*SAMPLERS, "auto"]
    refused = call("run", "own.py:Own", "--sampler", "bayes")
    assert refused.code == 2
    assert ", ".join(f"'{name}'" for name in SAMPLERS) in refused.err


def test_a_second_machine_joins_with_the_artifacts_it_shares(call: Call, folder: Path, place: Home) -> None:
    storage = ["--storage", place.storage_url, "--tracking-uri", place.tracking_uri]
    shared = ["--artifacts", "shared"]
    assert call("run", "own.py:Own", "--trials", 1, *storage, *shared).code == 0
    forgotten = call("run", "own.py:Own", "--trials", 2, *storage, "--home", "other")
    assert forgotten.code == 2
    assert forgotten.err.startswith("Error: The milestones of the study 'own' are not in ")
    assert "the folder that its machines share with --artifacts." in forgotten.err
    assert not (folder / "other" / "artifacts").exists()
    assert not (folder / "other" / "studies").exists()
    assert call("run", "own.py:Own", "--trials", 2, *storage, *shared, "--home", "other").code == 0
    for home in ("mlruns", "other"):
        command = ["export", "own", "--task", "own.py:Own", "--output", f"from-{home}", "--home", home]
        exported = call(*command, *shared, "--storage", place.storage_url)
        assert exported.code == 0, exported.err
    assert not (folder / "other" / "artifacts").exists()
