# Your own COCO-format data, boxes only, at full width, from COCO weights.
#
#     DATA_ROOT=path/to/fruits_nuts/ python tools/train.py configs/ltm_swin_fasterrcnn_finetune.py
#
# For your own data, copy this file and change the first block. The model, except the heads for
# your classes, starts from mmdet's Mask R-CNN with Swin-T, trained on COCO (box AP 46.0): it needs
# the internet once, or a local file (--cfg-options load_from=FILE); on a CPU it takes hours.
# Not trained here: no result is claimed for it.
_base_ = "ltm_swin_fasterrcnn.py"

data_root = "{{$DATA_ROOT:data/fruits_nuts/}}"
classes = ("date", "fig", "hazelnut")  # names and order of the annotation file's categories
train_annotations, train_images = "annotations/instances_train.json", "data/images/"
val_annotations, val_images = "annotations/instances_val.json", "data/images/"
image_size = (1333, 800)  # width, height: photos are resized to fit into it
batch_size = 2
epochs = 12
repeats = 10  # repeats of the training images per epoch; 1 unless you have few
flips = ["horizontal", "vertical", "diagonal"]  # for photos from above; else ["horizontal"]
learning_rate = 5e-5
load_from = "https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco/mask_rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco_20210906_131725-bacf6f7b.pth"

model = dict(
    backbone=dict(init_cfg=None),  # load_from has it
    roi_head=dict(bbox_head=dict(num_classes=len(classes))),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="RandomFlip", prob=[0.25] * len(flips), direction=flips),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
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
optim_wrapper = dict(optimizer=dict(lr=learning_rate), clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type="CosineAnnealingLR",
        T_max=epochs,
        eta_min=1e-7,
        by_epoch=True,
        begin=0,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2, save_best="coco/bbox_mAP"))
log_processor = dict(window_size=20)
randomness = dict(seed=0)
