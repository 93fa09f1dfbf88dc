"""The tests of the search share a finished study, and studies that die, from ``crashing.py`` beside this file."""

import shutil
from pathlib import Path

import pytest

from pbp_search.home import Home
from pbp_search.search import Study
from tests.quick_studies import Dots, quick_space


@pytest.fixture(scope="session")
def finished(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of 7 trials that has run to its end undisturbed. Tests read it only."""
    home = Home.at(tmp_path_factory.mktemp("finished") / "home")
    shutil.copytree(stores, home.folder, ignore=shutil.ignore_patterns("studies", "*-wal", "*-shm"))
    study = Study.create(Dots(), home=home, space=quick_space(), seed=8)
    study.run(Dots(), 7)
    return study
