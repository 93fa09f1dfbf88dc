"""Whether a generation learned more than chance: only then the neurons are trained with it."""

import pytest

from pbp_search.dendrites import Growth
from pbp_search.training import run_chain
from tests.training.tiny_tasks import Bowl, CoinToss, config, neuron_epochs, useless


def test_neurons_train_only_if_some_generation_learned_more_than_chance() -> None:
    after = [run_chain(CoinToss(), config(schedule=useless(), seed=seed), 1)[1] for seed in range(4)]
    outcomes = []
    for checkpoint in after:
        for attempt in range(4):
            above = [growth.above_floor for growth in checkpoint.milestone.growth if growth.attempt == attempt]
            assert bool(neuron_epochs(checkpoint, attempt)) == any(above)
            outcomes.append(any(above))
    assert outcomes.count(False) > len(outcomes) / 2  # there is nothing to learn


@pytest.mark.parametrize("tries", [1, 3])
def test_all_modules_and_tries_of_a_rung_are_looked_at_together(tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def above_floor(growth: Growth, tests: int = 1) -> bool:
        asked.append(tests)
        return False

    monkeypatch.setattr(Growth, "above_floor", above_floor)
    schedule = useless(tries=tries)
    after = run_chain(Bowl(), config(schedule=schedule), 1)[1]
    assert set(asked) == {2 * tries}, "a bowl's network has two modules"
    assert len(after.milestone.growth) == 2 * tries
    assert not any(growth.above_floor for growth in after.milestone.growth)
    assert not any(neuron_epochs(after, attempt) for attempt in range(tries))
