# UPerNet, LTM-Swin-T, ADE20K, 160k iterations, with the information-bottleneck loss.
#
#     python tools/train.py configs/ltm_swin_upernet_ib.py
#
# Everything else, including data and weights, as in ltm_swin_upernet.py; not trained here either.
_base_ = ["ltm_swin_upernet.py", "_base_/ib.py"]
