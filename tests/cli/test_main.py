import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import click
import mlflow
import pytest

from pbp_search import errors
from pbp_search.cli.main import cli
from pbp_search.home import Home
from pbp_search.search import Study
from tests.cli.commands import Called, main_in
from tests.quick_studies import recorded

COMMANDS = ["export", "front", "run", "studies", "ui"]


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


def test_the_exit_code_says_whose_fault_it_was(call: Callable[..., Called], monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: BaseException) -> Called:
        def callback(**_: object) -> None:
            raise error

        monkeypatch.setattr(cli.commands["studies"], "callback", callback)
        return call("studies")

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


def test_a_stopped_study_says_how_to_go_on(folder: Path, place: Home, processes: ForkServerContext) -> None:
    (folder / "slow.py").write_text(SLOW)
    arguments = ["run", "slow.py:Slow", "--trials", "2"]
    process = processes.Process(target=main_in, args=(folder, arguments))
    process.start()
    for _ in range(600):
        if (folder / "training").exists():
            break
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
    err = (folder / "err.txt").read_text()
    assert err.strip() == "Stopped. The same command (without --fresh) goes on from here."
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
