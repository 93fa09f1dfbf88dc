import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pbp_search.export import run_onnx
from pbp_search.home import Home
from pbp_search.search import SearchSpace, Study
from pbp_search.tasks import load_task
from pbp_search.tasks.digits import DigitsMLP
from pbp_search.training import Checkpoint
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


def test_a_limit_of_parameters_is_one_in_a_study_of_another_size(call: Call, folder: Path, place: Home) -> None:
    task = load_task(f"{folder}/own.py:Own")
    study = Study.create(task, "work", place, size="macs")
    milestones = []
    for trial, (generations, score, macs) in enumerate([(0, 0.5, 30), (1, 0.6, 20), (2, 0.7, 40)]):
        checkpoint = random_checkpoint(task, generations)
        changes = {"score": score, "train_score": score, "macs": macs}
        milestones.append(checkpoint.milestone.model_copy(update=changes))
        Checkpoint(milestones[-1], checkpoint.weights).save(checkpoint_file(study, trial))
    fill(study, milestones)
    options = ["--task", "own.py:Own", "--output", "out", "--max-params"]
    assert call("export", "work", *options, milestones[1].parameters).code == 0
    card = json.loads((folder / "out" / "model.json").read_text())
    assert (card["about"]["trial"], card["parameters"], card["macs"]) == (1, milestones[1].parameters, 20)
    refused = call("export", "work", *options, milestones[0].parameters)
    assert refused.code == 2


def test_milestones_that_lie_elsewhere_are_named_as_run_names_them(call: Call, study: Study, folder: Path) -> None:
    study.folder.artifacts.rename(folder / "elsewhere")
    refused = call("export", "own", "--task", "own.py:Own", "--output", "out")
    assert refused == Called(
        2,
        "",
        f"Error: The milestones of the study 'own' are not in {study.folder.milestones}: name the home that the study "
        "was made in with --home, or the folder that its machines share with --artifacts.\n",
    )
    assert call("run", "own.py:Own", "--trials", 3) == refused


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


def test_a_pruned_network_is_told(call: Call, place: Home, folder: Path) -> None:
    space = SearchSpace.for_task(load_task("own.py:Own")).changed({"schedule": "fixed", "neuron_epochs": 2})
    study = Study.create(load_task("own.py:Own"), "pruned", place, space=space.with_steps(["prune"]))
    study.run(load_task("own.py:Own"), 12)
    smallest = next(iter(study.front())).payload.milestone
    assert smallest.pruned
    options = ["--task", "own.py:Own", "--max-params", smallest.parameters, "--output", "out/pruned"]
    called = call("export", "pruned", *options)
    assert called.code == 0
    assert f"pruned in {smallest.pruned} steps, {smallest.parameters:,} parameters" in called.out
    assert "file and network agree" in called.out
