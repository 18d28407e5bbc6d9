"""Predictions of a plain and a merging model, and where they differ (ours)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from torch import nn

SAME_IOU = 0.5  # boxes of one class that overlap this much are one object


@dataclass
class Instances:
    """A detector's predictions for one image, best first.

    Attributes:
        boxes: ``(n, 4)``, x1 y1 x2 y2 in pixels of the image.
        labels: class of each ``(n,)``.
        scores: ``(n,)``, 0..1.
        masks: ``(n, H, W)`` bool; None from a detector without masks.
    """

    boxes: NDArray
    labels: NDArray
    scores: NDArray
    masks: NDArray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Difference:
    """Which instances two models have in common.

    Attributes:
        both: pairs (index in the plain model's, index in the merging model's instances).
        lost: indices of the plain model's instances that the merging model has not.
        new: indices of the merging model's instances that the plain model has not.
    """

    both: list[tuple[int, int]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)


Prediction = Instances | NDArray  # a detector's, or a segmentor's (H, W) label map


def predict(model: nn.Module, data: Mapping[str, Any], score_thr: float = 0.3) -> Prediction:
    """What a model predicts for one image.

    Args:
        model: mmdet's or mmseg's, in eval mode.
        data: what the test pipeline makes of the image (``inputs``, ``data_samples``).
        score_thr: instances below this score are left out.

    Returns:
        Instances, or the label map ``(H, W)``, at the image's own size.

    Raises:
        ValueError: if the model predicts neither.
    """
    batch = {key: [value] for key, value in data.items()}
    with torch.no_grad():
        sample = model.test_step(batch)[0].cpu()
    return read_prediction(sample, score_thr)


def read_prediction(sample: BaseDataElement, score_thr: float = 0.3) -> Prediction:
    """The instances or the label map of a data sample; see :func:`predict`."""
    if "pred_instances" in sample:
        found = sample.pred_instances
        found = found[found.scores >= score_thr]
        found = found[found.scores.argsort(descending=True)]
        boxes = getattr(found.bboxes, "tensor", found.bboxes)
        masks = np.asarray(found.masks).astype(bool) if "masks" in found else None
        return Instances(boxes.numpy(), found.labels.numpy(), found.scores.numpy(), masks)
    if "pred_sem_seg" in sample:
        data = sample.pred_sem_seg.data
        return data[0].numpy().astype(np.int64)
    if "pred_panoptic_seg" in sample:
        segments = sample.pred_panoptic_seg.sem_seg[0].numpy().astype(np.int64)
        return segments % 1000  # mmdet's INSTANCE_OFFSET: id = instance * 1000 + class
    raise ValueError(
        f"a {type(sample).__name__} with {', '.join(sample.keys()) or 'no prediction'} cannot be "
        "drawn: only instances and label maps can"
    )


def compare(plain: Instances, merged: Instances) -> Difference:
    """Pair off the instances of two models: one class, IoU >= 0.5, best score first."""
    overlap = _iou(plain.boxes, merged.boxes)
    overlap[plain.labels[:, None] != merged.labels[None, :]] = 0
    result, free = Difference(), set(range(len(merged)))
    for index in range(len(plain)):
        best = max(free, key=lambda j: overlap[index, j], default=None)
        if best is None or overlap[index, best] < SAME_IOU:
            result.lost.append(index)
        else:
            result.both.append((index, best))
            free.discard(best)
    result.new = sorted(free)
    return result


def _iou(a: NDArray, b: NDArray) -> NDArray:
    """Intersection over union of boxes ``(n, 4)`` and ``(m, 4)``: ``(n, m)``."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (bottom_right - top_left).clip(min=0).prod(-1)
    sizes = [(x[:, 2:] - x[:, :2]).clip(min=0).prod(-1) for x in (a, b)]
    return both / np.maximum(sizes[0][:, None] + sizes[1][None, :] - both, 1e-9)


def class_name(names: Sequence[str] | None, index: int) -> str:
    """A class's name, or its number where names are unknown."""
    return names[index] if names and index < len(names) else f"class {index}"
