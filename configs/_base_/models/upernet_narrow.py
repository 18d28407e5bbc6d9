# UPerNet with heads narrow enough for two cores. The background, most of the pixels, counts a
# fifth in the loss: otherwise a short training learns to tell it from the shapes and no more.
# GN, because batches are small (and SyncBN needs a GPU).
_base_ = "mmseg::_base_/models/upernet_swin.py"

num_classes = 7
norm_cfg = dict(type="GN", num_groups=8)
class_weight = [0.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(_delete_=True),
    decode_head=dict(
        in_channels=None,
        channels=64,
        num_classes=num_classes,
        dropout_ratio=0.0,
        norm_cfg=dict(_delete_=True, **norm_cfg),
        loss_decode=dict(class_weight=class_weight),
    ),
    auxiliary_head=dict(
        in_channels=None,
        channels=32,
        num_classes=num_classes,
        dropout_ratio=0.0,
        norm_cfg=dict(_delete_=True, **norm_cfg),
        loss_decode=dict(class_weight=class_weight),
    ),
)
