"""The digits of scikit-learn: 1,797 images of 8x8 pixels, 10 classes, no download."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from pbp_search.training import ClassificationTask, Data, Split


class DigitsMLP(ClassificationTask):
    """Digits with one hidden layer: 64-width-10. 60/20/20 stratified, the same split for every configuration."""

    name = "digits_mlp"
    widths = (2, 64)

    def data(self) -> Data:
        """1,077 training, 360 validation and 360 test images, pixels scaled to 0 ... 1."""
        images, labels = load_digits(return_X_y=True)
        rest, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
        train, validation = train_test_split(rest, test_size=360, stratify=labels[rest], random_state=0)
        x = torch.as_tensor(images / 16, dtype=torch.float32)
        y = torch.as_tensor(labels)
        return Data(*(Split(x[rows], y[rows]) for rows in (train, validation, test)))

    def model(self, width: int) -> nn.Module:
        """A network with one hidden layer of ``width`` neurons."""
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
