# Faster R-CNN, LTM-Swin-T, COCO, 1x schedule: boxes, no masks.
#
#     python tools/train.py configs/ltm_swin_fasterrcnn.py
#
# mmdet's Faster R-CNN with the backbone and the optimizer of its Swin configs. Data and weights as
# in ltm_swin_maskrcnn.py; not trained here either.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"

checkpoint = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth"
model = dict(
    backbone=dict(
        _delete_=True,
        type="ltm_mm.LTMSwin",
        arch="tiny",
        keep="balanced",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            "absolute_pos_embed": dict(decay_mult=0.0),
            "relative_position_bias_table": dict(decay_mult=0.0),
            "norm": dict(decay_mult=0.0),
        }
    ),
)
