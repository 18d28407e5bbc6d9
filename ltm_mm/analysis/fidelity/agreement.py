"""How far a model's maps and predictions are from the plain model's, without labels.

Maps are compared by their relative error, predictions by how much of the plain model's stays.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...engine.photos import resized

if TYPE_CHECKING:
    from ...engine.predictions import Instances

NEAR = 3  # pixels from another class that count as near a boundary
CONFIDENT = 0.3  # score from which on a plain detection counts as ground truth
SMALL = 32**2  # COCO's area of a small object, pixels


def relative_error(plain: Tensor, other: Tensor) -> float:
    """``|other - plain| / |plain|``, Euclidean norms over all values of a map.

    >>> relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    0.2
    """
    difference = torch.linalg.vector_norm((other - plain).double())
    return (difference / torch.linalg.vector_norm(plain.double())).item()


def near_boundaries(labels: NDArray, distance: int = NEAR) -> NDArray:
    """Pixels with another class at most ``distance`` pixels away (Euclidean).

    Args:
        labels: ``(H, W)`` classes.
        distance: >= 1.

    Returns:
        ``(H, W)`` bool.
    """
    near = np.zeros(labels.shape, bool)
    height, width = labels.shape
    rows, cols = min(distance + 1, height), min(distance + 1, width)
    # One half of the disk: a pair of pixels that differ marks both.
    half = [(y, x) for y in range(rows) for x in range(1 - cols, cols) if (y, x) > (0, 0)]
    for y, x in (p for p in half if p[0] ** 2 + p[1] ** 2 <= distance**2):
        upper = (slice(0, height - y), slice(max(-x, 0), width - max(x, 0)))
        lower = (slice(y, height), slice(max(x, 0), width + min(x, 0)))
        differ = labels[upper] != labels[lower]
        near[upper] |= differ
        near[lower] |= differ
    return near


class Tally(Protocol):
    """Compares predictions photo by photo."""

    def add(self, plain: Any, other: Any) -> None:
        """Compare what two models predict for one photo."""

    def measures(self) -> dict[str, float]:
        """Measure -> 0..1 over all photos; NaN where there was nothing to compare."""


class LabelMapTally:
    """Share of pixels whose class stays, of all and near the plain model's boundaries."""

    def __init__(self) -> None:
        self.counts = np.zeros(4, np.int64)

    def add(self, plain: NDArray, other: NDArray) -> None:
        """Compare label maps ``(H, W)``."""
        same, near = plain == other, near_boundaries(plain)
        self.counts += (same.sum(), same.size, (same & near).sum(), near.sum())

    def measures(self) -> dict[str, float]:
        """See :class:`Tally`."""
        same, total, same_near, near = self.counts.tolist()
        return {"pixels": _ratio(same, total), f"within {NEAR} px": _ratio(same_near, near)}


class TopClasses:
    """Share of photos whose class stays."""

    def __init__(self) -> None:
        self.same = self.total = 0

    def add(self, plain: NDArray, other: NDArray) -> None:
        """Compare the classes of one photo or of a batch ``(B,)``."""
        self.same += int((plain == other).sum())
        self.total += plain.size

    def measures(self) -> dict[str, float]:
        """See :class:`Tally`."""
        return {"top-1": _ratio(self.same, self.total)}


class Detections:
    """Average precision with the plain model's confident detections as ground truth."""

    def __init__(self, confident: float = CONFIDENT) -> None:
        self.confident = confident
        self.plain: list[Instances] = []
        self.other: list[Instances] = []

    def add(self, plain: "Instances", other: "Instances") -> None:
        """Keep the detections of one photo."""
        self.plain.append(plain)
        self.other.append(other)

    def measures(self) -> dict[str, float]:
        """See :class:`Tally`."""
        return average_precision(self.plain, self.other, self.confident)


def tally_of(prediction: object) -> Tally:
    """What compares predictions of one kind: a label map, classes ``(B,)``, or instances."""
    if isinstance(prediction, np.ndarray):
        return LabelMapTally() if prediction.ndim == 2 else TopClasses()
    return Detections()


def decide(prediction: object, plain: object) -> object:
    """The classes that logits stand for; what is no tensor of logits stays as it is.

    Args:
        prediction: logits ``(B, K)``, ``(1, K, h, w)``, or anything else.
        plain: the plain model's; label maps are compared at its logits' size.

    Returns:
        Classes ``(B,)``, a label map ``(H, W)``, or the prediction.

    Raises:
        ValueError: for a tensor that is no logits.
    """
    if not isinstance(prediction, Tensor):
        return prediction
    if prediction.ndim == 2:
        return prediction.argmax(1).cpu().numpy()
    if prediction.ndim != 4 or len(prediction) != 1:
        raise ValueError(
            "predict must return logits (B, classes) or (1, classes, H, W), a NumPy array of "
            f"classes, or Instances; got a tensor {tuple(prediction.shape)}"
        )
    size = plain.shape[2:] if isinstance(plain, Tensor) else prediction.shape[2:]
    return resized(prediction, size).argmax(1)[0].cpu().numpy()


def average_precision(
    plain: Sequence["Instances"], other: Sequence["Instances"], confident: float = CONFIDENT
) -> dict[str, float]:
    """COCO's AP (IoU 0.5 to 0.95) of detections against the plain model's confident ones.

    Args:
        plain, other: detections, photo by photo.
        confident: score from which on the plain model's count as ground truth.

    Returns:
        'box AP', 'box AP small', and 'mask AP' where there are masks, 0..1; NaN without ground
        truth.

    Raises:
        ImportError: if pycocotools is missing.
    """
    iou_types = {"box": "bbox"}
    if any(one.masks is not None for one in plain):
        iou_types["mask"] = "segm"
    truth = [one for k, p in enumerate(plain) for one in _entries(p, k + 1, confident)]
    predicted = [one for k, o in enumerate(other) for one in _entries(o, k + 1, 0.0)]
    measures = {}
    for name, iou_type in iou_types.items():
        precision, small = (round(ap, 9) for ap in _coco(truth, predicted, iou_type, len(plain)))
        measures[f"{name} AP"] = precision
        if iou_type == "bbox":
            measures["box AP small"] = small
    return measures


def _entries(instances: "Instances", photo: int, least: float) -> list[dict]:
    """COCO's entries of the instances of one photo that score ``least`` or more."""
    from pycocotools import mask as coco_mask

    entries = []
    for i in np.flatnonzero(instances.scores >= least):
        x0, y0, x1, y1 = (float(value) for value in instances.boxes[i])
        entry = dict(
            image_id=photo,
            category_id=int(instances.labels[i]),
            bbox=[x0, y0, x1 - x0, y1 - y0],
            score=float(instances.scores[i]),
            area=(x1 - x0) * (y1 - y0),
            iscrowd=0,
        )
        if instances.masks is not None:
            entry["segmentation"] = coco_mask.encode(
                np.asfortranarray(instances.masks[i], np.uint8)
            )
        entries.append(entry)
    return entries


def _coco(
    truth: list[dict], predicted: list[dict], iou_type: str, photos: int
) -> tuple[float, float]:
    """AP, and AP of small objects, by COCO's evaluation; it divides with a rest of 1e-16."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # What has no area has no IoU: not even with itself.
    truth, predicted = (
        [dict(entry) for entry in entries if _solid(entry, iou_type)]
        for entries in (truth, predicted)
    )
    for number, entry in enumerate((*truth, *predicted)):
        entry["id"] = number + 1
    classes = sorted({entry["category_id"] for entry in truth})
    if not classes:
        return float("nan"), float("nan")
    data = [COCO(), COCO()]
    with contextlib.redirect_stdout(io.StringIO()):
        for one, entries in zip(data, (truth, predicted), strict=True):
            one.dataset = dict(
                images=[dict(id=k + 1, height=0, width=0) for k in range(photos)],
                categories=[dict(id=c) for c in classes],
                annotations=entries,
            )
            one.createIndex()
        evaluation = COCOeval(*data, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    whole, small = float(evaluation.stats[0]), float(evaluation.stats[3])
    return whole, small if small >= 0 else float("nan")


def _solid(entry: dict, iou_type: str) -> bool:
    if iou_type == "bbox":
        return min(entry["bbox"][2:]) > 0
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(entry["segmentation"])) > 0


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
