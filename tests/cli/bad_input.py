"""What bad commands name, and what must come of them."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from pbp_search.search import Study
from tests.cli.commands import Called, make_folder, make_place, make_study
from tests.quick_studies import checkpoint_file

RUN = ["run", "own.py:Own", "--trials", "1"]
EXPORT = ["export", "own", "--task", "own.py:Own", "--output", "out"]
SMALL = ["--max-params", "20"]  # the other network's milestone is damaged
REMOTE = "postgresql://me:hunter2@127.0.0.1:1/studies"

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


class WithLock(Own):
    def __init__(self):
        import threading

        self.lock = threading.Lock()


class OtherTask(Own):
    name = "other"


class BadSpace(Own):
    space = {"pool": 0}
"""

SPACES = {
    "syntax.toml": "width = ",
    "misspelt.toml": "neuron_patence = 3",
    "values.toml": "width = { low = 4, high = 2 }\nschedule = 'cosine'",
    "pairs.toml": "per_neuron = 2",
    "other.toml": "pool = 4",
}


def make_around(above: Path, stores: Path) -> Path:
    """A folder with everything the bad commands name."""
    folder = make_folder(above / "here")
    place = make_place(folder, stores)
    make_study(place)
    (folder / "broken.py").write_text(BROKEN)
    for name, text in SPACES.items():
        (folder / name).write_text(text)
    (folder / "syntax.py").write_text("class Own(:\n")
    (folder / "raises.py").write_text("raise RuntimeError('not today')\n")
    (folder / "exits.py").write_text("import sys\nsys.exit('not today')\n")
    (folder / "notes.txt").write_text("A text that is no database. " * 100)
    damaged = checkpoint_file(Study.load("own", place), 1)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with contextlib.closing(sqlite3.connect(folder / "recipes.db")) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.commit()
    (folder / "damaged").mkdir()
    (folder / "damaged" / "mlflow.db").write_text("A text that is no database. " * 100)
    return folder


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


def assert_bad_input_changes_nothing(
    call_in: Callable[[Path], Callable[..., Called]], around: dict[str, object], arguments: list[str], beginning: str
) -> None:
    folder = Path(str(around["folder"]))
    before = state_of(folder)
    called = call_in(folder)(*(argument.format(**around) for argument in arguments))
    assert_bad_input(called, beginning.format(**around))
    assert state_of(folder) == before
    assert not Path(str(around["empty"])).exists()
