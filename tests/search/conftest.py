"""The tests of the search share studies that die, from ``crashing.py`` beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
