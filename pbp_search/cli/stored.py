"""The task of a study that is stored."""

from pbp_search.errors import InputError
from pbp_search.search import Study
from pbp_search.tasks import built_in_name, load_task
from pbp_search.training import Task, check_task


def task_of(study: Study, given: str | None) -> Task:
    """A stored study's task: a built-in one of its name, or the one that the user names on this very command.

    Raises:
        InputError: The task is not given and not built in, or is another one.
        TaskError: It cannot be loaded, or does not work.
    """
    name = given or built_in_name(study.definition.task)
    if name is None:
        raise InputError(
            f"The study {study.name!r} has a task of your own, {study.definition.task!r}: name its file and class "
            "with --task FILE.py:CLASS."
        )
    task = load_task(name)
    check_task(task)
    if task.name != study.definition.task:
        raise InputError(f"The study {study.name!r} has the task {study.definition.task!r}, not {task.name!r}.")
    return task
