# Your own COCO-format data with masks; the example is 18 photos of dates, figs and hazelnuts.
#
#     DATA_ROOT=path/to/fruits_nuts/ python tools/train.py configs/ltm_swin_maskrcnn_fruits_nuts.py
#
# For your own data, copy this file and change the first block. Small photos, a narrow network and
# random weights, so it trains on two cores; with a GPU use ltm_swin_maskrcnn_finetune.py.
_base_ = "ltm_swin_maskrcnn_shapes.py"

data_root = "{{$DATA_ROOT:data/fruits_nuts/}}"
classes = ("date", "fig", "hazelnut")  # names and order of the annotation file's categories
train_annotations, train_images = "annotations/instances_train.json", "data/images/"
val_annotations, val_images = "annotations/instances_val.json", "data/images/"
image_size = (320, 240)  # width, height: photos are resized to fit into it
batch_size = 2
epochs = 8
repeats = 10  # repeats of the training images per epoch; 1 unless you have few
flips = ["horizontal", "vertical", "diagonal"]  # for photos from above; else ["horizontal"]

num_classes = len(classes)
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=num_classes), mask_head=dict(num_classes=num_classes))
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="RandomFlip", prob=[0.25] * len(flips), direction=flips),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type="RepeatDataset",
        times=repeats,
        dataset=dict(
            type="CocoDataset",
            data_root=data_root,
            ann_file=train_annotations,
            data_prefix=dict(img=train_images),
            metainfo=dict(classes=classes),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type="CocoDataset",
        data_root=data_root,
        ann_file=val_annotations,
        data_prefix=dict(img=val_images),
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f"{data_root.rstrip('/')}/{val_annotations}")
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=epochs, val_interval=1)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=epochs, end=epochs)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2, save_best="coco/segm_mAP"))
