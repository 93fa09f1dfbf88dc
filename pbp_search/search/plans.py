"""Planned chains: what a comparison wants trained, besides what the search draws.

The trials of a planned chain are trials of the study like all others, and their networks points of its front. But their
configuration is given, not drawn, and their steps are taken whatever they are worth. What the search goes by, its
samplers, promotion and stagnation, does not see them.

The chains are written down once, as attributes of the study. Each of their trials is made when a worker takes it: what
waits is read by Optuna again and again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from pbp_search.search.rungs import COMPARISON, PARENT, PLAN, STEPS, Plan, Rung, Rungs, continued_by, plan_of
from pbp_search.training import Step
from pbp_search.training.streams import key

_WIDTH = "width"


@dataclass(frozen=True)
class Planned:
    """Which planned chains are wanted: those of a comparison, up to a number of replicates."""

    comparison: str
    replicates: int

    def among(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """The trials of these chains."""
        return [trial for trial in trials if PLAN in trial.user_attrs and self._wants(trial.user_attrs[PLAN])]

    def _wants(self, plan: dict[str, Any]) -> bool:
        return bool(plan["comparison"] == self.comparison and plan["replicate"] < self.replicates)


def write_plans(study: optuna.Study, plans: Mapping[Plan, int]) -> None:
    """Make some chains the study's comparison.

    Args:
        study: The study.
        plans: The chains of the first replicate, each with a trial that has the same settings.
    """
    (number,) = {plan.comparison for plan in plans}
    for place, (plan, like) in enumerate(plans.items()):
        study.set_user_attr(_attribute(number, place), {PLAN: plan.to_dict(), "like": like})
    study.set_user_attr(COMPARISON, {"number": number, "chains": len(plans)})  # last: now they are all there


def comparison_of(study: optuna.Study) -> str | None:
    """The study's comparison."""
    written: dict[str, Any] | None = study.user_attrs.get(COMPARISON)
    return None if written is None else str(written["number"])


def planned_chains(study: optuna.Study, replicates: int, seed: int) -> dict[Plan, int]:
    """The chains of the study's comparison, replicate by replicate, each with a trial that has the same settings.

    Those of one replicate and start have the same seed.

    Args:
        study: The study.
        replicates: How many.
        seed: The study's.
    """
    attributes = study.user_attrs
    written = attributes.get(COMPARISON, {"number": "", "chains": 0})
    first = [attributes[_attribute(written["number"], place)] for place in range(written["chains"])]
    plans: dict[Plan, int] = {}
    for replicate in range(replicates):
        for chain in first:
            plan = Plan.from_dict(chain[PLAN])
            own = key(seed, "replicate", replicate, plan.start) % 2**31
            config = plan.config.model_copy(update={"seed": own})
            plans[plan.model_copy(update={"replicate": replicate, "config": config})] = chain["like"]
    return plans


def _attribute(number: str, place: int) -> str:
    return f"{COMPARISON} {number}, {PLAN} {place}"


class Plans:
    """The planned chains as a worker sees them.

    Args:
        study: The study.
        rungs: Its rungs.
        seed: Its seed.
    """

    def __init__(self, study: optuna.Study, rungs: Rungs, seed: int) -> None:
        self._study = study
        self._rungs = rungs
        self._seed = seed
        self._known: dict[Planned, dict[tuple[Any, ...], tuple[Plan, int]]] = {}

    def next_step(self, wanted: Planned, trials: Iterable[FrozenTrial]) -> tuple[Rung, Step] | None:
        """The oldest milestone of a chain that is to go on, and how; one that has been continued is not, whatever came
        of it."""
        own = wanted.among(trials)
        ended = {trial for trial, _ in continued_by(own)}
        for rung in self._rungs.of(own):
            if rung.plan is not None and rung.trial not in ended:
                step = rung.plan.step_after(rung.milestone)
                if step is not None:
                    return rung, step
        return None

    def next_new(
        self, wanted: Planned, trials: Sequence[FrozenTrial]
    ) -> tuple[dict[str, Any], dict[str, BaseDistribution], dict[str, Any]] | None:
        """The parameters, distributions and attributes of the first trial of the next chain; None if all have begun.

        Args:
            wanted: The chains.
            trials: The study's.
        """
        if wanted not in self._known:
            plans = planned_chains(self._study, wanted.replicates, self._seed)
            self._known[wanted] = {_place(plan.to_dict()): (plan, like) for plan, like in plans.items()}
        begun = {_place(trial.user_attrs[PLAN]) for trial in wanted.among(trials) if PARENT not in trial.user_attrs}
        for place, (plan, like) in self._known[wanted].items():
            if place not in begun:
                return *_parameters(plan, trials[like]), {PLAN: plan.to_dict()}
        return None


def _place(plan: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a chain from the others of its comparison."""
    return tuple(plan[name] for name in ("arm", "group", "replicate", "start"))


@dataclass(frozen=True)
class Chain:
    """How far a planned chain is.

    Attributes:
        first: Its first trial.
        rungs: What it has reached.
        failed: Whether one of its trials has failed: it does not go on.
    """

    first: int
    rungs: tuple[Rung, ...]
    failed: bool


def chains_of(trials: Iterable[FrozenTrial], rungs: Rungs) -> dict[Plan, Chain]:
    """The planned chains among a study's trials."""
    parts: dict[Plan, list[FrozenTrial]] = {}
    for trial in trials:
        plan = plan_of(trial)
        if plan is not None:
            parts.setdefault(plan, []).append(trial)
    return {
        plan: Chain(
            first=own[0].number,
            rungs=tuple(rungs.of(own)),
            failed=any(trial.state == TrialState.FAIL for trial in own),
        )
        for plan, own in parts.items()
    }


def _parameters(plan: Plan, like: FrozenTrial) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Those that are shown of a planned chain: the settings of a trial of the search, at the chain's width."""
    params: dict[str, Any] = dict(like.params)
    distributions: dict[str, BaseDistribution] = dict(like.distributions)
    width = distributions.pop(_WIDTH, None)
    params.pop(_WIDTH, None)
    if isinstance(width, IntDistribution):
        low, high = min(width.low, plan.config.width), max(width.high, plan.config.width)
        distributions[_WIDTH] = IntDistribution(low, high, log=width.log)
    elif isinstance(width, CategoricalDistribution) and plan.config.width in width.choices:
        distributions[_WIDTH] = width
    if _WIDTH in distributions:
        params[_WIDTH] = plan.config.width
    for name in STEPS.values():
        params[name] = 0
        distributions[name] = IntDistribution(0, max(1, len(plan.steps)))
    return params, distributions


def is_planned(trial: FrozenTrial) -> bool:
    """Whether a trial belongs to a planned chain."""
    return PLAN in trial.user_attrs


def searched(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that the search has made."""
    return [trial for trial in trials if not is_planned(trial)]
