# Mask R-CNN, narrow LTM-Swin, built-in shapes, with the information-bottleneck loss:
#
#     python tools/train.py configs/ltm_swin_maskrcnn_shapes_ib.py
#
# The same as ltm_swin_maskrcnn_shapes.py with --ib paper.
_base_ = ["ltm_swin_maskrcnn_shapes.py", "_base_/ib.py"]
