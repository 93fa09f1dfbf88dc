"""Which of the searched parameters have mattered, as far as a search can tell: it is no experiment."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from pbp_search.search import Rung, Study
from pbp_search.training import Direction

_FEWEST = 4  # networks with a value, to say anything of it


def gap_to_front(rung: Rung, rungs: Sequence[Rung], direction: Direction) -> float:
    """What a network's score lacks to that of the best one that is no larger.

    Args:
        rung: The network.
        rungs: All that count, itself among them.
        direction: Of the score.
    """
    sign = 1 if direction == "maximize" else -1
    small = (other for other in rungs if other.milestone.parameters <= rung.milestone.parameters)
    return max(sign * other.milestone.score for other in small) - sign * rung.milestone.score


def importances(study: Study) -> dict[str, float]:
    """How much each parameter of the search tells networks near the front from others, largest first, 1 in all.

    PED-ANOVA of the gaps to the front: S. Watanabe et al., IJCAI 2023.
    """
    gaps = _gaps(study)
    plain = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    for trial in study.finished():
        if trial.number in gaps:
            plain.add_trial(
                optuna.trial.create_trial(
                    params=trial.params, distributions=trial.distributions, value=gaps[trial.number]
                )
            )
    if len(set(gaps.values())) < 2:
        return {}
    with warnings.catch_warnings():  # that the evaluator is experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = PedAnovaImportanceEvaluator()
    return {name: round(float(share), 3) for name, share in get_param_importances(plain, evaluator=evaluator).items()}


def choices(study: Study) -> dict[str, dict[str, tuple[int, float]]]:
    """Of each parameter with choices and each value: how many networks with dendrites had it, and their median gap to
    the front."""
    gaps = _gaps(study)
    dendritic = {rung.trial for rung in study.rungs() if rung.plan is None and rung.milestone.dendrites}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trial in study.finished():
        if trial.number in dendritic:
            for name, distribution in trial.distributions.items():
                if isinstance(distribution, CategoricalDistribution):
                    found[name][str(trial.params[name])].append(gaps[trial.number])
    return {
        name: {value: (len(some), round(median(some), 6)) for value, some in values.items() if len(some) >= _FEWEST}
        for name, values in found.items()
        if len(values) > 1
    }


def _gaps(study: Study) -> dict[int, float]:
    rungs = [rung for rung in study.rungs() if rung.plan is None]
    return {rung.trial: gap_to_front(rung, rungs, study.definition.direction) for rung in rungs}
