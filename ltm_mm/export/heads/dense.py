"""One-stage detectors and region proposals: boxes of all places of all levels.

Follows ``BaseDenseHead``, ``GFLHead`` and ``RPNHead`` of mmdet in what is kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .common import NONE, WholeModel, check_nms, decode, results, suppress, take, top, wide_enough


class DenseDetector(WholeModel):
    """RetinaNet, ATSS, FCOS, RTMDet, GFL, SSD and others with their way of predicting."""

    outputs = ("boxes", "scores", "labels")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        check_exportable(model.bbox_head)
        check_nms(model.bbox_head.test_cfg, model.bbox_head)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images ``(B, 3, H, W)`` to ``(B, n, 4)``, ``(B, n)`` and ``(B, n)``."""
        head = self.model.bbox_head
        maps = head(self.model.extract_feat(self.padded(image)))
        boxes, scores, labels = candidates(head, maps, image.shape[2:])
        cfg = head.test_cfg
        scores = torch.where(wide_enough(boxes, cfg), scores, NONE)
        scores, index = suppress(boxes, scores, labels, cfg["nms"], cfg["max_per_img"])
        return results(take(boxes, index), scores, labels.gather(1, index))


def check_exportable(head: Any) -> None:
    """Refuse a head that predicts in a way of its own.

    Raises:
        ValueError: names the head.
    """
    from mmdet.models.dense_heads import GFLHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    single = getattr(type(head), "_predict_by_feat_single", None)
    known = (BaseDenseHead._predict_by_feat_single, GFLHead._predict_by_feat_single)
    if (
        single not in known
        or type(head).predict_by_feat is not BaseDenseHead.predict_by_feat
        or type(head)._bbox_post_process is not BaseDenseHead._bbox_post_process
        or getattr(head.loss_cls, "custom_cls_channels", False)
    ):
        raise ValueError(f"{type(head).__name__} predicts in a way of its own")


def propose(head: Any, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Regions of mmdet's ``RPNHead``: ``(B, n, 4)`` and their scores ``(B, n)``.

    Args:
        head: the region proposal network.
        maps: of the neck.
        size: height and width of the images.
    """
    cfg = head.test_cfg
    boxes, scores, _ = candidates(head, head(maps), size, {**cfg, "score_thr": NONE})
    scores = torch.where(wide_enough(boxes, cfg), scores, NONE)
    levels = torch.arange(len(head.prior_generator.strides), device=boxes.device)
    levels = levels.repeat_interleave(cfg["nms_pre"]).expand(scores.shape)
    scores, index = suppress(boxes, scores, levels, cfg["nms"], cfg["max_per_img"])
    return torch.where((scores > NONE)[..., None], take(boxes, index), 0), scores


def candidates(
    head: Any,
    maps: Sequence[Sequence[Tensor]],
    size: Sequence[int],
    cfg: Mapping | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best of each level: boxes ``(B, n, 4)``, scores and labels ``(B, n)``.

    Args:
        head: of mmdet.
        maps: what the head gives: classes, boxes and perhaps factors of the scores, by level.
        size: height and width of the images, which boxes are clipped to.
        cfg: instead of the head's ``test_cfg``.
    """
    cfg = head.test_cfg if cfg is None else cfg
    classes, deltas, *factors = maps
    levels = [
        _best(head, level, *pair, cfg)
        for level, pair in enumerate(zip(classes, deltas, strict=True))
    ]
    if factors:
        levels = [
            (scores * take(_rows(factor, 1), index).sigmoid().squeeze(-1), *rest, index)
            for (scores, *rest, index), factor in zip(levels, factors[0], strict=True)
        ]
        # A factor must not make boxes out of none.
        levels = [(torch.where(s >= 0, s, NONE), *rest) for s, *rest in levels]
    scores, prior, delta, labels, _ = (torch.cat(x, dim=1) for x in zip(*levels, strict=True))
    return decode(head.bbox_coder, prior, delta, size), scores, labels


def _best(
    head: Any, level: int, classes: Tensor, deltas: Tensor, cfg: Mapping
) -> tuple[Tensor, ...]:
    """Scores, priors, deltas, labels and indices of a level's best boxes."""
    logits = _rows(classes, head.cls_out_channels)
    scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]
    count = scores.shape[-1]
    flat = scores.flatten(1)
    flat = torch.where(flat > cfg.get("score_thr", 0), flat, NONE)
    if cfg.get("nms_pre", -1) > 0:
        flat, index = top(flat, cfg["nms_pre"])
    else:  # all of them
        index = torch.arange(flat.shape[1], device=flat.device).expand(flat.shape)
    prior_index = index // count
    priors = _priors(head.prior_generator, level, classes)
    if hasattr(head, "integral"):  # GFL: distances in units of the stride
        shares = _rows(deltas, 4 * (head.reg_max + 1)).unflatten(-1, (4, -1)).softmax(-1)
        # Not head.integral, whose type_as has no name of its own in ONNX; no product of matrices,
        # which OpenVINO fails to join with the stride.
        rows = (shares * head.integral.project).sum(-1) * head.prior_generator.strides[level][0]
        priors = head.anchor_center(priors)
    else:
        rows = _rows(deltas, head.bbox_coder.encode_size)
    return flat, priors[prior_index], take(rows, prior_index), index % count, prior_index


def _rows(x: Tensor, channels: int) -> Tensor:
    """A map ``(B, priors * channels, H, W)`` as ``(B, H * W * priors, channels)``."""
    return x.flatten(2).transpose(1, 2).reshape(x.shape[0], -1, channels)


def _priors(generator: nn.Module, level: int, x: Tensor) -> Tensor:
    """Anchors or points of a level's map, ``(H * W * priors, 4 or 2)``, in mmdet's order."""
    height, width = x.shape[-2:]
    stride_x, stride_y = generator.strides[level]
    anchored = hasattr(generator, "base_anchors")
    offset = 0 if anchored else generator.offset
    right = ((torch.arange(width, device=x.device) + offset) * stride_x).repeat(height)
    down = (torch.arange(height, device=x.device) + offset) * stride_y
    down = down[:, None].repeat(1, width).reshape(-1)
    if not anchored:
        return torch.stack((right, down), dim=-1).to(x)
    anchors = generator.base_anchors[level].to(x)
    shifts = torch.stack((right, down, right, down), dim=-1).to(x)
    # Nothing is broadcast: a map of one pixel, which that takes for another case, is none here.
    return shifts.repeat(1, len(anchors)).reshape(-1, 4) + anchors.repeat(height * width, 1)
