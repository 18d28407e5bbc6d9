"""Networks as files that run without this package: ONNX, OpenVINO and torch.export.

The package can be called: ``ltm_mm.export(model, example, "x.onnx")``, see :mod:`.network`.
"""

import sys
from types import ModuleType
from typing import Any

from .check import Difference, compare
from .files import is_exported, open_file
from .heads import whole_model
from .network import export as export_network
from .onnx import save_onnx
from .program import export_program, save_program

__all__ = [
    "Difference",
    "compare",
    "export_network",
    "export_program",
    "is_exported",
    "open_file",
    "save_onnx",
    "save_program",
    "whole_model",
]


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> list[Difference]:
        """As :func:`.network.export`."""
        return export_network(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
