# Your own COCO-format data, by the example of 18 photos of dates, figs and hazelnuts.
#
#     DATA_ROOT=path/to/fruits_nuts/ python tools/train.py configs/ltm_swin_maskrcnn_fruits_nuts.py
#
# For data of your own copy this file and change the first block. The class names must be
# those of the annotation file; boxes and masks come from it. Small photos and narrow heads so
# that it trains on two cores; with a GPU start from ltm_swin_maskrcnn.py instead.
_base_ = "ltm_swin_maskrcnn_shapes.py"

data_root = "{{$DATA_ROOT:data/fruits_nuts/}}"
classes = ("date", "fig", "hazelnut")
train_annotations, train_images = "annotations/instances_train.json", "data/images/"
val_annotations, val_images = "annotations/instances_val.json", "data/images/"
image_size = (320, 240)
repeats = 10  # of the training images per epoch; 1 unless you have few

num_classes = len(classes)
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=num_classes), mask_head=dict(num_classes=num_classes))
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.75, direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PackDetInputs"),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=image_size)
metainfo = dict(classes=classes)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        _delete_=True,
        type="RepeatDataset",
        times=repeats,
        dataset=dict(
            type="CocoDataset",
            data_root=data_root,
            ann_file=train_annotations,
            data_prefix=dict(img=train_images),
            metainfo=metainfo,
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        _delete_=True,
        type="CocoDataset",
        data_root=data_root,
        ann_file=val_annotations,
        data_prefix=dict(img=val_images),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + val_annotations)
test_evaluator = val_evaluator
