# UPerNet, LTM-Swin-T, ADE20K, 512 x 512, 160k iterations.
#
#     python tools/train.py configs/ltm_swin_upernet.py
#
# Needs ADE20K in data/ade/ADEChallengeData2016/ (images/, annotations/) and, for the ImageNet
# weights of the backbone, the internet once; a file of yours instead:
#     --cfg-options model.backbone.init_cfg.checkpoint=swin_tiny_patch4_window7_224.pth
# and from scratch: --cfg-options model.backbone.init_cfg=None
# The schedule is for 8 GPUs x 2 images. Not trained here: no result is claimed for it.
_base_ = "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"

model = dict(backbone=dict(type="ltm_mm.LTMSwin", keep="balanced"))
