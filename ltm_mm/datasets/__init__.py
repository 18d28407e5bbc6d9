"""The built-in shapes data set, for mmdet, mmseg and mmpretrain.

The registry imports this module. Where one of them is not installed (or broken), the data sets of
the others work, and the one that needs it says so when it is built.
"""

from ltm_mm.datasets.shapes import COUNTS, SHAPES, SIZE, draw_image, ensure_shapes
from ltm_mm.registry import DATASETS, register_or_explain

__all__ = ["COUNTS", "SHAPES", "SIZE", "draw_image", "ensure_shapes"]


for _name, _package, _module in (
    ("ShapesInstances", "mmdet", "shapes_instances"),
    ("ShapesSemantic", "mmseg", "shapes_semantic"),
    ("ShapesClasses", "mmpretrain", "shapes_classes"),
):
    register_or_explain(DATASETS, _name, _package, f"ltm_mm.datasets.{_module}")
