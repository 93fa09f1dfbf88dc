"""The dendrite phase: one generation, trained on records to correlate with the error at its neurons.

The network takes no part: each module is a small problem of its own. Candidates are trained on one part of the
samples, and stopped and scored on the other, because the score on training records measures capacity as much as
signal. Beside each score stands its floor: the score of a candidate trained the same way on shuffled errors.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from pbp_search.dendrites.module import Dendritic, Generation
from pbp_search.dendrites.objective import Projection, correlation
from pbp_search.dendrites.record import Record
from pbp_search.errors import InputError, TrainingError

Stop = Callable[[float], bool]
"""Told the held-out score after each pass over the records, says whether the phase is over."""

HELD_OUT = 0.25
"""The share of the samples on which candidates are stopped and scored."""

_PERMUTATIONS = 100


@dataclass(frozen=True)
class Growth:
    """How the training of one module's generation went. Scores are means over the module's channels.

    Attributes:
        score: The held-out score of the candidate at its best.
        floor: The held-out score of a candidate trained the same way on shuffled errors.
        noise: The standard deviation of a score that is due to chance alone, by permuting the held-out errors.
        scores: The held-out score after each pass over the records.
        epochs: Passes over the records, those for the floor included.
    """

    score: float
    floor: float
    noise: float
    scores: tuple[float, ...]
    epochs: int

    def above_floor(self, tests: int = 1) -> bool:
        """Whether the score stands above its floor by more than chance.

        The difference of two scores that are due to chance is taken as normal, which would pass in 2% of cases; of
        several growths that are looked at together, at least one in 2% of cases (C. E. Bonferroni's correction). Scores
        of few channels have heavier tails: on pure noise 2 to 6% of single growths pass, and of 16 together at least
        one in 0 to 17% of cases (``benchmarks/noise_gate.py``). What passes is still judged by its validation score.

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
    learning_rate: float = 0.01,
) -> tuple[Generation, Growth]:
    """Train one generation for a module. The module itself is not changed: see :meth:`Dendritic.accept`.

    Args:
        module: The module, with its accepted generations.
        record: Inputs and errors at the module.
        stop: Makes a stopping rule for one training.
        generator: Draws the held-out samples, the starts and the shuffles.
        learning_rate: Adam's, for the candidate's weights and its incoming U.

    Returns:
        The generation at its best held-out score, and how it went.

    Raises:
        InputError: There are fewer than 2 samples.
        TrainingError: A candidate's weights or outputs became NaN or infinite.
    """
    samples = len(record.errors)
    if samples < 2:
        raise InputError(f"A generation needs at least 2 samples, to train on and to score on, not {samples}.")
    order = torch.randperm(samples, generator=generator)
    held_out_count = min(max(round(HELD_OUT * samples), 1), samples - 1)
    held_out, train = order[:held_out_count], order[held_out_count:]

    start = int(torch.randint(2**62, (), generator=generator))
    problem = _Problem(module, record, train, held_out)
    candidate, scores = problem.train(start, stop(), learning_rate)
    shuffled = _Problem(module, record.shuffled((train, held_out), generator), train, held_out)
    _, floor_scores = shuffled.train(start, stop(), learning_rate)
    return candidate, Growth(
        score=max(scores),
        floor=max(floor_scores),
        noise=problem.noise(candidate, generator),
        scores=tuple(scores),
        epochs=len(scores) + len(floor_scores),
    )


class _Part:
    """Inputs, accepted activations and errors of some samples of a record, as rows."""

    def __init__(self, module: Dendritic, record: Record, samples: Tensor) -> None:
        rows = record.rows(samples)
        self.inputs = rows.inputs
        self.activations = module.activations(rows.inputs)
        self.errors = rows.errors
        self.samples = len(samples)

    def outputs(self, candidate: Generation) -> Tensor:
        """V, shape (R, C)."""
        outputs: Tensor = candidate(self.inputs, self.activations)
        return outputs

    def permuted_errors(self, generator: torch.Generator) -> Tensor:
        """The errors of other samples; a sample's positions stay together, because they are alike."""
        order = torch.randperm(self.samples, generator=generator)
        return self.errors.reshape(self.samples, -1)[order].reshape_as(self.errors)


class _Problem:
    """Maximise the sum of S_i over a candidate's own weights and its incoming U."""

    def __init__(self, module: Dendritic, record: Record, train: Tensor, held_out: Tensor) -> None:
        self.module = module
        self.training = _Part(module, record, train)
        self.held_out = _Part(module, record, held_out)
        projection = Projection(self.training.inputs, self.training.activations, self.training.errors)
        for part in (self.training, self.held_out):
            part.errors = projection.residual(part.inputs, part.activations, part.errors)

    def train(self, seed: int, stop: Stop, learning_rate: float) -> tuple[Generation, list[float]]:
        """The candidate at its best held-out score, and the held-out score after each pass."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            candidate = self.module.candidate()
        # fused: one kernel call a step; small candidates are mostly overhead.
        optimiser = torch.optim.Adam(candidate.parameters(), lr=learning_rate, fused=True)
        best, scores, over = dict[str, Tensor](), list[float](), False
        while not over:
            # The whole record in every step: the means, deviations and signs in S_i are the record's own.
            optimiser.zero_grad()
            (-correlation(self.training.outputs(candidate), self.training.errors).sum()).backward()
            optimiser.step()
            scores.append(self._held_out_score(candidate))
            if not best or scores[-1] > max(scores[:-1]):
                best = copy.deepcopy(candidate.state_dict())
            over = stop(scores[-1])
        candidate.load_state_dict(best)
        _check_finite(*candidate.parameters())
        return candidate, scores

    @torch.no_grad()
    def _held_out_score(self, candidate: Generation) -> float:
        outputs = self.held_out.outputs(candidate)
        _check_finite(outputs)
        return float(correlation(outputs, self.held_out.errors).mean())

    @torch.no_grad()
    def noise(self, candidate: Generation, generator: torch.Generator) -> float:
        """The standard deviation of the candidate's score when the held-out errors are permuted."""
        outputs = self.held_out.outputs(candidate)
        scores = [correlation(outputs, self.held_out.permuted_errors(generator)).mean() for _ in range(_PERMUTATIONS)]
        return float(torch.stack(scores).std())


def _check_finite(*values: Tensor) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise TrainingError("A dendrite's weights or outputs became NaN or infinite: try a smaller learning rate.")
