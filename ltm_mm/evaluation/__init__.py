"""What AP and mIoU do not show: boundaries, and what merging does.

The registry imports this module. Where mmdet is not installed (or broken), its metric says so
when it is built.
"""

from ltm_mm.registry import METRICS, register_or_explain

from .boundary_f import BoundaryF

__all__ = ["BoundaryF"]

register_or_explain(METRICS, "BoundaryIoU", "mmdet", "ltm_mm.evaluation.boundary_iou")
