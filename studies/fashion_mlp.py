"""Fashion-MNIST with one hidden layer of 4 to 300 neurons.

python studies/fashion_mlp.py --workers 2
"""

from torch import nn

from pbp_search import ClassificationTask, Data
from pbp_search.cli import main
from pbp_search.cli.script import study_script
from pbp_search.tasks.parts import parts_of, perceptron
from pbp_search.tasks.published import fashion_mnist


class FashionMLP(ClassificationTask):
    """784-width-10, or deeper; 50,000 training, 10,000 validation and the 10,000 official test images."""

    name = "fashion_mlp"
    widths = (4, 300)
    # Of dendrites, the forms that wider searches have found best: docs/results/README.md.
    space = {
        "batch_size": 256,
        "neuron_patience": {"low": 3, "high": 6},
        "neuron_max_epochs": 40,
        "neuron_epochs": {"low": 10, "high": 40},
        "variant": ["perforated", "joint"],
        "objective": "covariance",
        "placement": "head",
        "sees": "input",
        "fan_in": [16, 32],
        "pattern": "chosen",
        "prunings": 5,
    }

    def data(self) -> Data:
        """Pixels from 0 to 1."""
        images, labels, test_images, test_labels = fashion_mnist()
        return parts_of(images / 255, labels, test_images / 255, test_labels, 10_000)

    def model(self, width: int, depth: int = 1) -> nn.Module:
        """``depth`` hidden layers."""
        return perceptron(784, *[width] * depth, 10)


if __name__ == "__main__":
    main(study_script(FashionMLP, max_params=30_000))
