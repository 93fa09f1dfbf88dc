import shlex
import shutil
import sys

import pytest

from pbp_search.cli.again import continuing_command

HINT = "\nURL stands for the one that was given: it holds a password."


@pytest.mark.parametrize("name", ["digits_mlp", "a task.py:Own", "$HOME/own.py:Own", "--trials=3"])
def test_a_command_is_given_back_as_it_was(name: str) -> None:
    given = ["pbp-search", "run", name, "--seed", "3"]
    assert shlex.split(continuing_command(given)) == given


def test_a_fresh_start_is_made_once() -> None:
    assert (
        continuing_command(["pbp-search", "run", "own", "--fresh", "--trials", "3"]) == "pbp-search run own --trials 3"
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/studies",
        "postgresql+psycopg://me:hun/ter2@host:5432/studies",
        "postgresql://host/studies?user=me&password=hunter2",
        "https://me:hunter2@host/mlflow",
        "https://hunter2@host/mlflow",
        "https://host/mlflow?access_token=hunter2",
        "postgresql://host/studies?user=me&pwd=hunter2",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhunter2",
        "https://host/mlflow?api_key=hunter2",
        "databricks://hunter2@host",
        "databricks+x://hunter2@host/some/path",
    ],
)
def test_secrets_are_not_printed(url: str) -> None:
    expected = "pbp-search run own --storage URL --trials 3" + HINT
    assert continuing_command(["pbp-search", "run", "own", "--storage", url, "--trials", "3"]) == expected
    expected = "pbp-search run own --tracking-uri=URL" + HINT
    assert continuing_command(["pbp-search", "run", "own", f"--tracking-uri={url}"]) == expected


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////tmp/trials.db",
        "postgresql://me@host:5432/studies",
        "postgresql+psycopg://me@host/studies",
        "mysql://me@host/studies",
        "http://127.0.0.1:5000",
        "https://host/mlflow/@me",
        "mlruns/x.db",
    ],
)
def test_urls_without_secrets_are_printed(url: str) -> None:
    given = ["pbp-search", "run", "own", "--storage", url]
    assert continuing_command(given) == " ".join(given)


def test_the_program_is_named_so_that_it_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    python = shlex.quote(sys.executable)
    assert continuing_command(["/x/pbp_search/__main__.py", "run"]) == f"{python} -m pbp_search run"
    assert (
        continuing_command(["studies/digits_mlp.py", "--trials", "2"]) == f"{python} studies/digits_mlp.py --trials 2"
    )
    monkeypatch.setattr(shutil, "which", lambda name: f"/on/the/path/{name}")
    assert continuing_command(["/on/the/path/pbp-search", "run"]) == "pbp-search run"
    assert continuing_command(["/elsewhere/pbp-search", "run"]) == "/elsewhere/pbp-search run"
