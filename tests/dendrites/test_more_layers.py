"""Layers that few networks have, or that are called in other ways: each goes the whole way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pbp_search.dendrites import Adapters, DendriteSpec, LastState, attach, fold, grow, record
from pbp_search.errors import InputError, UnsupportedModuleError
from tests.dendrites.grown_networks import assert_same_bits
from tests.dendrites.test_record import squared_loss

N, T = 24, 5


class Wired(nn.Module):
    def __init__(self, wire: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.wire = wire

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.wire(self, *inputs)


def steps(net: Any, x: Tensor) -> Tensor:
    state = None
    for t in range(x.shape[1]):
        state = net.cell(x[:, t], state)
    return net.head(state[0] if isinstance(state, tuple) else state)


def packed(net: Any, x: Tensor) -> Tensor:
    lengths = torch.arange(len(x)) % x.shape[1] + 1
    outputs, _ = net.layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(outputs, batch_first=True)[0].sum(1)


def upward(net: Any, x: Tensor) -> Tensor:
    return net.up(net.down(x), output_size=x.shape[2:])


def images() -> tuple[Tensor, ...]:
    return (torch.randn(N, 1, 8, 8),)


def series() -> tuple[Tensor, ...]:
    return (torch.randn(N, T, 8),)


def stepwise(cell: Callable[[int, int], nn.Module]) -> nn.Module:
    return Wired(steps, cell=cell(8, 6), head=nn.Linear(6, 3))


def resizing() -> nn.Module:
    return Wired(upward, down=nn.Conv2d(1, 3, 3, stride=2), up=nn.ConvTranspose2d(3, 2, 3, stride=2))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]], dict[str, Any], list[str]]] = {
    "RNNCell": (lambda: stepwise(nn.RNNCell), series, {}, ["cell", "head"]),
    "GRUCell": (lambda: stepwise(nn.GRUCell), series, {}, ["cell", "head"]),
    "LSTMCell": (lambda: stepwise(nn.LSTMCell), series, {}, ["cell", "head"]),
    "Bilinear": (
        lambda: Wired(lambda net, x, y: net.both(x, y), both=nn.Bilinear(3, 4, 5)),
        lambda: (torch.randn(N, 3), torch.randn(N, 4)),
        {},
        ["both"],
    ),
    "Embedding that is named": (
        lambda: Wired(lambda net, x: net.words(x).mean(1), words=nn.Embedding(10, 5)),
        lambda: (torch.randint(10, (N, 6)),),
        {"spec": DendriteSpec(placement=("words",))},
        ["words"],
    ),
    "EmbeddingBag that is named": (
        lambda: Wired(lambda net, x: net.words(x), words=nn.EmbeddingBag(10, 5)),
        lambda: (torch.randint(10, (N, 6)),),
        {"spec": DendriteSpec(placement=("words",))},
        ["words"],
    ),
    "output_size": (resizing, images, {}, ["down", "up"]),
    "output_size, few inputs": (resizing, images, {"spec": DendriteSpec(fan_in=3)}, ["down", "up"]),
    "packed sequence": (lambda: Wired(packed, layer=nn.LSTM(8, 6, batch_first=True)), series, {}, ["layer"]),
    "last state of an LSTM": (
        lambda: Wired(lambda net, x: net.layer(x)[1][0][-1], layer=nn.LSTM(8, 6, batch_first=True)),
        series,
        {"adapters": {"layer": LastState()}},
        ["layer"],
    ),
    "last state of a GRU": (
        lambda: Wired(lambda net, x: net.layer(x)[1][-1], layer=nn.GRU(8, 6, 2, bidirectional=True, batch_first=True)),
        series,
        {"adapters": {nn.GRU: LastState()}},
        ["layer"],
    ),
    "Transformer layer as a block, time first": (
        lambda: Wired(
            lambda net, x: net.layer(x.transpose(0, 1)).mean(0), layer=nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        ),
        series,
        {"spec": DendriteSpec(placement=("layer",))},
        ["layer"],
    ),
    "decoder layer": (
        lambda: Wired(
            lambda net, x: net.layer(x, x).mean(1), layer=nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        ),
        series,
        {},
        ["layer.self_attn", "layer.multihead_attn", "layer.linear1", "layer.linear2"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_generation_goes_the_whole_way(case: str) -> None:
    torch.manual_seed(0)
    build, draw, options, wrapped = CASES[case]
    network, inputs = build(), draw()
    modules = attach(network, **options)
    assert list(modules) == wrapped
    outputs = network.eval()(*inputs).detach()
    rows = [slice(start, start + 6) for start in range(0, N, 6)]
    targets = torch.randn_like(outputs)
    records = record(network, squared_loss, [(tuple(x[some] for x in inputs), targets[some]) for some in rows])
    grown = {}
    for name, module in modules.items():
        stream = torch.Generator().manual_seed(0)
        grown[name], growth = grow(module, records[name], lambda: lambda score: True, stream)
        assert 0 < growth.score <= 1
    for name, module in modules.items():
        module.accept(grown[name])
    assert_same_bits(network(*inputs), outputs)
    for module in modules.values():
        nn.init.normal_(module.outgoing)
    assert bool((network(*inputs) != outputs).any())
    torch.testing.assert_close(fold(network)(*inputs), network(*inputs))


def test_samples_of_a_block_of_time_first_sequences_are_on_the_second_axis() -> None:
    network = Wired(lambda net, x: net.layer(x.transpose(0, 1)).mean(0), layer=nn.TransformerEncoderLayer(8, 2, 16))
    adapters: Adapters = {}
    (module,) = attach(network, DendriteSpec(placement=("layer",)), adapters).values()
    assert module.adapter.rows(torch.zeros(T, N, 8)).shape == (N, T, 8)


def test_a_recurrent_layer_of_which_only_the_state_is_used_is_refused_with_a_way_out() -> None:
    network = Wired(lambda net, x: net.layer(x)[1][-1], layer=nn.GRU(8, 6, batch_first=True))
    attach(network)
    x, y = torch.randn(N, T, 8), torch.randn(N, 6)
    with pytest.raises(UnsupportedModuleError, match=r"module 'layer'.*LastState\(\)"):
        record(network, squared_loss, [(x[:12], y[:12]), (x[12:], y[12:])])


def test_a_lazy_network_is_run_first() -> None:
    network = nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.Linear(3, 2))
    assert list(attach(network)) == ["2"]
    x, y = torch.randn(N, 4), torch.randn(N, 2)
    with pytest.raises(InputError, match=r"run it once before recording"):
        record(network, squared_loss, [(x[:12], y[:12]), (x[12:], y[12:])])
