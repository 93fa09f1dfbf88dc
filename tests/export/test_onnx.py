import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import pbp_search.export.onnx as exporting
from pbp_search.errors import ExportError, InputError
from pbp_search.export import Exported, export_onnx, run_onnx
from pbp_search.training import Checkpoint, ClassificationTask, Data, Split, Task
from tests.quick_studies import Dots, random_checkpoint
from tests.training.tiny_tasks import Bowl

pytestmark = pytest.mark.slow


class Marked(Dots):
    """Data that would be recognised anywhere."""

    def data(self) -> Data:
        data = super().data()
        parts = (data.train, data.validation, data.test)
        return Data(*(Split(part.inputs + 1234.5678, part.targets) for part in parts))


class Normalised(Bowl):
    """Buffers, dropout and a Linear without bias."""

    name = "normalised"

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 1)
        )


class Words(ClassificationTask):
    """Whole numbers as inputs."""

    name = "words"

    def data(self) -> Data:
        words = torch.arange(120).reshape(60, 2) % 7
        parts = words.split(20)
        return Data(*(Split(part, (part.sum(1) > 5).long()) for part in parts))

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Embedding(7, width), nn.Flatten(), nn.Linear(2 * width, 2))


CASES: dict[str, tuple[Task, int]] = {
    "no generation": (Dots(), 0),
    "1 generation": (Dots(), 1),
    "2 generations": (Bowl(), 2),
    "3 generations": (Dots(), 3),
    "normalised": (Normalised(), 1),
    "words": (Words(), 1),
}

Case = tuple[Task, Checkpoint, Exported]


PARTS = ("validation", "test")


@pytest.mark.parametrize("name", CASES)
def test_the_file_is_the_network(tmp_path: Path, name: str) -> None:
    task, generations = CASES[name]
    checkpoint = random_checkpoint(task, generations, width=3)
    result = export_onnx(checkpoint, task, tmp_path / "out", about={"study": "s", "trial": 4})
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.json", "model.onnx"]
    assert result.file == tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(result.file, full_check=True)
    check_outputs(task, checkpoint, result)
    check_card(task, checkpoint, result)
    if name != "normalised":  # its statistics are buffers, stored beside the parameters
        check_size(checkpoint, result)


def check_outputs(task: Task, checkpoint: Checkpoint, result: Exported) -> None:
    """Equal outputs for any number of samples, those of the export among them."""
    network = checkpoint.network(task).eval()
    inputs = task.data().test.inputs
    for rows in (1, 2, 3, len(inputs), 1000):
        batch = inputs.repeat(1000 // len(inputs) + 1, 1)[:rows]
        with torch.no_grad():
            expected = network(batch)
        outputs = run_onnx(result.file, batch)
        assert outputs.shape == expected.shape == (rows, expected.shape[1])
        assert torch.allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0


def check_size(checkpoint: Checkpoint, result: Exported) -> None:
    """The file stores exactly the parameters that are counted."""
    model = onnx.load(result.file)
    stored = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    count = sum(int(np.prod(tensor.dims)) for tensor in stored if len(tensor.dims) >= 1)
    assert count == checkpoint.milestone.parameters == result.card["parameters"]


def check_card(task: Task, checkpoint: Checkpoint, result: Exported) -> None:
    card = json.loads(result.file.with_name("model.json").read_text())
    assert card == result.card
    data, milestone = task.data(), checkpoint.milestone
    with torch.no_grad():
        network = checkpoint.network(task).eval()
        scores = {part: task.score(network(getattr(data, part).inputs), getattr(data, part).targets) for part in PARTS}
    assert card["validation_score"] == pytest.approx(scores["validation"], rel=1e-5)
    assert card["test_score"] == pytest.approx(scores["test"], rel=1e-5)
    assert card["about"] == {"study": "s", "trial": 4}
    assert (card["task"], card["metric"]) == (task.name, task.metric)
    assert card["config"] == milestone.config.to_dict()
    assert (card["dendrites"], card["pruned"]) == (milestone.dendrites, milestone.pruned)
    assert card["weight_bytes"] == milestone.weight_bytes
    assert card["macs"] == milestone.macs
    assert card["file_bytes"] == result.file.stat().st_size
    assert 0 <= card["largest_difference"] < 1e-3
    assert card["input"]["shape"] == ["batch", 2]
    assert card["input"]["type"] == str(data.test.inputs.dtype).removeprefix("torch.")
    assert card["output"] == {
        "name": "outputs",
        "shape": ["batch", 1 if task.metric == "error" else 2],
        "type": "float32",
    }


RUN_ELSEWHERE = """
import json, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
inputs = numpy.array(json.loads(sys.argv[2]), dtype=numpy.float32)
(outputs,) = session.run(["outputs"], {"inputs": inputs})
print(json.dumps({"outputs": outputs.tolist(), "loaded": sorted(sys.modules)}))
"""


def test_the_file_holds_no_data_and_runs_elsewhere(tmp_path: Path) -> None:
    task = Marked()
    checkpoint = random_checkpoint(task, 3, width=3)
    result = export_onnx(checkpoint, task, tmp_path / "out")
    data, content = task.data(), result.file.read_bytes()
    for part in (data.train, data.validation, data.test):
        assert not [value for value in part.inputs.flatten().numpy() if value.tobytes() in content]
    assert b"1234" not in content
    assert "1234" not in result.file.with_name("model.json").read_text()

    inputs = data.test.inputs[:5]
    command = [sys.executable, "-c", RUN_ELSEWHERE, str(result.file), json.dumps(inputs.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert not {"pbp_search", "torch", "onnx"} & set(answer["loaded"])
    with torch.no_grad():
        expected = checkpoint.network(task).eval()(inputs)
    assert torch.allclose(torch.tensor(answer["outputs"]), expected, rtol=1e-4, atol=1e-4)


def test_an_export_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    task = Dots()
    folder = tmp_path / "deep" / "out"
    first = export_onnx(random_checkpoint(task, 0), task, folder)
    (folder / "notes.txt").write_text("kept")
    before = first.file.read_bytes()
    for missing in ("", "model.onnx", "model.json"):
        with pytest.raises(InputError) as caught:
            export_onnx(random_checkpoint(task, 1), task, folder)
        assert str(caught.value) == (
            f"The folder {folder} holds an exported network already: pass --overwrite to replace it."
        )
        if not missing:
            assert first.file.read_bytes() == before
        else:
            (folder / missing).unlink()
    (folder / "model.json").unlink(missing_ok=True)
    second = export_onnx(random_checkpoint(task, 1), task, folder, overwrite=True)
    assert second.card["dendrites"] == 1
    assert second.file.read_bytes() != before
    assert json.loads((folder / "model.json").read_text())["dendrites"] == 1
    assert (folder / "notes.txt").read_text() == "kept"


def test_the_folder_may_be_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = export_onnx(random_checkpoint(Dots(), 0), Dots(), Path())
    assert result.file.exists()
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["here", "model.json", "model.onnx"]


def wrong_outputs(file: Path, inputs: Tensor) -> Tensor:
    return run_onnx(file, inputs) + 0.01


def nan_outputs(file: Path, inputs: Tensor) -> Tensor:
    return run_onnx(file, inputs) * float("nan")


@pytest.mark.parametrize("broken", [wrong_outputs, nan_outputs])
def test_a_file_that_computes_something_else_is_not_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    folder = tmp_path / "out"
    monkeypatch.setattr(exporting, "run_onnx", broken)
    with pytest.raises(ExportError, match=r"^The exported file computes something else than the network"):
        export_onnx(random_checkpoint(Dots(), 1), Dots(), folder)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_export_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    first = export_onnx(random_checkpoint(Dots(), 0), Dots(), folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(exporting, "run_onnx", wrong_outputs)
    with pytest.raises(ExportError):
        export_onnx(random_checkpoint(Dots(), 1), Dots(), folder, overwrite=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
    assert first.file.exists()


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a file system of its own: nothing can be renamed into it from outside."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "notes.txt").write_text("kept")
    inside = folder.resolve()

    def only_inside(original: Callable[..., Any]) -> Callable[..., Any]:
        def rename(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            places = {Path(path).resolve().is_relative_to(inside) for path in (source, target)}
            if len(places) > 1:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return original(source, target, *args, **kwargs)

        return rename

    for owner, name in ((Path, "replace"), (Path, "rename"), (os, "replace"), (os, "rename")):
        monkeypatch.setattr(owner, name, only_inside(getattr(owner, name)))
    with pytest.raises(OSError, match="cross-device"):
        (tmp_path / "mounted" / "notes.txt").replace(tmp_path / "notes.txt")
    return folder


def test_the_folder_may_be_a_file_system_of_its_own(foreign: Path) -> None:
    export_onnx(random_checkpoint(Dots(), 0), Dots(), foreign)
    second = export_onnx(random_checkpoint(Dots(), 1), Dots(), foreign, overwrite=True)
    assert sorted(file.name for file in foreign.iterdir()) == ["model.json", "model.onnx", "notes.txt"]
    assert json.loads((foreign / "model.json").read_text())["dendrites"] == 1
    assert second.file == foreign / "model.onnx"
    assert [path.name for path in foreign.parent.iterdir()] == ["mounted"]


@pytest.mark.parametrize("place", ["run", "card", "move", "interrupt"])
def test_nothing_is_left_in_a_folder_after_a_failure(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt if place == "interrupt" else OSError(errno.ENOSPC, "No space left on device")

    expected: type[BaseException] = {"run": ExportError, "card": OSError, "move": InputError}.get(
        place, KeyboardInterrupt
    )
    if place == "run":
        monkeypatch.setattr(exporting, "run_onnx", wrong_outputs)
    else:
        monkeypatch.setattr(Path, "replace" if place == "move" else "write_text", full)
    with pytest.raises(expected) as caught:
        export_onnx(random_checkpoint(Dots(), 0), Dots(), foreign)
    if place == "move":
        assert str(caught.value) == f"The folder {foreign} cannot be written to: No space left on device."
    assert [file.name for file in foreign.iterdir()] == ["notes.txt"]
    assert [path.name for path in foreign.parent.iterdir()] == ["mounted"]


def test_a_network_that_onnx_cannot_express_is_a_sentence(tmp_path: Path) -> None:
    class Branches(Dots):
        name = "branches"

        def model(self, width: int) -> nn.Module:
            class Branch(nn.Module):
                def forward(self, x: Tensor) -> Tensor:
                    return x if float(x.sum()) > 0 else -x

            return nn.Sequential(super().model(width), Branch())

    with pytest.raises(ExportError, match=r"^The network cannot be exported to ONNX: ") as caught:
        export_onnx(random_checkpoint(Branches(), 0), Branches(), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "out", "deep/out"])
def test_a_folder_below_a_file_is_refused(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(InputError, match="cannot be written to: "):
        export_onnx(random_checkpoint(Dots(), 0), Dots(), file / below)
    assert file.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [file]


def test_a_bad_folder_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("the network was exported"))
    with pytest.raises(InputError):
        export_onnx(random_checkpoint(Dots(), 0), Dots(), file / "out")


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
def test_something_else_by_the_name_of_a_file_is_not_replaced(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    (folder / name).mkdir(parents=True)
    other = folder / ({"model.onnx", "model.json"} - {name}).pop()
    other.write_text("kept")
    with pytest.raises(InputError, match=r"there is something else by the name of an exported file: move it away\.$"):
        export_onnx(random_checkpoint(Dots(), 0), Dots(), folder, overwrite=True)
    assert other.read_text() == "kept"


class OfType(Dots):
    """Everything in another type of number."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def data(self) -> Data:
        data = super().data()
        parts = (data.train, data.validation, data.test)
        return Data(*(Split(part.inputs.to(self.dtype), part.targets.to(self.dtype)) for part in parts))

    def model(self, width: int) -> nn.Module:
        return super().model(width).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_rounding_of_the_networks_type_is_no_difference(tmp_path: Path, dtype: torch.dtype) -> None:
    exported = export_onnx(random_checkpoint(OfType(dtype), 1), OfType(dtype), tmp_path / "out")
    assert exported.card["output"]["type"] == str(dtype).removeprefix("torch.")


def test_a_type_that_onnxruntime_lacks_is_a_sentence(tmp_path: Path) -> None:
    task = OfType(torch.bfloat16)
    with pytest.raises(ExportError, match=r"^The exported network does not run in onnxruntime: "):
        export_onnx(random_checkpoint(task, 1), task, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
