# SSDLite for images of 160 x 160 pixels with shapes of 16 to 80; mmdet's own is for 320 x 320.
norm_cfg = dict(type="BN")
channels = (48, 64, 320, 128)  # strides 8, 16, 32 of the backbone, and one more level
model = dict(
    type="SingleStageDetector",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    neck=dict(
        type="SSDNeck",
        in_channels=channels[:3],
        out_channels=channels,
        level_strides=(2,),
        level_paddings=(1,),
        l2_norm_scale=None,
        use_depthwise=True,
        norm_cfg=norm_cfg,
        act_cfg=dict(type="ReLU6"),
    ),
    bbox_head=dict(
        type="ltm_mm.SSDHead",
        in_channels=channels,
        num_classes=6,
        use_depthwise=True,
        norm_cfg=norm_cfg,
        act_cfg=dict(type="ReLU6"),
        anchor_generator=dict(
            type="SSDAnchorGenerator",
            scale_major=False,
            strides=[8, 16, 32, 53],
            ratios=[[2], [2], [2], [2]],
            min_sizes=[18, 32, 54, 80],
            max_sizes=[32, 54, 80, 110],
        ),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type="PseudoSampler"),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        nms=dict(type="nms", iou_threshold=0.45),
        min_bbox_size=0,
        score_thr=0.02,
        max_per_img=100,
    ),
)
