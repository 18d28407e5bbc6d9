"""Faster, Mask and Cascade R-CNN (follows mmdet's roi heads in what is kept)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from torch import Tensor, nn

from .common import NONE, WholeModel, check_nms, decode, results, suppress, take
from .dense import propose


class TwoStageDetector(WholeModel):
    """Region proposals, their boxes in one or several steps, and masks if there are any.

    Raises:
        ValueError: for parts that predict in a way of their own.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        _check(model)
        self.outputs = ("boxes", "scores", "labels")
        if model.roi_head.with_mask:
            self.outputs += ("masks",)
            self.metadata["masks"] = "box"
            self.metadata["mask_threshold"] = model.roi_head.test_cfg["mask_thr_binary"]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detections of normalised images.

        Args:
            image: ``(B, 3, H, W)``.

        Returns:
            Boxes ``(B, n, 4)``, scores and labels ``(B, n)``; with masks also ``(B, n, h, w)``,
            shares of foreground in a grid over each box.
        """
        with _portable_extractors():
            return self._detections(image)

    def _detections(self, image: Tensor) -> tuple[Tensor, ...]:
        size, head = image.shape[2:], self.model.roi_head
        maps = self.model.extract_feat(self.padded(image))
        regions, region_scores = propose(self.model.rpn_head, maps, size)
        boxes, classes = self._refined(maps, regions, size)
        classes = torch.where(region_scores[..., None] > NONE, classes, NONE)
        cfg = head.test_cfg
        scores = torch.where(classes > cfg["score_thr"], classes, NONE).flatten(1)
        count = classes.shape[2]
        boxes = boxes.expand(-1, -1, count, -1).flatten(1, 2)
        labels = torch.arange(count, device=boxes.device).repeat(regions.shape[1])
        labels = labels.expand(scores.shape)
        scores, index = suppress(boxes, scores, labels, cfg["nms"], cfg["max_per_img"])
        detections = results(take(boxes, index), scores, labels.gather(1, index))
        if not head.with_mask:
            return detections
        return (*detections, self._masks(maps, detections[0], detections[2]))

    def _refined(
        self, maps: Sequence[Tensor], regions: Tensor, size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Boxes ``(B, n, classes or 1, 4)`` and scores ``(B, n, classes)`` of regions."""
        batch, number = regions.shape[:2]
        stages, logits = _stages(self.model.roi_head), []
        for index, (extractor, head) in enumerate(stages):
            features = extractor(maps, _rois(regions))
            classes, deltas = head(features)
            classes = classes.reshape(batch, number, -1)
            deltas = deltas.reshape(batch, number, -1, 4)
            logits.append(classes)
            if index == len(stages) - 1:
                priors = regions[:, :, None].expand(deltas.shape)
                boxes = decode(head.bbox_coder, priors, deltas, size)
                return boxes, (sum(logits) / len(logits)).softmax(-1)[..., :-1]
            if not head.reg_class_agnostic:
                best = classes[..., :-1].argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
                deltas = deltas.gather(2, best)
            regions = decode(head.bbox_coder, regions, deltas[:, :, 0], size)
        raise AssertionError("a roi head has a stage")

    def _masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        head = self.model.roi_head
        extractors, heads = head.mask_roi_extractor, head.mask_head
        if not isinstance(heads, nn.ModuleList):
            extractors, heads = [extractors], [heads]
        shares = [
            mask_head(extractor(maps, _rois(boxes))).sigmoid()
            for extractor, mask_head in zip(extractors, heads, strict=True)
        ]
        masks = sum(shares) / len(shares)  # (B * n, classes, h, w)
        if masks.shape[1] > 1:
            index = labels.clamp(min=0).reshape(-1, 1, 1, 1).expand(-1, 1, *masks.shape[2:])
            masks = masks.gather(1, index)
        return masks.reshape(*labels.shape, *masks.shape[2:])


def _rois(boxes: Tensor) -> Tensor:
    """Boxes ``(B, n, 4)`` as ``(B * n, 5)``, the number of the image before each."""
    batch, number = boxes.shape[:2]
    image = torch.arange(batch, device=boxes.device).to(boxes)[:, None].expand(-1, number)
    return torch.cat((image[..., None], boxes), dim=2).reshape(-1, 5)


@contextmanager
def _portable_extractors() -> Iterator[None]:
    """While a model is run, its features of boxes come from torchvision's RoIAlign."""
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    with patch.object(SingleRoIExtractor, "forward", _extract):
        yield


def _extract(self: nn.Module, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
    """``forward`` of mmdet's ``SingleRoIExtractor``: ``(n, C, h, w)`` of ``(n, 5)``."""
    layers = self.roi_layers
    if len(layers) == 1:
        return _align(layers[0], maps[0], rois)
    levels = self.map_roi_levels(rois, len(layers))
    aligned = torch.cat(
        [
            _align(layer, maps[level], rois[(levels == level).nonzero().squeeze(1)])
            for level, layer in enumerate(layers)
        ]
    )
    return aligned[_sorted_ranks(levels, len(layers))]  # back into the order of the boxes


def _sorted_ranks(levels: Tensor, count: int) -> Tensor:
    """Where each of ``(n,)`` stands when they are sorted by level ``0..count - 1``, stably."""
    member = (levels[:, None] == torch.arange(count, device=levels.device)).long()  # (n, count)
    size = member.sum(0)
    return (member * (member.cumsum(0) - 1 + size.cumsum(0) - size)).sum(1)


def _align(layer: Any, x: Tensor, rois: Tensor) -> Tensor:
    return torchvision.ops.roi_align(
        x, rois, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
    )


def _stages(head: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Extractor and box head of each step."""
    if isinstance(head.bbox_head, nn.ModuleList):
        return list(zip(head.bbox_roi_extractor, head.bbox_head, strict=True))
    return [(head.bbox_roi_extractor, head.bbox_head)]


def _check(model: Any) -> None:
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    head = model.roi_head
    known = {type(model.rpn_head): (RPNHead,), type(head): (StandardRoIHead, CascadeRoIHead)}
    unknown = [part for part, allowed in known.items() if part not in allowed]
    if unknown:
        raise ValueError(f"{unknown[0].__name__} predicts in a way of its own")
    masks = head.mask_head if head.with_mask else []
    masks = masks if isinstance(masks, nn.ModuleList) or not masks else [masks]
    extractors = [extractor for extractor, _ in _stages(head)]
    checks = [(e, SingleRoIExtractor, "forward") for e in extractors]
    checks += [(b, BBoxHead, "_predict_by_feat_single") for _, b in _stages(head)]
    checks += [(m, FCNMaskHead, "_predict_by_feat_single") for m in masks]
    for part, base, method in checks:
        implementation = getattr(type(part), method, None)
        if implementation is not getattr(base, method) or getattr(part, "custom_activation", False):
            raise ValueError(f"{type(part).__name__} predicts in a way of its own")
    if any(layer.pool_mode != "avg" for e in extractors for layer in e.roi_layers):
        raise ValueError("RoIAlign can be exported with pool_mode='avg' only")
    if head.with_shared_head:
        raise ValueError("roi heads with a shared_head cannot be exported")
    check_nms(model.rpn_head.test_cfg, model.rpn_head, ("nms_pre", "max_per_img"))
    check_nms(head.test_cfg, head)
