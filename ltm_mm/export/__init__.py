"""Networks as files that run without this package: ONNX, OpenVINO and torch.export."""

from .check import Difference, compare
from .files import is_exported, open_file
from .heads import whole_model
from .onnx import save_onnx
from .program import export_program, save_program

__all__ = [
    "Difference",
    "compare",
    "export_program",
    "is_exported",
    "open_file",
    "save_onnx",
    "save_program",
    "whole_model",
]
