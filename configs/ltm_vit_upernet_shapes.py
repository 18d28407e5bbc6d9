# UPerNet, narrow LTM-ViT, built-in shapes, from scratch:
#
#     python tools/train.py configs/ltm_vit_upernet_shapes.py
#
# Patches of 8 pixels; mmseg's MultiLevelNeck makes strides 2, 4, 8 and 16 of four blocks' maps.
_base_ = [
    "_base_/models/upernet_narrow.py",
    "_base_/datasets/shapes_semantic.py",
    "_base_/schedules/shapes_iters.py",
    "_base_/mmseg_short_runtime.py",
]

width = 96
model = dict(
    backbone=dict(
        type="ltm_mm.LTMViT",
        arch="tiny",
        embed_dims=width,
        num_layers=8,
        num_heads=3,
        patch_size=8,
        img_size=160,
        out_indices=(1, 3, 5, 7),
        final_norm=True,
        keep="balanced",
    ),
    neck=dict(
        type="MultiLevelNeck",
        in_channels=[width] * 4,
        out_channels=width,
        scales=[2, 1, 0.5, 0.25],
    ),
    decode_head=dict(in_channels=[width] * 4),
    auxiliary_head=dict(in_channels=width),
)
