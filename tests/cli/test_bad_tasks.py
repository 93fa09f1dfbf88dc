"""Whatever a task file holds: one sentence, exit code 2, no traceback, and nothing is changed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.bad_input import SMALL, assert_bad_input_changes_nothing
from tests.cli.commands import Called

LONG = "x" * 255

# The command, and how its sentence begins.
CASES: dict[str, tuple[list[str], str]] = {
    "unknown task": (["run", "mnist"], "There is no task 'mnist': available are digits_mlp, or your own as"),
    "a module": (["run", "own:Own"], "There is no task 'own:Own'"),
    "missing file": (["run", "missing.py:Own"], "There is no task file missing.py"),
    "a name longer than any": (["run", f"{LONG}.py:Own"], f"There is no task file {LONG}.py"),
    "a path longer than any": (["run", f"{'x/' * 3000}own.py:Own"], "There is no task file x/x/"),
    "a folder's name longer than any": (["run", f"{LONG}x/own.py:Own"], "There is no task file "),
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
        "The task ForwardRaises: the forward pass of model(1) failed: RuntimeError: ",
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
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_task_is_one_sentence(
    call_in: Callable[[Path], Callable[..., Called]], around: dict[str, object], name: str
) -> None:
    assert_bad_input_changes_nothing(call_in, around, *CASES[name])
