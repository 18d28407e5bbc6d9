# Mask R-CNN, LTM-Swin-T, COCO, 1x schedule, with the information-bottleneck loss.
#
#     python tools/train.py configs/ltm_swin_maskrcnn_ib.py
#
# Everything else, including data and weights, as in ltm_swin_maskrcnn.py; not trained here either.
_base_ = ["ltm_swin_maskrcnn.py", "_base_/ib.py"]
