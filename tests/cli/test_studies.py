"""The studies' scripts, in their quick form."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from pbp_search.cli.script import study_script
from pbp_search.compare import Results
from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.tasks.published import FOLDER
from pbp_search.training import Task

SCRIPTS = Path(__file__).parents[2] / "studies"
TASKS = {
    "mnist_mlp": "MnistMLP",
    "fashion_mlp": "FashionMLP",
    "mnist1d_cnn": "Mnist1dCNN",
    "credit_mlp": "CreditMLP",
    "spoken_digits": "SpokenDigitsGRU",
}
needs_data = pytest.mark.skipif(not os.environ.get(FOLDER), reason=f"{FOLDER} names no folder with the data sets")


def task_of(script: str) -> type[Task]:
    spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script] = module
    spec.loader.exec_module(module)
    task: type[Task] = getattr(module, TASKS[script])
    return task


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("script", TASKS)
def test_a_study_searches_and_compares(script: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    task = task_of(script)
    arguments = ["--quick", "--home", str(home.folder)]
    assert study_script(task).main(arguments, standalone_mode=False) == 0
    printed = capsys.readouterr().out
    assert "Against plain, wider" in printed
    assert "With 2 seeds these figures are no ground for a claim" in printed
    study = Study.load(f"{task.name}_quick", home)
    results = Results.load(study.folder.path / "comparison")
    assert {row.replicate for row in results.rows} == {0, 1}
    assert {row.arm for row in results.rows} >= {"dendritic", "plain", "pruned", "sham", "gradient", "random"}
    assert not results.lost
