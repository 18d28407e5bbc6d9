# Your own label maps; the example is 18 photos of dates, figs and hazelnuts (docs/own-data.md).
#
#     DATA_ROOT=data/fruits_nuts_labels/ python tools/train.py configs/ltm_swin_upernet_fruits_nuts.py
#
# For your own data, copy this file and change the first block. Small photos, a narrow network and
# random weights, so it trains on two cores; with a GPU use ltm_swin_upernet_finetune.py.
_base_ = "ltm_swin_upernet_shapes.py"

data_root = "{{$DATA_ROOT:data/fruits_nuts_labels/}}"
classes = ("background", "date", "fig", "hazelnut")  # a pixel's value is an index into this list
train_images, train_labels = "images/train", "labels/train"
val_images, val_labels = "images/val", "labels/val"
image_suffix, label_suffix = ".jpg", ".png"
reduce_zero_label = False  # True: 0 means "other" and is ignored, and classes start at 1
image_size = (320, 240)  # width, height: photos are resized to fit into it
batch_size = 4
epochs = 20
repeats = 10  # repeats of the training images per epoch; 1 unless you have few
flips = ["horizontal", "vertical", "diagonal"]  # for photos from above; else ["horizontal"]
learning_rate = 2e-3

head = dict(num_classes=len(classes), loss_decode=dict(class_weight=None))
model = dict(
    data_preprocessor=dict(size=None, size_divisor=32), decode_head=head, auxiliary_head=head
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=reduce_zero_label),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="RandomFlip", prob=[0.25] * len(flips), direction=flips),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=reduce_zero_label),  # labels keep their size
    dict(type="PackSegInputs"),
]
data = dict(
    type="BaseSegDataset",
    data_root=data_root,
    metainfo=dict(classes=classes),
    img_suffix=image_suffix,
    seg_map_suffix=label_suffix,
    reduce_zero_label=reduce_zero_label,
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        _delete_=True,
        type="RepeatDataset",
        times=repeats,
        dataset=dict(
            **data,
            data_prefix=dict(img_path=train_images, seg_map_path=train_labels),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        **data,
        data_prefix=dict(img_path=val_images, seg_map_path=val_labels),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=learning_rate), clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
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
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=2, save_best="mIoU"),
)
log_processor = dict(by_epoch=True, window_size=20)
randomness = dict(seed=0)
