"""A milestone: the network as it stood at its best in one cycle, and its file.

A milestone's file is a safetensors file whose metadata hold everything else as JSON: one file, written beside and
renamed, so that it is there as a whole or not at all; loading it runs no code.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pbp_search.dendrites import attach, multiply_accumulates
from pbp_search.dendrites.record import called
from pbp_search.errors import CheckpointError, TaskError
from pbp_search.settings import Settings
from pbp_search.training.config import TrialConfig
from pbp_search.training.data import Data, Source, first_batch, moved
from pbp_search.training.streams import global_stream
from pbp_search.training.task import DeepTask, Task, adapters_of

FORMAT = "pbp-search-milestone-3"

Phase = Literal["neuron", "dendrite"]

Step = Literal["grow", "prune"]
"""What leads from one milestone to the next: one generation more, or fewer weights."""

Size = Literal["parameters", "weight_bytes", "macs"]

UNITS: dict[Size, str] = {
    "parameters": "parameters",
    "weight_bytes": "bytes of weights",
    "macs": "multiply-accumulates",
}
"""What each kind of size counts, in words."""


class EpochRecord(Settings):
    """What one epoch measured.

    Attributes:
        phase: The neuron or the dendrite phase.
        generation: Which generation was trained; 0 in the cycle without dendrites.
        attempt: Which try of that generation, from 0.
        epoch: Counts within the phase, from 0.
        values: The figures by name.
    """

    phase: Phase
    generation: int
    attempt: int
    epoch: int
    values: dict[str, float]


class GrowthRecord(Settings):
    """How a generation's training went at one module: see :class:`pbp_search.dendrites.Growth`.

    ``above_floor`` counts all modules and tries of the rung as tests.
    """

    module: str
    generation: int
    attempt: int
    score: float
    floor: float
    noise: float
    above_floor: bool


class Milestone(Settings):
    """A network of a chain, as plain figures.

    Attributes:
        config: The configuration of the chain.
        requested: The dendrite generations that were asked for.
        dendrites: The generations the network has; fewer than requested if the last one was thrown away.
        parameters: What the folded network stores, without the weights that are pruned.
        weight_bytes: The bytes of its parameters and buffers; of a pruned network see
            :func:`pbp_search.training.pruning.stored_bytes`.
        macs: Its multiply-accumulates for one sample: see :func:`pbp_search.dendrites.multiply_accumulates`. Those of
            pruned weights count: without a kernel for sparse weights they are computed.
        score: The metric on the validation data.
        train_score: The metric on the training data.
        epochs: Epochs of both phases since the start of the chain, failed tries included.
        seconds: Wall-clock seconds since the start of the chain, tries that failed included.
        growth: How the generations of this rung went, tries that failed included.
        pruned: Its pruning steps.
    """

    config: TrialConfig
    requested: int = Field(ge=0)
    dendrites: int = Field(ge=0)
    parameters: int
    weight_bytes: int
    macs: int
    score: float
    train_score: float
    epochs: int
    seconds: float
    growth: tuple[GrowthRecord, ...] = ()
    pruned: int = Field(0, ge=0)

    @property
    def accepted(self) -> bool:
        """Whether the last generation that was asked for stayed."""
        return self.dendrites == self.requested

    def size(self, kind: Size) -> int:
        """The figure of one kind; at least 1, for logarithms."""
        return max(1, int(getattr(self, kind)))


@dataclass(frozen=True)
class Checkpoint:
    """A milestone with its network's weights, and the epochs of the rung that led to it."""

    milestone: Milestone
    weights: dict[str, Tensor]
    history: tuple[EpochRecord, ...] = ()

    def network(self, task: Task, data: Data[Any] | None = None) -> nn.Module:
        """Build the network and give it the milestone's weights.

        Args:
            task: The milestone's task.
            data: Its data, if they are loaded already. They are needed for dendrites that see another tensor only.

        Raises:
            CheckpointError: The weights do not fit the task's network.
        """
        network = build_network(task, self.milestone.config, self.milestone.dendrites, data)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"The milestone's weights do not fit the task {task.name!r}: has its model changed? ({error})"
            ) from None
        return network

    def save(self, path: Path) -> None:
        """Write the milestone's file, as a whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {
            "format": FORMAT,
            "milestone": self.milestone.model_dump_json(),
            "history": json.dumps([epoch.to_dict() for epoch in self.history]),
            "digest": _digest(self.weights),
        }
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file({name: value.contiguous() for name, value in self.weights.items()}, beside, metadata)
            beside.replace(path)
        except SafetensorError as error:  # how this library says that a disk is full
            raise OSError(f"The milestone {path} cannot be written: {error}") from error
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a milestone's file.

        Raises:
            CheckpointError: The file is missing, damaged or of another format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CheckpointError(
                        f"{path} has the format {metadata.get('format')!r}: this version reads {FORMAT!r}."
                    )
                weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            if metadata["digest"] != _digest(weights):
                raise CheckpointError(f"The milestone file {path} is damaged: its weights are not those written.")
            return cls(
                milestone=Milestone.from_dict(json.loads(metadata["milestone"])),
                weights=weights,
                history=tuple(EpochRecord.from_dict(epoch) for epoch in json.loads(metadata["history"])),
            )
        except FileNotFoundError:
            raise CheckpointError(f"There is no milestone file {path}.") from None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"The milestone file {path} is damaged: {error}") from error


def _digest(weights: dict[str, Tensor]) -> str:
    """A checksum of weights: no other part of the file would tell that a bit of them has flipped."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def build_network(task: Task, config: TrialConfig, dendrites: int, data: Data[Any] | None = None) -> nn.Module:
    """A network of the task with a number of untrained generations on every module.

    Raises:
        TaskError: The configuration asks for a linear network, and the task's data or outputs have no place for one.
    """
    with global_stream(config.seed, "network"):
        network = _network(task, config, data)
        modules = attach(network, config.dendrites, adapters_of(task))
        if dendrites and config.dendrites.sees is not None:  # how large that is, a pass tells
            with torch.no_grad():
                called(network.eval(), first_batch((data or task.data()).train, 2)[0])
            network.train()
        for module in modules.values():
            for _ in range(dendrites):
                module.accept(module.generation())
    return network


def _network(task: Task, config: TrialConfig, data: Data[Any] | None) -> nn.Module:
    if config.network == "linear":
        return linear_network(task, (data or task.data()).train)
    if config.depth is None:
        return task.model(config.width)
    return cast("DeepTask", task).model(config.width, config.depth)


def linear_network(task: Task, source: Source) -> nn.Module:
    """One linear layer from all inputs of a sample to the outputs of the task's networks: a logistic regression,
    where those are logits.

    Raises:
        TaskError: A batch's inputs are not one tensor of floating-point numbers, or the outputs are none of shape (N,)
            or (N, C).
    """
    inputs = first_batch(source, 2)[0]
    with torch.no_grad():
        outputs = called(task.model(task.widths[0]).eval(), inputs)
    fits = isinstance(outputs, Tensor) and outputs.ndim in (1, 2)
    if not fits or not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise TaskError(
            f"The task {task.name!r} has no linear network: that needs inputs that are one tensor of floating-point "
            "numbers, and outputs of shape (N,) or (N, C)."
        )
    layer = nn.Linear(inputs[0].numel(), 1 if outputs.ndim == 1 else outputs.shape[1])
    return nn.Sequential(nn.Flatten(), layer, *([nn.Flatten(0)] if outputs.ndim == 1 else []))


def macs_of(network: nn.Module, data: Data[Any]) -> int:
    """The multiply-accumulates of a network for one training sample: always of the same few samples."""
    device = next(network.parameters()).device
    with global_stream(0, "macs"):  # it may say which batch of a loader is the first
        return multiply_accumulates(network, moved(first_batch(data.train, 2), device)[0])


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's state, in the CPU's memory."""
    return {name: value.detach().to("cpu", copy=True) for name, value in network.state_dict().items()}
