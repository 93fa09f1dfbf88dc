"""The cycle: from one milestone to the next.

    train neurons -> restore the best weights -> milestone 0
      -> grow a generation, freeze it, connect it with W = 0 -> train neurons -> accepted?
           yes: the next milestone
           no:  throw the generation away, restore the previous milestone, try again, up to `tries`

A rung is one step of this: the network without dendrites, or one generation more than the milestone before. Or it is a
pruning step: of any milestone, a share of the weights is removed, and the neurons train again. It is computed from that
milestone and the configuration alone.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pbp_search.dendrites import (
    Dendrite,
    Growth,
    Record,
    dendritic_modules,
    draw,
    grow,
    parameter_count,
    record,
    weight_bytes,
)
from pbp_search.errors import SettingsError
from pbp_search.training.config import TrialConfig
from pbp_search.training.data import Data, on_device, recording_batches
from pbp_search.training.device import device_of
from pbp_search.training.milestone import (
    Checkpoint,
    EpochRecord,
    GrowthRecord,
    Milestone,
    Phase,
    Step,
    build_network,
    macs_of,
    weights_of,
)
from pbp_search.training.neuron_phase import evaluate, train_neurons
from pbp_search.training.pruning import prune, stored_bytes, stored_parameters
from pbp_search.training.stopping import Stopper, better
from pbp_search.training.streams import generator, global_stream
from pbp_search.training.task import Task

OnEpoch = Callable[[EpochRecord], None]


def run_chain(
    task: Task,
    config: TrialConfig,
    dendrites: int,
    data: Data[Any] | None = None,
    on_epoch: OnEpoch | None = None,
    device: str = "auto",
) -> list[Checkpoint]:
    """Train a network and grow generations on it, one milestone each, until one is thrown away.

    Args:
        task: What is learned.
        config: The configuration.
        dendrites: How many generations to grow at most.
        data: The task's data, if they are loaded already.
        on_epoch: Told every epoch.
        device: Where to train: ``auto`` (CUDA, else MPS, else the CPU), or torch's name of a device.

    Returns:
        The milestones, from 0 dendrites on. The last one has fewer dendrites than requested if its generation was
        thrown away.
    """
    data = data or task.data()
    chain = [run_rung(task, config, None, data, on_epoch, device)]
    while len(chain) <= dendrites and chain[-1].milestone.accepted:
        chain.append(run_rung(task, config, chain[-1], data, on_epoch, device))
    return chain


def run_rung(
    task: Task,
    config: TrialConfig,
    previous: Checkpoint | None = None,
    data: Data[Any] | None = None,
    on_epoch: OnEpoch | None = None,
    device: str = "auto",
    check: Callable[[], None] | None = None,
    step: Step = "grow",
) -> Checkpoint:
    """Train the network without dendrites, grow one generation on a milestone, or prune it.

    Args:
        task: What is learned.
        config: The configuration of the chain.
        previous: The milestone to continue; None starts the chain.
        data: The task's data, if they are loaded already.
        on_epoch: Told every epoch; what it raises ends the rung.
        device: Where to train: ``auto`` (CUDA, else MPS, else the CPU), or torch's name of a device. A milestone can
            be continued on another one, but only the same kind gives the same bits.
        check: Called after every epoch, in a dendrite phase too, whose epochs are told at its end; what it raises ends
            the rung.
        step: What leads from the previous milestone to the next.

    Returns:
        The next milestone. If every try of the generation was useless, it holds the previous network.

    Raises:
        TrainingError: A loss, error or score became NaN or infinite.
        SettingsError: The previous milestone is of another configuration, or a generation shall grow where the one
            before was thrown away; or there is none to prune.
        InputError: There is no such device.
    """
    if previous is None and step != "grow":
        raise SettingsError(f"There is nothing to {step} yet: a chain starts with the network without dendrites.")
    if previous is not None and previous.milestone.config != config:
        raise SettingsError("A rung continues a milestone of the same configuration: this one is of another one.")
    if previous is not None and step == "grow" and not previous.milestone.accepted:
        raise SettingsError("A generation grows on a milestone whose own was accepted: this one's was thrown away.")
    return _Rung(task, config, previous, data or task.data(), on_epoch, device_of(device), check, step).run()


class _Rung:
    def __init__(
        self,
        task: Task,
        config: TrialConfig,
        previous: Checkpoint | None,
        data: Data[Any],
        on_epoch: OnEpoch | None,
        device: torch.device,
        check: Callable[[], None] | None,
        step: Step,
    ) -> None:
        self.task = task
        self.config = config
        self.previous = previous
        self.device = device
        self.source = data
        self.data = Data(*(on_device(part, device) for part in (data.train, data.validation, data.test)))
        self.on_epoch = on_epoch
        self.check = check or (lambda: None)
        self.step = step
        self.generation = 0 if previous is None else previous.milestone.dendrites + (step == "grow")
        self.pruned = 0 if previous is None else previous.milestone.pruned + (step == "prune")
        self.epochs = 0 if previous is None else previous.milestone.epochs
        self.started = time.monotonic()
        self.history: list[EpochRecord] = []
        self.growth: list[GrowthRecord] = []

    def run(self) -> Checkpoint:
        if self.previous is None:
            network = build_network(self.task, self.config, 0).to(self.device)
            return self._milestone(network, self._train_neurons(network, attempt=0))
        if self.step == "prune":
            network = self.previous.network(self.task, self.source).to(self.device)
            prune(network, self.config.prune_share)
            return self._milestone(network, self._train_neurons(network, attempt=0))
        for attempt in range(self.config.schedule.tries):
            network = self.previous.network(self.task, self.source).to(self.device)
            if not self._grow(network, attempt):
                continue
            score = self._train_neurons(network, attempt)
            if better(score, self.previous.milestone.score, self.task.direction, self.config.schedule.acceptance):
                return self._milestone(network, score)
        return self._thrown_away(self.previous)

    def _train_neurons(self, network: nn.Module, attempt: int) -> float:
        def on_epoch(epoch: int, values: dict[str, float]) -> None:
            self.epochs += 1
            self._report("neuron", attempt, epoch, values)
            self.check()

        task, data, config = self.task, self.data, self.config
        return train_neurons(network, task, data, config, self.generation, attempt, on_epoch, self.pruned)

    def _grow(self, network: nn.Module, attempt: int) -> bool:
        """Give every module a generation. False if none learned anything beyond chance: W is not trained then.

        A generation is one unit, as in the paper: it goes to all modules or to none, and validation judges the whole.
        """
        variant, modules = self.config.dendrites.variant, dendritic_modules(network)
        if variant == "sham":
            return True
        if self.device.type == "mps":  # it has no double precision, which projections need
            network.cpu()
        records = self._records(network, attempt)
        growths: dict[str, Growth] = {}
        generations: dict[str, list[Dendrite]] = {}
        for name, module in modules.items():
            stream = generator(self.config.seed, "dendrite", self.generation, attempt, name)
            if self.config.dendrites.learned:
                generations[name], growths[name] = grow(
                    module,
                    records.pop(name),
                    self._stopper,
                    stream,
                    self.config.dendrite_learning_rate,
                )
            else:  # the controls have no dendrite phase: theirs train with the neurons, or stay as they start
                generations[name] = draw(module, records.pop(name), stream)
        # All modules are recorded and trained on the same frozen network before any is changed.
        with global_stream(self.config.seed, "dendrite", self.generation, attempt):
            for name, module in modules.items():
                module.accept(generations[name])
        network.to(self.device)
        if not self.config.dendrites.learned:
            return True
        self._report_growth(attempt, growths)
        return any(growth.above_floor for growth in self.growth if growth.attempt == attempt)

    def _stopper(self) -> Callable[[float], bool]:
        stop = Stopper(self.config.schedule.dendrite, self.generation - 1, "maximize")

        def is_over(score: float) -> bool:
            self.check()
            return stop(score)

        return is_over

    def _records(self, network: nn.Module, attempt: int) -> dict[str, Record]:
        seed = self.config.seed
        stream = generator(seed, "record", self.generation, attempt)
        with global_stream(seed, "record", self.generation, attempt):
            return record(
                network,
                self.task.loss,
                *recording_batches(self.data.train, self.config.batch_size, stream),
                budget=self.config.record_budget,
                generator=stream,
            )

    def _report_growth(self, attempt: int, growths: dict[str, Growth]) -> None:
        # Chance has as many throws as there are modules and tries.
        tests = len(growths) * self.config.schedule.tries
        for name, growth in growths.items():
            self.growth.append(
                GrowthRecord(
                    module=name,
                    generation=self.generation,
                    attempt=attempt,
                    score=growth.score,
                    floor=growth.floor,
                    noise=growth.noise,
                    above_floor=growth.above_floor(tests),
                )
            )
        self.epochs += max(growth.epochs for growth in growths.values())
        # The modules' phases are independent and may differ in length; a finished one keeps its last score.
        for epoch in range(max(len(growth.scores) for growth in growths.values())):
            values = {
                f"correlation/{name}": growth.scores[min(epoch, len(growth.scores) - 1)]
                for name, growth in growths.items()
            }
            self._report("dendrite", attempt, epoch, values)

    def _report(self, phase: Phase, attempt: int, epoch: int, values: dict[str, float]) -> None:
        epoch_record = EpochRecord(phase=phase, generation=self.generation, attempt=attempt, epoch=epoch, values=values)
        self.history.append(epoch_record)
        if self.on_epoch is not None:
            self.on_epoch(epoch_record)

    def _milestone(self, network: nn.Module, score: float) -> Checkpoint:
        previous = self.previous
        milestone = Milestone(
            config=self.config,
            requested=previous.milestone.requested if previous and self.step == "prune" else self.generation,
            dendrites=self.generation,
            parameters=stored_parameters(network) if self.pruned else parameter_count(network),
            weight_bytes=stored_bytes(network) if self.pruned else weight_bytes(network),
            macs=macs_of(network, self.data),
            score=score,
            train_score=evaluate(network, self.task, self.data.train),
            epochs=self.epochs,
            seconds=self._seconds(),
            growth=tuple(self.growth),
            pruned=self.pruned,
        )
        return Checkpoint(milestone, weights_of(network), tuple(self.history))

    def _thrown_away(self, previous: Checkpoint) -> Checkpoint:
        milestone = previous.milestone.model_copy(
            update={
                "requested": self.generation,
                "epochs": self.epochs,
                "seconds": self._seconds(),
                "growth": tuple(self.growth),
            }
        )
        return Checkpoint(milestone, previous.weights, tuple(self.history))

    def _seconds(self) -> float:
        earlier = 0.0 if self.previous is None else self.previous.milestone.seconds
        return earlier + time.monotonic() - self.started
