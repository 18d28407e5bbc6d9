"""Networks as files that run without this package: torch.export and ONNX."""

from .check import Difference, compare
from .onnx import save_onnx
from .program import export_program
from .segmentor import Logits

__all__ = ["Difference", "Logits", "compare", "export_program", "save_onnx"]
