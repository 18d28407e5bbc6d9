"""DINO, Deformable DETR, Mask2Former and MaskFormer (follows mmdet in what is kept)."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import WholeModel, clip, take
from .deformable import centres, encode, sizes_in_lists
from .segmentors import test_divisor


class DetrDetector(WholeModel):
    """Deformable DETR, with or without refined boxes and two stages, and DINO.

    Raises:
        ValueError: for detectors derived from these.
    """

    outputs = ("boxes", "scores", "labels")

    def __init__(self, model: Any) -> None:
        from mmdet.models.detectors import DINO, DeformableDETR

        if type(model) not in (DINO, DeformableDETR):
            raise ValueError(f"{type(model).__name__} predicts in a way of its own")
        super().__init__(model)
        if self.divisor > 1:
            raise ValueError(
                f"{type(model).__name__} masks the padding of pad_size_divisor={self.divisor}: "
                "only pad_size_divisor=1 can be exported"
            )
        if getattr(model, "as_two_stage", False):  # chooses among pixels, of which it needs enough
            self.smallest = _side(model.num_queries, model.num_feature_levels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images ``(B, 3, H, W)`` to ``(B, n, 4)``, ``(B, n)`` and ``(B, n)``."""
        model, head = self.model, self.model.bbox_head
        with sizes_in_lists():
            classes, boxes = head(**self._decoded(model.extract_feat(image)))
        classes, boxes = classes[-1], boxes[-1]
        count = head.test_cfg.get("max_per_img", classes.shape[1])
        if head.loss_cls.use_sigmoid:
            scores, index = classes.sigmoid().flatten(1).topk(count)
            labels, index = index % head.num_classes, index // head.num_classes
        else:
            scores, best = classes.softmax(-1)[..., :-1].max(-1)
            scores, index = scores.topk(count)
            labels = best.gather(1, index)
        boxes = take(boxes, index)
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        boxes = torch.cat((centre - half, centre + half), dim=-1)
        height, width = image.shape[2:]
        one = boxes.new_ones(1)
        boxes = boxes * torch.cat((one * width, one * height)).repeat(2)
        return clip(boxes, (height, width)), scores, labels

    def _decoded(self, maps: Sequence[Tensor]) -> dict[str, object]:
        """What the decoder gives to the head."""
        model = self.model
        sizes = [tuple(m.shape[-2:]) for m in maps]
        position = [
            (model.positional_encoding(None, input=m) + level.reshape(1, -1, 1, 1))
            for m, level in zip(maps, model.level_embed, strict=True)
        ]
        query, position = (
            torch.cat([m.flatten(2).transpose(1, 2) for m in part], dim=1)
            for part in (maps, position)
        )
        memory = encode(model.encoder, query, position, sizes)
        with patch.object(model, "gen_encoder_output_proposals", self._proposals):
            inputs, _ = model.pre_decoder(memory=memory, memory_mask=None, spatial_shapes=sizes)
        options = dict(
            spatial_shapes=sizes,
            level_start_index=None,
            valid_ratios=memory.new_ones(memory.shape[0], len(maps), 2),
        )
        if not hasattr(model, "dn_query_generator"):
            return model.forward_decoder(**inputs, memory_mask=None, **options)
        # DINO's own asks for the number of images in a way that fixes it.
        states, references = model.decoder(
            query=inputs["query"],
            value=memory,
            key_padding_mask=None,
            self_attn_mask=None,
            reference_points=inputs["reference_points"],
            reg_branches=model.bbox_head.reg_branches,
            **options,
        )
        return dict(hidden_states=states, references=list(references))

    def _proposals(self, memory: Tensor, _: None, sizes: Sequence) -> tuple[Tensor, Tensor]:
        """``gen_encoder_output_proposals`` of mmdet, without padding."""
        boxes = []
        for level, size in enumerate(sizes):
            centers = centres(size, memory)
            boxes.append(torch.cat((centers, torch.full_like(centers, 0.05 * 2.0**level)), dim=1))
        boxes = torch.cat(boxes)
        outside = ~((boxes > 0.01) & (boxes < 0.99)).all(dim=1, keepdim=True)
        logits = torch.log(boxes / (1 - boxes)).masked_fill(outside, torch.inf)
        memory = memory.masked_fill(outside, 0)
        memory = self.model.memory_trans_norm(self.model.memory_trans_fc(memory))
        return memory, logits.expand(memory.shape[0], -1, -1)


def _side(queries: int, levels: int) -> int:
    """Side of the smallest square image whose maps, of stride 8 and more, have so many pixels."""
    side = 33
    while sum((-(-side // (8 * 2**level))) ** 2 for level in range(levels)) < queries:
        side += 1
    return side


class _Queries(WholeModel):
    """What Mask2Former and MaskFormer share."""

    def _decoded(self, head: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of classes ``(B, n, classes + 1)`` and of masks ``(B, n, h, w)``."""
        padded = self.padded(image)
        with sizes_in_lists():
            if hasattr(head, "num_transformer_decoder_layers"):
                classes, masks = head(self.model.extract_feat(padded), [])
            else:
                classes, masks = _maskformer(head, self.model.extract_feat(padded), image, padded)
        return classes[-1], masks[-1]


def _check_queries(head: Any) -> None:
    """Refuse what mmdet's two heads do not do themselves."""
    from mmdet.models.dense_heads import Mask2FormerHead, MaskFormerHead
    from mmdet.models.layers import MSDeformAttnPixelDecoder, PixelDecoder

    forwards = (Mask2FormerHead.forward, MaskFormerHead.forward)
    if type(head).forward not in forwards:
        raise ValueError(f"{type(head).__name__} predicts in a way of its own")
    if type(head.pixel_decoder) not in (MSDeformAttnPixelDecoder, PixelDecoder):
        raise ValueError(f"{type(head.pixel_decoder).__name__} cannot be exported")


def _maskformer(
    head: Any, maps: Sequence[Tensor], image: Tensor, padded: Tensor
) -> tuple[Tensor, Tensor]:
    """``forward`` of mmdet's ``MaskFormerHead``, whose decoder ignores the padding."""
    inside = F.pad(torch.zeros_like(image[:, :1]), _padding(image, padded), value=1.0)
    outside = F.interpolate(inside, maps[-1].shape[-2:], mode="nearest").squeeze(1) > 0.5
    features, memory = head.pixel_decoder(maps, None)
    position = head.decoder_pe(outside).flatten(2).transpose(1, 2)
    memory = head.decoder_input_proj(memory).flatten(2).transpose(1, 2)
    queries = head.query_embed.weight[None].repeat(memory.shape[0], 1, 1)
    decoded = head.transformer_decoder(
        query=torch.zeros_like(queries),
        key=memory,
        value=memory,
        query_pos=queries,
        key_pos=position,
        key_padding_mask=outside.flatten(1),
    )
    masks = torch.einsum("lbqc,bchw->lbqhw", head.mask_embed(decoded), features)
    return head.cls_embed(decoded), masks


def _padding(image: Tensor, padded: Tensor) -> tuple[int, int, int, int]:
    height, width = (p - i for p, i in zip(padded.shape[2:], image.shape[2:], strict=True))
    return 0, width, 0, height


class QueryInstances(_Queries):
    """Mask2Former and MaskFormer of mmdet, as far as they find instances.

    Raises:
        ValueError: for models that give a panoptic map, or predict in a way of their own.
    """

    outputs = ("boxes", "scores", "labels", "masks")

    def __init__(self, model: Any) -> None:
        _check_queries(model.panoptic_head)
        fusion = model.panoptic_fusion_head
        if not fusion.test_cfg.get("instance_on", False):
            raise ValueError(
                f"{type(model).__name__} with panoptic_on gives a panoptic map, which cannot be "
                "exported; instances can: model.test_cfg = dict(panoptic_on=False, "
                "instance_on=True, ...)"
            )
        super().__init__(model)
        self.metadata.update(masks="image", pad_divisor=self.divisor)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Instances of normalised images.

        Args:
            image: ``(B, 3, H, W)``.

        Returns:
            Boxes ``(B, n, 4)``, scores and labels ``(B, n)``, and masks ``(B, n, h, w)``:
            logits on a coarse map of the padded image, foreground above 0.
        """
        classes, masks = self._decoded(self.model.panoptic_head, image)
        fusion = self.model.panoptic_fusion_head
        scores = classes.softmax(-1)[..., :-1]
        count = fusion.test_cfg.get("max_per_image", 100)
        scores, index = scores.flatten(1).topk(count)
        labels, query = index % fusion.num_classes, index // fusion.num_classes
        shape = (-1, -1, *masks.shape[2:])
        masks = masks.gather(1, query[:, :, None, None].expand(shape))
        full = F.interpolate(
            masks, self.padded(image).shape[2:], mode="bilinear", align_corners=False
        )[..., : image.shape[2], : image.shape[3]]
        inside = full > 0
        area = inside.flatten(2).sum(2)
        sure = (full.sigmoid() * inside).flatten(2).sum(2) / (area + 1e-6)
        things = labels < fusion.num_things_classes
        scores = torch.where(things, scores * sure, 0)
        return _bounds(inside), scores, torch.where(things, labels, -1), masks


def _bounds(masks: Tensor) -> Tensor:
    """Boxes ``(B, n, 4)`` around masks ``(B, n, H, W)``, zeros around none."""
    sides = []
    for axis in (2, 3):  # columns, then rows
        there = masks.any(dim=axis)
        index = torch.arange(there.shape[2], device=masks.device).to(torch.float32)
        last = torch.where(there, index + 1, 0).amax(2)
        first = torch.where(there, index, torch.inf).amin(2)
        sides.append((torch.where(last > 0, first, 0), last))
    (left, right), (upper, lower) = sides
    return torch.stack((left, upper, right, lower), dim=2)


class QuerySegmentor(_Queries):
    """Mask2Former and MaskFormer of mmseg: logits of the image's size."""

    outputs = ("logits",)

    def __init__(self, model: Any) -> None:
        _check_queries(model.decode_head)
        super().__init__(model)
        self.divisor = test_divisor(model)
        self.metadata = dict(align_corners=False, channels_out=model.out_channels, threshold=0.0)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to ``(B, classes, H, W)``."""
        classes, masks = self._decoded(self.model.decode_head, image)
        size = self.padded(image).shape[2:]
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False).sigmoid()
        logits = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks)
        return logits[..., : image.shape[2], : image.shape[3]]
