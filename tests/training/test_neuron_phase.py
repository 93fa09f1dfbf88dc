from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pbp_search.dendrites import dendritic_modules
from pbp_search.dendrites.ahead import Ahead
from pbp_search.errors import TrainingError
from pbp_search.training import (
    CycleSchedule,
    Data,
    Fixed,
    Split,
    Task,
    TrialConfig,
    build_network,
    evaluate,
    run_chain,
    train_neurons,
)
from pbp_search.training.data import _orders
from tests.training.tiny_tasks import Bowl, BowlWithDropout, NegatedBowl, Rings, assert_same_checkpoint, config

TASKS = [Rings(), Bowl(), NegatedBowl(), BowlWithDropout()]


def named(task: Task) -> str:
    return task.name


def train(
    network: nn.Module, task: Task, generation: int = 0, attempt: int = 0, epochs: int = 6, **changes: Any
) -> tuple[float, list[dict[str, float]]]:
    told: list[dict[str, float]] = []

    def on_epoch(epoch: int, values: dict[str, float]) -> None:
        assert epoch == len(told)
        told.append(values)

    settings = config(schedule=CycleSchedule(neuron=Fixed(epochs=epochs)), **changes)
    return train_neurons(network, task, task.data(), settings, generation, attempt, on_epoch), told


@pytest.mark.parametrize("task", TASKS, ids=named)
def test_the_network_is_left_at_its_best_validation_weights(task: Task) -> None:
    network = build_network(task, config(), 2)
    best, told = train(network, task, 2, epochs=15, learning_rate=2.0)  # a rate at which scores go up and down
    scores = [values["validation_score"] for values in told]
    assert len(scores) == 15
    assert best == (max(scores) if task.direction == "maximize" else min(scores))
    assert scores[-1] != best
    assert evaluate(network, task, task.data().validation) == best


@pytest.mark.parametrize("task", TASKS, ids=named)
def test_accepted_dendrites_keep_every_bit_while_the_rest_is_trained(task: Task) -> None:
    network = build_network(task, config(), 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, task, 3, batch_size=8)
    after = network.state_dict()
    for name, value in before.items():
        if ".dendrites." in name:
            assert torch.equal(after[name].view(torch.int32), value.view(torch.int32)), name
        else:
            assert not torch.equal(after[name], value), name
    assert all((module.outgoing != 0).all() for module in dendritic_modules(network).values())


def test_training_lowers_the_loss_it_tells() -> None:
    task = Bowl()
    network = build_network(task, config(), 0)
    _, told = train(network, task, epochs=10)
    losses = [values["train_loss"] for values in told]
    assert losses[-1] < 0.8 * losses[0]
    # The mean over samples, also where the last batch is smaller; at a vanishing rate the weights stand still.
    network = build_network(task, config(), 0)
    expected = evaluate(network, task, task.data().train)
    _, told = train(network, task, epochs=1, learning_rate=1e-12, batch_size=48)
    assert told[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_each_generation_try_and_seed_has_its_own_order_of_samples() -> None:
    task = BowlWithDropout()

    def trained(generation: int, attempt: int, seed: int) -> bytes:
        network = build_network(task, config(), 0)
        train(network, task, generation, attempt, seed=seed)
        return save(network.state_dict())

    different = [trained(0, 0, 0), trained(1, 0, 0), trained(0, 1, 0), trained(0, 0, 1)]
    assert len(set(different)) == 4
    torch.manual_seed(99)
    assert trained(0, 0, 0) == different[0]


def test_training_leaves_torchs_global_stream_alone() -> None:
    network = build_network(BowlWithDropout(), config(), 0)
    state = torch.get_rng_state()
    train(network, BowlWithDropout())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch_size", [1, 64, 10**6])
def test_batches_of_any_size_are_trained_on(batch_size: int) -> None:
    best, told = train(build_network(Bowl(), config(), 1), Bowl(), 1, epochs=2, batch_size=batch_size)
    assert best == min(values["validation_score"] for values in told)


def test_a_last_batch_of_one_sample_does_not_stop_a_network_with_batch_statistics() -> None:
    # 200 training samples in batches of 199 leave one over.
    _, told = train(build_network(BowlWithDropout(), config(), 0), BowlWithDropout(), epochs=2, batch_size=199)
    assert len(told) == 2


def test_a_loss_that_diverges_ends_the_training() -> None:
    with pytest.raises(TrainingError, match=r"The training loss became (nan|inf): try a smaller learning rate"):
        train(build_network(Bowl(), config(), 0), Bowl(), learning_rate=1e30)


def test_a_score_is_that_of_all_samples_at_once_in_evaluation_mode() -> None:
    class Spread(BowlWithDropout):
        """A score that is not a mean over samples."""

        def score(self, outputs: Tensor, targets: Tensor) -> float:
            return float(outputs.double().std() + len(outputs))

    task, inputs = Spread(), torch.randn(9001, 2)
    network = build_network(task, config(), 2).train()
    before = save(network.state_dict())
    score = evaluate(network, task, Split(inputs, torch.zeros(9001, 1)))
    with torch.no_grad():
        expected = network.eval()(inputs)
    assert score == pytest.approx(float(expected.double().std() + 9001), rel=1e-9)
    assert save(network.state_dict()) == before


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_ends_the_evaluation(score: float) -> None:
    class Unscored(Bowl):
        def score(self, outputs: Tensor, targets: Tensor) -> float:
            return score

    with pytest.raises(TrainingError, match=rf"The score \(error\) became {score}"):
        evaluate(build_network(Bowl(), config(), 0), Unscored(), Bowl().data().validation)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
@pytest.mark.parametrize("samples", [2, 3, 4, 63, 64, 65, 66, 129])
def test_batches_hold_every_sample_once_and_none_is_empty_or_alone(samples: int, batch_size: int) -> None:
    batches = _orders(samples, batch_size)
    assert sorted(torch.cat(list(batches)).tolist()) == list(range(samples))
    assert min(map(len, batches)) >= min(2, batch_size)
    assert max(map(len, batches)) <= batch_size + 1
    assert len(batches) == max(1, samples // batch_size + (samples % batch_size >= min(2, batch_size)))


class Noisy(Bowl):
    """Random numbers in the forward pass in evaluation mode, and in the score."""

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(super().model(width), Jitter())

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return super().score(outputs, targets) + float(torch.rand(()))


class Jitter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.3)


def test_random_numbers_of_evaluation_do_not_depend_on_what_was_drawn_before() -> None:
    task = Noisy()
    chains = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        stream = torch.get_rng_state()
        chains.append(run_chain(task, config(), 1))
        assert torch.equal(torch.get_rng_state(), stream)
    for left, right in zip(*chains, strict=True):
        assert_same_checkpoint(left, right)


class WithOptimiser(Bowl):
    """Brings its optimiser and its learning-rate schedule along, and remembers them."""

    def __init__(self, schedule: str = "step") -> None:
        self.schedule = schedule
        self.made: list[torch.optim.SGD] = []

    def optimiser(self, parameters: list[dict[str, Any]], config: TrialConfig) -> torch.optim.Optimizer:
        self.made.append(torch.optim.SGD(parameters, lr=config.learning_rate, weight_decay=0.5))
        return self.made[-1]

    def scheduler(self, optimiser: torch.optim.Optimizer, config: TrialConfig) -> LRScheduler:
        if self.schedule == "step":
            return torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.5)
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=0, factor=0.1, threshold=1e9)


@pytest.mark.parametrize(("schedule", "rate"), [("step", 0.02 / 2**6), ("plateau", 0.02 / 10**6)])
def test_a_task_may_have_its_own_optimiser_and_schedule_anew_in_each_cycle(schedule: str, rate: float) -> None:
    task = WithOptimiser(schedule)
    for generation in (0, 1):
        network = build_network(task, config(), generation)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        train(network, task, generation)
        base, outgoing = task.made[generation].param_groups
        assert base["weight_decay"] == 0.5
        assert outgoing["weight_decay"] == 0.0
        assert base["lr"] == pytest.approx(rate)
        assert [len(values) for values in (base["params"], outgoing["params"])] == [4, 2]
        assert not torch.equal(network.state_dict()["0.module.weight"], before["0.module.weight"])


def test_weight_decay_does_not_pull_w_back_to_zero() -> None:
    ends = []
    for weight_decay in (0.0, 50.0):
        network = build_network(Rings(), config(), 1)
        for module in dendritic_modules(network).values():
            nn.init.ones_(module.outgoing)
            module.module.requires_grad_(False)  # so that its gradient is the same in both
        train(network, Rings(), 1, epochs=1, weight_decay=weight_decay)
        ends.append(torch.cat([module.outgoing.detach().flatten() for module in dendritic_modules(network).values()]))
    assert torch.equal(*ends)


def test_weight_decay_acts_on_all_other_weights() -> None:
    norms = []
    for weight_decay in (0.0, 1.0):
        network = build_network(Rings(), config(), 0)
        train(network, Rings(), epochs=1, weight_decay=weight_decay)
        norms.append([float(value.norm()) for name, value in network.state_dict().items() if "weight" in name])
    assert all(decayed < free for free, decayed in zip(*norms, strict=True))


def test_gradients_are_clipped() -> None:
    class Steep(WithOptimiser):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return 1e6 * super().loss(outputs, targets)

    task = Steep()
    network = build_network(task, config(), 0)
    start = torch.cat([value.detach().flatten() for value in network.parameters()])
    train(network, task, epochs=1, gradient_clip=0.1, batch_size=200)
    end = torch.cat([value.detach().flatten() for value in network.parameters()])
    # One step of plain gradient descent, by the learning rate times a gradient of norm 0.1, and some weight decay.
    decay = 0.02 * 0.5 * float(start.norm())
    assert float((end - start).norm()) <= 0.02 * 0.1 + decay + 1e-6


def test_looking_ahead_changes_nothing_but_the_last_bits_and_ends_with_the_phase(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Double(Bowl):
        def data(self) -> Data:
            data = super().data()
            parts = (data.train, data.validation, data.test)
            return Data(*(Split(part.inputs.double(), part.targets.double()) for part in parts))

    ends = []
    for ahead in (True, False):
        network = build_network(Double(), config(), 2).double()
        modules = list(dendritic_modules(network).values())
        asked: list[bool] = []
        plain = Ahead.slices

        def slices(self: Ahead, *args: Any, plain: Any = plain, asked: list[bool] = asked, ahead: bool = ahead) -> Any:
            known = plain(self, *args) if ahead else None
            asked.append(known is not None)
            return known

        monkeypatch.setattr(Ahead, "slices", slices)
        train(network, Double(), 2, epochs=2)
        assert any(asked) == ahead
        assert all(module.ahead is None for module in modules)
        ends.append(network.state_dict())
        monkeypatch.setattr(Ahead, "slices", plain)
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=1e-10, msg=name)
