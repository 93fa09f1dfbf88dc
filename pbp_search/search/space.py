"""The search space: what a study draws configurations from."""

from typing import Annotated, Literal

from optuna.trial import BaseTrial
from pydantic import AfterValidator, Field

from pbp_search.settings import Settings
from pbp_search.training import CycleSchedule, Fixed, Plateau, Task, TrialConfig
from pbp_search.training.streams import key


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("it must be (lowest, highest)")
    return bounds


Positive = Annotated[float, Field(gt=0)]
WholeRange = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(_ordered)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


class SearchSpace(Settings):
    """The lowest and the highest value of everything that is searched.

    Attributes:
        width: The base width, on a logarithmic scale.
        dendrites: The most dendrite generations a network may grow.
        schedules: Plateau and fixed open different parameters.
        neuron_patience: Plateau: epochs without an improvement that end the neuron phase.
        neuron_threshold: Plateau: the relative improvement that counts in the neuron phase, logarithmic.
        dendrite_patience: Plateau: passes without an improvement that end the dendrite phase.
        dendrite_threshold: Plateau: the relative improvement that counts in the dendrite phase, logarithmic.
        neuron_epochs: Fixed: the length of a neuron phase, logarithmic.
        dendrite_epochs: Fixed: the length of a dendrite phase, logarithmic.
        acceptance: The relative gain for which a generation stays, logarithmic.
        learning_rate: Adam's in the neuron phase, logarithmic.
    """

    width: WholeRange = (2, 64)
    dendrites: int = Field(3, ge=0)
    schedules: tuple[Literal["plateau", "fixed"], ...] = Field(("plateau", "fixed"), min_length=1)
    neuron_patience: WholeRange = (5, 20)
    neuron_threshold: Range = (1e-4, 1e-2)
    dendrite_patience: WholeRange = (2, 6)
    dendrite_threshold: Range = (1e-2, 1e-1)
    neuron_epochs: WholeRange = (20, 120)
    dendrite_epochs: WholeRange = (5, 30)
    acceptance: Range = (1e-4, 1e-2)
    learning_rate: Range = (1e-3, 3e-2)

    @classmethod
    def for_task(cls, task: Task) -> "SearchSpace":
        """The default space over a task's widths."""
        return cls(width=tuple(task.widths))

    def suggest(self, trial: BaseTrial, seed: int) -> TrialConfig:
        """Draw a configuration. The ``dendrites`` of a trial are its rung, not part of the configuration.

        Args:
            trial: Optuna's trial.
            seed: Keys the configuration's random streams.
        """

        def whole(name: str, bounds: tuple[int, int], log: bool = False) -> int:
            return trial.suggest_int(name, *bounds, log=log)

        def real(name: str, bounds: tuple[float, float]) -> float:
            return trial.suggest_float(name, *bounds, log=True)

        neuron: Plateau | Fixed
        dendrite: Plateau | Fixed
        width = whole("width", self.width, log=True)
        learning_rate = real("learning_rate", self.learning_rate)
        acceptance = real("acceptance", self.acceptance)
        if trial.suggest_categorical("schedule", self.schedules) == "plateau":
            neuron = Plateau(
                patience=whole("neuron_patience", self.neuron_patience),
                relative=(real("neuron_threshold", self.neuron_threshold),),
            )
            dendrite = Plateau(
                patience=whole("dendrite_patience", self.dendrite_patience),
                relative=(real("dendrite_threshold", self.dendrite_threshold),),
            )
        else:
            neuron = Fixed(epochs=whole("neuron_epochs", self.neuron_epochs, log=True))
            dendrite = Fixed(epochs=whole("dendrite_epochs", self.dendrite_epochs, log=True))
        return TrialConfig(
            width=width,
            learning_rate=learning_rate,
            schedule=CycleSchedule(neuron=neuron, dendrite=dendrite, acceptance=acceptance),
            seed=seed,
        )


def configuration_seed(study_seed: int, root: int) -> int:
    """The seed of the configuration that started with trial ``root``: the same for all its rungs."""
    return key(study_seed, "configuration", root) % 2**31
