"""Whole models as networks of one tensor, one file per kind of head."""

from torch import nn

from .common import WholeModel
from .dense import DenseDetector
from .query import DetrDetector, QueryInstances, QuerySegmentor
from .segmentors import Logits
from .two_stage import TwoStageDetector

# Printed by `tools/export.py --list`; tests/export/test_whole.py compares each, in every format.
SUPPORTED = {
    "RetinaNet, ATSS, FCOS, GFL, RTMDet, SSD, and mmdet's other dense heads that predict as the "
    "base class does": "boxes, scores, labels",
    "Faster R-CNN, Cascade R-CNN": "boxes, scores, labels",
    "Mask R-CNN, Cascade Mask R-CNN": "boxes, scores, labels, masks (in a grid over each box)",
    "DINO, Deformable DETR": "boxes, scores, labels",
    "Mask2Former and MaskFormer of mmdet, instances": "boxes, scores, labels, masks (logits on a "
    "coarse map of the image)",
    "Mask2Former and MaskFormer of mmseg": "logits (of the image's size)",
    "mmseg's EncoderDecoder (UPerNet, FPN, FCN, ...)": "logits (of the image's size)",
}

__all__ = ["SUPPORTED", "WholeModel", "whole_model"]


def whole_model(model: nn.Module) -> WholeModel:
    """What of a detector or segmentor can be exported.

    Args:
        model: of mmdet or mmseg.

    Raises:
        ValueError: if it predicts in a way that no adapter here follows; says which part.
    """
    name = type(model).__name__
    if isinstance(getattr(model, "decode_head", None), nn.Module):
        queries = hasattr(model.decode_head, "query_feat") or hasattr(
            model.decode_head, "mask_embed"
        )
        return QuerySegmentor(model) if queries else Logits(model)
    if hasattr(model, "roi_head") and hasattr(model, "rpn_head"):
        return TwoStageDetector(model)
    if hasattr(model, "panoptic_fusion_head") and hasattr(model.panoptic_head, "mask_embed"):
        return QueryInstances(model)
    if hasattr(model, "positional_encoding"):
        return DetrDetector(model)
    if hasattr(model, "bbox_head") and not hasattr(model, "mask_head"):
        return DenseDetector(model)
    raise ValueError(f"{name} is of a kind that cannot be exported whole")
