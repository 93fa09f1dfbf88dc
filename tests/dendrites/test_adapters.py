from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pbp_search.dendrites import Adapter, Adapters, DendriteSpec, Dendritic, attach, fold, grow, record
from pbp_search.dendrites.adapters import SequenceAdapter, block_adapter, is_layer, layer_adapter
from tests.dendrites.grown_networks import add_generations, assert_same_bits, in_batches

# torch says that projections of an LSTM are slow.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

N, T = 3, 5
MAPS = {1: (4,), 2: (4, 5), 3: (4, 5, 6)}


def convolution(kind: type[nn.Module], dimensions: int) -> tuple[nn.Module, tuple[Any, ...]]:
    return kind(2, 7, 1), (torch.randn(N, 2, *MAPS[dimensions]),)


def recurrent(kind: type[nn.Module], batch_first: bool, **options: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    shape = (N, T, 2) if batch_first else (T, N, 2)
    return kind(2, 6, batch_first=batch_first, **options), (torch.randn(shape),)


def attention(batch_first: bool) -> tuple[nn.Module, tuple[Any, ...]]:
    shape = (N, T, 6) if batch_first else (T, N, 6)
    # Queries of another length than keys: neurons are the queries' positions.
    query, keys = torch.randn(shape), torch.randn(shape).repeat_interleave(2, 1 if batch_first else 0)
    return nn.MultiheadAttention(6, 2, batch_first=batch_first), (query, keys, keys)


@dataclass(frozen=True)
class Kind:
    """A layer and its inputs, and where its C neurons of N samples are: the axes from the end and the beginning."""

    build: Callable[[], tuple[nn.Module, tuple[Any, ...]]]
    channels: int
    axis: int = -1
    samples: int = 0


KINDS: dict[str, Kind] = {
    "linear": Kind(lambda: (nn.Linear(2, 7), (torch.randn(N, 2),)), 7),
    "linear on sequences": Kind(lambda: (nn.Linear(2, 7), (torch.randn(N, T, 2),)), 7),
    "conv1d": Kind(lambda: convolution(nn.Conv1d, 1), 7, -2),
    "conv2d": Kind(lambda: convolution(nn.Conv2d, 2), 7, -3),
    "conv3d": Kind(lambda: convolution(nn.Conv3d, 3), 7, -4),
    "transposed 1d": Kind(lambda: convolution(nn.ConvTranspose1d, 1), 7, -2),
    "transposed 2d": Kind(lambda: convolution(nn.ConvTranspose2d, 2), 7, -3),
    "transposed 3d": Kind(lambda: convolution(nn.ConvTranspose3d, 3), 7, -4),
    "attention": Kind(lambda: attention(True), 6),
    "attention, time first": Kind(lambda: attention(False), 6, samples=1),
    "lstm, projected": Kind(lambda: recurrent(nn.LSTM, True, proj_size=3), 3),
    "lstm, projected in both directions": Kind(
        lambda: recurrent(nn.LSTM, False, proj_size=3, bidirectional=True), 6, samples=1
    ),
    "lstm, deep": Kind(lambda: recurrent(nn.LSTM, True, num_layers=2, bidirectional=True), 12),
}
RECURRENT: dict[str, type[nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def add_recurrent(name: str, kind: type[nn.Module]) -> None:
    KINDS[name] = Kind(lambda: recurrent(kind, True), 6)
    KINDS[f"{name}, time first"] = Kind(lambda: recurrent(kind, False), 6, samples=1)
    KINDS[f"{name}, both directions"] = Kind(lambda: recurrent(kind, True, bidirectional=True), 12)


for name, kind in RECURRENT.items():
    add_recurrent(name, kind)


@pytest.mark.parametrize("name", KINDS)
def test_a_layers_neurons_are_found_and_replaced(name: str) -> None:
    expected = KINDS[name]
    torch.manual_seed(0)
    layer, inputs = expected.build()
    adapter = layer_adapter(layer)
    assert adapter is not None
    output = layer(*inputs)
    neurons = adapter.neurons(output)
    assert neurons is (output[0] if isinstance(output, tuple) else output)
    assert adapter.channels(layer) == neurons.shape[adapter.axis] == expected.channels
    assert (adapter.axis, adapter.samples) == (expected.axis, expected.samples)
    assert neurons.shape[adapter.samples] == N
    other = neurons + 1
    replaced = adapter.replace(output, other)
    assert adapter.neurons(replaced) is other
    if isinstance(output, tuple):
        # States and attention weights stay as they are.
        assert type(replaced) is tuple
        assert len(replaced) == len(output)
        assert all(new is old for new, old in zip(replaced[1:], output[1:], strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_each_channel_has_its_own_weight_along_its_axis(name: str) -> None:
    torch.manual_seed(0)
    layer, inputs = KINDS[name].build()
    module = Dendritic(layer, DendriteSpec(), layer_adapter(layer))
    add_generations(module, 1)
    (activation,) = module.activations(*inputs)
    adapter = module.adapter
    with torch.no_grad():
        module.outgoing.zero_()[0, 2] = 3.0
    changed = adapter.neurons(module(*inputs)) - adapter.neurons(layer(*inputs))
    changed, activation = changed.movedim(adapter.axis, -1), activation.movedim(adapter.axis, -1)
    torch.testing.assert_close(changed[..., 2], 3.0 * activation[..., 2])
    assert not bool(changed[..., [0, 1, *range(3, module.channels)]].any())


class OwnConvolution(nn.Conv2d):
    """May compute anything."""


@pytest.mark.parametrize("module", [nn.Embedding(2, 2), nn.LayerNorm(2), nn.Sequential(nn.Linear(2, 2))])
def test_other_modules_are_not_wrapped_unasked(module: nn.Module) -> None:
    assert layer_adapter(module) is None
    assert not is_layer(module)


def test_a_subclass_has_its_layers_adapter_and_is_no_layer() -> None:
    adapter = layer_adapter(OwnConvolution(1, 3, 1))
    assert adapter is not None
    assert adapter.axis == -3
    assert not is_layer(OwnConvolution(1, 3, 1))
    assert is_layer(nn.Conv2d(1, 3, 1))


BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "convolution and batch normalisation": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)),
        (N, 2, 5, 5),
        6,
        -3,
    ),
    "convolution and group normalisation": (
        lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.GroupNorm(2, 6), nn.ReLU()),
        (N, 2, 5),
        6,
        -2,
    ),
    "linear and layer normalisation": (
        lambda: nn.Sequential(nn.Linear(2, 6), nn.LayerNorm(6), nn.Dropout(0.1)),
        (N, T, 2),
        6,
        -1,
    ),
    "deeper": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), nn.BatchNorm1d(4)),
        (N, 2, 2, 2),
        4,
        -1,
    ),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), (N, T, 4), 4, -1),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_blocks_neurons_are_those_of_its_last_layer(name: str) -> None:
    build, shape, channels, axis = BLOCKS[name]
    block = build()
    adapter = block_adapter(block)
    assert adapter is not None
    assert (adapter.channels(block), adapter.axis, adapter.samples) == (channels, axis, 0)
    output = block(torch.randn(shape))
    assert adapter.neurons(output) is output
    assert output.shape[adapter.axis] == channels
    network = nn.Sequential(block, nn.Flatten())
    assert list(attach(network, DendriteSpec(placement=("0",)))) == ["0"]


@pytest.mark.parametrize("block", [nn.Sequential(nn.ReLU()), nn.Sequential(nn.LSTM(2, 2)), nn.LayerNorm(2)])
def test_a_block_without_a_layer_of_one_output_is_unknown(block: nn.Module) -> None:
    assert block_adapter(block) is None


def test_attention_says_who_looked_where_as_before() -> None:
    layer, inputs = attention(True)
    assert isinstance(layer_adapter(layer), SequenceAdapter)
    module = Dendritic(layer, DendriteSpec(), layer_adapter(layer))
    add_generations(module, 1)
    assert module(*inputs, need_weights=False)[1] is None
    assert_same_bits(module(*inputs)[1], layer(*inputs)[1])


# Modules of one's own: their outputs and inputs are what they like.


class Decoder(nn.Module):
    """Two inputs, one of which is given by name, and several outputs in a container of its own."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 4)
        self.head = nn.Linear(4, 5)
        self.pack = pack

    def forward(self, x: Tensor, scale: Tensor, *, shift: Tensor) -> Any:
        hidden = torch.tanh(self.hidden(x * scale) + shift)
        return self.pack(self.head(hidden), hidden)


@dataclass(frozen=True)
class Outputs:
    logits: Tensor
    hidden: Tensor


class Headed(Adapter):
    axis = -1

    def channels(self, module: Any) -> int:
        return int(module.head.out_features)


class DictLogits(Headed):
    def neurons(self, output: Any) -> Tensor:
        return output["logits"]

    def replace(self, output: Any, neurons: Tensor) -> Any:
        return {**output, "logits": neurons}


class TupleLogits(Headed):
    def neurons(self, output: Any) -> Tensor:
        return output[1]

    def replace(self, output: Any, neurons: Tensor) -> Any:
        return (output[0], neurons)


class DataclassLogits(Headed):
    def neurons(self, output: Any) -> Tensor:
        return output.logits

    def replace(self, output: Any, neurons: Tensor) -> Any:
        return replace(output, logits=neurons)


@dataclass(frozen=True)
class Own:
    pack: Callable[[Tensor, Tensor], Any]
    logits: Callable[[Any], Tensor]
    hidden: Callable[[Any], Tensor]
    adapter: Adapter


OWN: dict[str, Own] = {
    "dict": Own(lambda a, b: {"logits": a, "hidden": b}, lambda o: o["logits"], lambda o: o["hidden"], DictLogits()),
    "tuple": Own(lambda a, b: (b, a), lambda o: o[1], lambda o: o[0], TupleLogits()),
    "dataclass": Own(Outputs, lambda o: o.logits, lambda o: o.hidden, DataclassLogits()),
}


class OwnNetwork(nn.Module):
    def __init__(self, own: Own) -> None:
        super().__init__()
        self.own = own
        self.encoder = nn.Linear(3, 3)
        self.decoder = Decoder(own.pack)

    def forward(self, x: Tensor) -> Tensor:
        output = self.decoder(self.encoder(x), x.mean(1, keepdim=True), shift=x[:, :1])
        return torch.cat([self.own.logits(output), self.own.hidden(output)], 1)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs, targets, reduction="none").sum(1)


@pytest.mark.parametrize("by", ["name", "type"])
@pytest.mark.parametrize("case", OWN)
def test_a_module_with_outputs_of_its_own_goes_the_whole_way(case: str, by: str) -> None:
    own = OWN[case]
    torch.manual_seed(0)
    network = OwnNetwork(own).double()
    x = torch.randn(40, 3, dtype=torch.float64)
    before = network(x)
    adapters: Adapters = {"decoder" if by == "name" else Decoder: own.adapter}
    wrapped = attach(network, DendriteSpec(pool=2), adapters)
    assert list(wrapped) == ["encoder", "decoder"], "nothing inside of the decoder"
    assert str(wrapped).splitlines()[1] == "decoder  Decoder  dendrites on 5 neurons"
    records = record(network, squared, in_batches(x, torch.randn(40, 9, dtype=torch.float64), 10))
    for name, module in wrapped.items():
        dendrites, growth = grow(module, records[name], lambda: lambda score: True, torch.Generator().manual_seed(0))
        assert 0 <= growth.score <= 1
        module.accept(dendrites)
    assert_same_bits(network(x), before)
    with torch.no_grad():
        wrapped["decoder"].outgoing.fill_(0.5)
    after = network(x)
    assert bool((after[:, :5] != before[:, :5]).all()), "the logits have dendrites"
    assert_same_bits(after[:, 5:], before[:, 5:])
    torch.testing.assert_close(fold(network)(x), after, rtol=0, atol=1e-12)
