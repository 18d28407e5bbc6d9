"""What a test found per class: AP and curves of detectors, IoU of segmentors, confusions of both.

pycocotools computes AP, precision and which detection belongs to which object; mmseg's metric
has the same IoU.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

IOU, SCORE = 0.5, 0.3  # of the confusions of a detector


def detections_by_class(evaluations: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """AP per class, precision over recall, and confusions of a detector.

    Args:
        evaluations: pycocotools' ``COCOeval`` after ``accumulate``, by 'bbox' and 'segm'.
        classes: names, in the order of the evaluations' ``catIds``.

    Returns:
        JSON-ready: ``ap`` and ``ap50`` by kind, a number or None per class; ``objects`` per class;
        ``recall``, and ``precision`` by kind, a list per class, at IoU 0.5; ``confusion``.
    """
    results: dict[str, Any] = dict(task="detection", classes=list(classes), ap={}, ap50={})
    results["precision"] = {}
    for iou_type, evaluation in evaluations.items():
        # (IoU thresholds, recalls, classes, areas, detections per image), of all areas
        precision = evaluation.eval["precision"][..., 0, -1]
        at = int(np.argmin(abs(np.asarray(evaluation.params.iouThrs) - IOU)))
        each = range(len(classes))
        results["ap"][iou_type] = [_mean(precision[..., k]) for k in each]
        results["ap50"][iou_type] = [_mean(precision[at, :, k]) for k in each]
        results["precision"][iou_type] = [
            None if (precision[at, :, k] < 0).all() else precision[at, :, k].round(4).tolist()
            for k in each
        ]
        results["recall"] = np.asarray(evaluation.params.recThrs).round(4).tolist()
    any_type = next(iter(evaluations.values()))
    truth, ids = any_type.cocoGt, list(any_type.params.catIds)
    counts = [len(truth.getAnnIds(catIds=[k], iscrowd=False)) for k in ids]
    results["objects"] = counts
    if "bbox" in evaluations:
        results["confusion"] = detection_confusion(evaluations["bbox"], ids).tolist()
    return results


def detection_confusion(evaluation: Any, ids: Sequence[int]) -> NDArray:
    """How often an object of one class was found as another one.

    pycocotools matches boxes whatever their classes are, best score first, at IoU 0.5; detections
    from a score of 0.3 on count.

    Args:
        evaluation: of boxes.
        ids: of the categories, by label.

    Returns:
        ``(classes + 1, classes + 1)``: rows are true classes and, last, nothing there; columns are
        predicted classes and, last, not found.
    """
    entries = evaluation.cocoDt.dataset.get("annotations", [])
    sure = [dict(entry) for entry in entries if entry["score"] >= SCORE]
    label = {key: k for k, key in enumerate(ids)}
    none = len(ids)
    counts = np.zeros((none + 1, none + 1), int)
    if not sure:  # which pycocotools cannot read
        for key, k in label.items():
            counts[k, none] = len(evaluation.cocoGt.getAnnIds(catIds=[key], iscrowd=False))
        return counts
    kept = evaluation.cocoGt.loadRes(sure)
    matched = type(evaluation)(evaluation.cocoGt, kept, "bbox")
    matched.params.imgIds, matched.params.catIds = evaluation.params.imgIds, list(ids)
    matched.params.useCats, matched.params.iouThrs = 0, np.array([IOU])
    matched.params.areaRng, matched.params.areaRngLbl = [[0, 1e10]], ["all"]
    matched.params.maxDets = [evaluation.params.maxDets[-1]]
    matched.evaluate()
    for image in filter(None, matched.evalImgs):
        pairs = zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True)
        for predicted, true, ignored in pairs:
            if ignored or (true and evaluation.cocoGt.anns[int(true)]["category_id"] not in label):
                continue
            row = label[evaluation.cocoGt.anns[int(true)]["category_id"]] if true else none
            counts[row, label[kept.anns[predicted]["category_id"]]] += 1
        missed = zip(image["gtIds"], image["gtMatches"][0], image["gtIgnore"], strict=True)
        for true, predicted, ignored in missed:
            if not predicted and not ignored:
                counts[label[evaluation.cocoGt.anns[true]["category_id"]], none] += 1
    return counts


def labels_by_class(confusion: NDArray, classes: Sequence[str]) -> dict[str, Any]:
    """IoU and accuracy per class from the confusions of a segmentor.

    Args:
        confusion: pixels ``(classes, classes)``: rows are true classes, columns predicted ones.
        classes: names.

    Returns:
        JSON-ready: ``iou`` and ``accuracy`` in percent, a number or None per class; ``confusion``.
    """
    right, true = confusion.diagonal().astype(float), confusion.sum(1)
    union = true + confusion.sum(0) - right

    def share(part: NDArray, whole: NDArray) -> list[float | None]:
        pairs = zip(part, whole, strict=True)
        return [round(100 * float(p / w), 4) if w else None for p, w in pairs]

    return dict(
        task="segmentation",
        classes=list(classes),
        iou=share(right, union),
        accuracy=share(right, true),
        confusion=confusion.tolist(),
    )


def _mean(values: NDArray) -> float | None:
    """Of what pycocotools computed; it writes -1 where there are no objects."""
    known = values[values > -1]
    return round(float(known.mean()), 4) if known.size else None
