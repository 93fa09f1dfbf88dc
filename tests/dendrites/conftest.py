"""The tests of the dendrites share small networks, from ``grown_networks.py`` beside this file."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
