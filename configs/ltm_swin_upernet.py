# UPerNet, LTM-Swin-T, ADE20K, 512 x 512, 160k iterations.
#
#     python tools/train.py configs/ltm_swin_upernet.py
#
# Needs ADE20K in data/ade/ADEChallengeData2016/ (images/, annotations/) and, for the ImageNet
# weights of the backbone, the internet once; to use a local file:
#     --cfg-options model.backbone.init_cfg.checkpoint=swin_tiny_patch4_window7_224.pth
# to train from scratch: --cfg-options model.backbone.init_cfg=None
# The schedule is for 8 GPUs x 2 images. Not trained here: no result is claimed for it.
_base_ = [
    "_base_/models/upernet.py",
    "_base_/datasets/ade20k.py",
    "_base_/schedules/adamw_160k.py",
    "_base_/mmseg_runtime.py",
]

checkpoint = "https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/swin/swin_tiny_patch4_window7_224_20220317-1cdeb081.pth"
model = dict(
    backbone=dict(
        type="ltm_mm.LTMSwin",
        arch="tiny",
        keep="balanced",
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
