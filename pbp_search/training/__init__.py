"""Training: tasks, the two phases, the cycle and its milestones."""

from pbp_search.training.config import CycleSchedule, Fixed, Plateau, TrialConfig
from pbp_search.training.data import Data, Source, Split
from pbp_search.training.milestone import (
    Checkpoint,
    EpochRecord,
    GrowthRecord,
    Milestone,
    Size,
    Step,
    build_network,
    linear_network,
)
from pbp_search.training.neuron_phase import evaluate, train_neurons
from pbp_search.training.rung import run_chain, run_rung
from pbp_search.training.stopping import Stopper, better
from pbp_search.training.task import ClassificationTask, Direction, Task, check_task, is_deep

__all__ = [
    "Checkpoint",
    "ClassificationTask",
    "CycleSchedule",
    "Data",
    "Direction",
    "EpochRecord",
    "Fixed",
    "GrowthRecord",
    "Milestone",
    "Plateau",
    "Size",
    "Source",
    "Split",
    "Step",
    "Stopper",
    "Task",
    "TrialConfig",
    "better",
    "build_network",
    "check_task",
    "evaluate",
    "is_deep",
    "linear_network",
    "run_chain",
    "run_rung",
    "train_neurons",
]
