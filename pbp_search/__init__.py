"""How small can a PyTorch network get at the accuracy you need, and do dendrites help?

Names are loaded when they are first used: importing the package is cheap.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names for type checkers, which do not run what is below
    from pbp_search.dendrites import Adapter as Adapter
    from pbp_search.dendrites import DendriteSpec as DendriteSpec
    from pbp_search.dendrites import LastState as LastState
    from pbp_search.dendrites import attach as attach
    from pbp_search.dendrites import fold as fold
    from pbp_search.dendrites import grow as grow
    from pbp_search.dendrites import record as record
    from pbp_search.export import export_onnx as export_onnx
    from pbp_search.front import Front as Front
    from pbp_search.home import Home as Home
    from pbp_search.report import front_table as front_table
    from pbp_search.report import publish_front as publish_front
    from pbp_search.search import SearchSpace as SearchSpace
    from pbp_search.search import Study as Study
    from pbp_search.search import list_studies as list_studies
    from pbp_search.training import Checkpoint as Checkpoint
    from pbp_search.training import ClassificationTask as ClassificationTask
    from pbp_search.training import CycleSchedule as CycleSchedule
    from pbp_search.training import Data as Data
    from pbp_search.training import Fixed as Fixed
    from pbp_search.training import Milestone as Milestone
    from pbp_search.training import Plateau as Plateau
    from pbp_search.training import Split as Split
    from pbp_search.training import Task as Task
    from pbp_search.training import TrialConfig as TrialConfig
    from pbp_search.training import run_chain as run_chain
    from pbp_search.training import run_rung as run_rung

_ROOMS = {
    "dendrites": "Adapter DendriteSpec LastState attach fold grow record",
    "export": "export_onnx",
    "front": "Front",
    "home": "Home",
    "report": "front_table publish_front",
    "search": "SearchSpace Study list_studies",
    "training": "Checkpoint ClassificationTask CycleSchedule Data Fixed Milestone Plateau Split "
    "Task TrialConfig run_chain run_rung",
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'pbp_search' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pbp_search.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
