"""The built-in shapes data set, for mmdet and for mmseg.

The registry imports this module. Where one of mmdet and mmseg is not installed (or broken), the
data set of the other works, and the one that needs it says so when it is built.
"""

from ltm_mm.datasets.shapes import COUNTS, SHAPES, SIZE, draw_image, ensure_shapes
from ltm_mm.registry import DATASETS, register_or_explain

__all__ = ["COUNTS", "SHAPES", "SIZE", "draw_image", "ensure_shapes"]


for _name, _package, _module in (
    ("ShapesInstances", "mmdet", "shapes_instances"),
    ("ShapesSemantic", "mmseg", "shapes_semantic"),
):
    register_or_explain(DATASETS, _name, _package, f"ltm_mm.datasets.{_module}")
