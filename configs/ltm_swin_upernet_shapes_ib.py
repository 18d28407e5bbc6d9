# UPerNet, narrow LTM-Swin, built-in shapes, with the information-bottleneck loss:
#
#     python tools/train.py configs/ltm_swin_upernet_shapes_ib.py
#
# The same as ltm_swin_upernet_shapes.py with --ib paper.
_base_ = ["ltm_swin_upernet_shapes.py", "_base_/ib.py"]
