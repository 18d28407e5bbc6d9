"""The shapes data set for mmdet's detectors."""

from typing import Any

from mmdet.datasets import CocoDataset

from ltm_mm.datasets.shapes import PALETTE, SHAPES, ensure_shapes
from ltm_mm.registry import DATASETS


@DATASETS.register_module()
class ShapesInstances(CocoDataset):
    """mmdet's ``CocoDataset`` on the built-in shapes, drawn into ``data_root`` on first use.

    Args:
        data_root: Folder of the data set.
        **kwargs: As for ``CocoDataset``.

    Raises:
        ValueError: ``data_root`` exists and holds something else.
    """

    METAINFO = {
        "classes": SHAPES,
        "palette": list(PALETTE),
    }

    def __init__(self, *, data_root: str = "data/shapes/", **kwargs: Any) -> None:
        ensure_shapes(data_root)
        super().__init__(data_root=data_root, **kwargs)
