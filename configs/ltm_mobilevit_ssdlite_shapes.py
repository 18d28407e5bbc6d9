# SSDLite, LTM-MobileViT-XXS, built-in shapes, from scratch:
#
#     python tools/train.py configs/ltm_mobilevit_ssdlite_shapes.py
_base_ = [
    "_base_/models/ssdlite_narrow.py",
    "_base_/datasets/shapes_instance.py",
    "_base_/schedules/shapes_epochs.py",
    "_base_/mmdet_short_runtime.py",
]

model = dict(
    backbone=dict(type="ltm_mm.LTMMobileViT", arch="xxs", keep="balanced", out_indices=(2, 3, 4)),
)
# After eight epochs the box AP was 0.20.
max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs, end=max_epochs)
# A box detector: no masks to load.
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(with_mask=False)
test_pipeline = _base_.test_pipeline
test_pipeline[2].update(with_mask=False)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
