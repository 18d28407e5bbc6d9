# Mask R-CNN, narrow LTM-ViT with ViTDet's simple pyramid, built-in shapes, from scratch:
#
#     python tools/train.py configs/ltm_vit_maskrcnn_shapes.py
#
# Patches of 8 pixels, so the pyramid has strides 2, 4, 8 and 16.
_base_ = [
    "_base_/models/mask-rcnn_narrow.py",
    "_base_/datasets/shapes_instance.py",
    "_base_/schedules/shapes_epochs.py",
    "_base_/mmdet_short_runtime.py",
]

width = 64
strides = [2, 4, 8, 16]
model = dict(
    backbone=dict(
        type="ltm_mm.LTMViT",
        arch="tiny",
        embed_dims=96,
        num_layers=6,
        num_heads=3,
        patch_size=8,
        img_size=160,
        simple_pyramid=True,
        keep="balanced",
    ),
    neck=dict(
        _delete_=True,
        type="ChannelMapper",
        in_channels=[24, 48, 96, 96],
        out_channels=width,
        kernel_size=1,
        norm_cfg=dict(type="GN", num_groups=8),
        act_cfg=None,
    ),
    rpn_head=dict(anchor_generator=dict(scales=[8], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=strides),
        mask_roi_extractor=dict(featmap_strides=strides),
    ),
)
