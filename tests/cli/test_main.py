import importlib
import os
import resource
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import click
import mlflow
import optuna
import pytest
import sqlalchemy
from mlflow.exceptions import MissingConfigException, MlflowException
from optuna.exceptions import StorageInternalError

from pbp_search import errors
from pbp_search.cli.main import cli, main
from pbp_search.home import Home
from pbp_search.search import Study
from tests.cli.commands import Called, main_in
from tests.quick_studies import recorded

COMMANDS = ["export", "front", "run", "space", "studies", "ui"]


def test_help_is_quick() -> None:
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "pbp_search", "--help"], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert all(command in done.stdout for command in COMMANDS)
    assert min(spent) < 0.5


def test_the_installed_command_is_the_program() -> None:
    command = Path(sys.executable).with_name("pbp-search")
    if not command.exists():
        pytest.skip("the command pbp-search is not beside this interpreter")
    done = subprocess.run([command, "front"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Usage: pbp-search front" in done.stderr
    assert "Missing argument 'STUDY'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_explained(call: Callable[..., Called], name: str) -> None:
    command = cli.commands[name]
    called = call(name, "--help")
    assert called.code == 0
    assert command.help
    assert " ".join(command.help.split()) in " ".join(called.out.split())
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("help", "port"):
            assert parameter.help, parameter.name
            assert parameter.opts[0] in called.out
    assert call(name, "-h").out == called.out


def test_the_exit_code_says_whose_fault_it_was(raising: Callable[[BaseException], Called]) -> None:
    for mine in (errors.InputError, errors.TaskError, errors.SettingsError, errors.CheckpointError, errors.StudyError):
        assert raising(mine("A sentence.")) == Called(2, "", "Error: A sentence.\n")
    for running in (errors.TrainingError, errors.ExportError, errors.PbpSearchError):
        assert raising(running("A sentence.")) == Called(1, "", "Error: A sentence.\n")
    assert raising(KeyboardInterrupt()).code == 130
    full = raising(OSError(28, "No space left on device"))
    assert full.code == 1
    assert "No space left on device" in full.err
    with pytest.raises(ZeroDivisionError):  # a defect of ours shows its traceback
        raising(ZeroDivisionError())


@pytest.fixture
def raising(call: Callable[..., Called], monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], Called]:
    """Call a command that raises an error."""

    def raise_in_command(error: BaseException) -> Called:
        def callback(**_: object) -> None:
            raise error

        monkeypatch.setattr(cli.commands["studies"], "callback", callback)
        return call("studies")

    return raise_in_command


SECRETS = ("hunter2", "UPDATE", "trials SET", "postgresql://", "https://", "Traceback")


def locked() -> sqlalchemy.exc.OperationalError:
    """SQLAlchemy's own text has the statement with its values in it."""
    cause = sqlite3.OperationalError("database is locked\nand more")
    return sqlalchemy.exc.OperationalError("UPDATE trials SET user = ?", ("hunter2",), cause)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


STORE_ERRORS: dict[str, tuple[Callable[[], Exception], str]] = {
    "SQLAlchemy's": (locked, "OperationalError: database is locked"),
    "SQLAlchemy's without a cause": (
        lambda: sqlalchemy.exc.InvalidRequestError("UPDATE at postgresql://me:hunter2@host/x"),
        "InvalidRequestError",
    ),
    "Optuna's": (
        lambda: caused(StorageInternalError("An exception is raised during the commit: UPDATE trials SET"), locked()),
        "OperationalError: database is locked",
    ),
    "Optuna's without a cause": (lambda: StorageInternalError("UPDATE trials SET hunter2"), "StorageInternalError"),
    "MLflow's": (
        lambda: MlflowException("API request to https://me:hunter2@host failed: UPDATE runs"),
        "MlflowException",
    ),
    "MLflow's with a cause": (
        lambda: caused(MlflowException("(sqlite3.OperationalError) UPDATE runs hunter2"), locked()),
        "OperationalError: database is locked",
    ),
    "a kind of MLflow's": (lambda: MissingConfigException("hunter2"), "MissingConfigException"),
}


@pytest.mark.parametrize("kind", STORE_ERRORS)
def test_an_error_of_a_store_is_one_sentence_without_secrets(
    raising: Callable[[BaseException], Called], kind: str
) -> None:
    error, reason = STORE_ERRORS[kind]
    called = raising(error())
    assert called == Called(1, "", f"Error: A store failed: {reason}. The same command goes on.\n")
    assert not any(secret in called.err for secret in SECRETS)


def test_errors_of_other_libraries_are_defects_of_ours(raising: Callable[[BaseException], Called]) -> None:
    for error in (sqlite3.OperationalError("x"), optuna.exceptions.TrialPruned("x"), ValueError("mlflow")):
        with pytest.raises(type(error)):
            raising(error)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_with_its_exit_code(
    call: Callable[..., Called], monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    monkeypatch.setattr(importlib.import_module("pbp_search.cli.main"), "ENDING_SECONDS", 3600)  # this process goes on
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli.commands["studies"], "callback", lambda **_: signal.raise_signal(number))
    monkeypatch.setattr(sys, "argv", ["pbp-search", "studies"])
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == code


def test_a_program_that_ends_with_a_number_has_it_as_exit_code(
    monkeypatch: pytest.MonkeyPatch, call: Callable[..., Called]
) -> None:
    for result, code in ((0, 0), (1, 1), (None, 0)):
        monkeypatch.setattr(cli.commands["studies"], "callback", lambda result=result, **_: result)
        assert call("studies").code == code


SLOW = """
import time
from pathlib import Path
from own import Own


class Slow(Own):
    def loss(self, outputs, targets):
        if len(outputs) > 2 and outputs.requires_grad:
            Path("training").touch()
            time.sleep(0.0 if Path("hurry").exists() else 0.2)
        return super().loss(outputs, targets)
"""


def stopped(processes: ForkServerContext, folder: Path, arguments: list[str], number: signal.Signals) -> int | None:
    """The exit code of a command that gets a signal while it trains."""
    process = processes.Process(target=main_in, args=(folder, arguments))
    process.start()
    for _ in range(600):
        if (folder / "training").exists():
            break
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(30)
    return process.exitcode


@pytest.mark.slow
def test_a_program_that_does_not_end_by_itself_is_ended() -> None:
    program = (
        "import importlib, os, signal, time, click\n"
        "main = importlib.import_module('pbp_search.cli.main')\n"
        "main.ENDING_SECONDS = 0.1\n"
        "@click.command()\n"
        "def deaf():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(60)\n"
        "    except BaseException:\n"
        "        time.sleep(60)\n"
        "main.main(deaf)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 143
    assert done.stderr == "The program did not end by itself: it is stopped. What it was at, the next run does again.\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_study_of_two_workers_is_stopped_by_signals(
    folder: Path, place: Home, processes: ForkServerContext, number: signal.Signals, code: int
) -> None:
    (folder / "slow.py").write_text(SLOW)
    arguments = ["run", "slow.py:Slow", "--trials", "4", "--workers", "2"]
    assert stopped(processes, folder, arguments, number) == code
    err = (folder / "err.txt").read_text()
    assert err.strip().splitlines()[-1] == f"Stopped. Go on with: pbp-search {shlex.join(arguments)}"
    assert "Traceback" not in err
    # No worker goes on: their trials wait, and are nobody's.
    states = {trial.state for trial in Study.load("own", place)._trials()}
    assert states == {optuna.trial.TrialState.WAITING}


def test_a_stopped_study_says_how_to_go_on(folder: Path, place: Home, processes: ForkServerContext) -> None:
    (folder / "slow.py").write_text(SLOW)
    arguments = ["run", "slow.py:Slow", "--trials", "2"]
    assert stopped(processes, folder, arguments, signal.SIGTERM) == 128 + signal.SIGTERM
    err = (folder / "err.txt").read_text()
    assert err.strip() == f"Stopped. Go on with: pbp-search {shlex.join(arguments)}"
    client = mlflow.MlflowClient(place.tracking_uri)
    experiment = client.get_experiment_by_name("own")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]

    (folder / "hurry").touch()
    process = processes.Process(target=main_in, args=(folder, arguments))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    study = Study.load("own", place)
    assert [trial.number for trial in study.finished()] == [0, 1]
    assert study.failures() == {}
    assert recorded(place, "own") == {0, 1}
