# UPerNet, LTM-EfficientViT-B1 (MIT Han Lab's EfficientViT), ADE20K, 512 x 512, 160k iterations.
#
#     python tools/train.py configs/ltm_efficientvit_upernet.py
#
# Needs ADE20K in data/ade/ADEChallengeData2016/ (images/, annotations/). From scratch unless
# you give ImageNet weights, timm's or mit-han-lab's:
#     --cfg-options model.backbone.init_cfg.type=Pretrained \
#         model.backbone.init_cfg.checkpoint=efficientvit_b1.pth
# The schedule is for 8 GPUs x 2 images. Not trained here: no result is claimed for it.
_base_ = [
    "_base_/models/upernet.py",
    "_base_/datasets/ade20k.py",
    "_base_/schedules/adamw_160k.py",
    "_base_/mmseg_runtime.py",
]

model = dict(
    backbone=dict(type="ltm_mm.LTMEfficientViT", arch="b1", keep="balanced"),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128),
)
