"""Published data sets: from a folder, checked by what is in them, and never code from a pickle."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
from scipy.io import wavfile

from pbp_search.errors import TaskError
from pbp_search.tasks import published

HERE = os.environ.get(published.FOLDER)
needs_data = pytest.mark.skipif(not HERE, reason=f"{published.FOLDER} names no folder with the data sets")

SHAPES = {
    "mnist": ((60_000, 784), (60_000,), (10_000, 784), (10_000,)),
    "fashion_mnist": ((60_000, 784), (60_000,), (10_000, 784), (10_000,)),
    "mnist1d": ((4_000, 40), (4_000,), (1_000, 40), (1_000,)),
    "credit_default": ((30_000, 23), (30_000,)),
    "spoken_digits": ((2_700, 20, 24), (2_700,), (300, 20, 24), (300,)),
}


@needs_data
@pytest.mark.parametrize("name", SHAPES)
def test_what_a_folder_holds(name: str) -> None:
    arrays = getattr(published, name)()
    assert tuple(array.shape for array in arrays) == SHAPES[name]
    labels = arrays[1]
    assert labels.dtype == np.int64
    assert set(np.unique(labels)) == set(range(2 if name == "credit_default" else 10))


def test_a_folder_without_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(published.FOLDER, str(tmp_path))
    for name in SHAPES:
        with pytest.raises(TaskError, match=f"The data folder .* has no file {name}/.*: name another one"):
            getattr(published, name)()


def test_other_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(published.FOLDER, str(tmp_path))
    file = tmp_path / "mnist1d" / "mnist1d.npz"
    file.parent.mkdir()
    np.savez(file, x=np.zeros((2, 40)), y=np.zeros(2), x_test=np.zeros((2, 40)), y_test=np.zeros(2))
    with pytest.raises(TaskError, match="are not those of mnist1d, by their checksum"):
        published.mnist1d()


def test_what_cannot_be_fetched_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.delenv(published.FOLDER, raising=False)
    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(TaskError, match=r"data.csv cannot be fetched \(.*no route.*\): fetch it by other means"):
        published.credit_default()


def test_a_pickle_of_arrays_is_read_and_one_that_calls_anything_else_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data.pkl"
    monkeypatch.delenv(published.FOLDER, raising=False)
    monkeypatch.setattr(pooch, "retrieve", lambda *_, **__: str(file))
    arrays = {name: np.arange(3.0) for name in ("x", "y", "x_test", "y_test")}
    file.write_bytes(pickle.dumps(arrays))
    with pytest.raises(TaskError, match="by their checksum"):  # read, and compared
        published.mnist1d()
    proof = tmp_path / "called"

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(proof),)

    file.write_bytes(pickle.dumps({**arrays, "x": Harm()}))
    with pytest.raises(TaskError, match="only arrays are read from a pickle"):
        published.mnist1d()
    assert not proof.exists()


def recording(frequency: float, seconds: float = 0.4, rate: int = 8_000) -> bytes:
    times = np.arange(int(seconds * rate)) / rate
    stream = io.BytesIO()
    wavfile.write(stream, rate, (8_000 * np.sin(2 * np.pi * frequency * times)).astype(np.int16))
    return stream.getvalue()


def test_features_of_recordings_tell_a_low_tone_from_a_high_one(tmp_path: Path) -> None:
    archive = tmp_path / "recordings.zip"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("home/recordings/3_ann_0.wav", recording(300))
        files.writestr("home/recordings/7_ben_12.wav", recording(3_000))
    features, digits, test = published.features_of_recordings(archive)
    assert features.shape == (2, 20, 24)
    assert digits.tolist() == [3, 7]
    assert test.tolist() == [True, False]
    low, high = features.mean(1).argmax(1)
    assert low < 8 < 16 < high


@pytest.mark.parametrize("content", [{}, {"a/three.wav": b""}])
def test_an_archive_without_recordings_is_refused(tmp_path: Path, content: dict[str, bytes]) -> None:
    archive = tmp_path / "recordings.zip"
    with zipfile.ZipFile(archive, "w") as files:
        for name, data in content.items():
            files.writestr(name, data)
    with pytest.raises(TaskError, match=r"no archive of recordings|holds no recordings"):
        published.features_of_recordings(archive)
