# Mask R-CNN with heads narrow enough for two cores: on a CPU the heads, not the backbone,
# take most of the time. Anchors start at 16 pixels because the shapes are small.
_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"

width = 64
num_classes = 6
norm_cfg = dict(type="GN", num_groups=8)
model = dict(
    backbone=dict(_delete_=True),
    neck=dict(in_channels=None, out_channels=width, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2), out_channels=width),
        bbox_head=dict(
            in_channels=width,
            fc_out_channels=256,
            num_classes=num_classes,
            reg_class_agnostic=True,
        ),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=1), out_channels=width),
        mask_head=dict(
            num_convs=1,
            in_channels=width,
            conv_out_channels=32,
            num_classes=num_classes,
            class_agnostic=True,
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=48, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
