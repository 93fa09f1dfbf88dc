"""The tests of training share small tasks, from ``tiny_tasks.py`` beside this file."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
