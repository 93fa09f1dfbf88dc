"""MNIST-1D from the folder that PBP_SEARCH_DATA names; and a task of it."""

import os
from pathlib import Path

import numpy as np
import torch
from arms import signal_network
from torch import nn

from pbp_search.training import ClassificationTask, Data, Split


def signals() -> Split | None:
    """MNIST-1D's training part: 4,000 signals of 40 points; None if the folder is not there."""
    file = Path(os.environ.get("PBP_SEARCH_DATA", "")) / "mnist1d" / "mnist1d.npz"
    if not file.is_file():
        return None
    with np.load(file) as stored:
        x, y = stored["x"].astype(np.float32), stored["y"].astype(np.int64)
    return Split(torch.tensor(x).reshape(-1, 1, 40), torch.tensor(y))


class Signals(ClassificationTask):
    """MNIST-1D: 3,000 signals to train on, 1,000 to validate; the official test part stays unread."""

    name = "mnist1d_cnn"
    widths = (2, 16)

    def data(self) -> Data:
        """The same split for every configuration."""
        found = signals()
        if found is None:
            raise FileNotFoundError("PBP_SEARCH_DATA names no folder with mnist1d/mnist1d.npz")
        order = torch.randperm(len(found.inputs), generator=torch.Generator().manual_seed(0))
        train, rest = (Split(found.inputs[rows], found.targets[rows]) for rows in (order[:3000], order[3000:]))
        return Data(train, rest, rest)

    def model(self, width: int) -> nn.Module:
        """Three convolutions of ``width`` channels."""
        return signal_network(width)
