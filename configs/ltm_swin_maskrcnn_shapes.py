# Mask R-CNN, narrow LTM-Swin, built-in shapes, from scratch:
#
#     python tools/train.py configs/ltm_swin_maskrcnn_shapes.py
_base_ = [
    "_base_/models/mask-rcnn_narrow.py",
    "_base_/datasets/shapes_instance.py",
    "_base_/schedules/shapes_epochs.py",
    "_base_/mmdet_short_runtime.py",
]

model = dict(
    backbone=dict(
        type="ltm_mm.LTMSwin",
        embed_dims=32,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.0,
        keep="balanced",
    ),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
