import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pbp_search.export import run_onnx
from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.tasks import load_task
from pbp_search.tasks.digits import DigitsMLP
from tests.cli.commands import Called
from tests.quick_studies import checkpoint_file, fill, milestone, random_checkpoint

Call = Callable[..., Called]


def test_the_best_network_is_exported(call: Call, study: Study, folder: Path) -> None:
    called = call("export", "own", "--task", "own.py:Own", "--output", "out/best")
    assert (called.code, called.err) == (0, "")
    card = json.loads((folder / "out" / "best" / "model.json").read_text())
    assert card["about"] == {"study": "own", "trial": 1}
    lines = called.out.splitlines()
    assert lines[0] == (
        f"Exported trial 1: width 3, 2 dendrites, {card['parameters']:,} parameters, {card['file_bytes']:,} bytes"
    )
    assert f"test {card['test_score']:.4f}" in lines[1]
    assert lines[-1].strip() == "out/best/model.onnx"
    task = load_task("own.py:Own")
    with torch.no_grad():
        expected = study.checkpoint(1).network(task).eval()(task.data().test.inputs)
    outputs = run_onnx(folder / "out" / "best" / "model.onnx", task.data().test.inputs)
    assert torch.allclose(outputs, expected, atol=1e-5)

    kept = call("export", "own", "--task", "own.py:Own", "--output", "out/best")
    assert kept.code == 2
    assert "pass --overwrite" in kept.err
    limit = study.front().points[0].payload.milestone.parameters
    smaller = ["--max-params", str(limit), "--overwrite"]
    assert call("export", "own", "--task", "own.py:Own", "--output", "out/best", *smaller).code == 0
    assert json.loads((folder / "out" / "best" / "model.json").read_text())["about"]["trial"] == 0


@pytest.mark.usefixtures("study")
def test_the_smallest_network_that_reaches_a_score(call: Call, folder: Path) -> None:
    assert call("export", "own", "--task", "own.py:Own", "--output", "out", "--min-score", "0.5").code == 0
    assert json.loads((folder / "out" / "model.json").read_text())["about"]["trial"] == 0


def test_a_built_in_task_needs_no_file(call: Call, folder: Path, place: Home) -> None:
    task = DigitsMLP()
    checkpoint = random_checkpoint(task, 1, width=2)
    reached = milestone(0.5, **checkpoint.milestone.model_dump(exclude={"score", "train_score"}))
    study = fill(Study.create(task, "digits", place), [reached])
    checkpoint.save(checkpoint_file(study, 0))
    called = call("export", "digits", "--output", "out")
    assert (called.code, called.err) == (0, "")
    assert json.loads((folder / "out" / "model.json").read_text())["task"] == "digits_mlp"


def test_a_file_that_is_wrong_is_a_failure(
    call: Call, study: Study, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbp_search.export.onnx.run_onnx", lambda file, inputs: run_onnx(file, inputs) + 1)
    called = call("export", "own", "--task", "own.py:Own", "--output", "out")
    assert called.code == 1
    assert called.err.startswith("Error: The exported file computes something else than the network")
    assert len(called.err.splitlines()) == 1
    assert not (folder / "out").exists()
