"""Published data sets, from a folder that the user names or from their public homes.

``PBP_SEARCH_DATA`` names a folder that holds a folder for each of them. Without it, files are fetched by pooch into the
user's cache. Either way what is in them is compared with a checksum, so that scores belong to the data they are said to
belong to. The one exception are features that are computed here from recordings: see :func:`spoken_digits`.
"""

import gzip
import hashlib
import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from numpy.typing import NDArray
from scipy.io import wavfile

from pbp_search.errors import TaskError, said

FOLDER = "PBP_SEARCH_DATA"
"""The environment variable that names the folder."""

SHA256 = {
    "mnist": "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16",
    "fashion_mnist": "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f",
    "mnist1d": "b09ad3e22c854bc5a1948b85c373aab653ceb38c9170f5ed05b7d054e4160db9",
    "credit_default": "ecc4d131322ae367283d5cdce8f77ede7d79e255a2f776d78a12e8f9fece04a5",
    "spoken_digits": "5797340aac813d689b0fa4cd1a9053d01e8a16ed4016143c1bdb56339e5a7678",
}
"""Of the numbers in each data set, little-endian, one array after the other."""

Array = NDArray[Any]


def mnist() -> tuple[Array, Array, Array, Array]:
    """MNIST (Y. LeCun, C. Cortes, C. Burges).

    Returns:
        60,000 training images of 784 bytes, their classes, 10,000 test images, their classes.

    Raises:
        TaskError: A file is missing, cannot be fetched, or holds something else.
    """
    return _images("mnist", "https://ossci-datasets.s3.amazonaws.com/mnist/")


def fashion_mnist() -> tuple[Array, Array, Array, Array]:
    """Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747), shaped as MNIST.

    Raises:
        TaskError: A file is missing, cannot be fetched, or holds something else.
    """
    return _images("fashion_mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/")


def mnist1d() -> tuple[Array, Array, Array, Array]:
    """MNIST-1D (S. Greydanus, D. Kobak, arXiv 2011.14439), the frozen set.

    Returns:
        4,000 training signals of 40 points, their classes, 1,000 test signals, their classes.

    Raises:
        TaskError: The file is missing, cannot be fetched, or holds something else.
    """
    file = _named("mnist1d/mnist1d.npz")
    if file is not None:
        with np.load(file) as stored:
            parts = dict(stored)
    else:
        file = _fetched("https://github.com/greydanus/mnist1d/raw/master/mnist1d_data.pkl")
        with file.open("rb") as stream:
            parts = _ArraysOnly(stream).load()
    kinds = {"x": "<f4", "y": "<i8", "x_test": "<f4", "y_test": "<i8"}
    x, y, x_test, y_test = (np.asarray(parts[name]).astype(kind) for name, kind in kinds.items())
    _check("mnist1d", file, x, y, x_test, y_test)
    return x, y, x_test, y_test


def credit_default() -> tuple[Array, Array]:
    """Defaults of credit card clients (I-C. Yeh, C. Lien, 2009; UCI data set 350).

    Returns:
        23 features of 30,000 clients, and whether each defaulted, 0 or 1.

    Raises:
        TaskError: The file is missing, cannot be fetched, or holds something else.
    """
    file = _named("credit_default/UCI_Credit_Card.csv") or _fetched(
        "https://archive.ics.uci.edu/static/public/350/data.csv"
    )
    table = np.loadtxt(file, delimiter=",", skiprows=1).astype("<f8")
    _check("credit_default", file, table)
    return table[:, 1:-1], table[:, -1].astype(np.int64)


def spoken_digits() -> tuple[Array, Array, Array, Array]:
    """The Free Spoken Digit Dataset (Z. Jackson and others, 2016): six speakers, 50 recordings of each digit by each.

    From a folder, the features are read. From its public home come the recordings, and the features are computed from
    them: the logarithm of the power in 24 mel bands of windows of 25 ms every 10 ms after a pre-emphasis of .97, at 20
    points spread over each recording. The rounding differs, and so will scores, a little.

    Returns:
        2,700 training recordings of 20 frames of 24 bands, their digits; 300 test recordings, the first five of each
        digit by each speaker as its authors have it, their digits.

    Raises:
        TaskError: A file is missing, cannot be fetched, or holds something else.
    """
    file = _named("spoken_digits/fsdd_logmel24x20.npz")
    if file is not None:
        with np.load(file) as stored:
            x, y, test = stored["x"], stored["y"], stored["split"] == 2
            _check("spoken_digits", file, x, y, stored["split"])
    else:
        home = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/"
        x, y, test = features_of_recordings(_fetched(f"{home}v1.0.10.zip"))
    features, digits = x.astype(np.float32), y.astype(np.int64)
    return features[~test], digits[~test], features[test], digits[test]


def features_of_recordings(archive: Path) -> tuple[Array, Array, Array]:
    """The features of a ZIP file of recordings, ``DIGIT_SPEAKER_TAKE.wav``.

    Returns:
        Shape (recordings, 20, 24); the digits; whether it is a test recording, of a take below 5.

    Raises:
        TaskError: The file is no such archive.
    """
    found: list[tuple[Array, int, bool]] = []
    try:
        with zipfile.ZipFile(archive) as files:
            for name in sorted(name for name in files.namelist() if name.endswith(".wav")):
                digit, _, take = Path(name).stem.split("_")
                with files.open(name) as stream:
                    rate, signal = wavfile.read(stream)
                found.append((_log_mel(signal / 32768, rate), int(digit), int(take) < 5))
    except (zipfile.BadZipFile, ValueError) as error:
        raise TaskError(
            f"The file {archive} is no archive of recordings DIGIT_SPEAKER_TAKE.wav: {said(error)}"
        ) from error
    if not found:
        raise TaskError(f"The file {archive} holds no recordings.")
    features, digits, test = zip(*found, strict=True)
    return np.stack(features), np.array(digits), np.array(test)


def _log_mel(signal: Array, rate: int, bands: int = 24, frames: int = 20) -> Array:
    """Log-mel features of one recording, shape (frames, bands), after S. Young et al., The HTK Book, chapter 5."""
    window, hop, points = rate * 25 // 1000, rate // 100, 512
    emphasised = np.append(signal[:1], signal[1:] - 0.97 * signal[:-1])
    padded = np.pad(emphasised, (0, max(0, window - len(emphasised))))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hamming(window)
    power = np.abs(np.fft.rfft(pieces, points)) ** 2

    def mel(frequency: Any) -> Any:
        return 2595 * np.log10(1 + np.asarray(frequency) / 700)

    edges = np.linspace(0, mel(rate / 2), bands + 2)
    places = mel(np.fft.rfftfreq(points, 1 / rate))
    rising = (places - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - places) / (edges[2:] - edges[1:-1])[:, None]
    logs = np.log(power @ np.clip(np.minimum(rising, falling), 0, None).T + 1e-8)
    wanted = np.linspace(0, len(logs) - 1, frames)
    return np.stack([np.interp(wanted, np.arange(len(logs)), band) for band in logs.T], axis=1)


def _images(name: str, home: str) -> tuple[Array, Array, Array, Array]:
    arrays: list[Array] = []
    for part in ("train", "t10k"):
        for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
            file_name = f"{part}-{kind}-ubyte.gz"
            file = _named(f"{name}/{file_name}") or _fetched(home + file_name)
            with gzip.open(file) as stream:
                arrays.append(np.frombuffer(stream.read(), np.uint8, offset=header))
    _check(name, file.parent, *arrays)
    images, labels, test_images, test_labels = arrays
    return images.reshape(-1, 784), labels.astype(np.int64), test_images.reshape(-1, 784), test_labels.astype(np.int64)


def _named(name: str) -> Path | None:
    """A file in the folder that the user names; None if the user names none."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    file = Path(folder) / name
    if not file.is_file():
        raise TaskError(
            f"The data folder {folder} has no file {name}: name another one with {FOLDER} or --data, or none, and "
            "the file is fetched from its public home."
        )
    return file


def _fetched(url: str) -> Path:
    try:
        return Path(pooch.retrieve(url, known_hash=None, path=pooch.os_cache("pbp_search")))
    except Exception as error:  # of the connection, of any kind
        raise TaskError(
            f"The file {url} cannot be fetched ({said(error)}): fetch it by other means, and name its folder with "
            f"{FOLDER} or --data."
        ) from error


def _check(name: str, place: Path, *arrays: Array) -> None:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    if digest.hexdigest() != SHA256[name]:
        raise TaskError(
            f"The data in {place} are not those of {name}, by their checksum: remove what is there, and have it "
            "fetched again, or name another folder."
        )


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle of arrays. Nothing else in it is called: a file that asks for more is refused."""

    _ALLOWED: Sequence[tuple[str, str]] = (
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        *(
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (
                ("multiarray", "_reconstruct"),
                ("multiarray", "scalar"),
                ("numeric", "_frombuffer"),
            )
        ),
    )

    def find_class(self, module: str, name: str) -> Any:
        """One of numpy's, that arrays are made of."""
        if (module, name) not in self._ALLOWED:
            raise TaskError(f"The file holds a {module}.{name}, and only arrays are read from a pickle.")
        return super().find_class(module, name)
