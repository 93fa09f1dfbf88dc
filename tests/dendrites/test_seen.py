"""Dendrites that see another tensor than their module's own input."""

import copy
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import (
    DendriteSpec,
    Dendritic,
    attach,
    dendritic_modules,
    fold,
    grow,
    parameter_count,
    record,
)
from pbp_search.errors import UnsupportedModuleError
from pbp_search.training import ClassificationTask, Data, Split, run_chain, run_rung
from tests.dendrites.grown_networks import assert_same_bits, in_batches
from tests.dendrites.test_record import squared_loss
from tests.training.tiny_tasks import assert_same_checkpoint, config

FORMS: dict[str, dict[str, Any]] = {
    "all inputs": {},
    "few inputs": {"fan_in": 3},
    "pool": {"pool": 3, "per_neuron": 2},
    "gradient": {"variant": "gradient"},
}


def narrow() -> nn.Module:
    """A bottleneck of 2 between 12 inputs and 4 outputs."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.Flatten(), nn.Linear(12, 2), nn.Tanh(), nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4)
    )


def problem() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    inputs = torch.randn(400, 12)
    return inputs, inputs[:, ::3].sign()


def grown(generations: int = 2, sees: str = "input", **form: Any) -> tuple[nn.Module, Dendritic]:
    network, (inputs, targets) = narrow(), problem()
    (module,) = attach(network, DendriteSpec(placement="head", sees=sees, **form)).values()
    for seed in range(generations):
        kept = record(network, squared_loss, in_batches(inputs, targets, 50))["6"]
        generation, _ = grow(module, kept, lambda: StopAfter(10), torch.Generator().manual_seed(seed))
        module.accept(generation)
        nn.init.normal_(module.outgoing, generator=torch.Generator().manual_seed(seed))
    return network, module


class StopAfter:
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def __call__(self, score: float) -> bool:
        self.epochs -= 1
        return self.epochs <= 0


@pytest.mark.parametrize(("sees", "features"), [("input", 12), ("2", 2), ("3", 2), ("0", 12)])
@pytest.mark.parametrize("form", FORMS)
def test_dendrites_compute_what_they_see(form: str, sees: str, features: int) -> None:
    network, module = grown(sees=sees, **FORMS[form])
    inputs, _ = problem()
    network.eval()
    seen = inputs if features == 12 else network[:3](inputs) if sees == "2" else network[:4](inputs)  # type: ignore[index]
    hidden = network[:6](inputs)  # type: ignore[index]
    y, activations = module.module(hidden), list[Tensor]()
    for dendrite, outgoing in zip(module.dendrites, module.outgoing, strict=True):
        activations.append(dendrite(activations, seen))
        y = y + outgoing * activations[-1]
    torch.testing.assert_close(network(inputs), y)
    torch.testing.assert_close(fold(network)(inputs), y)
    assert parameter_count(fold(network)) == parameter_count(network)
    per_dendrite = 4 * (3 if form == "few inputs" and features > 3 else features) + 4
    count = len(module.dendrites)
    incoming = sum(len(dendrite.get_parameter("incoming")) for dendrite in module.dendrites)
    assert parameter_count(network) == parameter_count(narrow()) + count * per_dendrite + 4 * incoming + 4 * count


def test_a_skip_past_a_bottleneck_finds_what_the_module_cannot_see() -> None:
    scores = {}
    for sees in ("input", None):
        network, (inputs, targets) = narrow(), problem()
        (module,) = attach(network, DendriteSpec(placement="head", sees=sees)).values()
        kept = record(network, squared_loss, in_batches(inputs, targets, 50))["6"]
        _, growth = grow(module, kept, lambda: StopAfter(40), torch.Generator().manual_seed(0))
        scores[sees] = growth
    assert scores["input"].above_floor()
    assert scores["input"].score > scores[None].score + 0.1


@pytest.mark.parametrize("form", [form for form in FORMS if form != "gradient"])  # whose W starts at random
def test_a_new_generation_changes_no_bit(form: str) -> None:
    network, module = grown(1, **FORMS[form])
    inputs, targets = problem()
    before = network.eval()(inputs)
    kept = record(network, squared_loss, in_batches(inputs, targets, 50))["6"]
    module.accept(grow(module, kept, lambda: StopAfter(2), torch.Generator().manual_seed(9))[0])
    assert_same_bits(network(inputs), before)


@pytest.mark.parametrize("form", FORMS)
def test_no_error_flows_through_dendrites(form: str) -> None:
    network, module = grown(**FORMS[form])
    inputs = problem()[0].requires_grad_()
    y = network(inputs)
    error = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, inputs, error)
    hidden = network[:6](inputs)  # type: ignore[index]
    (own,) = torch.autograd.grad(module.module(hidden), inputs, error)
    if form == "gradient":
        assert bool((found != own).any())
    else:
        assert_same_bits(found, own)


def test_copies_are_independent_and_see_their_own_inputs() -> None:
    network, _ = grown()
    inputs, _ = problem()
    outputs = network(inputs)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert_same_bits(copied(inputs), outputs)
        (module,) = dendritic_modules(copied).values()
        nn.init.zeros_(module.outgoing)
        assert bool((copied(inputs) != outputs).any())
    assert_same_bits(network(inputs), outputs)
    assert network[6].seen._value is None, "nothing of a pass stays behind"  # type: ignore[index]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such module": ({"sees": "9"}, r"are to see '9', but there is no such module: name one, or 'input'"),
    "a module behind": ({"sees": "6", "placement": ("4",)}, r"'6'.*has not been called yet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_seen_is_refused_in_a_sentence(case: str) -> None:
    spec, sentence = REFUSED[case]
    network, (inputs, targets) = narrow(), problem()

    def attach_and_record() -> None:
        attach(network, DendriteSpec(**spec))
        record(network, squared_loss, in_batches(inputs, targets, 50))

    with pytest.raises(UnsupportedModuleError, match=sentence):
        attach_and_record()


def test_layers_with_several_positions_are_refused_by_name() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    attach(network, DendriteSpec(sees="input"))
    x, y = torch.randn(20, 5, 3), torch.randn(20, 5, 2)
    with pytest.raises(UnsupportedModuleError, match=r"'0' has outputs for 5 samples x 5 positions"):
        record(network, squared_loss, in_batches(x, y, 5))
    with pytest.raises(UnsupportedModuleError, match=r"only Linear layers take dendrites that see another tensor"):
        attach(nn.Sequential(nn.Conv1d(1, 2, 3)), DendriteSpec(sees="input"))


def test_growing_before_any_pass_is_refused() -> None:
    network = narrow()
    (module,) = attach(network, DendriteSpec(placement="head", sees="input")).values()
    with pytest.raises(UnsupportedModuleError, match=r"run the network once before growing"):
        module.generation()


class Bottleneck(ClassificationTask):
    """Whether two inputs have the same sign, through a bottleneck."""

    name = "bottleneck"
    widths = (1, 4)

    def data(self) -> Data:
        inputs = torch.randn(900, 6, generator=torch.Generator().manual_seed(0))
        targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
        return Data(*(Split(inputs[i : i + 300], targets[i : i + 300]) for i in (0, 300, 600)))

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2))


@pytest.mark.parametrize("form", FORMS)
def test_a_chain_grows_and_is_continued_elsewhere(form: str) -> None:
    settings = config(dendrites=DendriteSpec(placement="head", sees="input", **FORMS[form]))
    chain = run_chain(Bottleneck(), settings, 2)
    assert len(chain) > 1
    for previous, following in pairwise(chain):
        assert_same_checkpoint(run_rung(Bottleneck(), settings, previous), following)


@pytest.mark.parametrize("sees", ["0", "0.1"])
def test_a_module_cannot_see_itself_or_a_part_of_it(sees: str) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    if sees == "0.1":
        network = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.raises(UnsupportedModuleError, match=rf"cannot see '{sees}', which is that module or a part of it"):
        attach(network, DendriteSpec(sees=sees))
