"""What the heads share: images padded inside, and fixed numbers of boxes.

A program for all sizes cannot return as many boxes as it finds. Every choice is therefore
a top-k of a constant k; a place that no box fills has score ``NONE`` inside, and score 0,
label -1 and a box of zeros in the result.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nms import kept_boxes
from ..program import SMALLEST

NONE = -1.0  # score of a place that holds no box


class WholeModel(nn.Module):
    """A detector or segmentor as a network of one tensor.

    Args:
        model: of mmdet or mmseg; put in eval mode.

    Attributes:
        outputs: names of the results, in their order.
        metadata: what else a file of it should say.
        smallest: height and width that it takes, in pixels.
    """

    outputs: tuple[str, ...]

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.eval()  # not chained: mmdet's Swin returns None
        self.model = model
        self.metadata: dict[str, object] = {}
        self.smallest = SMALLEST
        made = model.data_preprocessor
        self.divisor = getattr(made, "pad_size_divisor", 1) or 1
        self.padding = float(getattr(made, "pad_value", 0))
        if isinstance(getattr(getattr(model, "neck", None), "upsample", None), nn.Module):
            self.divisor = max(self.divisor, 32)  # necks that double a map want whole steps

    def padded(self, image: Tensor) -> Tensor:
        """Padding at the right and bottom, to whole steps, as the data preprocessor adds it."""
        step = self.divisor
        # Not -length % step: that there are whole steps must be seen from the padded size.
        height, width = ((n + step - 1) // step * step - n for n in image.shape[2:])
        return F.pad(image, (0, width, 0, height), value=self.padding)


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best of ``(B, n)`` scores, for any n.

    Returns:
        ``(B, count)`` scores, best first, ``NONE`` where there are fewer; and their indices in
        the scores, 0 where there are fewer.
    """
    best, index = F.pad(scores, (0, count), value=NONE).topk(count)
    return best, torch.where(best > NONE, index, 0)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``(B, n, c)`` at indices ``(B, k)``: ``(B, k, c)``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def clip(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes ``(..., 4)``, x1 y1 x2 y2, inside an image of that height and width."""
    height, width = size
    one = boxes.new_ones(1)
    return torch.minimum(boxes.clamp(min=0), torch.cat((one * width, one * height)).repeat(2))


def decode(coder: nn.Module, priors: Tensor, deltas: Tensor, size: Sequence[int]) -> Tensor:
    """A box coder's boxes of ``(..., 4)`` deltas, clipped as it clips."""
    boxes = coder.decode(priors.reshape(-1, priors.shape[-1]), deltas.reshape(-1, 4))
    boxes = getattr(boxes, "tensor", boxes).reshape(deltas.shape)
    return clip(boxes, size) if getattr(coder, "clip_border", True) else boxes


def wide_enough(boxes: Tensor, cfg: Mapping) -> Tensor:
    """Which boxes a test_cfg's ``min_bbox_size`` lets through."""
    smallest = cfg.get("min_bbox_size", -1)
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides > smallest).all(dim=-1) | (smallest < 0)


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, nms: Mapping, count: int
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression within groups, as mmcv's ``batched_nms`` does it.

    Args:
        boxes: ``(B, n, 4)``.
        scores: ``(B, n)``, ``NONE`` where there is no box.
        groups: ``(B, n)``, class or level of each box.
        nms: of a test_cfg; see :func:`check_nms`.
        count: boxes to keep per image.

    Returns:
        Scores and indices of those kept, see :func:`top`.
    """
    if not nms.get("class_agnostic", False):
        present = torch.where((scores > NONE)[..., None], boxes, 0)
        step = present.amax(dim=(1, 2)) + 1  # groups lie this far apart
        boxes = boxes + (groups * step[:, None])[..., None]
    kept = kept_boxes(boxes, scores, float(nms["iou_threshold"]), count)
    return top(torch.where(kept, scores, NONE), count)


def check_nms(cfg: Mapping, head: Any, counts: Sequence[str] = ("max_per_img",)) -> None:
    """Refuse what :func:`suppress` does not do, and numbers of boxes that are not fixed.

    Raises:
        ValueError: names the option.
    """
    nms = cfg.get("nms") or {}
    other = set(nms) - {"type", "iou_threshold", "class_agnostic", "split_thr"}
    if nms.get("type") != "nms" or other:
        raise ValueError(
            f"{type(head).__name__}: only nms=dict(type='nms', iou_threshold=...) can be exported, "
            f"the test_cfg has {dict(nms)}"
        )
    for count in counts:
        if cfg.get(count, -1) < 1:
            raise ValueError(
                f"{type(head).__name__}: an exported file has a fixed number of boxes, and the "
                f"test_cfg has {count}={cfg.get(count)}: give one, such as 1000"
            )


def results(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels, with zeros and -1 where there is no box."""
    there = scores > NONE
    return (
        torch.where(there[..., None], boxes, 0),
        torch.where(there, scores, 0),
        torch.where(there, labels, -1),
    )
