"""The shapes data set for mmpretrain's classifiers: one object per sample."""

import json
from pathlib import Path
from typing import Any

from mmcv.transforms import BaseTransform
from mmpretrain.datasets import BaseDataset

from ltm_mm.datasets.shapes import SHAPES, ensure_shapes
from ltm_mm.registry import DATASETS, TRANSFORMS


@DATASETS.register_module()
class ShapesClasses(BaseDataset):
    """Every object of the built-in shapes with its class, drawn into ``data_root`` on first use.

    A sample is a whole image and the ``bbox`` of its object (x, y, w, h in pixels), which
    :class:`CropObject` cuts out.

    Args:
        data_root: Folder of the data set.
        split: 'train' or 'val'.
        **kwargs: As for mmpretrain's ``BaseDataset``.

    Raises:
        ValueError: ``data_root`` exists and holds something else, or has no such split.
    """

    METAINFO = {"classes": SHAPES}

    def __init__(
        self, *, data_root: str = "data/shapes/", split: str = "train", **kwargs: Any
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split must be 'train' or 'val', got {split!r}")
        ensure_shapes(data_root)
        super().__init__(
            ann_file=f"annotations/instances_{split}.json",
            data_root=data_root,
            data_prefix=split,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """One entry per object."""
        content = json.loads(Path(self.ann_file).read_text())
        files = {image["id"]: image["file_name"] for image in content["images"]}
        return [
            dict(
                img_path=str(Path(self.img_prefix, files[entry["image_id"]])),
                gt_label=entry["category_id"] - 1,
                bbox=entry["bbox"],
            )
            for entry in content["annotations"]
        ]


@TRANSFORMS.register_module()
class CropObject(BaseTransform):
    """Cut an image down to the ``bbox`` of its sample, with a margin.

    Args:
        margin: Pixels on each side, >= 0, as far as the image has them.

    Raises:
        ValueError: ``margin`` is negative.
    """

    def __init__(self, margin: int = 4) -> None:
        if margin < 0:
            raise ValueError(f"margin must be >= 0 pixels, got {margin}")
        self.margin = margin

    def transform(self, results: dict) -> dict:
        """``img [H, W, 3]`` becomes the object's surroundings."""
        x, y, width, height = results["bbox"]
        top, left = max(y - self.margin, 0), max(x - self.margin, 0)
        bottom, right = y + height + self.margin, x + width + self.margin
        results["img"] = results["img"][top:bottom, left:right]
        results["img_shape"] = results["img"].shape[:2]
        return results
