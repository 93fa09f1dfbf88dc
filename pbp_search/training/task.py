"""A task: the user's data, network, loss and score. One class is all it takes to bring a problem of one's own."""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.data import Dataset

from pbp_search.dendrites import Adapters, attach, record
from pbp_search.dendrites.record import called
from pbp_search.errors import InputError, PbpSearchError, TaskError, TrainingError, UnsupportedModuleError, said
from pbp_search.training.config import CycleSchedule, Fixed, Plateau, TrialConfig
from pbp_search.training.data import (
    Batch,
    Data,
    Source,
    Split,
    cut,
    evaluation_batches,
    first_batch,
    joined,
    recording_batches,
)
from pbp_search.training.optimisers import optimiser_of

_SOME = 64  # samples, where a few do not show it

T = TypeVar("T")
Direction = Literal["maximize", "minimize"]


@runtime_checkable
class Task(Protocol):
    """What a user writes. Everything is deterministic: two calls of a method give the same answer.

    Attributes:
        name: Names the default study; letters, digits, ``-``, ``_`` and ``.``.
        metric: What ``score`` measures, for example ``"accuracy"``.
        direction: Whether the metric is to be maximised or minimised.
        widths: The smallest and the largest base width that a study tries.
    """

    name: str
    metric: str
    direction: Direction
    widths: tuple[int, int]

    def data(self) -> Data[Any]:
        """The data: tensors in memory, Datasets or DataLoaders."""

    def model(self, width: int) -> nn.Module:
        """A network of a base width, at a random start drawn from torch's global stream."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One loss per sample, shape (N,)."""

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The metric over all samples given."""


@runtime_checkable
class DeepTask(Task, Protocol):
    """A task whose networks can be deeper: its ``model`` takes a depth, too, with a default."""

    def model(self, width: int, depth: int = ...) -> nn.Module:
        """A network of a base width and a depth, by whatever measure."""


def is_deep(task: Task) -> bool:
    """Whether a task's ``model`` takes a depth."""
    return "depth" in inspect.signature(task.model).parameters


class ClassificationTask:
    """A base for tasks whose networks return logits, shape (N, classes), for class indices, shape (N,)."""

    metric: str = "accuracy"
    direction: Direction = "maximize"
    widths: tuple[int, int] = (2, 64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each sample, shape (N,)."""
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The share of samples whose largest logit is that of their class."""
        return float((outputs.argmax(-1) == targets).cpu().double().mean())


def adapters_of(task: Task) -> Adapters:
    """The adapters that a task has for modules of its networks: its attribute ``adapters``, which may be missing."""
    adapters: Adapters = getattr(task, "adapters", {})
    return adapters


def check_task(task: Task) -> Data[Any]:
    """Try every method of a task on a few samples before a study is made of it.

    Returns:
        The task's data.

    Raises:
        TaskError: Something is missing, fails or does not fit; the message says what.
        UnsupportedModuleError: Dendrites cannot be attached to the network.
    """
    label = f"The task {type(task).__name__}"
    missing = [name for name in ("data", "model", "loss", "score") if not callable(getattr(task, name, None))]
    fields = ("name", "metric", "direction", "widths")
    missing += [name for name in fields if not attempt(f"{label}: {name} failed", partial(hasattr, task, name))]
    if missing:
        raise TaskError(f"{label} has no {', '.join(missing)}: see docs/writing-a-task.md for what a task needs.")
    for field in ("name", "metric"):
        if not isinstance(getattr(task, field), str) or not getattr(task, field):
            raise TaskError(f"{label} has the {field} {getattr(task, field)!r}: it must be a text.")
    if task.direction not in ("maximize", "minimize"):
        raise TaskError(f"{label} has the direction {task.direction!r}: it must be 'maximize' or 'minimize'.")
    _check_widths(task, label)
    data = attempt(f"{label}: data() failed", task.data)
    if not isinstance(data, Data):
        raise TaskError(f"{label}: data() returned {type(data).__name__}: it must return pbp_search.Data.")
    for part in ("train", "validation", "test"):
        _check_source(getattr(data, part), part, label)
    for part in ("validation", "test"):
        split = getattr(data, part)
        if isinstance(data.train, Split) and isinstance(split, Split):
            _check_alike(data.train.inputs, split.inputs, f"{part} inputs", "training inputs", label)
            _check_alike(data.train.targets, split.targets, f"{part} targets", "training targets", label)
    _check_network(task, data, label)
    _check_score(task, data, label)
    return data


def _check_widths(task: Task, label: str) -> None:
    widths = task.widths
    whole = isinstance(widths, tuple | list) and len(widths) == 2 and all(type(width) is int for width in widths)
    if not whole or not 1 <= widths[0] <= widths[1]:
        raise TaskError(f"{label} has the widths {widths!r}: they must be two whole numbers, 1 <= smallest <= largest.")


def _check_source(source: object, part: str, label: str) -> None:
    if isinstance(source, Split):
        _check_split(source, part, label)
        return
    if not isinstance(source, Dataset | Iterable) or isinstance(source, Iterator | Tensor):
        raise TaskError(
            f"{label}: the {part} data are {type(source).__name__}: they must be a pbp_search.Split of two tensors, a "
            "Dataset, or an iterable of batches that can be passed again and again, such as a DataLoader."
        )
    batch = attempt(f"{label}: the {part} data failed to give a batch", partial(first_batch, source, 2))
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TaskError(f"{label}: a batch of the {part} data must be a pair of inputs and targets.")


def _check_split(split: Split, part: str, label: str) -> None:
    if not all(isinstance(x, Tensor) for x in (split.inputs, split.targets)):
        raise TaskError(f"{label}: the {part} data must be a pbp_search.Split of two tensors.")
    rows, targets = (len(x) if x.ndim else 0 for x in (split.inputs, split.targets))
    if rows != targets:
        raise TaskError(f"{label}: the {part} data have {rows} inputs but {targets} targets.")
    least = 2 if part == "train" else 1
    if rows < least:
        raise TaskError(f"{label}: the {part} data have {rows} rows: at least {least} are needed.")
    for name, values in (("inputs", split.inputs), ("targets", split.targets)):
        if values.layout != torch.strided or values.requires_grad:
            kind = "require a gradient: detach them" if values.requires_grad else "are sparse: make them dense"
            raise TaskError(f"{label}: the {part} {name} {kind}.")
        if values.is_floating_point() and not bool(_usable(values, name).all()):
            bad = int((~_usable(values, name)).sum())
            what = "NaN or infinite" if name == "inputs" else "infinite"
            raise TaskError(f"{label}: the {part} {name} hold {bad} values that are {what}: clean them first.")


def _usable(values: Tensor, name: str) -> Tensor:
    """A target that is NaN may be a missing label: the loss tells."""
    return torch.isfinite(values) if name == "inputs" else ~torch.isinf(values)


def _check_alike(train: Tensor, other: Tensor, what: str, of_training: str, label: str) -> None:
    if train.shape[1:] != other.shape[1:] or train.dtype != other.dtype:
        raise TaskError(
            f"{label}: the {what} have the shape {tuple(other.shape)} and type {other.dtype}, "
            f"the {of_training} {tuple(train.shape)} and {train.dtype}: they must be alike but for the rows."
        )


def _check_network(task: Task, data: Data[Any], label: str) -> None:
    smallest, largest = task.widths
    for width in sorted({smallest, round(math.sqrt(smallest * largest)), largest}):
        _check_width(task, data.train, width, label)


def _check_width(task: Task, source: Source, width: int, label: str) -> None:
    inputs, targets = first_batch(source, 2)
    rows = len(tree_flatten(targets)[0][0])
    with torch.random.fork_rng(devices=[]):
        network = attempt(f"{label}: model({width}) failed", partial(task.model, width))
        if not isinstance(network, nn.Module):
            raise TaskError(f"{label}: model({width}) returned {type(network).__name__}: it must return an nn.Module.")
        if network is attempt(f"{label}: model({width}) failed the second time", partial(task.model, width)):
            raise TaskError(f"{label}: model({width}) returned the same network twice: it must build a new one.")
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise TaskError(f"{label}: model({width}) has no parameter to train: all are frozen, or there are none.")
        attach(network, adapters=adapters_of(task))
        network.eval()
        outputs = attempt(f"{label}: the forward pass of model({width}) failed", partial(called, network, inputs))
    if not isinstance(outputs, Tensor) or not outputs.ndim or len(outputs) != rows:
        raise TaskError(f"{label}: model({width}) must return one tensor with a row for each sample.")
    losses = attempt(f"{label}: loss failed", partial(task.loss, outputs, targets))
    if not isinstance(losses, Tensor) or losses.shape != (rows,):
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise TaskError(
            f"{label}: loss returned {shape} for {rows} samples: it must return one loss per sample, shape ({rows},). "
            'With torch\'s losses, pass reduction="none".'
        )
    if not losses.requires_grad:
        raise TaskError(f"{label}: the loss does not depend on the network: it has no gradient.")

    def recorded(samples: int) -> None:
        few = [first_batch(source, samples)]
        record(network, task.loss, few, held_out=few)

    try:
        _with_few(recorded)
    except TrainingError as error:
        raise TaskError(f"{label}: before any training, {error}") from error


def _with_few(recorded: Callable[[int], None]) -> None:
    """Record two samples a batch, or more where these do not reach every module (experts that samples are sent to)."""
    try:
        recorded(2)
    except UnsupportedModuleError:
        recorded(_SOME)


def _check_score(task: Task, data: Data[Any], label: str) -> None:
    """All losses and the validation score of the smallest network: what a few samples do not show."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = task.model(task.widths[0])
        network.train()
        few = first_batch(data.train, _SOME)[0]
        if not isinstance(few, Tensor) or len(few) > 1:
            _check_training_mode(network, few, label)
        network.eval()
        for part, source in (("training", data.train), ("validation", data.validation)):
            what = f"{label}: the {part} data failed in"
            passed = partial(_passed, network, task, source, what)
            outputs, targets = attempt(what.removesuffix(" in"), passed)
        _check_recording(network, task, data.train, label)
    _check_step(network, task, first_batch(data.train, 2), label)
    score = attempt(f"{label}: score failed", lambda: float(task.score(outputs, targets)))
    if not math.isfinite(score):
        raise TaskError(f"{label}: score returned {score} for the validation data: it must return a finite number.")


def _check_recording(network: nn.Module, task: Task, source: Source, label: str) -> None:
    """What a dendrite phase begins with: some samples to learn from, and others to hold out."""
    attach(network, adapters=adapters_of(task))

    def recorded(samples: int) -> None:
        generator = torch.Generator().manual_seed(0)
        parts = recording_batches(source, TrialConfig(width=1).batch_size, generator)
        training, held_out = (part and (cut(batch, samples) for batch in islice(part, 2)) for part in parts)
        assert training is not None
        record(network, task.loss, training, held_out)

    what = f"{label}: the training data failed in a dendrite phase"
    try:
        attempt(what, partial(_with_few, recorded))
    except (InputError, TrainingError) as error:
        raise TaskError(f"{what}: {error}") from error


def _check_step(network: nn.Module, task: Task, few: Batch, label: str) -> None:
    def backward() -> None:
        task.loss(called(network, few[0]), few[1]).mean().backward()

    with torch.random.fork_rng(devices=[]):
        attempt(f"{label}: the backward pass failed", backward)
    for rule in (Fixed(), Plateau()):  # a study tries both, and schedules may ask how long they are
        config = TrialConfig(width=task.widths[0], schedule=CycleSchedule(neuron=rule))
        make = partial(optimiser_of, network, task, config)
        optimiser, _ = attempt(f"{label}: optimiser or scheduler failed for a schedule of the kind {rule.kind}", make)
        if not callable(getattr(optimiser, "step", None)):
            kind = type(optimiser).__name__
            raise TaskError(f"{label}: optimiser returned {kind}: it must return one of torch's optimisers.")
        # One that needs more than gradients, such as torch's LBFGS, fails here.
        attempt(f"{label}: a step of the optimiser {type(optimiser).__name__} failed", optimiser.step)


def _check_training_mode(network: nn.Module, few: Any, label: str) -> None:
    before, kept = copy.deepcopy(few), network.state_dict()
    hidden = {name: value.clone() for name, value in network.named_buffers() if name not in kept}
    attempt(f"{label}: the forward pass in training mode failed", partial(called, network, few))
    if not all(map(_same, tree_flatten(few)[0], tree_flatten(before)[0])):
        raise TaskError(f"{label}: the forward pass changes its inputs in place: work on a copy of them.")
    changed = [
        name for name, value in network.named_buffers() if name in hidden and not torch.equal(value, hidden[name])
    ]
    if changed:
        raise TaskError(
            f"{label}: training changes the buffer {changed[0]!r}, which is not part of the network's state: "
            "register it with persistent=True."
        )


def _same(one: Any, other: Any) -> bool:
    return not isinstance(one, Tensor) or torch.equal(one, other)


def _passed(network: nn.Module, task: Task, source: Source, what: str) -> tuple[Any, Any]:
    """The outputs and targets of all samples, whose losses have been computed too."""
    outputs, targets = [], []
    for x, y in evaluation_batches(source):
        outputs.append(attempt(f"{what} the forward pass", partial(called, network, x)))
        targets.append(y)
        attempt(f"{what} the loss", partial(task.loss, outputs[-1], y))
    return joined(outputs), joined(targets)


def attempt(what: str, call: Callable[[], T]) -> T:
    """What a call of a user's own code returns.

    Raises:
        TaskError: It failed, or ended the program: the message begins with what was attempted.
        PbpSearchError: The call raised one, whose own sentence says more.
    """
    try:
        return call()
    except (PbpSearchError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's own code may raise anything, or exit
        raise TaskError(f"{what}: {said(error)}") from error
