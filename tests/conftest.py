"""Shared by all tests: one thread, quiet libraries, and homes in temporary folders."""

import contextlib
import logging
import multiprocessing
import shutil
import sqlite3
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import optuna
import pytest
import torch

torch.set_num_threads(1)
# How fast a machine is that others use too is no property of ours.
hypothesis.settings.register_profile("noisy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("noisy")
optuna.logging.set_verbosity(optuna.logging.WARNING)
for library in ("mlflow", "alembic"):
    logging.getLogger(library).setLevel(logging.WARNING)

from pbp_search.home import Home  # noqa: E402

if TYPE_CHECKING:
    from tests.postgresql import Server


@pytest.fixture
def empty_home(tmp_path: Path) -> Home:
    """A home that is not there yet."""
    return Home.at(tmp_path / "home")


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stores, open for the first time: that takes most of the time of a small test."""
    from pbp_search.search.storage import open_storage
    from pbp_search.tracking import check_store

    home = Home.at(tmp_path_factory.mktemp("stores") / "home")
    open_storage(home).engine.dispose()
    check_store(home)
    for name in ("optuna.db", "mlflow.db"):
        # What has been written moves from the write-ahead log into the file: the file alone can be copied.
        with contextlib.closing(sqlite3.connect(home.folder / name)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return home.folder


@pytest.fixture
def home(empty_home: Home, stores: Path) -> Home:
    """A home whose stores have their tables, and no studies."""
    shutil.copytree(stores, empty_home.folder, ignore=shutil.ignore_patterns("studies", "*-wal", "*-shm"))
    return empty_home


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes that share nothing with this one, but have the libraries loaded: they start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch",
            "optuna",
            "mlflow",
            "mlflow.store.tracking.sqlalchemy_store",
            "pbp_search.report",
            "tests.quick_studies",
        ]
    )
    return context


@pytest.fixture(scope="session")
def postgresql() -> Iterator["Server"]:
    """A real PostgreSQL server on loopback."""
    from tests.postgresql import Server, reason_to_skip

    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    server = Server()
    yield server
    server.remove()
