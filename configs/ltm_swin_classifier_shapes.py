# Classification, narrow LTM-Swin, single objects of the built-in shapes, from scratch:
#
#     python tools/train.py configs/ltm_swin_classifier_shapes.py
#
# Needs mmpretrain (pip install 'ltm_mm[mmpretrain]').
_base_ = [
    "_base_/datasets/shapes_classes.py",
    "_base_/schedules/shapes_epochs.py",
    "_base_/mmpretrain_short_runtime.py",
]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="ltm_mm.LTMSwin",
        embed_dims=32,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.0,
        out_indices=(3,),
        keep="balanced",
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=6,
        in_channels=256,
        topk=(1,),
        loss=dict(type="CrossEntropyLoss"),
    ),
)
