import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbp_search.databases import Database
from pbp_search.home import Home
from tests.cli.commands import Called

Call = Callable[..., Called]


class Server:
    """Stands for the MLflow server: remembers how it was started."""

    started: list["Server"]

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        self.command, self.environment, self.ended = command, env, False
        self.started.append(self)

    def poll(self) -> int | None:
        return None

    def wait(self) -> int:
        return 0

    def terminate(self) -> None:
        self.ended = True


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    Server.started = []
    monkeypatch.setattr(subprocess, "Popen", Server)
    monkeypatch.setattr("pbp_search.cli.ui._answers", lambda _: True)
    return Server.started


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
        return free


def option(server: Server, name: str) -> str:
    return server.command[server.command.index(name) + 1]


def test_the_ui_is_that_of_the_home_on_this_machine_only(
    call: Call, place: Home, servers: list[Server], port: int
) -> None:
    called = call("ui", "--port", port)
    assert called.code == 0
    assert f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning" in called.out
    (server,) = servers
    assert server.command[:3] == [sys.executable, "-m", "mlflow"]
    assert option(server, "--host") == "127.0.0.1"
    assert option(server, "--port") == str(port)
    assert server.environment["MLFLOW_BACKEND_STORE_URI"] == place.tracking_uri
    assert option(server, "--default-artifact-root") == place.artifacts.as_uri()
    assert server.environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert server.ended


def test_the_current_folder_does_not_matter(
    call: Call, place: Home, servers: list[Server], port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("ui", "--port", port, "--home", "here/mlruns").code == 0
    assert servers[0].environment["MLFLOW_BACKEND_STORE_URI"] == place.tracking_uri
    assert option(servers[0], "--default-artifact-root").startswith("file:///")


def test_passwords_stay_out_of_the_list_of_processes(
    call: Call, servers: list[Server], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "postgresql://user:hunter2@host/database"
    monkeypatch.setattr("pbp_search.tracking.check_store", lambda *_: None)  # there is none of the kind here
    called = call("ui", "--port", port, "--tracking-uri", uri)
    assert called.code == 0
    assert "hunter2" not in called.out + called.err + " ".join(servers[0].command)
    driven = Database.parse("tracking store", uri).secret_url
    assert "hunter2" in driven
    assert servers[0].environment["MLFLOW_BACKEND_STORE_URI"] == driven


def test_ctrl_c_ends_the_server(
    call: Call, place: Home, servers: list[Server], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = iter([KeyboardInterrupt(), None])

    def wait(self: Server) -> int:
        interrupt = next(waits)
        if interrupt:
            raise interrupt
        return 0

    monkeypatch.setattr(Server, "wait", wait)
    called = call("ui", "--port", port)
    assert called.code == 0
    assert "Traceback" not in called.err
    assert servers[0].ended


def test_the_address_is_told_once_the_server_answers(
    call: Call, place: Home, servers: list[Server], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr("pbp_search.cli.ui._answers", lambda _: next(answers))
    assert "http://" in call("ui", "--port", port).out
    assert next(answers, None) is None


def test_a_server_that_ends_at_once_has_no_address(
    call: Call, place: Home, servers: list[Server], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbp_search.cli.ui._answers", lambda _: False)
    monkeypatch.setattr(Server, "poll", lambda self: 3)
    monkeypatch.setattr(Server, "wait", lambda self: 3)
    called = call("ui", "--port", port)
    assert called.code == 3
    assert "http://" not in called.out
