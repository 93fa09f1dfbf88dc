"""Tracking: the record of studies in MLflow."""

import os

# MLflow reads these when it is imported: nothing is sent out, and an unreachable server is given up soon.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")

from pbp_search.tracking.tracker import Tracker, TrialRecord, check_store, is_server

__all__ = ["Tracker", "TrialRecord", "check_store", "is_server"]
