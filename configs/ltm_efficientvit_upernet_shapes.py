# UPerNet, LTM-EfficientViT-B0, built-in shapes, from scratch:
#
#     python tools/train.py configs/ltm_efficientvit_upernet_shapes.py
_base_ = [
    "_base_/models/upernet_narrow.py",
    "_base_/datasets/shapes_semantic.py",
    "_base_/schedules/shapes_iters.py",
    "_base_/mmseg_short_runtime.py",
]

model = dict(
    backbone=dict(type="ltm_mm.LTMEfficientViT", arch="b0", keep="balanced"),
    decode_head=dict(in_channels=[16, 32, 64, 128]),
    auxiliary_head=dict(in_channels=64),
)
