"""Fashion-MNIST's training part from the folder that PBP_SEARCH_DATA names."""

import gzip
import os
from pathlib import Path

import numpy as np
import torch

from pbp_search.training import Split


def training_part() -> Split | None:
    """60,000 images of 784 numbers from 0 to 1 with their classes; None if the folder is not there."""
    folder = Path(os.environ.get("PBP_SEARCH_DATA", "")) / "fashion_mnist"
    if not os.environ.get("PBP_SEARCH_DATA") or not folder.is_dir():
        return None
    images = _read(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, 784)
    labels = _read(folder / "train-labels-idx1-ubyte.gz", 8)
    return Split(torch.tensor(images / np.float32(255)), torch.tensor(labels.astype(np.int64)))


def _read(file: Path, header: int) -> np.ndarray:
    with gzip.open(file) as stream:
        return np.frombuffer(stream.read(), np.uint8, offset=header)
