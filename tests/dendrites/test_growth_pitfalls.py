"""What a held-out score must not be fooled by."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import (
    Dendrite,
    DendriteSpec,
    Dendritic,
    Growth,
    Record,
    attach,
    correlation,
    draw,
    grow,
    record,
)
from pbp_search.errors import InputError
from pbp_search.training import Fixed, Stopper
from tests.dendrites.grown_networks import in_batches, parted, recorded


def squared_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).sum(1)


def train(
    module: Dendritic, kept: Record, epochs: int = 20, learning_rate: float = 0.03
) -> tuple[list[Dendrite], Growth]:
    def stop() -> Stopper:
        return Stopper(Fixed(epochs=epochs), 0, "maximize")

    return grow(module, kept, stop, torch.Generator().manual_seed(0), learning_rate)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_an_error_that_is_linear_in_the_inputs_does_not_pass_with_few_records(share: float) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(800, 300, generator=generator)
        linear = x @ torch.randn(300, 4, generator=generator) / 300**0.5
        noise = torch.randn(800, 4, generator=generator)
        module = Dendritic(nn.Linear(300, 4), DendriteSpec())
        _, growth = train(module, parted(x, share**0.5 * linear + (1 - share) ** 0.5 * noise))
        assert not growth.above_floor(), growth


@pytest.mark.parametrize("pool", [1, 4])
def test_the_score_of_a_whole_copy_is_that_of_the_dendrite_that_ships(pool: int) -> None:
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.GRU(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.steps(x)[0][:, -1]

    network, inputs = Last(), torch.randn(200, 5, 3)
    module = attach(network, DendriteSpec(pool=pool))["steps"]
    batches = in_batches(inputs, inputs.square().mean(1) @ torch.randn(3, 4), 50)
    kept = record(network, squared_loss, batches)["steps"]
    (dendrite,), growth = train(module, kept, epochs=8)
    held_out = slice(50, 100)  # the second batch of four
    with torch.no_grad():
        outputs = dendrite.eval()([], inputs)[held_out].flatten(0, 1)
        neurons = network.steps(inputs)[0][held_out].flatten(0, 1)
    errors = kept.held_out.errors.flatten(0, 1)
    left = []
    for channel in range(4):  # what the neuron's own output says is taken out
        known = torch.stack([torch.ones(len(neurons)), neurons[:, channel]], 1).double()
        found = torch.linalg.lstsq(known, errors[:, channel : channel + 1].double()).solution
        left.append(errors[:, channel : channel + 1].double() - known @ found)
    score = float(correlation(outputs.double(), torch.cat(left, 1)).mean())
    assert growth.score == pytest.approx(score, abs=1e-4)
    assert all(parameter.grad is None for parameter in dendrite.parameters())
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in dendrite.state_dict().values())


@pytest.mark.parametrize("offset", [0.0, 20.0, 1000.0])
def test_without_a_bias_inputs_with_an_offset_do_not_kill_candidates(offset: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(600, 3) + offset
    centred = x - offset
    module = Dendritic(nn.Linear(3, 1, bias=False), DendriteSpec())
    (dendrite,), growth = train(module, parted(x, centred[:, :1] * centred[:, 1:2]), epochs=1)
    with torch.no_grad():
        activations = dendrite([], x)
    assert float((activations.abs() > 0.9999).float().mean()) < 0.5
    assert growth.score > 0.0


@pytest.mark.parametrize("scale", [1e-40, 1e-36, 1e-30, 1e-20, 1e10])
def test_inputs_of_any_scale_are_learned_from_or_count_as_constant(scale: float) -> None:
    x = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    module = Dendritic(nn.Linear(3, 1), DendriteSpec())
    (dendrite,), growth = train(module, parted(scale * x, x[:, :1] * x[:, 1:2]))
    assert all(bool(value.isfinite().all()) for value in dendrite.state_dict().values())
    if scale >= 1e-20:
        assert growth.score > 0.3  # a tanh is not much like a square


def test_frames_of_one_sample_are_not_held_out_apart() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look = nn.Conv1d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.look(x.flatten(0, 1)).mean(2).unflatten(0, x.shape[:2]).mean(1)

    network, inputs = Frames(), torch.randn(20, 4, 1, 6)
    attach(network)
    kept = recorded(network, squared_loss, inputs, torch.randn(20, 2))["look"]
    assert kept.errors.shape == (20, 4 * 4, 2)
    assert kept.inputs is not None
    torch.testing.assert_close(kept.inputs[3, 4, 0], inputs[3, 1, 0, :3])


def pixels(samples: int = 300) -> Tensor:
    """Inputs from 0 to 255, as images hold."""
    return torch.randint(256, (samples, 20), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("variant", ["random", "gradient"])
@pytest.mark.parametrize("fan_in", [None, 5])
def test_dendrites_that_are_not_trained_start_in_the_range_of_their_inputs(variant: Any, fan_in: int | None) -> None:
    spec = DendriteSpec(variant=variant, per_neuron=2, fan_in=fan_in)
    module, inputs = Dendritic(nn.Linear(20, 3), spec), pixels()
    generation = draw(module, parted(inputs, torch.randn(300, 3)), torch.Generator().manual_seed(0))
    assert len(generation) == 2
    for dendrite in generation:
        activations = dendrite([], inputs).detach()
        assert float((activations.abs() > 0.99).float().mean()) < 0.01
        assert float(activations.std(0).min()) > 0.05
    again = draw(module, parted(inputs, torch.randn(300, 3)), torch.Generator().manual_seed(0))
    torch.testing.assert_close(generation[1]([], inputs), again[1]([], inputs), rtol=0, atol=0)


def block_of(network: nn.Module) -> Dendritic:
    return attach(network, DendriteSpec(placement=("0",)))["0"]


@pytest.mark.parametrize("trained", [False, True])
def test_statistics_of_batches_in_copies_are_those_of_the_training_part(trained: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(nn.Linear(20, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))
    module, inputs = block_of(network), pixels()
    inputs[100:200] += 1e6  # every fourth batch is held out, from the second on
    batches = in_batches(inputs, torch.randn(300, 2), 100)
    kept = record(network, squared_loss, batches)["0"]
    generator = torch.Generator().manual_seed(0)
    (dendrite,) = train(module, kept, epochs=3, learning_rate=0.003)[0] if trained else draw(module, kept, generator)
    norm = dendrite.module[1]  # type: ignore[index]
    with torch.no_grad():
        seen = torch.cat([dendrite.module[0](inputs[rows]) for rows in (slice(100), slice(200, 300))])  # type: ignore[index]
    deviations = (norm.running_mean - seen.mean(0)).abs() / seen.std(0)
    assert float(deviations.max()) < 1  # the weights move while they are trained
    torch.testing.assert_close(norm.running_var, seen.var(0), rtol=1, atol=0)
    assert norm.momentum == 0.1


def test_a_sham_has_no_dendrites_to_train() -> None:
    module = Dendritic(nn.Linear(3, 1), DendriteSpec(variant="sham"))
    kept = parted(torch.randn(40, 3), torch.randn(40, 1))
    with pytest.raises(InputError, match=r"sham has no dendrites to train"):
        train(module, kept)
    assert draw(module, kept, torch.Generator()) == []


def test_dendrites_choose_the_inputs_that_matter() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(3000, 40) * 10.0 ** torch.randint(-2, 3, (40,))
    inputs[:, 7] = 0.3  # says nothing
    standard = inputs / inputs.std(0).where(inputs.std(0) > 1e-3, 1.0)
    curved = torch.stack([standard[:, 11].abs(), (standard[:, 30] + standard[:, 31]).abs()], 1)
    spec = DendriteSpec(fan_in=4, pattern="chosen", pool=2)
    module = Dendritic(nn.Linear(40, 2), spec)
    (dendrite,), growth = train(module, parted(inputs, curved + 0.1 * torch.randn(3000, 2)), epochs=30)
    index = dendrite.module.get_buffer("index")
    assert index.shape == dendrite.module.get_parameter("weight").shape == (2, 4)
    assert 11 in index[0]
    assert {30, 31} <= set(index[1].tolist())
    assert 7 not in index
    # The dendrite that ships is the one that was scored: it beats a draw of inputs that seldom hits the right ones.
    module.spec = spec.model_copy(update={"pattern": "random"})
    by_chance = train(module, parted(inputs, curved + 0.1 * torch.randn(3000, 2)), epochs=30)[1]
    assert growth.score > by_chance.score + 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_short_types_learn_in_single_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(800, 3)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    modules = attach(network, DendriteSpec(pool=2))
    targets = (x[:, :1] * x[:, 1:2]).to(dtype)
    kept = record(network, lambda y, t: (y - t).float().square().sum(1), in_batches(x.to(dtype), targets, 100))
    for name, module in modules.items():
        (dendrite,), growth = train(module, kept[name], epochs=10)
        assert growth.above_floor(), growth
        assert {parameter.dtype for parameter in dendrite.parameters()} == {dtype}


@pytest.mark.parametrize("variant", ["random", "gradient"])
def test_controls_choose_their_inputs_too(variant: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 4))
    spec = DendriteSpec.model_validate({"variant": variant, "fan_in": 3, "pattern": "chosen"})
    (module,) = attach(network, spec).values()
    kept = record(network, squared_loss, in_batches(torch.randn(40, 8), torch.randn(40, 4), 10))["0"]
    (dendrite,) = draw(module, kept, torch.Generator().manual_seed(0))
    assert dendrite.get_parameter("module.weight").shape == (4, 3)


def test_a_call_of_one_row_has_no_statistics_to_learn_from() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))
    (module,) = attach(network, DendriteSpec(placement=("0",))).values()
    batches = in_batches(torch.randn(31, 3), torch.randn(31, 2), 10)  # the last one has one sample
    kept = record(network, squared_loss, batches)["0"]
    generation, growth = train(module, kept, epochs=2)
    module.accept(generation)
    assert 0 <= growth.score <= 1
