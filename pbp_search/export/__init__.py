"""Export: one point of a front as a file that runs elsewhere."""

from pbp_search.export.onnx import Exported, export_onnx, run_onnx

__all__ = ["Exported", "export_onnx", "run_onnx"]
