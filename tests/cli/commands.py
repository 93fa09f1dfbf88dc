"""A task file, a study of it, and what calling a command comes to."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pbp_search.home import Home
from pbp_search.search import Study
from pbp_search.tasks import load_task
from pbp_search.training import Checkpoint
from tests.quick_studies import checkpoint_file, fill, milestone, random_checkpoint

OWN = """
import torch
from torch import nn
from pbp_search import ClassificationTask, Data, Split


class Own(ClassificationTask):
    name = "own"
    widths = (1, 3)

    def data(self):
        x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        y = (x.norm(dim=1) < 1.1).long()
        return Data(*(Split(x[start:start + 20], y[start:start + 20]) for start in (0, 20, 40)))

    def model(self, width):
        return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
"""


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "own.py").write_text(OWN)
    return folder


def make_place(folder: Path, stores: Path) -> Home:
    shutil.copytree(stores, folder / "mlruns", ignore=shutil.ignore_patterns("studies", "*-wal", "*-shm"))
    return Home.at(folder / "mlruns")


def make_study(place: Home) -> Study:
    task = load_task(f"{place.folder.parent}/own.py:Own")
    study = Study.create(task, home=place)
    milestones = []
    for trial, (generations, score) in enumerate([(0, 0.5), (2, 0.75)]):
        checkpoint = random_checkpoint(task, generations, width=3)
        milestones.append(milestone(score, **checkpoint.milestone.model_dump(exclude={"score", "train_score"})))
        Checkpoint(milestones[-1], checkpoint.weights).save(checkpoint_file(study, trial))
    return fill(study, milestones)


@dataclass(frozen=True)
class Called:
    """What came of a command."""

    code: int
    out: str
    err: str


def main_in(folder: Path, arguments: list[str]) -> None:
    """The program, as its own process runs it; what it prints goes to files."""
    os.chdir(folder)
    for stream, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    from pbp_search.cli import main

    sys.argv = ["pbp-search", *arguments]
    main()
