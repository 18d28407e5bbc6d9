# UPerNet with heads narrow enough for two cores.
_base_ = "mmseg::_base_/models/upernet_swin.py"

num_classes = 7
norm_cfg = dict(type="BN")  # SyncBN needs a GPU
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(_delete_=True),
    decode_head=dict(in_channels=None, channels=64, num_classes=num_classes, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=None, channels=32, num_classes=num_classes, norm_cfg=norm_cfg),
)
