# ImageNet-1k classification, LTM-EfficientViT-B1 (MIT Han Lab), 224 x 224, 300 epochs.
#
#     python tools/train.py configs/ltm_efficientvit_imagenet.py
#
# Needs mmpretrain (pip install 'ltm_mm[mmpretrain]') and ImageNet in data/imagenet/
# (train/, val/). Swin's recipe: AdamW, mix-up, RandAugment. The head has one hidden layer after
# the pooling; the original's first layer, before the pooling, is left out (it is in
# ltm_efficientvit_b1 of ltm_mm.timm_models).
# The schedule is for 16 GPUs x 64 images. Not trained here: no result is claimed for it.
_base_ = "mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ltm_mm.LTMEfficientViT",
        arch="b1",
        keep="paper",
        out_indices=(3,),
    ),
    head=dict(
        type="StackedLinearClsHead",
        in_channels=256,
        mid_channels=[1600],
        act_cfg=dict(type="HSwish"),
        init_cfg=dict(_delete_=True, type="TruncNormal", layer="Linear", std=0.02),
    ),
    init_cfg=None,  # the backbone draws its own weights
)
