"""How small can a PyTorch network get at the accuracy you need, and do dendrites help?

Names are loaded when they are first used: importing the package is cheap.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pbp_search.dendrites import Adapter, DendriteSpec, LastState, attach, fold, grow, record
    from pbp_search.export import export_onnx
    from pbp_search.front import Front
    from pbp_search.home import Home
    from pbp_search.report import front_table, publish_front
    from pbp_search.search import SearchSpace, Study, list_studies
    from pbp_search.training import (
        Checkpoint,
        ClassificationTask,
        CycleSchedule,
        Data,
        Fixed,
        Milestone,
        Plateau,
        Split,
        Task,
        TrialConfig,
        run_chain,
        run_rung,
    )

_ROOMS = {
    "dendrites": ("Adapter", "DendriteSpec", "LastState", "attach", "fold", "grow", "record"),
    "export": ("export_onnx",),
    "front": ("Front",),
    "home": ("Home",),
    "report": ("front_table", "publish_front"),
    "search": ("SearchSpace", "Study", "list_studies"),
    "training": (
        "Checkpoint",
        "ClassificationTask",
        "CycleSchedule",
        "Data",
        "Fixed",
        "Milestone",
        "Plateau",
        "Split",
        "Task",
        "TrialConfig",
        "run_chain",
        "run_rung",
    ),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "Adapter",
    "Checkpoint",
    "ClassificationTask",
    "CycleSchedule",
    "Data",
    "DendriteSpec",
    "Fixed",
    "Front",
    "Home",
    "LastState",
    "Milestone",
    "Plateau",
    "SearchSpace",
    "Split",
    "Study",
    "Task",
    "TrialConfig",
    "attach",
    "export_onnx",
    "fold",
    "front_table",
    "grow",
    "list_studies",
    "publish_front",
    "record",
    "run_chain",
    "run_rung",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'pbp_search' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pbp_search.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
