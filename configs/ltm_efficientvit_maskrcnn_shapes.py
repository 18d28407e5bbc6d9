# Mask R-CNN, LTM-EfficientViT-B0, built-in shapes, from scratch:
#
#     python tools/train.py configs/ltm_efficientvit_maskrcnn_shapes.py
_base_ = [
    "_base_/models/mask-rcnn_narrow.py",
    "_base_/datasets/shapes_instance.py",
    "_base_/schedules/shapes_epochs.py",
    "_base_/mmdet_short_runtime.py",
]

model = dict(
    backbone=dict(type="ltm_mm.LTMEfficientViT", arch="b0", keep="balanced"),
    neck=dict(in_channels=[16, 32, 64, 128]),
)
