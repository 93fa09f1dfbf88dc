"""The sampler: Optuna's TPE, with every draw keyed by what it is for."""

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

from pbp_search.training.streams import key


class KeyedSampler(BaseSampler):
    """Independent TPE (J. Bergstra et al., NIPS 24, 2011) whose random stream is keyed by trial and parameter.

    Workers never draw the same points, a continued study does not repeat its first ones, and with one worker a trial
    that was interrupted between two parameters draws the second one as it would have.

    Args:
        seed: The study's.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: parameters are drawn one by one."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter."""
        tpe = TPESampler(seed=key(self._seed, "sampler", trial.number, param_name) % 2**32)
        return tpe.sample_independent(study, trial, param_name, param_distribution)
