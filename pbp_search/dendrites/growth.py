"""The dendrite phase: one generation, trained on records to correlate with the error at its neurons.

The network takes no part: each module is a small problem of its own. Candidates are trained on one part of the
samples, and stopped, chosen and scored on the other, because the score on training records measures capacity as much as
signal. Beside each score stands its floor: the score of candidates trained the same way on shuffled errors.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist, stdev
from typing import Any

import torch
from torch import Tensor

from pbp_search.dendrites.call_pools import CallPart, CallPool
from pbp_search.dendrites.module import Dendrite, Dendritic
from pbp_search.dendrites.objective import (
    CorrelationSums,
    Projection,
    signed_correlation,
    signed_covariance,
    standardise,
)
from pbp_search.dendrites.optimiser import Adam
from pbp_search.dendrites.patches import Patches
from pbp_search.dendrites.pools import PatchPart, PatchPool, for_candidates
from pbp_search.dendrites.record import Record
from pbp_search.errors import InputError, TrainingError

Stop = Callable[[float], bool]
"""Told the held-out score after each epoch, says whether the phase is over."""

_PERMUTATIONS = 100
_DENSE = 5  # epochs in which candidates see all inputs, before each chooses its own
_RUNNING = 0.1  # the weight of a batch in the running estimate of a score's sign


@dataclass(frozen=True)
class Growth:
    """How the training of one module's generation went. Scores are correlations, means over the module's channels.

    Attributes:
        score: The held-out score of the candidates at their best.
        floor: The held-out score of candidates trained beside them on shuffled errors, at their own best; with few
            records for the inputs, that of linear candidates if it is more.
        noise: The standard deviation of a score that is due to chance alone, by permuting the held-out errors.
        scores: The held-out score after each epoch.
        epochs: Of all trainings.
    """

    score: float
    floor: float
    noise: float
    scores: tuple[float, ...]
    epochs: int

    def above_floor(self, tests: int = 1) -> bool:
        """Whether the score stands above its floor by more than chance.

        The difference of two scores that are due to chance is taken as normal, which would pass in 2% of cases; of
        several growths that are looked at together, at least one in 2% of cases (C. E. Bonferroni's correction). On
        pure noise fewer than 1% of single growths passed, and fewer than 2% of those that were looked at together
        (``benchmarks/noise_gate.py``, all cases counted). What passes is still judged by its validation score.

        Args:
            tests: How many growths are looked at together.
        """
        # Without noise too few samples are held out for any statement.
        limit = NormalDist(0, 2**0.5 * self.noise).inv_cdf(1 - 0.02 / tests) if self.noise > 0 else math.inf
        return self.score - self.floor > limit


def grow(
    module: Dendritic,
    record: Record,
    stop: Callable[[], Stop],
    generator: torch.Generator,
    learning_rate: float = 0.03,
) -> tuple[list[Dendrite], Growth]:
    """Train one generation for a module. The module itself is not changed: see :meth:`Dendritic.accept`.

    Args:
        module: The module, with its accepted dendrites.
        record: Inputs and errors at the module.
        stop: Makes a stopping rule for one training.
        generator: Draws the starts, the batches and the shuffles.
        learning_rate: Adam's, for the candidates' weights and their incoming U.

    Returns:
        The generation at its best held-out score, and how it went.

    Raises:
        InputError: The module is a sham: it has no dendrites to train.
        TrainingError: A candidate's weights or outputs became NaN or infinite.
    """
    if module.spec.variant == "sham":
        raise InputError("A module of the variant sham has no dendrites to train: grow nothing there.")
    start = int(torch.randint(2**62, (), generator=generator))
    problem = _Problem(module, record, generator)
    generation, scores, floors = problem.train(start, stop(), learning_rate)
    noise, epochs = problem.noise(generator), len(scores)
    if problem.ridge:
        # Too few records to take out all that is linear in the inputs: what linear candidates find is no news.
        _, linear, _ = problem.train(start, stop(), learning_rate, linear=True)
        floors, epochs = floors + linear, epochs + len(linear)
    return generation, Growth(score=max(scores), floor=max(floors), noise=noise, scores=tuple(scores), epochs=epochs)


def draw(module: Dendritic, record: Record, generator: torch.Generator) -> list[Dendrite]:
    """A generation that is not trained: dendrites at a random start, drawn for standardised inputs as candidates are.

    Args:
        module: The module, with its accepted dendrites. It is not changed.
        record: Inputs at the module; statistics of batches in copied blocks are those of the training part.
        generator: Draws the start.
    """
    if module.spec.variant == "sham":
        return []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        part_type, pool_type = _types(module)
        pool = pool_type(module, part_type(module, record.training), module.spec.per_neuron)
        if pool.dense:
            pool.choose_inputs()
        every = torch.arange(module.spec.per_neuron, device=module.outgoing.device).unsqueeze(1)
        generation: list[Dendrite] = pool.chosen(every.expand(-1, module.channels))
        return generation


def _types(module: Dendritic) -> tuple[type[Any], type[Any]]:
    """The part and the pool that fit a module."""
    return (PatchPart, PatchPool) if Patches.fit(module.module) else (CallPart, CallPool)


class _Problem:
    """Maximise the sum of S_i over the candidates' own weights and their incoming U."""

    def __init__(self, module: Dendritic, record: Record, generator: torch.Generator) -> None:
        self.module = module
        self.objective = signed_correlation if module.spec.objective == "correlation" else signed_covariance
        part, self.pool_type = _types(module)
        self.training, self.held_out = (
            part(module, some, record.budget) for some in (record.training, record.held_out)
        )
        # Each part by its own fit: that of other records, taken out of a record far from them, would leave an error
        # that depends on its inputs, shuffled or not.
        self.ridge = False
        self.errors, self.held_out_errors = (self._kinds(some, generator) for some in (self.training, self.held_out))

    def _kinds(self, part: Any, generator: torch.Generator) -> Tensor:
        """What is left of the errors, and of errors that were taken from other samples; standardised, (R, 2, C).

        What the neuron knows already stays in both: where few records leave some of it in, it is left in here too.
        """
        projection = Projection(part.inputs, part.activations, part.errors)
        self.ridge |= projection.fit.ridge
        shuffled = part.errors - projection.left + _permuted(projection.left, part.samples, generator)
        other = Projection(part.inputs, part.activations, shuffled, projection.fit)
        return torch.stack([standardise(projection.left), standardise(other.left)], 1)

    def train(
        self, seed: int, stop: Stop, learning_rate: float, linear: bool = False
    ) -> tuple[list[Dendrite], list[float], list[float]]:
        """The generation at its best held-out score, that score after each epoch, and that of the shuffled errors.

        Both kinds of errors have candidates of their own, which learn side by side: as many at a time as have room.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pool = self.pool_type.searched(self.module, self.training, self.errors, linear)
            batches = torch.Generator().manual_seed(seed)
            best, scores, floors, over = dict[str, Tensor](), list[float](), list[float](), False
            with torch.no_grad():
                first = self.training.first(1)
                running = torch.cat([self._signed(pool, first, turn) for turn in pool.turns(self.training)])
            optimiser = Adam(list(pool.parameters()), learning_rate)
            if pool.dense:
                for _ in range(_DENSE):
                    running = self._epoch(pool, optimiser, running, batches)
                pool.choose_inputs()
                optimiser = Adam(list(pool.parameters()), learning_rate)
            while not over:
                running = self._epoch(pool, optimiser, running, batches)
                score, floor = (float(found.gather(0, pool.choice(found)[:1]).mean()) for found in self._scores(pool))
                if not best or score > max(scores):
                    best = copy.deepcopy(pool.state_dict())
                scores.append(score)
                floors.append(floor)
                over = stop(score)
            pool.load_state_dict(best)
            _check_finite(*pool.parameters())
            choice = pool.choice(self._scores(pool)[0])
            with torch.no_grad():
                pieces = [v.take_along_dim(choice[:1].unsqueeze(0), 1) for _, v in self._outputs(pool)]
            self.outputs = torch.cat(pieces)[:, 0]
            return pool.chosen(choice), scores, floors

    def _epoch(self, pool: PatchPool | CallPool, optimiser: Adam, running: Tensor, batches: torch.Generator) -> Tensor:
        """Train for an epoch, and return the running estimate of the signed scores."""
        pool.train()
        turns = pool.turns(self.training)
        for rows in self.training.batches(batches):
            optimiser.zero_grad()
            for some in turns:
                signed = self._signed(pool, rows, some)
                # |S| with the sign of a running estimate: a weak correlation has a random sign in a batch.
                running[some].lerp_(signed.detach(), 1.0 if rows is None else _RUNNING)
                (-(signed * running[some].sign()).sum()).backward()
            optimiser.step()
        return running

    def _signed(self, pool: PatchPool | CallPool, rows: Tensor | None, some: slice) -> Tensor:
        """The objective with its sign of some candidates at some rows of the training part, shape (some, C)."""
        errors = self.errors if rows is None else self.errors[rows]
        signed: Tensor = self.objective(
            pool.outputs(self.training, rows, some), for_candidates(errors, self.module.spec.pool, some)
        )
        return signed

    def _outputs(self, pool: PatchPool | CallPool) -> Iterator[tuple[Tensor | None, Tensor]]:
        """Held-out rows, and V there, shape (rows, 2 * P, C): in pieces, because all of it may be large."""
        for rows in self.held_out.pieces():
            outputs = pool.eval().outputs(self.held_out, rows)
            _check_finite(outputs)
            yield rows, outputs

    @torch.no_grad()
    def _scores(self, pool: PatchPool | CallPool) -> Tensor:
        """The held-out correlation of every candidate, of each kind of errors: shape (2, P, C)."""
        errors, total = self.held_out_errors, CorrelationSums()
        for rows, outputs in self._outputs(pool):
            some = errors if rows is None else errors[rows]
            total.add(outputs, for_candidates(some, self.module.spec.pool))
        scores: Tensor = total.correlation().abs().clamp(max=1.0).unflatten(0, (2, -1))
        return scores

    @torch.no_grad()
    def noise(self, generator: torch.Generator) -> float:
        """The standard deviation of the chosen candidates' score when the held-out errors are permuted.

        By sample: a sample's positions stay together, because they are alike.
        """
        scores, outputs, errors = list[float](), standardise(self.outputs), self.held_out_errors[:, 0]
        for _ in range(_PERMUTATIONS):
            permuted = _permuted(errors, self.held_out.samples, generator)
            # As plain numbers: a tensor kept from each turn would split the memory that the next one takes anew.
            scores.append(float((outputs * permuted).mean(0).abs().mean()))
        return stdev(scores)


def _permuted(errors: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Errors (R, C) of other samples, whose positions stay together."""
    order = torch.randperm(samples, generator=generator)
    return errors.reshape(samples, -1, errors.shape[1])[order].flatten(0, 1)


def _check_finite(*values: Tensor) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise TrainingError("A dendrite's weights or outputs became NaN or infinite: try a smaller learning rate.")
