"""Whatever the user gives: one sentence, exit code 2, no traceback, and nothing is changed."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pbp_search.home import Home
from pbp_search.search import Study, list_studies
from tests.cli.bad_input import EXPORT, REMOTE, RUN, SMALL, assert_bad_input, assert_bad_input_changes_nothing
from tests.cli.commands import Called

Call = Callable[..., Called]

# The command, and how its sentence begins.
CASES: dict[str, tuple[list[str], str]] = {
    "unknown command": (["walk"], "No such command 'walk'."),
    "run without a task": (["run"], "Missing argument 'TASK'."),
    "unknown option": ([*RUN, "--speed", "9"], "No such option"),
    "unknown format": (["front", "own", "--format", "xml"], "Invalid value for '--format'"),
    # Values
    "no trials": ([*RUN, "--trials", "0"], "Invalid value for '--trials': 0 is not in the range x>=1."),
    "trials in words": ([*RUN, "--trials", "many"], "Invalid value for '--trials': 'many' is not a valid integer"),
    "no workers": ([*RUN, "--workers", "0"], "Invalid value for '--workers': 0 is not in the range 1<=x<=256."),
    "a device that is not there": ([*RUN, "--device", "tpu"], "There is no device 'tpu' on this machine"),
    "dask without a scheduler": ([*RUN, "--backend", "dask"], "The backend dask needs the address of its scheduler"),
    "a scheduler for nobody": ([*RUN, "--scheduler", "tcp://h:1"], "The backend dask needs the address of its"),
    "no scheduler there": (
        [*RUN, "--backend", "dask", "--scheduler", "tcp://127.0.0.1:1"],
        "There is no Dask scheduler at 'tcp://127.0.0.1:1': it should look like tcp://host:8786.",
    ),
    "no threads": ([*RUN, "--threads", "0"], "Invalid value for '--threads': 0 is not in the range"),
    "timeout in words": ([*RUN, "--timeout", "abc"], "Invalid value for '--timeout': 'abc' is not a time span"),
    "timeout of nothing": ([*RUN, "--timeout", "0m"], "Invalid value for '--timeout': '0m' is not a time span"),
    "negative timeout": ([*RUN, "--timeout", "-5"], "Invalid value for '--timeout': '-5' is not a time span"),
    "timeout in weeks": ([*RUN, "--timeout", "2w"], "Invalid value for '--timeout': '2w' is not a time span"),
    "stagnation of nothing": (
        [*RUN, "--stagnation", "0"],
        "Invalid value for '--stagnation': 0 is not in the range x>=1.",
    ),
    "negative seed": ([*RUN, "--seed", "-1"], "Invalid value for '--seed': -1 is not in the range"),
    "huge seed": ([*RUN, "--seed", str(2**31)], "Invalid value for '--seed'"),
    "unknown size": ([*RUN, "--size", "grams"], "Invalid value for '--size': 'grams' is not one of"),
    "a limit of nothing": ([*RUN, "--max-params", "0"], "Invalid value for '--max-params': 0 is not in the range"),
    "a limit below any network": (
        [*RUN, "--study", "small", "--max-params", "6"],
        "The smallest network of the task 'own', of width 1, has 7 parameters, more than the limit of 6: raise",
    ),
    "a fresh start below any network": (
        [*RUN, "--fresh", "--max-params", "6"],
        "The smallest network of the task 'own', of width 1, has 7 parameters, more than the limit of 6: raise",
    ),
    # Studies
    "unknown study": (["front", "missing"], "There is no study 'missing': available are own."),
    "unknown study to export": (["export", "missing", "--output", "out"], "There is no study 'missing'"),
    "study with a slash": ([*RUN, "--study", "a/b"], "The study name 'a/b' is not allowed"),
    "study above": ([*RUN, "--study", "../a"], "The study name '../a' is not allowed"),
    "study without a name": ([*RUN, "--study", ""], "The study name '' is not allowed"),
    "other seed": ([*RUN, "--seed", "7"], "The study 'own' exists and differs (seed: 0, not 7)"),
    "other size": ([*RUN, "--size", "macs"], "The study 'own' exists and differs (size: parameters, not macs)"),
    "other limit": ([*RUN, "--max-params", "99"], "The study 'own' exists and differs (max_parameters: None, not 99)"),
    "other task": (["run", "broken.py:OtherTask", "--study", "own"], "The study 'own' exists and differs (task: own"),
    # Spaces
    "no space file": ([*RUN, "--space", "missing.toml"], "The space file missing.toml cannot be read: No such file or"),
    "space file that is a folder": (
        ["space", "own.py:Own", "--space", "mlruns"],
        "The space file mlruns cannot be read",
    ),
    "space file that no path can name": (
        [*RUN, "--space", "x" * 300],
        "The space file " + "x" * 300 + " cannot be read",
    ),
    "space file of no TOML": (
        [*RUN, "--space", "syntax.toml"],
        "The space file syntax.toml is not TOML: Invalid value",
    ),
    "space file of a database": ([*RUN, "--space", "mlruns/optuna.db"], "The space file mlruns/optuna.db is not TOML"),
    "misspelt field": (
        ["space", "own.py:Own", "--space", "misspelt.toml"],
        "The space file misspelt.toml cannot be used: SearchSpace: there is no setting 'neuron_patence': "
        "did you mean 'neuron_patience'?",
    ),
    "bad values": (
        [*RUN, "--space", "values.toml"],
        "The space file values.toml cannot be used: "
        "SearchSpace: width is {{'low': 4, 'high': 2}}: it must be (lowest, highest); "
        "SearchSpace: schedule is 'cosine': input should be 'plateau' or 'fixed'",
    ),
    "values that do not fit together": (
        [*RUN, "--fresh", "--space", "pairs.toml"],
        "The space file pairs.toml cannot be used: SearchSpace: per_neuron can be 2 where the pool has 1 candidates",
    ),
    "other space": ([*RUN, "--space", "other.toml"], "The study 'own' exists and differs (space.pool: 1, not 4): "),
    "task with a bad space": (
        ["run", "broken.py:BadSpace", "--fresh"],
        "The task BadSpace has a space that cannot be used: SearchSpace: pool is 0: input should be greater",
    ),
    "space of a task with a bad space": (["space", "broken.py:BadSpace"], "The task BadSpace has a space that cannot"),
    "space of a bad task": (["space", "broken.py:NoModel"], "The task NoModel has no model"),
    "space of no task": (["space", "missing"], "There is no task 'missing'"),
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
    "storage that is a folder": (
        ["front", "own", "--storage", "sqlite:///."],
        "The storage '.' is a folder: use sqlite:///path/to/file.db.",
    ),
    "storage that is a folder by its path": (
        ["front", "own", "--storage", "sqlite:///{folder}/mlruns"],
        "The storage sqlite:///{folder}/mlruns cannot be opened",
    ),
    "storage with a bad option": (
        ["front", "own", "--storage", "sqlite:///mlruns/optuna.db?timeout=soon"],
        "The storage sqlite:///mlruns/optuna.db?timeout=soon cannot be opened: could not convert string to float",
    ),
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
    "export to a name that no folder has": (
        [*EXPORT[:-1], "x" * 300, *SMALL],
        "The folder " + "x" * 300 + " cannot be written to: File name too long.",
    ),
    "a task that cannot be sent to workers": (
        ["run", "broken.py:WithLock", "--study", "lock", "--workers", "2"],
        "The task WithLock cannot be sent to worker processes (TypeError: ",
    ),
    "damaged milestone": (EXPORT, "The milestone file {folder}/mlruns/artifacts/own-"),
    # MLflow's UI. The port is busy: if the store was not refused, the port would be.
    "ui of a damaged store": (
        ["ui", "--home", "damaged", "--port", "{port}"],
        "The tracking store sqlite:///{folder}/damaged/mlflow.db cannot be opened: file is not a database",
    ),
    "ui of a server": (
        ["ui", "--tracking-uri", "http://me:hunter2@127.0.0.1:1", "--port", "{port}"],
        "An MLflow server shows its own UI: open its address in a browser.",
    ),
    "ui of a server over TLS": (
        ["ui", "--tracking-uri", "https://127.0.0.1:1", "--port", "{port}"],
        "An MLflow server shows its own UI",
    ),
    "ui of words": (
        ["ui", "--tracking-uri", "hunter2", "--port", "{port}"],
        "The tracking store is not a database URL",
    ),
    "ui of a text": (
        ["ui", "--tracking-uri", "sqlite:///notes.txt", "--port", "{port}"],
        "The tracking store sqlite:///notes.txt cannot be opened: file is not a database",
    ),
    "ui of a folder": (
        ["ui", "--tracking-uri", "file://{folder}/mlruns", "--port", "{port}"],
        "The tracking store file://{folder}/mlruns cannot be opened",
    ),
    "ui of a foreign database": (
        ["ui", "--tracking-uri", "sqlite:///recipes.db", "--port", "{port}"],
        "The tracking store sqlite:///recipes.db is another program's database (it has the table 'recipes')",
    ),
    "ui of a storage": (
        ["ui", "--tracking-uri", "sqlite:///mlruns/optuna.db", "--port", "{port}"],
        "The tracking store sqlite:///mlruns/optuna.db is another program's database",
    ),
    "ui of a store in memory": (
        ["ui", "--tracking-uri", "sqlite://", "--port", "{port}"],
        "A tracking store in memory is lost",
    ),
    "ui of a remote store": (
        ["ui", "--tracking-uri", REMOTE, "--port", "{port}"],
        "The tracking store postgresql://me:***@127.0.0.1:1/studies",
    ),
    "busy port": (["ui", "--port", "{port}"], "The port {port} cannot be used (Address already in use)"),
    "no port": (["ui", "--port", "0"], "Invalid value for '--port'"),
    "ui without a store": (["ui", "--home", "{empty}"], "There is no tracking store in {empty}"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence(call_in: Callable[[Path], Call], around: dict[str, object], name: str) -> None:
    assert_bad_input_changes_nothing(call_in, around, *CASES[name])


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


@pytest.mark.parametrize("name", ["studies", "artifacts"])
def test_a_file_where_the_home_has_a_folder(call: Call, place: Home, name: str) -> None:
    (place.folder / name).write_text("kept")
    for _ in range(2):  # what the first one left is not in the way of the second one's sentence
        assert_bad_input(call(*RUN), f"The folder {place.folder}/{name}")
    assert (place.folder / name).read_text() == "kept"


@pytest.mark.parametrize("name", ["incoming", "locks"])
def test_a_file_where_a_study_has_a_folder(call: Call, study: Study, name: str) -> None:
    folder = study.folder.path / name
    folder.rename(study.folder.path / "moved")
    folder.write_text("kept")
    for command in ([*RUN, "--trials", "5"], [*RUN, "--fresh"]):
        assert_bad_input(call(*command), f"The folder {folder} cannot be written to (")
    assert folder.read_text() == "kept"
    assert [found.name for found in list_studies(study.folder.home)] == ["own"]


def test_a_file_where_the_milestones_of_a_study_are(call: Call, study: Study) -> None:
    folder = study.folder.milestones
    folder.rename(study.folder.path / "moved")
    folder.write_text("kept")
    assert_bad_input(call(*RUN, "--trials", "5"), f"The milestones of the study 'own' are not in {folder}: ")
    assert [found.name for found in list_studies(study.folder.home)] == ["own"]
    assert call(*RUN, "--fresh").code == 0  # a new study has a folder of its own
    assert folder.read_text() == "kept"


def test_a_file_where_the_milestones_of_a_study_to_export_are(call: Call, study: Study) -> None:
    folder = study.folder.milestones
    folder.rename(study.folder.path / "moved")
    folder.write_text("kept")
    assert_bad_input(call(*EXPORT), f"The milestones of the study 'own' are not in {folder}: ")


def test_a_storage_that_is_damaged_inside(call: Call, study: Study) -> None:
    file = study.folder.home.folder / "optuna.db"
    study._optuna._storage.remove_session()
    whole = file.read_bytes()
    file.write_bytes(whole[:8192] + bytes(len(whole) - 8192))
    for beside in ("-wal", "-shm"):
        file.with_name(file.name + beside).unlink(missing_ok=True)
    for command in (["front", "own"], RUN, [*RUN, "--fresh"]):
        called = call(*command)
        assert called.code == 2
        assert len(called.err.splitlines()) == 1
        assert "malformed" in called.err
        assert "goes on" not in called.err
