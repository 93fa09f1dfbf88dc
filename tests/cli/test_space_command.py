from collections.abc import Callable
from pathlib import Path

from pbp_search.home import Home
from pbp_search.search import SearchSpace, Study
from pbp_search.tasks import load_task
from tests.cli.commands import Called

Call = Callable[..., Called]

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "digits_mlp.toml"


def read(folder: Path, text: str) -> SearchSpace:
    """The space in a text; every field must be in it."""
    (folder / "printed.toml").write_text(text)
    once = SearchSpace.from_toml(folder / "printed.toml", SearchSpace())
    assert once == SearchSpace.from_toml(folder / "printed.toml", SearchSpace(width=77, pool=7, sees="input"))
    return once


def test_the_docs_show_what_the_command_prints(call: Call) -> None:
    assert call("space", "digits_mlp") == Called(0, EXAMPLE.read_text(), "")


def test_what_is_printed_is_a_space_file(call: Call, folder: Path) -> None:
    printed = call("space", "own.py:Own")
    assert (printed.code, printed.err) == (0, "")
    assert read(folder, printed.out) == SearchSpace.for_task(load_task("own.py:Own")) == SearchSpace(width=(1, 3))
    assert call("space", "own.py:Own", "--space", "printed.toml") == printed
    assert not (folder / "mlruns").exists()


def test_a_file_changes_what_is_printed(call: Call, folder: Path) -> None:
    (folder / "some.toml").write_text('nonlinearity = ["tanh", "relu"]\nlearning_rate = 0.01\n')
    printed = call("space", "own.py:Own", "--space", "some.toml")
    expected = SearchSpace(width=(1, 3), nonlinearity=["tanh", "relu"], learning_rate=0.01)
    assert read(folder, printed.out) == expected


def test_a_study_searches_the_space_of_its_file(call: Call, folder: Path, place: Home) -> None:
    (folder / "some.toml").write_text('schedule = "fixed"\nneuron_epochs = 2\ndendrites = 0\nwidth = [2, 3]\n')
    with_file = ("run", "own.py:Own", "--space", "some.toml", "--trials")
    assert call(*with_file, 1).code == 0
    study = Study.load("own", place)
    assert study.definition.space == SearchSpace(schedule="fixed", neuron_epochs=2, dendrites=0, width=[2, 3])
    # On from there, with the file or without: the study keeps its space.
    assert call(*with_file, 2).code == 0
    assert call("run", "own.py:Own", "--trials", 3).code == 0
    assert [rung.params.keys() for rung in study.rungs()] == 3 * [{"dendrites", "width", "learning_rate"}]
    assert all(rung.milestone.config.width in (2, 3) for rung in study.rungs())
    # A new one without a file has the task's.
    assert call("run", "own.py:Own", "--trials", 1, "--study", "other").code == 0
    assert Study.load("other", place).definition.space == SearchSpace(width=(1, 3))
