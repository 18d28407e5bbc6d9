# UPerNet with heads narrow enough for two cores. The background, most of the pixels, has a
# weight of one fifth, so about half of the loss depends on which shape it is (equal weights
# were not tried at this length). GN, because batches are small.
_base_ = "upernet.py"

num_classes = 7
norm_cfg = dict(type="GN", num_groups=8)
class_weight = [0.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    decode_head=dict(
        channels=64,
        num_classes=num_classes,
        dropout_ratio=0.0,
        norm_cfg=dict(_delete_=True, **norm_cfg),
        loss_decode=dict(class_weight=class_weight),
    ),
    auxiliary_head=dict(
        channels=32,
        num_classes=num_classes,
        dropout_ratio=0.0,
        norm_cfg=dict(_delete_=True, **norm_cfg),
        loss_decode=dict(class_weight=class_weight),
    ),
)
