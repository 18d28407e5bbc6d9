# ImageNet-1k classification, LTM-Swin-T, 224 x 224, 300 epochs: the weights that dense tasks
# start from, trained with merging.
#
#     python tools/train.py configs/ltm_swin_imagenet.py
#
# Needs mmpretrain (pip install 'ltm_mm[mmpretrain]') and ImageNet in data/imagenet/
# (train/, val/). A detector or segmentor takes the result as init_cfg; for dense tasks train
# with the plan that you will use, e.g. --ltm balanced.
# Swin-B: --cfg-options model.backbone.arch=base model.head.in_channels=1024
# The schedule is for 16 GPUs x 64 images. Not trained here: no result is claimed for it.
_base_ = "mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ltm_mm.LTMSwin",
        arch="tiny",
        keep="paper",
        drop_path_rate=0.2,
        out_indices=(3,),
    ),
    head=dict(init_cfg=dict(_delete_=True, type="TruncNormal", layer="Linear", std=0.02)),
    init_cfg=None,  # the backbone draws its own weights
)
