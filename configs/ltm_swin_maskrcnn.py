# Mask R-CNN, LTM-Swin-T, COCO, 1x schedule.
#
#     python tools/train.py configs/ltm_swin_maskrcnn.py
#
# Needs COCO 2017 in data/coco/ (annotations/, train2017/, val2017/) and, for the ImageNet
# weights of the backbone, the internet once; to use a local file:
#     --cfg-options model.backbone.init_cfg.checkpoint=swin_tiny_patch4_window7_224.pth
# to train from scratch: --cfg-options model.backbone.init_cfg=None
# The schedule is for 8 GPUs x 2 images. Not trained here: no result is claimed for it.
_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"

model = dict(backbone=dict(type="ltm_mm.LTMSwin", keep="balanced"))
