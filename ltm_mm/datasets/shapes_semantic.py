"""The shapes data set for mmseg's segmentors."""

from typing import Any

from mmseg.datasets import BaseSegDataset

from ltm_mm.datasets.shapes import PALETTE, SHAPES, ensure_shapes
from ltm_mm.registry import DATASETS


@DATASETS.register_module()
class ShapesSemantic(BaseSegDataset):
    """mmseg's ``BaseSegDataset`` on the built-in shapes, drawn into ``data_root`` on first use.

    Seven classes: the background, then the shapes.

    Args:
        data_root: Folder of the data set.
        **kwargs: As for ``BaseSegDataset``.

    Raises:
        ValueError: ``data_root`` exists and holds something else.
    """

    METAINFO = {
        "classes": ("background", *SHAPES),
        "palette": [(0, 0, 0), *PALETTE],
    }

    def __init__(
        self, *, data_root: str = "data/shapes/", img_suffix: str = ".png", **kwargs: Any
    ) -> None:
        ensure_shapes(data_root)
        super().__init__(data_root=data_root, img_suffix=img_suffix, **kwargs)
