"""Non-maximum suppression as mmcv's ``_ext`` offers it, over torchvision.

Score thresholds, ``max_num`` and the per-class shift of ``batched_nms`` are done
by mmcv itself, in Python, around these functions.
"""

import torch
import torchvision
from torch import Tensor

from ltm_mm.compat.precision import wide


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy NMS.

    Args:
        boxes: ``(N, 4)``, x1 y1 x2 y2.
        scores: ``(N,)``.
        iou_threshold: a box goes when its IoU with a better one is above this.
        offset: a box is ``x2 - x1 + offset`` wide; 0 or 1.

    Returns:
        Indices of the kept boxes, ``(K,)`` int64, best score first.
    """
    # Widths, heights and overlaps all grow by the offset, as if x2, y2 lay further out.
    boxes = wide(boxes)
    boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return torchvision.ops.nms(boxes, scores.to(boxes), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., ICCV 2017): overlapping boxes lose score instead of going.

    Args:
        boxes: ``(N, 4)``, x1 y1 x2 y2.
        scores: ``(N,)``.
        dets: ``(N, 5)``; the first K rows receive the kept boxes and their new scores.
        iou_threshold: from this IoU on, methods 0 and 1 act.
        sigma: width of method 2.
        min_score: boxes whose new score falls below this go.
        method: 0 (score becomes 0), 1 (times ``1 - IoU``) or 2 (times ``exp(-IoU^2 / sigma)``).
        offset: a box is ``x2 - x1 + offset`` wide; 0 or 1.

    Returns:
        Indices of the kept boxes, ``(K,)`` int64, in order of selection.
    """
    scores = scores.clone()
    left, right = boxes[:, :2], boxes[:, 2:] + offset
    areas = (right - left).prod(dim=1)
    rest = torch.ones_like(scores, dtype=torch.bool)
    kept: list[int] = []
    while rest.any():
        best = int(torch.where(rest, scores, -torch.inf).argmax())
        rest[best] = False
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(best)

        overlap = torch.minimum(right, right[best]) - torch.maximum(left, left[best])
        shared = overlap.clamp(min=0).prod(dim=1)
        iou = shared / (areas + areas[best] - shared)
        if method == 2:
            factor = torch.exp(-iou.square() / sigma)
        else:
            factor = torch.where(iou >= iou_threshold, method * (1 - iou), 1.0)
        scores = torch.where(rest, scores * factor, scores)
        rest &= scores >= min_score
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)
