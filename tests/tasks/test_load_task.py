import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from pbp_search.errors import InputError, TaskError
from pbp_search.tasks import BUILT_IN, built_in_name, load_task
from pbp_search.training import Task, check_task


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    """Loading a task file leaves its folder on the path: not for the next test."""
    path, modules = sys.path.copy(), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("pbp_search_task_") or name == "neighbour":
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "own.py") -> Path:
    file = folder / name
    file.write_text(textwrap.dedent(text))
    return file


GOOD = """
    from tests.quick_studies import Dots
    class Own(Dots):
        name = "own"
"""


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_tasks_are_complete(name: str) -> None:
    task = load_task(name)
    assert isinstance(task, Task)
    assert task.name == name == built_in_name(task.name)
    check_task(task)


def test_other_tasks_are_not_built_in() -> None:
    assert built_in_name("own") is None
    assert built_in_name("own.py:Own") is None


def test_a_class_of_a_file(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    task = load_task(f"{file}:Own")
    assert isinstance(task, Task)
    assert type(task).__name__ == "Own"
    assert len(check_task(task).train.inputs) == 120


def test_a_file_by_its_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_task("own.py:Own").name == "own"


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "neighbour.py")
    file = write(tmp_path, "from neighbour import Own\n")
    assert load_task(f"{file}:Own").name == "own"


def test_two_files_of_one_name_are_two_tasks(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, GOOD.replace('"own"', f'"{name}"'))
    assert load_task(f"{tmp_path}/a/own.py:Own").name == "a"
    assert load_task(f"{tmp_path}/b/own.py:Own").name == "b"


def test_a_task_travels_to_processes_that_have_not_read_its_file(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    sent = cloudpickle.dumps(load_task(f"{file}:Own"))
    file.unlink()
    del sys.modules["pbp_search_task_own"]
    received = cloudpickle.loads(sent)
    assert received.name == "own"
    check_task(received)


@pytest.mark.parametrize("name", ["", "digits", "digits_mlp:DigitsMLP", "own.py", "own.py:", ":Own", "own.txt:Own"])
def test_unknown_tasks_name_what_there_is(name: str) -> None:
    with pytest.raises(InputError) as caught:
        load_task(name)
    assert str(caught.value) == (f"There is no task {name!r}: available are digits_mlp, or your own as FILE.py:CLASS.")


def test_missing_files_and_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^There is no task file .*missing.py"):
        load_task(f"{tmp_path}/missing.py:Own")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(InputError, match=r"^There is no task file .*folder.py"):
        load_task(f"{tmp_path}/folder.py:Own")
    file = write(tmp_path, GOOD)
    for attribute in ("Other", "__doc__", "own"):
        with pytest.raises(InputError) as caught:
            load_task(f"{file}:{attribute}")
        assert str(caught.value) == f"The file {file} has no class {attribute!r}: available are Own."
    with pytest.raises(InputError, match=r"has no class 'Own': available are none\."):
        load_task(f"{write(tmp_path, 'x = 1', 'empty.py')}:Own")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class Own(:\n    pass\n", "SyntaxError: invalid syntax"),
        ("import a_module_that_is_not_there\n", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("raise SystemExit\n", "SystemExit"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path: Path, text: str, reason: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(TaskError) as caught:
        load_task(f"{file}:Own")
    assert str(caught.value).startswith(f"The task file {file} cannot be imported: {reason}")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_bytes(b"\x00\xff\xfe")
    with pytest.raises(TaskError, match="cannot be imported"):
        load_task(f"{file}:Own")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def __init__(self, folder): pass", "TypeError: .*missing 1 required positional argument: 'folder'"),
        ("def __init__(self): raise OSError('no data')", "OSError: no data"),
    ],
)
def test_classes_that_cannot_be_built(tmp_path: Path, body: str, reason: str) -> None:
    file = write(tmp_path, f"class Own:\n    {body}\n")
    with pytest.raises(TaskError, match=f"^The task Own cannot be built: {reason}"):
        load_task(f"{file}:Own")
