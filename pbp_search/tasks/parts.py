"""What several tasks are made of: perceptrons, and a validation part."""

from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import nn

from pbp_search.training import Data, Split


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers with relu in between: ``perceptron(784, 10, 10)`` has one hidden layer of 10 neurons."""
    layers = [part for inputs, outputs in pairwise(sizes) for part in (nn.Linear(inputs, outputs), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def parts_of(x: NDArray[Any], y: NDArray[Any], x_test: NDArray[Any], y_test: NDArray[Any], validation: int) -> Data:
    """Data with a validation part of so many samples of the training part: stratified, the same at every call.

    Args:
        x: Training inputs, shape (N, ...).
        y: Their classes, shape (N,).
        x_test: Test inputs.
        y_test: Their classes.
        validation: Samples.
    """
    train, held_out = train_test_split(range(len(y)), test_size=validation, stratify=y, random_state=0)
    parts = ((x[train], y[train]), (x[held_out], y[held_out]), (x_test, y_test))
    return Data(*(Split(torch.tensor(a, dtype=torch.float32), torch.tensor(b)) for a, b in parts))
