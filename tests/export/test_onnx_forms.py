"""Networks with dendrites of every form, exported: the file computes what the network computes at any batch size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbp_search.dendrites import DendriteSpec, dendritic_modules, parameter_count, weight_bytes
from pbp_search.export import export_onnx
from pbp_search.training import Checkpoint, ClassificationTask, Data, Milestone, Split, TrialConfig, build_network
from pbp_search.training.milestone import weights_of

pytestmark = pytest.mark.slow


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps = nn.GRU(4, width, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(x)[0].mean(1))


class Attentive(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, width, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def convolutional(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, groups=width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def deep(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 2), nn.ReLU(), nn.Linear(2, 3))


FORMS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "perceptron, two a neuron": (perceptron, (6,), {"pool": 2, "per_neuron": 2}),
    "perceptron, few inputs": (perceptron, (6,), {"fan_in": 2}),
    "convolutions": (convolutional, (1, 8, 8), {}),
    "convolutions, few inputs": (convolutional, (1, 8, 8), {"fan_in": 2}),
    "a head that sees the input": (perceptron, (6,), {"placement": "head", "sees": "input"}),
    "a head that sees a layer, few inputs": (deep, (6,), {"placement": "head", "sees": "0", "fan_in": 2}),
    "a head that sees the image": (
        convolutional,
        (1, 8, 8),
        {"placement": "head", "sees": "input"},
    ),
    "recurrent": (Recurrent, (5, 4), {}),
    "attention": (Attentive, (5, 4), {}),
}


class Noise(ClassificationTask):
    """Random inputs and classes."""

    name = "noise"

    def __init__(self, build: Callable[[int], nn.Module], shape: tuple[int, ...]) -> None:
        self.build, self.shape = build, shape

    def data(self) -> Data:
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(21, *self.shape, generator=generator), torch.randint(3, (21,), generator=generator)
        return Data(*(Split(x[start : start + 7], y[start : start + 7]) for start in (0, 7, 14)))

    def model(self, width: int) -> nn.Module:
        return self.build(width)


@pytest.mark.parametrize("form", FORMS)
def test_the_file_computes_what_the_network_computes(tmp_path: Path, form: str) -> None:
    build, shape, spec = FORMS[form]
    task, config = Noise(build, shape), TrialConfig(width=4, dendrites=DendriteSpec(**spec))
    network = build_network(task, config, 2)
    for module in dendritic_modules(network).values():
        nn.init.normal_(module.outgoing)
    milestone = Milestone(
        config=config,
        requested=2,
        dendrites=2,
        parameters=parameter_count(network),
        weight_bytes=weight_bytes(network),
        macs=1,
        score=0.5,
        train_score=0.5,
        epochs=1,
        seconds=1.0,
    )
    # The export itself compares the two, at two batch sizes.
    exported = export_onnx(Checkpoint(milestone, weights_of(network)), task, tmp_path / "out")
    assert exported.card["parameters"] == parameter_count(network)
    assert exported.file.stat().st_size > milestone.weight_bytes / 2
