"""A task of one's own: the diabetes progression of scikit-learn, a regression whose score is minimised."""

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from pbp_search import Data, Split


class Diabetes:
    """442 patients, 10 features; the root mean squared error of the standardised progression."""

    name = "diabetes"
    metric = "rmse"
    direction = "minimize"
    widths = (1, 32)

    def data(self) -> Data:
        """60/20/20, standardised by the training part."""
        features, target = load_diabetes(return_X_y=True)
        rest, test = train_test_split(range(len(target)), test_size=0.2, random_state=0)
        train, validation = train_test_split(rest, test_size=0.25, random_state=0)
        x = (features - features[train].mean(0)) / features[train].std(0)
        y = (target - target[train].mean()) / target[train].std()
        inputs, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
        return Data(*(Split(inputs[rows], targets[rows]) for rows in (train, validation, test)))

    def model(self, width: int) -> nn.Module:
        """One hidden layer."""
        return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 1), nn.Flatten(0))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squared error of each patient."""
        return (outputs - targets).square()

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The root mean squared error."""
        return float((outputs - targets).square().mean().sqrt())
