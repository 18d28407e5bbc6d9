# ImageNet-1k classification, LTM-ViT-S/16, 224 x 224, DeiT's recipe of 300 epochs.
#
#     python tools/train.py configs/ltm_vit_imagenet.py
#
# Needs mmpretrain (pip install 'ltm_mm[mmpretrain]') and ImageNet in data/imagenet/
# (train/, val/). The classifier reads the mean of all patches, as dense tasks do; DeiT's
# reads the class token. ViT-B: --cfg-options model.backbone.arch=base model.head.in_channels=768
# The schedule is for 4 GPUs x 256 images. Not trained here: no result is claimed for it.
_base_ = "mmpretrain::deit/deit-small_4xb256_in1k.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ltm_mm.LTMViT",
        arch="small",
        keep="paper",
        drop_path_rate=0.1,
        out_indices=(11,),
        final_norm=True,
    ),
    neck=dict(_delete_=True, type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02)),
    init_cfg=None,  # the backbone draws its own weights
)
