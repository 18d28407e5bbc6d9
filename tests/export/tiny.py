"""Detectors and segmentors of mmdet and mmseg, with tiny parts and weights that find boxes."""

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import ltm_mm  # noqa: F401
from ltm_mm.engine.config import load_config
from tests.models.contract import randomise

WIDTH = 16
CLASSES = 5
CHANNELS = [16, 32, 64, 128]


def build(model: dict, scope: str = "mmdet", keep: object = None, stages: int = 4) -> nn.Module:
    """Build a model of a config's dict with LTM-Swin in it, in eval mode."""
    init_default_scope(scope)
    torch.manual_seed(0)
    wanted = len(model.get("neck", {}).get("in_channels", CHANNELS[:stages]))
    model["backbone"] = dict(
        type="ltm_mm.LTMSwin",
        embed_dims=CHANNELS[0],
        depths=(1, 1, 2, 1)[:stages],
        num_heads=(1, 2, 4, 8)[:stages],
        strides=(4, 2, 2, 2)[:stages],
        drop_path_rate=0.0,
        keep=keep,
        out_indices=tuple(range(stages - wanted, stages)),
    )
    built = randomise(MODELS.build(model))
    built.eval()
    return built


def two_stage(base: str, keep: object = None, agnostic: bool = False) -> nn.Module:
    """Faster, Mask or Cascade R-CNN."""
    model = load_config(f"mmdet::_base_/models/{base}.py").model
    model.neck.update(in_channels=CHANNELS, out_channels=WIDTH)
    model.rpn_head.update(in_channels=WIDTH, feat_channels=WIDTH)
    roi = model.roi_head
    heads = roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]
    roi.bbox_roi_extractor.out_channels = WIDTH
    for head in heads:
        head.update(in_channels=WIDTH, fc_out_channels=32, num_classes=CLASSES)
        if agnostic:
            head.reg_class_agnostic = True
    if "mask_head" in roi:
        roi.mask_roi_extractor.out_channels = WIDTH
        roi.mask_head.update(
            num_convs=1, in_channels=WIDTH, conv_out_channels=8, num_classes=CLASSES
        )
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=60)
    model.test_cfg.rcnn.update(max_per_img=30)
    built = build(model, keep=keep)
    for name, parameter in built.named_parameters():
        if name.endswith(("fc_reg.weight", "rpn_reg.weight")):
            parameter.data *= 0.2  # boxes that move by their size, step by step, carry rounding on
    return built


def dense(base: str, keep: object = None, few: bool = False) -> nn.Module:
    """A one-stage detector of mmdet's config, narrow, and with three levels if they are few."""
    model = load_config(f"mmdet::{base}").model
    neck = model.neck
    if isinstance(neck, list):
        neck = neck[0]
    neck.update(in_channels=CHANNELS[4 - len(neck.in_channels) :], out_channels=WIDTH)
    if model.neck.type == "CSPNeXtPAFPN":
        model.neck.num_csp_blocks = 1
    head = model.bbox_head
    head.update(in_channels=WIDTH, feat_channels=WIDTH, num_classes=CLASSES)
    if few:
        neck.update(in_channels=CHANNELS[:2], num_outs=3, start_level=0)
        head.anchor_generator.strides = [4, 8, 16]
    if "stacked_convs" in head:
        head.stacked_convs = 1
    for part in (neck, head):
        norm = part.get("norm_cfg")
        if norm and norm.type != "GN":
            part.norm_cfg = dict(type="BN")
    if head.type in ("ATSSHead", "FCOSHead", "GFLHead"):
        head.norm_cfg = dict(type="GN", num_groups=4)
    model.test_cfg.update(nms_pre=100, max_per_img=30, score_thr=0.05)
    model.pop("init_cfg", None)
    built = build(model, keep=keep, stages=2 if few else 4)
    for name, parameter in built.bbox_head.named_parameters():
        if "cls" in name and name.endswith("weight"):
            parameter.data *= 0.3  # scores near 1 are equal, and equal ones have no order
    return built


def ssd(keep: object = None) -> nn.Module:
    """SSDLite, whose scores are a softmax."""
    model = load_config("configs/ltm_mobilevit_ssdlite_shapes.py").model
    channels = [*CHANNELS[1:], 32]
    model.neck.update(in_channels=channels[:3], out_channels=channels)
    model.bbox_head.update(in_channels=channels, num_classes=CLASSES)
    model.test_cfg.update(nms_pre=100, max_per_img=30)
    return build(model, keep=keep)


def detr(base: str, keep: object = None, width: int = 2 * WIDTH, **options: object) -> nn.Module:
    """DINO or Deformable DETR with one layer each and few queries."""
    model = load_config(f"mmdet::{base}").model
    model.update(num_queries=20, **options)
    model.neck.update(in_channels=CHANNELS[1:], out_channels=width)
    model.neck.norm_cfg = dict(type="GN", num_groups=4)
    model.positional_encoding.num_feats = width // 2
    for part in (model.encoder, model.decoder):
        part.num_layers = 1
        layer = part.layer_cfg
        for key in ("self_attn_cfg", "cross_attn_cfg"):
            if key in layer:
                layer[key].embed_dims = width
        layer.ffn_cfg.update(embed_dims=width, feedforward_channels=width)
    model.bbox_head.update(num_classes=CLASSES, embed_dims=width)
    model.test_cfg.max_per_img = 15
    built = build(model, keep=keep)
    nn.init.normal_(built.level_embed)  # mmdet leaves it as the memory was
    return built


def mask_queries(base: str, keep: object = None, scope: str = "mmdet") -> nn.Module:
    """Mask2Former or MaskFormer with one layer each and few queries."""
    model = load_config(f"{scope}::{base}").model
    width = 2 * WIDTH
    head = model.panoptic_head if scope == "mmdet" else model.decode_head
    head.update(in_channels=CHANNELS, feat_channels=width, out_channels=width, num_queries=10)
    decoder = head.pixel_decoder
    decoder.norm_cfg = dict(type="GN", num_groups=4)
    position = "positional_encoding"
    if "encoder" in decoder and "self_attn_cfg" in decoder.encoder.layer_cfg:
        decoder.encoder.num_layers = 1
        layer = decoder.encoder.layer_cfg
        layer.self_attn_cfg.embed_dims = width
        layer.ffn_cfg.update(embed_dims=width, feedforward_channels=width)
        decoder[position].num_feats = WIDTH
    head[position].num_feats = WIDTH
    head.transformer_decoder.num_layers = 2
    layer = head.transformer_decoder.layer_cfg
    for key in ("self_attn_cfg", "cross_attn_cfg"):
        layer[key].embed_dims = width
    layer.ffn_cfg.update(embed_dims=width, feedforward_channels=width)
    if scope == "mmdet":
        head.update(num_things_classes=CLASSES, num_stuff_classes=0)
        head.loss_cls.class_weight = [1.0] * CLASSES + [0.1]
        model.panoptic_fusion_head.update(num_things_classes=CLASSES, num_stuff_classes=0)
        model.test_cfg.update(panoptic_on=False, instance_on=True, max_per_image=15)
        model.data_preprocessor.pop("batch_augments", None)
    else:
        head.num_classes = CLASSES
        head.loss_cls.class_weight = [1.0] * CLASSES + [0.1]
        model.data_preprocessor.pop("size", None)
    return build(model, scope, keep=keep)


def encoder_decoder(base: str, keep: object = None, stages: int = 4) -> nn.Module:
    """UPerNet, FPN or FCN of mmseg's config, with a narrow head."""
    model = load_config(f"mmseg::_base_/models/{base}.py").model
    for key in ("auxiliary_head", "pretrained"):
        model.pop(key)
    head = model.decode_head
    if "neck" in model:
        model.neck.update(in_channels=CHANNELS, out_channels=WIDTH)
        head.in_channels = [WIDTH] * 4
    else:
        several = isinstance(head.in_index, list)
        head.in_index = head.in_index if several else stages - 1
        head.in_channels = CHANNELS if several else CHANNELS[stages - 1]
    head.update(channels=WIDTH, num_classes=CLASSES, norm_cfg=dict(type="GN", num_groups=4))
    return build(model, "mmseg", keep, stages)


DETECTORS = {
    "faster": lambda keep: two_stage("faster-rcnn_r50_fpn", keep),
    "mask": lambda keep: two_stage("mask-rcnn_r50_fpn", keep),
    "mask-agnostic": lambda keep: two_stage("mask-rcnn_r50_fpn", keep, agnostic=True),
    "cascade": lambda keep: two_stage("cascade-mask-rcnn_r50_fpn", keep),
    "retinanet": lambda keep: dense("_base_/models/retinanet_r50_fpn.py", keep),
    "atss": lambda keep: dense("atss/atss_r50_fpn_1x_coco.py", keep),
    "fcos": lambda keep: dense("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", keep),
    "gfl": lambda keep: dense("gfl/gfl_r50_fpn_1x_coco.py", keep),
    "rtmdet": lambda keep: dense("rtmdet/rtmdet_tiny_8xb32-300e_coco.py", keep),
    "ssd": ssd,
    "dino": lambda keep: detr("dino/dino-4scale_r50_8xb2-12e_coco.py", keep),
    "deformable-detr": lambda keep: detr(
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py", keep
    ),
    "deformable-detr-two-stage": lambda keep: detr(
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
        keep,
        width=256,  # fixed by mmdet's encoding of proposals
        as_two_stage=True,
        with_box_refine=True,
    ),
    "mask2former": lambda keep: mask_queries(
        "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py", keep
    ),
    "maskformer": lambda keep: mask_queries(
        "maskformer/maskformer_swin-l-p4-w12_64xb1-ms-300e_coco.py", keep
    ),
}

SEGMENTORS = {
    "upernet": lambda keep: encoder_decoder("upernet_swin", keep),
    "fpn": lambda keep: encoder_decoder("fpn_r50", keep),
    "fcn": lambda keep: encoder_decoder("fcn_r50-d8", keep),
    "maskformer": lambda keep: mask_queries(
        "maskformer/maskformer_swin-t_upernet_8xb2-160k_ade20k-512x512.py", keep, "mmseg"
    ),
    "mask2former": lambda keep: mask_queries(
        "mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py", keep, "mmseg"
    ),
}
