import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pbp_search


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'pbp_search' has no attribute 'Perceptron'"):
        _ = pbp_search.Perceptron
    assert not hasattr(pbp_search, "Perceptron")
    with pytest.raises(ImportError, match="cannot import name 'Perceptron'"):
        from pbp_search import Perceptron  # noqa: F401


def test_names_are_those_of_the_rooms() -> None:
    from pbp_search import Study, run_rung
    from pbp_search.search import Study as StudyOfTheRoom
    from pbp_search.training import run_rung as run_rung_of_the_room

    assert Study is StudyOfTheRoom
    assert run_rung is run_rung_of_the_room


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(pbp_search.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    seen = {(alias.asname, node.module) for node in imports for alias in node.names}
    assert seen == {(name, f"pbp_search.{room}") for name, room in pbp_search._HOMES.items()}
    assert set(pbp_search.__all__) == {name for name, _ in seen}
    assert all(hasattr(pbp_search, name) for name in pbp_search.__all__)


def test_the_package_is_a_program() -> None:
    command = [sys.executable, "-m", "pbp_search", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0.1.0" in done.stdout
    assert "pbp" in done.stdout
