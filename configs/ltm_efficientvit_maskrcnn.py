# Mask R-CNN, LTM-EfficientViT-B1 (MIT Han Lab's EfficientViT), COCO, 1x schedule.
#
#     python tools/train.py configs/ltm_efficientvit_maskrcnn.py
#
# Needs COCO 2017 in data/coco/ (annotations/, train2017/, val2017/). From scratch unless you
# give ImageNet weights, timm's or mit-han-lab's:
#     --cfg-options model.backbone.init_cfg.type=Pretrained \
#         model.backbone.init_cfg.checkpoint=efficientvit_b1.pth
# The schedule is for 8 GPUs x 2 images. Not trained here: no result is claimed for it.
_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"

model = dict(
    backbone=dict(
        _delete_=True, type="ltm_mm.LTMEfficientViT", arch="b1", keep="balanced", init_cfg=None
    ),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
