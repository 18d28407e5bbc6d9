"""What a detector or segmentor predicts for an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mmengine.structures import BaseDataElement


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


Prediction = Instances | NDArray  # a detector's, or a segmentor's (H, W) label map


def predict(model: Any, data: Mapping[str, Any], score_thr: float = 0.3) -> Prediction:
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


def read_prediction(sample: "BaseDataElement", score_thr: float = 0.3) -> Prediction:
    """The instances or the label map of a data sample; see :func:`predict`."""
    if "pred_instances" in sample:
        instances = sample.pred_instances
        instances = instances[instances.scores >= score_thr]
        instances = instances[instances.scores.argsort(descending=True)]
        boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
        masks = np.asarray(instances.masks).astype(bool) if "masks" in instances else None
        return Instances(boxes.numpy(), instances.labels.numpy(), instances.scores.numpy(), masks)
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
