"""Boundary IoU of instance masks, as an MM metric."""

import numpy as np
from mmdet.evaluation import CocoMetric
from pycocotools import mask as coco_masks

from ..registry import METRICS
from .boundaries import boundary_iou, boundary_width

# COCO's limits in pixels of area.
SIZES = {"": (0, 1e10), "_s": (0, 32**2), "_m": (32**2, 96**2), "_l": (96**2, 1e10)}


@METRICS.register_module()
class BoundaryIoU(CocoMetric):
    """Mean boundary IoU of the ground-truth objects with what was predicted for them.

    ::

        val_evaluator = [
            dict(type='CocoMetric', ann_file=file, metric=['bbox', 'segm']),
            dict(type='ltm_mm.BoundaryIoU', ann_file=file)]

    An object's prediction is the one of its class that overlaps most with it; an object
    without any counts as 0, so what was missed shows, too. Crowds are left out.

    Args:
        ann_file: COCO annotations of the data set.
        score_thr: predictions below this score are ignored.
        width: of the boundary as a share of the image's diagonal (0.02 as in the source).
        **kwargs: of mmdet's ``CocoMetric``.

    Raises:
        ValueError: if an argument is out of range.
    """

    default_prefix = "boundary"

    def __init__(
        self, ann_file: str, score_thr: float = 0.3, width: float = 0.02, **kwargs: object
    ) -> None:
        if not 0 <= score_thr < 1:
            raise ValueError(f"score_thr must lie in 0..1, got {score_thr!r}")
        if not width > 0:
            raise ValueError(f"width must be > 0, got {width!r}")
        super().__init__(ann_file=ann_file, metric="segm", **kwargs)
        self.score_thr, self.width = score_thr, width

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``mIoU`` and ``mIoU_s``, ``_m``, ``_l`` by COCO's object sizes; -1 without objects."""
        coco = self._coco_api
        categories = coco.get_cat_ids(cat_names=self.dataset_meta["classes"])
        areas, values = [], []
        for _, predicted in results:
            annotations = coco.load_anns(coco.get_ann_ids(img_ids=[predicted["img_id"]]))
            for annotation in annotations:
                if annotation.get("iscrowd") or annotation["category_id"] not in categories:
                    continue
                label = categories.index(annotation["category_id"])
                areas.append(annotation["area"])
                values.append(self._best(coco.annToRLE(annotation), label, predicted))
        ious = np.array(values)
        chosen = {
            name: (np.array(areas) >= low) & (np.array(areas) < high)
            for name, (low, high) in SIZES.items()
        }
        return {f"mIoU{k}": float(ious[c].mean()) if c.any() else -1.0 for k, c in chosen.items()}

    def _best(self, truth: dict, label: int, predicted: dict) -> float:
        """Boundary IoU of an object with the prediction that overlaps most with it."""
        fitting = (predicted["labels"] == label) & (predicted["scores"] >= self.score_thr)
        masks = [predicted["masks"][i] for i in np.flatnonzero(fitting)]
        if not masks:
            return 0.0
        overlap = coco_masks.iou(masks, [truth], [False])[:, 0]
        if not overlap.max() > 0:
            return 0.0
        best, true = (coco_masks.decode(m).astype(bool) for m in (masks[overlap.argmax()], truth))
        height, width = true.shape
        return boundary_iou(best, true, boundary_width(height, width, self.width))
