"""What the model itself finds on the images that an exported file is compared on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import WholeModel


class ImageDetections(NamedTuple):
    """Detections of one image, the best first.

    Attributes:
        boxes: ``(n, 4)``, x1 y1 x2 y2 in pixels of the image.
        scores, labels: ``(n,)``.
        masks: ``(n, H, W)``, bool, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None


def predict(whole: WholeModel, images: Tensor) -> list[ImageDetections]:
    """Run mmdet's own ``predict`` on normalised images ``(B, 3, H, W)``."""
    from mmdet.structures import DetDataSample

    padded = whole.padded(images)
    size, batch_size = tuple(images.shape[2:]), tuple(padded.shape[2:])
    meta = dict(img_shape=size, ori_shape=size, batch_input_shape=batch_size, pad_shape=batch_size)
    samples = [DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)}) for _ in images]
    with torch.no_grad():
        samples = whole.model.predict(padded, samples, rescale=False)
    instances = [sample.pred_instances for sample in samples]
    return [ImageDetections(x.bboxes, x.scores, x.labels, x.get("masks")) for x in instances]


def segment(whole: WholeModel, images: Tensor) -> Tensor:
    """Run mmseg's own ``encode_decode`` on normalised images: logits ``(B, classes, H, W)``."""
    padded = whole.padded(images)
    size = tuple(padded.shape[2:])
    metas = [dict(img_shape=size, ori_shape=size, pad_shape=size) for _ in images]
    with torch.no_grad():
        logits = whole.model.encode_decode(padded, metas)
    return logits[..., : images.shape[2], : images.shape[3]]


def unpack(
    outputs: Sequence[Tensor], metadata: dict[str, Any], size: tuple[int, int]
) -> list[ImageDetections]:
    """Detections in the outputs of an exported file, without the rows that hold none.

    Args:
        outputs: of a file.
        metadata: what the file says of itself.
        size: height and width of the images.
    """
    boxes, scores, labels, *masks = outputs
    detections = []
    for index in range(len(boxes)):
        there = labels[index] >= 0
        of_image = ImageDetections(
            boxes[index][there], scores[index][there], labels[index][there], None
        )
        if masks:
            pasted = paste(masks[0][index][there], of_image.boxes, metadata, size)
            of_image = of_image._replace(masks=pasted)
        detections.append(of_image)
    return detections


def paste(
    masks: Tensor,
    boxes: Tensor,
    metadata: dict[str, Any],
    size: tuple[int, int],
    original: tuple[int, int] | None = None,
) -> Tensor:
    """Masks as an exported file gives them, at the size of the image, ``(n, H, W)`` bool.

    Args:
        masks: ``(n, h, w)``, a grid over each box, or logits over the whole padded image.
        boxes: ``(n, 4)`` in pixels of the original image.
        metadata: of the file.
        size: height and width of the image that the file was run on.
        original: of the image before it was resized; default: that was all.
    """
    original = original or size
    if metadata["masks"] == "image":
        return _resize(masks, int(metadata["pad_divisor"]), size, original) > 0
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    full = torch.zeros(len(masks), *original, dtype=torch.bool)
    for index in range(len(masks)):  # one by one, each only where its box is
        part, (rows, cols) = _do_paste_mask(
            masks[index : index + 1, None], boxes[index : index + 1], *original, True
        )
        full[index][rows, cols] = part[0] >= float(metadata["mask_threshold"])
    return full


def rescaled(
    masks: Tensor,
    scores: Tensor,
    metadata: dict[str, Any],
    size: tuple[int, int],
    original: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and masks of queries in the original image: mmdet takes all three from there.

    Args:
        masks: ``(n, h, w)``, logits over the whole padded image.
        scores: ``(n,)``, as the file gives them: of the class, times the mean inside of the mask.
        metadata, size, original: see :func:`paste`.
    """
    from mmdet.structures.mask import mask2bbox

    step = int(metadata["pad_divisor"])
    before, after = (_resize(masks, step, size, goal) for goal in (size, original))
    scores = scores / _inside(before).clamp(min=1e-12) * _inside(after)
    return mask2bbox(after > 0), scores, after > 0


def _inside(logits: Tensor) -> Tensor:
    """Mean share of foreground inside of masks ``(n, H, W)``."""
    there = (logits > 0).flatten(1)
    return (logits.sigmoid().flatten(1) * there).sum(1) / (there.sum(1) + 1e-6)


def _resize(masks: Tensor, step: int, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """To the padded image, without the padding, and to the original size, as mmdet does it."""
    padded = [-(-length // step) * step for length in size]
    masks = F.interpolate(masks[None], padded, mode="bilinear", align_corners=False)
    masks = masks[..., : size[0], : size[1]]
    if original != size:
        masks = F.interpolate(masks, original, mode="bilinear", align_corners=False)
    return masks[0]
