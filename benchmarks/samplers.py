"""What do the samplers find? Hypervolume, on problems whose front is known and on a space like ours.

    python benchmarks/samplers.py --json benchmarks/results/samplers.json

The targets on ZDT1 to 3 (E. Zitzler, K. Deb, L. Thiele, Evolutionary Computation 8, 2000) and DTLZ2 (K. Deb et al.,
CEC 2002) are the best that Optuna's own samplers (random, NSGA-II with a population of 20, TPE, GP) reached there.

The other space is the default one of a study, with its conditional parameters; what is trained is a formula: an error
that falls with size, has an optimum in the learning rate, in thresholds and in epochs, and is seen with noise. Half of
the trials are promoted rungs, as in a study; or dendrites are drawn like any parameter. The hypervolume is that of the
scores without the noise. The samplers' own time is given beside it: training a small network takes about a second.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import joblib
import moocore
import numpy as np
import optuna
from form import Figure, figure, show
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler

from pbp_search.search import SearchSpace
from pbp_search.search.promotion import next_promotion
from pbp_search.search.rungs import CONFIGURATION, DENDRITES, MILESTONE, PARENT, Rung, Rungs, trials_of
from pbp_search.search.sampler import SAMPLERS, Sampler, sampler_of
from pbp_search.training import Milestone, Plateau, TrialConfig
from pbp_search.training.streams import key

Values = tuple[float, float]


@dataclass(frozen=True)
class Problem:
    """Two objectives to minimise over the unit cube.

    Attributes:
        objectives: Computes them.
        dimensions: Of the cube.
        reference: Of the hypervolume, in both objectives.
        targets: The hypervolume wanted, by the number of evaluations.
    """

    objectives: Callable[[np.ndarray], Values]
    dimensions: int
    reference: float
    targets: dict[int, float]


def _zdt(shape: Callable[[float, float], float]) -> Callable[[np.ndarray], Values]:
    def objectives(x: np.ndarray) -> Values:
        first, g = float(x[0]), 1 + 9 * float(x[1:].mean())
        return first, g * shape(first, g)

    return objectives


def _dtlz2(x: np.ndarray) -> Values:
    radius, angle = 1 + float(((x[1:] - 0.5) ** 2).sum()), float(x[0]) * math.pi / 2
    return radius * math.cos(angle), radius * math.sin(angle)


PROBLEMS = {
    "ZDT1": Problem(_zdt(lambda f, g: 1 - math.sqrt(f / g)), 10, 11, {100: 120.6, 200: 120.6}),
    "ZDT2": Problem(_zdt(lambda f, g: 1 - (f / g) ** 2), 10, 11, {100: 89.3, 200: 97.9}),
    "ZDT3": Problem(
        _zdt(lambda f, g: 1 - math.sqrt(f / g) - f / g * math.sin(10 * math.pi * f)), 10, 11, {100: 108.5, 200: 114.9}
    ),
    "DTLZ2": Problem(_dtlz2, 6, 2.5, {100: 5.396, 200: 5.418}),
}


@dataclass(frozen=True)
class Run:
    """One search.

    Attributes:
        hypervolumes: After each number of evaluations that was asked for.
        seconds: Of the sampler, per trial: processor time, so that others on the machine do not count.
    """

    hypervolumes: dict[int, float]
    seconds: float


def _hypervolume(values: list[Values], reference: Values) -> float:
    return float(moocore.hypervolume(np.array(values), ref=reference))


def solve(problem: Problem, which: Sampler, seed: int, marks: tuple[int, ...]) -> Run:
    """Search a problem."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler_of(which, seed))
    values: list[Values] = []
    seconds = 0.0
    for _ in range(max(marks)):
        start = time.process_time()
        trial = study.ask()
        x = np.array([trial.suggest_float(f"x{place}", 0, 1) for place in range(problem.dimensions)])
        seconds += time.process_time() - start
        values.append(problem.objectives(x))
        study.tell(trial, values[-1])
    reference = (problem.reference, problem.reference)
    return Run({mark: _hypervolume(values[:mark], reference) for mark in marks}, seconds / len(values))


# Our space, with a formula in place of the training.

SPACE = SearchSpace()
NOISE = 0.01
REFERENCE = (0.5, 4.3)  # the score 0.5 as an error, and log10 of the parameters


def size_of(config: TrialConfig, dendrites: int) -> int:
    """The parameters of a perceptron 64-width-10 whose hidden units have dendrites."""
    return 75 * config.width + 10 + 66 * config.width * dendrites


def error_of(config: TrialConfig, dendrites: int) -> float:
    """The error without noise. What only dendrites need counts only with them."""

    def off(value: float, best: float) -> float:
        return float(math.log10(value / best) ** 2)

    neuron, dendrite = config.schedule.neuron, config.schedule.dendrite
    useful = 75 * config.width + 10 + 50 * config.width * dendrites
    error = 0.02 + 0.35 * math.pow(useful / 150, -0.7)
    error += 0.08 * off(config.learning_rate, 0.008 * (config.width / 16) ** -0.25)
    if isinstance(neuron, Plateau):
        error += 0.04 * math.exp(-neuron.patience / 6) + 0.01 * off(neuron.relative[0], 1e-3)
    else:
        error += 0.01 + 0.15 * math.exp(-neuron.epochs / 30)
    if dendrites == 0:
        return error
    if isinstance(dendrite, Plateau):
        error += 0.03 * math.exp(-dendrite.patience / 10) + 0.01 * off(dendrite.relative[0], 1e-2)
    else:
        error += 0.06 * math.exp(-dendrite.epochs / 30)
    return error + 0.01 * off(config.schedule.acceptance, 1e-3)


def _next_size(rung: Rung) -> int | None:
    dendrites = rung.milestone.dendrites + 1
    return None if dendrites > SPACE.dendrites else size_of(rung.milestone.config, dendrites)


def _enqueue(study: optuna.Study) -> None:
    """As a worker does: the next rung of a milestone that has earned it, or a new configuration."""
    trials = trials_of(study)
    continued = {trial.user_attrs[PARENT] for trial in trials if PARENT in trial.user_attrs}
    promoted = next_promotion(Rungs().of(trials), continued, "maximize", "parameters", _next_size)
    if promoted is None:
        study.enqueue_trial({DENDRITES: 0})
        return
    root = trials[promoted.trial].user_attrs.get(CONFIGURATION, promoted.trial)
    study.enqueue_trial(
        {**promoted.params, DENDRITES: promoted.milestone.dendrites + 1},
        user_attrs={PARENT: promoted.trial, CONFIGURATION: root},
    )


def search(which: Sampler, seed: int, evaluations: int, rungs: bool) -> Run:
    """Search our space, in rungs or with dendrites as a parameter that is drawn."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler_of(which, seed))
    values: list[Values] = []
    seconds = 0.0
    for number in range(evaluations):
        if rungs:
            _enqueue(study)
        start = time.process_time()
        trial = study.ask()
        dendrites = trial.suggest_int(DENDRITES if rungs else "generations", 0, SPACE.dendrites)
        config = SPACE.suggest(trial, seed)
        seconds += time.process_time() - start
        size, error = size_of(config, dendrites), error_of(config, dendrites)
        score = 1 - error + NOISE * float(np.random.default_rng(key(seed, "noise", number)).normal())
        reached = Milestone(
            config=config,
            requested=dendrites,
            dendrites=dendrites,
            parameters=size,
            weight_bytes=4 * size,
            macs=size,
            score=score,
            train_score=score,
            epochs=1,
            seconds=1,
        )
        trial.set_user_attr(MILESTONE, reached.to_dict())
        study.tell(trial, [score, math.log10(size)])
        values.append((error, math.log10(size)))
    return Run({evaluations: _hypervolume(values, REFERENCE)}, seconds / evaluations)


def grouped_tpe(seed: int) -> TPESampler:
    """TPE that draws together the parameters that configurations have together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, group=True)


def _figures_of_problems(names: list[str], marks: tuple[int, ...], seeds: int, jobs: int) -> list[Figure]:
    figures = []
    for name in names:
        click.echo(f"Solving {name} ...", err=True)
        problem = PROBLEMS[name]
        runs = joblib.Parallel(jobs)(joblib.delayed(solve)(problem, "auto", seed, marks) for seed in range(seeds))
        for mark in marks:
            found = [run.hypervolumes[mark] for run in runs]
            where = f"{name}, auto, {mark} evaluations"
            figures.append(figure(where, found, "hypervolume", problem.targets[mark], least=True))
        figures.append(figure(f"{name}, auto, its time a trial", [1000 * run.seconds for run in runs], "ms"))
    return figures


def _figures_of_our_space(samplers: dict[str, Sampler], evaluations: int, seeds: int, jobs: int) -> list[Figure]:
    figures = []
    for rungs in (True, False):
        for name, which in samplers.items():
            where = f"our space {'in rungs' if rungs else 'without rungs'}, {name}"
            click.echo(f"Searching {where} ...", err=True)
            runs = joblib.Parallel(jobs)(
                joblib.delayed(search)(which, seed, evaluations, rungs) for seed in range(seeds)
            )
            found = [run.hypervolumes[evaluations] for run in runs]
            figures.append(figure(f"{where}, {evaluations} trials", found, "hypervolume"))
            figures.append(figure(f"{where}, its time a trial", [1000 * run.seconds for run in runs], "ms"))
    return figures


@click.command()
@click.option("--quick", is_flag=True, help="One seed on two problems, few trials: finishes within a minute.")
@click.option("--seeds", type=click.IntRange(min=1), default=10, show_default=True, help="Runs of each search.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Processes.")
@click.option("--problem", "names", multiple=True, type=click.Choice([*PROBLEMS]), help="Only these.  [default: all]")
@click.option("--ours/--no-ours", default=True, show_default=True, help="Search our space too.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(quick: bool, seeds: int, jobs: int, names: tuple[str, ...], ours: bool, json_file: Path | None) -> None:
    """Measure and print."""
    samplers: dict[str, Sampler] = {**{name: name for name in SAMPLERS}, "tpe in groups": grouped_tpe}
    if quick:
        figures = _figures_of_problems(["ZDT1"], (100,), 1, 1)
        figures += _figures_of_our_space({"tpe": "tpe", "random": "random"}, 40, 1, 1)
    else:
        figures = _figures_of_problems(list(names or PROBLEMS), (100, 200), seeds, jobs)
        if ours:
            figures += _figures_of_our_space(samplers, 60, seeds, jobs)
    show(figures, json_file)


if __name__ == "__main__":
    main()
