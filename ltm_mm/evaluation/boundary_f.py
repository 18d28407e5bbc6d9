"""Boundary F of semantic maps, as an MM metric."""

from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric

from ..registry import METRICS
from .boundaries import boundary_hits, boundary_width


@METRICS.register_module()
class BoundaryF(BaseMetric):
    """F measure of the outlines of every class, averaged over the classes that occur.

    ::

        val_evaluator = [dict(type='IoUMetric'), dict(type='ltm_mm.BoundaryF')]

    Outline pixels match within ``tolerance`` of the image's diagonal. Precision and recall
    are those of all images' outline pixels together.

    Args:
        tolerance: share of the image's diagonal (DAVIS: 0.008).
        ignore_index: label that does not count.
        **kwargs: of mmengine's ``BaseMetric``.
    """

    default_prefix = None

    def __init__(self, tolerance: float = 0.008, ignore_index: int = 255, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if not tolerance > 0:
            raise ValueError(f"tolerance must be > 0, got {tolerance!r}")
        self.tolerance, self.ignore_index = tolerance, ignore_index

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the counts ``(classes, 4)`` of every image."""
        for sample in data_samples:
            predicted, truth = (
                sample[key]["data"].squeeze().cpu().numpy()
                for key in ("pred_sem_seg", "gt_sem_seg")
            )
            valid = truth != self.ignore_index
            reach = boundary_width(truth.shape[0], truth.shape[1], self.tolerance)
            self.results.append(
                np.stack(
                    [
                        boundary_hits((predicted == c) & valid, truth == c, reach, valid)
                        for c in range(len(self.dataset_meta["classes"]))
                    ]
                )
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``mBoundaryF`` in per cent, as mmseg's metrics are."""
        predicted, predicted_near, true, true_near = np.sum(results, axis=0).T
        precision, recall = (
            predicted_near / np.maximum(predicted, 1),
            true_near / np.maximum(true, 1),
        )
        f = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        occurs = predicted + true > 0
        return {"mBoundaryF": float(100 * f[occurs].mean()) if occurs.any() else float("nan")}
