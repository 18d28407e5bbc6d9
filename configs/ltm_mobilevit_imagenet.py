# ImageNet-1k classification, LTM-MobileViT-S, 256 x 256.
#
#     python tools/train.py configs/ltm_mobilevit_imagenet.py
#
# Needs mmpretrain (pip install 'ltm_mm[mmpretrain]') and ImageNet in data/imagenet/
# (train/, val/). MobileViT's images are not normalised. MobileViT-XS:
# --cfg-options model.backbone.arch=xs model.head.in_channels=384
# The schedule (mmpretrain's for MobileViT) is for 8 GPUs x 128 images. Not trained here: no
# result is claimed for it.
_base_ = "mmpretrain::mobilevit/mobilevit-small_8xb128_in1k.py"

model = dict(
    backbone=dict(
        _delete_=True, type="ltm_mm.LTMMobileViT", arch="s", keep="paper", out_indices=(4,)
    ),
)
