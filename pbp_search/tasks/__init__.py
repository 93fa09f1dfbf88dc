"""The built-in tasks, and loading a task by name or from the file that a user names."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import cloudpickle

from pbp_search.errors import InputError, TaskError, said
from pbp_search.training import Task

BUILT_IN = {"digits_mlp": ("pbp_search.tasks.digits", "DigitsMLP")}


def load_task(name: str) -> Task:
    """Load a task.

    Args:
        name: A built-in task's name, or ``FILE.py:CLASS``. Loading a file runs it.

    Raises:
        InputError: There is no such task, file or class.
        TaskError: The file cannot be imported, or the class cannot be built.
    """
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name]
        built_in: Task = getattr(importlib.import_module(module), attribute)()
        return built_in
    file, separator, attribute = name.rpartition(":")
    if not separator or not file.endswith(".py") or not attribute:
        available = ", ".join(BUILT_IN)
        raise InputError(f"There is no task {name!r}: available are {available}, or your own as FILE.py:CLASS.")
    task_class = _load_class(Path(file), attribute)
    try:
        task: Task = task_class()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise TaskError(f"The task {attribute} cannot be built: {said(error)}") from error
    return task


def built_in_name(task_name: str) -> str | None:
    """The built-in task of a name, if there is one: a stored study may load it without being told."""
    return task_name if task_name in BUILT_IN else None


def packed(value: object) -> bytes:
    """Something that holds a task, as it is sent to other processes: the code of a user's task file comes with it."""
    sent: bytes = cloudpickle.dumps(value)
    return sent


def unpacked(sent: bytes) -> Any:
    """What another process of ours has sent."""
    return cloudpickle.loads(sent)


def check_sendable(task: Task) -> None:
    """Make sure that a task can be sent to worker processes.

    Raises:
        TaskError: It holds something that cannot be, such as a lock or an open file.
    """
    try:
        packed(task)
    except Exception as error:  # whatever the task holds decides what is raised
        raise TaskError(
            f"The task {type(task).__name__} cannot be sent to worker processes ({said(error)}): "
            "use one worker, or make what it holds in data() and model()."
        ) from error


def _load_class(file: Path, attribute: str) -> type:
    try:
        found = file.is_file()
    except OSError:  # a name that no file can have
        found = False
    if not found:
        raise InputError(f"There is no task file {file}.")
    name = f"pbp_search_task_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # the task's neighbours can be imported, as when the file is run
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise TaskError(f"The task file {file} cannot be imported: {said(error)}") from error
    # Worker processes have not imported the file: they are sent its class, not its name.
    cloudpickle.register_pickle_by_value(module)
    task_class = getattr(module, attribute, None)
    if not isinstance(task_class, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == name]
        raise InputError(f"The file {file} has no class {attribute!r}: available are {', '.join(classes) or 'none'}.")
    return task_class
