# Mask R-CNN, LTM-ViT-S/16 with ViTDet's simple pyramid, COCO, 1x schedule.
#
#     python tools/train.py configs/ltm_vit_maskrcnn.py
#
# Needs COCO 2017 in data/coco/ (annotations/, train2017/, val2017/). From scratch unless you
# give ImageNet weights, timm's or from a run of ltm_vit_imagenet.py:
#     --cfg-options model.backbone.init_cfg.type=Pretrained \
#         model.backbone.init_cfg.checkpoint=vit_small_patch16_224.safetensors
# ViT-B: --cfg-options model.backbone.arch=base 'model.neck.in_channels=[192,384,768,768]'
# As in ViTDet, every level is made from the last map, without a top-down path; attention
# is global everywhere (ViTDet's is windowed in most blocks), on merged tokens after a merge.
# The schedule is for 8 GPUs x 2 images. Not trained here: no result is claimed for it.
_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ltm_mm.LTMViT",
        arch="small",
        keep="balanced",
        simple_pyramid=True,
        drop_path_rate=0.1,
        init_cfg=None,
    ),
    neck=dict(
        _delete_=True,
        type="ChannelMapper",
        in_channels=[96, 192, 384, 384],
        out_channels=256,
        kernel_size=3,
        norm_cfg=dict(type="GN", num_groups=32),
        act_cfg=None,
        num_outs=5,
    ),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "pos_embed": dict(decay_mult=0.0),
            "cls_token": dict(decay_mult=0.0),
            "norm": dict(decay_mult=0.0),
        }
    )
)
