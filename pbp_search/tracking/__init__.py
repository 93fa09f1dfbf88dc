"""Tracking: the record of studies in MLflow."""

from pbp_search.tracking.tracker import Tracker, TrialRecord

__all__ = ["Tracker", "TrialRecord"]
