# SSDLite, LTM-MobileViT-S, COCO, 320 x 320, 120 epochs of five rounds each.
#
#     python tools/train.py configs/ltm_mobilevit_ssdlite.py
#
# Needs COCO 2017 in data/coco/ (annotations/, train2017/, val2017/). From scratch unless you
# give ImageNet weights, timm's or from a run of ltm_mobilevit_imagenet.py:
#     --cfg-options model.backbone.init_cfg.type=Pretrained \
#         model.backbone.init_cfg.checkpoint=mobilevit_s.safetensors
# mmdet's SSDLite with another backbone and its own head, except for a fix without which it cannot
# predict (ltm_mm/models/ssd_head.py). A pretrained MobileViT needs images that are not
# normalised: data_preprocessor.mean=[0,0,0] data_preprocessor.std=[255,255,255].
# The schedule is for 8 GPUs x 24 images. Not trained here: no result is claimed for it.
_base_ = "mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ltm_mm.LTMMobileViT",
        arch="s",
        keep="balanced",
        out_indices=(3, 4),
        init_cfg=None,
    ),
    neck=dict(in_channels=(128, 640), out_channels=(128, 640, 512, 256, 256, 128)),
    bbox_head=dict(type="ltm_mm.SSDHead", in_channels=(128, 640, 512, 256, 256, 128)),
)
