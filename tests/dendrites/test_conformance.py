"""What holds for dendrites on any layer, of any variant and form."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pbp_search.dendrites import (
    DendriteSpec,
    Dendritic,
    attach,
    dendritic_modules,
    fold,
    grow,
    multiply_accumulates,
    parameter_count,
    record,
    weight_bytes,
)
from tests.dendrites.grown_networks import all_modules, assert_same_bits, assert_same_state, in_batches, state_of


@dataclass(frozen=True)
class Layer:
    """A layer, how it is called, and which of its modules get dendrites.

    Attributes:
        build: Makes it.
        shape: Of one sample.
        run: Calls it for a batch of samples and gives their outputs.
        placement: Name patterns; the layer itself is ``layer``.
        patches: Whether it takes a fan_in.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    run: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)
    placement: tuple[str, ...] = ("layer",)
    patches: bool = False


def first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]


def time_first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.transpose(0, 1))[0].transpose(0, 1)


def looking_at_itself(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, x, need_weights=False)[0]


def twice(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(torch.tanh(layer(x)))


def causal(layer: nn.Module, x: Tensor) -> Tensor:
    # torch hands attention a mask of minus infinities.
    return layer(x, src_mask=torch.ones(5, 5, dtype=torch.bool).triu(1), is_causal=True)


TRANSFORMER = ("layer.self_attn", "layer.linear*")
LAYERS: dict[str, Layer] = {
    "linear": Layer(lambda: nn.Linear(4, 5), (4,), patches=True),
    "linear on maps": Layer(lambda: nn.Linear(4, 5), (2, 3, 4), patches=True),
    "conv1d": Layer(lambda: nn.Conv1d(3, 4, 3), (3, 6), patches=True),
    "conv2d": Layer(lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 5, 6), patches=True),
    "depthwise": Layer(lambda: nn.Conv2d(4, 4, 2, groups=4), (4, 3, 4), patches=True),
    "transposed": Layer(
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 2, 3), patches=True
    ),
    "lstm": Layer(lambda: nn.LSTM(3, 4, batch_first=True), (5, 3), first),
    "gru": Layer(lambda: nn.GRU(3, 4), (5, 3), time_first),
    "attention": Layer(lambda: nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True), (5, 4), looking_at_itself),
    "transformer": Layer(lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), (5, 4), placement=TRANSFORMER),
    "causal transformer": Layer(
        lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=True),
        (5, 4),
        causal,
        placement=TRANSFORMER,
    ),
    "batch normalised": Layer(lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)), (3, 3, 4)),
    "layer normalised": Layer(lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Dropout(0.2)), (3, 4)),
    "group normalised": Layer(lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.GroupNorm(2, 4)), (3, 4)),
    "shared": Layer(lambda: nn.Linear(4, 4), (4,), twice, patches=True),
}
VARIANTS = ("perforated", "joint", "gradient", "random", "sham")
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pool": {"pool": 4},
    "two a neuron": {"pool": 4, "per_neuron": 2},
    "few inputs": {"fan_in": 2},
    "window": {"fan_in": 2, "pattern": "window"},
    "chosen": {"fan_in": 2, "pattern": "chosen"},
}

POSSIBLE = [(layer, form) for layer in LAYERS for form in FORMS if "fan_in" not in FORMS[form] or LAYERS[layer].patches]
# A pool is of the dendrite phase only.
FORWARD = [(layer, form) for layer, form in POSSIBLE if form != "pool"]

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_form = pytest.mark.parametrize(("layer", "form"), FORWARD)


class Network(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer.build()
        self.run = layer.run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layer, x).flatten(1)


def samples_of(layer: str, count: int = 4) -> Tensor:
    return torch.randn(count, *LAYERS[layer].shape, generator=torch.Generator().manual_seed(7))


def generations(network: nn.Module, count: int) -> None:
    """New generations of every module, with U and W at random."""
    for module in all_modules(network):
        for _ in range(count):
            generation = module.generation()
            for dendrite in generation:
                nn.init.normal_(dendrite.incoming)
            module.accept(generation)
        nn.init.normal_(module.outgoing)


def built(layer: str, variant: str, form: str, count: int = 2) -> nn.Module:
    """A network with generations, random weights and batch statistics of its own, in training mode."""
    torch.manual_seed(3)
    network = Network(LAYERS[layer])
    attach(network, DendriteSpec(variant=variant, placement=LAYERS[layer].placement, **FORMS[form]))
    generations(network, count)
    outputs_of(network.train(), 2 + samples_of(layer))
    return network


def outputs_of(network: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(5)  # for dropout
    return network(x).detach()


def frozen(variant: str) -> bool:
    return variant not in ("joint", "gradient")


@each_variant
@each_form
def test_a_new_generation_leaves_every_output_bit_as_it_was(layer: str, form: str, variant: str) -> None:
    network = built(layer, variant, form, 1)
    x = samples_of(layer)
    outputs = [outputs_of(network.train(training), x) for training in (False, True)]
    network = built(layer, variant, form, 1)
    for module in all_modules(network):
        before = len(module.dendrites)
        module.accept(module.generation())
        assert len(module.dendrites) == (0 if variant == "sham" else 2 * before)
    after = [outputs_of(network.train(training), x) for training in (False, True)]
    for training, left, right in zip((False, True), outputs, after, strict=True):
        if frozen(variant) or (variant == "joint" and not training):  # unfrozen ones may draw: dropout
            assert_same_bits(left, right)
        elif variant == "gradient":
            assert (left - right).abs().max() > 1e-3, "W starts at random"


def calls_of(network: nn.Module, x: Tensor) -> list[tuple[Dendritic, tuple[Any, ...], dict[str, Any]]]:
    """What every dendritic module was called with in a pass."""
    calls = []
    handles = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((module, args, kwargs)),
            with_kwargs=True,
        )
        for module in all_modules(network)
    ]
    outputs_of(network, x)
    for handle in handles:
        handle.remove()
    assert {module for module, _, _ in calls} == set(all_modules(network))
    return calls


@pytest.mark.parametrize("training", [False, True])
@each_variant
@each_form
def test_the_gradient_at_a_modules_inputs_is_its_own(layer: str, form: str, variant: str, training: bool) -> None:
    network = built(layer, variant, form).train(training).requires_grad_(True)  # a user may unfreeze everything
    for module, args, kwargs in calls_of(network, samples_of(layer)):
        leaves: dict[int, Tensor] = {}  # queries, keys and values may be one tensor

        def leaf(x: Tensor, leaves: dict[int, Tensor] = leaves) -> Tensor:
            if id(x) not in leaves:
                leaves[id(x)] = x.detach().clone().requires_grad_(x.is_floating_point())
            return leaves[id(x)]

        args, kwargs = tree_map_only(Tensor, leaf, (args, kwargs))
        sources = [x for x in leaves.values() if x.requires_grad] + list(module.module.parameters())

        def gradients(
            of: nn.Module,
            module: Dendritic = module,
            args: Any = args,
            kwargs: Any = kwargs,
            sources: list[Tensor] = sources,
        ) -> tuple[Tensor, ...]:
            torch.manual_seed(5)
            neurons = module.adapter.neurons(of(*args, **kwargs))
            arriving = torch.randn(neurons.shape, generator=torch.Generator().manual_seed(9))
            # Attention takes no notice of a causal mask in some modes.
            return torch.autograd.grad(neurons, sources, arriving, materialize_grads=True)

        own, through = gradients(module.module), gradients(module)
        assert any(bool(gradient.any()) for gradient in own)
        if frozen(variant):
            for left, right in zip(own, through, strict=True):
                assert_same_bits(left, right)
        else:
            assert (own[0] - through[0]).abs().max() > 1e-4


@each_variant
@each_form
def test_accepted_dendrites_do_not_change_in_training(layer: str, form: str, variant: str) -> None:
    network = built(layer, variant, form)
    modules = all_modules(network)
    before = [state_of(module.dendrites) for module in modules]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (network(samples_of(layer)) - 1).square().sum().backward()
        optimiser.step()
    for module, state in zip(modules, before, strict=True):
        assert all(parameter.grad is not None for parameter in module.module.parameters())
        error = module.outgoing.grad
        assert variant == "sham" if error is None else bool(error.any())
        if frozen(variant):
            assert_same_state(state, module.dendrites)
            assert not any(parameter.requires_grad for parameter in module.dendrites.parameters())
            assert not any(part.training for part in module.dendrites.modules())
        else:
            after = module.dendrites.state_dict()
            changed = {name for name, value in state.items() if bool((after[name] != value).any())}
            # Nothing but the choice of inputs stays, and what has no numbers: U of the first generation.
            assert changed == {name for name, value in state.items() if value.numel() and "index" not in name}


@pytest.mark.parametrize(("layer", "form"), POSSIBLE)
def test_growing_changes_nothing_until_dendrites_are_accepted(layer: str, form: str) -> None:
    network = built(layer, "perforated", form, 1)
    x = samples_of(layer, 24)
    outputs = outputs_of(copy.deepcopy(network), x)
    state, stream = state_of(network), torch.get_rng_state()
    modes = [part.training for part in network.modules()]
    targets = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    records = record(network, lambda y, target: (y - target).square().sum(1), in_batches(x, targets, 6))
    grown = {}
    for name, module in dendritic_modules(network).items():
        # Of the training, and with few records of that of linear candidates.
        epochs = iter([False, True] * 2)
        generator = torch.Generator().manual_seed(2)
        grown[name], growth = grow(module, records[name], lambda rest=epochs: lambda score: next(rest), generator)  # type: ignore[misc]
        assert growth.epochs in (2, 4)
        assert 0 < growth.score <= 1
    assert_same_state(state, network)
    assert torch.equal(torch.get_rng_state(), stream)
    assert [part.training for part in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, module in dendritic_modules(network).items():
        module.accept(grown[name])
        assert len(module.dendrites) == 2 * module.spec.per_neuron
    assert_same_bits(outputs_of(network, x), outputs)


@each_variant
@each_form
def test_the_folded_network_is_equal_and_of_the_formulas_size(layer: str, form: str, variant: str) -> None:
    base = parameter_count(Network(LAYERS[layer]))
    network = built(layer, variant, form).eval()
    folded = fold(network)
    x = samples_of(layer)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=2e-5)
    assert not dendritic_modules(folded)
    assert parameter_count(folded) == parameter_count(network)
    assert weight_bytes(folded) == weight_bytes(network)
    assert multiply_accumulates(folded, x) == multiply_accumulates(network, x)
    if form == "plain":
        dendrites = 0 if variant == "sham" else 2
        added = sum(
            dendrites * parameter_count(module.module) + module.channels * dendrites * (dendrites + 1) // 2
            for module in all_modules(network)
        )
        assert parameter_count(folded) == base + added
    double = network.double()
    x = x.double()
    torch.testing.assert_close(fold(double)(x), double(x), rtol=1e-10, atol=1e-11)
    assert double(x).dtype == torch.float64


@each_variant
@each_form
def test_a_network_comes_back_from_its_state_and_can_be_copied(layer: str, form: str, variant: str) -> None:
    network = built(layer, variant, form).eval()
    x = samples_of(layer)
    outputs, state = outputs_of(network, x), state_of(network)
    torch.manual_seed(99)
    other = Network(LAYERS[layer])
    attach(other, DendriteSpec(variant=variant, placement=LAYERS[layer].placement, **FORMS[form]))
    generations(other, 2)
    assert bool((outputs_of(other.eval(), x) != outputs).any())
    other.load_state_dict(state)
    assert_same_bits(outputs_of(other, x), outputs)
    copied = copy.deepcopy(network)
    assert_same_bits(outputs_of(copied, x), outputs)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert_same_state(state, network)


def test_a_block_that_begins_with_words_grows_too() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4)), nn.Tanh())
    (module,) = attach(network, DendriteSpec(placement=("0",))).values()
    words = torch.arange(20) % 5
    kept = record(network, lambda y, target: (y - target).square().sum(1), in_batches(words, torch.randn(20, 4), 5))
    dendrites, growth = grow(module, kept["0"], lambda: lambda score: True, torch.Generator().manual_seed(0))
    assert 0 < growth.score < 1
    module.accept(dendrites)
    nn.init.ones_(module.outgoing)
    torch.testing.assert_close(fold(network)(words), network.eval()(words))


class Asking(nn.Module):
    """A network that looks at its layers, and gives them their inputs by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(2, 4, 1)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mix(input=x).reshape(len(x), self.mix.out_channels, -1)
        return self.head(input=hidden).reshape(-1, 4, self.head.out_features)


@pytest.mark.parametrize("form", ["plain", "few inputs"])
def test_a_network_may_look_at_its_layers_before_and_after_folding(form: str) -> None:
    torch.manual_seed(0)
    network = Asking()
    attach(network, DendriteSpec(**FORMS[form]))
    generations(network, 2)
    x = torch.randn(6, 2, 3)
    torch.testing.assert_close(fold(network)(x), network(x))
