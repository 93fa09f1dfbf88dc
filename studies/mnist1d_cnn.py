"""MNIST-1D with three narrow convolutions.

python studies/mnist1d_cnn.py --workers 2
"""

from torch import nn

from pbp_search import ClassificationTask, Data
from pbp_search.cli import main
from pbp_search.cli.script import study_script
from pbp_search.tasks.parts import parts_of
from pbp_search.tasks.published import mnist1d


class Mnist1dCNN(ClassificationTask):
    """Three convolutions of ``width`` channels; 3,000 training, 1,000 validation, 1,000 test signals."""

    name = "mnist1d_cnn"
    widths = (2, 24)
    # Of dendrites, the forms that wider searches have found best: docs/results/README.md.
    space = {
        "neuron_max_epochs": 150,
        "neuron_epochs": {"low": 40, "high": 120},
        "variant": ["perforated", "joint"],
        "objective": "covariance",
        "placement": ["first", "head"],
        "fan_in": [8, 16],
        "pattern": "chosen",
        "prunings": 5,
    }

    def data(self) -> Data:
        """Signals of one channel and 40 points, as published."""
        signals, labels, test_signals, test_labels = mnist1d()
        return parts_of(signals[:, None], labels, test_signals[:, None], test_labels, 1_000)

    def model(self, width: int, depth: int = 3) -> nn.Module:
        """``depth`` convolutions, each with half as many points as the one before, up to the third."""
        layers: list[nn.Module] = [nn.Conv1d(1, width, 5, stride=2, padding=1), nn.ReLU()]
        for number in range(1, depth):
            layers += [nn.Conv1d(width, width, 3, stride=2 if number < 3 else 1, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * width, 10))


if __name__ == "__main__":
    main(study_script(Mnist1dCNN))
