import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import dendritic_modules, fold, multiply_accumulates, parameter_count, weight_bytes
from pbp_search.errors import TrainingError
from pbp_search.training import (
    Checkpoint,
    CycleSchedule,
    Direction,
    EpochRecord,
    Fixed,
    Plateau,
    Stopper,
    Task,
    better,
    evaluate,
    run_chain,
    run_rung,
)
from tests.training import tiny_tasks
from tests.training.tiny_tasks import (
    Bowl,
    BowlWithDropout,
    NegatedBowl,
    Rings,
    ShiftedBowl,
    ZeroBowl,
    assert_same_checkpoint,
    config,
    figures,
    neuron_epochs,
    useless,
    weight_bits,
)

TASKS: dict[str, Task] = {task.name: task for task in (Rings(), Bowl(), BowlWithDropout())}

Chains = dict[str, list[Checkpoint]]


@pytest.fixture(scope="module")
def chains() -> Chains:
    """Chains that were asked for 3 dendrites; each has at least two generations that stayed."""
    grown = {name: run_chain(task, config(), 3) for name, task in TASKS.items()}
    assert all(chain[2].milestone.accepted for chain in grown.values())
    return grown


@pytest.mark.parametrize("name", TASKS)
def test_every_generation_that_stays_betters_the_milestone_before(name: str, chains: Chains) -> None:
    direction = TASKS[name].direction
    for d, (previous, current) in enumerate(zip(chains[name], chains[name][1:], strict=False), start=1):
        if current.milestone.accepted:
            assert current.milestone.dendrites == current.milestone.requested == d
            assert better(current.milestone.score, previous.milestone.score, direction)
        assert current.milestone.epochs > previous.milestone.epochs
        assert current.milestone.seconds > previous.milestone.seconds
        assert {growth.generation for growth in current.milestone.growth} == {d}


@pytest.mark.parametrize("name", TASKS)
def test_a_milestone_describes_its_network(name: str, chains: Chains) -> None:
    task, data = TASKS[name], TASKS[name].data()
    for checkpoint in chains[name]:
        milestone, network = checkpoint.milestone, checkpoint.network(task)
        assert evaluate(network, task, data.validation) == milestone.score
        assert evaluate(network, task, data.train) == milestone.train_score
        assert parameter_count(fold(network)) == milestone.parameters == parameter_count(network)
        assert weight_bytes(fold(network)) == milestone.weight_bytes
        assert multiply_accumulates(fold(network), task.data().train.inputs[:7]) == milestone.macs
        assert {len(module.dendrites) for module in dendritic_modules(network).values()} == {milestone.dendrites}


@pytest.mark.parametrize("name", TASKS)
def test_the_score_is_the_best_of_its_cycle_in_the_metrics_direction(name: str, chains: Chains) -> None:
    best = max if TASKS[name].direction == "maximize" else min
    for checkpoint in chains[name]:
        if checkpoint.milestone.accepted:
            last = max(epoch.attempt for epoch in checkpoint.history)
            scores = [epoch.values["validation_score"] for epoch in neuron_epochs(checkpoint, last)]
            assert checkpoint.milestone.score == best(scores)


@pytest.mark.parametrize("name", TASKS)
def test_every_epoch_is_counted_and_told_once(name: str) -> None:
    told: list[EpochRecord] = []
    first, second = run_chain(TASKS[name], config(), 1, on_epoch=told.append)
    assert told == [*first.history, *second.history]
    assert first.milestone.epochs == len(first.history) == 4
    assert [epoch.epoch for epoch in first.history] == [0, 1, 2, 3]
    attempts = {growth.attempt for growth in second.milestone.growth}
    assert second.milestone.epochs == 4 + 20 * len(attempts) + len(neuron_epochs(second))
    assert sum(epoch.phase == "dendrite" for epoch in second.history) == 20 * len(attempts)
    assert {(epoch.generation, epoch.attempt) for epoch in second.history} == {(1, attempt) for attempt in attempts}


@pytest.mark.parametrize("name", TASKS)
def test_accepted_generations_never_change_again(name: str, chains: Chains) -> None:
    for previous, current in zip(chains[name], chains[name][1:], strict=False):
        kept = {key: value for key, value in previous.weights.items() if ".dendrites." in key}
        for key, value in kept.items():
            assert torch.equal(current.weights[key].view(torch.int32), value.view(torch.int32)), key
    assert sum(".dendrites.0." in key for key in chains[name][2].weights) == 6  # weight, bias and U of two modules


class Watched:
    """A task that keeps the networks it makes, and their states at the end of every dendrite phase."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.networks: list[nn.Module] = []
        self.states: list[dict[str, Tensor]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.task, name)

    def model(self, width: int) -> nn.Module:
        self.networks.append(self.task.model(width))
        return self.networks[-1]

    def on_epoch(self, epoch: EpochRecord) -> None:
        # Dendrite epochs are told when the generation is connected, before the neurons train on.
        if epoch.phase == "dendrite" and epoch.epoch == 0:
            state = self.networks[-1].state_dict()
            self.states.append({name: value.clone() for name, value in state.items()})


@pytest.mark.parametrize("name", TASKS)
def test_a_dendrite_phase_changes_nothing_but_the_new_generation(name: str, chains: Chains) -> None:
    for previous in chains[name][:2]:
        watched = Watched(TASKS[name])
        result = run_rung(cast(Task, watched), config(), previous, on_epoch=watched.on_epoch)
        assert watched.states
        new = f"dendrites.{previous.milestone.dendrites}."
        for state in watched.states:
            for key, value in previous.weights.items():
                grown = state[key][:-1] if key.endswith("outgoing") else state[key]
                assert grown.dtype == value.dtype
                assert torch.equal(grown.view(-1).view(torch.uint8), value.view(-1).view(torch.uint8)), key
                if key.endswith("outgoing"):
                    assert torch.equal(state[key][-1], torch.zeros_like(state[key][-1]))
            assert all(new in key for key in set(state) - set(previous.weights))
        final = watched.states[-1]
        assert result.milestone.accepted
        for key in (key for key in final if new in key):  # ... and the neuron phase does not change that one
            assert torch.equal(result.weights[key].view(torch.int32), final[key].view(torch.int32))


@pytest.mark.parametrize("name", TASKS)
def test_a_useless_generation_is_thrown_away_and_the_network_restored(name: str) -> None:
    settings = config(schedule=useless())
    before, after = run_chain(TASKS[name], settings, 3)  # the chain ends here
    milestone = after.milestone
    assert (milestone.requested, milestone.dendrites, milestone.accepted) == (1, 0, False)
    assert weight_bits(after) == weight_bits(before)
    unchanged = {"config", "dendrites", "parameters", "weight_bytes", "macs", "score", "train_score"}
    assert milestone.model_dump(include=unchanged) == before.milestone.model_dump(include=unchanged)
    assert milestone.seconds > before.milestone.seconds
    assert {growth.attempt for growth in milestone.growth} == {0, 1, 2, 3}
    trained = [attempt for attempt in range(4) if neuron_epochs(after, attempt)]
    assert milestone.epochs == before.milestone.epochs + 4 * 10 + 3 * len(trained)
    assert evaluate(after.network(TASKS[name]), TASKS[name], TASKS[name].data().validation) == milestone.score


def test_every_try_has_a_start_of_its_own() -> None:
    after = run_chain(Bowl(), config(schedule=useless()), 1)[1]
    for module in ("0", "2"):
        scores = [growth.score for growth in after.milestone.growth if growth.module == module]
        assert len(set(scores)) == len(scores) == 4


@pytest.mark.parametrize("tries", [1, 3])
def test_a_generation_is_tried_as_often_as_the_schedule_says(tries: int) -> None:
    after = run_chain(Bowl(), config(schedule=useless(tries=tries)), 1)[1]
    assert [growth.attempt for growth in after.milestone.growth if growth.module == "0"] == list(range(tries))


def test_a_later_try_can_stay() -> None:
    before = run_rung(Bowl(), config())
    attempts: list[int] = []

    class HardToPlease(Bowl):
        """Worse in the first two tries, whatever the network does."""

        def score(self, outputs: Tensor, targets: Tensor) -> float:
            return super().score(outputs, targets) + (1e6 if attempts and attempts[-1] < 2 else 0.0)

    after = run_rung(HardToPlease(), config(), before, on_epoch=lambda epoch: attempts.append(epoch.attempt))
    assert after.milestone.accepted
    assert max(attempts) >= 2
    assert {growth.attempt for growth in after.milestone.growth} == set(range(max(attempts) + 1))
    assert after.milestone.score < before.milestone.score


@pytest.mark.parametrize("twin", [NegatedBowl(), ShiftedBowl()])
def test_the_sign_and_the_zero_of_a_metric_do_not_matter(twin: Task, chains: Chains) -> None:
    chain = run_chain(twin, config(), 3)
    assert len(chain) == len(chains["bowl"])
    for left, right in zip(chain, chains["bowl"], strict=True):
        assert weight_bits(left) == weight_bits(right)
        assert left.milestone.dendrites == right.milestone.dendrites
        assert left.milestone.epochs == right.milestone.epochs
        assert left.milestone.score < 0 < right.milestone.score


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("neuron", [Fixed(epochs=3), Plateau(patience=2, max_epochs=9)])
def test_a_metric_that_is_always_zero_is_never_bettered(direction: Direction, neuron: Fixed | Plateau) -> None:
    task = ZeroBowl()
    task.direction = direction
    before, after = run_chain(task, config(schedule=useless(neuron=neuron, acceptance=0.0)), 2)
    assert len(before.history) == 3
    assert before.milestone.score == after.milestone.score == 0
    assert after.milestone.dendrites == 0
    assert weight_bits(after) == weight_bits(before)


def test_milestones_continued_in_another_process_are_the_same_bit_for_bit(tmp_path: Path, chains: Chains) -> None:
    for name in TASKS:
        chains[name][1].save(tmp_path / f"{name}.before")
    root = Path(tiny_tasks.__file__).parents[2]
    program = [sys.executable, "-m", tiny_tasks.__name__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "77"}
    subprocess.run(program, check=True, env=environment, cwd=root)
    for name in TASKS:
        elsewhere = Checkpoint.load(tmp_path / f"{name}.after")
        assert_same_checkpoint(elsewhere, chains[name][2])
        assert elsewhere.milestone.dendrites == 2
        assert elsewhere.milestone.seconds > chains[name][1].milestone.seconds


@pytest.mark.parametrize("name", TASKS)
def test_a_chain_does_not_depend_on_how_many_dendrites_are_wanted(name: str, chains: Chains) -> None:
    for wanted in (0, 1):
        shorter = run_chain(TASKS[name], config(), wanted)
        assert len(shorter) == wanted + 1
        for left, right in zip(shorter, chains[name], strict=False):
            assert_same_checkpoint(left, right)


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_is_all_that_a_chain_depends_on(name: str, chains: Chains) -> None:
    torch.manual_seed(4711)
    again, other = run_rung(TASKS[name], config()), run_rung(TASKS[name], config(seed=2))
    assert_same_checkpoint(again, chains[name][0])
    assert weight_bits(other) != weight_bits(again)
    assert_same_checkpoint(run_rung(TASKS[name], config(), again), chains[name][1])


@pytest.mark.parametrize("name", TASKS)
def test_a_rung_leaves_torchs_global_stream_alone(name: str, chains: Chains) -> None:
    for previous in (None, chains[name][0]):
        stream = torch.get_rng_state()
        run_rung(TASKS[name], config(), previous)
        assert torch.equal(torch.get_rng_state(), stream)


def test_a_rung_does_not_change_the_milestone_it_continues(chains: Chains) -> None:
    previous = chains["bowl"][0]
    weights, described = weight_bits(previous), figures(previous)
    run_rung(Bowl(), config(), previous)
    assert weight_bits(previous) == weights
    assert figures(previous) == described


def test_data_that_are_loaded_already_are_used() -> None:
    task = Bowl()
    data = task.data()
    smaller = dataclasses.replace(data, train=data.validation)
    assert figures(run_rung(task, config(), data=data)) == figures(run_rung(task, config()))
    assert figures(run_rung(task, config(), data=smaller)) != figures(run_rung(task, config()))


class Broken(Bowl):
    """A bowl of which one method goes wrong after some epochs."""

    name = "broken"

    def __init__(self, spoil_loss: Callable[[Tensor], Tensor], score: float | None = None) -> None:
        self.spoil_loss = spoil_loss
        self.fixed_score = score

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.spoil_loss(super().loss(outputs, targets))

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return float(outputs.detach().square().mean()) if self.fixed_score is None else self.fixed_score


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Broken(lambda losses: losses * float("nan")), r"The training loss became nan: try a smaller learning rate"),
        (Broken(lambda losses: losses + float("inf")), r"The training loss became inf"),
        (Broken(lambda losses: losses, score=float("nan")), r"The score \(error\) became nan"),
        (Broken(lambda losses: losses, score=float("-inf")), r"The score \(error\) became -inf"),
    ],
)
def test_a_loss_or_score_that_is_not_finite_ends_the_rung(task: Task, sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence):
        run_rung(task, config())


def test_an_error_that_is_not_finite_ends_the_rung(chains: Chains) -> None:
    # The loss itself is finite; its gradient is 0 times the infinite slope of the root.
    task = Broken(lambda losses: (0 * losses).sqrt())
    with pytest.raises(TrainingError, match=r"An input or error of the module '\w' is NaN or infinite"):
        run_rung(task, config(), chains["bowl"][0])


def test_what_a_callback_raises_ends_the_rung() -> None:
    def on_epoch(epoch: EpochRecord) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rung(Bowl(), config(), on_epoch=on_epoch)


@pytest.mark.parametrize("phase", ["neuron", "dendrite"])
def test_what_a_check_raises_ends_the_rung_in_either_phase(
    chains: Chains, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    previous = None if phase == "neuron" else chains["bowl"][0]
    told: list[EpochRecord] = []
    whole = run_rung(Bowl(), config(), previous, on_epoch=told.append)
    left = epochs = 0

    def check() -> None:
        nonlocal left, epochs
        left, epochs = left - 1, epochs + 1
        if left == 0:
            raise KeyboardInterrupt

    # One check an epoch of each module, and nothing else changes.
    assert figures(run_rung(Bowl(), config(), previous, check=check)) == figures(whole)
    trained = sum(epoch.phase == "neuron" for epoch in told)
    assert epochs > trained if phase == "dendrite" else epochs == trained

    left = 3
    told.clear()
    with pytest.raises(KeyboardInterrupt):
        run_rung(Bowl(), config(), previous, on_epoch=told.append, check=check)
    assert len(told) == (3 if phase == "neuron" else 0), "no epoch of the dendrites' has been told"


def test_plateau_thresholds_are_those_of_the_generation() -> None:
    # Whole improvements are impossible from generation 1 on: its neuron phase ends after the patience.
    schedule = CycleSchedule(
        neuron=Plateau(patience=2, relative=(0.0, 1e9), max_epochs=6),
        dendrite=Plateau(patience=3, relative=(1e9,), max_epochs=50),
        acceptance=0.0,
        tries=5,
    )
    first, second = run_chain(Bowl(), config(schedule=schedule), 1)
    assert len(first.history) == 6
    attempts = {growth.attempt for growth in second.milestone.growth}
    assert sum(epoch.phase == "dendrite" for epoch in second.history) == 4 * len(attempts)
    assert {len(neuron_epochs(second, attempt)) for attempt in attempts} <= {0, 3}
    assert neuron_epochs(second)


@pytest.mark.parametrize("relative", [(1e9, 0.0), (0.0, 1e9)])
def test_a_dendrite_phase_ends_by_its_modules_held_out_scores(relative: tuple[float, float]) -> None:
    rule = Plateau(patience=3, relative=relative, max_epochs=12)
    lengths: dict[int, set[int]] = {1: set(), 2: set()}
    for seed in range(3):
        schedule = CycleSchedule(neuron=Fixed(epochs=4), dendrite=rule, acceptance=0.0, tries=3)
        for checkpoint in run_chain(Bowl(), config(schedule=schedule, seed=seed), 2)[1:]:
            generation = checkpoint.milestone.requested
            for attempt in {growth.attempt for growth in checkpoint.milestone.growth}:
                phase = [epoch for epoch in checkpoint.history if epoch.phase == "dendrite"]
                scores = [epoch.values for epoch in phase if epoch.attempt == attempt]
                ends = []
                for module in ("0", "2"):
                    # The first threshold is that of the first generation.
                    stop = Stopper(rule, generation - 1, "maximize")
                    ends.append([stop(values[f"correlation/{module}"]) for values in scores].index(True) + 1)
                assert len(scores) == max(ends)
                lengths[generation].add(len(scores))
    impossible, possible = (1, 2) if relative[0] else (2, 1)
    assert lengths[impossible] == {4}  # the patience after the first epoch
    assert max(lengths[possible]) > 4
