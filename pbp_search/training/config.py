"""The configuration of a trial: everything that a chain of milestones is computed from, besides the task.

How many dendrites and pruning steps are wanted is not part of it: each milestone follows from the one before and the
configuration alone.
"""

from typing import Annotated, Literal

from pydantic import Field

from pbp_search.dendrites import DendriteSpec
from pbp_search.dendrites.record import BUDGET
from pbp_search.settings import Settings


class Plateau(Settings):
    """End a phase when its score has stopped improving.

    Attributes:
        patience: Epochs without an improvement after which the phase ends.
        relative: An improvement is better than the best by more than this share of the best's absolute value: one
            number per generation, the last one for all later generations too.
        absolute: ... and by more than this.
        max_epochs: The phase ends here in any case.
    """

    kind: Literal["plateau"] = "plateau"
    patience: int = Field(10, ge=1)
    relative: tuple[Annotated[float, Field(ge=0)], ...] = Field((0.001, 0.0001, 0.0), min_length=1)
    absolute: float = Field(0.0, ge=0)
    max_epochs: int = Field(1000, ge=1)


class Fixed(Settings):
    """End a phase after a fixed number of epochs."""

    kind: Literal["fixed"] = "fixed"
    epochs: int = Field(250, ge=1)


Rule = Annotated[Plateau | Fixed, Field(discriminator="kind")]


class CycleSchedule(Settings):
    """When the phases of the cycle end, and when a generation stays.

    Attributes:
        neuron: Ends the neuron phase, by the validation score.
        dendrite: Ends the dendrite phase, by the held-out correlation score. An epoch is 8 steps.
        acceptance: A generation stays if it betters the validation score by more than this share of its absolute
            value.
        tries: How often a generation is started anew before the chain ends.
    """

    neuron: Rule = Plateau(patience=10)
    dendrite: Rule = Plateau(patience=3, relative=(0.05,), max_epochs=10)
    acceptance: float = Field(0.001, ge=0)
    tries: int = Field(2, ge=1)


class TrialConfig(Settings):
    """A configuration of a network and its training.

    Attributes:
        network: The task's ``model``; or ``linear``, a control: one linear layer from the inputs to the outputs.
        width: The network's base width.
        depth: Given to the task's ``model`` beside the width; None for the task's own.
        learning_rate: Adam's in the neuron phase; it restarts at each cycle.
        dendrite_learning_rate: Adam's in the dendrite phase, for weights of standardised inputs.
        batch_size: Samples a step in the neuron phase.
        weight_decay: Adam's in the neuron phase, decoupled; W takes none.
        gradient_clip: The largest norm of the gradient of a step; None for any.
        mixed_precision: Compute the neuron phase's forward passes in bfloat16 where torch's autocast does; weights,
            errors, dendrite phases and scores stay in the network's own precision.
        record_budget: Bytes that a dendrite phase may take, for records and the work on them.
        prune_share: The share of the weights left that a pruning step removes.
        seed: Keys every random stream.
    """

    network: Literal["task", "linear"] = "task"
    width: int = Field(ge=1)
    depth: int | None = Field(None, ge=1)
    dendrites: DendriteSpec = DendriteSpec()
    schedule: CycleSchedule = CycleSchedule()
    learning_rate: float = Field(0.003, gt=0)
    dendrite_learning_rate: float = Field(0.03, gt=0)
    batch_size: int = Field(64, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float | None = Field(None, gt=0)
    mixed_precision: bool = False
    record_budget: int = Field(BUDGET, ge=2**20)
    prune_share: float = Field(0.5, gt=0, lt=1)
    seed: int = Field(0, ge=0)
