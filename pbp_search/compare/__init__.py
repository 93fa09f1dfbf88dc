"""Do dendrites pay? What paired scores of several networks show, and what they do not."""

from pbp_search.compare.statistics import Comparison, Curves, Sizes, compare, holm

__all__ = ["Comparison", "Curves", "Sizes", "compare", "holm"]
