"""Whatever the user gives: one sentence, exit code 2, no traceback, and nothing is changed."""

import contextlib
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pbp_search.home import Home
from pbp_search.search import Study
from tests.cli.commands import Called, make_folder, make_place, make_study

Call = Callable[..., Called]

BROKEN = """
import math
import torch
from torch import nn
from own import Own
from pbp_search import Data, Split


class NoModel:
    name, metric, direction, widths = "own", "accuracy", "maximize", (1, 3)
    data, loss, score = Own.data, Own.loss, Own.score


class NoName(Own):
    def __getattribute__(self, key):
        if key == "name":
            raise AttributeError(key)
        return super().__getattribute__(key)


class NeedsArguments(Own):
    def __init__(self, where):
        pass


class ModelRaises(Own):
    def model(self, width):
        raise LookupError("no such model")


class ModelRaisesParagraphs(Own):
    def model(self, width):
        raise LookupError("no such model\\n\\nbecause of this\\nand that")


class ForwardRaises(Own):
    def model(self, width):
        return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))


class NoLinear(Own):
    def model(self, width):
        return nn.Sequential(nn.Bilinear(1, 1, 2))


class NoNetwork(Own):
    def model(self, width):
        return lambda inputs: inputs


class DataRaises(Own):
    def data(self):
        return open("no-such-file.csv")


class DataOfAnotherKind(Own):
    def data(self):
        return torch.zeros(3, 2), torch.zeros(3)


class WithNaN(Own):
    def data(self):
        data = super().data()
        data.validation.inputs[3, 1] = math.nan
        return data


class NoRows(Own):
    def data(self):
        data = super().data()
        return Data(Split(data.train.inputs[:0], data.train.targets[:0]), data.validation, data.test)


class NoTestRows(Own):
    def data(self):
        data = super().data()
        return Data(data.train, data.validation, Split(data.test.inputs[:0], data.test.targets[:0]))


class FewerTargets(Own):
    def data(self):
        data = super().data()
        return Data(data.train, Split(data.validation.inputs, data.validation.targets[:7]), data.test)


class UnknownClass(Own):
    def data(self):
        data = super().data()
        data.train.targets[:] = 5
        return data


class MeanLoss(Own):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets).mean()


class LossRaises(Own):
    def loss(self, outputs, targets):
        raise ArithmeticError("no loss")


class DetachedLoss(Own):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets).detach()


class ScoreOfNaN(Own):
    def score(self, outputs, targets):
        return math.nan


class ScoreOfText(Own):
    def score(self, outputs, targets):
        return "good"


class BadDirection(Own):
    direction = "up"


class BadWidths(Own):
    widths = (3, 1)


class BadName(Own):
    name = "a/b"


class NameOfAnotherKind(Own):
    name = 7


class SameNameOtherModel(Own):
    def model(self, width):
        return nn.Sequential(nn.Linear(2, width + 1), nn.Tanh(), nn.Linear(width + 1, 2))


class OtherTask(Own):
    name = "other"
"""


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory, stores: Path) -> Iterator[dict[str, object]]:
    """Everything the bad commands name. They all work on the same: none of them may change it."""
    above = tmp_path_factory.mktemp("bad")
    folder = make_folder(above / "here")
    place = make_place(folder, stores)
    make_study(place)
    (folder / "broken.py").write_text(BROKEN)
    (folder / "syntax.py").write_text("class Own(:\n")
    (folder / "raises.py").write_text("raise RuntimeError('not today')\n")
    (folder / "exits.py").write_text("import sys\nsys.exit('not today')\n")
    (folder / "notes.txt").write_text("A text that is no database. " * 100)
    damaged = Study.load("own", place).folder.milestone(1)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with contextlib.closing(sqlite3.connect(folder / "recipes.db")) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.commit()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield {"folder": folder, "port": server.getsockname()[1], "empty": above / "empty"}


RUN = ["run", "own.py:Own", "--trials", "1"]
EXPORT = ["export", "own", "--task", "own.py:Own", "--output", "out"]
SMALL = ["--max-params", "20"]  # the other network's milestone is damaged
REMOTE = "postgresql://me:hunter2@127.0.0.1:1/studies"

# The command, and how its sentence begins.
CASES: dict[str, tuple[list[str], str]] = {
    "unknown command": (["walk"], "No such command 'walk'."),
    "run without a task": (["run"], "Missing argument 'TASK'."),
    "unknown option": ([*RUN, "--speed", "9"], "No such option"),
    "unknown format": (["front", "own", "--format", "xml"], "Invalid value for '--format'"),
    # Tasks
    "unknown task": (["run", "mnist"], "There is no task 'mnist': available are digits_mlp, or your own as"),
    "a module": (["run", "own:Own"], "There is no task 'own:Own'"),
    "missing file": (["run", "missing.py:Own"], "There is no task file missing.py"),
    "folder as file": (["run", "mlruns.py:Own"], "There is no task file mlruns.py"),
    "file of text": (["run", "notes.txt:Own"], "There is no task 'notes.txt:Own'"),
    "syntax error": (["run", "syntax.py:Own"], "The task file syntax.py cannot be imported: SyntaxError: "),
    "file raises": (["run", "raises.py:Own"], "The task file raises.py cannot be imported: RuntimeError: not today"),
    "file exits": (["run", "exits.py:Own"], "The task file exits.py cannot be imported: SystemExit: not today"),
    "class missing": (["run", "own.py:Mine"], "The file own.py has no class 'Mine': available are Own."),
    "no model": (["run", "broken.py:NoModel"], "The task NoModel has no model: see docs/writing-a-task.md"),
    "no name": (["run", "broken.py:NoName"], "The task NoName has no name"),
    "needs arguments": (["run", "broken.py:NeedsArguments"], "The task NeedsArguments cannot be built: TypeError"),
    "model raises": (
        ["run", "broken.py:ModelRaises"],
        "The task ModelRaises: model(1) failed: LookupError: no such model",
    ),
    "model raises paragraphs": (["run", "broken.py:ModelRaisesParagraphs"], "The task ModelRaisesParagraphs: model(1)"),
    "forward raises": (
        ["run", "broken.py:ForwardRaises"],
        "The task ForwardRaises: the forward pass of model(1) failed: RuntimeError: mat1 and mat2",
    ),
    "no linear": (["run", "broken.py:NoLinear"], "The"),
    "no network": (["run", "broken.py:NoNetwork"], "The task NoNetwork: model(1) returned function"),
    "data raises": (["run", "broken.py:DataRaises"], "The task DataRaises: data() failed: FileNotFoundError"),
    "data of another kind": (["run", "broken.py:DataOfAnotherKind"], "The task DataOfAnotherKind: data() returned tup"),
    "NaN in the data": (
        ["run", "broken.py:WithNaN"],
        "The task WithNaN: the validation inputs hold 1 values that are NaN or infinite",
    ),
    "no rows": (["run", "broken.py:NoRows"], "The task NoRows: the train data have 0 rows"),
    "no test rows": (["run", "broken.py:NoTestRows"], "The task NoTestRows: the test data have 0 rows"),
    "fewer targets": (["run", "broken.py:FewerTargets"], "The task FewerTargets: the validation data have 20 inputs"),
    "unknown class": (["run", "broken.py:UnknownClass"], "The task UnknownClass: loss failed: IndexError: Target 5"),
    "mean loss": (["run", "broken.py:MeanLoss"], "The task MeanLoss: loss returned () for 2 samples"),
    "loss raises": (["run", "broken.py:LossRaises"], "The task LossRaises: loss failed: ArithmeticError: no loss"),
    "detached loss": (["run", "broken.py:DetachedLoss"], "The task DetachedLoss: the loss does not depend on"),
    "score of NaN": (["run", "broken.py:ScoreOfNaN"], "The task ScoreOfNaN: score returned nan"),
    "score of text": (["run", "broken.py:ScoreOfText"], "The task ScoreOfText: score failed: ValueError"),
    "bad direction": (["run", "broken.py:BadDirection"], "The task BadDirection has the direction 'up'"),
    "bad widths": (["run", "broken.py:BadWidths"], "The task BadWidths has the widths (3, 1)"),
    "bad name": (["run", "broken.py:BadName"], "The "),
    "name of another kind": (["run", "broken.py:NameOfAnotherKind"], "The "),
    # Values
    "no trials": ([*RUN, "--trials", "0"], "Invalid value for '--trials': 0 is not in the range x>=1."),
    "trials in words": ([*RUN, "--trials", "many"], "Invalid value for '--trials': 'many' is not a valid integer"),
    "no workers": ([*RUN, "--workers", "0"], "Invalid value for '--workers': 0 is not in the range 1<=x<=256."),
    "timeout in words": ([*RUN, "--timeout", "abc"], "Invalid value for '--timeout': 'abc' is not a time span"),
    "timeout of nothing": ([*RUN, "--timeout", "0m"], "Invalid value for '--timeout': '0m' is not a time span"),
    "negative timeout": ([*RUN, "--timeout", "-5"], "Invalid value for '--timeout': '-5' is not a time span"),
    "timeout in weeks": ([*RUN, "--timeout", "2w"], "Invalid value for '--timeout': '2w' is not a time span"),
    "negative seed": ([*RUN, "--seed", "-1"], "Invalid value for '--seed': -1 is not in the range"),
    "huge seed": ([*RUN, "--seed", str(2**31)], "Invalid value for '--seed'"),
    # Studies
    "unknown study": (["front", "missing"], "There is no study 'missing': available are own."),
    "unknown study to export": (["export", "missing", "--output", "out"], "There is no study 'missing'"),
    "study with a slash": ([*RUN, "--study", "a/b"], "The study name 'a/b' is not allowed"),
    "study above": ([*RUN, "--study", "../a"], "The study name '../a' is not allowed"),
    "study without a name": ([*RUN, "--study", ""], "The study name '' is not allowed"),
    "other seed": ([*RUN, "--seed", "7"], "The study 'own' exists and differs (seed: 0, not 7)"),
    "other task": (["run", "broken.py:OtherTask", "--study", "own"], "The study 'own' exists and differs (task: own"),
    # Storage
    "no storage": (["front", "own", "--home", "{empty}"], "There is no study storage {empty}/optuna.db"),
    "no storage to list": (["studies", "--home", "{empty}"], "There is no study storage {empty}/optuna.db"),
    "no storage to export": ([*EXPORT, "--home", "{empty}"], "There is no study storage {empty}/optuna.db"),
    "foreign storage": (
        [*RUN, "--storage", "sqlite:///recipes.db"],
        "The storage sqlite:///recipes.db is another program's database (it has the table 'recipes')",
    ),
    "foreign storage to look at": (
        ["front", "own", "--storage", "sqlite:///recipes.db"],
        "The storage sqlite:///recipes.db is another program's database",
    ),
    "text as storage": (
        [*RUN, "--storage", "sqlite:///notes.txt"],
        "The storage sqlite:///notes.txt cannot be opened: file is not a database",
    ),
    "storage in memory": ([*RUN, "--storage", "sqlite://"], "A storage in memory is lost when the command ends"),
    "storage that is no URL": ([*RUN, "--storage", "hunter2"], "The storage is not a database URL"),
    "storage with a bad port": (
        [*RUN, "--storage", "postgresql://me:hunter2@host:port/studies"],
        "The storage is not a database URL",
    ),
    "remote storage": ([*RUN, "--storage", REMOTE], "The storage postgresql://me:***@127.0.0.1:1/studies"),
    "remote storage to look at": (
        ["front", "own", "--storage", REMOTE],
        "The storage postgresql://me:***@127.0.0.1:1/studies",
    ),
    "unknown kind of storage": ([*RUN, "--storage", "oracular://me:hunter2@host/x"], "The storage oracular://me:***@"),
    "remote tracking store": (
        [*RUN, "--tracking-uri", REMOTE],
        "The tracking store postgresql://me:***@127.0.0.1:1/studies",
    ),
    "foreign tracking store": (
        [*RUN, "--tracking-uri", "sqlite:///recipes.db"],
        "The tracking store sqlite:///recipes.db is another program's database",
    ),
    "tracking store in memory": ([*RUN, "--tracking-uri", "sqlite://"], "A tracking store in memory is lost"),
    "folder as tracking store": ([*RUN, "--tracking-uri", "./runs"], "The tracking store is not a database URL"),
    # Folders
    "home below a file": (
        [*RUN, "--home", "own.py/home"],
        "The folder {folder}/own.py/home cannot be written to (Not a directory)",
    ),
    "home is a file": ([*RUN, "--home", "own.py"], "Invalid value for '--home': Directory 'own.py' is a file."),
    "output below a file": ([*EXPORT, *SMALL, "--output", "own.py/out"], "The folder own.py/out cannot be written to"),
    "output is a file": (
        [*EXPORT, *SMALL, "--output", "own.py"],
        "Invalid value for '--output': Directory 'own.py' is a file.",
    ),
    # Export
    "nothing so small": (
        [*EXPORT, "--max-params", "3"],
        "No network has at most 3 parameters: the smallest on the front has 17 (score 0.5).",
    ),
    "nothing so good": (
        [*EXPORT, "--min-score", "0.9"],
        "No network reaches the score 0.9: the nearest has the score 0.75 (",
    ),
    "nothing so small and good": (
        [*EXPORT, *SMALL, "--min-score", "0.6"],
        "No network with at most 20 parameters reaches the score 0.6: the nearest has the score 0.5 (17 parameters).",
    ),
    "limits of nothing": ([*EXPORT, "--max-params", "0"], "Invalid value for '--max-params'"),
    "score in words": ([*EXPORT, "--min-score", "good"], "Invalid value for '--min-score'"),
    "export of NaN": ([*EXPORT, "--min-score", "nan"], ""),
    "no output": (["export", "own", "--task", "own.py:Own"], "Missing option '--output'."),
    "own task not named": (
        ["export", "own", "--output", "out"],
        "The study 'own' has a task of your own, 'own': name its file and class with --task FILE.py:CLASS.",
    ),
    "wrong task": (
        ["export", "own", "--task", "broken.py:OtherTask", "--output", "out"],
        "The study 'own' has the task 'own', not 'other'.",
    ),
    "task without a name": (
        ["export", "own", "--task", "broken.py:NoName", "--output", "out"],
        "The task NoName has no",
    ),
    "task without a model": (
        ["export", "own", "--task", "broken.py:NoModel", "--output", "out", *SMALL],
        "The task NoModel has no model",
    ),
    "task whose model raises": (["export", "own", "--task", "broken.py:ModelRaises", "--output", "out", *SMALL], "The"),
    "task with another model": (
        ["export", "own", "--task", "broken.py:SameNameOtherModel", "--output", "out", *SMALL],
        "The milestone's weights do not fit the task 'own': has its model changed?",
    ),
    "damaged milestone": (EXPORT, "The milestone file {folder}/mlruns/studies/own-"),
    # MLflow's UI
    "busy port": (["ui", "--port", "{port}"], "The port {port} cannot be used (Address already in use)"),
    "no port": (["ui", "--port", "0"], "Invalid value for '--port'"),
    "ui without a store": (["ui", "--home", "{empty}"], "There is no tracking store in {empty}"),
}


def assert_bad_input(called: Called, beginning: str) -> None:
    lines = called.err.strip().splitlines()
    assert called.code == 2, called
    assert called.out == ""
    assert "Traceback" not in called.err
    assert "hunter2" not in called.err
    assert lines[-1].startswith(("Error: ", "  ")), called.err
    sentence = called.err[called.err.index("Error: ") :].removeprefix("Error: ")
    assert sentence.startswith(beginning), called.err
    if lines[0].startswith("Error: "):
        assert len(lines) == 1, called.err
    else:
        assert lines[0].startswith("Usage: pbp-search")


def state_of(folder: Path) -> dict[str, object]:
    """The files of the folder, and what is in its stores."""
    files = [file for file in folder.iterdir() if file.is_file() and file.suffix != ".lock"]
    state: dict[str, object] = {file.name: file.read_bytes() for file in files}
    state["folders"] = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__")
    state["studies"] = [path.name for path in (folder / "mlruns" / "studies").iterdir()]
    for name, tables in (("optuna.db", ("studies", "trials")), ("mlflow.db", ("experiments", "runs"))):
        with contextlib.closing(sqlite3.connect(folder / "mlruns" / name)) as connection:
            for table in tables:
                state[table] = connection.execute(f"SELECT * FROM {table}").fetchall()
    return state


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence(call_in: Callable[[Path], Call], around: dict[str, object], name: str) -> None:
    arguments, beginning = CASES[name]
    folder = Path(str(around["folder"]))
    before = state_of(folder)
    called = call_in(folder)(*(argument.format(**around) for argument in arguments))
    assert_bad_input(called, beginning.format(**around))
    assert state_of(folder) == before
    assert not Path(str(around["empty"])).exists()


def test_no_command_is_a_question_for_help(call: Call) -> None:
    called = call()
    assert called.code == 2
    assert "Usage: pbp-search" in called.err + called.out
    assert "Traceback" not in called.err


def test_a_home_that_nobody_can_write_to(call: Call) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    for command in (RUN, [*RUN, "--fresh"]):
        assert_bad_input(call(*command, "--home", "/proc/studies"), "The folder /proc/studies cannot be written to (")


def test_a_study_with_a_damaged_definition(call: Call, study: Study) -> None:
    study._optuna.set_user_attr("pbp_search", {**study.definition.to_dict(), "seed": -1})
    for command in (["front", "own"], ["studies"], RUN, EXPORT):
        called = call(*command)
        assert called.code == 2
        assert len(called.err.splitlines()) == 1
        assert "seed is -1" in called.err


def test_a_study_of_another_program(call: Call, place: Home) -> None:
    import optuna

    optuna.create_study(study_name="theirs", storage=place.storage_url)
    for command in (["front", "theirs"], [*RUN, "--study", "theirs"], ["export", "theirs", "--output", "out"]):
        assert_bad_input(call(*command), "The study 'theirs' was not made by pbp-search: choose another name")


def test_a_tracking_store_of_another_version(call: Call, place: Home) -> None:
    connection = sqlite3.connect(place.folder / "mlflow.db")
    connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    connection.commit()
    connection.close()
    assert_bad_input(call(*RUN), f"The tracking store {place.tracking_uri} was made by another version of MLflow")
