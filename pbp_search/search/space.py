"""The search space: what a study draws configurations from."""

import difflib
import textwrap
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from optuna.trial import BaseTrial
from pydantic import Field, model_validator

from pbp_search.dendrites import DendriteSpec
from pbp_search.dendrites.record import BUDGET
from pbp_search.dendrites.spec import BOUNDED
from pbp_search.errors import InputError, SettingsError, TaskError
from pbp_search.search.families import FAMILIES, family_of, smallest_network
from pbp_search.search.values import Choices, Range, Setting, Value, corners, toml_of, type_of
from pbp_search.settings import Settings
from pbp_search.training import CycleSchedule, Fixed, Plateau, Step, Task, TrialConfig
from pbp_search.training.streams import key

_HEAD = """\
The search space. Each value is fixed (0.003), a list of choices (["tanh", "relu"]), or a range
({ low = 0.001, high = 0.03, log = true }). A file may name some of them: the rest keep their defaults."""


def _placement(text: str) -> str | tuple[str, ...]:
    """``all`` and its like, or name patterns between commas; ``head,`` is the pattern of a module called head."""
    if text in get_args(get_args(DendriteSpec.model_fields["placement"].annotation)[0]):
        return text
    patterns = tuple(pattern.strip() for pattern in text.split(",") if pattern.strip())
    if not patterns:
        raise ValueError("a placement must name modules")
    return patterns


def _grid(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
        raise ValueError("a grid must be 'line', or sizes such as '28x28'")
    return tuple(map(int, sizes))


_DENDRITES = 3
_PRUNINGS = 5  # with which about a tenth of the weights are left

# Of Plateau's thresholds, one for each generation, a space has one for all.
_THRESHOLD = get_args(Plateau.model_fields["relative"].annotation)[0]


class SearchSpace(Settings):
    """Everything that can be searched; each field is a fixed value, a list of choices, or a range.

    A range is a :class:`Range`, a mapping with ``low``, ``high`` and perhaps ``log``, or a tuple (lowest, highest)
    on the field's usual scale. What each field is, its description says; a file may hold any of them.

    Raises:
        SettingsError: A value is not allowed, or values do not fit together.
    """

    width: Annotated[Value, Setting(type_of(TrialConfig, "width"), log=True)] = Field(
        Range(2, 64, log=True), description="The network's base width."
    )
    learning_rate: Annotated[Value, Setting(type_of(TrialConfig, "learning_rate"), log=True)] = Field(
        Range(1e-3, 3e-2, log=True), description="Adam's learning rate in the neuron phase."
    )
    weight_decay: Annotated[Value, Setting(type_of(TrialConfig, "weight_decay"), log=True)] = Field(
        0.0, description="Adam's decoupled weight decay in the neuron phase."
    )
    batch_size: Annotated[Value, Setting(type_of(TrialConfig, "batch_size"), log=True)] = Field(
        64, description="Samples a step in the neuron phase."
    )
    gradient_clip: Annotated[Value, Setting(type_of(TrialConfig, "gradient_clip"), log=True, none="none")] = Field(
        "none", description='The largest norm of the gradient of a step, or "none".'
    )
    mixed_precision: Annotated[Value, Setting(type_of(TrialConfig, "mixed_precision"))] = Field(
        False, description="Compute the neuron phase's forward passes in bfloat16."
    )
    schedule: Annotated[Value, Setting(Literal["plateau", "fixed"])] = Field(
        Choices(("plateau", "fixed")),
        description='End phases on a "plateau" of their score, or after a "fixed" number of epochs.',
    )
    neuron_patience: Annotated[Value, Setting(type_of(Plateau, "patience"))] = Field(
        Range(5, 20, log=False), description="Plateau: epochs without an improvement that end the neuron phase."
    )
    neuron_threshold: Annotated[Value, Setting(_THRESHOLD, log=True)] = Field(
        Range(1e-4, 1e-2, log=True),
        description="Plateau: the relative improvement of the validation score that counts.",
    )
    neuron_absolute: Annotated[Value, Setting(type_of(Plateau, "absolute"), log=True)] = Field(
        0.0, description="Plateau: the absolute improvement that it needs, too."
    )
    neuron_max_epochs: Annotated[Value, Setting(type_of(Plateau, "max_epochs"), log=True)] = Field(
        1000, description="Plateau: the most epochs of a neuron phase."
    )
    neuron_epochs: Annotated[Value, Setting(type_of(Fixed, "epochs"), log=True)] = Field(
        Range(20, 120, log=True), description="Fixed: the epochs of a neuron phase."
    )
    dendrites: int = Field(
        _DENDRITES,
        ge=0,
        strict=True,
        description="The most dendrite generations of a network: always a whole number, fixed.",
    )
    prunings: int = Field(
        0, ge=0, strict=True, description="The most pruning steps of a network: always a whole number, fixed."
    )
    prune_share: Annotated[Value, Setting(type_of(TrialConfig, "prune_share"))] = Field(
        Range(0.3, 0.6, log=False), description="The share of the weights left that a pruning step removes."
    )
    acceptance: Annotated[Value, Setting(type_of(CycleSchedule, "acceptance"), log=True)] = Field(
        Range(1e-4, 1e-2, log=True), description="The relative gain in validation score for which a generation stays."
    )
    tries: Annotated[Value, Setting(type_of(CycleSchedule, "tries"))] = Field(
        2, description="How often a generation is started before the chain ends."
    )
    variant: Annotated[Value, Setting(type_of(DendriteSpec, "variant"))] = Field(
        "perforated",
        description='"perforated"; "joint", whose dendrites train on with the network; or a control: "gradient", '
        '"random", "sham".',
    )
    nonlinearity: Annotated[Value, Setting(type_of(DendriteSpec, "nonlinearity"))] = Field(
        "tanh", description='The dendrites\' nonlinearity: "tanh", "sigmoid", "relu" or "gelu".'
    )
    objective: Annotated[Value, Setting(type_of(DendriteSpec, "objective"))] = Field(
        "correlation", description='"correlation", or "covariance", which is drawn with tanh and sigmoid only.'
    )
    pool: Annotated[Value, Setting(type_of(DendriteSpec, "pool"))] = Field(
        1, description="Candidates trained side by side for each neuron."
    )
    per_neuron: Annotated[Value, Setting(type_of(DendriteSpec, "per_neuron"))] = Field(
        1, description="Dendrites that each neuron gets in one generation: the best of the pool."
    )
    fan_in: Annotated[Value, Setting(type_of(DendriteSpec, "fan_in"), log=True, none="all")] = Field(
        "all", description='How many inputs a dendrite sees, or "all".'
    )
    pattern: Annotated[Value, Setting(type_of(DendriteSpec, "pattern"))] = Field(
        "random", description='Which inputs a fan_in sees: "random", a "window" of neighbours, or "chosen" from all.'
    )
    grid: Annotated[Value, Setting(str, none="line", parse=_grid)] = Field(
        "line", description='The shape of a Linear layer\'s inputs for windows: "line", or such as "28x28".'
    )
    sees: Annotated[Value, Setting(type_of(DendriteSpec, "sees"), none="own inputs")] = Field(
        "own inputs",
        description='What dendrites see: their module\'s "own inputs", the network\'s "input", or the output of '
        "the module of that name.",
    )
    placement: Annotated[Value, Setting(str, parse=_placement)] = Field(
        "all",
        description='Which modules get dendrites: "all", "head", "first", "all_but_first", or name patterns such as '
        '"encoder.*, !encoder.2". A comma at the end makes a word a pattern: "head,".',
    )
    outgoing_scale: Annotated[Value, Setting(type_of(DendriteSpec, "outgoing_scale"), log=True)] = Field(
        0.1, description="Variant gradient: the deviation of the dendrites' outgoing weights at the start."
    )
    dendrite_learning_rate: Annotated[Value, Setting(type_of(TrialConfig, "dendrite_learning_rate"), log=True)] = Field(
        0.03, description="Adam's learning rate in the dendrite phase."
    )
    dendrite_patience: Annotated[Value, Setting(type_of(Plateau, "patience"))] = Field(
        Range(2, 6, log=False), description="Plateau: epochs without an improvement that end the dendrite phase."
    )
    dendrite_threshold: Annotated[Value, Setting(_THRESHOLD, log=True)] = Field(
        Range(1e-2, 1e-1, log=True), description="Plateau: the relative improvement of the held-out score that counts."
    )
    dendrite_absolute: Annotated[Value, Setting(type_of(Plateau, "absolute"), log=True)] = Field(
        0.0, description="Plateau: the absolute improvement that it needs, too."
    )
    dendrite_max_epochs: Annotated[Value, Setting(type_of(Plateau, "max_epochs"), log=True)] = Field(
        30, description="Plateau: the most epochs of a dendrite phase."
    )
    dendrite_epochs: Annotated[Value, Setting(type_of(Fixed, "epochs"), log=True)] = Field(
        Range(5, 30, log=True), description="Fixed: the epochs of a dendrite phase, of 8 steps each."
    )
    record_budget: Annotated[Value, Setting(type_of(TrialConfig, "record_budget"), log=True)] = Field(
        BUDGET, description="Bytes that a dendrite phase may take."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        # A SettingsError, not any ValueError: its sentence stands alone, without all values of the space.
        unbounded = [function for function in corners(self.nonlinearity) if function not in BOUNDED]
        if unbounded and "correlation" not in corners(self.objective):
            raise SettingsError(
                f"the objective can only be covariance, which has no maximum with the unbounded {unbounded[0]}: "
                f"leave the nonlinearity at {', '.join(BOUNDED)}, or add the objective correlation"
            )
        most, fewest = max(corners(self.per_neuron)), min(corners(self.pool))
        if most > fewest and {"perforated", "joint"} & set(corners(self.variant)):
            raise SettingsError(
                f"per_neuron can be {most} where the pool has {fewest} candidates: "
                "pool must always be at least per_neuron"
            )
        return self

    @classmethod
    def for_task(cls, task: Task) -> "SearchSpace":
        """A task's default space: its family's over its widths, with what its attribute ``space`` says otherwise.

        Raises:
            TaskError: The task cannot build its smallest network, or its own space cannot be used.
        """
        own = getattr(task, "space", None)
        if isinstance(own, SearchSpace):
            return own
        space = cls(width=tuple(task.widths), **FAMILIES[family_of(smallest_network(task))])
        if own is None:
            return space
        label = f"The task {type(task).__name__} has a space that cannot be used"
        if not isinstance(own, Mapping):
            raise TaskError(f"{label}: it is {type(own).__name__}, not a mapping or a SearchSpace.")
        try:
            return space.changed(own)
        except SettingsError as error:
            raise TaskError(f"{label}: {error}") from error

    @classmethod
    def from_toml(cls, file: Path, base: "SearchSpace") -> "SearchSpace":
        """Read a space from a file; what the file does not name is the base's.

        Raises:
            InputError: The file cannot be read, or is no TOML.
            SettingsError: It names what no space has, or a value that is not allowed.
        """
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"The space file {file} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or a path that no file can have
            raise InputError(f"The space file {file} is not TOML: {error}.") from error
        try:
            return base.changed(values)
        except SettingsError as error:
            raise SettingsError(f"The space file {file} cannot be used: {error}") from error

    def to_toml(self) -> str:
        """The whole space as a file that :meth:`from_toml` reads, with comments."""
        lines = [f"# {line}" for line in _HEAD.splitlines()]
        for name, text in self.texts().items():
            description = type(self).model_fields[name].description or ""
            lines += ["", *textwrap.wrap(description, 98, initial_indent="# ", subsequent_indent="# ")]
            lines.append(f"{name} = {text}")
        return "\n".join(lines) + "\n"

    def texts(self) -> dict[str, str]:
        """The values of all fields as TOML writes them."""
        return {name: toml_of(getattr(self, name)) for name in type(self).model_fields}

    def changed(self, values: Mapping[str, Any]) -> "SearchSpace":
        """This space with other values of some fields.

        Raises:
            SettingsError: There is no such field, or a value is not allowed.
        """
        fields = list(type(self).model_fields)
        for name in values:
            if name not in fields:
                near = difflib.get_close_matches(str(name), fields, 1)
                help_ = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(fields)}"
                raise SettingsError(f"SearchSpace: there is no setting {name!r}: {help_}")
        return SearchSpace.from_dict({**self.to_dict(), **values})

    def with_steps(self, steps: Collection[str]) -> "SearchSpace":
        """This space with these kinds of steps only: as many of each as it has, or the usual number if it has none.

        Args:
            steps: Of ``grow`` and ``prune``.
        """
        dendrites = (self.dendrites or _DENDRITES) if "grow" in steps else 0
        prunings = (self.prunings or _PRUNINGS) if "prune" in steps else 0
        return self.changed({"dendrites": dendrites, "prunings": prunings})

    @property
    def steps(self) -> list[Step]:
        """What may lead from a milestone to the next. Generations first: there are fewer, and each costs more."""
        steps: list[Step] = ["grow"] if self.dendrites else []
        return [*steps, "prune"] if self.prunings else steps

    def suggest(self, trial: BaseTrial, seed: int) -> TrialConfig:
        """Draw a configuration. A trial's ``dendrites`` and ``pruned`` are its rung, not part of the configuration.

        What is fixed is no parameter of the trial, save the width. What a configuration has no use for, such as the
        pattern of dendrites that see all inputs, is not drawn, and stays as the core has it.

        Args:
            trial: Optuna's trial.
            seed: Keys the configuration's random streams.
        """

        def draw(*names: str, when: bool = True) -> dict[str, Any]:
            return {name: self._draw(trial, name) for name in names} if when else {}

        training = draw("width", "learning_rate", "weight_decay", "batch_size", "gradient_clip", "mixed_precision")
        kind = self._draw(trial, "schedule")
        schedule = {"neuron": self._rule(trial, "neuron", kind)}

        grows = self.dendrites > 0
        spec = draw("variant", when=grows)
        made = grows and spec["variant"] != "sham"
        learns = grows and spec["variant"] in ("perforated", "joint")
        schedule |= draw("acceptance", "tries", when=grows)
        spec |= draw("nonlinearity", "per_neuron", "fan_in", "sees", "placement", when=made)
        spec |= draw("pattern", when=spec.get("fan_in") is not None)
        spec |= draw("grid", when=spec.get("pattern") == "window")
        spec |= draw("outgoing_scale", when=spec.get("variant") == "gradient")
        spec |= draw("pool", when=learns)
        spec |= draw("objective", when=learns and spec["nonlinearity"] in BOUNDED)
        training |= draw("record_budget", when=made)
        if learns:
            training |= draw("dendrite_learning_rate")
            schedule["dendrite"] = self._rule(trial, "dendrite", kind)
        training |= draw("prune_share", when=self.prunings > 0)
        return TrialConfig(**training, dendrites=DendriteSpec(**spec), schedule=CycleSchedule(**schedule), seed=seed)

    def _draw(self, trial: BaseTrial, name: str) -> Any:
        value = getattr(self, name)
        if name == "width" and isinstance(value, int):  # a parameter of every trial: tables and figures show it
            value = Range(value, value, log=True)
        return _SETTINGS[name].suggest(trial, name, value)

    def _rule(self, trial: BaseTrial, phase: str, kind: str) -> Plateau | Fixed:
        def draw(name: str) -> Any:
            return self._draw(trial, f"{phase}_{name}")

        if kind == "fixed":
            return Fixed(epochs=draw("epochs"))
        return Plateau(
            patience=draw("patience"),
            relative=(draw("threshold"),),
            absolute=draw("absolute"),
            max_epochs=draw("max_epochs"),
        )


_SETTINGS = {
    name: setting
    for name, field in SearchSpace.model_fields.items()
    for setting in field.metadata
    if isinstance(setting, Setting)
}


def configuration_seed(study_seed: int, root: int) -> int:
    """The seed of the configuration that started with trial ``root``: the same for all its rungs."""
    return key(study_seed, "configuration", root) % 2**31
