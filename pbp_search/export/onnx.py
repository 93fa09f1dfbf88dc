"""The best network as an ONNX file that runs without this package, verified before it is handed over."""

import contextlib
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from pbp_search.dendrites import fold
from pbp_search.errors import ExportError, InputError, said
from pbp_search.training import Checkpoint, Task, evaluate
from pbp_search.training.data import in_memory

MODEL = "model.onnx"
CARD = "model.json"
TOLERANCE = 1e-4
"""The largest difference, relative to the largest output, that counts as rounding. Half precision has more."""


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        file: The ONNX file.
        card: What stands in the description beside it.
    """

    file: Path
    card: dict[str, Any]


def export_onnx(
    checkpoint: Checkpoint, task: Task, folder: Path, *, about: dict[str, Any] | None = None, overwrite: bool = False
) -> Exported:
    """Write a milestone's folded network as ONNX with a description beside it.

    The file is run by onnxruntime on the validation data and compared with the network, and its test score is taken.
    Nothing is left behind if that fails. The file holds no data of the task.

    Args:
        checkpoint: The milestone.
        task: Its task.
        folder: Gets ``model.onnx`` and ``model.json``; made if it is not there.
        about: Where the milestone comes from, for the description.
        overwrite: Replace files that are there.

    Raises:
        InputError: The folder cannot be written to, or holds an exported network already.
        ExportError: The network cannot be exported, or the file does not compute what the network computes.
    """
    try:
        there = [folder / name for name in (MODEL, CARD) if (folder / name).exists()]
    except OSError as error:  # a name that no folder can have
        raise InputError(f"The folder {folder} cannot be written to: {error.strerror}.") from None
    if there and not overwrite:
        raise InputError(f"The folder {folder} holds an exported network already: pass --overwrite to replace it.")
    if any(not file.is_file() for file in there):
        raise InputError(
            f"In the folder {folder} there is something else by the name of an exported file: move it away."
        )
    data = task.data()
    network = checkpoint.network(task).eval()
    with _beside(folder) as beside:
        file = beside / MODEL
        validation, test = in_memory(data.validation), in_memory(data.test)
        _write(fold(network), validation.inputs, file)
        difference = _difference(network, file, validation.inputs)
        milestone = checkpoint.milestone
        card = {
            "about": about or {},
            "task": task.name,
            "metric": task.metric,
            "config": milestone.config.to_dict(),
            "dendrites": milestone.dendrites,
            "pruned": milestone.pruned,
            "parameters": milestone.parameters,
            "weight_bytes": milestone.weight_bytes,
            "macs": milestone.macs,
            "file_bytes": file.stat().st_size,
            "validation_score": evaluate(network, task, data.validation),
            "test_score": float(task.score(run_onnx(file, test.inputs), test.targets)),
            "largest_difference": difference,
            "input": {"name": "inputs", **_described(test.inputs)},
            "output": {"name": "outputs", **_described(run_onnx(file, test.inputs[:1]))},
        }
        (beside / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return Exported(folder / MODEL, card)


def run_onnx(file: Path, inputs: Tensor) -> Tensor:
    """The outputs that onnxruntime computes from an exported file, for inputs of shape (N, ...).

    Raises:
        ExportError: It cannot run the file, for example because it lacks a type of number.
    """
    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    except Exception as error:  # onnxruntime has an error type for each of its codes; numpy lacks some of torch's types
        raise ExportError(f"The exported network does not run in onnxruntime: {said(error)}") from error
    return torch.as_tensor(np.asarray(outputs))


def _write(network: nn.Module, inputs: Tensor, file: Path) -> None:
    # Zeros of the data's shape, not the data: examples may be kept in exported files. Two rows, so that the batch
    # size stays free.
    example = torch.zeros(2, *inputs.shape[1:], dtype=inputs.dtype)
    messages = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(messages), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (example,),
                file,
                dynamo=True,
                external_data=False,
                input_names=["inputs"],
                output_names=["outputs"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types, for networks it cannot express
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"The network cannot be exported to ONNX: {type(error).__name__}: {reason}") from error


@torch.no_grad()
def _difference(network: nn.Module, file: Path, inputs: Tensor) -> float:
    """The largest difference between a network's outputs and its file's, at two batch sizes."""
    largest = 0.0
    for batch in (inputs, inputs[:1]):
        expected, outputs = network(batch), run_onnx(file, batch)
        difference = float((expected - outputs).abs().max())
        tolerance = max(TOLERANCE, 16 * torch.finfo(expected.dtype).eps) if expected.is_floating_point() else 0.0
        if not difference <= tolerance * max(1.0, float(expected.abs().max())):
            raise ExportError(
                f"The exported file computes something else than the network: outputs differ by up to {difference:g}. "
                "Nothing was written."
            )
        largest = max(largest, difference)
    return largest


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A new folder whose files move into the wanted one when all went well, and vanish otherwise."""
    # Inside the wanted one if it is there: it may be a file system of its own, and files cannot be renamed across.
    beside = (folder if folder.is_dir() else folder.absolute().parent) / f".{folder.name}.{os.getpid()}"
    try:
        try:
            beside.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be written to: {error.strerror}.") from None
        yield beside
        try:
            folder.mkdir(exist_ok=True)
            for file in beside.iterdir():
                file.replace(folder / file.name)
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be written to: {error.strerror}.") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _described(batch: Tensor) -> dict[str, Any]:
    return {"shape": ["batch", *batch.shape[1:]], "type": str(batch.dtype).removeprefix("torch.")}
