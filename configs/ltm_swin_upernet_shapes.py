# UPerNet, narrow LTM-Swin, built-in shapes, from scratch:
#
#     python tools/train.py configs/ltm_swin_upernet_shapes.py
_base_ = [
    "_base_/models/upernet_narrow.py",
    "_base_/datasets/shapes_semantic.py",
    "_base_/schedules/shapes_iters.py",
    "_base_/mmseg_short_runtime.py",
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
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128),
)
