# UPerNet, LTM-ViT-B/16, ADE20K, 512 x 512, 160k iterations.
#
#     python tools/train.py configs/ltm_vit_upernet.py
#
# Needs ADE20K in data/ade/ADEChallengeData2016/ (images/, annotations/). From scratch unless
# you give ImageNet weights, timm's or from a run of ltm_vit_imagenet.py:
#     --cfg-options model.backbone.init_cfg.type=Pretrained \
#         model.backbone.init_cfg.checkpoint=vit_base_patch16_224.safetensors
# Maps of four blocks go through mmseg's MultiLevelNeck, which resizes them to four strides.
# The schedule is for 8 GPUs x 2 images. Not trained here: no result is claimed for it.
_base_ = [
    "_base_/models/upernet.py",
    "_base_/datasets/ade20k.py",
    "_base_/schedules/adamw_160k.py",
    "_base_/mmseg_runtime.py",
]

model = dict(
    backbone=dict(
        type="ltm_mm.LTMViT",
        arch="base",
        keep="balanced",
        img_size=512,
        out_indices=(2, 5, 8, 11),
        final_norm=True,
        drop_path_rate=0.1,
    ),
    neck=dict(
        type="MultiLevelNeck",
        in_channels=[768, 768, 768, 768],
        out_channels=768,
        scales=[4, 2, 1, 0.5],
    ),
    decode_head=dict(in_channels=[768, 768, 768, 768]),
    auxiliary_head=dict(in_channels=768, in_index=3),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "pos_embed": dict(decay_mult=0.0),
            "cls_token": dict(decay_mult=0.0),
        }
    )
)
