"""What a study is: its task, its objectives, its space. A study is continued only with an equal one."""

from typing import Any

import optuna
from pydantic import Field

from pbp_search.errors import SettingsError, StudyError
from pbp_search.search.sizes import NetworkSizes, capped
from pbp_search.search.space import SearchSpace
from pbp_search.settings import Settings
from pbp_search.training import Direction, Size, Task

# Names of the user attributes of our studies.
DEFINITION = "pbp_search"
FOLDER = "folder"


class Definition(Settings):
    """What a study is, as its storage keeps it. A study is continued only with an equal one.

    Attributes:
        task: The task's name.
        metric: The metric of the first objective.
        direction: Its direction. The second objective, log10 of the size, is minimised.
        space: What is searched.
        seed: Keys every random stream of the study.
        size: What the size counts.
        max_parameters: No larger network is trained; None for no limit. The space has no width that is above it.
    """

    task: str
    metric: str
    direction: Direction
    space: SearchSpace
    seed: int = Field(ge=0)
    size: Size = "parameters"
    max_parameters: int | None = Field(None, ge=1)

    def difference(self, other: "Definition") -> list[str]:
        """Where two definitions differ, each as ``field: this one's value, not the other's``."""
        mine, others = self.flat(), other.flat()
        return [f"{field}: {mine[field]}, not {others[field]}" for field in mine if mine[field] != others[field]]

    def flat(self) -> dict[str, Any]:
        """The definition field by field; the space's fields as its file writes them."""
        space = {f"space.{name}": text for name, text in self.space.texts().items()}
        return {**self.model_dump(exclude={"space", "seed"}), **space, "seed": self.seed}


def define(
    task: Task, space: SearchSpace, seed: int, size: Size, max_parameters: int | None, sizes: NetworkSizes
) -> Definition:
    """The definition of a task's study; its space has no width that is above the limit.

    Raises:
        SettingsError: The space prunes, and the size is one that pruning leaves as it is.
    """
    if size == "macs" and space.prunings:
        raise SettingsError(
            f"The space has pruning steps ({space.prunings}), and the size is macs: multiply-accumulates of pruned "
            "weights are computed all the same, so nothing would get smaller. Leave the pruning out (prunings = 0), or "
            "count parameters or weight_bytes."
        )
    return Definition(
        task=task.name,
        metric=task.metric,
        direction=task.direction,
        space=capped(space, max_parameters, sizes),
        seed=seed,
        size=size,
        max_parameters=max_parameters,
    )


def same_study(
    name: str,
    identity: str,
    storage: optuna.storages.BaseStorage,
    sampler: optuna.samplers.BaseSampler | None = None,
) -> optuna.Study:
    """Open again a study that has been opened before, by another process perhaps.

    Args:
        name: The name that it had.
        identity: Its folder's.
        storage: What it is in.
        sampler: What draws its parameters.

    Raises:
        StudyError: It has another name by now.
    """
    try:
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    except KeyError:
        study = None
    if study is None or study.user_attrs.get(FOLDER) != identity:
        raise renamed(name)
    return study


def renamed(name: str) -> StudyError:
    """What is said of a study that has been archived while somebody was at it."""
    return StudyError(
        f"The study {name!r} has been kept under a dated name meanwhile (--fresh): the same command goes on "
        "with the new study of the name."
    )
