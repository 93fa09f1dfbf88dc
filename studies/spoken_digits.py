"""Spoken digits on a small device: a perceptron and a recurrent network.

python studies/spoken_digits.py --workers 2
"""

from torch import Tensor, nn

from pbp_search import ClassificationTask, Data
from pbp_search.cli import main
from pbp_search.cli.script import study_script
from pbp_search.tasks.parts import parts_of, perceptron
from pbp_search.tasks.published import spoken_digits


class SpokenDigitsMLP(ClassificationTask):
    """480-width-10, or deeper; 2,160 training, 540 validation and the 300 official test recordings."""

    name = "spoken_digits_mlp"
    widths = (1, 32)
    # Of dendrites, the forms that wider searches have found best: docs/results/README.md.
    space = {
        "neuron_max_epochs": 100,
        "variant": ["perforated", "joint"],
        "objective": "covariance",
        "placement": "head",
        "sees": "input",
        "fan_in": [8, 16, 32],
        "pattern": "chosen",
        "prunings": 6,
    }

    def data(self) -> Data:
        """20 frames of 24 bands, shape (N, 20, 24), standardised by the recordings that are not for testing."""
        x, y, x_test, y_test = spoken_digits()
        mean, deviation = x.mean((0, 1)), x.std((0, 1))
        return parts_of((x - mean) / deviation, y, (x_test - mean) / deviation, y_test, 540)

    def model(self, width: int, depth: int = 1) -> nn.Module:
        """``depth`` hidden layers."""
        return nn.Sequential(nn.Flatten(), *perceptron(480, *[width] * depth, 10))


class SpokenDigitsGRU(SpokenDigitsMLP):
    """A GRU of ``width`` units, and a linear layer from its last state."""

    name = "spoken_digits_gru"
    widths = (2, 64)
    space = {
        **SpokenDigitsMLP.space,
        "neuron_max_epochs": 60,
        "neuron_epochs": {"low": 20, "high": 60},
    }

    def model(self, width: int, depth: int = 1) -> nn.Module:
        """``depth`` recurrent layers."""
        return LastState(width, depth)


class LastState(nn.Module):
    """What a GRU remembers at the end, read by a linear layer."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.recurrent = nn.GRU(24, width, depth, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, 10), of inputs of shape (N, 20, 24)."""
        output, _ = self.recurrent(x)
        logits: Tensor = self.head(output[:, -1])
        return logits


if __name__ == "__main__":
    main(study_script(SpokenDigitsMLP, SpokenDigitsGRU))
