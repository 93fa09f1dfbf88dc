"""Defaults of credit card clients: AUC against width, as published for an open implementation of dendrites.

python studies/credit_mlp.py --workers 2
"""

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from pbp_search import Data, Split
from pbp_search.cli import main
from pbp_search.cli.script import study_script
from pbp_search.tasks.parts import perceptron
from pbp_search.tasks.published import credit_default
from pbp_search.training import Direction


class CreditMLP:
    """23-width-width-width/2-1, scored by AUC; 70/15/15, stratified."""

    name = "credit_mlp"
    metric = "AUC"
    direction: Direction = "maximize"
    widths = (2, 128)
    # Of dendrites, the forms that wider searches have found best: docs/results/README.md.
    space = {
        "batch_size": 256,
        "neuron_patience": {"low": 4, "high": 10},
        "neuron_max_epochs": 60,
        "neuron_epochs": {"low": 10, "high": 60},
        "variant": ["perforated", "joint"],
        "objective": "covariance",
        "placement": "head",
        "sees": "input",
        "fan_in": [8, "all"],
        "pattern": "chosen",
        "prunings": 5,
    }

    def data(self) -> Data:
        """Features standardised by the training part."""
        features, defaults = credit_default()
        rest, test = train_test_split(np.arange(len(defaults)), test_size=0.15, stratify=defaults, random_state=0)
        train, validation = train_test_split(rest, test_size=len(test), stratify=defaults[rest], random_state=0)
        x = (features - features[train].mean(0)) / features[train].std(0)
        inputs, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(defaults, dtype=torch.float32)
        return Data(*(Split(inputs[rows], targets[rows]) for rows in (train, validation, test)))

    def model(self, width: int, depth: int = 3) -> nn.Module:
        """``depth`` hidden layers, the last one of half the width."""
        return nn.Sequential(perceptron(23, *[width] * (depth - 1), max(1, width // 2), 1), nn.Flatten(0))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each client."""
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The area under the ROC curve."""
        return float(roc_auc_score(targets.cpu(), outputs.cpu()))


if __name__ == "__main__":
    main(study_script(CreditMLP))
