"""Planned chains: what a comparison wants trained, besides what the search draws.

The trials of a planned chain are trials of the study like all others, and their networks points of its front. But their
configuration is given, not drawn, and their steps are taken whatever they are worth. What the search goes by, its
samplers, promotion and stagnation, does not see them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from pbp_search.search.rungs import PLAN, STEPS, Plan, Rung, Rungs, plan_of
from pbp_search.training import Step

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


def waiting_trial(plan: Plan, like: FrozenTrial) -> FrozenTrial:
    """The first trial of a planned chain, which waits for a worker.

    Args:
        plan: The chain.
        like: A trial of a configuration with the same settings, whose parameters are shown for the chain's, too.
    """
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
    return create_trial(
        state=TrialState.WAITING, params=params, distributions=distributions, user_attrs={PLAN: plan.to_dict()}
    )


def is_planned(trial: FrozenTrial) -> bool:
    """Whether a trial belongs to a planned chain."""
    return PLAN in trial.user_attrs


def searched(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that the search has made."""
    return [trial for trial in trials if not is_planned(trial)]


def next_planned(rungs: Sequence[Rung], continued: Iterable[int]) -> tuple[Rung, Step] | None:
    """The oldest milestone of a planned chain that is to go on, and how.

    Args:
        rungs: Those of a study that left a milestone.
        continued: The trials that have been continued, whatever came of it.
    """
    ended = set(continued)
    for rung in rungs:
        if rung.plan is not None and rung.trial not in ended:
            step = rung.plan.step_after(rung.milestone)
            if step is not None:
                return rung, step
    return None
