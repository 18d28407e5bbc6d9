"""Non-maximum suppression as one operator, which each format has its own form of."""

import torch
import torchvision
from torch import Tensor


@torch.library.custom_op("ltm_mm::kept_boxes", mutates_args=())
def kept_boxes(boxes: Tensor, scores: Tensor, threshold: float, count: int) -> Tensor:
    """Which boxes of each image no better box overlaps.

    Args:
        boxes: ``(B, n, 4)``, x1 y1 x2 y2.
        scores: ``(B, n)``; below 0 there is no box.
        threshold: a box goes when its IoU with a better one is above this.
        count: per image, as many of the best are sure to be right; others may be missing.

    Returns:
        ``(B, n)``, bool.
    """
    return portable(boxes, scores, threshold, count)


@kept_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: float, count: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def portable(boxes: Tensor, scores: Tensor, threshold: float, count: int) -> Tensor:
    """:func:`kept_boxes` in operators of PyTorch and torchvision."""
    images, number = scores.shape
    # One call for all images, which lie apart; in double precision that moves no edge.
    step = boxes.amax() - boxes.amin() + 1
    apart = boxes.double() + (torch.arange(images, device=boxes.device) * step)[:, None, None]
    present = (scores.flatten() >= 0).nonzero().squeeze(1)
    best = torchvision.ops.nms(
        apart.flatten(0, 1)[present], scores.flatten()[present].double(), threshold
    )
    kept = torch.zeros(images * number, dtype=torch.bool, device=boxes.device)
    return kept.index_fill(0, present[best], True).reshape(images, number)


def onnx_kept_boxes(boxes: object, scores: object, threshold: float, count: int) -> object:
    """:func:`kept_boxes` as ONNX's NonMaxSuppression."""
    from onnxscript import opset18 as op

    chosen = op.NonMaxSuppression(  # (K, 3): image, 0, box
        boxes,
        op.Unsqueeze(scores, [1]),
        op.Constant(value_ints=[count]),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[-0.5]),
    )
    place = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
    ones = op.Expand(
        op.Constant(value_floats=[1.0]), op.Shape(op.Squeeze(op.Slice(place, [0], [1], [1]), [1]))
    )
    none = op.Mul(scores, op.Constant(value_float=0.0))
    return op.Greater(op.ScatterND(none, place, ones), op.Constant(value_float=0.5))
