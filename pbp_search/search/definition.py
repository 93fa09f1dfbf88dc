"""What a study is: what its storage keeps of it, and what an existing one must be equal to."""

from typing import Any

from pydantic import Field

from pbp_search.search.sizes import NetworkSizes, capped
from pbp_search.search.space import SearchSpace
from pbp_search.settings import Settings
from pbp_search.training import Direction, Size, Task


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
    """The definition of a study of a task; the space is cut to the limit of parameters."""
    return Definition(
        task=task.name,
        metric=task.metric,
        direction=task.direction,
        space=capped(space, max_parameters, sizes),
        seed=seed,
        size=size,
        max_parameters=max_parameters,
    )
