# UPerNet, LTM-ViT-B/16, ADE20K, 512 x 512, 160k iterations.
#
#     python tools/train.py configs/ltm_vit_upernet.py
#
# Needs ADE20K in data/ade/ADEChallengeData2016/ (images/, annotations/). From scratch unless
# you give ImageNet weights, timm's or of a run of ltm_vit_imagenet.py:
#     --cfg-options model.backbone.init_cfg.type=Pretrained \
#         model.backbone.init_cfg.checkpoint=vit_base_patch16_224.safetensors
# Maps of four blocks go through mmseg's MultiLevelNeck, which resizes them to four strides.
# The schedule is for 8 GPUs x 2 images. Not trained here: no result is claimed for it.
_base_ = "mmseg::vit/vit_vit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512.py"

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="ltm_mm.LTMViT",
        arch="base",
        keep="balanced",
        img_size=512,
        out_indices=(2, 5, 8, 11),
        final_norm=True,
        drop_path_rate=0.1,
        init_cfg=None,
    ),
)
