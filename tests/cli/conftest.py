"""The tests of the command line share a task file and a study of it, from ``commands.py`` beside this file."""

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pbp_search.cli.main import _run
from pbp_search.home import Home
from pbp_search.search import Study
from tests.cli.bad_input import make_around
from tests.cli.commands import Called, make_folder, make_place, make_study


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    """A task file's folder stays on the path, and its neighbours stay loaded: not for the next test."""
    path, modules = sys.path.copy(), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name == "own" or name.startswith("pbp_search_task_"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the task file ``own.py`` in it. Commands are called there."""
    return make_folder(tmp_path / "here")


@pytest.fixture
def place(folder: Path, stores: Path) -> Home:
    """The default home in the folder, without studies."""
    return make_place(folder, stores)


@pytest.fixture
def study(place: Home) -> Study:
    """A study of the own task, with two networks that nobody trained."""
    return make_study(place)


@pytest.fixture(scope="package")
def around(tmp_path_factory: pytest.TempPathFactory, stores: Path) -> Iterator[dict[str, object]]:
    """Everything the bad commands name. They all work on the same: none of them may change it."""
    above = tmp_path_factory.mktemp("bad")
    folder = make_around(above, stores)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield {"folder": folder, "port": server.getsockname()[1], "empty": above / "empty"}


@pytest.fixture
def call_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], Callable[..., Called]]:
    """Run commands in a folder, and in this process: loading MLflow takes seconds."""
    monkeypatch.setenv("COLUMNS", "80")
    # Commands quiet loggers for their whole process.
    monkeypatch.setattr("pbp_search.cli.session.quiet_libraries", lambda: None)

    def enter(folder: Path) -> Callable[..., Called]:
        monkeypatch.chdir(folder)

        def call(*arguments: object) -> Called:
            monkeypatch.setattr(sys, "argv", ["pbp-search", *map(str, arguments)])
            capsys.readouterr()
            code = _run()
            return Called(code, *capsys.readouterr())

        return call

    return enter


@pytest.fixture
def call(call_in: Callable[[Path], Callable[..., Called]], folder: Path) -> Callable[..., Called]:
    """Run a command in the folder."""
    return call_in(folder)
