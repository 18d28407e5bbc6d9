"""mmdet's models on the fallback: Mask R-CNN whole, the attention of two transformers."""

from collections.abc import Callable

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("stand_in")

SIZE = (64, 96)
WIDTH = 16


def mask_rcnn() -> nn.Module:
    """mmdet's standard Mask R-CNN, narrow, with a small backbone and few proposals."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules()
    config = Config(get_config("mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py").model)
    config.merge_from_dict(
        {
            "backbone": {"depth": 18, "base_channels": 8, "stem_channels": 8, "init_cfg": None},
            "backbone.norm_eval": False,
            "backbone.frozen_stages": -1,
            "neck.in_channels": [8, 16, 32, 64],
            "neck.out_channels": WIDTH,
            "rpn_head": {"in_channels": WIDTH, "feat_channels": WIDTH},
            "roi_head.bbox_roi_extractor.out_channels": WIDTH,
            "roi_head.bbox_head": {"in_channels": WIDTH, "fc_out_channels": 32},
            "roi_head.mask_roi_extractor.out_channels": WIDTH,
            "roi_head.mask_head": {
                "num_convs": 1,
                "in_channels": WIDTH,
                "conv_out_channels": WIDTH,
            },
            "train_cfg.rpn.sampler.num": 32,
            "train_cfg.rpn_proposal": {"nms_pre": 100, "max_per_img": 30},
            "train_cfg.rcnn.sampler.num": 16,
            "test_cfg.rpn": {"nms_pre": 100, "max_per_img": 30},
            "test_cfg.rcnn": {"score_thr": 0.0, "max_per_img": 5},
        }
    )
    return MODELS.build(config._cfg_dict)


def batch(device: str) -> dict:
    """Two images with two rectangles each, as mmdet's data loader gives them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 90.0, 60.0]])
    masks = torch.zeros(2, *SIZE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    samples = []
    for _ in range(2):
        sample = DetDataSample(
            metainfo={
                "img_shape": SIZE,
                "ori_shape": SIZE,
                "pad_shape": SIZE,
                "batch_input_shape": SIZE,
                "scale_factor": (1.0, 1.0),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes.to(device),
            labels=torch.tensor([0, 2], device=device),
            masks=BitmapMasks(masks.numpy(), *SIZE),
        )
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in range(2)]
    return {"inputs": images, "data_samples": samples}


def test_mask_rcnn_trains_and_predicts(device: str) -> None:
    torch.manual_seed(0)
    model = mask_rcnn().to(device)
    data = model.data_preprocessor(batch(device), training=True)
    losses = model(**data, mode="loss")
    total = sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k)
    total.backward()
    assert {"loss_rpn_cls", "loss_bbox", "loss_mask"} <= losses.keys()
    assert total.isfinite()
    for name in ("roi_head.bbox_head.fc_cls", "roi_head.mask_head.conv_logits", "backbone.conv1"):
        assert model.get_submodule(name).weight.grad.abs().max() > 0, name

    model.eval()
    with torch.no_grad():
        results = model(**data, mode="predict")
    for sample in results:
        predicted = sample.pred_instances
        assert 0 < len(predicted) <= 5
        assert predicted.masks.shape == (len(predicted), *SIZE)
        assert (predicted.scores[:-1] >= predicted.scores[1:]).all()


def test_focal_loss_of_mmdet_agrees_on_both_ways() -> None:
    """RetinaNet's loss calls mmcv's op on CUDA and mmdet's own formula on the CPU."""
    from mmcv.ops import sigmoid_focal_loss
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    torch.manual_seed(0)
    logits, target = torch.randn(8, 3), torch.tensor([0, 1, 2, 3, 3, 3, 0, 1])
    one_hot = nn.functional.one_hot(target, 4)[:, :3]
    expected = py_sigmoid_focal_loss(logits, one_hot, gamma=2.0, alpha=0.25, reduction="none")
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def mask2former_pixel_decoder() -> Tensor:
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules()
    torch.manual_seed(0)
    attention = {"embed_dims": 16, "num_heads": 2, "num_levels": 3, "num_points": 2}
    ffn = {"embed_dims": 16, "feedforward_channels": 32}
    layer = {"self_attn_cfg": attention | {"batch_first": True}, "ffn_cfg": ffn}
    config = {
        "type": "MSDeformAttnPixelDecoder",
        "in_channels": [8, 8, 8, 8],
        "feat_channels": 16,
        "out_channels": 16,
        "norm_cfg": {"type": "GN", "num_groups": 4},
        "encoder": {"num_layers": 1, "layer_cfg": layer},
        "positional_encoding": {"num_feats": 8, "normalize": True},
    }
    decoder = MODELS.build(ConfigDict(config))
    decoder.init_weights()
    maps = [torch.randn(1, 8, n, n + 2, requires_grad=True) for n in (16, 8, 4, 2)]
    mask, levels = decoder(maps)
    output = torch.cat([t.flatten() for t in (mask, *levels)])
    return torch.cat([output, *(g.flatten() for g in torch.autograd.grad(output.sum(), maps))])


def dino_encoder() -> Tensor:
    from mmdet.models.layers import DeformableDetrTransformerEncoder

    torch.manual_seed(0)
    attention = {"embed_dims": 16, "num_heads": 2, "num_levels": 2, "num_points": 2}
    ffn = {"embed_dims": 16, "feedforward_channels": 32}
    layer = {"self_attn_cfg": attention | {"batch_first": True}, "ffn_cfg": ffn}
    encoder = DeformableDetrTransformerEncoder(1, ConfigDict(layer))
    shapes = torch.tensor([[4, 5], [2, 3]])
    query = torch.randn(1, 26, 16, requires_grad=True)
    output = encoder(
        query=query,
        query_pos=torch.randn(1, 26, 16),
        key_padding_mask=torch.zeros(1, 26, dtype=torch.bool),
        spatial_shapes=shapes,
        level_start_index=torch.tensor([0, 20]),
        valid_ratios=torch.ones(1, 2, 2),
    )
    return torch.cat([output.flatten(), torch.autograd.grad(output.sum(), query)[0].flatten()])


@pytest.mark.parametrize("run", [mask2former_pixel_decoder, dino_encoder])
def test_transformers_by_cpu_and_by_ext(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], Tensor]
) -> None:
    """The way that mmcv goes for CUDA tensors, through the fallback, equals that for the CPU."""
    from mmcv.ops import multi_scale_deform_attn as attention

    expected = run()
    on_cpu = attention.multi_scale_deformable_attn_pytorch
    calls = []

    def by_ext(value: Tensor, shapes: Tensor | list, *rest: Tensor) -> Tensor:
        if isinstance(shapes, list):  # asked by the fallback
            return on_cpu(value, shapes, *rest)
        calls.append(shapes)
        starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
        return attention.MultiScaleDeformableAttnFunction.apply(value, shapes, starts, *rest, 64)

    monkeypatch.setattr(attention, on_cpu.__name__, by_ext)
    torch.testing.assert_close(run(), expected, rtol=1e-5, atol=1e-5)
    assert calls
