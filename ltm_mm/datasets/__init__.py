"""The built-in shapes data set, for mmdet, mmseg and mmpretrain.

The registry imports this module. Where one of them is not installed (or broken), the data sets of
the others work, and the one that needs it says so when it is built.
"""

from importlib import import_module

from ltm_mm.datasets.shapes import COUNTS, SHAPES, SIZE, draw_image, ensure_shapes
from ltm_mm.registry import DATASETS

__all__ = ["COUNTS", "SHAPES", "SIZE", "draw_image", "ensure_shapes"]


_REQUIREMENTS = {"mmpretrain": "optional"}


def _unavailable(name: str, package: str, error: Exception) -> type:
    """A data set class that says why it cannot be built."""

    def init(self: object, *args: object, **kwargs: object) -> None:
        raise ImportError(
            f"ltm_mm.{name} needs {package}, which does not import here ({error}): "
            f"pip install -r requirements/{_REQUIREMENTS.get(package, 'mminstall')}.txt"
        ) from error

    return type(name, (), {"__init__": init})


for _name, _package, _module in (
    ("ShapesInstances", "mmdet", "shapes_instances"),
    ("ShapesSemantic", "mmseg", "shapes_semantic"),
    ("ShapesClasses", "mmpretrain", "shapes_classes"),
):
    try:
        import_module(f"ltm_mm.datasets.{_module}")
    except (ImportError, AssertionError) as _error:  # upstream asserts mmcv's version
        DATASETS.register_module(name=_name, module=_unavailable(_name, _package, _error))
